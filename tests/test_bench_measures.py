"""The command that times the measures runs, and its baselines give the same figures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

import bench.__main__
from bench import measures

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("cv2", reason="OpenCV comes with the extra eval")


def test_every_measure_is_timed_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"SIDE": 24, "CELLS": (3, 24), "ROUNDS": 1, "THRESHOLDS": np.arange(0, 1, 0.04), "VOC": (6, 8)}
    for name, value in small.items():
        monkeypatch.setattr(measures, name, value)
    file = tmp_path / "measures.json"
    assert bench.__main__.main(["measures", "--save", str(file)]) == 0
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [len(row) for row in rows] == [5, 5, 3]
    assert all(row["measure"] in capsys.readouterr().out for row in rows[:1])


def test_a_baseline_that_disagrees_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "search_at_every_threshold", lambda cam: np.zeros(len(measures.THRESHOLDS)))
    with pytest.raises(AssertionError, match="not equal"):
        next(measures.rows())
