"""Runs that are killed: run again, the same command ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_runs import contents

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX: fork, and signals that can be handled"),
]

KILLS = 16
IMAGES = 14

# One process imports and builds everything, with one thread, and forks the runs that are killed: each at one of its
# file operations below the output folder, which Python announces (PEP 578) before it does them.
KILLER = f"""
import itertools, json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from ssa_fast import SSA, runs
from ssa_fast.models import zoo

folder, out, whole = map(Path, sys.argv[1:4])
classifier = zoo.load("demo")
ssa = SSA(classifier.model, size="stage")
operations, last, watcher = itertools.count(1), None, os.getpid()

def watch(event, arguments):
    if event in ("open", "os.mkdir", "os.rename", "os.remove") and os.getpid() == watcher:
        if str(arguments[0]).startswith((str(out), str(whole))) and next(operations) == last:
            os.killpg(0, signal.SIGKILL)

def run(where, workers):
    options = runs.RunOptions(batch=2, workers=workers)
    return runs.run([folder], ssa, where, classifier=classifier, options=options)

sys.addaudithook(watch)
assert run(whole, 0).exit_code == 0
total = next(operations)
kills = []
for attempt in range({KILLS}):
    number, again = divmod(attempt, 2)  # each folder's run is killed, killed again soon after its start, and finished
    here = out / str(number)
    child = os.fork()
    if child == 0:
        os.setsid()
        watcher, operations = os.getpid(), itertools.count(1)
        last = 1 + number % 3 * 5 if again else 1 + 2 * number * total // {KILLS}
        os._exit(run(here, number % 2).exit_code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (attempt, total, status)
    kills.append(len(list((here / "records").rglob("*.json"))))
    if again:
        assert run(here, 0).exit_code == 0
print(json.dumps(kills))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for n in range(IMAGES):
        size = (96, 80) if n % 3 else (64, 64)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"in/{n:02d}.png")
    return tmp_path / "in"


def test_killed_at_any_file_operation(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLER, str(folder), str(tmp_path / "out"), str(tmp_path / "whole")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    records = json.loads(ended.stdout)
    assert len(records) == KILLS
    assert len(set(records)) > 3, f"the moments were all alike: {records}"
    expected = contents(tmp_path / "whole")
    assert len([name for name in expected if name.startswith("cams/")]) == IMAGES
    for out in sorted((tmp_path / "out").iterdir()):
        assert contents(out) == expected, out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(folder: Path, tmp_path: Path, number: int, code: int) -> None:
    """After a signal, outputs in writing are completed; the exit code and the report name the signal."""
    out = tmp_path / "out"
    program = [sys.executable, str(Path(__file__).with_name("stopped_run.py")), signal.Signals(number).name, "0"]
    command = [*program, "run", str(folder), "--model", "demo", "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["stopped"] == ("interrupted" if number == signal.SIGINT else "ended by SIGTERM")
    names = {kind: {path.stem for path in (out / kind).iterdir()} for kind in ("cams", "masks", "overlays", "records")}
    assert names["cams"] == names["masks"] == names["overlays"] == names["records"]
    assert 1 <= len(names["cams"]) == report["done"] < IMAGES
    assert not list(out.rglob(".*"))
    assert json.loads((out / "run.json").read_text())["complete"] is False
