"""Problems to polish, by sizes or by name, their inputs, and the truth in float64.

resnet50/512/layer1            features ≥ 0 of an input of 512×512, K = 20 classes, one image, float32
resnet50/512/layer1/K1000/B32  other numbers of classes and images
resnet50/512/layer1/signed     normal features; shifted: those under the shifted cosine
    .../centred                the affinity subtracts the mean; squared: cosines squared
    .../nhwc/float16/high      channels last; another dtype; precision="high". All words in this order
resnet50-d8/512/layer4         layers 3 and 4 dilated, so that all end at an eighth of the input
resnet50/512                   the network itself: its forward, and polishing and fusing its four stages
swin_t/512/float16             another; its stages are signed, as are those of convnext_tiny and efficientnet_b0
"""

from __future__ import annotations

import copy
import importlib.util
import math
import re
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from bench.measure import NotHere, first_line
from ssa_fast import Affinity, reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

WRONG = 0.05  # relative error beyond which an answer is no answer
SAMPLED = 128  # target pixels that the answer to a large problem is checked at
CROPPED = 1024  # pixels to which larger images are cropped where a forward is checked in float64
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CALIBRATED = (4, 3, 224, 224)  # images that set the normalisations' statistics: smaller ones are mostly border

# Channels of each stage and the step between its pixels.
STAGES = {"layer1": (256, 4), "layer2": (512, 8), "layer3": (1024, 16), "layer4": (2048, 32)}
NETS = {"resnet50": STAGES, "resnet50-d8": STAGES | {"layer3": (1024, 8), "layer4": (2048, 8)}}
_PYRAMID = {"features.1": (96, 4), "features.3": (192, 8), "features.5": (384, 16), "features.7": (768, 32)}
_EFFICIENT = {"features.2": (24, 4), "features.3": (40, 8), "features.5": (112, 16), "features.8": (1280, 32)}
WHOLE = {"resnet50": STAGES, "swin_t": _PYRAMID, "convnext_tiny": _PYRAMID, "efficientnet_b0": _EFFICIENT}
_NAME = re.compile(
    r"([^/]+)/(\d+)(?:/(layer\d))?(?:/K(\d+))?(?:/B(\d+))?"
    r"(?:/(signed|shifted))?(?:/(centred|squared))?(?:/(nhwc))?(?:/(float16|bfloat16))?(?:/(high))?"
)
AFFINITIES = {"shifted": "phi=shifted", "centred": "center", "squared": "power=2"}
EXPECTED = (
    f"<net>/<size>[/K<k>][/B<b>][/float16|bfloat16] with a net of {', '.join(WHOLE)}, or <net>/<size>/<stage>[/K<k>]"
    "[/B<b>][/signed|shifted][/centred|squared][/nhwc][/float16|bfloat16][/high] with a net of "
    f"{', '.join(NETS)} and a stage of {', '.join(STAGES)}; a size divisible by 32"
)


