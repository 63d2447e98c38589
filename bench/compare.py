"""``python -m bench compare BASE``: whether the working tree got slower than a commit, measured side by side.

Correctness comes first: a candidate with a wrong result gets no ratio. Then, where there is no GPU, the ahead-of-time
report, the counted traffic and the host's time are compared; then the times, in interleaved rounds and fresh processes.

One thread is the default: beside two busy processes on two cores, A/A ratios of two threads meant nothing, for samples
took up to a hundred times as long while OpenMP waited for the thread that had no processor. What only several threads
show needs ``--threads`` and a quiet machine.

``--self-check`` compares this tree with a copy that a planted loop makes 20 % slower, and with an exact copy.

Exit codes: 0 no slower, 1 slower or a gate got worse, 2 a wrong result (or wrong arguments), 3 too noisy to tell.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.command import parser_of
from bench.compare_jobs import CASES, COUNTED, mistake
from bench.figures import number, table
from bench.measure import ROOT, command_line, describe, machine, save
from bench.workers import Workers, job

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from bench.compare_jobs import Case
    from bench.workers import Row

    Times = np.ndarray[Any, Any]

TIMED_S = 60.0  # for the times, however long all else took
LIMIT_S, GATE_S = 120.0, 3600.0  # that a job may take
FIGURES = ("base_ms", "candidate_ms", "ratio", "again", "band")
ROUNDS = 9  # of a case in a session
ORDERS = tuple(itertools.permutations(range(3)))  # of base, candidate, base again: nobody is always first at anything
FLOOR = 0.05  # of the band: beside busy processes sessions' medians of A/A ratios strayed by 3 to 6 %
ERRORS = 4.0  # standard errors in a band
NARROW = 0.10  # the widest band that a slow-down of 15 % still stands clearly beyond
LEAST, CONFIRMED = 3, 7  # sessions that any judgement takes, and "slower" or "faster": its first luck is not enough
MEDIAN_ERROR, SIGMA = 1.2533, 1.4826  # a median's standard error over a mean's; normal: deviation over the median one
HEADS = {0: "No slower", 1: "Got slower", 3: "Not all could be judged, measure on a quieter machine or for longer"}
# What each gate's numbers depend on: files of the package, and folders with all that is in them.
LAUNCHED = ("kernels", "ops", "api.py", "validation.py", "arrays.py", "layouts.py", "affinity.py", "reference.py")
READ = {
    "report": ("kernels", "ops/tile_tables.py", "ops/gpu_info.py", "affinity.py"),
    "traffic": LAUNCHED,
    "host": LAUNCHED,
}
JOBS = {
    "report": [job("bench.compare_jobs:figures", "report", GATE_S, command="aot", arguments=["--target", "sm_90"])],
    "traffic": [job("bench.compare_jobs:traffic", case.name, GATE_S, case=case) for case in COUNTED],
    "host": [job("bench.compare_jobs:figures", "host", GATE_S, command="host", arguments=[])],
}
ALLOWED = {"registers": math.inf, "shared": math.inf, "us": 1.25}  # factors by which numbers may grow; others must not
SLOWER = """
import time

_inner = polish


def polish(*arguments, **options):
    begin = time.perf_counter()
    out = _inner(*arguments, **options)
    end = begin + 1.2 * (time.perf_counter() - begin)
    while time.perf_counter() < end:
        pass
    return out
"""


class Refused(Exception):
    """Raised for what cannot be compared."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    parser = parser_of("compare", __doc__)
    add = parser.add_argument
    add("base", nargs="?", default="main", metavar="BASE", help="a revision, or the folder of a tree (%(default)s)")
    add("--tree", default=ROOT, metavar="TREE", help="the candidate, another such (default: this working tree)")
    add("--case", default="*", metavar="GLOB", help="only the cases whose name matches")
    add("--budget", type=float, default=240.0, metavar="S", help="to be done in, but for the gates (%(default)g)")
    add("--no-gates", action="store_true", help="leave out compiled kernels, traffic and launches")
    add("--threads", type=int, default=1, metavar="N", help="that PyTorch computes with (%(default)d)")
    add("--self-check", action="store_true", help="check that a planted slow-down is found, and exit")
    options = parser.parse_args(arguments)
    options.command = command_line(["compare", *arguments])
    try:
        with tempfile.TemporaryDirectory(prefix="bench-compare-") as folder:
            return (self_check if options.self_check else compare)(Path(folder), options)
    except Refused as error:
        print(f"\nNo comparison: {error}.")
        return 2


