"""``python -m bench plot``: pictures of what ``python -m bench`` measured."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import re
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.figures import in_unit, number
from bench.problems import curve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
OURS, AGAIN, WHOLE, PART = "auto", "auto again", "polish and fuse", "xᵀx"
KINDS = ("time", "memory", "backbone")
RELU, SHIFTED, NONNEGATIVE, FEATURES = "ssa_fast, ReLU", "ssa_fast, shifted", "ssa_fast, f ≥ 0", "input features"
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
NEEDED = ("problem", "provider", "status", "ours", "dtype", "B", "K", "C", "H", "L")
INK, FAINT, ORANGE = "#222222", "#666666", "#D55E00"
# Okabe and Ito's palette: apart for every kind of colour vision. A compiled variant is its original's colour, dashed.
PEERS = {
    "dense PCM": ("#0072B2", "s"), "chunked PCM": ("#E69F00", "D"), "algebra": ("#009E73", "^"),
    "FlexAttention": ("#CC79A7", "v"), "xᵀx alone": ("#000000", "."),
}  # fmt: skip
# 1,600 dots wide, of which a phone shows 390: no text is smaller than 15.2 points, 42 dots.
STYLE = {
    "font.size": 16, "legend.fontsize": 15.2, "savefig.dpi": 200, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


class Malformed(Exception):
    """Raised for a file that cannot be drawn; the text is one sentence for people."""


class Results(NamedTuple):
    """What one file says: its device, machine and rows by problem and provider, and a digest of the file."""

    source: str
    device: str
    machine: Row
    rows: dict[tuple[str, str], Row]
    digest: str

    @property
    def memory_mib(self) -> float | None:
        gib = self.machine.get("gpu_memory_gib" if self.device == "cuda" else "memory_gib")
        return gib and gib * 1024

    def caption(self) -> str:
        """Return what a figure has to stand beside, without the date."""
        has = self.machine
        parts = [has["gpu"]] if self.device == "cuda" else [has["cpu"], f"{has['threads']} threads"]
        parts += [f"{self.memory_mib / 1024:g} GiB"] if self.memory_mib else []
        commits = f"commit{'s' * (',' in str(has['commit']))} {has['commit']}"
        return ", ".join([*parts, f"torch {has['torch']}", commits])


def read(path: Path) -> Results:
    """Return what a result file says.

    Raises:
        Malformed: it is none.
    """
    try:
        content = path.read_bytes()
        found = json.loads(content)
        limit = {"limit_s": float(found["settings"]["limit_s"])}
        rows = {(row["problem"], row["provider"]): row | {name: row[name] for name in NEEDED} for row in found["rows"]}
        rows = {key: row | limit for key, row in rows.items()}
        digest = hashlib.sha256(content).hexdigest()
        results = Results(path.name, found["settings"]["device"], found["machine"], rows, digest)
        results.caption()
    except OSError as error:
        raise Malformed(f"{path}: expected a result file, got {error.strerror or error}.") from None
    except (ValueError, LookupError, TypeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise Malformed(f"{path}: expected a result file, got {why}; make it with python -m bench.") from None
    return results


def ending(row: Row) -> str:
    """Return why a row has no figure, in words."""
    return f"over {row['limit_s']:g} s" if row["status"] == "over budget" else str(row["status"])


def figure_of(row: Row | None, quantity: str) -> tuple[float, float, float]:
    """Return p20, p50 and p80 of a row's figure, NaN if it has none."""
    value = row.get(quantity) if row and row["status"] == "ok" else None
    if isinstance(value, dict):
        return value.get("p20") or value["p50"], value["p50"], value.get("p80") or value["p50"]
    return (math.nan if value is None else value,) * 3


# Curves of one stage against its pixels.


class Curve(NamedTuple):
    """One provider; p20, p50, p80 at each ``L``, NaN where a figure is missing; ``end`` says why it goes no further."""

    name: str
    ours: bool
    L: list[int]
    values: np.ndarray[Any, Any]  # [len(L), 3]
    end: str = ""


