"""Parse, format and measure byte counts."""

from __future__ import annotations

import re
from pathlib import Path

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(size: int | str, argument: str = "memory") -> int:
    """Return bytes from a number, or from text such as "4GB" (4·10⁹) or "4GiB" (4·2³⁰).

    Raises:
        ValueError: Anything else, or a size that is not positive; the message names ``argument``.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(size).lower())
    count = int(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if isinstance(size, bool) or count <= 0:
        raise ValueError(f'{argument}: expected bytes > 0, as a number or such as "4GB" or "512MiB", got {size!r}')
    return count


def format_bytes(count: float) -> str:
    """Return a byte count as text, for example "16.0 GiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def resident_bytes() -> int:
    """Return the resident memory of this process, or an estimate if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 600 * 10**6
