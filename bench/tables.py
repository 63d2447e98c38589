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
from typing import TYPE_CHECKING, Any

from bench import plot
from bench.figures import NONE, SIZES, TIMES, in_unit, number, scientific, table
from bench.measure import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

Row = dict[str, Any]
RESULTS = ROOT / "bench" / "results"
HORSES = "--title horses --images horses/images --masks horses/masks --classes 339"
NETS = "--model efficientnet_lite0 --model nets:mobilenet_v1 --model nets:squeezenet"
FEW = "--without '*several views' --without 'SSA, power=2' --without 'SSA, center' --without 'SSA, phi=exp'"
FEWER = f"{FEW} --without 'SSA, phi=*' --without '*Grad-CAM' --without 'LayerCAM of *'"
SHIFTS = " ".join(f"--affinity phi=shifted{each}" for each in ("", ",shift=0.75", ",shift=0.5", ",shift=2", ",power=2"))
SIGNED = f"--only seed --only 'centre blob' --baseline phi=relu --stages --affinity phi=relu {SHIFTS}"
FILES = {
    "curve-cpu": "run --suite curve --limit 12 --rounds 5",
    "backbone-cpu": "run --suite backbone --problem '*/224*' --problem '*/512*' --problem '*/1024*' --rounds 7",
    "paths-cpu": "paths",
    "large-cpu": "large",
    "large-signed-cpu": "large --model mobilenet_v2 --affinity phi=relu phi=shifted --sizes 1024 2048 4096",
    "throughput-cpu": "throughput",
    "store-cpu": "store",
    "host-cpu": "host",
    "measures-cpu": "measures",
    "seeds-cpu": "seeds",
    "demo-cpu": "demo",
    "quality-horses": f"quality {HORSES} --goal 75 {FEW} {NETS} --model nets:vit_tiny",
    "quality-pamr": f"quality {HORSES} --only 'seed, PAMR' --only '*LayerCAM, PAMR' --only 'SSA, PAMR' {NETS}",
    "quality-ilsvrc": "quality --title ILSVRC --images ilsvrc/images --boxes ilsvrc/boxes.txt --classes "
    f"ilsvrc/classes.txt --limit 434 --goal +8 {FEWER} {NETS}",
    "quality-pairs": "quality --title 'horses beside another class' --images pairs/images --masks pairs/masks "
    f"--classes 339 --limit 164 {FEWER} {NETS}",
    "quality-scenes": f"quality --title 'generated scenes' --scenes 200 {FEW} --model demo --model scenes=relu-1.pt",
    "affinities-horses": f"quality {HORSES} {SIGNED} --model efficientnet_lite0 --model efficientnet_lite2",
    "affinities-ilsvrc": "quality --title ILSVRC --images ilsvrc/images --boxes ilsvrc/boxes.txt --classes "
    f"ilsvrc/classes.txt {SIGNED} --model efficientnet_lite0 --model efficientnet_lite2",
    "affinities-scenes": f"quality --title 'generated scenes' --scenes 200 {SIGNED} --model scenes=silu-1.pt",
}
"""What makes each file: arguments of ``python -m bench``, to which ``--save FILE`` is added.

The photographs and the module ``nets`` (networks with weights of others) are not in this repository: docs/quality.md.
"""
PICTURES = [f"plot bench/results/{name}.json --out bench/results" for name in ("curve-cpu", "backbone-cpu")]
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
    "goal of 75 %",
    "goal of 12 µs",
    "2 % cut off at each end",
    "above 1 GiB: size and time",
    "the affinity matrix alone 16 GiB",
    "the first 4 % of the network",  # a rule of the note on such a layer
)
"""Figures with a unit that no run gave: goals, sizes, definitions. An entry that no page has is reported too."""


class Missing(LookupError):
    """A file, a row or a field that a page names is not there."""


