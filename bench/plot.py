"""``python -m bench plot``: pictures and tables of what ``python -m bench`` measured."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import re
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
OURS, AGAIN, WHOLE, BACKBONE, PART = "auto", "auto again", "polish and fuse", "backbone", "xᵀx"
SIGNS = ("features ≥ 0", "signed features")
RELU, SHIFTED, NONNEGATIVE, FEATURES = "ssa_fast, ReLU", "ssa_fast, shifted", "ssa_fast, f ≥ 0", "input features"
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
IDENTITY = {"cpu": ("cpu", "threads", "torch"), "cuda": ("gpu", "torch")}  # without which figures cannot be compared
COLUMNS = ("problem", "provider", "status", "ours", "layout", "affinity", "dtype", "B", "K", "C", "H", "L")
NONE, KINDS = "–", ("time", "memory", "backbone")
INK, FAINT, ORANGE = "#222222", "#666666", "#D55E00"
# Okabe and Ito's palette: apart for every kind of colour vision. A compiled variant is its original's colour, dashed.
PEERS = {
    "dense PCM": ("#0072B2", "s"), "chunked PCM": ("#E69F00", "D"), "algebra": ("#009E73", "^"),
    "FlexAttention": ("#CC79A7", "v"), "KeOps": ("#56B4E9", "P"), "xᵀx alone": ("#000000", "."),
}  # fmt: skip


# 1,600 dots wide, of which a phone shows 390: no text is smaller than 15.2 points, 42 dots.
STYLE = {
    "font.size": 16, "legend.fontsize": 15.2, "savefig.dpi": 200, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


class Malformed(Exception):
    """Raised for a file that cannot be drawn; the text is one sentence for people."""


@dataclass
class Results:
    """What was measured on one device of one machine; a later file's row replaces that of an earlier one."""

    device: str
    machine: Row
    sources: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)  # of the files

    @property
    def memory_mib(self) -> float | None:
        gib = self.machine.get("gpu_memory_gib" if self.device == "cuda" else "memory_gib")
        return gib and gib * 1024

    def caption(self) -> str:
        """Return what a figure has to stand beside, without the date."""
        has: Row = self.machine
        commits = list(dict.fromkeys(self.commits))
        parts = [has["gpu"]] if self.device == "cuda" else [has["cpu"], f"{has['threads']} threads"]
        parts += [f"{self.memory_mib / 1024:g} GiB"] if self.memory_mib else []
        return ", ".join([*parts, f"torch {has['torch']}", f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}"])


def read(paths: Iterable[Path]) -> list[Results]:
    """Return the files' results, one entry per device, later files over earlier ones.

    Raises:
        Malformed: a file is not a result file, or two of one device come from different machines.
    """
    devices: dict[str, Results] = {}
    for path in paths:
        try:
            content = path.read_bytes()
            found = json.loads(content)
            machine, settings, rows = found["machine"], found["settings"], found["rows"]
            results = devices.setdefault(settings["device"], Results(settings["device"], machine))
            got, expected = ([each[part] for part in IDENTITY[results.device]] for each in (machine, results.machine))
            for row in rows:
                kept = {name: row[name] for name in COLUMNS}
                results.rows[row["problem"], row["provider"]] = row | kept | {"limit_s": float(settings["limit_s"])}
        except OSError as error:
            raise Malformed(f"{path}: expected a result file, got {error.strerror or error}.") from None
        except (ValueError, LookupError, TypeError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise Malformed(f"{path}: expected a result file, got {why}; make it with python -m bench.") from None
        if got != expected:
            raise Malformed(
                f"{path}: expected the machine of the files before, {expected}, got {got}; plot them apart."
            )
        results.sources.append(path.name)
        results.commits.append(str(machine.get("commit") or "unknown"))
        results.digest.update(content)
    return list(devices.values())


def markdown(files: Sequence[Path], only: str = "") -> str:
    """Return the tables of result files: problems against their best peers, whole networks, and the small print.

    Raises:
        Malformed: see ``read``.
    """
    return "\n".join(line for results in read(files) for line in tables(results, only))


def tables(results: Results, only: str = "") -> list[str]:
    """Return the lines of ``markdown`` for one device, none if it has no rows of ours."""
    problems: dict[str, dict[str, Row]] = {}
    for (problem, provider), row in results.rows.items():
        if only in problem:
            problems.setdefault(problem, {})[provider] = row
    heads = ["problem", "ours", "best peer", "ratio", "memory, ours / peer", "error, ours / peer", "ended"]
    lines = table(heads, [stage_row(name, rows) for name, rows in problems.items() if OURS in rows])
    ratios = [quantiles(rows[AGAIN]["ratio"]) for rows in problems.values() if AGAIN in rows and rows[AGAIN]["ratio"]]
    heads = ["network", BACKBONE, WHOLE, "share of the backbone, p50 (p20–p80)"]
    lines += table(heads, [network_row(name, rows) for name, rows in problems.items() if WHOLE in rows])
    span = f"{number(min(ratios)[0])} to {number(max(high for *_, high in ratios))}" if ratios else ""
    noise = f"Ratios are medians of interleaved rounds; ours against itself: {span}. " if ratios else ""
    return [*lines, f"{noise}{results.caption()}."] if lines else []


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table and an empty one, none without rows."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return [*lines, ""] if rows else []


def stage_row(name: str, rows: dict[str, Row]) -> list[str]:
    """Return the cells of a problem: ours against the best peer, and how the others ended."""
    mine = rows[OURS]
    peers = [row for row in rows.values() if not row["ours"] and row["provider"] != BACKBONE]
    timed = [row for row in peers if row["provider"] != PART and row["status"] == "ok" and row["warm_ms"]]
    best = min(timed, key=lambda row: row["warm_ms"]["p50"], default=None)  # xᵀx alone does not give the result
    ended: dict[str, list[str]] = {}
    for row in peers:
        if row["status"] != "ok":
            ended.setdefault(ending(row), []).append(row["provider"])
    return [
        name,
        milliseconds(mine),
        f"{best['provider']}, {milliseconds(best)}" if best else NONE,
        f"{number(best['ratio']['p50'])}×" if best and best["ratio"] else NONE,
        f"{mebibytes(mine)} / {mebibytes(best)}",
        f"{error(mine)} / {error(best)}",
        "; ".join(f"{why}: {', '.join(who)}" for why, who in ended.items()) or NONE,
    ]


def network_row(name: str, rows: dict[str, Row]) -> list[str]:
    """Return the cells of a whole network: polishing against its forward."""
    p20, p50, p80 = (number(100 * value) for value in _figure_of(rows[WHOLE], "share_of_backbone"))
    share = NONE if p50 == NONE else f"{p50} % ({p20}–{p80})"
    return [name, milliseconds(rows.get(BACKBONE)), milliseconds(rows[WHOLE]), share]


def ending(row: Row) -> str:
    """Return why a row has no figure, in words."""
    return f"over {row['limit_s']:g} s" if row["status"] == "over budget" else str(row["status"])


def milliseconds(row: Row | None) -> str:
    """Return the time of a row in the unit that suits it, or why there is none."""
    if row and row["status"] != "ok":
        return ending(row)
    return in_unit(_figure_of(row, "warm_ms")[1], (("µs", 1e-3), ("ms", 1.0), ("s", 1e3)))


def mebibytes(row: Row | None) -> str:
    """Return the peak extra memory of a row."""
    return in_unit(_figure_of(row, "peak_extra_mib")[1], (("MiB", 1.0), ("GiB", 1024.0), ("TiB", 2.0**20)))


def error(row: Row | None) -> str:
    """Return the error of a row as in ``3.1e-7``."""
    value = row["error"] if row else None
    if value is None or not math.isfinite(value):
        return NONE
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}" if value else "0"


def in_unit(value: float, units: Sequence[tuple[str, float]]) -> str:
    """Return ``value`` in the largest unit of which it has at least 1."""
    name, scale = next((unit for unit in reversed(units) if float(f"{value:.3g}") >= unit[1]), units[0])
    return NONE if math.isnan(value) else f"{number(value / scale)} {name}"


def number(value: float) -> str:
    """Return three significant digits, none of them in an exponent."""
    if math.isnan(value):
        return NONE
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded)))) if rounded else 0}f}"


