"""Whole networks with random weights: what their own forward takes, beside which polishing is to cost nothing."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bench.stand import NotHere
from bench.workers import first_line
from ssa_fast.models import inspect_model
from ssa_fast.models.extract import extract_features
from ssa_fast.models.stage_affinity import choose_affinities

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CALIBRATED = (4, 3, 224, 224)  # images that set the normalisations' statistics: smaller ones are mostly border
CROPPED = 1024  # pixels to which larger images are cropped where the forward is checked in float64


@dataclass(frozen=True)
class Network:
    """One of torchvision's in float32 on ``(B, 3, size, size)`` images; a ``(B, K, h, w)`` CAM of its last stage."""

    B: int
    K: int
    size: int
    net: str = "resnet50"

    def draw(self, device: torch.device, seed: int) -> tuple[Tensor, Forward]:
        """A CAM and the network with its images, fresh from ``seed``."""
        generator = torch.Generator(device).manual_seed(seed)
        make: dict[str, Any] = {"device": device, "generator": generator}
        end = self.size // 32
        cam = torch.rand(self.B, self.K, end, end, **make)
        images = torch.rand(self.B, 3, self.size, self.size, **make)
        torch.manual_seed(seed)
        return cam, Forward(build(self.net).to(device), images)


def missing() -> list[str]:
    """Why there is no network here; empty if there is."""
    if importlib.util.find_spec("torchvision") is None:
        return ["torchvision is not installed: pip install torchvision"]
    return []


def build(name: str) -> torch.nn.Module:
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
    """A network and its images, as functions of the memory format, with the affinities that ``SSA`` takes."""

    def __init__(self, net: torch.nn.Module, images: Tensor) -> None:
        self.net, self.images = net, images
        info = inspect_model(net)  # before calibration, whose statistics are not those of its random image
        calibrate(net, torch.rand(CALIBRATED, device=images.device).to(images.dtype))
        self.affinities = list(choose_affinities("auto", info.signs).values())
        self._refs = info.stages
        self._stages: tuple[str, list[Tensor]] | None = None

    def run(self, layout: str) -> Callable[[], Tensor]:
        """The forward to its logits in a memory format."""
        images = self._in(layout)

        def forward() -> Tensor:
            with torch.inference_mode():
                logits: Tensor = self.net(images)
                return logits

        return forward

    def stages(self, layout: str) -> list[Tensor]:
        """The stages' maps, as a forward in this format leaves them; the last answer is remembered."""
        if self._stages is None or self._stages[0] != layout:
            self._stages = None
            maps = extract_features(self.net, self._in(layout), self._refs).maps
            self._stages = layout, list(maps.values())
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
