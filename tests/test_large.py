"""Large images: tiles give the whole image's CAMs, and failures leave no partial files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from ssa_fast import SSA, Affinity, PixelBank, localize, polish
from ssa_fast.large import LargeImageSSA, export, tiling
from ssa_fast.large.receptive_field import measure_receptive_field
from ssa_fast.large.resample import Window, resample, source_window
from ssa_fast.large.tiles import TileExtractor
from ssa_fast.localize import PostprocessOptions
from ssa_fast.models import inspect_model
from ssa_fast.models.zoo import IMAGENET_MEAN, IMAGENET_STD
from tests.networks import DeepHead, Pyramid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ssa_fast.io.progress import Progress
    from ssa_fast.large import LargeImageResult
    from ssa_fast.large.tiles import Tile, TileFeatures

    Run = Callable[..., LargeImageResult]

CONSTRUCTOR_OPTIONS = {"tile", "halo", "memory", "disk", "scratch", "stride", "mean", "std"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: networks this small are slower with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


STEP = 1 / 255
"""Step of the 8 bits in which CAMs are written; rounding errs by half of it."""


def random_image(H: int, W: int, seed: int = 0) -> np.ndarray:
    """Return uint8 (H, W, 3): patches of colour with noise, so that every tile differs."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (-(-H // 48), -(-W // 48), 3)).repeat(48, 0).repeat(48, 1)[:H, :W]
    return np.clip(coarse + generator.integers(-40, 41, (H, W, 3)), 0, 255).astype(np.uint8)


def normalized(image: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels - mean) / std).to(dtype)


def written_cams(path: Path) -> torch.Tensor:
    """Return the CAMs in a file, (K, H, W) in [0, 1]."""
    with tifffile.TiffFile(path) as file:
        return torch.from_numpy(np.stack([page.asarray() for page in file.pages])).float() / 255


@pytest.fixture
def large(tmp_path: Path) -> Run:
    """Run ``LargeImageSSA`` in tiles of 64 pixels, with outputs in ``tmp_path``."""

    def run(ssa: SSA, image: Any, classes: Any = None, *, out: str = "out.tif", **options: Any) -> LargeImageResult:
        made = {name: options.pop(name) for name in CONSTRUCTOR_OPTIONS & options.keys()}
        return LargeImageSSA(ssa, **{"tile": 64, **made})(image, classes, out=tmp_path / out, **options)

    return run


