"""``bench.large``: the jumps at tiles' borders, and the verdict over all sizes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from bench import large
from bench.measure import Device

if TYPE_CHECKING:
    from pathlib import Path


def test_a_seam_is_seen_along_either_axis() -> None:
    smooth = np.random.default_rng(0).random((2, 64, 64)).cumsum(axis=1).cumsum(axis=2)
    step = np.where(np.arange(64) < 32, 0.0, 9 * np.abs(np.diff(smooth, axis=2)).mean())
    assert large.seam(smooth, 32) < 2
    assert large.seam(smooth + step, 32) > 5
    assert large.seam((smooth + step).transpose(0, 2, 1), 32) > 5


def sized(side: int, seconds: float) -> dict[str, Any]:
    return {"side": side, "seconds": seconds, "peak_gb": side / 4096}


WHOLE = {"difference": 1e-5, "seam": 1.2, "seam_of_whole": 1.0}
LOST = {"what": "large: 4096", "status": "out of memory", "why": "the system killed the process"}


def test_the_verdict_takes_growth_from_the_least_to_the_largest_size() -> None:
    found = large.verdict([WHOLE, sized(1024, 2.0), sized(2048, 7.0), sized(4096, 32.0)])
    assert found == {"peak_gb": 1.0, "difference": 1e-5, "seam": 1.2, "growth": pytest.approx(1.0)}
    assert large.verdict([sized(1024, 2.0), sized(2048, 32.0)]) == {"peak_gb": 0.5}, "pixels are kept: L² time"
    assert large.verdict([LOST]) == {}


@pytest.mark.parametrize(("seconds", "lost", "code"), [(32.0, [], 1), (30.0, [], 0), (30.0, [LOST], 1)])
def test_a_missed_goal_and_a_lost_process_end_with_exit_code_1(
    seconds: float,
    lost: list[Any],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = [WHOLE | {"seam": 1.0}, sized(1024, 1.5), sized(4096, seconds), *lost]
    monkeypatch.setattr(large, "rows", lambda *_: list(measured))
    assert large.main(["--save", str(tmp_path / "a.json")]) == code
    saved = json.loads((tmp_path / "a.json").read_text("utf-8"))["rows"]
    assert saved[:-1] == measured
    assert saved[-1]["goals"] == large.GOALS
    assert f"| auto     | growth     | {saved[-1]['growth']:.4g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--sizes", "1000"], "--sizes: expected multiples of 128, got 1000"), (["--affinity", "a"], "'a'")],
)
def test_what_cannot_be_measured_is_refused(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        large.main(given)
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_tiles_are_those_of_the_whole_image(tmp_path: Path) -> None:
    """In this process, on a small field: the rows have what the pages' tables take."""
    large.write_field(tmp_path / "image.tif", 512)
    given: Any = (Device(), tmp_path / "image.tif", "demo", "auto")
    (row,) = large.compare_with_whole(*given, tile=160)
    assert row["difference"] <= large.GOALS["difference"]
    assert row["seam"] == pytest.approx(row["seam_of_whole"], rel=1e-3)
    (row,) = large.polish_field(*given)
    assert {"side", "seconds", "peak_gb", "tile", "halo", "methods", "exact"} <= row.keys()
    assert {"gather", "apply", "write"} <= row["phases"].keys()


def test_the_field_is_reproducible(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        large.write_field(tmp_path / name, 512)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    with Image.open(tmp_path / "a.tif") as image:
        assert image.size == (512, 512)
