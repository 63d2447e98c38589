"""Runs by several processes: the outputs of a single one; a dead process is named, its share resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.test_runs import contents

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

MODULE = ("-m", "ssa_fast")
KILLS_RANK_2 = (str(Path(__file__).with_name("stopped_run.py")), "SIGKILL", "2")
IMAGES = 30  # in windows of 8: two processes have two each, three have 2, 1, 1
EMPTY = "the file is empty (0 bytes)."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for n in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{n:02d}.png")
    (folder / "bad.png").touch()
    return folder


@pytest.fixture(scope="module")
def single(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The outputs of a single process."""
    out = tmp_path_factory.mktemp("single")
    assert start(folder, out).wait(timeout=600) == 1, "one image is bad"
    return contents(out)


def start(
    folder: Path, out: Path, rank: int = 0, world: int = 1, port: int = 0, program: Sequence[str] = MODULE
) -> subprocess.Popen[str]:
    place = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, *program, "run", str(folder), "--model", "demo", "--size", "64", "--out", str(out)],
        env={**os.environ, **place, "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_all(folder: Path, out: Path, world: int, program: Sequence[str] = MODULE) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    return [start(folder, out, rank, world, port, program) for rank in range(world)]


def assert_resumed(folder: Path, out: Path, expected: dict[str, bytes]) -> None:
    """Run the rest in one process: the outputs are those of a single process."""
    again = start(folder, out)
    output = again.communicate(timeout=600)
    assert again.returncode == 1, output
    assert contents(out) == expected


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_images(world: int, folder: Path, single: dict[str, bytes], tmp_path: Path) -> None:
    ranks = start_all(folder, tmp_path, world)
    outputs = [rank.communicate(timeout=600) for rank in ranks]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [rank.returncode for rank in ranks] == [1] + [int(p["failed"] > 0) for p in report["processes"][1:]], outputs
    assert contents(tmp_path) == single
    assert report["done"] == IMAGES
    assert [failed["reason"] for failed in report["failed"]] == [EMPTY]
    assert [process["state"] for process in report["processes"]] == ["finished"] * world
    assert sum(process["done"] for process in report["processes"]) == IMAGES
    assert sum(process["failed"] for process in report["processes"]) == 1
    printed = ["".join(output).count("bad.png") for output in outputs]
    assert printed == [1] + [0] * (world - 1), "rank 0 prints for all, once"


def test_a_process_that_dies_is_named_and_made_up_for(folder: Path, single: dict[str, bytes], tmp_path: Path) -> None:
    ranks = start_all(folder, tmp_path, 3, KILLS_RANK_2)
    outputs = [rank.communicate(timeout=600) for rank in ranks]
    assert ranks[2].returncode == -signal.SIGKILL
    assert ranks[0].returncode == 1
    assert "process 2 on" in outputs[0][1]
    assert "died after" in outputs[0][1]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [process["state"] for process in report["processes"]] == ["finished", "finished", "died"]
    assert report["done"] < IMAGES
    assert_resumed(folder, tmp_path, single)


def test_images_that_changed_are_made_again_by_whoever_has_them(folder: Path, tmp_path: Path) -> None:
    """Rank 0 compares the records of all; see tests/inputs/test_identity.py for what is compared."""
    images, out = Path(shutil.copytree(folder, tmp_path / "in")), tmp_path / "out"
    assert start(images, out).wait(timeout=600) == 1
    for n in (1, 9, 17, 25):  # one in each window
        Image.fromarray(np.full((64, 64, 3), 7 * n, dtype=np.uint8)).save(images / f"{n:02d}.png")
    ranks = start_all(images, out, 2)
    outputs = [rank.communicate(timeout=600) for rank in ranks]
    report = json.loads((out / "report.json").read_text())
    assert (report["done"], report["resumed"], report["remade"]) == (IMAGES, IMAGES - 4, 4), outputs
    assert start(images, tmp_path / "fresh").wait(timeout=600) == 1
    assert contents(out) == contents(tmp_path / "fresh")


def test_what_rank_0_refuses_all_refuse(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text("precious")
    ranks = start_all(folder, tmp_path, 2)
    outputs = [rank.communicate(timeout=600) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], outputs
    assert all("boxes.json exists" in stderr for _, stderr in outputs)


def test_under_torchrun_a_process_that_dies_ends_all_well(
    folder: Path, single: dict[str, bytes], tmp_path: Path
) -> None:
    """torchrun ends the others with SIGTERM: what they had written is complete, and the dead one is named."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    command += [*KILLS_RANK_2, "run", str(folder), "--model", "demo", "--size", "64", "--out", str(tmp_path)]
    launcher = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert launcher.returncode == 1
    assert "process 2 on" in launcher.stderr
    assert "died after" in launcher.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["stopped"] == "ended by SIGTERM"
    assert report["processes"][2]["state"] == "died"
    assert not report["failed"] or [failed["reason"] for failed in report["failed"]] == [EMPTY]
    assert_resumed(folder, tmp_path, single)
