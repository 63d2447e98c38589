"""Test what ``python -m bench demo`` and ``throughput`` keep of ``ssa-fast demo`` and ``ssa-fast run``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import bench.__main__
from bench import throughput
from ssa_fast import demo

if TYPE_CHECKING:
    from pathlib import Path


def test_scores_and_times_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"seed": demo.Score(0.525, 0.654, 0.3, 0.4), "layer1": demo.Score(0.567, 0.623, 0.3, 0.4)}
    report = demo.DemoReport(7, 2024, 100, 3, scores, 0.998, 1.9, 1.3, 2, [], 60.0)
    monkeypatch.setattr(demo, "run", lambda out, images: report if images == 7 else None)
    assert bench.__main__.main(["demo", "--images", "7", "--save", str(tmp_path / "a.json")]) == 0
    saved = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert saved["rows"][:2] == [
        {"cam": "seed", "miou": 0.525, "box_accuracy": 0.654},
        {"cam": "stage layer1 alone (PCM)", "miou": 0.567, "box_accuracy": 0.623},
    ]
    assert saved["rows"][2]["polish_ms"] == 1.3
    assert saved["command"] == "python -m bench demo --images 7"
    assert '"miou": 0.525' in capsys.readouterr().out


def test_no_scenes_are_refused_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.__main__.main(["demo", "--images", "0"])
    assert "error: images: expected at least 1, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_are_timed_beside_the_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = throughput.rows("resnet18", count=2, rounds=2)
    assert [row["classes"] for row in found] == ["predicted", "top5"]
    for row in found:
        low, high = row["ratios"]
        assert 0 < low <= row["ratio"] <= high
        assert row["run_images_per_s"] > 0
        assert row["backbone_images_per_s"] == found[0]["backbone_images_per_s"]
    for ratio, code in ((0.9, 0), (0.89, 1)):
        monkeypatch.setattr(throughput, "rows", lambda ratio=ratio: [found[0], found[1] | {"ratio": ratio}])
        found[0]["ratio"] = 1.0
        assert throughput.main(["--save", str(tmp_path / "a.json")]) == code
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["rows"][1]["ratio"] == 0.89
    assert "| top5" in capsys.readouterr().out