def quantiles(value: Row) -> tuple[float, float, float]:
    """Return p20, p50 and p80, the first and last of which may be missing."""
    return value.get("p20") or value["p50"], value["p50"], value.get("p80") or value["p50"]


def _figure_of(row: Row | None, quantity: str) -> tuple[float, float, float]:
    """Return p20, p50 and p80 of a row's figure, NaN if it has none."""
    value = row.get(quantity) if row and row["status"] == "ok" else None
    return quantiles(value) if isinstance(value, dict) else (math.nan if value is None else value,) * 3


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
    mine = {sign: [row for row in _series(results, sign) if row["provider"] == OURS] for sign in (*SIGNS, SHIFTED)}
    for sign in SIGNS:
        rows = _series(results, sign)
        compared = sign == SIGNS[1] and mine[SHIFTED]  # the shifted cosine beside the ReLU and beside features ≥ 0
        lines = {SHIFTED: mine[SHIFTED], NONNEGATIVE: mine[SIGNS[0]]} if compared else {}
        names = {OURS: RELU if compared else "ssa_fast", PART: f"{PART} alone"}
        for row in rows:
            if row["provider"] == OURS or not row["ours"]:
                lines.setdefault(str(names.get(row["provider"], row["provider"])), []).append(row)
        curves = [_curve(name, each, quantity, results) for name, each in lines.items() if each]
        curves = [curve for curve in curves if curve.L]
        if any(curve.ours for curve in curves):
            if quantity == "peak_extra_mib":
                mib = {row["L"]: row["B"] * row["C"] * row["L"] * BYTES[row["dtype"]] / 2**20 for row in rows}
                curves.append(Curve(FEATURES, False, list(mib), np.repeat([*mib.values()], 3).reshape(-1, 3)))
            first = rows[0]
            found[f"{sign}, C={first['C']}, K={first['K']}" + f", B={first['B']}" * (first["B"] > 1)] = curves
    return found


