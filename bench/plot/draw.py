"""The pictures: 1,600 dots wide, of which a phone shows 390, so no text is smaller than 42 dots."""

from __future__ import annotations

import hashlib
import io
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.colors
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from PIL import Image, PngImagePlugin
from scipy.optimize import isotonic_regression

from bench.plot.series import FEATURES, NONNEGATIVE, SHIFTED, pixels
from bench.plot.table import number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

    from bench.plot.results import Results
    from bench.plot.series import Curve, Panel, Share

# Inches: the width, where axes and their labels begin, the margin; a line, a gap, what stands above and below axes.
WIDTH, LEFT, COLUMN, EDGE = 8.0, 1.2, 4.8, 0.15
LINE, GAP, HEAD, FOOT = 0.245, 0.1, 0.9, 0.85
DPI, TEXT, SMALL = 200, 16.0, 15.2  # dots per inch, and points: 44 and 42 dots
INK, FAINT, GRID = "#222222", "#666666", "#e4e4e4"

# Okabe and Ito's palette: apart for every kind of colour vision. A compiled variant is its original's colour, dashed.
OURS = ("#D55E00", "o")
PEERS = {
    "dense PCM": ("#0072B2", "s"),
    "chunked PCM": ("#E69F00", "D"),
    "algebra": ("#009E73", "^"),
    "FlexAttention": ("#CC79A7", "v"),
    "KeOps": ("#56B4E9", "P"),
    "xᵀx alone": ("#000000", "."),
}
OTHER = ("#666666", "h")
DASHED, DOTTED = (0, (2.2, 1.2)), (0, (1, 1.5))

TIMES = {
    1e-3: "1 µs", 1e-2: "10 µs", 0.1: "100 µs", 1: "1 ms", 10: "10 ms", 100: "100 ms", 1e3: "1 s", 1e4: "10 s",
    6e4: "1 min", 6e5: "10 min", 3.6e6: "1 h", 3.6e7: "10 h",
}  # fmt: skip
MEMORIES = {
    2.0**-10: "1 KiB", 2.0**-6: "16 KiB", 2.0**-2: "256 KiB", 2.0**2: "4 MiB", 2.0**6: "64 MiB", 2.0**10: "1 GiB",
    2.0**14: "16 GiB", 2.0**18: "256 GiB", 2.0**22: "4 TiB",
}  # fmt: skip
PIXELS = {float(4**power): pixels(4**power) for power in range(2, 16)}


def curves(kind: str, panels: Sequence[Panel], results: Results) -> bytes:
    """A PNG of ``kind`` ``"time"`` or ``"memory"`` against ``L``, one panel above the other."""
    memory = results.memory_mib if kind == "memory" else None
    head, ticks = ("Extra memory", MEMORIES) if kind == "memory" else ("Time", TIMES)
    x, y = _limits(panels, memory)
    talls = [max(4.4, sum(map(_label_height, panel.curves)) + 0.8) for panel in panels]
    with _style():
        figure, top = _figure(sum(talls) + (HEAD + FOOT) * len(panels), results)
        for panel, tall in zip(panels, talls, strict=True):
            _head(figure, top, f"{head}, {panel.title}", panel.sizes)
            axes = _axes(figure, (LEFT, top - HEAD - tall, COLUMN - LEFT, tall))
            axes.set(xscale="log", yscale="log", xlim=x, ylim=y)
            _ticks(axes, ticks)
            _guides(axes)
            if memory:
                _device(axes, memory, "GPU" if results.device == "cuda" else "machine")
            for curve in panel.curves:
                _curve(axes, curve)
            _labels(figure, axes, panel.curves)
            top -= HEAD + tall + FOOT
        return _png(figure, (kind, panels, memory), results)


def shares(found: Sequence[Share], results: Results) -> bytes:
    """A PNG of what polishing and fusing takes of the backbone's forward, a bar per input."""
    goals = sorted({share.goal for share in found})
    most = max(*goals, *(share.p80 for share in found if not share.why))
    left = max(2.35, 0.14 * max(len(share.label) for share in found))  # inches
    wide = WIDTH - left - 1.45
    tall = 0.44 * len(found) + 0.1
    with _style():
        figure, top = _figure(HEAD + LINE + tall + 0.3, results)
        _head(figure, top, "Polish and fuse four stages", "share of the backbone's forward, p20 to p80")
        axes = _axes(figure, (left, top - HEAD - LINE - tall, wide, tall))
        axes.set(xlim=(0, 1.02 * most), ylim=(len(found) - 0.4, -0.6), xticks=[])
        axes.set_yticks(range(len(found)), [share.label for share in found])
        axes.spines["bottom"].set_visible(False)
        for at, share in enumerate(found):
            axes.barh(at, share.p50, height=0.62, color=OURS[0])
            axes.plot([share.p20, share.p80], [at, at], color=INK, linewidth=2.5)
            text = share.why or f"{number(100 * share.p50)} %"
            how: dict[str, Any] = {"ha": "right", "va": "center", "color": FAINT if share.why else INK}
            axes.text((WIDTH - EDGE - left) / wide, at, text, transform=axes.get_yaxis_transform(), **how)
            axes.plot([share.goal] * 2, [at - 0.6, at + 0.4], color=INK, linewidth=2, dashes=(4, 2))
        text = f"goal{'s' * (len(goals) > 1)} {' and '.join(f'{100 * goal:g}' for goal in goals)} %"
        axes.annotate(text, (goals[-1], -0.6), (0, 4), textcoords="offset points", ha="center", va="bottom")
        return _png(figure, ("backbone", found), results)


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib as it comes, whatever the user's own settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {"font.family": "DejaVu Sans", "font.size": TEXT, "text.color": INK, "axes.labelcolor": INK}
        )
        yield


