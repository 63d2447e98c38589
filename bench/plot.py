"""``python -m bench plot``: pictures of what ``python -m bench`` measured.

Those of the pages: ``plot bench/results/curve-cpu.json --out bench/results``, and the same of ``backbone-cpu.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.figures import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

Row = dict[str, Any]
OURS, AGAIN, WHOLE, PART = "auto", "auto again", "polish and fuse", "xᵀx"
NEEDED = ("problem", "provider", "status", "ours", "B", "K", "C", "H", "L")
FIRST_STAGE = re.compile(r"resnet50/\d+/layer1/?(|signed|shifted)")
REFERENCE = "ssa_fast, f ≥ 0"
# What ours is called in a panel, by the kind of problem; peers are those of the first kind.
PANELS = {
    "features ≥ 0": {"": "ssa_fast"},
    "signed features": {"signed": "ssa_fast, ReLU", "shifted": "ssa_fast, shifted", "": REFERENCE},
}
QUANTITIES = {"time": ("Time", "warm_ms", 1e-3, "s"), "memory": ("Extra memory", "peak_extra_mib", 2.0**20, "B")}
# Colours of matplotlib's style for every kind of colour vision. A compiled variant is its original's colour, dashed.
LOOKS = {
    "ssa_fast": "C2o-", "ssa_fast, ReLU": "C2o-", "ssa_fast, shifted": "C2*-", REFERENCE: "k:",
    "dense PCM": "C0s-", "dense PCM compiled": "C0s--", "chunked PCM": "C5D-", "algebra": "C1^-",
    "algebra compiled": "C1^--", "FlexAttention": "C3v-", PART: "k.-",
}  # fmt: skip
# 1,200 dots wide, of which a phone shows 390: no text is smaller than 15.2 points, 10 of the phone's.
STYLE = {
    "font.size": 16, "legend.fontsize": 15.2, "figure.dpi": 150, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "lines.linewidth": 2.4, "lines.markersize": 8,
}  # fmt: skip


class Malformed(Exception):
    """Raised for a file that cannot be drawn; the text is one sentence for people."""


class Results(NamedTuple):
    """What one file says: the device, what its figures have to stand beside, and rows by problem and provider."""

    device: str
    caption: str
    rows: dict[tuple[str, str], Row]
    about: dict[str, str]  # name and digest of the file, noted in its pictures


def read(path: Path) -> Results:
    """Return what a result file says.

    Raises:
        Malformed: it is none.
    """
    try:
        content = path.read_bytes()
        found = json.loads(content)
        device, limit = found["settings"]["device"], {"limit_s": float(found["settings"]["limit_s"])}
        rows = [{name: row[name] for name in NEEDED} | row | limit for row in found["rows"]]
        words = "{gpu}, {gpu_memory_gib:g}" if device == "cuda" else "{cpu}, {threads} threads, {memory_gib:g}"
        caption = (words + " GiB, torch {torch}, commit {commit}").format_map(found["machine"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise Malformed(f"{path}: expected a result file, got {why}; make it with python -m bench.") from None
    about = {"Source": path.name, "Data": hashlib.sha256(content).hexdigest()}
    return Results(device, caption, {(row["problem"], row["provider"]): row for row in rows}, about)


def ending(row: Row) -> str:
    """Return why a row has no figure, in words."""
    return f"over {row['limit_s']:g} s" if row["status"] == "over budget" else str(row["status"])


def figure_of(row: Row, quantity: str) -> list[float]:
    """Return p20, p50 and p80 of a row's figure, NaN if it has none."""
    value = row.get(quantity) if row["status"] == "ok" else None
    if isinstance(value, dict):
        return [value["p20"], value["p50"], value["p80"]]
    return [math.nan if value is None else value] * 3


def panels(results: Results, quantity: str) -> dict[str, dict[str, list[Row]]]:
    """Return by panel and name the lines that have a figure: their rows by rising ``L``."""
    found = {}
    for title, kinds in PANELS.items():
        lines: dict[str, list[Row]] = {name: [] for name in kinds.values()}
        for (problem, provider), row in sorted(results.rows.items(), key=lambda each: int(each[1]["L"])):
            stage = FIRST_STAGE.fullmatch(problem)
            if stage and provider == OURS and stage[1] in kinds:
                lines[kinds[stage[1]]].append(row)
            elif stage and not row["ours"] and stage[1] == next(iter(kinds)):
                lines.setdefault(provider, []).append(row)
        drawn = {name: rows for name, rows in lines.items() if any(figure_of(row, quantity)[1] > 0 for row in rows)}
        if drawn.keys() - {REFERENCE}:
            found[title] = drawn
    return found


