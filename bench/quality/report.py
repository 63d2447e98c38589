"""Scores of every method in one network; halves, the best row and intervals over images; rows for JSON and people."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.quality.methods import RIVALS, SEED
from bench.quality.networks import Sample, describe_stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.quality.examples import Example, Scores
    from bench.quality.methods import Method
    from bench.quality.networks import Network

Array = NDArray[np.float64]
Row = dict[str, Any]
BEST = "best setting"
RESAMPLES = 4000


class Run:
    """Scores and times of every method in one network, image by image; even images are one half, odd ones the other.

    Attributes:
        left_out: Name -> why the network or the installation cannot have the method.
        scores, times: Name -> scores of each map; CPU milliseconds beyond the forward pass for each image.
        stages: Name of a stage -> its figures (``describe_stage``) for each image, if they are wanted.
        image: The number of each map's image, from 0.
        forward_ms, right: For each image, the forward pass, and whether a class with a map is the predicted one.
    """

    def __init__(
        self,
        network: Network,
        methods: Mapping[str, Method],
        optional: frozenset[str] = frozenset(),
        describe: bool = False,
    ) -> None:
        """Take the methods; those named in ``optional`` are left out if they fail on the first image."""
        self.network, self._methods, self._optional, self._describe = network, methods, optional, describe
        self.left_out: dict[str, str] = {}
        self.scores: dict[str, list[Scores]] = defaultdict(list)
        self.times: dict[str, list[float]] = defaultdict(list)
        self.stages: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.image: list[int] = []
        self.forward_ms: list[float] = []
        self.right: list[bool] = []

    @torch.no_grad()
    def add(self, example: Example) -> None:
        """Score one image with every method."""
        sample = Sample(self.network, example.read(), example.truths)
        scorers = [truth.scorer(sample.size) for truth in example.truths.values()]
        for name in [name for name in self._methods if name not in self.left_out]:
            try:
                maps, spent = self._methods[name].make(name, sample)
            except (ValueError, ModuleNotFoundError) as error:
                if self.image or name not in self._optional:
                    raise
                self.left_out[name] = str(error)
                continue
            self.times[name].append(spent)
            self.scores[name] += [score(cam) for score, cam in zip(scorers, maps[0].float().numpy(), strict=True)]
        for name, features in sample.stages.items() if self._describe else ():
            self.stages[name].append(describe_stage(features))
        self.image += [len(self.forward_ms)] * len(scorers)
        self.forward_ms.append(sample.forward_ms)
        self.right.append(sample.predicted in sample.classes[0])

    def rows(self, baseline: str, goal: str | None) -> list[Row]:
        """Return a row per method, those of the best setting, and one per stage; scores in percent, times in ms.

        The best setting is the SSA row that is best on one half of the images; its score is that on the other, both
        ways round, so it is not helped by the number of rows that were tried. Without priors, then with them.
        """
        image = np.array(self.image)
        levels = {name: 100 * np.stack([each.levels for each in found]) for name, found in self.scores.items()}
        held = {name: held_out(image, scores) for name, scores in levels.items()}
        reference = held[baseline if baseline in held else SEED]
        differences = np.stack([scores - reference for scores in held.values()])
        rows: list[Row] = []
        for name, difference, interval in zip(held, differences, intervals(image, differences), strict=True):
            precision = 100 * np.mean([each.precision for each in self.scores[name]])
            rows.append(
                {
                    "method": name,
                    "kind": self._methods[name].kind,
                    "score": held[name].mean(),
                    "difference": difference.mean(),
                    "interval": interval.tolist(),
                    "halves": [difference[half].mean() for half in halves(image)],
                    "own_threshold": 100 * np.mean([each.own for each in self.scores[name]]),
                    "precision": precision if np.isfinite(precision) else None,
                    "cpu_ms": np.median(self.times[name]),
                }
            )
        for kinds in (("ssa",), ("ssa", "prior")):
            ours = {name: scores for name, scores in levels.items() if self._methods[name].kind in kinds}
            if any(self._methods[name].kind == kinds[-1] for name in ours):
                rows.append(_best_row(image, ours, held, goal) | {"priors": "prior" in kinds})
        for name, figures in self.stages.items():
            signed = np.mean([each["signed"] for each in figures])
            least = min(each["mean_cosine_min"] for each in figures)
            rows.append({"stage": name, "signed": signed, "mean_cosine_min": least})
        return [{"model": self.network.name} | rounded(row) for row in rows]


def halves(image: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return flags of the maps in each half, from the number of each map's image."""
    return image % 2 == 0, image % 2 == 1