def load(name: str) -> tuple[Row, list[Row]]:
    """Return what a file says of itself, and its rows, each with that beside it and with whether it missed its goal."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in RESULTS.glob("*.json")))
        raise Missing(f"file: expected one of {known}, got {name!r}")
    head = json.loads(path.read_text(encoding="utf-8"))
    rows = head.pop("rows")
    return head, [head | row | {"missed": ": missed" if misses(row) else ""} for row in rows]


def select(name: str, filters: Sequence[str]) -> list[Row]:
    """Return the rows, at least one, of a file that agree with every ``field=pattern`` or ``field=pattern;pattern``."""
    rows = load(name)[1]
    for key, _, wanted in (each.partition("=") for each in filters):
        rows = [row for row in rows if any(fnmatch.fnmatchcase(str(row.get(key)), each) for each in wanted.split(";"))]
    if not rows:
        raise Missing(f"rows: none agrees with {' '.join(filters)}")
    return rows


def misses(row: Mapping[str, Any]) -> bool:
    """Return whether a figure is beyond its goal: ">= 250", "<= 1.1", 0.9 (at least), or ``goal_us`` (at most)."""
    if "goal_us" in row:
        return bool(row["us"] > row["goal_us"])
    value = next((row[key] for key in ("ratio", "exponent", "mib", "share") if key in row), None)
    sign, _, bound = str(row.get("goal", "none")).rpartition(" ")
    if value is None or bound == "none":
        return False
    return bool(value > float(bound) if sign == "<=" else value < float(bound))


def pick(row: Any, path: str) -> Any:
    """Return the field at a path: ``phases/gather``; ``ratios/-1``; ``ahead/seed``, the entry that has it; ``.``."""
    with suppress(KeyError, IndexError, TypeError, StopIteration):
        for step in [] if path == "." else path.split("/"):
            if not isinstance(row, list):
                row = row[step]
            elif step.lstrip("-").isdigit():
                row = row[int(step)]
            else:
                row = next(each for each in row if step in each.values())
        if row is not None:
            return row
    raise Missing(f"field: nothing at {path!r}")


class _Figures(string.Formatter):
    """``str.format`` whose fields are paths, with formats ``3`` (digits), ``ms``, ``KiB`` and ``.1%`` with a space."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        return pick(kwargs, field_name), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, dict) and "cpu" in value:
            threads = f"{value['threads']} thread" + "s" * (value["threads"] != 1)
            return f"{value['cpu']}, {threads}, torch {value['torch']}, commit {value['commit']}, {value['date']}"
        if isinstance(value, dict) and "interval" in value:
            low, high = value["interval"]
            return f"{value['difference']:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")
        if format_spec == "ms":
            return in_unit(value, TIMES)
        if format_spec == "3":
            return number(value)
        if format_spec == "KiB":
            return f"{value / 1024:,.1f} KiB"
        text = str(super().format_field(value, format_spec))
        return text.replace("%", " %").replace("-", "−") if format_spec else text


def render(template: str, row: Mapping[str, Any]) -> str:
    """Return a template with a row's figures; ``Missing`` where the row lacks one."""
    return _Figures().vformat(template, (), row)


def figure(words: str) -> str:
    """Return the text of a marker: ``FILE {field:format} field=pattern …``; of several rows, lowest to highest."""
    name, template, *filters = shlex.split(words)
    field = next(part[1] for part in string.Formatter().parse(template) if part[1])
    texts = {}
    for row in select(name, filters):
        with suppress(Missing):
            texts[render(template, row)] = pick(row, field)
    if not texts:
        raise Missing(f"rows: none has {template}")
    if len(texts) == 1:
        return next(iter(texts))
    low, high = (edge(texts, key=texts.__getitem__) for edge in (min, max))
    unit = re.search(r"[^\d.]*$", high)
    return f"{low.removesuffix(unit[0]) if unit else low} to {high}"