def _figure(height: float, results: Results) -> tuple[Figure, float]:
    """A figure with the small print at its foot and ``height`` inches above it; and where its top is."""
    parts = [part.replace(" ", "\N{NO-BREAK SPACE}") if len(part) < 40 else part for part in results.beside()]
    lines = textwrap.wrap(", ".join(parts), 64)
    top = height + LINE * len(lines) + 0.2
    figure = Figure(figsize=(WIDTH, top), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    _text(figure, EDGE, 0.12, "\n".join(lines), va="bottom", fontsize=SMALL, color=FAINT, linespacing=1.15)
    return figure, top


def _text(figure: Figure, x: float, y: float, text: str, **how: Any) -> None:
    """Text at inches from the lower left corner."""
    figure.text(x, y, text, transform=figure.dpi_scale_trans, **how)


def _head(figure: Figure, top: float, title: str, below: str) -> None:
    _text(figure, EDGE, top - 0.15, title, va="top", fontsize=TEXT + 2, fontweight="bold")
    _text(figure, EDGE, top - 0.48, below, va="top", color=FAINT)


def _axes(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes in a box of inches: left, bottom, width, height."""
    x, y = figure.get_size_inches()
    axes = figure.add_axes((box[0] / x, box[1] / y, box[2] / x, box[3] / y))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(length=0, pad=8, labelcolor=INK)
    axes.set_axisbelow(True)
    return axes


def _limits(panels: Sequence[Panel], memory: float | None) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of both axes, the same for all panels: room for guides and crosses, and for a tick even around one point."""
    points = [point for panel in panels for curve in panel.curves for point in curve.points]
    x = [point.L for point in points]
    y = [value for point in points for value in (point.p20, point.p80) if value == value] + ([memory] if memory else [])
    return (min(x) / 2, max(x) * 2), (min(y) / 4, max(y) * 4)


def _ticks(axes: Axes, named: dict[float, str]) -> None:
    for axis, limits, names in ((axes.xaxis, axes.get_xlim(), PIXELS), (axes.yaxis, axes.get_ylim(), named)):
        shown = {value: name for value, name in names.items() if limits[0] <= value <= limits[1]}
        axis.set_major_locator(FixedLocator(list(shown)))
        axis.set_minor_locator(NullLocator())
        axis.set_ticklabels(list(shown.values()))
        axis.grid(True, color=GRID, linewidth=1.2)
    axes.set_xlabel("pixels L", labelpad=4)


def _guides(axes: Axes) -> None:
    """Slopes 1 and 2, in the corner below all rising lines."""
    (left, right), (low, _) = axes.get_xlim(), axes.get_ylim()
    begin, low = right / 40, low * 1.5
    if begin < left:
        return
    how: dict[str, Any] = {"textcoords": "offset points", "color": FAINT, "fontsize": SMALL, "va": "center"}
    for power, reach, name, shift, align in ((1, 9.0, "∝ L", 5, "left"), (2, 6.0, "∝ L²", -8, "right")):
        axes.plot([begin, begin * reach], [low, low * reach**power], color=FAINT, linewidth=1.5, dashes=(3, 2))
        axes.annotate(name, (begin * reach, low * reach**power), (shift, 0), ha=align, **how)


def _device(axes: Axes, memory: float, name: str) -> None:
    axes.axhline(memory, color=FAINT, linewidth=1.5)
    text = f"the {name}: {memory / 1024:.3g} GiB"
    axes.text(axes.get_xlim()[0] * 1.1, memory * 1.15, text, color=FAINT, fontsize=SMALL, va="bottom")


def _look(curve: Curve) -> dict[str, Any]:
    """How a curve's line is drawn."""
    if curve.name == FEATURES:
        return {"color": FAINT, "linewidth": 2.0, "linestyle": DOTTED}
    if curve.name == NONNEGATIVE:
        return {"color": INK, "linewidth": 2.0, "linestyle": DOTTED, "zorder": 6}
    color, marker = OURS if curve.ours else PEERS.get(curve.name.removesuffix(" compiled"), OTHER)
    line = DASHED if curve.name.endswith(" compiled") else "-"
    return {
        "color": color, "linestyle": line, "linewidth": 5.0 if curve.ours else 2.4,
        "marker": "*" if curve.name == SHIFTED else marker, "zorder": 5 if curve.ours else 3,
        "markersize": 17.0 if curve.name == SHIFTED else 11.0 if curve.ours else 8.0,
    }  # fmt: skip


def _curve(axes: Axes, curve: Curve) -> None:
    """The line of the medians, the band from p20 to p80, and a cross where it ends before its time."""
    look = _look(curve)
    L, p20, p50, p80 = np.array([(point.L, point.p20, point.p50, point.p80) for point in curve.points]).T
    axes.fill_between(L, p20, p80, color=look["color"], alpha=0.25, linewidth=0)
    axes.plot(L, p50, **look, markevery=slice(0, len(L) - bool(curve.end)))
    if curve.end:
        cross: dict[str, Any] = {"marker": "x", "markersize": 16, "markeredgewidth": 4, "zorder": 6}
        axes.plot(L[-1:], p50[-1:], color=look["color"], **cross)


def _label_height(curve: Curve) -> float:
    return LINE * (2 if curve.end else 1) + GAP


def _labels(figure: Figure, axes: Axes, found: Sequence[Curve]) -> None:
    """Names and endings in the column at the right, each tied to its line's end, spread so that none overlaps."""
    last, begin = axes.get_xlim()[1], COLUMN + 0.1

    def inches(L: float, y: float) -> tuple[float, float]:
        x, y = axes.transData.transform((L, y)) / DPI
        return float(x), float(y)

    # A tie rises by half a decade per decade: so those of quadratic lines that end early pass above linear ones.
    ends = [(curve, curve.points[-1].L, curve.points[-1].p50) for curve in found]
    tied = sorted((inches(last, y * (last / L) ** 0.5)[1], at) for at, (_, L, y) in enumerate(ends))
    low, high = axes.get_window_extent().y0 / DPI, axes.get_window_extent().y1 / DPI + HEAD / 3
    heights = [_label_height(found[at]) for _, at in tied]
    farthest = max(L for _, L, _ in ends)
    weights = [20.0 if ends[at][1] == farthest else 1.0 for _, at in tied]  # next to their label, or across the picture
    places = spread([y for y, _ in tied], heights, weights, low, high)
    for (_, at), y in zip(tied, places, strict=True):
        curve, *end = ends[at]
        look = _look(curve) | {"marker": "", "transform": figure.dpi_scale_trans}
        x_end, y_end = inches(*end)
        figure.add_artist(
            Line2D([x_end, begin], [y_end, y], **look | {"linewidth": 1.0, "alpha": 0.6, "linestyle": "-"})
        )
        figure.add_artist(Line2D([begin, begin + 0.22], [y, y], **look))
        half = LINE / 2 if curve.end else 0.0
        name: dict[str, Any] = {"fontweight": "bold", "color": look["color"]} if curve.ours else {}
        _text(figure, begin + 0.3, y + half, curve.name, va="center", **name)
        _text(figure, begin + 0.3, y - half, curve.end, va="center", fontsize=SMALL, color=FAINT)


def spread(
    wanted: Sequence[float], heights: Sequence[float], weights: Sequence[float], low: float, high: float
) -> list[float]:
    """Centres of stacked labels, closest in least squares to the rising ``wanted`` between ``low`` and ``high``."""
    offsets = np.cumsum(heights) - np.array(heights) / 2
    begins = isotonic_regression(np.array(wanted) - offsets, weights=weights).x  # where each wants the stack to begin
    return [float(y) for y in np.clip(begins, low, max(low, high - sum(heights))) + offsets]


def _palette() -> Image.Image:
    """The colours above and what smoothed edges make of them on white: few, so that a picture is a small file."""
    colors = [INK, FAINT, OURS[0], *(color for color, _ in PEERS.values())]
    full = 255 * np.array([mpl.colors.to_rgb(color) for color in colors])
    shades = [255 - (255 - full) * share for share in (0.2, 0.4, 0.6, 0.8, 1)]
    alone = 255 * np.array([mpl.colors.to_rgb(color) for color in ("white", GRID)])
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([alone, *shades]).round().astype(np.uint8).tobytes())
    return palette


def _png(figure: Figure, drawn: object, results: Results) -> bytes:
    """The picture, which also says what it was drawn from: equal input gives equal bytes."""
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()
    whole = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    text = PngImagePlugin.PngInfo()
    text.add_text("Source", "\n".join(results.sources))
    text.add_text("Data", hashlib.sha256(repr((drawn, results.beside())).encode()).hexdigest())
    buffer = io.BytesIO()
    few = whole.quantize(palette=_palette(), dither=Image.Dither.NONE)
    few.save(buffer, "PNG", optimize=True, pnginfo=text)
    return buffer.getvalue()