@pytest.fixture
def assert_as_whole(large: Run) -> Run:
    """Assert that tiles give the CAMs of a single pass, up to their 8 bits; return the result.

    In float64: the polished maps of random networks are nearly flat, and rescaling them magnifies rounding errors.
    """

    def run(ssa: SSA, image: np.ndarray, classes: Any, **options: Any) -> LargeImageResult:
        ssa.model.double()
        whole = ssa(normalized(image, torch.float64), classes)
        result = large(ssa, image, classes, **options)
        assert result.classes == whole.classes[0].tolist()
        torch.testing.assert_close(result.logits, whole.logits[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(result.seed, whole.seed[0], rtol=1e-5, atol=1e-6)
        assert (written_cams(result.cams) - whole.cams[0]).abs().max() <= 0.5 * STEP + 1e-5
        assert result.exact
        return result

    return run


@pytest.mark.slow
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("classes", [[3, 0], "predicted", "top2"])
def test_tiles_give_the_whole_images_cams(assert_as_whole: Run, align_corners: bool, classes: Any) -> None:
    ssa = SSA(Pyramid(), align_corners=align_corners)
    result = assert_as_whole(ssa, random_image(217, 301), classes)
    assert set(result.methods.values()) == {"prototypes"}
    assert result.size == (217, 301)


def test_signed_stages_and_affinities_per_stage(assert_as_whole: Run) -> None:
    affinities = [Affinity(), Affinity(power=2.0), Affinity(center=True), Affinity(phi="shifted", power=3.0)]
    ssa = SSA(Pyramid(), affinity=affinities)
    result = assert_as_whole(ssa, random_image(131, 170), [1, 2])
    assert list(result.methods.values()) == ["prototypes", "pixel_bank", "pixel_bank", "pixel_bank"]


class LinearBottlenecks(Pyramid):
    """Blocks that end in their sum, without a ReLU, as those of MobileNetV2: features of both signs."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.forward = lambda x, b=block: b.conv(y := F.relu(b.down(x))) + y


SHIFTED = {
    "shifted": Affinity(phi="shifted"),
    "half": Affinity(phi="shifted", shift=0.5),
    "centred": Affinity(phi="shifted", center=True),
    "mixed": [Affinity(phi="shifted", shift=shift, center=center) for shift in (1.0, 0.5) for center in (True, False)],
}


@pytest.mark.parametrize("disk", ["auto", 0])
@pytest.mark.parametrize("classes", [[1, 2], "top2"], ids=["listed", "top"])
@pytest.mark.parametrize("name", SHIFTED)
def test_signed_networks_are_polished_without_keeping_pixels(
    assert_as_whole: Run, monkeypatch: pytest.MonkeyPatch, name: str, classes: Any, disk: Any
) -> None:
    """One pass sums the centred stages' means, and the logits of the top classes, before anything is gathered."""

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("a PixelBank was made")

    monkeypatch.setattr(PixelBank, "__init__", refuse)
    ssa = SSA(LinearBottlenecks(), affinity=SHIFTED[name])
    assert "signed" in ssa.info.signs.values()
    result = assert_as_whole(ssa, random_image(131, 170), classes, disk=disk)
    assert set(result.methods.values()) == {"prototypes"}
    survey = ["logits"] if classes == "top2" else ["means"] if name in ("centred", "mixed") else []
    assert list(result.seconds) == ["prepare", *survey, "gather", "apply", "fuse", "write", "all"]
    assert result.passes == (2 + len(survey) if disk == 0 else 1)


@pytest.mark.slow
def test_a_large_image_of_mobilenet(assert_as_whole: Run) -> None:
    torch.manual_seed(0)
    ssa = SSA(torchvision.models.mobilenet_v2(weights=None).eval(), affinity=Affinity(phi="shifted"))
    result = assert_as_whole(ssa, random_image(150, 390), [1, 2], tile=128)
    assert set(result.methods.values()) == {"prototypes"}
    assert result.halo < 390


@pytest.mark.parametrize("fuse", ["max", "sum", "product"])
def test_fusions_and_weights(assert_as_whole: Run, fuse: Any) -> None:
    ssa = SSA(Pyramid(), fuse=fuse, weights=[1.0, 1.5, 2.0, 1.0])
    assert_as_whole(ssa, random_image(97, 150), [1, 2])


def test_a_given_seed_where_the_head_allows_none(large: Run) -> None:
    ssa, image = SSA(DeepHead()), random_image(97, 150)
    with pytest.raises(ValueError, match="pass seed="):
        large(ssa, image, tile="auto")
    seed = torch.rand(2, 6, 9)
    maps = ssa.info.forward(ssa.model, normalized(image)).maps
    stages = {name: maps[name] for name in ssa.stage_names}
    whole = polish(seed[None], stages, size=image.shape[:2], align_corners=ssa.align_corners)
    result = large(ssa, image, [1, 4], seed=seed)
    low, high = whole.amin((2, 3), keepdim=True), whole.amax((2, 3), keepdim=True)
    assert (written_cams(result.cams) - ((whole - low) / (high - low))[0]).abs().max() <= 0.5 * STEP + 1e-4
    assert result.logits is None
    with pytest.raises(ValueError, match="classes: expected 2 indices"):
        large(ssa, image, [1], out="other.tif", seed=seed)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), align_corners=st.booleans())