def panels(results: Results, quantity: str) -> dict[str, list[Curve]]:
    """Return curves by title, one per sign of the features; ``quantity``: ``"warm_ms"`` or ``"peak_extra_mib"``."""
    found: dict[str, list[Curve]] = {}
    series = {kind: _series(results, kind) for kind in ("", "signed", "shifted")}
    mine = {kind: [row for row in rows if row["provider"] == OURS] for kind, rows in series.items()}
    for kind, title in (("", "features ≥ 0"), ("signed", "signed features")):
        compared = kind == "signed" and mine["shifted"]  # the shifted cosine beside the ReLU and beside features ≥ 0
        lines = {SHIFTED: mine["shifted"], NONNEGATIVE: mine[""]} if compared else {}
        names: dict[str, str] = {OURS: RELU if compared else "ssa_fast", PART: f"{PART} alone"}
        for row in series[kind]:
            if row["provider"] == OURS or not row["ours"]:
                lines.setdefault(names.get(row["provider"]) or str(row["provider"]), []).append(row)
        curves = [_curve(name, rows, quantity, results) for name, rows in lines.items() if rows]
        curves = [curve for curve in curves if curve.L]
        if any(curve.ours for curve in curves):
            first = series[kind][0]
            if quantity == "peak_extra_mib":
                sizes = {row["L"]: row["B"] * row["C"] * row["L"] * BYTES[row["dtype"]] / 2**20 for row in series[kind]}
                curves.append(Curve(FEATURES, False, list(sizes), np.repeat([*sizes.values()], 3).reshape(-1, 3)))
            found[f"{title}, C={first['C']}, K={first['K']}" + f", B={first['B']}" * (first["B"] > 1)] = curves
    return found


def _series(results: Results, kind: str) -> list[Row]:
    """Return rows of first stages that differ in their pixels alone, by rising ``L``: of several series the longest."""
    series: dict[str, list[Row]] = {}
    for (problem, _), row in results.rows.items():
        _, stage, *rest = f"{curve(problem)}/".split("/")
        if stage == "layer1" and kind == next((each for each in rest if each in ("signed", "shifted", "centred")), ""):
            series.setdefault(curve(problem), []).append(row)
    longest = max(series.values(), key=lambda rows: len({row["L"] for row in rows}), default=[])
    return sorted(longest, key=lambda row: int(row["L"]))


def _curve(name: str, rows: list[Row], quantity: str, results: Results) -> Curve:
    """Return one provider's curve; the band of ours also spans its second measurement, A/A."""
    values = np.array([figure_of(row, quantity) for row in rows])
    if rows[0]["provider"] == OURS:
        again = np.array([figure_of(results.rows.get((row["problem"], AGAIN)), quantity) for row in rows])
        values[:, 0], values[:, 2] = np.fmin(values[:, 0], again[:, 0]), np.fmax(values[:, 2], again[:, 2])
    measured = np.flatnonzero(~np.isnan(values[:, 1]))
    begin, stop = (int(measured[0]), int(measured[-1]) + 1) if measured.size else (0, 0)
    lost = next((row for row in rows[stop:] if row["status"] != "ok"), None)
    end = f"{ending(lost)} at L={pixels(lost['L'])}" if lost else ""
    return Curve(name, rows[0]["ours"], [row["L"] for row in rows[begin:stop]], values[begin:stop], end)


def pixels(L: float) -> str:
    """Return a number of pixels as the axis names it: 65k for 65,536."""
    return f"{L // 10**6:.0f}M" if L >= 10**6 else f"{L // 10**3:.0f}k" if L >= 10**3 else f"{L:.0f}"


