"""Heading 7: networks whose forward transforms images before the backbone.

The class of inputs: resizing, padding to a square (on both sides or at the end), centre crops (with or without resizing
before or after), padding to a multiple, and what cannot be mapped back: flips, rotations, shifts, random crops and
crops of a fixed size; for convolutional maps and for tokens, whose number follows the transformed image.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from ssa_fast import SSA
from ssa_fast.large import LargeImageSSA
from ssa_fast.models import inspect_model
from ssa_fast.models.geometry import over_image
from ssa_fast.ops.resize import minmax
from tests.networks import Pyramid, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

S = 96  # side of the trial's image


def resize(images: Tensor, side: int = S) -> Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear")


def crop(images: Tensor) -> Tensor:
    return transforms.center_crop(images, [min(images.shape[-2:])] * 2)


def pad(images: Tensor, start: float = 0.5) -> Tensor:
    (height, width), side = images.shape[-2:], max(images.shape[-2:])
    top, left = int((side - height) * start), int((side - width) * start)
    return F.pad(images, (left, side - width - left, top, side - height - top))


def resize_shorter(images: Tensor, side: int) -> Tensor:
    factor = side / min(images.shape[-2:])
    size = [round(length * factor) for length in images.shape[-2:]]
    return transforms.center_crop(transforms.resize(images, size), [S, S])


def random_crop(images: Tensor) -> Tensor:
    top, left = (int(torch.randint(0, side // 3, (1,))) for side in images.shape[-2:])
    return images[..., top : top + images.shape[-2] * 2 // 3, left : left + images.shape[-1] * 2 // 3]


HARMLESS = {
    "nothing": lambda images: images,
    "resize": resize,
    "resize by half": lambda images: F.interpolate(images, scale_factor=0.5, mode="bilinear"),
    "pad to a multiple": lambda images: F.pad(images, (0, -images.shape[-1] % 32, 0, -images.shape[-2] % 32)),
}
MAPPED = {
    "crop": (crop, (0, 50, 100, 150)),
    "crop, resize": (lambda images: resize(crop(images)), (0, 50, 100, 150)),
    "resize, crop": (partial(resize_shorter, side=S), (0, 50, 100, 150)),
    "pad": (pad, (-50, 0, 150, 200)),
    "pad, resize": (lambda images: resize(pad(images)), (-50, 0, 150, 200)),
    "pad at the end": (partial(pad, start=0), (0, 0, 200, 200)),
}
REFUSED = {
    "horizontal flip": lambda images: images.flip(-1),
    "vertical flip": lambda images: images.flip(-2),
    "rotation": lambda images: images.mT.flip(-1),
    "transposition": lambda images: images.mT,
    "shift": lambda images: images.roll(images.shape[-1] // 3, -1),
    "random crop": random_crop,
    "larger, then crop": partial(resize_shorter, side=S * 256 // 192),
    "crop of a fixed size": lambda images: transforms.center_crop(images, [S // 2, S // 2]),
}


class Transformed(nn.Module):
    """A network behind a transformation of its images."""

    def __init__(self, transform: Callable[[Tensor], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.transform, self.network = transform, network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.transform(images))


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return {"maps": Pyramid, "tokens": partial(Tokens, pooled=True)}[kind]()


@pytest.mark.parametrize("kind", ["maps", "tokens"])
@pytest.mark.parametrize("name", HARMLESS)
def test_maps_that_cover_the_image(name: str, kind: str) -> None:
    model = Transformed(HARMLESS[name], network(kind))
    info = inspect_model(model, input_shape=S)
    assert info.window is None
    assert info.notes == ()
    if name != "pad to a multiple":
        assert SSA(model, input_shape=S)(torch.randn(1, 3, 48, 96), classes=[0]).cams.shape == (1, 1, 48, 96)


@pytest.mark.parametrize("name", MAPPED)
def test_crops_and_paddings_are_measured(name: str) -> None:
    transform, window = MAPPED[name]
    info = inspect_model(Transformed(transform, network("maps")), input_shape=S)
    assert info.window is not None
    assert info.window(100, 200) == window
    assert info.window(200, 100) == (window[1], window[0], window[3], window[2])
    (note,) = info.notes
    assert note.startswith(f"geometry: the model {'crops' if 'crop' in name else 'pads'} images ")
    assert note.endswith("; geometry= says otherwise")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_mapped_back_is_refused(name: str) -> None:
    model = Transformed(REFUSED[name], network("maps"))
    with pytest.raises(ValueError, match=r"^geometry: expected a forward "):
        inspect_model(model, input_shape=S)
    assert inspect_model(model, input_shape=S, geometry="resize").window is None


@pytest.mark.parametrize(
    ("name", "images_of_backbone"), [("crop", crop), ("pad", pad), ("pad at the end", partial(pad, start=0))]
)
@pytest.mark.parametrize("kind", ["maps", "tokens"])
def test_cams_lie_over_the_image(name: str, images_of_backbone: Callable[[Tensor], Tensor], kind: str) -> None:
    """They are the CAMs of the transformed image, whose place in the image is known to the pixel."""
    inner = network(kind)
    geometry = {"crop": "center-crop", "pad": "pad", "pad at the end": "pad-end"}[name]
    images = torch.randn(1, 3, 64, 96)
    run = SSA(Transformed(MAPPED[name][0], inner), input_shape=S, geometry=geometry)
    plain = SSA(inner, input_shape=S, stages=[n.removeprefix("network.") for n in run.stage_names])
    found = run(images, classes=list(range(5)))
    expected = plain(images_of_backbone(images), classes=list(range(5)))
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.cams.shape == found.seed.shape == (1, 5, 64, 96)
    if name == "crop":
        torch.testing.assert_close(found.cams[..., 16:80], expected.cams, rtol=0, atol=1e-5)
        assert not found.cams[..., :16].any()
        assert not found.cams[..., 80:].any()
    else:
        top = 16 if name == "pad" else 0
        part = minmax(expected.cams[..., top : top + 64, :])
        torch.testing.assert_close(found.cams, part, rtol=0, atol=1e-5)


def test_geometry_is_told() -> None:
    model = Transformed(partial(resize_shorter, side=S * 256 // 192), network("maps"))

    def window(height: int, width: int) -> tuple[float, float, float, float]:
        side = 0.75 * min(height, width)
        return (height - side) / 2, (width - side) / 2, (height + side) / 2, (width + side) / 2

    result = SSA(model, input_shape=S, geometry=window, flip=True)(torch.randn(1, 3, 96, 128), classes=[1])
    rows, columns = (result.cams[0, 0].amax(axis) > 0 for axis in (1, 0))
    assert rows.nonzero()[[0, -1], 0].tolist() == [12, 83]
    assert columns.nonzero()[[0, -1], 0].tolist() == [28, 99]


@pytest.mark.parametrize(
    ("geometry", "error", "text"),
    [
        ("crop", ValueError, "expected one of 'resize', 'center-crop', 'pad', 'pad-end' or a function, got 'crop'"),
        (3, TypeError, r"a name or a function from \(H, W\)"),
    ],
)
def test_wrong_geometry(geometry: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"geometry: .*{text}"):
        inspect_model(Pyramid(), input_shape=S, geometry=geometry)  # type: ignore[arg-type]


def test_a_function_that_returns_no_window() -> None:
    model = Pyramid()
    run = SSA(model, input_shape=S, geometry=lambda height, width: (0, 0, 0, width))
    with pytest.raises(ValueError, match=r"geometry: expected \(top, left, bottom, right\) in pixels"):
        run(torch.randn(1, 3, 64, 64))


def test_maps_are_laid_to_the_pixel() -> None:
    maps = torch.tensor([[[[5.0, 6.0, 7.0], [8.0, 9.0, 9.0]]]])
    laid = over_image(maps, (1, -1, 3, 2), (4, 3), align_corners=True)[0, 0]
    assert laid.tolist() == [[0, 0, 0], [1, 2, 0], [4, 4, 0], [0, 0, 0]]


def test_tiles_need_maps_of_the_whole_image() -> None:
    ssa = SSA(Transformed(pad, network("maps")), input_shape=S)
    with pytest.raises(ValueError, match="model: expected one whose maps cover the whole image"):
        LargeImageSSA(ssa)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "inception_v3"])
def test_networks_of_torchvision_are_not_suspected(name: str) -> None:
    options = {"init_weights": False} if name == "inception_v3" else {}
    info = inspect_model(torchvision.models.get_model(name, num_classes=3, **options))
    assert (info.window, info.notes, info.fixed_size) == (None, (), None)