def test_a_window_of_a_resized_map_needs_only_its_part(data: st.DataObject, align_corners: bool) -> None:
    sides = st.integers(1, 40)
    source, target = data.draw(st.tuples(sides, sides)), data.draw(st.tuples(sides, sides))
    spans = [sorted(data.draw(st.lists(st.integers(0, t), min_size=2, max_size=2, unique=True))) for t in target]
    window = Window(*spans[0], *spans[1])
    maps = torch.rand(2, *source, dtype=torch.float64)
    whole = F.interpolate(maps[None], size=target, mode="bilinear", align_corners=align_corners)[0]
    held = source_window(window, source, target, align_corners)
    y, x = held.inside(Window(0, source[0], 0, source[1]))
    part = resample(maps[:, y, x], held, source, window, target, align_corners)
    torch.testing.assert_close(part, whole[:, window.y0 : window.y1, window.x0 : window.x1], rtol=0, atol=1e-12)


class RecordingReader:
    """A reader that records its windows' sizes, and raises at the n-th."""

    def __init__(self, image: np.ndarray, fail_at: int = -1) -> None:
        self.image, self.size, self.fail_at = image, image.shape[:2], fail_at
        self.windows: list[tuple[int, int]] = []

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        self.windows.append((y1 - y0, x1 - x0))
        if len(self.windows) == self.fail_at:
            raise OSError("disk failure")
        return self.image[y0:y1, x0:x1]


class SignedWhereDark(Pyramid):
    """Its first stage is non-negative on the test image, and signed on darker images."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        bright = self.blocks[0](x)
        shift = torch.where(x[:, :1, ::2, ::2] < -2.0, 1.0, 0.0)
        x = self.shifted(bright - 0.5 * shift * bright.detach().mean(1, keepdim=True))
        return torch.nn.Sequential(*self.blocks[1:])(x)

    def __init__(self) -> None:
        super().__init__()
        self.shifted = torch.nn.Identity()


def test_cached_and_recomputed_features_give_the_same(large: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ssa, image = SSA(Pyramid()), random_image(130, 150)
    proofs, extract = [], TileExtractor.extract

    def record(self: TileExtractor, tile: Tile) -> TileFeatures:
        features = extract(self, tile)
        proofs.append(features.nonnegative >= {*ssa.stage_names})
        return features

    monkeypatch.setattr(TileExtractor, "extract", record)
    results = [
        large(ssa, image, classes, out=f"{n}.tif", disk=disk)
        for n, (classes, disk) in enumerate([([3], "auto"), ([3], 0), ("top1", "10MB"), ("top1", 0)])
    ]
    assert [result.passes for result in results] == [1, 2, 1, 3]
    assert [result.cached for result in results] == [True, False, True, False]
    for kept, again in (results[:2], results[2:]):
        assert torch.equal(written_cams(kept.cams), written_cams(again.cams))
        assert torch.equal(kept.logits, again.logits)
    assert len(proofs) >= 8
    assert all(proofs), "every stage ends in a ReLU"


def test_a_stage_that_turns_out_signed_is_gathered_again(assert_as_whole: Run, tmp_path: Path) -> None:
    image = random_image(130, 150)
    image[100:120, 100:140] = 0  # in the last tiles
    stages = ["shifted", "blocks.1", "blocks.2", "blocks.3"]
    affinity = [
        Affinity(),
        Affinity(phi="shifted", center=True),
        Affinity(),
        Affinity(),
    ]  # its mean is still valid then
    ssa = SSA(SignedWhereDark(), stages=stages, affinity=affinity)
    if ssa.info.signs["shifted"] == "signed":  # noise may hold such pixels; a smooth test image would not
        ssa.info.signs["shifted"] = "non-negative"
    result = assert_as_whole(ssa, image, [1, 2], disk=0)
    assert result.methods == {"shifted": "pixel_bank", **dict.fromkeys(ssa.stage_names[1:], "prototypes")}
    assert 3 < result.passes <= 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_stride_is_reported_as_an_approximation(large: Run) -> None:
    ssa, image = SSA(Pyramid(), affinity=Affinity(power=2.0)), random_image(100, 120)
    result = large(ssa, image, [1], stride=2)
    assert not result.exact
    difference = (written_cams(result.cams) - ssa(normalized(image), [1]).cams[0]).abs()
    assert STEP < difference.max() < 0.5
    thirds = [large(ssa, image, [1], out=f"{tile}.tif", tile=tile, stride=3) for tile in (64, 128)]
    cams = [written_cams(each.cams) for each in thirds]
    assert (cams[0] - cams[1]).abs().max() < 1.01 * STEP  # the same pixels are stored, whatever the tiles
    assert large(SSA(Pyramid()), image, [1], out="sums.tif", stride=2).exact


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (65, 129), (16, 16)])
def test_images_smaller_than_the_halo_or_with_a_pixel_left_over(assert_as_whole: Run, size: tuple[int, int]) -> None:
    assert_as_whole(SSA(Pyramid()), random_image(*size), [1, 2])


def test_half_and_double_precision_and_training_mode(large: Run) -> None:
    image = random_image(100, 120)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float16, 2e-2)):
        ssa = SSA(model := Pyramid().to(dtype).train())
        result = large(ssa, image, [1], overwrite=True)
        whole = ssa(normalized(image, dtype), [1])
        assert (written_cams(result.cams) - whole.cams[0]).abs().max() <= 0.5 * STEP + tolerance
        assert all(module.training for module in model.modules())
        assert not any(module._forward_hooks for module in model.modules())


class Valid(Pyramid):
    """No convolution pads: maps are smaller than image size / stride."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.down.padding = block.conv.padding = (0, 0)
            block.forward = lambda x, b=block: F.relu(b.conv(F.relu(b.down(x))))