def block(words: str, template: str | None) -> str:
    """Return a table, made by ``BLOCKS`` or by a template, and below it its files, machines and commands."""
    name, *more = shlex.split(words)
    if template is None and name not in BLOCKS:
        raise Missing(f"tables: expected one of {', '.join(BLOCKS)}, or a file and two rows, got {name!r}")
    if template is None:
        return BLOCKS[name](*more)
    heads, cells = ([cell.strip() for cell in line.strip(" |").split("|")] for line in template.split("\n")[1:3])
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in select(name, more):
        with suppress(Missing):
            shown = {render(head, row): render(cell, row) for head, cell in zip(heads, cells, strict=True)}
            key = tuple(text for head, text in zip(heads, shown.values(), strict=True) if "{" not in head)
            found.setdefault(key, {}).update(shown)
    if not found:
        raise Missing("rows: none has all of these fields")
    heads = list(dict.fromkeys(head for row in found.values() for head in row))
    lines = table(heads, [[row.get(head, NONE) for head in heads] for row in found.values()])
    return "\n".join([*lines, "", source(name)])


def source(*names: str) -> str:
    """Return the line below a table: which files, on which machine, made by which command."""
    lines = []
    for name in names:
        head, _ = load(name)
        made = head.get("command", f"python -m bench {FILES[name]}" if name in FILES else "")
        lines.append(f"`bench/results/{name}.json`: {render('{machine}', head)}" + (f"; `{made}`" if made else ""))
    return "  \n".join(lines)


def _quality(*names: str) -> str:
    """Return the maps of files of ``python -m bench quality``."""
    from bench.quality import report

    return "\n".join([report.markdown([row for name in names for row in load(name)[1]]), "", source(*names)])


def _grid(name: str) -> str:
    """Return the tables of a file of the grid: our times beside the best peer's, and the share of whole networks."""
    problems: dict[str, dict[str, Row]] = {}
    for (problem, provider), row in plot.read(RESULTS / f"{name}.json").rows.items():
        problems.setdefault(problem, {})[provider] = row
    stages = [_stage(problem, rows) for problem, rows in problems.items() if plot.OURS in rows]
    networks = [_network(problem, rows) for problem, rows in problems.items() if plot.WHOLE in rows]
    heads = ["problem", "ours", "best peer", "ratio", "memory, ours / peer", "error, ours / peer", "ended"]
    lines = [*table(heads, stages), ""] if stages else []
    heads = ["network", "backbone", "polish and fuse", "share of the backbone, p50 (p20–p80)"]
    lines += [*table(heads, networks), ""] if networks else []
    spans = [
        rows[plot.AGAIN]["ratio"] for rows in problems.values() if plot.AGAIN in rows and rows[plot.AGAIN]["ratio"]
    ]
    if spans:
        low, high = number(min(each["p20"] for each in spans)), number(max(each["p80"] for each in spans))
        lines += [f"Ratios are medians of interleaved rounds; ours against itself: {low} to {high}.", ""]
    return "\n".join([*lines, source(name)])


def _stage(name: str, rows: Mapping[str, Row]) -> list[str]:
    """Return the cells of a problem: ours against the best peer, and how the others ended."""
    mine, peers = rows[plot.OURS], [row for row in rows.values() if not row["ours"]]
    timed = [row for row in peers if row["provider"] != plot.PART and row["status"] == "ok" and row["warm_ms"]]
    best = min(timed, key=lambda row: row["warm_ms"]["p50"], default=None)  # xᵀx alone does not give the result
    ended: dict[str, list[str]] = {}
    for row in peers:
        if row["status"] != "ok":
            ended.setdefault(plot.ending(row), []).append(row["provider"])
    memory = (in_unit(plot.figure_of(each, "peak_extra_mib")[1], SIZES) for each in (mine, best))
    return [
        name,
        _time(mine),
        f"{best['provider']}, {_time(best)}" if best else NONE,
        f"{number(best['ratio']['p50'])}×" if best and best["ratio"] else NONE,
        " / ".join(memory),
        f"{scientific(mine['error'])} / {scientific(best['error'] if best else None)}",
        "; ".join(f"{why}: {', '.join(who)}" for why, who in ended.items()) or NONE,
    ]