def draw_curves(kind: str, found: dict[str, list[Curve]], results: Results) -> Figure | None:
    """Draw ``kind`` ``"Time"`` or ``"Extra memory"`` against ``L``, one panel above the other."""
    from matplotlib.ticker import FuncFormatter

    if not found:
        return None
    base, scale, units = 10, 1e-3, [("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)]
    if kind != "Time":
        base, scale, units = 16, 2**20, [(f"{each}iB", 1024.0**power) for power, each in enumerate("KMGT", 1)]
    figure = _figure(6.2 * len(found), results)
    every = figure.subplots(len(found), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    last = max(curve.L[-1] for curves in found.values() for curve in curves)
    for axes, (title, curves) in zip(every, found.items(), strict=True):
        axes.set_title(f"{kind}, {title}", loc="left", weight="bold", pad=12)
        axes.set_xscale("log", base=4)
        axes.set_yscale("log", base=base)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda L, _: pixels(L)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: re.sub(r"\.0+ ", " ", in_unit(y, units))))
        axes.minorticks_off()
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("pixels L")
        axes.grid(color="#e4e4e4")
        if kind != "Time" and results.memory_mib:
            where = "GPU" if results.device == "cuda" else "machine"
            axes.axhline(results.memory_mib * scale, color=FAINT, label=f"the {where}")
        # In the order in which quadratic lines that end early would arrive at the right.
        for each in sorted(curves, key=lambda each: -each.values[-1, 1] * (last / each.L[-1]) ** 0.5):
            _draw_curve(axes, each, scale)
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, labelspacing=0.7)
        for text in legend.get_texts():
            if text.get_text().startswith("ssa_fast") and text.get_text() != NONNEGATIVE:
                text.set(color=ORANGE, weight="bold")
    (_, right), (low, high) = every[0].get_xlim(), every[0].get_ylim()
    every[0].set_ylim(low / 4, high)
    for axes in every:  # slopes 1 and 2, in the corner below all rising lines
        for power, reach, name, x, y, align in ((1, 9, "∝ L", 5, -5, "left"), (2, 3, "∝ L²", 0, 5, "center")):
            begin, end = (right / 25, low / 2), (right / 25 * reach, low / 2 * reach**power)
            axes.plot(*zip(begin, end, strict=True), color=FAINT, linestyle="--", linewidth=1.5, scalex=False)
            axes.annotate(name, end, (x, y), textcoords="offset points", ha=align, color=FAINT)
    return figure


def _draw_curve(axes: Axes, curve: Curve, scale: float) -> None:
    """Draw the line of the medians, the band from p20 to p80, and a cross where it ends before its time."""
    color, marker = PEERS.get(curve.name.removesuffix(" compiled"), (FAINT, "h"))
    how: dict[str, Any] = {"linewidth": 2.4, "marker": marker, "markersize": 8, "zorder": 3}
    if curve.name.endswith(" compiled"):
        how["linestyle"] = (0, (2.2, 1.2))
    if curve.name in (FEATURES, NONNEGATIVE):
        color, how = FAINT if curve.name == FEATURES else INK, {"linewidth": 2, "linestyle": ":", "zorder": 6}
    elif curve.ours:
        color, how = ORANGE, {"linewidth": 5, "marker": "*" if curve.name == SHIFTED else "o", "markersize": 12}
    p20, p50, p80 = curve.values.T * scale
    axes.fill_between(curve.L, p20, p80, color=color, alpha=0.25, linewidth=0)
    label = f"{curve.name}\n{curve.end}".strip()
    axes.plot(curve.L, p50, color=color, label=label, **how, markevery=slice(0, len(curve.L) - bool(curve.end)))
    if curve.end:
        axes.plot(curve.L[-1:], p50[-1:], "x", color=color, markersize=16, markeredgewidth=4, zorder=6)


# The share of a whole network's forward.


def shares(results: Results) -> list[tuple[str, float, tuple[float, float, float], str]]:
    """Return a bar per network, K, B and size of the input: label, goal, p20, p50 and p80, or why there are none."""
    rows = [(problem.split("/")[0], row) for (problem, provider), row in results.rows.items() if provider == WHOLE]
    several, found = len({net for net, _ in rows}) > 1, []
    for net, row in sorted(rows, key=lambda each: (each[0], *(each[1][name] for name in ("K", "B", "H")))):
        goal = 0.03 if (net, row["K"], results.device) == ("resnet50", 1, "cpu") else 0.05
        label = f"{net} " * several + f"{row['H']}², K={row['K']:,}" + f", B={row['B']}" * (row["B"] > 1)
        values, why = figure_of(row, "share_of_backbone"), ending(row) if row["status"] != "ok" else ""
        found += [(label, goal, values, why)] if why or not math.isnan(values[1]) else []
    return found if any(not why for *_, why in found) else []