@pytest.mark.parametrize("align_corners", [True, False])
def test_networks_without_padding(large: Run, assert_as_whole: Run, align_corners: bool) -> None:
    assert_as_whole(SSA(Valid(), align_corners=align_corners), random_image(217, 240), [1, 2])
    with pytest.raises(ValueError, match="halo: expected more than"):
        large(SSA(Valid()), random_image(217, 240), [1], out="none.tif", halo=64, seed=torch.rand(1, 4, 4))


class Same(Pyramid):
    """TensorFlow's "SAME" padding: the amount in front depends on whether the size is odd."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            block.down.padding = (0, 0)
            odd = [side % 2 for side in x.shape[-2:]]
            x = block(F.pad(x, (odd[1], 1, odd[0], 1)))
        return x


def test_padding_that_depends_on_the_size_is_refused(large: Run, assert_as_whole: Run) -> None:
    with pytest.raises(ValueError, match="padding that depends on the size"):
        large(SSA(Same()), random_image(131, 150), [1])
    assert_as_whole(SSA(Same()), random_image(128, 160), [1])


class Squeezing(Pyramid):
    """Channels weighted by their mean over the image, as in squeeze-and-excitation."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = super().features(x)
        return x * x.mean((2, 3), keepdim=True).sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.last(self.features(x)).mean((2, 3)))

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Identity()


def test_global_layers_need_an_explicit_halo(large: Run) -> None:
    ssa, image = SSA(Squeezing(), stages=["blocks.1", "last"]), random_image(140, 150)
    with pytest.raises(ValueError, match='halo: expected pixels, got "auto"'):
        large(ssa, image, [1])
    assert not large(ssa, image, [1], halo=64).exact


@pytest.mark.slow
def test_no_window_is_larger_than_tile_and_halo(large: Run) -> None:
    reader = RecordingReader(random_image(300, 350))
    result = large(SSA(Pyramid()), reader, [1], tile=32)
    forwards = reader.windows[:-1]  # the last is the preview's, of 2048 pixels at most
    assert max(max(window) for window in forwards) <= 32 + 2 * result.halo < 300


