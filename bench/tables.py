"""``python -m bench tables``: fill in the figures of README.md and docs from the files of bench/results, or check them.

A page says where its figures come from: a file of bench/results, which of its rows, and what of them. In a sentence:

    LayerCAM takes <!--= seeds-cpu {seed_share_of_forward:.0%} seed=layercam K=1 -->61 to 97 %<!--/--> of a forward pass

Of several rows the lowest and the highest are written. A marker must not begin a line, where Markdown would end the
paragraph. A table is a row of headings and a row of cells, filled in for each row of the file that has all of them; a
heading with a field becomes one column for each of its values. ``BLOCKS`` has the tables that are made otherwise:

    <!-- tables: seeds-cpu
    | network   | {seed}, K = {K}               |
    | {network} | {seed_share_of_forward:.0%}   |
    -->
    <!-- /tables -->
    <!-- tables: quality quality-horses -->
    <!-- /tables -->

``--check`` prints what would change, and every figure with a unit that stands outside a marker and is not in
``NOT_MEASURED``; its exit code is 1 if there is any.
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import json
import re
import shlex
import string
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from bench import plot
from bench.figures import NONE, SIZES, TIMES, in_unit, number, scientific, table
from bench.measure import ROOT
from bench.quality import report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

Row = dict[str, Any]
RESULTS = ROOT / "bench" / "results"
HORSES = "--title horses --images horses/images --masks horses/masks --classes 339"
ILSVRC = "--title ILSVRC --images ilsvrc/images --boxes ilsvrc/boxes.txt --classes ilsvrc/classes.txt"
PAIRS = "--title 'horses beside another class' --images pairs/images --masks pairs/masks --classes 339"
SCENES = "--title 'generated scenes' --scenes 200"
NETS = "--model efficientnet_lite0 --model nets:mobilenet_v1 --model nets:squeezenet"
FEW = "--without '*several views' --without 'SSA, power=2' --without 'SSA, center' --without 'SSA, phi=exp'"
FEWER = f"{FEW} --without 'SSA, phi=*' --without '*Grad-CAM' --without 'LayerCAM of *'"
SHIFTS = " ".join(f"--affinity phi=shifted{each}" for each in ("", ",shift=0.75", ",shift=0.5", ",shift=2", ",power=2"))
SIGNED = f"--only seed --only 'centre blob' --baseline phi=relu --stages --affinity phi=relu {SHIFTS}"
FILES = {
    "curve-cpu": "run --suite curve --limit 12 --rounds 5",
    "backbone-cpu": "run --suite backbone --problem '*/224*' --problem '*/512*' --problem '*/1024*' --rounds 7",
    **{f"{name}-cpu": name for name in ("paths", "large", "throughput", "store", "host", "measures", "seeds", "demo")},
    "large-signed-cpu": "large --model mobilenet_v2 --affinity phi=relu phi=shifted --sizes 1024 2048 4096",
    "quality-horses": f"quality {HORSES} --goal 75 {FEW} {NETS} --model nets:vit_tiny",
    "quality-pamr": f"quality {HORSES} --only 'seed, PAMR' --only '*LayerCAM, PAMR' --only 'SSA, PAMR' {NETS}",
    "quality-ilsvrc": f"quality {ILSVRC} --limit 434 --goal +8 {FEWER} {NETS}",
    "quality-pairs": f"quality {PAIRS} --limit 164 {FEWER} {NETS}",
    "quality-scenes": f"quality {SCENES} {FEW} --model demo --model scenes=relu-1.pt",
    "affinities-horses": f"quality {HORSES} {SIGNED} --model efficientnet_lite0 --model efficientnet_lite2",
    "affinities-ilsvrc": f"quality {ILSVRC} {SIGNED} --model efficientnet_lite0 --model efficientnet_lite2",
    "affinities-scenes": f"quality {SCENES} {SIGNED} --model scenes=silu-1.pt",
}
"""What makes each file: arguments of ``python -m bench``, to which ``--save FILE`` is added.

