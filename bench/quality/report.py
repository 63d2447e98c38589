"""What a run has found, as rows for JSON, as lines and as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bench.quality.methods import RIVALS, SEED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.quality.run import Run
    from bench.quality.statistics import Array

Row = dict[str, Any]
BEST = "best setting"


def make_rows(run: Run, baseline: str, goal: str | None) -> list[Row]:
    """Return a row per method, one for the best setting, and one per stage; scores in percent, times in ms.

    The best setting is the SSA row that is best on one half of the images; its score is that on the other, both ways
    round, so it is not helped by the number of rows that were tried.
    """
    folds, levels = run.folds(), run.levels()
    held = {name: 100 * folds.held_out(scores) for name, scores in levels.items()}
    reference = held[baseline if baseline in held else SEED]
    differences = np.stack([scores - reference for scores in held.values()])
    rows: list[Row] = []
    for (name, scores), difference, interval in zip(
        held.items(), differences, folds.intervals(differences), strict=True
    ):
        row = {"method": name, "kind": run.methods[name].kind, "score": scores.mean(), "difference": difference.mean()}
        row |= {"interval": interval.tolist(), "halves": [difference[half].mean() for half in folds.halves()]}
        row |= {"own_threshold": 100 * run.mean(name, "own")}
        precision = 100 * run.mean(name, "precision")
        rows.append(row | {"precision": precision if np.isfinite(precision) else None, "cpu_ms": run.cpu_ms(name)})
    own = {name: scores for name, scores in levels.items() if run.methods[name].kind == "ssa"}
    if own:
        best, names = folds.best(own)
        rows.append(_best_row(run, 100 * best, names, held, goal))
    for name, figures in run.stages.items():
        row = {"stage": name} | {key: np.mean([each[key] for each in figures]) for key in figures[0]}
        rows.append(row | {"mean_cosine_min": min(each["mean_cosine_min"] for each in figures)})  # of all images
    return [{"model": run.network.name} | {key: rounded(value) for key, value in row.items()} for row in rows]


def _best_row(run: Run, best: Array, names: Sequence[str], held: dict[str, Array], goal: str | None) -> Row:
    rivals = [name for name in RIVALS if name in held]
    over = np.stack([best] + [best - held[name] for name in rivals])
    intervals = run.folds().intervals(over).tolist()
    ahead = [
        {"of": name, "difference": difference.mean(), "interval": interval}
        for name, difference, interval in zip(rivals, over[1:], intervals[1:], strict=True)
    ]
    row: Row = {BEST: list(names), "score": best.mean(), "interval": intervals[0], "ahead": ahead}
    if goal is None:
        return row
    gain = next((each for each in ahead if each["of"] == SEED), None)
    if not goal.startswith("+"):
        reached = bool(best.mean() >= float(goal))
    else:
        reached = gain is not None and bool(gain["difference"] >= float(goal) and gain["interval"][0] > 0)
    return row | {"goal": goal, "reached": reached}


def rounded(value: Any) -> Any:
    """Return numbers with three decimals, also those within lists and dicts."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(float(value), 3) if isinstance(value, float | np.floating) else value


def _signed(difference: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")


def line(row: Row) -> str:
    """Return a row as a line of text."""
    if "stage" in row:
        return "  ".join(f"{key} {value}" for key, value in row.items() if key != "model")
    if BEST in row:
        return "\n".join(_best_lines(row))
    others = "".join(f"{row[key]:>7.1f}" for key in ("own_threshold", "precision") if row[key] is not None)
    difference = _signed(row["difference"], row["interval"])
    return f"{row['method']:<34} {row['score']:>6.2f}  {difference:<24}{others}{row['cpu_ms']:>9.1f} ms"


def _best_lines(row: Row) -> list[str]:
    low, high = row["interval"]
    lines = [f"{BEST}, chosen on the other half: {' / '.join(dict.fromkeys(row[BEST]))}"]
    lines.append(f"  score {row['score']:.1f} [{low:.1f}, {high:.1f}]")
    if "goal" in row:
        what = f"{row['goal']} over the seed" if row["goal"].startswith("+") else f"at least {row['goal']}"
        lines.append(f"  goal: {what}: {'reached' if row['reached'] else 'missed'}")
    for each in row["ahead"]:
        verdict = "ahead" if each["interval"][0] > 0 else "behind" if each["interval"][1] < 0 else "undecided"
        lines.append(f"  {verdict} of {each['of']}: {_signed(each['difference'], each['interval'])}")
    return lines


def markdown(rows: Sequence[Row]) -> str:
    """Return a table of all heads' methods as Markdown: a column per model, scores and differences; then the costs."""
    heads = [row for row in rows if "command" in row]
    columns = [_column(rows[at + 1 :]) for at, row in enumerate(rows) if "command" in row]
    names = list(dict.fromkeys(name for column in columns for name in column))
    titles = [f"{head['title']}, {head['model']}" for head in heads]
    counts = [f"{head['images']} images, {head['maps']} maps" for head in heads]
    parts = ["| map | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    parts.append("| | " + " | ".join(counts) + " |")
    for name in names:
        cells = [_cell(column.get(name), head["baseline"]) for head, column in zip(heads, columns, strict=True)]
        parts.append(f"| {name} | " + " | ".join(cells) + " |")
    parts += ["", "| CPU ms per image beyond the forward pass | " + " | ".join(titles) + " |"]
    parts.append("|---" * (len(titles) + 1) + "|")
    parts.append("| the forward pass | " + " | ".join(f"{head['forward_cpu_ms']:.0f}" for head in heads) + " |")
    for name in names:
        spent = [column[name].get("cpu_ms") if name in column else None for column in columns]
        if any(each is not None for each in spent):
            cells = ["–" if each is None else f"{each:.1f}" for each in spent]
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(parts)


def _column(rows: Sequence[Row]) -> dict[str, Row]:
    """Return the rows before the next head, by method."""
    found: dict[str, Row] = {}
    for row in rows:
        if "command" in row:
            break
        if "method" in row:
            found[row["method"]] = row
        elif BEST in row:
            found[BEST] = row
    return found


def _cell(row: Row | None, baseline: str) -> str:
    if row is None:
        return "–"
    if BEST in row:
        return f"{row['score']:.1f}: {' / '.join(dict.fromkeys(row[BEST]))}"
    if row["method"] == baseline:
        return f"{row['score']:.1f}"
    return f"{row['score']:.1f} ({_signed(row['difference'], row['interval'])})"
