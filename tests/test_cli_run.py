"""``ssa-fast run`` on the terminal: failures, the progress bar of a resumed run, and the help."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from rich import progress as rich_progress
from typer.testing import CliRunner

from ssa_fast.cli.app import app
from ssa_fast.cli.run import PANELS, progress_callback
from ssa_fast.io.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path


def test_a_failure_is_printed_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "good.png")
    (tmp_path / "bad.png").touch()
    out = tmp_path / "out"
    paths = [str(tmp_path / name) for name in ("good.png", "bad.png", "missing.png")]
    result = CliRunner().invoke(app, ["run", *paths, "--model", "demo", "--out", str(out)])
    assert result.exit_code == 1, result.output
    assert result.stderr.count(f"failed: {tmp_path}/bad.png: the file is empty (0 bytes).") == 1
    assert result.stderr.count(f"failed: {tmp_path}/missing.png: there is no such file or folder.") == 1
    assert result.output.count("bad.png") == result.output.count("missing.png") == 1
    assert f"2 failed; all reasons are in {out / 'report.json'}" in result.stderr
    assert re.search(r"│ +1 │ +2 │", result.stdout)
    assert len(json.loads((out / "report.json").read_text())["failed"]) == 2


@pytest.mark.parametrize("first", [0, 3])
def test_the_rate_of_a_resumed_run_is_that_of_this_start(first: int) -> None:
    """Another process may report later that it has resumed images, too."""
    now = 0.0
    bar = rich_progress.Progress(get_time=lambda: now, disable=True)
    show = progress_callback(bar)
    show(Progress(first, 6000, resumed=first))
    for done in range(5000, 5011):
        now += 2.0
        show(Progress(done, 6000, name="a.png", resumed=5000))
    task = bar.tasks[0]
    assert (task.completed, task.total, task.fields["name"]) == (5010, 6000, "a.png")
    assert task.speed == pytest.approx(0.5)
    assert task.time_remaining == pytest.approx(990 / 0.5)


def test_help_groups_the_options_and_ends_with_three_examples() -> None:
    result = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "100", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    positions = [result.stdout.index(f"─ {panel} ─") for panel in PANELS]
    assert positions == sorted(positions)
    lines = [line.strip() for line in result.stdout.splitlines()]
    examples = lines[lines.index("Examples:") + 1 :]
    commands = [line for line in examples if line]
    assert [line.split(" ")[0] for line in commands] == ["ssa-fast", "ssa-fast", "torchrun"]
    assert all(line.endswith("--out out") and len(line) < 79 for line in commands), "one line each, at 80 columns too"
