"""Heading 17, a killed run leaves its readers behind: whatever starts processes, and however it ends.

The class: processes that are started (loader workers by fork, spawn or fork server; ranks by torchrun; forks and
programs of the benchmarks) and what these inherit (pipes, standard output), when the process that started them is
killed alone, at any moment. A pipe that all of them inherited tells, without a clock, when the last one has ended: only
then its reading end is at its end.

The kills of ``test_runs_resume.py`` did not show it, since they are of the whole process group, workers included, and
since the images there are so small that the results read ahead fit in a pipe: no worker was blocked in writing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssa_fast.runs.distributed import _is_running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX: fork, and signals that can be handled"),
]

ROOT = Path(__file__).parents[2]
KILLS = 6
IMAGES = 8
LIMIT_S = 30  # nothing takes so long unless the test fails

# Forks the runs that kill themselves at a random one of the events that Python announces (PEP 578): imports, files,
# sockets, locks of all kinds. In every third a bystander holds what the run's pipes keep open.
KILLER = f"""
import itertools, json, os, random, select, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from ssa_fast import SSA, runs
from ssa_fast.models import zoo

folder, out = map(Path, sys.argv[1:])
classifier = zoo.load("demo")
ssa = SSA(classifier.model, size="stage")
events, last, watched = itertools.count(1), None, os.getpid()

def watch(event, arguments):
    if os.getpid() == watched and next(events) == last:
        os.kill(watched, signal.SIGKILL)

def run(where, workers, on_progress=None):
    options = runs.RunOptions(batch=2, workers=workers)
    return runs.run([folder], ssa, where, classifier=classifier, options=options, on_progress=on_progress)

sys.addaudithook(watch)
for once in ("imports", "counts"):
    events = itertools.count(1)
    assert run(out / once, 1).exit_code == 0
total, rng, unlike = next(events), random.Random(0), []
for attempt in range({KILLS}):
    held, holding = os.pipe()
    here, last = out / str(attempt), rng.randrange(1, total * 3 // 4)
    child = os.fork()
    if child == 0:
        os.close(held)
        os.setsid()
        watched, events = os.getpid(), itertools.count(1)

        def fork_a_bystander(progress):
            if attempt % 3 == 0 and progress.done == 0 and os.fork() == 0:
                for each in (1, 2, holding):
                    os.close(each)
                while os.path.exists(out):
                    time.sleep(0.1)
                os._exit(0)

        os._exit(run(here, 1 + attempt % 3, fork_a_bystander).exit_code)
    os.close(holding)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (attempt, total, last, status)
    if not select.select([held], [], [], {LIMIT_S})[0]:
        os.killpg(child, signal.SIGKILL)
        sys.exit(f"kill {{attempt}}, at event {{last}}: a process is left")
    assert os.read(held, 1) == b""
    os.close(held)
    unlike.append(len(list((here / "records").rglob("*.json"))))
print(json.dumps(unlike))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 270 kB: one read ahead is more than a pipe takes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for n in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(folder / f"{n:02d}.png")
    return folder


def test_killed_at_random_moments(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLER, str(folder), str(out)]
    killer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    out.rename(tmp_path / "done")  # ends the bystanders
    assert killer.returncode == 0, killer.stderr
    records = json.loads(killer.stdout)
    assert len(set(records)) > 1, f"the moments were all alike: {records}"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_killed_on_the_command_line(folder: Path, tmp_path: Path, method: str) -> None:
    """However workers are started, none of them keeps ``ssa-fast run | tee`` waiting."""
    code = f"import multiprocessing; multiprocessing.set_start_method({method!r}); import ssa_fast.cli as c; c.main()"
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, "run", str(folder), "--model", "demo", "--out", str(out), "--workers", "2"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert_ends_when_killed(run, out)


@pytest.mark.distributed
def test_torchrun_is_killed(folder: Path, tmp_path: Path) -> None:
    """Its ranks end as if torchrun had ended them: what they had begun is complete, and the report says so."""
    waits = (str(ROOT / "tests/stopped_run.py"), "SIGTERM", "2")  # no rank is 2, so each waits at its fourth batch
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *waits]
    command += ["run", str(folder), "--model", "demo", "--out", str(tmp_path), "--workers", "1"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert_ends_when_killed(run, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["stopped"] == "ended by SIGTERM"


def assert_ends_when_killed(run: subprocess.Popen[bytes], out: Path) -> None:
    """Kill a run once it has written something; assert that its output ends, which all its processes share."""
    assert run.stdout is not None
    end = time.monotonic() + 10 * LIMIT_S
    try:
        while run.poll() is None and not list(out.glob("records/*.json")) and time.monotonic() < end:
            time.sleep(0.05)
        assert run.poll() is None, run.stdout.read().decode()
        run.kill()
        run.wait()
        while select.select([run.stdout], [], [], LIMIT_S)[0]:
            if not os.read(run.stdout.fileno(), 1 << 16):
                return
        raise AssertionError(f"{LIMIT_S} s after the kill, a process of the run is left")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


BENCH = {
    "a compiler's process": "from bench.aot_compile import forked; forked(1).submit(wait).result()",
    "a fresh process": "from bench.workers import Workers; Workers(fresh=True).do(job)",
    "a tree's worker": "from bench.workers import Workers; Workers(tree=root).do(job)",
}
PREPARED = """
from tests.inputs.test_orphans import ROOT as root, wait
from bench.workers import job
job = job("tests.inputs.test_orphans:wait", "waits", 3600)
"""


def wait(*_: object) -> None:
    """Leave this process's number where the test looks for it, and do not end."""
    unfinished = Path(os.environ["ORPHAN"] + ".tmp")
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(os.environ["ORPHAN"])
    time.sleep(3600)


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks that start processes need Linux's /proc")
@pytest.mark.parametrize("what", BENCH)
def test_a_benchmark_is_killed(tmp_path: Path, what: str) -> None:
    number = tmp_path / "number"
    command = [sys.executable, "-c", PREPARED + BENCH[what]]
    environment = {**os.environ, "ORPHAN": str(number)}
    bench = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    assert bench.stderr is not None
    end = time.monotonic() + 10 * LIMIT_S
    while bench.poll() is None and not number.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert bench.poll() is None, bench.stderr.read().decode()
    bench.kill()
    bench.wait()
    child, end = int(number.read_text()), time.monotonic() + LIMIT_S
    while _is_running(child) and time.monotonic() < end:
        time.sleep(0.05)
    if _is_running(child):
        os.kill(child, signal.SIGKILL)
        raise AssertionError(f"{LIMIT_S} s after the kill, {what} is left")