def _series(results: Results, sign: str) -> list[Row]:
    """Return rows of first stages that differ in ``L`` alone, by rising ``L``: of several series the longest."""
    series: dict[tuple[Any, ...], list[Row]] = {}
    for row in results.rows.values():
        net, _, *parts = row["problem"].split("/")
        kind = SHIFTED if "shifted" in parts else SIGNS["signed" in parts]
        if parts[:1] == ["layer1"] and "centred" not in parts and kind == sign:
            same = (net, *(row[name] for name in ("B", "K", "C", "dtype", "layout", "affinity")))
            series.setdefault(same, []).append(row)
    longest = max(series.values(), key=lambda each: len({row["L"] for row in each}), default=[])
    return sorted(longest, key=lambda row: int(row["L"]))


def _curve(name: str, rows: list[Row], quantity: str, results: Results) -> Curve:
    """Return one provider's curve; the band of ours also spans its second measurement, A/A."""
    values = np.array([_figure_of(row, quantity) for row in rows])
    if rows[0]["provider"] == OURS:
        again = np.array([_figure_of(results.rows.get((row["problem"], AGAIN)), quantity) for row in rows])
        values[:, 0], values[:, 2] = np.fmin(values[:, 0], again[:, 0]), np.fmax(values[:, 2], again[:, 2])
    measured = np.flatnonzero(~np.isnan(values[:, 1]))
    begin, stop = (int(measured[0]), int(measured[-1]) + 1) if measured.size else (0, 0)
    lost = next((row for row in rows[stop:] if row["status"] != "ok"), None)
    end = f"{ending(lost)} at L={pixels(lost['L'])}" if lost else ""
    return Curve(name, rows[0]["ours"], [row["L"] for row in rows[begin:stop]], values[begin:stop], end)


def pixels(L: float) -> str:
    """Return a number of pixels as the axis names it: 65k for 65,536."""
    return f"{L // 10**6:.0f}M" if L >= 10**6 else f"{L // 10**3:.0f}k" if L >= 10**3 else f"{L:.0f}"


def shares(results: Results) -> list[tuple[str, float, tuple[float, float, float], str]]:
    """Return a bar per network, K, B and size of the input: label, goal, p20, p50 and p80, or why there are none."""
    rows = [(row["problem"].split("/")[0], row) for (_, provider), row in results.rows.items() if provider == WHOLE]
    several, found = len({net for net, _ in rows}) > 1, []
    for net, row in sorted(rows, key=lambda each: (each[0], *(each[1][name] for name in ("K", "B", "H")))):
        goal = 0.03 if (net, row["K"], results.device) == ("resnet50", 1, "cpu") else 0.05
        label = f"{net} " * several + f"{row['H']}², K={row['K']:,}" + f", B={row['B']}" * (row["B"] > 1)
        values, why = _figure_of(row, "share_of_backbone"), ending(row) if row["status"] != "ok" else ""
        found += [(label, goal, values, why)] if why or not math.isnan(values[1]) else []
    return found if any(not why for *_, why in found) else []