def test_tiles_shrink_with_memory_and_too_little_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tile_of(side: int, memory: int) -> int:
        return tiling.make_tiling(
            ssa, field, (side, side), tile="auto", halo="auto", memory=memory, with_seed=True
        ).tile

    monkeypatch.setattr(tiling, "resident_bytes", lambda: 0)
    ssa = SSA(Pyramid())
    field = tiling.measure_field(ssa, True)
    small, medium = tile_of(9000, 10**8), tile_of(9000, 10**9)
    assert small < medium < 9000
    assert small % 16 == medium % 16 == 0
    least = r"memory: expected at least [\d,]+ bytes"
    with pytest.raises(ValueError, match=least) as error:
        tile_of(9000, 10**6)
    enough = int(str(error.value).split("least ")[1].split(" ")[0].replace(",", ""))
    assert tile_of(9000, enough) == 16
    assert tile_of(9, 10**6) == 16


def jumps(cams: torch.Tensor, tile: int) -> float:
    """Return the mean step across the tiles' borders, relative to the mean of all steps."""
    steps = [cams.diff(dim=axis).abs().mean(dim=(0, 3 - axis)) for axis in (1, 2)]
    at = torch.cat([step[tile - 1 :: tile] for step in steps]).mean()
    return float(at / torch.cat(steps).mean())


