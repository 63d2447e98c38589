"""What the pictures show, apart from how: curves with their ends, and shares of the backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.plot.results import BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.plot.results import Results, Row

OURS, FEATURES = "auto", "input features"
NAMES = {OURS: "ssa_fast", "xᵀx": "xᵀx alone"}
GOALS = {"cpu": 0.03, "cuda": 0.05}  # of ResNet-50's forward, for all four stages
SIGNED_GOAL = 0.05  # of the forward of the other networks, whose stages are signed
SIGNS = ("features ≥ 0", "signed features")
# Names of ours among signed features, where the shifted cosine is drawn beside the ReLU and beside features ≥ 0.
RELU, SHIFTED, NONNEGATIVE = "ssa_fast, ReLU", "ssa_fast, shifted", "ssa_fast, f ≥ 0"


@dataclass(frozen=True)
class Point:
    """A measurement at ``L`` pixels, NaN where there is none between two that are."""

    L: int
    p20: float
    p50: float
    p80: float


@dataclass(frozen=True)
class Curve:
    """One provider; ``end`` says why it has no further point, and is empty if it was not asked for one."""

    name: str
    ours: bool
    points: tuple[Point, ...]
    end: str = ""


@dataclass(frozen=True)
class Panel:
    """Curves of problems that differ in ``L`` alone."""

    title: str
    sizes: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Share:
    """Polishing and fusing all stages over the backbone's forward, or ``why`` there is no such figure."""

    label: str
    goal: float
    p20: float = math.nan
    p50: float = math.nan
    p80: float = math.nan
    why: str = ""


def panels(results: Results, quantity: str) -> list[Panel]:
    """One panel per sign of the features; ``quantity`` is ``"warm_ms"`` or ``"peak_extra_mib"``."""
    found = []
    everything = list(results.rows.values())
    for sign in SIGNS:
        rows = _one_series(row for row in everything if _sign(row) == sign)
        providers = dict.fromkeys(row["provider"] for row in rows if row["provider"] == OURS or not row["ours"])
        curves = [_curve([row for row in rows if row["provider"] == name], quantity) for name in providers]
        shifted = _ours(row for row in everything if _sign(row) == SHIFTED)
        if sign == SIGNS[1] and shifted:
            nonnegative = _ours(row for row in everything if _sign(row) == SIGNS[0])
            curves = [replace(curve, name=RELU) if curve.ours else curve for curve in curves]
            curves.append(replace(_curve(shifted, quantity), name=SHIFTED))
            curves += [replace(_curve(nonnegative, quantity), name=NONNEGATIVE)] if nonnegative else []
        drawn = tuple(curve for curve in curves if curve.points)
        if any(curve.ours for curve in drawn):
            drawn += (_features(rows),) if quantity == "peak_extra_mib" else ()
            sizes = f"C = {rows[0]['C']}, K = {rows[0]['K']}, {rows[0]['dtype']}"
            sizes += f", B = {rows[0]['B']}" if rows[0]["B"] > 1 else ""
            found.append(Panel(sign, sizes, drawn))
    return found


def _ours(rows: Iterable[Row]) -> list[Row]:
    """The rows of ours of one series."""
    return [row for row in _one_series(rows) if row["provider"] == OURS]


def _sign(row: Row) -> str:
    """Which panel or curve a row is for, if any: those of first stages."""
    parts = row["problem"].split("/")
    if parts[2:3] != ["layer1"] or "centred" in parts:
        return ""
    return SHIFTED if "shifted" in parts else SIGNS["signed" in parts]


def _one_series(rows: Iterable[Row]) -> list[Row]:
    """The rows that differ in ``L`` alone, by rising ``L``: of several such series the one with most sizes."""
    series: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        same = (row["problem"].split("/")[0], *(row[name] for name in ("B", "K", "C", "dtype", "layout", "affinity")))
        series.setdefault(same, []).append(row)
    longest = max(series.values(), key=lambda each: len({row["L"] for row in each}), default=[])
    return sorted(longest, key=lambda row: row["L"])


def _curve(rows: list[Row], quantity: str) -> Curve:
    """The curve of one provider's rows, by rising ``L``."""
    name, points = str(rows[0]["provider"]), [_point(row, quantity) for row in rows]
    measured = [at for at, point in enumerate(points) if not math.isnan(point.p50)]
    last = measured[-1] if measured else -1
    ended = next((row for row in rows[last + 1 :] if row["status"] != "ok"), None)
    kept = tuple(points[measured[0] : last + 1]) if measured else ()
    end = f"{ending(ended)} at L={pixels(ended['L'])}" if ended else ""
    return Curve(NAMES.get(name, name), rows[0]["ours"], kept, end)


def _features(rows: list[Row]) -> Curve:
    """What the input's features take, to compare with."""
    mib = {row["L"]: row["B"] * row["C"] * row["L"] * BYTES[row["dtype"]] / 2**20 for row in rows}
    return Curve(FEATURES, False, tuple(Point(L, size, size, size) for L, size in mib.items()))


def _point(row: Row, quantity: str) -> Point:
    value = row.get(quantity) if row["status"] == "ok" else None
    if isinstance(value, dict):
        p50 = value["p50"]
        return Point(row["L"], value.get("p20") or p50, p50, value.get("p80") or p50)
    found = float(value) if value and value > 0 else math.nan
    return Point(row["L"], found, found, found)


def ending(row: Row) -> str:
    """Why a row has no figure, in words."""
    return f"over {row['limit_s']:g} s" if row["status"] == "over budget" else str(row["status"])


def pixels(L: int) -> str:
    """A number of pixels as the axis names it: 65k for 65,536."""
    return f"{L // 10**6}M" if L >= 10**6 else f"{L // 10**3}k" if L >= 10**3 else str(L)


def shares(results: Results) -> list[Share]:
    """By K and B, then input size: what ``polish and fuse`` takes of the backbone's time."""
    rows = [row for row in results.rows.values() if row["provider"] == "polish and fuse"]
    rows = [row for row in rows if row["status"] != "ok" or row.get("share_of_backbone")]
    several = len({row["problem"].split("/")[0] for row in rows}) > 1
    found = []
    for row in sorted(rows, key=lambda row: (row["problem"].split("/")[0], row["K"], row["B"], row["H"])):
        net = row["problem"].split("/")[0]
        goal = GOALS[results.device] if net == "resnet50" else SIGNED_GOAL
        label = f"{net} " if several else ""
        label += f"{row['H']}², K={row['K']:,}" + (f", B={row['B']}" if row["B"] > 1 else "")
        if row["status"] != "ok":
            found.append(Share(label, goal, why=ending(row)))
            continue
        share = row["share_of_backbone"]
        p50 = share["p50"]
        found.append(Share(label, goal, share.get("p20") or p50, p50, share.get("p80") or p50))
    return found if any(not share.why for share in found) else []
