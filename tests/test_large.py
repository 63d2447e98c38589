"""Images of any size: in tiles and from disk, the whole image's CAMs; and nothing half-done is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ssa_fast import SSA, Affinity
from ssa_fast.classifiers import IMAGENET_MEAN, IMAGENET_STD
from ssa_fast.large.windows import Window, needed, resample
from tests.networks import DeepHead, Pyramid

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

STEP = 1 / 255
"""Of the 8 bits in which CAMs are written; half of it is their rounding."""


def picture(H: int, W: int, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3): patches of colour with grain, so that every tile differs."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (-(-H // 48), -(-W // 48), 3)).repeat(48, 0).repeat(48, 1)[:H, :W]
    return np.clip(coarse + generator.integers(-40, 41, (H, W, 3)), 0, 255).astype(np.uint8)


def tensor_of(image: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels - mean) / std).to(dtype)


def pages(path: Path) -> torch.Tensor:
    """The written CAMs, (K, H, W) in [0, 1]."""
    with tifffile.TiffFile(path) as file:
        return torch.from_numpy(np.stack([page.asarray() for page in file.pages])).float() / 255


def assert_as_whole(ssa: SSA, image: np.ndarray, classes: Any, out: Path, **options: Any) -> Any:
    """Run both ways; the written CAMs differ by their rounding alone."""
    whole = ssa(tensor_of(image), classes)
    result = ssa.large(image, classes, out=out, **{"tile": 32, **options})
    assert result.classes == whole.classes[0].tolist()
    torch.testing.assert_close(result.logits, whole.logits[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.seed, whole.seed[0], rtol=1e-4, atol=1e-5)
    assert (pages(result.cams) - whole.cams[0]).abs().max() <= 0.5 * STEP + 1e-4
    assert result.exact
    return result


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("classes", [[3, 0], "predicted", "top2"])
def test_tiles_give_the_whole_images_cams(tmp_path: Path, align_corners: bool, classes: Any) -> None:
    ssa = SSA(Pyramid(), align_corners=align_corners)
    result = assert_as_whole(ssa, picture(217, 301), classes, tmp_path / "out.tif")
    assert set(result.paths.values()) == {"prototypes"}
    assert result.size == (217, 301)


def test_signed_stages_and_affinities_per_stage(tmp_path: Path) -> None:
    affinities = [Affinity(), Affinity(power=2.0), Affinity(center=True), Affinity(threshold=0.3)]
    ssa = SSA(Pyramid(), affinity=affinities)
    result = assert_as_whole(ssa, picture(131, 170), [1, 2], tmp_path / "out.tif")
    assert list(result.paths.values()) == ["prototypes", "keys", "keys", "keys"]


@pytest.mark.parametrize("fuse", ["max", "sum", "product"])
def test_fusions_and_weights(tmp_path: Path, fuse: Any) -> None:
    ssa = SSA(Pyramid(), fuse=fuse, weights=[1.0, 0.5, 2.0, 1.0])
    assert_as_whole(ssa, picture(97, 150), [1, 2], tmp_path / "out.tif")


def test_a_seed_of_ones_own_where_the_head_allows_none(tmp_path: Path) -> None:
    ssa, image = SSA(DeepHead()), picture(97, 150)
    with pytest.raises(ValueError, match="pass seed="):
        ssa.large(image, out=tmp_path / "out.tif")
    seed = torch.rand(2, 6, 9)
    from ssa_fast import polish

    whole = polish(seed[None], stage_maps(ssa, image), size=image.shape[:2])
    result = ssa.large(image, [1, 4], out=tmp_path / "out.tif", seed=seed, tile=32)
    low, high = whole.amin((2, 3), keepdim=True), whole.amax((2, 3), keepdim=True)
    assert (pages(result.cams) - ((whole - low) / (high - low))[0]).abs().max() <= 0.5 * STEP + 1e-4
    assert result.logits is None
    with pytest.raises(ValueError, match="classes: expected 2 indices"):
        ssa.large(image, [1], out=tmp_path / "other.tif", seed=seed)


def stage_maps(ssa: SSA, image: np.ndarray) -> dict[str, torch.Tensor]:
    return {
        name: maps
        for name, maps in ssa.anatomy.forward(ssa.model, tensor_of(image)).maps.items()
        if name in ssa.stage_names
    }


@settings(max_examples=60, deadline=None)
@given(data=st.data(), align_corners=st.booleans())
def test_a_window_of_a_resized_map_needs_only_its_part(data: st.DataObject, align_corners: bool) -> None:
    sides = st.integers(1, 40)
    source, target = data.draw(st.tuples(sides, sides)), data.draw(st.tuples(sides, sides))
    spans = [sorted(data.draw(st.lists(st.integers(0, t), min_size=2, max_size=2, unique=True))) for t in target]
    window = Window(*spans[0], *spans[1])
    maps = torch.rand(2, *source, dtype=torch.float64)
    whole = F.interpolate(maps[None], size=target, mode="bilinear", align_corners=align_corners)[0]
    held = needed(window, source, target, align_corners)
    y, x = held.inside(Window(0, source[0], 0, source[1]))
    part = resample(maps[:, y, x], held, source, window, target, align_corners)
    torch.testing.assert_close(part, whole[:, window.y0 : window.y1, window.x0 : window.x1], rtol=0, atol=1e-12)