def draw_shares(found: list[Any], results: Results) -> Figure | None:
    """Draw what polishing and fusing takes of the backbone's forward, a bar per input."""
    if not found:
        return None
    goals = " and ".join(f"{100 * goal:g} %" for goal in sorted({goal for _, goal, *_ in found}))
    figure = _figure(0.7 + 0.45 * len(found), results, f"Lines: p20 to p80; dashed: goal {goals}. ")
    figure.suptitle("Polish and fuse: share of the backbone's time", x=0.01, ha="left", weight="bold", fontsize=18)
    axes = figure.subplots()
    right = 1.03 * np.nanmax([[goal, *values] for _, goal, values, _ in found])
    axes.set(xticks=[], xlim=(0, right), ylim=(len(found) - 0.4, -0.6))
    axes.set_yticks(range(len(found)), [label for label, *_ in found])
    for at, (_, goal, (p20, p50, p80), why) in enumerate(found):
        axes.barh(at, p50, height=0.62, color=ORANGE)
        axes.plot([p20, p80], [at, at], color=INK, linewidth=2.5)
        axes.plot([goal] * 2, [at - 0.5, at + 0.5], color=INK, linewidth=2, linestyle="--")
        axes.text(right, at, why or f"{number(100 * p50)} %", va="center", color=FAINT if why else INK)
    return figure


# Files.


def _figure(height: float, results: Results, note: str = "") -> Figure:
    """Return an empty figure with the small print at its foot, ``height`` inches above that."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(note + results.caption(), 64)
    figure = Figure((8.0, height + 0.3 * len(lines)), layout="constrained")
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=15.2, color=FAINT)
    return figure


def draw(results: Results) -> dict[str, bytes]:
    """Return PNG files by kind, empty where there are no rows to draw, that name what they were drawn from."""
    from matplotlib import style
    from PIL import Image, PngImagePlugin

    about = PngImagePlugin.PngInfo()
    about.add_text("Source", results.source)
    about.add_text("Data", results.digest)
    pictures = {}
    with style.context(["default", STYLE]):
        curves = [
            draw_curves(title, panels(results, quantity), results)
            for title, quantity in (("Time", "warm_ms"), ("Extra memory", "peak_extra_mib"))
        ]
        for kind, figure in zip(KINDS, [*curves, draw_shares(shares(results), results)], strict=True):
            content, few = io.BytesIO(), io.BytesIO()
            if figure:
                figure.savefig(content, format="png")
                # Few colours make a small file.
                colours = Image.open(content).convert("RGB").quantize(200, dither=Image.Dither.NONE)
                colours.save(few, "PNG", optimize=True, pnginfo=about)
            pictures[kind] = few.getvalue()
    return pictures


def main(arguments: Sequence[str]) -> int:
    """Return 0 if something is drawn, 2 if nothing can be, with the reason on stderr."""
    from ssa_fast.io.atomic import write_files

    parser = argparse.ArgumentParser(prog="python -m bench plot", description="pictures of a grid's results")
    parser.add_argument("results", type=Path, help="file of python -m bench")
    parser.add_argument("--out", type=Path, required=True, help="folder for time-, memory- and backbone-<device>.png")
    given = parser.parse_args(arguments)
    try:
        results = read(given.results)
        drawn = {f"{kind}-{results.device}.png": png for kind, png in draw(results).items()}
        writers = {given.out / name: partial(Path.write_bytes, data=png) for name, png in drawn.items() if png}
        write_files(writers, overwrite=True)  # all are drawn before one is written
    except (Malformed, OSError, ModuleNotFoundError) as error:
        print(f"python -m bench plot: {error}", file=sys.stderr)
        return 2
    for name in (name for name, png in drawn.items() if not png):
        print(f"No {name}: no row of {results.source} is for it.", file=sys.stderr)
    return 0 if writers else 2