def held_out(image: NDArray[np.int64], scores: Array) -> Array:
    """Return (maps,) from (maps, criteria, thresholds): each at the thresholds best on the other half."""
    found = np.empty(len(scores))
    for tested, chosen in zip(halves(image), halves(image)[::-1], strict=True):
        best = scores[chosen].mean(0).argmax(1)  # [criteria]
        found[tested] = np.take_along_axis(scores[tested], best[None, :, None], 2).mean((1, 2))
    return found


def best_of(image: NDArray[np.int64], scores: Mapping[str, Array]) -> tuple[Array, list[str]]:
    """Return the held-out scores (maps,) of the row that is best on the other half, and that row for each half."""
    found, names = np.empty(len(image)), []
    for tested, chosen in zip(halves(image), halves(image)[::-1], strict=True):
        names.append(max(scores, key=lambda each, chosen=chosen: scores[each][chosen].mean(0).max(1).mean()))  # type: ignore[misc]
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
    rivals = [name for name in RIVALS if name in held]
    over = np.stack([best] + [best - held[name] for name in rivals])
    bounds = intervals(image, over).tolist()
    ahead = [
        {"of": name, "difference": difference.mean(), "interval": interval}
        for name, difference, interval in zip(rivals, over[1:], bounds[1:], strict=True)
    ]
    row: Row = {BEST: names, "score": best.mean(), "interval": bounds[0], "ahead": ahead}
    if goal is None:
        return row
    gain = next((each for each in ahead if each["of"] == SEED), None)
    if not goal.startswith("+"):
        reached = bool(best.mean() >= float(goal))
    else:
        reached = gain is not None and bool(gain["difference"] >= float(goal) and gain["interval"][0] > 0)
    return row | {"goal": goal, "reached": reached}


def rounded(value: Any) -> Any:
    """Return JSON's kinds of values with three decimals, also those within lists and dicts."""
    return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 3))


def _name(row: Row) -> str:
    return row["method"] if "method" in row else f"{BEST} with priors" if row.get("priors") else BEST


def markdown(rows: Sequence[Row]) -> str:
    """Return all heads' methods as Markdown: a column per model, scores and differences; then the costs."""
    heads = [row for row in rows if "metric" in row]
    columns: list[dict[str, Row]] = []
    for row in rows:
        if "metric" in row:
            columns.append({})
        elif "stage" not in row:
            columns[-1][_name(row)] = row
    names = list(dict.fromkeys(name for column in columns for name in column))
    line, models = ["---"] * (len(heads) + 1), [head["model"] for head in heads]
    scores = [[f"{heads[0]['title']}: {heads[0]['metric']}", *models], line]
    scores.append(["", *(f"{head['images']} images, {head['maps']} maps" for head in heads)])
    costs = [["CPU ms per image beyond the forward pass", *models], line]
    costs.append(["the forward pass", *(f"{head['forward_cpu_ms']:.0f}" for head in heads)])
    for name in names:
        found = [column.get(name, {}) for column in columns]
        scores.append([name, *(_cell(row, head["baseline"]) for row, head in zip(found, heads, strict=True))])
        if any(row.get("cpu_ms") is not None for row in found):
            costs.append([name, *(f"{row['cpu_ms']:.1f}" if row else "–" for row in found)])
    return "\n\n".join("\n".join(f"| {' | '.join(cells)} |" for cells in table) for table in (scores, costs))


def _cell(row: Row, baseline: str) -> str:
    if not row or row.get("method") == baseline:
        return f"{row['score']:.1f}" if row else "–"
    if BEST in row:
        return f"{row['score']:.1f}: {' / '.join(dict.fromkeys(row[BEST]))}"
    low, high = row["interval"]
    return f"{row['score']:.1f} ({row['difference']:+.1f} [{low:+.1f}, {high:+.1f}])".replace("-", "−")
