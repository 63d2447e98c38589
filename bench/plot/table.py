"""The README's tables, printed from result files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bench.plot.series import OURS, ending

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bench.plot.results import Results, Row

AGAIN, BACKBONE, WHOLE = "auto again", "backbone", "polish and fuse"
PART = "xᵀx"  # a yardstick: it does not give the result, so it cannot be the best peer
NONE = "–"
STAGE = ("problem", "ours", "best peer", "ratio", "memory, ours / peer", "error, ours / peer", "ended")
NETWORK = ("network", "backbone", "polish and fuse", "share of the backbone, p50 (p20–p80)")


def markdown(results: Results, only: str = "") -> list[str]:
    """Lines of Markdown: the problems against their best peers, the whole networks, and what they stand beside.

    Args:
        only: problems whose name contains this.
    """
    problems = {name: rows for name, rows in results.problems().items() if only in name}
    stages = {name: rows for name, rows in problems.items() if OURS in rows}
    networks = {name: rows for name, rows in problems.items() if WHOLE in rows}
    lines: list[str] = []
    if stages:
        lines += [*_table(STAGE, (_stage(name, rows) for name, rows in stages.items())), ""]
    if networks:
        lines += [*_table(NETWORK, (_network(name, rows) for name, rows in networks.items())), ""]
    return [*lines, " ".join([*_noise(stages.values()), f"{', '.join(results.beside())}."])] if lines else []


def _table(heads: tuple[str, ...], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _stage(name: str, rows: dict[str, Row]) -> list[str]:
    mine = rows[OURS]
    peers = {peer: row for peer, row in rows.items() if not row["ours"] and peer not in (PART, BACKBONE)}
    timed = [row for row in peers.values() if row["status"] == "ok" and row.get("warm_ms")]
    best = min(timed, key=lambda row: row["warm_ms"]["p50"], default=None)
    ended: dict[str, list[str]] = {}
    for peer, row in rows.items():
        if not row["ours"] and row["status"] != "ok":
            ended.setdefault(ending(row), []).append(peer)
    ratio = best and best.get("ratio")
    return [
        name,
        milliseconds(mine),
        f"{best['provider']}, {milliseconds(best)}" if best else NONE,
        f"{number(ratio['p50'])}×" if ratio else NONE,
        f"{mebibytes(mine)} / {mebibytes(best)}",
        f"{error(mine)} / {error(best)}",
        "; ".join(f"{why}: {', '.join(who)}" for why, who in ended.items()) or NONE,
    ]


def _network(name: str, rows: dict[str, Row]) -> list[str]:
    whole, share = rows[WHOLE], rows[WHOLE].get("share_of_backbone")
    if whole["status"] != "ok" or not share:
        return [name, milliseconds(rows.get(BACKBONE)), milliseconds(whole), NONE]
    spread = [share.get("p20"), share.get("p80")]
    text = f"{number(100 * share['p50'])} %"
    text += f" ({number(100 * spread[0])}–{number(100 * spread[1])})" if all(spread) else ""
    return [name, milliseconds(rows.get(BACKBONE)), milliseconds(whole), text]


def _noise(problems: Iterable[dict[str, Row]]) -> list[str]:
    found = [rows[AGAIN]["ratio"] for rows in problems if AGAIN in rows and rows[AGAIN].get("ratio")]
    if not found:
        return []
    low = min(ratio.get("p20") or ratio["p50"] for ratio in found)
    high = max(ratio.get("p80") or ratio["p50"] for ratio in found)
    return [f"Ratios are medians of interleaved rounds; ours against itself: {number(low)} to {number(high)}."]


def milliseconds(row: Row | None) -> str:
    """The time of a row in the unit that suits it, or why there is none."""
    if row is None or (row["status"] == "ok" and not row.get("warm_ms")):
        return NONE
    if row["status"] != "ok":
        return ending(row)
    return _in_unit(row["warm_ms"]["p50"], (("µs", 1e-3), ("ms", 1.0), ("s", 1e3)))


def mebibytes(row: Row | None) -> str:
    """The peak extra memory of a row."""
    value = row.get("peak_extra_mib") if row and row["status"] == "ok" else None
    return NONE if value is None else _in_unit(value, (("MiB", 1.0), ("GiB", 1024.0), ("TiB", 2.0**20)))


def error(row: Row | None) -> str:
    """The error of a row as in ``3.1e-7``."""
    value: Any = row.get("error") if row else None
    if value is None or not math.isfinite(value):
        return NONE
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}" if value else "0"


def _in_unit(value: float, units: tuple[tuple[str, float], ...]) -> str:
    """``value`` in the largest unit of which it has at least 1."""
    rounded = float(f"{value:.3g}")
    name, scale = next((unit for unit in reversed(units) if rounded >= unit[1]), units[0])
    return f"{number(value / scale)} {name}"


def number(value: float) -> str:
    """Three significant digits, none of them in an exponent."""
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    return f"{rounded:,.{decimals}f}"
