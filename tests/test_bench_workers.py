"""Test in which processes the benchmarks run, and how these measure: ``bench.workers`` and ``bench.measure``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import measure, workers
from bench.measure import Device, Times, time_interleaved
from bench.workers import Workers, job

HERE = __name__
FOREVER = 3600  # seconds that no test takes


def works(device, number=0):
    print("said")
    found = {"x": os.environ.get("X"), "path": os.environ.get("PATH"), "threads": torch.get_num_threads()}
    return [{"status": "ok", "number": number, "pid": os.getpid()} | found]


def dies(device):
    print("last words", flush=True)
    os._exit(7)


def breaks_the_context(device):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def sleeps(device):
    time.sleep(FOREVER)


def not_here(device):
    raise measure.NotHere("for a reason")


@pytest.mark.slow
def test_a_worker_is_kept_until_a_job_ends_it_or_is_fresh(capfd):
    environment = {"X": "1", "PATH": None}
    with Workers(environment=environment, threads=3) as kept, Workers(fresh=True) as fresh:
        first, second = (kept.do(job(f"{HERE}:works", "x", FOREVER, number=n))[0] for n in (1, 2))
        assert first["pid"] == second["pid"] != os.getpid()
        assert (first["x"], first["path"], first["threads"]) == ("1", None, 3)
        (row,) = kept.do(job(f"{HERE}:dies", "part: x", FOREVER))
        assert (row["part"], row["status"]) == ("part", "failed")
        assert row["why"] == "the process died with exit code 7: said said last words"
        third = kept.do(job(f"{HERE}:works", "x", FOREVER))[0]
        assert kept.do(job(f"{HERE}:breaks_the_context", "x", FOREVER))[0]["status"] == "failed"
        assert len({each["pid"] for each in (first, third, kept.do(job(f"{HERE}:works", "x", FOREVER))[0])}) == 3
        assert len({fresh.do(job(f"{HERE}:works", "x", FOREVER))[0]["pid"] for _ in range(2)}) == 2
        (row,) = kept.do(job(f"{HERE}:sleeps", "x", 0.05))
        assert (row["status"], row["why"]) == ("over budget", "the whole of it took longer than 0.05 s")
        (row,) = kept.do(job(f"{HERE}:not_here", "x", FOREVER))
        assert (row["status"], row["why"]) == ("skipped", "for a reason")
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_jobs_side_by_side_and_until_the_time_is_up():
    with Workers() as own:
        tasks = [job(f"{HERE}:works", "x", FOREVER, number=n) for n in range(5)]
        found = [rows[0] for _, rows in own.run(tasks, count=2)]
        assert sorted(row["number"] for row in found) == [*range(5)]
        assert len({row["pid"] for row in found}) == 2
        late = [rows[0]["status"] for _, rows in own.run(tasks, until=time.monotonic() - 1)]
        assert late == ["not reached"] * 5
        here = [rows[0]["pid"] for _, rows in own.run(tasks, count=0)]
        assert here == [os.getpid()] * 5
        cut = [rows[0]["why"] for _, rows in own.run([job(f"{HERE}:sleeps", "x", FOREVER)], until=time.monotonic() + 1)]
        assert cut == ["the time was up while it ran"]


def waits(device, at):
    Path(at, "begun").mkdir()
    time.sleep(FOREVER)


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["scratch/pymp-*", "begun"])  # the server's folder comes first of all
def test_ctrl_c_leaves_no_process_and_no_file(tmp_path, begun):
    code = (
        f"from tests.test_bench_workers import *; Workers().do(job(HERE + ':waits', '', FOREVER, at={str(tmp_path)!r}))"
    )
    (tmp_path / "scratch").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "scratch")}
    kept, root = subprocess.PIPE, Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=root, stdout=kept, stderr=kept)
    while process.poll() is None and not list(tmp_path.glob(begun)):  # a hang fails the test by its own limit
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()  # all its processes hold these pipes open, too
    assert errors.endswith(b"KeyboardInterrupt\n")
    assert not list((tmp_path / "scratch").iterdir())


def test_memory_is_what_the_process_grew_by(monkeypatch):
    readings = iter([{"VmRSS": 500}, {"VmHWM": 1700}, {"VmRSS": 500}, {"VmHWM": 400}])
    monkeypatch.setattr(measure, "_sizes", lambda path: next(readings))
    monkeypatch.setattr(measure.Path, "write_text", lambda path, text: None)
    assert Device().peak_bytes(lambda: "result") == ("result", 1200)
    assert Device().peak_bytes(lambda: "result") == ("result", 0)


def test_what_is_saved_is_whole_and_names_its_command(tmp_path):
    path = tmp_path / "new" / "file.json"
    command = measure.command_line(["large", "--save", str(path), "--sizes", "4096", f"--out={tmp_path}"])
    measure.save(path, [{"a": 1}], command=command, settings={"b": 2}, machine={"cpu": "x"}, ceilings={})
    found = json.loads(path.read_text())
    assert found == {
        "command": "python -m bench large --sizes 4096",
        "machine": {"cpu": "x"},
        "settings": {"b": 2},
        "ceilings": {},
        "rows": [{"a": 1}],
    }
    assert [each.name for each in path.parent.iterdir()] == ["file.json"]
    assert (Times().status, workers.job("x:y", "a: b", 1).part) == ("ok", "a")


def test_ratios_are_of_the_rounds_of_both():
    assert measure.ratios([2.0, 4.0, 6.0], [1.0, 1.0])["p50"] == 3.0
    assert measure.ratios([], [1.0]) is None
    assert measure.percentiles(list(range(101)), 1) == {"p20": 20.0, "p50": 50.0, "p80": 80.0}


class Clock(Device):
    """A device on which calls take as long as they say."""

    def seconds(self, call, pause=0.0, cold=True):
        return call() if cold else call() / 2


def test_rounds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def takes(seconds):
        def call():
            now[0] += seconds
            return seconds

        return call

    calls = {"quick": takes(1e-3), "slow": takes(2.0), "once": takes(11.0), "broken": lambda: 1 / 0}
    found = time_interleaved(Clock(), calls, cold=5, warm=15, least=3, budget=12.0)
    assert [len(found[name].warm) for name in calls] == [15, 3, 1, 0]
    assert [len(found[name].cold) for name in calls] == [5, 3, 1, 0]
    assert found["quick"].warm[0] == found["quick"].cold[0] / 2
    assert (found["slow"].status, found["broken"].status) == ("ok", "failed")
    assert found["broken"].why == "ZeroDivisionError: division by zero"
