"""What is called in both trees: through the public face alone, so that older commits can be measured, too."""

from __future__ import annotations

import fnmatch
import functools
import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from bench.guard import plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Answer: TypeAlias = dict[str, Any]

SEED = 20
CHECKED = 4096  # targets of a lone stage that are held against the truth: all, or as many evenly spread
RESNET50 = ((256, 4), (512, 8), (1024, 16), (2048, 32))  # channels and stride of its four stages


@dataclass(frozen=True)
class Polish:
    """``polish`` of one stage, or of several rescaled and fused.

    ``stages`` are ``(C, H, W)``; features are ≥ 0 and nobody says so, or ``signed``. The CAM ``(B, K, h, w)`` has a
    quarter of the first stage's sides, as a class map of stride 16 beside features of stride 4.
    """

    name: str
    stages: tuple[tuple[int, int, int], ...]
    K: int = 20
    B: int = 1
    method: str = "auto"
    power: float = 1.0
    signed: bool = False
    center: bool = False
    channels_last: bool = False

    def draw(self) -> tuple[Tensor, list[Tensor]]:
        """The same CAM and features in every process."""
        generator = torch.Generator().manual_seed(SEED)
        draw = torch.randn if self.signed else torch.rand
        _, H, W = self.stages[0]
        cam = torch.rand(self.B, self.K, max(H // 4, 2), max(W // 4, 2), generator=generator)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return cam, [draw(self.B, *sizes, generator=generator).to(memory_format=layout) for sizes in self.stages]

    def call(self, package: Any, device: str) -> Callable[[], Any]:
        """The call that is timed."""
        cam, features = self.draw()
        cam, stages = cam.to(device), [stage.to(device) for stage in features]
        affinity = package.Affinity(power=self.power, center=self.center)
        given = stages if len(stages) > 1 else stages[0]
        return lambda: package.polish(cam, given, affinity=affinity, method=self.method)

    def answer(self, package: Any, device: str) -> Answer:
        """What the call gives, as arrays, which go through a pipe."""
        return {"out": self.call(package, device)().cpu().numpy()}

    def compared(self, out: Tensor) -> Tensor:
        """What of the result ``expected`` has, ``(B, K, n)``."""
        return out.flatten(2) if len(self.stages) > 1 else out.flatten(2)[:, :, self._targets()]

    def expected(self, answer: Answer, dtype: torch.dtype, operands: torch.dtype | None = None) -> Tensor:
        """The plain formula in ``dtype`` on the same inputs, ``(B, K, n)``; the same for every answer."""
        return _expected(self.definition(), dtype, operands)

    def compute(self, dtype: torch.dtype, operands: torch.dtype | None) -> Tensor:
        """What ``expected`` is."""
        cam, features = self.draw()
        options: dict[str, Any] = {"power": self.power, "center": self.center, "operands": operands}
        if len(features) == 1:
            return plain.polish(cam, features[0], dtype, at=self._targets(), **options)
        polished = [plain.polish(cam, f, dtype, **options).unflatten(2, f.shape[2:]) for f in features]
        return plain.fuse(polished, features[0].shape[2:]).flatten(2)

    def definition(self) -> Polish:
        """The same mathematics, whatever way it is computed."""
        return replace(self, name="", method="auto", channels_last=False)

    def _targets(self) -> Tensor:
        _, H, W = self.stages[0]
        return torch.linspace(0, H * W - 1, min(H * W, CHECKED), dtype=torch.float64).long()


@dataclass(frozen=True)
class Network:
    """``SSA`` on the demo's classifier from images to fused CAMs, K classes."""

    name: str
    K: int
    side: int = 128
    B: int = 1

    def call(self, package: Any, device: str) -> Callable[[], Any]:
        """The call that is timed."""
        ssa, images = self._made(package, device)
        return lambda: ssa(images, classes=list(range(self.K)))

    def answer(self, package: Any, device: str) -> Answer:
        """The fused CAMs, with the features and weights that they were made of: those are the network's business."""
        ssa, images = self._made(package, device)
        kept: Answer = {}
        for key, name in {"seed": ssa.seed_layer, **{f"stage {name}": name for name in ssa.stage_names}}.items():
            ssa.model.get_submodule(name).register_forward_hook(
                lambda _, __, out, key=key: kept.__setitem__(key, out.cpu().numpy())
            )
        with torch.no_grad():
            out = ssa(images, classes=list(range(self.K))).cams
        return {"out": out.cpu().numpy(), "weight": ssa.model.fc.weight.detach().cpu().numpy(), **kept}

    def compared(self, out: Tensor) -> Tensor:
        return out

    def expected(self, answer: Answer, dtype: torch.dtype, operands: torch.dtype | None = None) -> Tensor:
        """CAM of the head's weights, polished in every stage, fused and rescaled: ``(B, K, side, side)``."""
        given = {key: torch.from_numpy(value).to(dtype) for key, value in answer.items()}
        seed = torch.einsum("kc,bchw->bkhw", given["weight"][: self.K], given["seed"]).relu()
        stages = [value for key, value in given.items() if key.startswith("stage ")]
        polished = [plain.polish(seed, f, dtype, operands=operands).unflatten(2, f.shape[2:]) for f in stages]
        return plain.minmax(plain.fuse(polished, (self.side, self.side)))

    def _made(self, package: Any, device: str) -> tuple[Any, Tensor]:
        """SSA of the demo's network, and images normalised for it."""
        network = importlib.import_module(f"{package.__name__}.models.demo_net")
        generator = torch.Generator().manual_seed(SEED)
        images = 4 * torch.rand(self.B, 3, self.side, self.side, generator=generator) - 2
        ssa = package.SSA(network.load_classifier().to(device), align_corners=True)  # as ``plain`` resizes
        return ssa, images.to(device)


@functools.cache
def _expected(definition: Polish, dtype: torch.dtype, operands: torch.dtype | None) -> Tensor:
    return definition.compute(dtype, operands)


Case: TypeAlias = "Polish | Network"


def resnet50(side: int, B: int = 1) -> Polish:
    """The four stages of a ResNet-50 on images of ``side`` pixels, polished and fused."""
    stages = tuple((C, side // stride, side // stride) for C, stride in RESNET50)
    return Polish(f"resnet50/{side}" + (f"/B{B}" if B > 1 else ""), stages, B=B)


SMALL: tuple[Case, ...] = (
    Polish("tiny/49", ((64, 7, 7),), K=1),
    Polish("dense/196/signed", ((1024, 14, 14),), signed=True),
    Polish("prototypes/3136", ((256, 56, 56),), method="prototypes"),
    Polish("prototypes/3136/nhwc", ((256, 56, 56),), method="prototypes", channels_last=True),
    Polish("prototypes/16384", ((256, 128, 128),), method="prototypes"),
    Polish("prototypes/16384/nhwc", ((256, 128, 128),), method="prototypes", channels_last=True),
    Polish("second_order/3136", ((128, 56, 56),), K=3, method="second_order", power=2.0),
    Polish("tiled/4096/signed", ((256, 64, 64),), method="tiled", signed=True),
    Polish("tiled/1024/centred", ((512, 32, 32),), method="tiled", power=2.0, center=True),
    resnet50(224),
    Network("ssa/demo", K=5),
)
FULL: tuple[Case, ...] = (
    *SMALL,
    Polish("prototypes/65536", ((256, 256, 256),), method="prototypes"),
    Polish("prototypes/3136/B8", ((256, 56, 56),), B=8, method="prototypes"),
    Polish("prototypes/16384/K1000", ((256, 128, 128),), K=1000, method="prototypes"),
    Polish("tiled/16384/signed", ((256, 128, 128),), method="tiled", signed=True),
    Polish("auto/784/signed/B8", ((512, 28, 28),), B=8, signed=True),
    resnet50(512),
    resnet50(224, B=8),
    Network("ssa/demo/B8", K=5, B=8),
)
SETS = {"small": SMALL, "full": FULL}


def chosen(name: str, pattern: str = "*") -> list[Case]:
    """The cases of a set whose names match a glob."""
    return [case for case in SETS[name] if fnmatch.fnmatchcase(case.name, pattern)]
