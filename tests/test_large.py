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
from ssa_fast.large.resample import Window, needed, resample
from ssa_fast.models.zoo import IMAGENET_MEAN, IMAGENET_STD
from tests.networks import DeepHead, Pyramid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower in several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    """Run both ways; the written CAMs differ by their rounding alone.

    In float64: the polished maps of random networks are nearly flat, and rescaling them enlarges float32's rounding.
    """
    ssa.model.double()
    whole = ssa(tensor_of(image, torch.float64), classes)
    result = ssa.large(image, classes, out=out, **{"tile": 64, **options})
    assert result.classes == whole.classes[0].tolist()
    torch.testing.assert_close(result.logits, whole.logits[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.seed, whole.seed[0], rtol=1e-5, atol=1e-6)
    assert (pages(result.cams) - whole.cams[0]).abs().max() <= 0.5 * STEP + 1e-5
    assert result.exact
    return result


@pytest.mark.slow
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
    ssa = SSA(Pyramid(), fuse=fuse, weights=[1.0, 1.5, 2.0, 1.0])
    assert_as_whole(ssa, picture(97, 150), [1, 2], tmp_path / "out.tif")


def test_a_seed_of_ones_own_where_the_head_allows_none(tmp_path: Path) -> None:
    ssa, image = SSA(DeepHead()), picture(97, 150)
    with pytest.raises(ValueError, match="pass seed="):
        ssa.large(image, out=tmp_path / "out.tif")
    seed = torch.rand(2, 6, 9)
    from ssa_fast import polish

    whole = polish(seed[None], stage_maps(ssa, image), size=image.shape[:2])
    result = ssa.large(image, [1, 4], out=tmp_path / "out.tif", seed=seed, tile=64)
    low, high = whole.amin((2, 3), keepdim=True), whole.amax((2, 3), keepdim=True)
    assert (pages(result.cams) - ((whole - low) / (high - low))[0]).abs().max() <= 0.5 * STEP + 1e-4
    assert result.logits is None
    with pytest.raises(ValueError, match="classes: expected 2 indices"):
        ssa.large(image, [1], out=tmp_path / "other.tif", seed=seed)


def stage_maps(ssa: SSA, image: np.ndarray) -> dict[str, torch.Tensor]:
    return {
        name: maps
        for name, maps in ssa.info.forward(ssa.model, tensor_of(image)).maps.items()
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


class Counting:
    """A reader that notes the largest window, and raises at the n-th."""

    def __init__(self, image: np.ndarray, fail_at: int = -1) -> None:
        self.image, self.size, self.fail_at = image, image.shape[:2], fail_at
        self.windows: list[tuple[int, int]] = []

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        self.windows.append((y1 - y0, x1 - x0))
        if len(self.windows) == self.fail_at:
            raise OSError("the disk went away")
        return self.image[y0:y1, x0:x1]


class Turning(Pyramid):
    """Its first stage is non-negative on the trial image, and signed on images that are darker than it."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        bright = self.blocks[0](x)
        shift = torch.where(x[:, :1, ::2, ::2] < -2.0, 1.0, 0.0)
        x = self.turned(bright - 0.5 * shift * bright.detach().mean(1, keepdim=True))
        for block in list(self.blocks)[1:]:
            x = block(x)
        return x

    def __init__(self) -> None:
        super().__init__()
        self.turned = torch.nn.Identity()


def test_kept_and_recomputed_features_give_the_same(tmp_path: Path) -> None:
    ssa, image = SSA(Pyramid()), picture(130, 150)
    results = [
        ssa.large(image, classes, out=tmp_path / f"{n}.tif", tile=64, disk=disk)
        for n, (classes, disk) in enumerate([([3], "auto"), ([3], 0), ("top1", "10MB"), ("top1", 0)])
    ]
    assert [result.passes for result in results] == [1, 2, 1, 3]
    assert [result.cached for result in results] == [True, False, True, False]
    for kept, again in (results[:2], results[2:]):
        assert torch.equal(pages(kept.cams), pages(again.cams))
        assert torch.equal(kept.logits, again.logits)


def test_a_stage_that_turns_out_signed_is_gathered_again(tmp_path: Path) -> None:
    image = picture(130, 150)
    image[100:120, 100:140] = 0  # in the last tiles
    ssa = SSA(Turning(), stages=["turned", "blocks.1", "blocks.2", "blocks.3"])
    if ssa.info.signs["turned"] == "signed":  # noise may hold such pixels: say what a calm trial image would
        ssa.info.signs["turned"] = "non-negative"
    result = assert_as_whole(ssa, image, [1, 2], tmp_path / "out.tif", disk=0)
    assert result.paths == {"turned": "keys", **dict.fromkeys(ssa.stage_names[1:], "prototypes")}
    assert 2 < result.passes <= 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_strided_keys_are_told_to_be_an_approximation(tmp_path: Path) -> None:
    ssa, image = SSA(Pyramid(), affinity=Affinity(power=2.0)), picture(100, 120)
    result = ssa.large(image, [1], out=tmp_path / "out.tif", tile=64, key_stride=2)
    assert not result.exact
    difference = (pages(result.cams) - ssa(tensor_of(image), [1]).cams[0]).abs()
    assert STEP < difference.max() < 0.5
    thirds = [ssa.large(image, [1], out=tmp_path / f"{tile}.tif", tile=tile, key_stride=3) for tile in (64, 128)]
    cams = [pages(each.cams) for each in thirds]
    assert (cams[0] - cams[1]).abs().max() < 1.01 * STEP  # the same pixels are kept, however it is cut
    assert SSA(Pyramid()).large(image, [1], out=tmp_path / "sums.tif", tile=64, key_stride=2).exact


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (65, 129), (16, 16)])
def test_images_smaller_than_the_halo_or_with_a_pixel_left_over(tmp_path: Path, size: tuple[int, int]) -> None:
    assert_as_whole(SSA(Pyramid()), picture(*size), [1, 2], tmp_path / "out.tif")


def test_half_and_double_precision_and_training_mode(tmp_path: Path) -> None:
    image = picture(100, 120)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float16, 2e-2)):
        model = Pyramid().to(dtype).train()
        ssa = SSA(model)
        result = ssa.large(image, [1], out=tmp_path / "out.tif", tile=64, overwrite=True)
        whole = ssa(tensor_of(image, dtype), [1])
        assert (pages(result.cams) - whole.cams[0]).abs().max() <= 0.5 * STEP + tolerance
        assert all(module.training for module in model.modules())
        assert not any(module._forward_hooks for module in model.modules())


class Valid(Pyramid):
    """No convolution pads: maps are smaller than their stride says, the coarser the more."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.down.padding = block.conv.padding = (0, 0)
            block.forward = lambda x, b=block: F.relu(b.conv(F.relu(b.down(x))))


@pytest.mark.parametrize("align_corners", [True, False])
def test_networks_that_pad_nothing(tmp_path: Path, align_corners: bool) -> None:
    assert_as_whole(SSA(Valid(), align_corners=align_corners), picture(217, 240), [1, 2], tmp_path / "out.tif")
    with pytest.raises(ValueError, match="halo: expected more than"):
        SSA(Valid()).large(
            picture(217, 240), [1], out=tmp_path / "none.tif", tile=64, halo=64, seed=torch.rand(1, 4, 4)
        )


class Same(Pyramid):
    """TensorFlow's "SAME": what is padded in front depends on whether the size is odd."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            block.down.padding = (0, 0)
            odd = [side % 2 for side in x.shape[-2:]]
            x = block(F.pad(x, (odd[1], 1, odd[0], 1)))
        return x


def test_padding_that_depends_on_the_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="padding that depends on the size"):
        SSA(Same()).large(picture(131, 150), [1], out=tmp_path / "out.tif", tile=64)
    assert_as_whole(SSA(Same()), picture(128, 160), [1], tmp_path / "out.tif")


class Squeezing(Pyramid):
    """Channels weighed by their mean over the image."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = super().features(x)
        return x * x.mean((2, 3), keepdim=True).sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.last(self.features(x)).mean((2, 3)))

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Identity()


def test_networks_that_feel_everything_need_a_halo_told(tmp_path: Path) -> None:
    ssa, image = SSA(Squeezing(), stages=["blocks.1", "last"]), picture(140, 150)
    with pytest.raises(ValueError, match='halo: expected pixels, got "auto"'):
        ssa.large(image, [1], out=tmp_path / "out.tif", tile=64)
    assert not ssa.large(image, [1], out=tmp_path / "out.tif", tile=64, halo=64).exact


def test_no_window_is_larger_than_tile_and_halo(tmp_path: Path) -> None:
    reader = Counting(picture(300, 350))
    result = SSA(Pyramid()).large(reader, [1], out=tmp_path / "out.tif", tile=32)
    forwards = reader.windows[:-1]  # the last is the preview's, of 2048 pixels at most
    assert max(max(window) for window in forwards) <= 32 + 2 * result.halo < 300


def test_tiles_shrink_with_memory_and_too_little_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssa_fast.large import tiling

    monkeypatch.setattr(tiling, "resident", lambda: 0)
    ssa = SSA(Pyramid())
    cuts = [tiling.cut(ssa, (9000, 9000), tile="auto", halo="auto", memory=m, with_seed=True) for m in (10**8, 10**9)]
    assert cuts[0].tile < cuts[1].tile < 9000
    assert all(cut.tile % 16 == 0 for cut in cuts)
    least = r"memory: expected at least [\d,]+ bytes"
    with pytest.raises(ValueError, match=least) as error:
        tiling.cut(ssa, (9000, 9000), tile="auto", halo="auto", memory=10**6, with_seed=True)
    enough = int(str(error.value).split("least ")[1].split(" ")[0].replace(",", ""))
    assert tiling.cut(ssa, (9000, 9000), tile="auto", halo="auto", memory=enough, with_seed=True).tile == 16
    assert tiling.cut(ssa, (9, 9), tile="auto", halo="auto", memory=10**6, with_seed=True).tile == 16


def jumps(cams: torch.Tensor, tile: int) -> float:
    """Mean step across the tiles' borders, of that elsewhere."""
    steps = [cams.diff(dim=axis).abs().mean(dim=(0, 3 - axis)) for axis in (1, 2)]
    at = torch.cat([step[tile - 1 :: tile] for step in steps]).mean()
    return float(at / torch.cat(steps).mean())


class Wide(Pyramid):
    """Darker by the mean of 31x31 cells of its second map, which at a border holds zeros."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks[1](self.blocks[0](x))
        x = x * (0.2 + F.avg_pool2d(x, 31, 1, 15))
        for block in list(self.blocks)[2:]:
            x = block(x)
        return x


def test_no_seams(tmp_path: Path) -> None:
    ssa = SSA(Wide(), align_corners=False)
    ssa.model.double()
    coarse = torch.from_numpy(picture(48 * 4, 48 * 5)[::48, ::48].copy()).permute(2, 0, 1)[None].float()
    smooth = F.interpolate(coarse, size=(192, 256), mode="bicubic")[0].clamp(0, 255)
    image = smooth.permute(1, 2, 0).to(torch.uint8).numpy()
    with_halo = ssa.large(image, [0], out=tmp_path / "halo.tif", tile=32)
    without = ssa.large(image, [0], out=tmp_path / "none.tif", tile=32, halo=0)
    whole = jumps(ssa(tensor_of(image, torch.float64), [0]).cams[0], 32)
    assert jumps(pages(with_halo.cams), 32) == pytest.approx(whole, rel=0.02)
    assert jumps(pages(without.cams), 32) > 1.04 * whole
    assert not without.exact


def test_masks_boxes_labels_names_and_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    from ssa_fast import localize
    from ssa_fast.large import export

    ssa, image = SSA(Pyramid()), picture(200, 230)
    look = export.Look(
        background=0.4,
        ignore=0.3,
        box_threshold=0.5,
        components="all",
        labels=lambda classes: [index + 10 for index in classes],
        names=lambda classes: [f"thing {index}" for index in classes],
        metadata={"of": "a test"},
    )
    result = ssa.large(image, [3, 1], out=tmp_path / "out.tif", tile=64, look=look)
    cams = pages(result.cams)
    expected = localize.masks(cams, background=0.4, ignore=0.3)[0]
    with tifffile.TiffFile(result.mask) as file:
        mask = torch.from_numpy(file.pages[0].asarray())
    table = torch.arange(256, dtype=torch.uint8)
    table[1:3] = torch.tensor([13, 11], dtype=torch.uint8)
    assert torch.equal(mask, table[expected.long()])
    assert {0, 11, 13, 255} <= set(mask.unique().tolist())
    for found, exact in zip(result.boxes, localize.boxes(cams, box_threshold=0.5, components="all")[0], strict=True):
        assert torch.equal(found, exact)
    assert result.box_precision == 1
    with tifffile.TiffFile(result.cams) as file:
        first, second = (json.loads(page.description) for page in file.pages)
    assert (first["of"], first["classes"], first["labels"]) == ("a test", [3, 1], [13, 11])
    assert (first["name"], second["name"]) == ("thing 3", "thing 1")

    monkeypatch.setattr(export, "BOX_SIDE", 64)
    monkeypatch.setattr(export, "STRIP", 1000)
    coarse = ssa.large(image, [3, 1], out=tmp_path / "coarse.tif", tile=64, look=look)
    assert coarse.box_precision == 4
    assert coarse.mask.read_bytes() == result.mask.read_bytes()
    largest = [max(boxes.tolist(), key=lambda b: (b[2] - b[0]) * (b[3] - b[1])) for boxes in coarse.boxes]
    for box, exact in zip(largest, localize.boxes(cams, box_threshold=0.5, components="all")[0], strict=True):
        x1, y1, x2, y2 = box
        assert any(x1 <= b[0] and y1 <= b[1] and x2 >= b[2] and y2 >= b[3] for b in exact.tolist())


def test_zarr(tmp_path: Path) -> None:
    import zarr

    ssa, image = SSA(Pyramid()), picture(100, 120)
    tiff = ssa.large(image, [3], out=tmp_path / "out.tif", tile=64)
    store = ssa.large(image, [3], out=tmp_path / "store.zarr", tile=64)
    array = zarr.open(str(store.cams), mode="r")["0"]
    assert np.abs(np.asarray(array) / 255 - pages(tiff.cams).numpy()).max() < 1e-6
    assert store.mask.name == "store.mask.zarr"
    assert store.preview.read_bytes() == (tmp_path / "out.preview.png").read_bytes()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_existing_files_are_refused_or_replaced_and_the_image_never(tmp_path: Path) -> None:
    ssa, image = SSA(Pyramid()), picture(60, 70)
    (tmp_path / "out.mask.tif").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"out.mask.tif exists; pass overwrite=True"):
        ssa.large(image, [1], out=tmp_path / "out.tif")
    assert everything(tmp_path) == {"out.mask.tif": b"mine"}
    ssa.large(image, [1], out=tmp_path / "out.tif", overwrite=True)
    assert sorted(everything(tmp_path)) == ["out.mask.tif", "out.preview.png", "out.tif"]
    with pytest.raises(ValueError, match="a name of its own"):
        ssa.large(tmp_path / "out.tif", [1], out=tmp_path / "out.tif", overwrite=True)
    with pytest.raises(ValueError, match=r"ends in .tif or .zarr"):
        ssa.large(image, [1], out=tmp_path / "out.png")


@pytest.mark.parametrize("fail_at", [2, 5, 13])
def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path, fail_at: int) -> None:
    ssa = SSA(Pyramid(), affinity=Affinity(power=2.0))
    for name in ("out.tif", "out.mask.tif", "out.preview.png"):
        (tmp_path / name).write_text(f"the old {name}")
    before = everything(tmp_path)
    reader = Counting(picture(130, 150), fail_at)
    with pytest.raises(OSError, match="went away"):
        ssa.large(reader, [1], out=tmp_path / "out.tif", tile=64, overwrite=True, disk=0)
    assert everything(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("phase", ["survey", "gather", "apply", "fuse", "write"])
def test_an_interrupt_in_any_phase_leaves_nothing(tmp_path: Path, phase: str) -> None:
    def watch(step: Any) -> None:
        if step.phase == phase and step.through == step.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SSA(Pyramid()).large(picture(60, 70), "top2", out=tmp_path / "out.tif", tile=64, watch=watch)
    assert list(tmp_path.iterdir()) == []


def test_bars_and_watchers_see_every_phase_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps: dict[str, Any] = {}
    SSA(Pyramid()).large(
        picture(130, 150),
        "top2",
        out=tmp_path / "out.tif",
        tile=64,
        progress=True,
        watch=lambda step: steps.update({step.phase: step}),
    )
    assert list(steps) == ["survey", "gather", "apply", "fuse", "write"]
    assert all(step.through == step.total for step in steps.values())
    shown = capsys.readouterr().err
    assert all(phase in shown for phase in steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 17}, 'tile: expected "auto" or a multiple of 16'),
        ({"halo": -1}, "halo: expected"),
        ({"key_stride": 0}, "key_stride: expected"),
        ({"mean": (0.5,)}, "mean: expected three numbers"),
        ({"memory": "lots"}, "memory: expected bytes"),
        ({"disk": "lots"}, "disk: expected bytes"),
        ({"seed": torch.rand(2, 3)}, r"seed: expected \(K, h, w\)"),
        ({"seed": torch.full((1, 3, 3), float("nan"))}, "seed: expected finite"),
    ],
)
def test_wrong_options_are_told_before_any_work(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSA(Pyramid()).large(picture(60, 70), [1], out=tmp_path / "out.tif", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_gives_nan_is_refused(tmp_path: Path) -> None:
    model = Pyramid()
    ssa = SSA(model)
    model.fc.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="finite logits"):
        ssa.large(picture(60, 70), [1], out=tmp_path / "out.tif")
    assert list(tmp_path.iterdir()) == []


def test_too_many_classes_and_wrong_looks(tmp_path: Path) -> None:
    from ssa_fast.large.export import Look

    ssa = SSA(Pyramid(classes=300))
    with pytest.raises(ValueError, match="classes: expected at most 254"):
        ssa.large(picture(60, 70), list(range(255)), out=tmp_path / "out.tif")
    with pytest.raises(ValueError, match="look: expected labels from 1 to 254"):
        ssa.large(picture(60, 70), [1], out=tmp_path / "out.tif", look=Look(labels=lambda _: [255]))
    with pytest.raises(ValueError, match="background"):
        Look(background=2.0)
    many = ssa.large(picture(60, 70), list(range(254)), out=tmp_path / "out.tif")
    assert len(many.boxes) == 254


@pytest.mark.slow
@pytest.mark.parametrize(("name", "halo"), [("resnet18", 224), ("resnet50", 224)])
def test_how_far_residual_networks_feel(name: str, halo: int) -> None:
    import torchvision

    from ssa_fast.large.receptive_field import probe
    from ssa_fast.models import inspect_model

    model = getattr(torchvision.models, name)(weights=None)
    info = inspect_model(model, input_size=64)
    reach = probe(model, info.stages, 3)
    assert reach.halo == halo
    assert reach.strides == {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
