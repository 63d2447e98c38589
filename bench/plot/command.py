"""``python -m bench plot``: read, draw what the files have rows for, write it whole."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.plot import series, table
from bench.plot.results import Malformed, Results, read

if TYPE_CHECKING:
    from collections.abc import Iterator

MADE_BY = {
    "time": "rows with times of layer1 problems of ours; make them with python -m bench --suite curve",
    "memory": "rows with peak memory of layer1 problems of ours; make them with python -m bench --suite curve",
    "backbone": "rows of 'polish and fuse'; make them with python -m bench --suite backbone",
    "table": "rows of ours ('auto' or 'polish and fuse'); make them with python -m bench",
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench plot", description="pictures and tables of a grid's results")
    parser.add_argument("results", nargs="+", type=Path, help="files of python -m bench; later ones count more")
    parser.add_argument("--out", type=Path, help="folder for time-, memory- and backbone-<device>.png")
    parser.add_argument("--markdown", action="store_true", help="print the tables of the README")
    parser.add_argument("--only", default="", help="in the tables, only problems whose name contains this")
    return parser


def main(arguments_given: list[str]) -> int:
    """0: what the files hold is drawn or printed, 2: nothing can be, with the reason on stderr."""
    parser = arguments()
    given = parser.parse_args(arguments_given)
    if not given.out and not given.markdown:
        parser.error("nothing to do: name a folder with --out, ask for the tables with --markdown, or both")
    try:
        found = read(given.results)
        pictures = dict(_pictures(found)) if given.out else {}
        lines = list(_tables(found, given.only)) if given.markdown else []
    except Malformed as error:
        print(error, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"Pictures need {error.name}, which is not here: pip install 'ssa_fast[bench]'.", file=sys.stderr)
        return 2
    try:
        if pictures:
            _write(given.out, pictures)
    except OSError as error:
        print(f"--out: expected a folder to write to, got {given.out}: {error.strerror}.", file=sys.stderr)
        return 2
    if lines:
        print("\n".join(lines))
    return 0 if pictures or lines else 2


def _pictures(found: list[Results]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files to write; says what it has no rows for."""
    from bench.plot import draw

    for results in found:
        time, memory = (series.panels(results, quantity) for quantity in ("warm_ms", "peak_extra_mib"))
        shares = series.shares(results)
        if time:
            yield f"time-{results.device}.png", draw.curves("time", time, results)
        if memory:
            yield f"memory-{results.device}.png", draw.curves("memory", memory, results)
        if shares:
            yield f"backbone-{results.device}.png", draw.shares(shares, results)
        for kind, there in (("time", time), ("memory", memory), ("backbone", shares)):
            if not there:
                _skipped(f"{kind}-{results.device}.png", kind, results)


def _tables(found: list[Results], only: str) -> Iterator[str]:
    for results in found:
        lines = table.markdown(results, only)
        if not lines:
            _skipped("the tables", "table", results)
        yield from lines


def _skipped(what: str, kind: str, results: Results) -> None:
    print(f"No {what}: {', '.join(results.sources)} has no {MADE_BY[kind]}.", file=sys.stderr)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write every file, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        unfinished = folder / f".{name}.{os.getpid()}"
        unfinished.write_bytes(content)
        unfinished.replace(folder / name)
        print(f"wrote {folder / name}", file=sys.stderr)
