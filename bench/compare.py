"""``python -m bench compare BASE``: whether the working tree got slower than a commit, measured side by side.

Correctness comes first: a candidate with a wrong result gets no ratio. Then, where there is no GPU, the ahead-of-time
report and the counted traffic are compared exactly; then the times, in interleaved rounds and fresh processes.

One thread is the default because it bears company: beside two busy processes on two cores, A/A ratios of two threads
meant nothing, for samples took up to a hundred times as long while OpenMP waited for the thread that had no processor.
What only several threads show needs ``--threads`` and a quiet machine.

``--self-check`` compares this tree with a copy that a planted loop makes 20 % slower, and with an exact copy.

Exit codes: 0 no slower, 1 slower or a gate got worse, 2 a wrong result (or wrong arguments), 3 too noisy to tell.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.guard import accuracy, gates, self_check, timing, trees
from bench.guard.cases import SETS, chosen
from bench.guard.worker import Device, Failed
from bench.measure import ROOT, describe, machine, save

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.guard.accuracy import Check
    from bench.guard.cases import Case
    from bench.guard.gates import Gate
    from bench.guard.verdict import Times

BUDGETS = {"small": 240.0, "full": 1800.0}  # seconds
TIMED = 60.0  # seconds for the times, however long all else took
COLUMNS = "{:<24} {:>9} {:>12} {:>7} {:>7} {:>7}  {}"


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.self_check:
        given = ["--device", options.device, "--threads", str(options.threads), "--gates", options.gates]
        return self_check.run(main, given + (["--budget", str(options.budget)] if options.budget else []))
    if (options.base is None) == (options.base_tree is None):
        parser.error("BASE: expected one of a revision and --base-tree DIR")
    options.budget = options.budget or BUDGETS[options.set]
    cases = chosen(options.set, options.case)
    if not cases:
        names = ", ".join(case.name for case in SETS[options.set])
        parser.error(f"--case: expected a pattern that matches one of {names}, got {options.case!r}")
    began = time.monotonic()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree goes, as on Ctrl-C
    try:
        with ExitStack() as stack:
            candidate = stack.enter_context(trees.copied(options.tree or ROOT))
            if options.base_tree:
                base = stack.enter_context(trees.copied(options.base_tree))
            else:
                base = stack.enter_context(trees.checked_out(options.base, ROOT))
            return compare(base, candidate, cases, options, began)
    except trees.NotATree as error:
        parser.error(str(error))
    except Failed as error:
        print(f"\nNo comparison: a case that had been right failed while it was timed: {error}.")
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", nargs="?", metavar="BASE", help="commit, branch or tag to compare with")
    parser.add_argument("--base-tree", type=Path, metavar="DIR", help="a folder to compare with, in place of a commit")
    parser.add_argument("--tree", type=Path, metavar="DIR", help="the candidate (default: this working tree)")
    parser.add_argument("--set", choices=SETS, default="small", help="cases (%(default)s)")
    parser.add_argument("--case", default="*", metavar="GLOB", help="only the cases whose name matches")
    parser.add_argument("--budget", type=float, metavar="S", help="seconds to be done in (240, full 1800)")
    parser.add_argument(
        "--gates", choices=("auto", "off"), default="auto", help="the report and the traffic (auto: if there is no GPU)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="that PyTorch computes with (%(default)d)")
    parser.add_argument("--self-check", action="store_true", help="check that a planted slow-down is found, and exit")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write figures and machine to a JSON file")
    return parser


def compare(base: Path, candidate: Path, cases: Sequence[Case], options: argparse.Namespace, began: float) -> int:
    """Check, compare and time two trees; print, save, and say which it was."""
    stand = Device(options.device, options.threads)
    found = machine() | {"threads": stand.threads}
    names = _named(options, found["commit"])
    if stand.device == "cpu" and options.gates == "auto":
        print("The gates come on top: minutes of compiling, if the kernels differ.", file=sys.stderr)
    print(f"To be done in about {options.budget:g} s.", file=sys.stderr, flush=True)
    print(f"base: {names['base']}\ncandidate: {names['candidate']}\n{describe(found)}", flush=True)
    wrong, judged, rows = _correct(base, candidate, cases, stand)
    if wrong:
        print("\nNo comparison: the candidate is wrong in " + ", ".join(check.case for check in wrong) + ".")
        return 2
    gated = _gates(base, candidate) if options.gates == "auto" else []
    now = time.monotonic()
    until = max(began + options.budget, now + min(TIMED, options.budget))
    times = timing.measure(base, candidate, judged, stand, until, _progress(began)) if judged else {}
    rows = [_row(name, each) for name, each in times.items()] + rows
    _print(rows)
    if options.save:
        about = {"part": "comparison", "set": options.set, "budget_s": options.budget, **vars(stand), **names}
        told = [{"part": "gate", **vars(gate)} for gate in gated]
        save(options.save, [about, *({"part": "time", **row} for row in rows), *told])
    code, sentence = _conclusion(rows, gated)
    print(f"\n{sentence} ({time.monotonic() - began:.0f} s)")
    return code


def _gates(base: Path, candidate: Path) -> list[Gate]:
    """What needs no GPU, where there is none."""
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return []
    found = []
    for compared in (gates.report, gates.traffic, gates.host):
        gate = compared(base, candidate)
        found.append(gate)
        print(f"{gate.name}: {gate.summary}")
        for line in [*(f"WORSE {what}" for what in gate.worse), *gate.notes]:
            print(f"  {line}", flush=True)
    return found


def _named(options: argparse.Namespace, commit: str) -> dict[str, str]:
    """What the two trees are called."""
    base = f"the tree {options.base_tree}" if options.base_tree else trees.commit_of(options.base, ROOT)
    return {"base": base, "candidate": f"the tree {options.tree}" if options.tree else f"the working tree, {commit}"}


def _correct(
    base: Path, candidate: Path, cases: Sequence[Case], stand: Device
) -> tuple[list[Check], list[Case], list[dict[str, Any]]]:
    """Wrong cases of the candidate; the cases to judge; rows of those that the base makes impossible to judge."""
    wrong = [check for check in accuracy.checks(candidate, cases, stand) if not check.right]
    for check in wrong:
        print(f"RED {check}")
    if wrong:
        return wrong, [], []
    judged, rows = [], []
    for case, check in zip(cases, accuracy.checks(base, cases, stand), strict=True):
        if check.right:
            judged.append(case)
        else:
            rows.append({"case": case.name, "verdict": "new" if check.failure else "the base is wrong"})
            print(f"not judged, the base's {check}")
    print(f"{len(cases)} cases right in the candidate, {len(judged)} of them in the base", flush=True)
    return wrong, judged, rows


def _progress(began: float) -> timing.Report:
    return lambda session, cases: print(
        f"session {session + 1}: {cases} cases, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
    )


def _row(name: str, times: Times) -> dict[str, Any]:
    """One case's line, as data."""
    judgement = times.judge()
    base, candidate = times.milliseconds()
    return {
        "case": name,
        "base_ms": base,
        "candidate_ms": candidate,
        "ratio": judgement.ratio,
        "again": judgement.again,
        "band": judgement.band,
        "sessions": len(times.sessions),
        "verdict": judgement.verdict,
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """The table: a line per case."""
    print("\n" + COLUMNS.format("case", "base ms", "candidate ms", "ratio", "A/A", "band", "verdict"))
    for row in rows:
        if "ratio" not in row:
            print(COLUMNS.format(row["case"], *"–––––", row["verdict"]))
            continue
        numbers = f"{row['base_ms']:.3f}", f"{row['candidate_ms']:.3f}", f"{row['ratio']:.3f}", f"{row['again']:.3f}"
        said = row["verdict"].upper() if row["verdict"] in ("slower", "too noisy") else row["verdict"]
        print(COLUMNS.format(row["case"], *numbers, f"±{row['band']:.1%}", said))


def _conclusion(rows: Sequence[dict[str, Any]], judged: Sequence[Gate]) -> tuple[int, str]:
    """The exit code, and the verdict in one sentence."""

    def having(verdict: str) -> list[str]:
        return [
            row["case"] + (f" (ratio {row['ratio']:.3f}, band ±{row['band']:.1%})" if verdict != "too noisy" else "")
            for row in rows
            if row["verdict"] == verdict
        ]

    slower, noisy, faster = having("slower"), having("too noisy"), having("faster")
    worse = [gate.name for gate in judged if gate.worse]
    said = [f"{', '.join(slower)} slower than the band allows"] if slower else []
    said += [f"the {' and the '.join(worse)} got worse"] if worse else []
    said += [f"{', '.join(noisy)} too noisy to judge: measure on a quieter machine or for longer"] if noisy else []
    said += [f"{', '.join(faster)} faster"] if faster else []
    if slower or worse:
        return 1, f"Got slower: {'; '.join(said)}."
    if noisy:
        return 3, f"Not all could be judged: {'; '.join(said)}."
    return 0, f"No slower{': ' + '; '.join(said) if said else ''}."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