@dataclass(frozen=True)
class Problem:
    """``(B, C, H, W)`` features of a dtype, layout and kind of values, and a ``(B, K, h, w)`` CAM; or a network.

    Attributes:
        h, w: Size of the CAM; 0: that of the stage.
        layout: ``"nchw"``, ``"nhwc"``, ``"sliced"`` (rows with gaps), ``"repeated"`` (one image for all).
        values: ``"rand"``: uniform in [0, 1); ``"relu"``: ReLU of normal numbers; ``"randn"``: normal numbers;
            ``"mixed"``: uniform with every second image signed; ``"nan"``: that with a NaN in the last image;
            ``"zeros"``: uniform with some pixels' features zero.
        affinity: As ``Affinity.parse`` reads it.
        net: One of torchvision's, whose images have ``C, H, W`` and whose stages are polished and fused.
    """

    B: int
    K: int
    C: int
    H: int
    W: int
    h: int = 0
    w: int = 0
    dtype: str = "float16"
    layout: str = "nchw"
    values: str = "rand"
    affinity: str = ""
    precision: str = "default"
    align_corners: bool = True
    scale: float = 1.0
    cam_scale: float = 1.0
    net: str = ""

    @property
    def L(self) -> int:
        return self.H * self.W

    @property
    def phi(self) -> Affinity:
        return Affinity.parse(self.affinity)

    @property
    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def nonnegative(self) -> bool:
        """Whether all features are ≥ 0, before any centring."""
        return self.values in ("rand", "relu", "zeros")

    @property
    def feature_bytes(self) -> int:
        return self.B * self.C * self.L * self.torch_dtype.itemsize

    def label(self) -> str:
        """Return what tells this problem from others, in one line."""
        others = [(each.name, getattr(self, each.name), each.default) for each in fields(self)[5:]]
        words = [f"{name}={value}" for name, value, default in others if value != default and name != "dtype"]
        return " ".join([f"B={self.B} K={self.K} C={self.C} L={self.H}×{self.W} {self.dtype}", *words])

    def row(self) -> dict[str, Any]:
        """Return the sizes and kinds that a row says its problem has."""
        keys = ("B", "K", "C", "H", "W", "L", "dtype", "layout", "values", "affinity")
        return {key: getattr(self, key) for key in keys}

    def tiny(self) -> Problem:
        """Return the same kind of problem, small enough for Triton's interpreter."""
        if self.net:
            return replace(self, B=1, H=64, W=64, h=2, w=2)

        def side(size: int, more: int = 0) -> int:
            return size if size < 8 else 5 + (size + more) % 3  # what is tiny stays as it is

        return replace(
            self,
            B=min(self.B, 3 if self.values in ("mixed", "nan") else 2),
            K=self.K if self.K < 3 else 17 if self.K >= 70 else 3,
            C=min(self.C, 20),
            H=side(self.H),
            W=side(self.W, 1),
            h=min(self.h, 3),
            w=min(self.w, 3),
        )

    def draw(self, device: torch.device, seed: int) -> tuple[Tensor, Any]:
        """Return a CAM (float32) and features, or a ``Forward``, fresh from ``seed``."""
        generator = torch.Generator(device).manual_seed(seed)
        make: dict[str, Any] = {"device": device, "generator": generator}
        cam = torch.rand(self.B, self.K, self.h or self.H, self.w or self.W, **make) * self.cam_scale
        shape = (self.B, self.C, self.H, self.W)
        # float32 first: drawn in half, uniform numbers round to 1.
        f = (torch.randn if self.values in ("relu", "randn") else torch.rand)(*shape, **make)
        if self.net:
            torch.manual_seed(seed)
            return cam, Forward(build(self.net).to(device), f.to(self.torch_dtype))
        if self.values == "relu":
            f = f.relu_()
        if self.values in ("mixed", "nan"):
            f[1::2] -= 0.5
        if self.values == "nan":
            f[-1, self.C // 2, self.H // 2, self.W // 2] = float("nan")
        if self.values == "zeros":
            f.flatten(2)[:, :, ::3] = 0
        return cam, self._laid_out(f.mul_(self.scale).to(self.torch_dtype))

    def _laid_out(self, f: Tensor) -> Tensor:
        if self.layout == "nhwc":
            return f.contiguous(memory_format=torch.channels_last)
        if self.layout == "sliced":  # rows with gaps, and an offset that is not aligned
            base = f.new_full((self.B, self.C + 3, self.H + 2, self.W + 5), float("nan"))
            view = base[:, 3:, 1:-1, 2:-3]
            view.copy_(f)
            return view
        return f[:1].expand_as(f) if self.layout == "repeated" else f


def named(name: str) -> Problem:
    """Return the problem of a name.

    Raises:
        ValueError: It names no problem; says what would.
    """
    if found := _NAME.fullmatch(name):
        net, side, stage, k, b, sign, form, layout, dtype, precision = found.groups()
        size, K, B = int(side), int(k or 20), int(b or 1)
        fits = bool(K and B and size) and size % 32 == 0
        if fits and net in WHOLE and not (stage or sign or form or layout or precision):
            end = size // 32
            return Problem(B, K, 3, size, size, end, end, dtype or "float32", layout="", net=net)
        if fits and net in NETS and stage in STAGES:
            (C, step), (_, last) = NETS[net][stage], NETS[net]["layer4"]
            sizes = (B, K, C, size // step, size // step, size // last, size // last)
            affinity = ",".join(AFFINITIES[word] for word in (sign, form) if word in AFFINITIES)
            values, layout, precision = "randn" if sign else "relu", layout or "nchw", precision or "default"
            return Problem(*sizes, dtype or "float32", layout, values, affinity, precision)
    raise ValueError(f"problem: expected {EXPECTED}, got {name!r}; --list prints those of a suite")


def curve(name: str) -> str:
    """Return what the names of a problem at all sizes share."""
    return re.sub(r"/\d+", "", name, count=1)


def _names(pattern: str) -> list[str]:
    """Return the names that a pattern with alternatives in braces stands for; the first of them vary fastest."""
    parts = [part.split(",") for part in re.split("[{}]", pattern)]
    return ["".join(reversed(words)) for words in product(*reversed(parts))]


SUITES = {
    "small": [
        *_names("resnet50/{224,512}/layer1{,/signed}"),
        *("resnet50-d8/224/layer4/centred", "resnet50/512/layer4", "resnet50/224", "resnet50/512"),
    ],
    "curve": _names("resnet50/{224,512,1024,2048,4096}/layer1{,/signed,/shifted}"),
    "backbone": [
        *_names("resnet50/{224,512,1024,4096}{,/K1}"),
        *_names("{swin_t,convnext_tiny,efficientnet_b0}/{512,1024}"),
    ],
    "rates": _names(
        "resnet50/{64,224,512}/layer{1,2,3,4}"
        "{,/signed,/squared,/K1,/K1/signed,/K1/squared,/K1000,/B16,/B16/signed,/B16/squared}"
    ),
    "gpu": [  # those on which most depends first
        "resnet50/1024/layer2/signed/float16",
        *_names("resnet50/512/layer1{/signed,,/B32,/B32/shifted,/B32/nhwc}/float16"),
        *_names("resnet50/{1024,2048}/layer1/float16"),
        *("resnet50/4096/layer4/signed/float16", "resnet50/2048/layer3/signed/float16"),
        *_names("resnet50/224/layer{2,3,4}{,/signed}/float16"),  # small stages, which launches dominate
        *_names("resnet50/512/layer3{,/signed}/float16"),
        *_names("resnet50/{224,512,512/B32,512/K1/B32}/float16"),
        *_names("resnet50/4096/layer4/B2{,/nhwc}/float16"),
        *_names("resnet50/512/layer1/{B32,signed/bfloat16,signed/float16/high,B32/shifted/centred/float16}"),
        *("resnet50/1024/layer1/signed/float16", "resnet50/512/layer1/B32/shifted/nhwc/float16"),
        *("resnet50/224/layer1/signed/float16", "resnet50/512/layer3/B16/signed/float16"),
        *("resnet50/4096/layer1/float16", "resnet50/512/layer1/K200/B32/float16"),
    ],
}


# The truth.


def resized(problem: Problem, cam: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the CAM at the stage's size in ``dtype``, ``(B, K, L)``."""
    size = (problem.H, problem.W)
    cam = cam.to(dtype)
    if tuple(cam.shape[2:]) != size:
        cam = F.interpolate(cam, size, mode="bilinear", align_corners=problem.align_corners)
    return cam.flatten(2)


def truth(problem: Problem, cam: Tensor, f: Tensor) -> Tensor:
    """Return the reference in float64, ``(B, K, L)``; one image at a time, for its L×L matrix."""
    rows = resized(problem, cam)
    each = [
        reference.polish_stage(rows[b : b + 1], f[b : b + 1].double().flatten(2), problem.phi) for b in range(problem.B)
    ]
    return torch.cat(each)


def sampled_truth(
    problem: Problem, cam: Tensor, f: Tensor, at: Tensor, dtype: torch.dtype = torch.float64, sources: int = 1 << 16
) -> Tensor:
    """Return the reference at the target pixels ``at`` of the last image, ``(K, len(at))``, for one step.

    The sum over source pixels is taken in parts of ``sources``, so nothing of size L×L or L×C in ``dtype`` is held.
    """
    affinity = replace(problem.phi, center=False)  # the mean is that of all pixels, not of a part's
    assert affinity.steps == 1
    flat = f[-1].flatten(1)
    rows = resized(problem, cam[-1:], dtype)[0]
    parts = [slice(start, start + sources) for start in range(0, problem.L, sources)]
    mean = sum(flat[:, part].to(dtype).sum(1, keepdim=True) for part in parts) / problem.L if problem.phi.center else 0
    x_j = reference.unit_features(flat[None, :, at].to(dtype) - mean, affinity)[0]
    sums, total = rows.new_zeros(problem.K, len(at)), rows.new_zeros(1, len(at))
    for part in parts:
        x_i = reference.unit_features(flat[None, :, part].to(dtype) - mean, affinity)[0]
        a = reference.phi(x_i.mT @ x_j, affinity)  # [sources, len(at)]
        sums += rows[:, part] @ a
        total += a.sum(dim=0, keepdim=True)
    return sums / reference.denominator(total, affinity)


def sampled(problem: Problem, seed: int) -> Tensor:
    """Return indices of the target pixels that an answer is checked at."""
    return torch.randint(problem.L, (min(SAMPLED, problem.L),), generator=torch.Generator().manual_seed(seed))


def square_error(f: Tensor, at: Tensor, square: Tensor) -> float:
    """Return the error of xᵀx ``(L, L)`` of the unit features of ``f`` ``(1, C, H, W)``, in the rows ``at``."""
    x = F.normalize(f[0].flatten(1).float(), dim=0).to(f.dtype).double()
    return relative_error(square[at], x[:, at].mT @ x)


def relative_error(out: Tensor, right: Tensor) -> float:
    """Return max|out − right| / max|right|; infinite where one is NaN or infinite and the other is not the same."""
    out, finite = out.double(), right.isfinite()
    if not (out.shape == right.shape and torch.equal(out.isnan(), right.isnan())):
        return math.inf
    if not torch.equal(out.isfinite(), finite):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    largest, error = (float(each[finite].abs().max()) for each in (right, out - right))
    return error / largest if largest else math.inf if error else 0.0


# Whole networks.


def missing_torchvision() -> str:
    return "" if importlib.util.find_spec("torchvision") else "torchvision is not installed: pip install torchvision"


def build(name: str) -> torch.nn.Module:
    """Return one of torchvision's networks, with random weights, for inference."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError, AttributeError) as error:  # missing, or it does not go with this PyTorch
        raise NotHere(missing_torchvision() or f"torchvision does not load: {first_line(error)}") from None
    net: torch.nn.Module = getattr(models, name)(weights=None).eval()
    return net


class Forward:
    """A network and its images, as functions of the memory format, with the affinities that ``SSA`` takes."""

    def __init__(self, net: torch.nn.Module, images: Tensor) -> None:
        from ssa_fast.models import inspect_model
        from ssa_fast.models.stage_affinity import choose_affinities

        torch.backends.cudnn.benchmark = True  # a GPU's forward at its best
        info = inspect_model(net)  # before calibration, whose statistics are not those of its random image
        calibrate(net, torch.rand(CALIBRATED, device=images.device))
        self.net, self.images = net.to(images.dtype), images
        self.affinities = list(choose_affinities("auto", info.signs).values())
        self._refs = info.stages

    def run(self, layout: str) -> Callable[[], Tensor]:
        """Return the forward to its logits in a memory format."""
        net, images = self._in(layout)

        def forward() -> Tensor:
            with torch.inference_mode():
                logits: Tensor = net(images)
                return logits

        return forward

    def stages(self, layout: str) -> tuple[list[Tensor], bool | None]:
        """Return the stages' maps, as a forward in this format leaves them, and True if it has proved them all ≥ 0."""
        from ssa_fast.models.extract import extract_features

        found = extract_features(*self._in(layout), self._refs)
        return list(found.maps.values()), True if set(found.maps) <= found.nonnegative else None

    @torch.no_grad()
    def cropped(self, dtype: torch.dtype) -> Tensor:
        """Return the logits of the images, cropped, in ``dtype``."""
        logits: Tensor = copy.deepcopy(self.net).to(dtype)(self.images[:, :, :CROPPED, :CROPPED].to(dtype))
        return logits

    def _in(self, layout: str) -> tuple[torch.nn.Module, Tensor]:
        """Return a network of its own and the images in a memory format."""
        net: torch.nn.Module = copy.deepcopy(self.net).to(memory_format=FORMATS[layout])  # type: ignore[call-overload]
        return net, self.images.contiguous(memory_format=FORMATS[layout])


def calibrate(net: torch.nn.Module, images: Tensor) -> None:
    """Give the normalisations statistics of their own, without which random weights leave float16's range."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    net.eval()
