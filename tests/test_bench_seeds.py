"""Test ``python -m bench seeds`` on a small network: which seeds it times, and what it prints and saves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import bench.__main__
from bench import seeds

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # networks of torchvision are built


def test_rows_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """SqueezeNet's CAM is exact, AlexNet's head has none."""
    made = [seeds.rows(name, (1, 2), 64, 1) for name in ("squeezenet1_1", "alexnet")]
    assert [(row["seed"], row["K"]) for row in made[0]] == [
        (kind, K) for K in (1, 2) for kind in ("cam", "grad-cam", "layercam")
    ]
    assert {row["seed"] for row in made[1]} == {"grad-cam", "layercam"}
    assert all(row["forward_ms"] > 0 for rows in made for row in rows)
    monkeypatch.setattr(seeds, "NETWORKS", ("a",))
    monkeypatch.setattr(seeds, "rows", lambda name: made[0])
    assert bench.__main__.main(["seeds", "--save", str(tmp_path / "a.json")]) == 0
    printed, saved = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    assert saved["rows"] == made[0]
    assert printed.count("squeezenet1_1") == len(made[0])
    assert saved["machine"]["cpu"] in printed
