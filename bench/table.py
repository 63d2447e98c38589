"""The grid for people: a table per problem, 120 columns wide, and the list of what there is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bench import measure, problems
from bench.grid import described

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.providers import Provider
    from bench.stand import Device
    from bench.workers import Row

WIDTH = 120
HEAD = (
    f"{'provider':19} {'variant':19} {'error':>7} {'warm ms':>9} {'[p20':>8} {'p80]':>8} {'cold ms':>9} "
    f"{'× auto':>8} {'MiB':>8} {'of ceiling':>13}"
)


def head(
    machine: Mapping[str, Any], ceilings: Mapping[str, float | None], settings: Mapping[str, Any]
) -> Iterator[str]:
    """Where and how, before the tables."""
    yield measure.describe(dict(machine)) + (f", {machine['gpu']}" if machine.get("gpu") else "")
    copy, product = (
        "–" if each is None else f"{each:g}" for each in (ceilings["copy_gb_s"], ceilings["product_gflop_s"])
    )
    yield (
        f"ceilings: copy {copy} GB/s, float32 product {product} GFLOP/s; "
        f"limit {settings['limit_s']:g} s, seed {settings['seed']}"
    )


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """One problem's table: what was timed, then what was not and why."""
    first = rows[0]
    sizes = f"B={first['B']} K={first['K']} C={first['C']} L={first['L']:,} {first['dtype']}"
    kinds = " ".join(filter(None, (first["layout"], first["values"], first["affinity"])))
    yield from ("", f"{first['problem']}   {sizes} {kinds}", HEAD)
    for row in rows:
        if row["status"] == "ok":
            yield _line(row)
    for row in rows:
        if row["status"] != "ok":
            yield _cut(f"{row['provider']:19} {row['status']}: {row['why']}")
    for row in rows:
        if row.get("share_of_backbone"):
            found = {key: f"{100 * value:.2f} %" for key, value in row["share_of_backbone"].items()}
            yield f"{row['provider']}: {found['p50']} of the forward's time [{found['p20']}, {found['p80']}]"


def _line(row: Row) -> str:
    warm, cold = row["warm_ms"], row["cold_ms"]
    return (
        f"{row['provider']:19} {row['variant'][:19]:19} {row['error']:7.0e} {number(warm['p50']):>9} "
        f"{number(warm['p20']):>8} {number(warm['p80']):>8} {number(cold and cold['p50']):>9} "
        f"{number(row['ratio'] and row['ratio']['p50']):>8} {number(row['peak_extra_mib']):>8} {_share(row):>13}"
    ).rstrip()


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _share(row: Row) -> str:
    return "–" if row["share"] is None else f"{100 * row['share']:.0f} % {row['bound']}"


def number(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 3)}f}"


def listed(wanted: Mapping[str, Sequence[Provider]], stand: Device) -> Iterator[str]:
    """The problems with their sizes, then the providers, with how many of the problems each cannot do."""
    yield f"{'problem':34} {'B':>3} {'K':>5} {'C':>5} {'L':>10} {'H×W':>10}"
    for name in wanted:
        has = described(problems.problem(name))
        pixels = f"{has['H']}×{has['W']}"
        yield f"{name:34} {has['B']:>3} {has['K']:>5} {has['C']:>5} {has['L']:>10,} {pixels:>10}"
    yield from ("", "provider            problems")
    count: dict[str, tuple[int, int, str]] = {}
    for name, found in wanted.items():
        for each in found:
            reasons = "; ".join(each.reasons(problems.problem(name), stand))
            able, every, why = count.get(each.name, (0, 0, ""))
            count[each.name] = able + (not reasons), every + 1, reasons or why
    for provider, (able, every, why) in count.items():
        yield _cut(f"{provider:19} {able} of {every}" + (f", else: {why}" if able < every else ""))