def _network(name: str, rows: Mapping[str, Row]) -> list[str]:
    """Return the cells of a whole network: polishing against its forward."""
    p20, p50, p80 = (number(100 * value) for value in plot.figure_of(rows[plot.WHOLE], "share_of_backbone"))
    return [name, _time(rows["backbone"]), _time(rows[plot.WHOLE]), f"{p50} % ({p20}–{p80})" if p50 != NONE else NONE]


def _time(row: Row) -> str:
    """Return the time of a row, or why there is none."""
    return plot.ending(row) if row["status"] != "ok" else in_unit(plot.figure_of(row, "warm_ms")[1], TIMES)


BLOCKS: dict[str, Callable[..., str]] = {"quality": _quality, "grid": _grid, "source": source}


def fill(text: str, page: str) -> str:
    """Return a page with its blocks and figures filled in; ``Missing`` if a marker is wrong."""

    def filled(found: re.Match[str]) -> str:
        begin, words, *template, _, end = found.groups()
        try:
            return f"{begin}\n{block(words, *template)}\n\n{end}" if template else f"{begin}{figure(words)}{end}"
        except (LookupError, ValueError) as error:
            raise Missing(f"{page}: {words}: {error}") from error

    if begins := re.search(r"^\s*<!--=.*", text, re.MULTILINE):
        raise Missing(f"{page}: a marker must not begin a line, where Markdown would end the paragraph: {begins[0]}")
    return MARKER.sub(filled, BLOCK.sub(filled, text))


def loose(text: str) -> list[str]:
    """Return the figures with a unit, and numbers like 66.1, that stand outside markers and ``NOT_MEASURED``."""
    prose = " ".join(NOT_PROSE.sub(" ", MARKER.sub("", BLOCK.sub("", text))).split())
    for phrase in NOT_MEASURED:
        prose = prose.replace(phrase, " ")
    return [prose[max(0, found.start() - 40) : found.end() + 15] for found in FIGURE.finditer(prose)]


def check(pages: Iterable[Path]) -> list[str]:
    """Return what is wrong with pages, as lines: differences to the files, loose figures, entries without a page."""
    wrong: list[str] = []
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in pages}
    for name, text in texts.items():
        try:
            changed = fill(text, name).splitlines()
            wrong += difflib.unified_diff(text.splitlines(), changed, name, "bench/results", lineterm="", n=0)
        except Missing as error:
            wrong.append(str(error))
        wrong += [f"{name}: no file has this figure: …{each}…" for each in loose(text)]
    prose = " ".join(" ".join(texts.values()).split())
    wrong += [f"NOT_MEASURED: no page has {phrase!r}" for phrase in NOT_MEASURED if phrase not in prose]
    made = sorted(path.stem for path in RESULTS.glob("*.json"))
    return [
        *wrong,
        *(f"FILES: no command makes {name}.json; add it, or delete the file" for name in made if name not in FILES),
    ]


def main(given: Sequence[str]) -> int:
    """Fill in or check the pages, or say how the files are made; exit code 1 where a check fails."""
    parser = argparse.ArgumentParser(
        prog="python -m bench tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, print what differs")
    parser.add_argument("--commands", action="store_true", help="print the command that makes each file")
    options = parser.parse_args(given)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if options.commands:
        print("\n".join(f"python -m bench {text} --save bench/results/{name}.json" for name, text in FILES.items()))
        print("\n".join(f"python -m bench {text}" for text in PICTURES))
    elif options.check:
        wrong = check(pages)
        print("\n".join(wrong or ["Every figure is that of its file."]))
        return int(bool(wrong))
    else:
        try:
            texts = {path: fill(path.read_text(encoding="utf-8"), path.name) for path in pages}
        except Missing as error:
            parser.error(str(error))
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
    return 0
