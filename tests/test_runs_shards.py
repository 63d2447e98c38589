"""Runs by several processes: the same bytes as by one, and a process that dies is named and made up for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.test_runs_resume import contents

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

KILLS_RANK_2 = (str(Path(__file__).with_name("stopped_run.py")), "SIGKILL", "2")
PICTURES = 30  # in windows of 8: two processes have two each, three have 2, 1, 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for n in range(PICTURES):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{n:02d}.png")
    (folder / "bad.png").touch()
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone")
    assert start(folder, out).wait(timeout=600) == 1, "one picture is bad"
    return contents(out)


def start(
    folder: Path, out: Path, rank: int = 0, world: int = 1, port: int = 0, program: Sequence[str] = ("-m", "ssa_fast")
) -> subprocess.Popen[str]:
    command = [sys.executable, *program, "run", str(folder), "--model", "demo", "--size", "64"]
    place = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [*command, "--out", str(out)],
        env={**os.environ, **place, "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_pictures(world: int, folder: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    port = free_port()
    ranks = [start(folder, tmp_path, rank, world, port) for rank in range(world)]
    said = [rank.communicate(timeout=600) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1] + [int("bad.png" in out) for out, _ in said[1:]], said
    assert contents(tmp_path) == alone
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["done"] == PICTURES
    assert [failed["reason"] for failed in told["failed"]] == ["the file is empty (0 bytes)."]
    assert [process["state"] for process in told["processes"]] == ["finished"] * world
    assert sum(process["done"] for process in told["processes"]) == PICTURES
    assert "bad.png" in said[0][0], "rank 0 reports for all"


def test_a_process_that_dies_is_named_and_made_up_for(folder: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    port = free_port()
    ranks = [start(folder, tmp_path, rank, 3, port, program=KILLS_RANK_2) for rank in range(3)]
    said = [rank.communicate(timeout=600) for rank in ranks]
    assert ranks[2].returncode == -signal.SIGKILL
    assert ranks[0].returncode == 1
    assert "process 2 on" in said[0][1]
    assert "died after" in said[0][1]
    told = json.loads((tmp_path / "report.json").read_text())
    assert [process["state"] for process in told["processes"]] == ["finished", "finished", "died"]
    assert told["done"] < PICTURES
    again = start(folder, tmp_path)
    said_again = again.communicate(timeout=600)
    assert again.returncode == 1, said_again
    assert contents(tmp_path) == alone


def test_what_rank_0_refuses_all_refuse(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text("precious")
    port = free_port()
    ranks = [start(folder, tmp_path, rank, 2, port) for rank in range(2)]
    said = [rank.communicate(timeout=600) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], said
    assert all("boxes.json exists" in err for _, err in said)


def test_under_torchrun_a_process_that_dies_ends_all_well(
    folder: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """torchrun ends the others with SIGTERM: what they had written is complete, and the dead one is named."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    command += [*KILLS_RANK_2, "run", str(folder), "--model", "demo", "--size", "64", "--out", str(tmp_path)]
    launched = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    stderr = launched.stderr
    assert launched.returncode == 1
    assert "process 2 on" in stderr
    assert "died after" in stderr
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["stopped"] == "ended by SIGTERM"
    assert told["processes"][2]["state"] == "died"
    assert not told["failed"] or [failed["reason"] for failed in told["failed"]] == ["the file is empty (0 bytes)."]
    again = start(folder, tmp_path)
    said_again = again.communicate(timeout=600)
    assert again.returncode == 1, said_again
    assert contents(tmp_path) == alone