def draw(results: Results) -> dict[str, bytes]:
    """Return pictures by kind, empty where there are no rows to draw: PNG files that name what they were drawn from."""
    from matplotlib import style
    from PIL import Image, PngImagePlugin

    about = PngImagePlugin.PngInfo()
    about.add_text("Source", "\n".join(results.sources))
    about.add_text("Data", results.digest.hexdigest())
    pictures = {}
    with style.context(["default", STYLE]):
        for kind, figure in (
            ("time", draw_curves("Time", panels(results, "warm_ms"), results)),
            ("memory", draw_curves("Extra memory", panels(results, "peak_extra_mib"), results)),
            ("backbone", draw_shares(shares(results), results)),
        ):
            content, few = io.BytesIO(), io.BytesIO()
            if figure:
                figure.savefig(content, format="png")
                # Few colours make a small file.
                colours = Image.open(content).convert("RGB").quantize(200, dither=Image.Dither.NONE)
                colours.save(few, "PNG", optimize=True, pnginfo=about)
            pictures[kind] = few.getvalue()
    return pictures


def draw_curves(kind: str, found: dict[str, list[Curve]], results: Results) -> Figure | None:
    """Draw ``kind`` ``"Time"`` or ``"Extra memory"`` against ``L``, one panel above the other."""
    from matplotlib.ticker import FuncFormatter

    if kind == "Time":
        base, scale, memory, units = 10, 1e-3, None, [("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)]
    else:
        base, scale, memory = 16, 2**20, results.memory_mib
        units = [(f"{prefix}iB", 1024.0**power) for power, prefix in enumerate("KMGT", 1)]
    figure = _figure(6.2 * len(found), results)
    every = figure.subplots(max(len(found), 1), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    last = max((curve.L[-1] for curves in found.values() for curve in curves), default=0)
    for axes, (title, curves) in zip(every, found.items(), strict=False):
        axes.set_title(f"{kind}, {title}", loc="left", weight="bold", pad=12)
        axes.set_xscale("log", base=4)
        axes.set_yscale("log", base=base)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda L, _: pixels(L)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: re.sub(r"\.0+ ", " ", in_unit(y, units))))
        axes.minorticks_off()
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("pixels L")
        axes.grid(color="#e4e4e4")
        if memory:
            axes.axhline(memory * scale, color=FAINT, label=f"the {'GPU' if results.device == 'cuda' else 'machine'}")
        # In the order in which quadratic lines that end early would arrive at the right.
        for curve in sorted(curves, key=lambda curve: -curve.values[-1, 1] * (last / curve.L[-1]) ** 0.5):
            _draw_curve(axes, curve, scale)
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
    return figure if found else None


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


def _figure(height: float, results: Results, note: str = "") -> Figure:
    """Return an empty figure with the small print at its foot, ``height`` inches above that."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(note + results.caption(), 64)
    figure = Figure((8.0, height + 0.3 * len(lines)), layout="constrained")
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=15.2, color=FAINT)
    return figure


def main(arguments: list[str]) -> int:
    """Run the command; return 0 if something is drawn or printed, 2 if nothing can be, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m bench plot", description="pictures and tables of a grid's results")
    parser.add_argument("results", nargs="+", type=Path, help="files of python -m bench; later ones count more")
    parser.add_argument("--out", type=Path, help="folder for time-, memory- and backbone-<device>.png")
    parser.add_argument("--markdown", action="store_true", help="print the tables")
    parser.add_argument("--only", default="", help="in the tables, only problems whose name contains this")
    given = parser.parse_args(arguments)
    if not given.out and not given.markdown:
        parser.error("nothing to do: name a folder with --out, ask for the tables with --markdown, or both")
    files: dict[str, bytes] = {}
    lines: list[str] = []
    try:
        for results in read(given.results):
            made = {f"{kind}-{results.device}.png": png for kind, png in draw(results).items()} if given.out else {}
            printed = tables(results, given.only) if given.markdown else []
            files |= {name: png for name, png in made.items() if png}
            lines += printed
            for name in made.keys() - files.keys() | ({"table"} if given.markdown and not printed else set()):
                print(f"No {name}: no row of {', '.join(results.sources)} is for it.", file=sys.stderr)
        for name, png in files.items():  # all are drawn before one is written
            given.out.mkdir(parents=True, exist_ok=True)
            unfinished = given.out / f".{name}"
            unfinished.write_bytes(png)
            unfinished.replace(given.out / name)
    except (Malformed, OSError, ModuleNotFoundError) as error:
        print(f"python -m bench plot: {error}", file=sys.stderr)
        return 2
    print(*lines, sep="\n", end="\n" * bool(lines))
    return 0 if files or lines else 2
