"""Runs that are killed: run again, the same command ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.test_runs import contents

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX: fork, and signals that can be handled")

KILLS = 25
IMAGES = 14

# One process imports and builds everything, with one thread, and forks the runs that are killed.
KILLER = f"""
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from ssa_fast import SSA, runs
from ssa_fast.models import zoo

folder, out, whole = map(Path, sys.argv[1:4])
classifier = zoo.load("demo")
ssa = SSA(classifier.model, size="stage")

def run(where, workers):
    options = runs.RunOptions(batch=2, workers=workers)
    return runs.run([folder], ssa, where, classifier=classifier, options=options)

start = time.perf_counter()
assert run(whole, 0).exit_code == 0
length = time.perf_counter() - start
dice, kills, attempt, counts = random.Random(7), 0, 0, []
while kills < {KILLS}:
    attempt += 1
    here = out / str(attempt)
    while True:
        child = os.fork()
        if child == 0:
            os.setsid()
            report = run(here, attempt % 2)
            os._exit(report.exit_code)
        time.sleep(dice.uniform(0, 1.1 * length))
        before = len(list((here / "records").rglob("*.json")))
        os.killpg(child, signal.SIGKILL) if os.waitpid(child, os.WNOHANG) == (0, 0) else None
        try:
            _, status = os.waitpid(child, 0)
        except ChildProcessError:
            break  # it had ended before the signal came
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        if not os.WIFSIGNALED(status):
            break
        kills += 1
        counts.append(before)
        if kills == {KILLS}:
            break
    assert run(here, 0).exit_code == 0
print(json.dumps({{"kills": kills, "records": counts, "runs": attempt}}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for n in range(IMAGES):
        size = (96, 80) if n % 3 else (64, 64)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"in/{n:02d}.png")
    return tmp_path / "in"


def test_killed_at_random_moments(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLER, str(folder), str(tmp_path / "out"), str(tmp_path / "whole")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["kills"] == KILLS
    assert len(set(result["records"])) > 3, f"the moments were all alike: {result['records']}"
    expected = contents(tmp_path / "whole")
    assert len([name for name in expected if name.startswith("cams/")]) == IMAGES
    for out in sorted((tmp_path / "out").iterdir()):
        assert contents(out) == expected, out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(folder: Path, tmp_path: Path, number: int, code: int) -> None:
    """After a signal, outputs in writing are completed; the exit code and the report name the signal."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ssa_fast", "run", str(folder), "--model", "demo", "--size", "448"]
    command += ["--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(out.rglob("records/*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    report = json.loads((out / "report.json").read_text())
    assert report["stopped"] == ("interrupted" if number == signal.SIGINT else "ended by SIGTERM")
    names = {kind: {path.stem for path in (out / kind).iterdir()} for kind in ("cams", "masks", "overlays", "records")}
    assert names["cams"] == names["masks"] == names["overlays"] == names["records"]
    assert 1 <= len(names["cams"]) == report["done"] < IMAGES
    assert not list(out.rglob(".*"))
    assert json.loads((out / "run.json").read_text())["complete"] is False
