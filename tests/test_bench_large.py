"""``bench.large``: the jumps at tiles' borders, and the verdict over all sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from bench import large

if TYPE_CHECKING:
    from pathlib import Path

AFFINITIES = {"layer1": "Affinity()"}


def sized(side: int, seconds: float) -> dict[str, Any]:
    return {"affinities": AFFINITIES, "side": side, "seconds": seconds, "peak_gb": side / 4096}


def test_a_seam_is_seen_along_either_axis() -> None:
    smooth = np.random.default_rng(0).random((2, 64, 64)).cumsum(axis=1).cumsum(axis=2)
    step = np.where(np.arange(64) < 32, 0.0, 9 * np.abs(np.diff(smooth, axis=2)).mean())
    assert large.seam(smooth, 32) < 2
    assert large.seam(smooth + step, 32) > 5
    assert large.seam((smooth + step).transpose(0, 2, 1), 32) > 5


def test_the_verdict_takes_growth_from_the_least_to_the_largest_size() -> None:
    whole = {"affinities": AFFINITIES, "difference": 1e-5, "seam": 1.2, "seam_of_whole": 1.0}
    found = large.verdict([whole, sized(1024, 2.0), sized(2048, 7.0), sized(4096, 32.0)])
    assert (found["growth"], found["peak_gb"], found["difference"], found["seam"]) == (1.0, 1.0, 1e-5, 1.2)
    assert found["goals"] == large.GOALS
    kept = large.verdict([sized(1024, 2.0)])
    assert (kept["growth"], kept["seam"], list(kept["goals"])) == (None, None, ["peak_gb"])
    with pytest.raises(RuntimeError, match="large: 4096: out of memory, the system killed the process"):
        large.verdict(
            [whole, {"what": "large: 4096", "status": "out of memory", "why": "the system killed the process"}]
        )


def test_the_field_is_reproducible(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    for name in ("a.tif", "b.tif"):
        large.write_field(tmp_path / name, large.BLOCK)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    with Image.open(tmp_path / "a.tif") as image:
        assert image.size == (large.BLOCK, large.BLOCK)
