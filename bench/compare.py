"""``python -m bench compare BASE``: whether the working tree got slower than a commit, measured side by side.

Correctness comes first: a candidate with a wrong result gets no ratio. Then, where there is no GPU, the ahead-of-time
report and the counted traffic are compared exactly; then the times, in interleaved rounds and fresh processes.

One thread is the default: beside two busy processes on two cores, A/A ratios of two threads meant nothing, for samples
took up to a hundred times as long while OpenMP waited for the thread that had no processor. What only several threads
show needs ``--threads`` and a quiet machine.

``--self-check`` compares this tree with a copy that a planted loop makes 20 % slower, and with an exact copy.

Exit codes: 0 no slower, 1 slower or a gate got worse, 2 a wrong result (or wrong arguments), 3 too noisy to tell.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import io
import itertools
import math
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench import compare_gates
from bench.compare_cases import SETS, mistake
from bench.figures import number, table
from bench.measure import ROOT, command_line, describe, machine, save
from bench.workers import Workers, job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.compare_cases import Case
    from bench.compare_gates import Gate

BUDGETS = {"small": 240.0, "full": 1800.0}  # seconds
TIMED_S = 60.0  # for the times, however long all else took
LIMIT_S = 120.0  # that an answer may take
FIGURES = ("base_ms", "candidate_ms", "ratio", "again", "band")
ROUNDS = 9  # of a case in a session
SAMPLE_S, BURST_S = 0.010, 0.001  # that a sample and each of its bursts of short calls last at least
ORDERS = tuple(itertools.permutations(range(3)))  # of base, candidate, base again: nobody is always first at anything
FLOOR = 0.05  # of the band: beside busy processes sessions' medians of A/A ratios strayed by 3 to 6 %
ERRORS = 4.0  # standard errors in a band
NARROW = 0.10  # the widest band that a slow-down of 15 % still stands clearly beyond
LEAST, CONFIRMED = 3, 7  # sessions that any judgement takes, and "slower" or "faster": its first luck is not enough
MEDIAN_ERROR, SIGMA = 1.2533, 1.4826  # a median's standard error over a mean's; normal: deviation over the median one
SLOWER = """
def _planted(inner):
    import time

    def polish(*arguments, **options):
        begin = time.perf_counter()
        out = inner(*arguments, **options)
        end = begin + 1.2 * (time.perf_counter() - begin)
        while time.perf_counter() < end:
            pass
        return out

    return polish


polish = _planted(polish)
"""


class Failed(Exception):
    """Raised for what went wrong in a worker."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("base", nargs="?", metavar="BASE", help="commit, branch or tag to compare with, or a folder with the package")
    add("--tree", type=Path, default=ROOT, metavar="DIR", help="the candidate (default: this working tree)")
    add("--set", choices=SETS, default="small", help="cases (%(default)s)")
    add("--case", default="*", metavar="GLOB", help="only the cases whose name matches")
    add("--budget", type=float, metavar="S", help="seconds to be done in (240, full 1800)")
    add("--no-gates", action="store_true", help="leave out compiled kernels, traffic and launches")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    add("--threads", type=int, default=1, metavar="N", help="that PyTorch computes with (%(default)d)")
    add("--self-check", action="store_true", help="check that a planted slow-down is found, and exit")
    add("--save", type=Path, metavar="FILE", help="write figures and machine to a JSON file")
    options = parser.parse_args(arguments)
    if options.self_check:
        return self_check([word for word in arguments if word != "--self-check"])
    if not options.base:
        parser.error("BASE: expected a revision or a folder, got nothing")
    options.budget = options.budget or BUDGETS[options.set]
    cases = [case for case in SETS[options.set] if fnmatch.fnmatchcase(case.name, options.case)]
    if not cases:
        names = ", ".join(case.name for case in SETS[options.set])
        parser.error(f"--case: expected a pattern that matches one of {names}, got {options.case!r}")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the trees go, as on Ctrl-C
    try:
        with tempfile.TemporaryDirectory(prefix="bench-compare-") as folder:
            base = copy_of(options.base, Path(folder) / "base")
            candidate = copy_of(options.tree, Path(folder) / "candidate")
            return compare(base, candidate, cases, options, command_line(["compare", *arguments]))
    except ValueError as error:
        parser.error(str(error))
    except Failed as error:
        print(f"\nNo comparison: a case that had been right failed while it was timed: {error}.")
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


