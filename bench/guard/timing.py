"""Three workers a session, base, candidate and base again, timed in turn until every case is settled or time is up."""

from __future__ import annotations

import itertools
import math
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bench.guard.verdict import Times
from bench.guard.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from bench.guard.cases import Case
    from bench.guard.verdict import Floats
    from bench.guard.worker import Device

    Report: TypeAlias = Callable[[int, int], None]

ROUNDS = 9  # of a case in a session
SAMPLE = 0.010  # seconds that a sample lasts at least
BURST = 0.001  # and each of its bursts of short calls: less than a scheduler mostly grants at a stretch

ORDERS = tuple(
    itertools.permutations(range(3))
)  # of base, candidate and base again: nobody is always first at anything

Size = tuple[int, int]  # of a sample: bursts, and calls in each


def measure(
    base: Path,
    candidate: Path,
    cases: Sequence[Case],
    stand: Device,
    until: float,
    report: Report,
) -> dict[str, Times]:
    """Times by case name. ``until`` is a time of ``time.monotonic``; ``report`` hears each session's number and cases.

    Every case is timed in at least one session.
    """
    sizes = sizes_of(base, cases, stand)
    found = {case.name: Times() for case in cases}
    for session in itertools.count():
        waiting = [case for case in cases if not (session and found[case.name].judge().settled)]
        if not waiting or (session and time.monotonic() > until):
            return found
        report(session, len(waiting))
        with ExitStack() as stack:
            trees = base, candidate, base
            workers = {which: stack.enter_context(Worker(trees[which], stand)) for which in ORDERS[session % 6]}
            for case in waiting:
                if not session or time.monotonic() < until:
                    found[case.name].sessions.append(rounds(workers, case, sizes[case.name], session))
    raise AssertionError  # the count of sessions has no end


def sizes_of(tree: Path, cases: Sequence[Case], stand: Device) -> dict[str, Size]:
    """What makes a sample of each case: decided here, once for both trees."""
    found = {}
    with Worker(tree, stand) as worker:
        for case in cases:
            worker.begin(case)
            seconds = min(worker.sample(1, 1)[0] for _ in range(3))
            calls = math.ceil(BURST / seconds)
            found[case.name] = math.ceil(SAMPLE / (calls * seconds)), calls
    return found


def rounds(workers: Mapping[int, Worker], case: Case, size: Size, session: int) -> Floats:
    """Seconds per call ``(ROUNDS, 3)`` of workers 0, 1 and 2.

    A round in which a process was switched out is repeated, up to as many again; the ROUNDS with the fewest switches
    count. That selects by what the scheduler did, not by time, so it favours nobody.
    """
    for worker in workers.values():
        worker.begin(case)
    found: list[tuple[int, list[float]]] = []
    while sum(not switches for switches, _ in found) < ROUNDS and len(found) < 2 * ROUNDS:
        samples = {which: workers[which].sample(*size) for which in ORDERS[(len(found) + session) % 6]}
        found.append((max(switches for _, switches in samples.values()), [samples[which][0] for which in range(3)]))
    found.sort(key=lambda each: each[0])
    return np.array([times for _, times in found[:ROUNDS]])
