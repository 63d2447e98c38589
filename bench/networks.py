"""A whole ResNet-50 with random weights: what its own forward takes, beside which polishing is to cost nothing."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bench.stand import NotHere
from bench.workers import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LAYERS = ("layer1", "layer2", "layer3", "layer4")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CALIBRATED = (4, 3, 64, 64)  # images that set the normalisations' statistics
CROPPED = 1024  # pixels to which larger images are cropped where the forward is checked in float64


@dataclass(frozen=True)
class Network:
    """A ResNet-50 in float32 on ``(B, 3, size, size)`` images, and a ``(B, K, h, w)`` CAM of layer4's size."""

    B: int
    K: int
    size: int

    def draw(self, device: torch.device, seed: int) -> tuple[Tensor, Forward]:
        """A CAM and the network with its images, fresh from ``seed``."""
        generator = torch.Generator(device).manual_seed(seed)
        make: dict[str, Any] = {"device": device, "generator": generator}
        end = self.size // 32
        cam = torch.rand(self.B, self.K, end, end, **make)
        images = torch.rand(self.B, 3, self.size, self.size, **make)
        torch.manual_seed(seed)
        return cam, Forward(resnet("resnet50").to(device), images)


def missing() -> list[str]:
    """Why there is no network here; empty if there is."""
    if importlib.util.find_spec("torchvision") is None:
        return ["torchvision is not installed: pip install torchvision"]
    return []


def resnet(name: str) -> torch.nn.Module:
    """One of torchvision's, with random weights, for inference."""
    for reason in missing():
        raise NotHere(reason)
    try:
        from torchvision import models
    except (ImportError, RuntimeError, AttributeError) as error:  # a build that does not go with this PyTorch
        raise NotHere(f"torchvision does not load: {first_line(error)}") from None
    net = getattr(models, name)(weights=None).eval()
    assert isinstance(net, torch.nn.Module)
    return net


class Forward:
    """A network and its images, as functions of the memory format."""

    def __init__(self, net: torch.nn.Module, images: Tensor) -> None:
        self.net, self.images = net, images
        calibrate(net, torch.rand(CALIBRATED, device=images.device).to(images.dtype))
        self._kept: dict[str, Tensor] = {}
        self._stages: tuple[str, list[Tensor]] | None = None
        for name in LAYERS:
            getattr(net, name).register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Callable[..., None]:
        return lambda _, __, out: self._kept.__setitem__(name, out)

    def run(self, layout: str) -> Callable[[], Tensor]:
        """The forward to its logits in a memory format, whose stages are not kept."""
        images = self._in(layout)

        def forward() -> Tensor:
            with torch.inference_mode():
                logits: Tensor = self.net(images)
                self._kept.clear()
                return logits

        return forward

    def stages(self, layout: str) -> list[Tensor]:
        """The outputs of the four layers, as a forward in this format leaves them; the last answer is remembered."""
        if self._stages is None or self._stages[0] != layout:
            self._stages = None
            with torch.inference_mode():
                self.net(self._in(layout))
            self._stages = layout, [self._kept.pop(name) for name in LAYERS]
        return self._stages[1]

    def _in(self, layout: str) -> Tensor:
        self.net.to(memory_format=FORMATS[layout])  # type: ignore[call-overload]
        return self.images.contiguous(memory_format=FORMATS[layout])


def calibrate(net: torch.nn.Module, images: Tensor) -> None:
    """Give the normalisations statistics of their own, without which random weights leave float16's range."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    net.eval()