The photographs and the module ``nets`` (networks with weights of others) are not in this repository: docs/quality.md.
"""
MARKER = re.compile(r"(<!--= (.+?)\s-->)(.*?)(<!--/-->)", re.DOTALL)
BLOCK = re.compile(r"(<!-- tables: ([^\n]+?)\s*?(\n\|.+?)?-->\n)(.*?)(<!-- /tables -->)", re.DOTALL)
NOT_PROSE = re.compile(r"^(```|~~~).*?^\1|<!--.*?-->|`[^`\n]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
UNIT = r"\s?(?:%|µs|ms|s|KiB|MiB|GiB|KB|MB|GB|TB|images/s|points|IoU)(?!\w)|×(?!\s?\d)"
FIGURE = re.compile(rf"(?<![\w.])\d[\d,.]*(?:{UNIT})|(?<![\d.,])\d{{2,}}\.\d(?![\d.])")
NOT_MEASURED = (
    "95 % of a bootstrap",
    "IoU 30, 50 and 70 %",
    "took longer than 12 s",  # the limit of a call
    "at most 20 MiB and 67 million pixels",
    "≤ 16 MiB of partial prototypes",
    "≤ 256 MiB of partial sums",
    "for small stages only (≤ 256 MiB)",
    "features ≤ 2 MiB per image",
    "2 % cut off at each end",
    "above 1 GiB: size and time",
    "the affinity matrix alone 16 GiB",
    "the first 4 % of the network",  # a rule of the note on such a layer
)
"""Figures with a unit that no run gave: goals, sizes, definitions. An entry that no page has is reported too."""


FORMATS: dict[str, Callable[[float], str]] = {
    "3": number,
    "ms": partial(in_unit, units=TIMES),
    "KiB": lambda size: f"{size / 1024:,.1f} KiB",
}


def load(name: str) -> tuple[Row, list[Row]]:
    """Return what a file says of itself, and its rows, each with that beside it and with whether it missed its goal."""
    head = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    rows = head.pop("rows")
    return head, [head | row | {"missed": ": missed" if misses(row) else ""} for row in rows]


def misses(row: Row) -> bool:
    """Return whether a figure is beyond its goal: ">= 250", "<= 1.1", 0.9 (at least), or ``goal_us`` (at most)."""
    value = next((row[key] for key in ("ratio", "exponent", "mib", "share", "us") if key in row), None)
    goal = f"<= {row['goal_us']}" if "goal_us" in row else str(row.get("goal", "none"))
    sign, _, bound = goal.rpartition(" ")
    if value is None or bound == "none":
        return False
    return bool(value > float(bound) if sign == "<=" else value < float(bound))


def pick(row: Any, path: str) -> Any:
    """Return the field at a path: ``phases/gather``; ``ratios/-1``; ``ahead/seed``, the entry of that; ``.``."""
    for step in [] if path == "." else path.split("/"):
        if isinstance(row, list) and isinstance(row[0], dict):
            row = {each["of"]: each for each in row}
        row = row[int(step) if isinstance(row, list) else step]
    if row is None:
        raise LookupError(path)
    return row


class _Figures(string.Formatter):
    """``str.format`` of paths, with ``FORMATS``, a space before %, and the interval of a row that has one."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        return pick(kwargs, field_name), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec in FORMATS:
            return FORMATS[format_spec](value)
        if isinstance(value, dict):
            low, high = value["interval"]
            return f"{value['difference']:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")
        text = format(value, format_spec)
        return text.replace("%", " %").replace("-", "−") if format_spec else text


def filled(name: str, filters: Sequence[str], templates: Sequence[str]) -> list[tuple[Row, list[str]]]:
    """Return the rows of a file, at least one, that have all fields of the templates, and these with the row's figures.

    A filter is ``field=pattern`` or ``field=pattern;pattern``, and a row agrees with all.
    """
    rows = load(name)[1]
    for key, _, wanted in (each.partition("=") for each in filters):
        rows = [row for row in rows if any(fnmatch.fnmatchcase(str(row.get(key)), each) for each in wanted.split(";"))]
    found = []
    for row in rows:
        with suppress(LookupError, TypeError):
            found.append((row, [_Figures().vformat(each, (), row) for each in templates]))
    if not found:
        raise LookupError(f"expected rows that agree with {[*filters]} and have all of {templates}, got none")
    return found


