"""Write numbers and tables for people: on the terminal, in pages and in pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NONE = "–"
TIMES = (("µs", 1e-3), ("ms", 1.0), ("s", 1e3))  # in milliseconds
SIZES = (("MiB", 1.0), ("GiB", 2.0**10), ("TiB", 2.0**20))  # in MiB


def number(value: float | None) -> str:
    """Return three significant digits without an exponent; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NONE
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded)))) if rounded else 0}f}"


def in_unit(value: float | None, units: Sequence[tuple[str, float]]) -> str:
    """Return ``value`` in the largest of the units, each a name and its size, of which it has at least 1."""
    if value is None or math.isnan(value):
        return NONE
    name, size = next((unit for unit in reversed(units) if float(f"{value:.3g}") >= unit[1]), units[0])
    return f"{number(value / size)} {name}"


def scientific(value: float | None) -> str:
    """Return two digits and a power of ten, as in ``3.1e-7``."""
    if value is None or not math.isfinite(value):
        return NONE
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}" if value else "0"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], aligned: bool = False) -> list[str]:
    """Return the lines of a Markdown table, none without rows; ``aligned`` ones are read as they are."""
    if not rows:
        return []
    lines = [heads, ["---"] * len(heads), *rows]
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*lines, strict=True)]
    return [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines]