def draw_curves(kind: str, results: Results) -> Figure | None:
    """Draw ``kind`` ``"time"`` or ``"memory"`` against ``L``, one panel above the other."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    what, quantity, scale, unit = QUANTITIES[kind]
    if not (found := panels(results, quantity)):
        return None
    figure = Figure((8.0, 0.6 + 6.2 * len(found)), layout="constrained")
    every = figure.subplots(len(found), sharey=True, squeeze=False)[:, 0]
    for axes, (title, lines) in zip(every, found.items(), strict=True):
        first, *_ = next(iter(lines.values()))
        sizes = dict(sorted((row["L"], row["H"]) for rows in lines.values() for row in rows))
        axes.set_title(f"{what}, {title}, C={first['C']}, K={first['K']}")
        axes.set(xscale="log", yscale="log", xlabel="pixels L")
        axes.set_xticks([*sizes], [f"{H}²" for H in sizes.values()])
        axes.yaxis.set_major_formatter(EngFormatter(unit))
        axes.minorticks_off()
        axes.grid(color="#e4e4e4")
        for name, rows in lines.items():
            at, values = [row["L"] for row in rows], scale * np.array([figure_of(row, quantity) for row in rows])
            end = "" if rows[-1]["status"] == "ok" else f"\n{ending(rows[-1])}"
            (line,) = axes.plot(at, values[:, 1], LOOKS.get(name, "kh-"), label=name + end)
            axes.fill_between(at, values[:, 0], values[:, 2], color=line.get_color(), alpha=0.25)
            if name.startswith("ssa_fast") and name != REFERENCE:
                line.set(linewidth=5, markersize=12)
        if kind == "memory":
            features = [4 * first["B"] * first["C"] * L for L in sizes]  # float32
            axes.plot([*sizes], features, "k--", label="input features")
        else:
            L, low = min(sizes), axes.get_ylim()[0]
            axes.axline((L, low), (2 * L, 2 * low), color="gray", linewidth=1.2)
            axes.axline((L, low), (2 * L, 4 * low), color="gray", linewidth=1.2, label="∝ L, ∝ L²")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, labelspacing=0.7)
    return figure


def draw_shares(results: Results) -> Figure | None:
    """Draw what polishing and fusing takes of a network's forward, a bar per network, K and size of the input."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    rows = {problem: row for (problem, provider), row in results.rows.items() if provider == WHOLE}
    p20, p50, p80 = np.reshape([figure_of(row, "share_of_backbone") for row in rows.values()], (-1, 3)).T
    if np.isnan(p50).all():
        return None
    names = [
        f"{problem}: {ending(row) if row['status'] != 'ok' else f'{number(100 * share)} %'}"
        for (problem, row), share in zip(rows.items(), p50, strict=True)
    ]
    goals = [0.03 if row["K"] == 1 and results.device == "cpu" else 0.05 for row in rows.values()]
    figure = Figure((8.0, 2 + 0.45 * len(rows)), layout="constrained")
    figure.suptitle("Polish and fuse: share of the backbone's time", weight="bold")
    axes = figure.subplots()
    axes.barh(names, p50, color="C2", xerr=(p50 - p20, p80 - p50), error_kw={"linewidth": 2.4})
    axes.plot(goals, names, "k|", markersize=28, markeredgewidth=2.4)
    axes.set_xlabel("lines: p20 to p80, and upright the goal")
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    axes.invert_yaxis()
    return figure


def _save(path: Path, figure: Figure, results: Results) -> None:
    """Write a PNG with what it was drawn from, in few colours, which make it a third of the size."""
    from PIL import Image, PngImagePlugin

    notes = PngImagePlugin.PngInfo()
    for each in results.about.items():
        notes.add_text(*each)
    figure.supxlabel(textwrap.fill(results.caption, 64), x=0.01, ha="left", fontsize=15.2, color="#666666")
    figure.savefig(path)
    Image.open(path).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True, pnginfo=notes)


def main(arguments: Sequence[str]) -> int:
    """Return 0 if something is drawn, 2 if nothing can be, with the reason on stderr."""
    from ssa_fast.io.atomic import write_files

    parser = argparse.ArgumentParser(prog="python -m bench plot", description="pictures of a grid's results")
    parser.add_argument("results", type=Path, help="file of python -m bench")
    parser.add_argument("--out", type=Path, required=True, help="folder for time-, memory- and backbone-<device>.png")
    given = parser.parse_args(arguments)
    try:
        results = read(given.results)
        from matplotlib import style

        with style.context(["default", "seaborn-v0_8-colorblind", STYLE]):
            drawn = {kind: draw_curves(kind, results) for kind in QUANTITIES} | {"backbone": draw_shares(results)}
            save = {kind: partial(_save, figure=each, results=results) for kind, each in drawn.items() if each}
            write_files({given.out / f"{kind}-{results.device}.png": save[kind] for kind in save}, overwrite=True)
        if not save:
            raise Malformed(f"{given.results}: expected rows of resnet50's layer1 or of whole networks, got none.")
    except (Malformed, OSError, ModuleNotFoundError) as error:
        print(f"python -m bench plot: {error}", file=sys.stderr)
        return 2
    return 0