def figure(words: str) -> str:
    """Return the text of a marker: ``FILE {field:format} field=pattern …``; of several rows, lowest to highest."""
    name, template, *filters = shlex.split(words)
    field = re.findall(r"{([^:}]+)", template)[0]
    found = {text: pick(row, field) for row, (text,) in filled(name, filters, [template])}
    low, *_, high = 2 * sorted(found, key=found.__getitem__)
    unit = re.sub(r".*[\d.]", "", high)
    return low if low == high else f"{low.removesuffix(unit)} to {high}"


def block(words: str, template: str | None) -> str:
    """Return a table, made by ``BLOCKS`` or by a template, and below it its file, machine and command."""
    kind, *more = shlex.split(words)
    if template is None and kind not in BLOCKS:
        raise LookupError(f"expected one of {', '.join(BLOCKS)}, or a file and two rows, got {kind!r}")
    name = kind if template else more[0]
    made = _by_template(name, more, template) if template else BLOCKS[kind](name)
    head, _ = load(name)
    machine = "{cpu}, {threads} threads, torch {torch}, commit {commit}, {date}".format_map(head["machine"])
    machine = machine.replace(", 1 threads,", ", 1 thread,")
    command = head.get("command") or f"python -m bench {FILES[name]}"
    return f"{made}\n\n`bench/results/{name}.json`: {machine}; `{command}`"


def _by_template(name: str, filters: Sequence[str], template: str) -> str:
    """Return a table; rows that agree in the columns whose heading has no field share a line."""
    heads, cells = ([cell.strip() for cell in line.strip(" |").split("|")] for line in template.split("\n")[1:3])
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for _, texts in filled(name, filters, heads + cells):
        shown = dict(zip(texts[: len(heads)], texts[len(heads) :], strict=True))
        found.setdefault(tuple(shown[head] for head in heads if head in shown), {}).update(shown)
    columns = list(dict.fromkeys(head for row in found.values() for head in row))
    return "\n".join(table(columns, [[row.get(head, NONE) for head in columns] for row in found.values()]))


def _grid(name: str) -> str:
    """Return the tables of a file of the grid: our times beside the best peer's, and the share of whole networks."""
    problems: dict[str, dict[str, Row]] = {}
    for (problem, provider), row in plot.read(RESULTS / f"{name}.json").rows.items():
        problems.setdefault(problem, {})[provider] = row
    heads = ["problem", "ours", "best peer", "ratio", "memory, ours / peer", "error, ours / peer", "ended"]
    stages = table(heads, [[problem, *_stage(rows)] for problem, rows in problems.items() if plot.OURS in rows])
    heads = ["network", "backbone", "polish and fuse", "share of the backbone, p50 (p20–p80)"]
    networks = table(heads, [[problem, *_network(rows)] for problem, rows in problems.items() if plot.WHOLE in rows])
    again = [rows[plot.AGAIN]["ratio"] for rows in problems.values() if rows.get(plot.AGAIN, {}).get("ratio")]
    span = []
    if again:
        low, high = number(min(each["p20"] for each in again)), number(max(each["p80"] for each in again))
        span = [f"Ratios are medians of interleaved rounds; ours against itself: {low} to {high}."]
    return "\n\n".join("\n".join(part) for part in (stages, networks, span) if part)