def copy_of(source: Path | str, folder: Path, repository: Path = ROOT) -> Path:
    """Copy the package of a tree or a revision to ``folder``, the kernels in it: whoever edits it changes nothing.

    Raises:
        ValueError: there is no package, or no such revision.
    """
    if is_tree(source):
        source = Path(source)
        for name, target in (("ssa_fast", "ssa_fast"), ("kernels", "ssa_fast/kernels")):
            if (source / name).is_dir() and not (folder / target).is_dir():
                shutil.copytree(source / name, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        command = ["git", "-C", str(repository), "archive", commit_of(str(source), repository)]
        done = subprocess.run(command, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        if (folder / "kernels").is_dir():
            (folder / "kernels").rename(folder / "ssa_fast/kernels")
    if not (folder / "ssa_fast/kernels").is_dir() or not (folder / "ssa_fast/__init__.py").is_file():
        raise ValueError(f"{source}: expected a checkout with ssa_fast and kernels, found none; name one that has them")
    return folder


def is_tree(source: Path | str) -> bool:
    """Return whether this is a folder with the package, rather than a revision."""
    return isinstance(source, Path) or Path(source, "ssa_fast").is_dir()


def commit_of(revision: str, repository: Path = ROOT) -> str:
    """Return the short hash that a revision stands for."""
    command = ["git", "-C", str(repository), "rev-parse", "--verify", "--quiet", "--short", f"{revision}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"BASE: expected a commit, branch, tag or folder, got {revision!r}; git fetch it first")
    return done.stdout.strip()


def compare(base: Path, candidate: Path, cases: Sequence[Case], options: argparse.Namespace, command: str) -> int:
    """Check, compare and time two trees; print, save, and say which it was."""
    began = time.monotonic()
    found = machine() | {"threads": options.threads}
    names = {
        "base": f"the tree {options.base}" if is_tree(options.base) else commit_of(options.base),
        "candidate": f"the working tree, {found['commit']}" if options.tree == ROOT else f"the tree {options.tree}",
    }
    gated = not (options.no_gates or torch.cuda.is_available()) and bool(importlib.util.find_spec("triton"))
    print(f"base: {names['base']}\ncandidate: {names['candidate']}\n{describe(found)}", flush=True)
    more = " and minutes for the gates, if the kernels differ" if gated else ""
    print(f"To be done in about {options.budget:g} s{more}.", file=sys.stderr, flush=True)
    if wrong := mistakes(candidate, cases, options):
        print(*(f"RED {name}: {why}" for name, why in wrong.items()), sep="\n")
        print(f"\nNo comparison: the candidate is wrong in {', '.join(wrong)}.")
        return 2
    unfit = mistakes(base, cases, options)
    print(*(f"not judged, the base's {name}: {why}" for name, why in unfit.items()), sep="\n", end="\n" * bool(unfit))
    print(f"{len(cases)} cases right in the candidate, {len(cases) - len(unfit)} of them in the base", flush=True)
    gates = []
    for name in compare_gates.READ if gated else ():
        gates.append(gate := compare_gates.run(name, base, candidate))
        print(
            "\n  ".join([f"{name}: {gate.summary}", *(f"WORSE {what}" for what in gate.worse), *gate.notes]), flush=True
        )
    until = max(began + options.budget, time.monotonic() + min(TIMED_S, options.budget))
    times = measure(base, candidate, [case for case in cases if case.name not in unfit], options, until)
    rows = [{"case": name, **judged(sessions)} for name, sessions in times.items()]
    rows += [{"case": name, "verdict": "not judged"} for name in unfit]
    lines = [[row["case"], *(number(row.get(key)) for key in FIGURES), row["verdict"]] for row in rows]
    print("", *table(["case", *FIGURES, "verdict"], lines, aligned=True), sep="\n")
    if options.save:
        told = [{"part": "time", **row} for row in rows] + [{"part": "gate", **vars(gate)} for gate in gates]
        settings = {name: getattr(options, name) for name in ("set", "budget", "device", "threads")} | names
        save(options.save, told, command=command, settings=settings, machine=found)
    code, sentence = conclusion(rows, gates)
    print(f"\n{sentence} ({time.monotonic() - began:.0f} s)")
    return code


def conclusion(rows: Sequence[dict[str, Any]], gates: Sequence[Gate]) -> tuple[int, str]:
    """Return the exit code, and the verdict in one sentence."""
    found = {
        each: [row["case"] for row in rows if row["verdict"] == each] for each in ("slower", "too noisy", "faster")
    }
    found["gates that got worse"] = [gate.name for gate in gates if gate.worse]
    code = 1 if found["slower"] or found["gates that got worse"] else 3 if found["too noisy"] else 0
    heads = {0: "No slower", 1: "Got slower", 3: "Not all could be judged, measure on a quieter machine or for longer"}
    return code, "; ".join(
        [heads[code], *(f"{each}: {', '.join(names)}" for each, names in found.items() if names)]
    ) + "."


def mistakes(tree: Path, cases: Sequence[Case], options: argparse.Namespace) -> dict[str, str]:
    """Return what is wrong with the results of a tree, by case; a wrong figure is told with what was expected."""
    found = {}
    with workers_of(tree, options) as workers:
        for case in cases:
            try:
                why = mistake(case, ask(workers, "answer", case), options.device)
            except Failed as error:
                why = str(error)
            if why:
                found[case.name] = why
    return found


def workers_of(tree: Path, options: argparse.Namespace) -> Workers:
    """Return a process that has one tree's package, compiled rather than interpreted."""
    environment = {"TRITON_INTERPRET": None}
    return Workers(tree=tree, device=options.device, threads=options.threads, environment=environment)


def ask(workers: Workers, what: str, case: Case, **arguments: int) -> dict[str, Any]:
    """Return what a function of ``bench.compare_cases`` answers about a case in a worker.

    Raises:
        Failed: it went wrong there.
    """
    (row,) = workers.do(job(f"bench.compare_cases:{what}", case.name, LIMIT_S, case=case, **arguments))
    if "status" in row:
        raise Failed(row["why"])
    return row


# ---- Times: three processes a session, base, candidate and base again, in turn until all is settled or time is up ----


def measure(
    base: Path, candidate: Path, cases: Sequence[Case], options: argparse.Namespace, until: float
) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Return seconds per call by case: for each session an array ``(rounds, 3)`` of base, candidate and base again.

    Every case is timed in at least one session; none is begun after ``until``, a time of ``time.monotonic``.
    """
    found: dict[str, list[np.ndarray[Any, Any]]] = {case.name: [] for case in cases}
    sizes = {}  # of a sample: bursts, and calls in each, decided once for both trees
    with workers_of(base, options) as workers:
        for case in cases:
            ask(workers, "begin", case)
            seconds = min(ask(workers, "sample", case, bursts=1, calls=1)["seconds"] for _ in range(3))
            calls = math.ceil(BURST_S / seconds)
            sizes[case.name] = {"bursts": math.ceil(SAMPLE_S / (calls * seconds)), "calls": calls}
    for session in itertools.count():
        waiting = [case for case in cases if not session or judged(found[case.name])["verdict"] == "too noisy"]
        if not waiting or (session and time.monotonic() > until):
            break
        print(f"session {session + 1}: {len(waiting)} cases", file=sys.stderr, flush=True)
        with ExitStack() as stack:
            trees = base, candidate, base
            three = {at: stack.enter_context(workers_of(trees[at], options)) for at in ORDERS[session % 6]}
            for case in waiting:
                if not session or time.monotonic() < until:
                    found[case.name].append(rounds(three, case, sizes[case.name], session))
    return found


def rounds(three: dict[int, Workers], case: Case, size: dict[str, int], session: int) -> np.ndarray[Any, Any]:
    """Return seconds per call ``(ROUNDS, 3)`` of workers 0, 1 and 2."""
    for workers in three.values():
        ask(workers, "begin", case)
    found = np.empty((ROUNDS, 3))
    for turn in range(ROUNDS):
        for at in ORDERS[(turn + session) % 6]:
            found[turn, at] = ask(three[at], "sample", case, **size)["seconds"]
    return found


def judged(sessions: Sequence[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Return a case's figures and its verdict: "same", "slower", "faster" or "too noisy" (also: too few sessions).

    In every round the base, the candidate and the base again are timed right after one another, so that whatever else
    the machine does weighs on all three; a session has its own processes, whose luck with memory it keeps. Per session
    the median of the rounds' ratios, over the sessions the median of those. The base again has the true ratio 1, so its
    session medians show directly how far such a median strays.

    Simulated with each process off by 3 % for its life, samples by 5 % and every fifth by a tail of infinite variance,
    an equal candidate is called slower or faster at CONFIRMED sessions in 3 of 10,000 comparisons.
    """
    logs = [np.log(session[:, 1:] / session[:, :1]) for session in sessions]
    medians = np.array([np.median(each, axis=0) for each in logs])  # [sessions, (candidate, again)]
    ratio, again = (float(value) for value in np.median(medians, axis=0))
    # The base again strays from 0, the candidate from its own median: both tell of the same machine. The spread of a
    # session's median is at least what the rounds' spread alone makes of it: a few may lie close together by luck.
    between = SIGMA * np.median(np.abs([*medians[:, 1], *(medians[:, 0] - ratio)]))
    within = SIGMA * np.median(np.abs(np.concatenate([each[:, 1] for each in logs])))
    error = MEDIAN_ERROR * max(between, within * MEDIAN_ERROR / math.sqrt(len(logs[0]))) / math.sqrt(len(logs))
    band = max(math.log1p(FLOOR), ERRORS * float(error))
    verdict = "too noisy"
    if abs(ratio) > band and len(sessions) >= CONFIRMED:
        verdict = "slower" if ratio > 0 else "faster"
    elif abs(ratio) <= band <= math.log1p(NARROW) and len(sessions) >= LEAST:
        verdict = "same"
    base_ms, candidate_ms, _ = (float(value) * 1e3 for value in np.median(np.concatenate(sessions), axis=0))
    figures = {"ratio": math.exp(ratio), "again": math.exp(again), "band": math.expm1(band), "sessions": len(sessions)}
    return {"base_ms": base_ms, "candidate_ms": candidate_ms, **figures, "verdict": verdict}


def self_check(arguments: list[str]) -> int:
    """Compare this tree with a copy that is 20 % slower and with an exact one; return 0 if both end as expected."""
    wrong = []
    with tempfile.TemporaryDirectory(prefix="bench-compare-") as folder:
        base, slower = (copy_of(ROOT, Path(folder) / name) for name in ("base", "slower"))
        with (slower / "ssa_fast" / "__init__.py").open("a", encoding="utf-8") as file:
            file.write(SLOWER)
        for name, tree, expected in (("a slow-down of 20 %", slower, 1), ("an exact copy", base, 0)):
            print(f"\nself-check: {name}", flush=True)
            code = main([str(base), "--tree", str(tree), "--case", "tiny/49", *arguments])
            wrong += [f"{name}: exit code {code}, expected {expected}"] * (code != expected)
    print(f"\nself-check {'failed: ' + '; '.join(wrong) if wrong else 'passed'}")
    return int(bool(wrong))