class Wide(Pyramid):
    """Its second map is scaled by its mean over 31x31 pixels, which at a border includes zeros."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks[1](self.blocks[0](x))
        return torch.nn.Sequential(*self.blocks[2:])(x * (0.2 + F.avg_pool2d(x, 31, 1, 15)))


@pytest.mark.slow
def test_no_seams(large: Run) -> None:
    ssa = SSA(Wide(), align_corners=False)
    ssa.model.double()
    coarse = torch.from_numpy(random_image(48 * 4, 48 * 5)[::48, ::48].copy()).permute(2, 0, 1)[None].float()
    smooth = F.interpolate(coarse, size=(192, 256), mode="bicubic")[0].clamp(0, 255)
    image = smooth.permute(1, 2, 0).to(torch.uint8).numpy()
    with_halo = large(ssa, image, [0], out="halo.tif", tile=32)
    without = large(ssa, image, [0], out="none.tif", tile=32, halo=0)
    whole = jumps(ssa(normalized(image, torch.float64), [0]).cams[0], 32)
    assert jumps(written_cams(with_halo.cams), 32) == pytest.approx(whole, rel=0.02)
    assert jumps(written_cams(without.cams), 32) > 1.04 * whole
    assert not without.exact


def test_the_background_of_auto_is_the_previews(large: Run) -> None:
    image, postprocess = random_image(200, 230), PostprocessOptions(background="auto", ignore=0.3)
    result = large(SSA(Pyramid()), image, [3, 1], postprocess=postprocess)
    cams = written_cams(result.cams)
    assert result.background == pytest.approx(float(localize.estimate_background(cams)), abs=1 / 255)
    assert result.background is not None
    assert result.background > 0.3
    expected = localize.masks(cams, background=result.background, ignore=0.3)[0]
    with tifffile.TiffFile(result.mask) as file:
        assert np.array_equal(file.pages[0].asarray(), expected)
    alpha = large(SSA(Pyramid()), image, [3, 1], out="alpha.tif", postprocess=PostprocessOptions(alpha=4))
    assert alpha.background is None


def test_masks_boxes_labels_names_and_metadata(large: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ssa, image = SSA(Pyramid()), random_image(200, 230)
    postprocess = PostprocessOptions(background=0.4, ignore=0.3, box_threshold=0.5, components="all")
    names = [f"thing {index}" for index in range(5)]
    options = {"postprocess": postprocess, "labels": range(10, 15), "names": names, "metadata": {"of": "a test"}}
    result = large(ssa, image, [3, 1], **options)
    assert (result.names, result.labels) == (["thing 3", "thing 1"], [13, 11])
    cams = written_cams(result.cams)
    expected = localize.masks(cams, postprocess)[0]
    with tifffile.TiffFile(result.mask) as file:
        mask = torch.from_numpy(file.pages[0].asarray())
    assert torch.equal(mask, torch.tensor([0, 13, 11, *[255] * 253], dtype=torch.uint8)[expected.long()])
    assert {0, 11, 13, 255} <= set(mask.unique().tolist())
    expected_boxes = localize.boxes(cams, postprocess)[0]
    for found, exact in zip(result.boxes, expected_boxes, strict=True):
        assert torch.equal(found, exact)
    assert result.box_precision == 1
    with tifffile.TiffFile(result.cams) as file:
        first, second = (json.loads(page.description) for page in file.pages)
    assert (first["of"], first["classes"], first["labels"]) == ("a test", [3, 1], [13, 11])
    assert (first["name"], second["name"]) == ("thing 3", "thing 1")

    monkeypatch.setattr(export, "BOX_SIDE", 64)
    monkeypatch.setattr(export, "STRIP", 1000)
    coarse = large(ssa, image, [3, 1], out="coarse.tif", **options)
    assert coarse.box_precision == 4
    assert coarse.mask.read_bytes() == result.mask.read_bytes()
    largest = [max(boxes.tolist(), key=lambda b: (b[2] - b[0]) * (b[3] - b[1])) for boxes in coarse.boxes]
    for (x1, y1, x2, y2), exact in zip(largest, expected_boxes, strict=True):
        assert any(x1 <= b[0] and y1 <= b[1] and x2 >= b[2] and y2 >= b[3] for b in exact.tolist())


def test_a_notebook_shows_the_preview(large: Run) -> None:
    result = replace(large(SSA(Pyramid()), random_image(50, 70), [1]), names=["<b>"], labels=[7], notes=("a & b",))
    page = result._repr_html_()
    assert page.startswith('<div style="line-height: 1.4"><div><b>LargeImageResult: 50 × 70 pixels</b></div>')
    assert page.count('<img src="data:image/jpeg;base64,') == 1
    assert "&lt;b&gt; (7)" in page
    assert "out.tif: exact" in page
    assert "note: a &amp; b" in page
    result.preview.unlink()
    assert "not shown: [Errno 2] No such file" in result._repr_html_()


def test_zarr(large: Run, tmp_path: Path) -> None:
    import zarr

    ssa, image = SSA(Pyramid()), random_image(100, 120)
    tiff = large(ssa, image, [3])
    store = large(ssa, image, [3], out="store.zarr")
    array = zarr.open(str(store.cams), mode="r")["0"]
    assert np.abs(np.asarray(array) / 255 - written_cams(tiff.cams).numpy()).max() < 1e-6
    assert store.mask.name == "store.mask.zarr"
    assert store.preview.read_bytes() == (tmp_path / "out.preview.png").read_bytes()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_existing_files_are_refused_or_replaced_and_the_image_never(large: Run, tmp_path: Path) -> None:
    ssa, image = SSA(Pyramid()), random_image(60, 70)
    (tmp_path / "out.mask.tif").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"out.mask.tif exists; pass overwrite=True"):
        large(ssa, image, [1], tile="auto")
    assert everything(tmp_path) == {"out.mask.tif": b"mine"}
    large(ssa, image, [1], overwrite=True, tile="auto")
    assert sorted(everything(tmp_path)) == ["out.mask.tif", "out.preview.png", "out.tif"]
    with pytest.raises(ValueError, match="another name than the image's"):
        large(ssa, tmp_path / "out.tif", [1], overwrite=True)
    with pytest.raises(ValueError, match=r"ends in .tif or .zarr"):
        large(ssa, image, [1], out="out.png")


@pytest.mark.parametrize("fail_at", [2, 5, 13])
def test_an_error_in_the_middle_leaves_nothing(large: Run, tmp_path: Path, fail_at: int) -> None:
    ssa = SSA(Pyramid(), affinity=Affinity(power=2.0))
    for name in ("out.tif", "out.mask.tif", "out.preview.png"):
        (tmp_path / name).write_text(f"the old {name}")
    before = everything(tmp_path)
    reader = RecordingReader(random_image(130, 150), fail_at)
    with pytest.raises(OSError, match="disk failure"):
        large(ssa, reader, [1], overwrite=True, disk=0)
    assert everything(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("phase", ["logits", "gather", "apply", "fuse", "write"])
def test_an_interrupt_in_any_phase_leaves_nothing(large: Run, tmp_path: Path, phase: str) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.phase == phase and progress.done == progress.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        large(SSA(Pyramid()), random_image(60, 70), "top2", on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_bars_and_callbacks_see_every_phase_to_its_end(large: Run, capsys: pytest.CaptureFixture[str]) -> None:
    last: dict[str, Progress] = {}
    large(
        SSA(Pyramid()),
        random_image(130, 150),
        "top2",
        progress=True,
        on_progress=lambda progress: last.update({progress.phase: progress}),
    )
    assert list(last) == ["logits", "gather", "apply", "fuse", "write"]
    assert all(progress.done == progress.total for progress in last.values())
    shown = capsys.readouterr().err
    assert all(phase in shown for phase in last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 17}, 'tile: expected "auto" or a multiple of 16'),
        ({"halo": -1}, "halo: expected"),
        ({"stride": 0}, "stride: expected"),
        ({"mean": (0.5,)}, "mean: expected three numbers"),
        ({"memory": "lots"}, "memory: expected bytes"),
        ({"disk": "lots"}, "disk: expected bytes"),
        ({"seed": torch.rand(2, 3)}, r"seed: expected \(K, h, w\)"),
        ({"seed": torch.full((1, 3, 3), float("nan"))}, "seed: expected finite"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    large: Run, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        large(SSA(Pyramid()), random_image(60, 70), [1], **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"flip": True}, "scales: expected SSA with"), ({"prior": "center"}, "prior: expected SSA with prior=None")],
)
def test_an_ssa_that_tiles_exclude_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LargeImageSSA(SSA(Pyramid(), **options))


def test_a_network_that_gives_nan_is_refused(large: Run, tmp_path: Path) -> None:
    ssa = SSA(Pyramid())
    ssa.model.fc.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="finite logits"):
        large(ssa, random_image(60, 70), [1], tile="auto")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_too_many_classes_and_wrong_names_or_labels(large: Run, tmp_path: Path) -> None:
    ssa = SSA(Pyramid(classes=300))
    with pytest.raises(ValueError, match="classes: expected at most 254"):
        large(ssa, random_image(60, 70), list(range(255)))
    with pytest.raises(ValueError, match="labels: expected numbers from 1 to 254"):
        large(ssa, random_image(60, 70), [1], labels=[255] * 300)
    with pytest.raises(ValueError, match="names: expected 300, one per model output, got 1"):
        large(ssa, random_image(60, 70), [1], names=["thing"])
    with pytest.raises(ValueError, match="background"):
        PostprocessOptions(background=2.0)
    assert list(tmp_path.iterdir()) == []
    many = large(ssa, random_image(60, 70), list(range(254)), tile="auto")
    assert len(many.boxes) == 254


def test_the_receptive_field_is_measured_once_per_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[set[str]] = []

    def measure(model: torch.nn.Module, sources: Any) -> Any:
        measured.append(set(sources))
        return measure_receptive_field(model, sources)

    monkeypatch.setattr(tiling, "measure_receptive_field", measure)
    polish_large = LargeImageSSA(ssa := SSA(Pyramid(), stages=["blocks.1"]), tile=64)
    seed = torch.rand(1, 4, 4)
    for n, given_seed in enumerate([None, None, seed, seed]):
        polish_large(random_image(60, 70 + n), [1], out=tmp_path / f"{n}.tif", seed=given_seed)
    assert measured == [{"blocks.1", ssa.seed_layer}, {"blocks.1"}]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "halo"), [("resnet18", 224), ("resnet50", 224)])
def test_receptive_field_of_residual_networks(name: str, halo: int) -> None:
    model = getattr(torchvision.models, name)(weights=None)
    field = measure_receptive_field(model, inspect_model(model, input_shape=64).stages)
    assert field.halo == halo
    assert field.strides == {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