def self_check(folder: Path, options: argparse.Namespace) -> int:
    """Compare this tree with a copy that is 20 % slower and with an exact one; return 0 if both end as expected."""
    options.base, options.case, wrong = ROOT, CASES[0].name, []
    for name, planted, expected in (("a slow-down of 20 %", SLOWER, 1), ("an exact copy", "", 0)):
        print(f"\nself-check: {name}", flush=True)
        code = compare(folder / str(expected), options, planted)
        wrong += [f"{name}: exit code {code}, expected {expected}"] * (code != expected)
    print(f"\nself-check {'failed: ' + '; '.join(wrong) if wrong else 'passed'}")
    return int(bool(wrong))


def compare(folder: Path, options: argparse.Namespace, planted: str = "") -> int:
    """Check, compare and time two trees; print, save, and say which it was. The candidate gets what is planted."""
    began, found = time.monotonic(), machine() | {"threads": options.threads}
    cases = [case for case in CASES if fnmatch.fnmatchcase(case.name, options.case)]
    if not cases:
        names = ", ".join(case.name for case in CASES)
        raise Refused(f"--case: expected a pattern that matches one of {names}, got {options.case!r}")
    base, candidate = folder / "base", folder / "candidate"
    trees = {"base": copy_of(options.base, base), "candidate": copy_of(options.tree, candidate)}
    with (candidate / "ssa_fast/__init__.py").open("a", encoding="utf-8") as file:
        file.write(planted)
    print(*(f"{which}: {tree}" for which, tree in trees.items()), describe(found), sep="\n", flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = {"device": device, "threads": options.threads, "environment": {"TRITON_INTERPRET": None}}
    if wrong := mistakes(candidate, cases, kind):
        print(*(f"RED {name}: {why}" for name, why in wrong.items()), sep="\n")
        raise Refused(f"the candidate is wrong in {', '.join(wrong)}")
    unfit = mistakes(base, cases, kind)
    print(*(f"not judged, the base's {name}: {why}\n" for name, why in unfit.items()), sep="", end="")
    gates = []
    for name in READ if device == "cpu" and not options.no_gates else ():
        gates.append(row := gate(name, base, candidate))
        print("\n  ".join([f"{name}: {row['summary']}", *(f"WORSE {each}" for each in row["worse"]), *row["notes"]]))
    until = max(began + options.budget, time.monotonic() + min(TIMED_S, options.budget))
    times = measure(base, candidate, [case for case in cases if case.name not in unfit], kind, until)
    rows = [{"part": "time", "name": name, **judged(sessions)} for name, sessions in times.items()]
    rows += [{"part": "time", "name": name, "verdict": "not judged"} for name in unfit]
    lines = [[row["name"], *(number(row.get(key)) for key in FIGURES), row["verdict"]] for row in rows]
    print("", *table(["case", *FIGURES, "verdict"], lines, aligned=True), sep="\n")
    if options.save:
        settings = trees | {"budget": options.budget, "device": device}
        save(options.save, rows + gates, command=options.command, settings=settings, machine=found)
    verdicts = {}
    for each in ("slower", "worse", "too noisy", "faster"):
        if named := [row["name"] for row in rows + gates if row["verdict"] == each]:
            verdicts[each] = f"{each}: {', '.join(named)}"
    code = 1 if verdicts.keys() & {"slower", "worse"} else 3 if "too noisy" in verdicts else 0
    print(f"\n{'; '.join([HEADS[code], *verdicts.values()])}. ({time.monotonic() - began:.0f} s)")
    return code


def copy_of(source: Path | str, folder: Path, repository: Path = ROOT) -> str:
    """Copy the package of a tree or a revision, with its kernels, so that nobody's edits mix in; say what it is.

    Raises:
        Refused: There is no such revision, or no package in it.
    """
    what, tree = "this working tree" if source == ROOT else f"the tree {source}", Path(source)
    if not (tree / "ssa_fast").is_dir():
        git, archive = ("git", "-C", str(repository)), folder.with_suffix(".zip")
        words = [*git, "rev-parse", "--verify", "--short", f"{source}^{{commit}}"]
        commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
        if not commit:
            raise Refused(f"expected a commit, branch, tag or a folder with ssa_fast, got {source}; git fetch it first")
        what, tree = f"commit {commit}", folder.with_suffix(".checkout")
        subprocess.run([*git, "archive", "-o", str(archive), commit], check=True)
        shutil.unpack_archive(archive, tree)
    compiled = shutil.ignore_patterns("__pycache__")
    for name, target in (("ssa_fast", "ssa_fast"), ("kernels", "ssa_fast/kernels")):
        if (tree / name).is_dir():
            shutil.copytree(tree / name, folder / target, ignore=compiled, dirs_exist_ok=True)
    if not (folder / "ssa_fast/kernels").is_dir():
        raise Refused(f"{what} has no ssa_fast with kernels; name one that has")
    return what


def mistakes(tree: Path, cases: Sequence[Case], kind: dict[str, Any]) -> dict[str, str]:
    """Return what is wrong with the results of a tree, by case; a wrong figure is told with what was expected."""
    found = {}
    with Workers(tree=tree, **kind) as workers:
        for case in cases:
            (row,) = workers.do(job("bench.compare_jobs:answer", case.name, LIMIT_S, case=case))
            why = row.get("why") or mistake(case, row["arrays"], kind["device"] == "cuda")
            if why:
                found[case.name] = why
    return found


# Gates: what needs no GPU is compared as numbers.


def gate(name: str, base: Path, candidate: Path) -> Row:
    """Compare two trees by one gate, unless they do not differ in anything that it depends on."""
    if read(base, name) == read(candidate, name):
        return weighed(name, [], [], "all that it depends on is unchanged, not measured again")
    rows: dict[Path, list[Row]] = {base: [], candidate: []}
    for _ in range(2 if name == "host" else 1):  # the least time counts
        for tree, found in rows.items():
            with Workers(tree=tree, environment={"TRITON_INTERPRET": "1" if name == "traffic" else None}) as workers:
                found += [row for each in JOBS[name] for row in workers.do(each)]
    return weighed(name, rows[base], rows[candidate])


def read(tree: Path, name: str) -> dict[str, bytes]:
    """Return the contents by path of all files that a gate's numbers depend on."""
    package = tree / "ssa_fast"
    files = (file for each in READ[name] for file in package.glob(each if "." in each else f"{each}/**/*.*"))
    return {f.relative_to(package).as_posix(): f.read_bytes() for f in files if f.suffix in (".py", ".json")}


def weighed(name: str, base: Sequence[Row], candidate: Sequence[Row], summary: str = "") -> Row:
    """Compare numbers ``{"label", "numbers"}``, of which rows that say ``why`` have none.

    What the base does not have is compared with nothing, but must be without problems.
    """
    before, now = least(base), least(candidate)
    found = {
        "worse": [f"{row['what']}: {row['why']}" for row in candidate if "why" in row],
        "notes": [f"the base's {row['what']}: {row['why']}" for row in base if "why" in row],
    }
    for (label, what), value in now.items():
        old = before.get((label, what), 0 if what == "problems" else value)
        if value != old:
            kind = "worse" if value > ALLOWED.get(what, 1) * old else "notes"
            found[kind].append(f"{label}: {what} {value:,.9g}, {old:,.9g} before")
    summary = summary or f"{len(now.keys() & before.keys())} numbers compared, {len(now.keys() - before.keys())} new"
    return {"part": "gate", "name": name, "verdict": "worse" if found["worse"] else "same", "summary": summary, **found}


def least(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Return the numbers by label and name, the least of those that are there several times."""
    found: dict[tuple[str, str], float] = {}
    for row in rows:
        for what, value in row.get("numbers", {}).items():
            key = row["label"], what
            found[key] = min(value, found.get(key, value))
    return found


# Times: three processes a session, base, candidate and base again, in turn until all is settled or time is up.


def measure(
    base: Path, candidate: Path, cases: Sequence[Case], kind: dict[str, Any], until: float
) -> dict[str, list[Times]]:
    """Return seconds per call by case: for each session an array ``(rounds, 3)`` of base, candidate and base again.

    Every case is timed in at least one session; none is begun after ``until``, a time of ``time.monotonic``.
    """
    found: dict[str, list[Times]] = {case.name: [] for case in cases}
    waiting, session = list(cases), 0
    while waiting and (not session or time.monotonic() < until):
        print(f"session {session + 1}: {len(waiting)} cases", file=sys.stderr, flush=True)
        with ExitStack() as stack:
            trees = (base, candidate, base)
            three = {at: stack.enter_context(Workers(tree=trees[at], **kind)) for at in ORDERS[session % 6]}
            for case in waiting:
                found[case.name].append(times := np.empty((ROUNDS, 3)))
                for turn in range(ROUNDS):
                    for at in ORDERS[(turn + session) % 6]:
                        times[turn, at] = seconds(three[at], case)
        session += 1
        waiting = [case for case in waiting if judged(found[case.name])["verdict"] == "too noisy"]
    return found


def seconds(workers: Workers, case: Case) -> float:
    """Return what a call takes in one sample."""
    (row,) = workers.do(job("bench.compare_jobs:sample", case.name, LIMIT_S, case=case))
    if "why" in row:
        raise Refused(f"{case.name}, which had been right, failed while it was timed: {row['why']}")
    found: float = row["seconds"]
    return found


def judged(sessions: Sequence[Times]) -> dict[str, Any]:
    """Return a case's figures and its verdict: "same", "slower", "faster" or "too noisy" (also: too few sessions).

    In every round the base, the candidate and the base again are timed right after one another, so that whatever else
    the machine does weighs on all three; a session has its own processes, whose luck with memory it keeps. Per session
    the median of the rounds' ratios, over the sessions the median of those. The base again has the true ratio 1, so its
    session medians show directly how far such a median strays.

    Simulated with each process off by 3 % for its life, samples by 5 % and every fifth by a tail of infinite variance,
    an equal candidate is called slower or faster at CONFIRMED sessions in 3 of 10,000 comparisons.
    """
    times = np.array(sessions)
    logs = np.log(times[:, :, 1:] / times[:, :, :1])  # [sessions, rounds, (candidate, again)]
    medians = np.median(logs, axis=1)
    ratio, again = (float(value) for value in np.median(medians, axis=0))
    # The base again strays from 0, the candidate from its own median: both tell of the same machine. The spread of a
    # session's median is at least what the rounds' spread alone makes of it: a few may lie close together by luck.
    between = SIGMA * np.median(np.abs([*medians[:, 1], *(medians[:, 0] - ratio)]))
    within = SIGMA * np.median(np.abs(logs[:, :, 1]))
    error = MEDIAN_ERROR * max(between, within * MEDIAN_ERROR / math.sqrt(ROUNDS)) / math.sqrt(len(sessions))
    band = max(math.log1p(FLOOR), ERRORS * float(error))
    verdict = "too noisy"
    if abs(ratio) > band and len(sessions) >= CONFIRMED:
        verdict = "slower" if ratio > 0 else "faster"
    elif abs(ratio) <= band <= math.log1p(NARROW) and len(sessions) >= LEAST:
        verdict = "same"
    base_ms, candidate_ms, _ = (float(value) * 1e3 for value in np.median(times, axis=(0, 1)))
    figures = {"ratio": math.exp(ratio), "again": math.exp(again), "band": math.expm1(band), "sessions": len(sessions)}
    return {"base_ms": base_ms, "candidate_ms": candidate_ms, **figures, "verdict": verdict}
