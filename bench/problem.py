"""One stage to polish, as plain data: what jobs are told, what rows are labelled with, what inputs are drawn from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ssa_fast import Affinity, reference

if TYPE_CHECKING:
    from torch import Tensor

WRONG = 0.05  # relative error beyond which an answer is no answer
SAMPLED = 128  # target pixels that the answer to a large problem is checked at


@dataclass(frozen=True)
class Problem:
    """``(B, C, H, W)`` features of a dtype, layout and kind of values, and a ``(B, K, h, w)`` CAM.

    ``values``: uniform in [0, 1); ReLU of normal numbers; normal numbers; uniform with every second image signed;
    that with a NaN in the last image; uniform with some pixels' features zero. ``affinity`` as ``Affinity.parse``
    reads it. ``h`` 0: the CAM has the stage's size.
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

    @property
    def L(self) -> int:
        return self.H * self.W

    @property
    def phi(self) -> Affinity:
        return Affinity.parse(self.affinity)

    @property
    def torch_dtype(self) -> torch.dtype:
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found

    @property
    def feature_bytes(self) -> int:
        return self.B * self.C * self.L * self.torch_dtype.itemsize

    def label(self) -> str:
        """What tells this problem from others, in one line."""
        words = [f"B={self.B} K={self.K} C={self.C} L={self.H}×{self.W} {self.dtype}"]
        words += [self.layout] if self.layout != "nchw" else []
        words += [self.values, self.affinity, self.precision if self.precision != "default" else ""]
        words += [f"cam {self.h}×{self.w}" if self.h else "", "" if self.align_corners else "align_corners=False"]
        words += [f"features×{self.scale:g}" if self.scale != 1 else ""]
        words += [f"cam×{self.cam_scale:g}" if self.cam_scale != 1 else ""]
        return " ".join(word for word in words if word)

    def tiny(self) -> Problem:
        """The same kind of problem, small enough for Triton's interpreter."""

        def side(size: int) -> int:
            return size if size < 4 else 5 + size % 3

        return replace(
            self,
            B=min(self.B, 3 if self.values in ("mixed", "nan") else 2),
            K=self.K if self.K < 3 else 17 if self.K >= 70 else 3,
            C=min(self.C, 20),
            H=side(self.H),
            W=side(self.W + 1) if self.W > 1 else 1,
            h=min(self.h, 3),
            w=min(self.w, 3),
        )

    def draw(self, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
        """A CAM (float32) and features, fresh from ``seed``."""
        generator = torch.Generator(device).manual_seed(seed)
        make: dict[str, Any] = {"device": device, "generator": generator}
        cam = torch.rand(self.B, self.K, self.h or self.H, self.w or self.W, **make) * self.cam_scale
        return cam, self._laid_out(self._values(make))

    def _values(self, make: dict[str, Any]) -> Tensor:
        shape = (self.B, self.C, self.H, self.W)
        # float32 first: drawn in half, uniform numbers round to 1.
        f = (torch.randn if self.values in ("relu", "randn") else torch.rand)(*shape, **make)
        if self.values == "relu":
            f = f.relu_()
        if self.values in ("mixed", "nan"):
            f[1::2] -= 0.5
        if self.values == "nan":
            f[-1, self.C // 2, self.H // 2, self.W // 2] = float("nan")
        if self.values == "zeros":
            f.flatten(2)[:, :, ::3] = 0
        return f.mul_(self.scale).to(self.torch_dtype)

    def _laid_out(self, f: Tensor) -> Tensor:
        if self.layout == "nhwc":
            return f.contiguous(memory_format=torch.channels_last)
        if self.layout == "sliced":  # rows with gaps, and an offset that is not aligned
            base = f.new_full((self.B, self.C + 3, self.H + 2, self.W + 5), float("nan"))
            view = base[:, 3:, 1:-1, 2:-3]
            view.copy_(f)
            return view
        return f[:1].expand_as(f) if self.layout == "repeated" else f

    def as_arguments(self) -> dict[str, Any]:
        return asdict(self)


def resized(problem: Problem, cam: Tensor) -> Tensor:
    """The CAM at the stage's size in float64, ``(B, K, L)``."""
    size = (problem.H, problem.W)
    cam = cam.double()
    if tuple(cam.shape[2:]) != size:
        cam = F.interpolate(cam, size, mode="bilinear", align_corners=problem.align_corners)
    return cam.flatten(2)


def truth(problem: Problem, cam: Tensor, f: Tensor) -> Tensor:
    """The reference in float64, ``(B, K, L)``; one image at a time, for its L×L matrix."""
    rows = resized(problem, cam)
    each = [
        reference.polish_stage(rows[b : b + 1], f[b : b + 1].double().flatten(2), problem.phi) for b in range(problem.B)
    ]
    return torch.cat(each)


def sampled_truth(problem: Problem, cam: Tensor, f: Tensor, at: Tensor, sources: int = 1 << 16) -> Tensor:
    """The reference in float64 at the target pixels ``at`` of the last image, ``(K, len(at))``, for one step of any L.

    The sum over source pixels is taken in parts of ``sources``, so nothing of size L×L or L×C in float64 is held.
    """
    affinity = replace(problem.phi, center=False)  # the mean is that of all pixels, not of a part's
    assert affinity.steps == 1
    flat = f[-1].flatten(1)
    rows = resized(problem, cam[-1:])[0]
    parts = [slice(start, start + sources) for start in range(0, problem.L, sources)]
    mean = flat.new_zeros(problem.C, 1, dtype=torch.float64)
    if problem.phi.center:
        for part in parts:
            mean += flat[:, part].double().sum(dim=1, keepdim=True) / problem.L
    x_j = reference.unit_features(flat[None, :, at].double() - mean, affinity)[0]
    numerator = rows.new_zeros(problem.K, len(at))
    denominator = rows.new_zeros(1, len(at))
    for part in parts:
        x_i = reference.unit_features(flat[None, :, part].double() - mean, affinity)[0]
        a = reference.phi(x_i.mT @ x_j, affinity)  # [sources, len(at)]
        numerator += rows[:, part] @ a
        denominator += a.sum(dim=0, keepdim=True)
    return numerator / reference.denominator(denominator, affinity)


def square_error(f: Tensor, at: Tensor, square: Tensor) -> float:
    """The error of xᵀx ``(L, L)`` of the unit features of ``f`` ``(1, C, H, W)``, in the rows ``at``."""
    x = F.normalize(f[0].flatten(1).float(), dim=0).to(f.dtype).double()
    return relative_error(square[at], x[:, at].mT @ x)


def relative_error(out: Tensor, right: Tensor) -> float:
    """max|out − right| / max|right|; infinite where one is NaN or infinite and the other is not the same."""
    out = out.double()
    if out.shape != right.shape:
        return float("inf")
    finite = right.isfinite()
    same = torch.equal(out.isnan(), right.isnan()) and torch.equal(out.isfinite(), finite)
    if not same:
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    largest = float(right[finite].abs().max())
    error = float((out - right)[finite].abs().max())
    return error / largest if largest else (0.0 if error == 0.0 else float("inf"))