def _stage(rows: Mapping[str, Row]) -> list[str]:
    """Return the cells of a problem: ours against the best peer, and how the others ended."""
    ours, peers = rows[plot.OURS], [row for row in rows.values() if not row["ours"]]
    timed = [row for row in peers if row["provider"] != plot.PART and row["status"] == "ok" and row["warm_ms"]]
    best: Any = min(timed, key=lambda row: row["warm_ms"]["p50"], default=None)  # xᵀx alone does not give the result
    ended: dict[str, list[str]] = {}
    for row in peers:
        if row["status"] != "ok":
            ended.setdefault(plot.ending(row), []).append(row["provider"])
    memory = (in_unit(plot.figure_of(each, "peak_extra_mib")[1], SIZES) if each else NONE for each in (ours, best))
    return [
        _time(ours),
        f"{best['provider']}, {_time(best)}" if best else NONE,
        f"{number(best['ratio']['p50'])}×" if best and best["ratio"] else NONE,
        " / ".join(memory),
        f"{scientific(ours['error'])} / {scientific(best and best['error'])}",
        "; ".join(f"{why}: {', '.join(who)}" for why, who in ended.items()) or NONE,
    ]


def _network(rows: Mapping[str, Row]) -> list[str]:
    """Return the cells of a whole network: polishing against its forward."""
    p20, p50, p80 = (number(100 * share) for share in plot.figure_of(rows[plot.WHOLE], "share_of_backbone"))
    return [_time(rows["backbone"]), _time(rows[plot.WHOLE]), f"{p50} % ({p20}–{p80})" if p50 != NONE else NONE]


def _time(row: Row) -> str:
    """Return the time of a row, or why there is none."""
    return plot.ending(row) if row["status"] != "ok" else in_unit(plot.figure_of(row, "warm_ms")[1], TIMES)


BLOCKS: dict[str, Callable[[str], str]] = {"quality": lambda name: report.markdown(load(name)[1]), "grid": _grid}


def fill(text: str, page: str) -> str:
    """Return a page with its blocks and figures filled in; ``LookupError`` where a marker is wrong."""

    def replace(found: re.Match[str]) -> str:
        begin, words, *template, _, end = found.groups()
        try:
            return f"{begin}\n{block(words, *template)}\n\n{end}" if template else f"{begin}{figure(words)}{end}"
        except (LookupError, ValueError, OSError) as error:
            raise LookupError(f"{page}: {words}: {error}") from error

    return MARKER.sub(replace, BLOCK.sub(replace, text))


def loose(text: str) -> list[str]:
    """Return the figures with a unit, and numbers like 66.1, that stand outside markers and ``NOT_MEASURED``."""
    prose = " ".join(NOT_PROSE.sub(" ", MARKER.sub("", BLOCK.sub("", text))).split())
    for phrase in NOT_MEASURED:
        prose = prose.replace(phrase, " ")
    return [prose[max(0, found.start() - 40) : found.end() + 15] for found in FIGURE.finditer(prose)]


def check(pages: Mapping[Path, str], changed: Mapping[Path, str]) -> list[str]:
    """Return what is wrong with pages, as lines: differences to the files, loose figures, entries without a page."""
    wrong: list[str] = []
    for path, text in pages.items():
        lines = text.splitlines(), changed[path].splitlines()
        wrong += difflib.unified_diff(*lines, path.name, "bench/results", lineterm="", n=0)
        wrong += [f"{path.name}: no file has this figure: …{each}…" for each in loose(text)]
        begun = re.findall(r"^\s*<!--=.*", text, re.MULTILINE)
        wrong += [f"{path.name}: a marker that begins a line would end the paragraph: {each}" for each in begun]
    prose = " ".join(" ".join(pages.values()).split())
    wrong += [f"NOT_MEASURED: no page has {phrase!r}" for phrase in NOT_MEASURED if phrase not in prose]
    unknown = sorted({path.stem for path in RESULTS.glob("*.json")} - FILES.keys())
    return [*wrong, *(f"FILES: no command makes {name}.json; add it, or delete the file" for name in unknown)]


def main(given: Sequence[str]) -> int:
    """Fill in or check the pages; exit code 1 where a check fails."""
    parser = argparse.ArgumentParser(prog="python -m bench tables", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, print what differs")
    options = parser.parse_args(given)
    pages = {path: path.read_text("utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
    try:
        changed = {path: fill(text, path.name) for path, text in pages.items()}
    except LookupError as error:
        parser.error(str(error))
    if options.check:
        wrong = check(pages, changed)
        print("\n".join(wrong or ["Every figure is that of its file."]))
        return int(bool(wrong))
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
    return 0
