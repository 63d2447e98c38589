"""From the scores of a run to rows: halves, intervals over images, the best setting; and rows as tables for people."""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.figures import NONE, table
from bench.quality.methods import RIVALS, SEED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.quality.methods import Method

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Row = dict[str, Any]
BEST = "best setting"
RESAMPLES = 4000


def summarise(images: Sequence[Row], methods: Mapping[str, Method], baseline: str, goal: str | None) -> list[Row]:
    """Return a row per method, those of the best setting, and one per stage; scores in percent, times in ms.

    Each image has by method "cpu_ms" and the "scores" of its maps, and in "stages" their figures, if they are wanted.
    The best setting is the SSA row that is best on one half of the images; its score is that on the other, both ways
    round, so it is not helped by the number of rows that were tried. Without priors, then with them.
    """
    image = np.repeat(np.arange(len(images)), [len(each["scores"][baseline]) for each in images])
    scores = {name: [score for each in images for score in each["scores"][name]] for name in methods}
    levels = {name: 100 * np.stack([each.levels for each in found]) for name, found in scores.items()}
    held = {name: held_out(image, found) for name, found in levels.items()}
    differences = np.stack([found - held[baseline] for found in held.values()])
    rows = [
        {
            "method": name,
            "kind": methods[name].kind,
            "score": held[name].mean(),
            "difference": difference.mean(),
            "interval": interval,
            "halves": [difference[tested].mean() for tested, _ in folds(image)],
            "own_threshold": 100 * np.mean([each.own for each in scores[name]]),
            "precision": 100 * np.mean([each.precision for each in scores[name]]),
            "cpu_ms": np.median([each["cpu_ms"][name] for each in images]),
        }
        for name, difference, interval in zip(held, differences, intervals(image, differences), strict=True)
    ]
    for kinds in (("ssa",), ("ssa", "prior")):
        ours = {name: found for name, found in levels.items() if methods[name].kind in kinds}
        if any(methods[name].kind == kinds[-1] for name in ours):
            rows.append(_best_row(image, ours, held, goal) | {"priors": "prior" in kinds})
    for name in images[0]["stages"]:
        signed, least = zip(*(each["stages"][name].values() for each in images), strict=True)
        rows.append({"stage": name, "signed": np.mean(signed), "mean_cosine_min": min(least)})
    return rows


def folds(image: NDArray[np.int64]) -> tuple[tuple[Flags, Flags], tuple[Flags, Flags]]:
    """Return, from the number of each map's image, flags of the maps tested and of those chosen on, both ways round."""
    even = image % 2 == 0
    return (even, ~even), (~even, even)


def held_out(image: NDArray[np.int64], scores: Array) -> Array:
    """Return (maps,) from (maps, criteria, thresholds): each at the thresholds best on the other half."""
    found = np.empty(len(scores))
    for tested, chosen in folds(image):
        best = scores[chosen].mean(0).argmax(1)  # [criteria]
        found[tested] = np.take_along_axis(scores[tested], best[None, :, None], 2).mean((1, 2))
    return found


def best_of(image: NDArray[np.int64], scores: Mapping[str, Array]) -> tuple[Array, list[str]]:
    """Return the held-out scores (maps,) of the row that is best on the other half, and that row for each half."""
    found, names = np.empty(len(image)), []
    for tested, chosen in folds(image):
        on_others = {name: each[chosen].mean(0).max(1).mean() for name, each in scores.items()}
        names.append(max(on_others, key=on_others.__getitem__))
        found[tested] = held_out(image, scores[names[-1]])[tested]
    return found, names


def intervals(image: NDArray[np.int64], values: Array) -> Array:
    """Return the 95 % intervals (rows, 2) of the means over maps of ``values`` (rows, maps), by the bootstrap.

    Images are drawn, with all their maps; the thresholds stay those of the whole run.
    """
    count = int(image.max()) + 1
    maps = np.bincount(image, minlength=count)
    sums = np.stack([np.bincount(image, row, count) for row in values], 1)  # [images, rows]
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)  # how often each image
    means = drawn @ sums / (drawn @ maps)[:, None]
    return np.asarray(np.quantile(means, (0.025, 0.975), axis=0).T)


def _best_row(image: NDArray[np.int64], ours: Mapping[str, Array], held: Mapping[str, Array], goal: str | None) -> Row:
    best, names = best_of(image, ours)
    over = {name: best - held[name] for name in RIVALS if name in held}
    interval, *bounds = intervals(image, np.stack([best, *over.values()]))
    ahead = [
        {"of": name, "difference": difference.mean(), "interval": bound}
        for (name, difference), bound in zip(over.items(), bounds, strict=True)
    ]
    row: Row = {BEST: names, "score": best.mean(), "interval": interval, "ahead": ahead}
    if goal is None:
        return row
    gain = next(each for each in ahead if each["of"] == SEED)
    enough = gain["difference"] >= float(goal) and gain["interval"][0] > 0
    return row | {"goal": goal, "reached": bool(enough if goal.startswith("+") else best.mean() >= float(goal))}


def plain(value: Any) -> Any:
    """Return JSON's kinds of values with three decimals, None for NaN, also those within lists and dicts."""
    text = json.dumps(value, default=np.ndarray.tolist)
    return json.loads(text, parse_float=lambda digits: round(float(digits), 3), parse_constant=lambda _: None)


def markdown(rows: Sequence[Row]) -> str:
    """Return all heads' methods as Markdown: a column per model, scores and differences; then the costs."""
    heads, columns = list[Row](), list[dict[str, Row]]()
    for row in rows:
        if "metric" in row:
            heads.append(row)
            columns.append({})
        elif "stage" not in row:
            columns[-1][row.get("method") or (f"{BEST} with priors" if row["priors"] else BEST)] = row
    scores = [["", *(f"{head['images']} images, {head['maps']} maps" for head in heads)]]
    costs = [["the forward pass", *(f"{head['forward_cpu_ms']:.0f}" for head in heads)]]
    for name in dict.fromkeys(chain.from_iterable(columns)):
        found = [column.get(name, {}) for column in columns]
        scores.append([name, *(_cell(row, head["baseline"]) for row, head in zip(found, heads, strict=True))])
        if any(row.get("cpu_ms") is not None for row in found):
            costs.append([name, *(f"{row['cpu_ms']:.1f}" if row else NONE for row in found)])
    models = [head["model"] for head in heads]
    title = f"{heads[0]['title']}: {heads[0]['metric']}"
    of_costs = table(["CPU ms per image beyond the forward pass", *models], costs)
    return "\n".join([*table([title, *models], scores), "", *of_costs])


def _cell(row: Row, baseline: str) -> str:
    if not row or row.get("method") == baseline:
        return f"{row['score']:.1f}" if row else NONE
    if BEST in row:
        return f"{row['score']:.1f}: {' / '.join(dict.fromkeys(row[BEST]))}"
    low, high = row["interval"]
    return f"{row['score']:.1f} ({row['difference']:+.1f} [{low:+.1f}, {high:+.1f}])".replace("-", "−")
