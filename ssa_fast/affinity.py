"""Affinity of two pixels: a pointwise function φ of the cosine of their features, and its parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


# Parameters that not every form of φ has, with the forms that have them.
FORMS = {"power": ("relu", "shifted"), "threshold": ("relu",), "shift": ("shifted",), "temperature": ("exp",)}


@dataclass(frozen=True)
class Affinity:
    """Pixel affinity ``a_ij = φ(x_iᵀ x_j)`` between unit features ``x = f / (‖f‖₂ + norm_eps)``.

    The defaults are the arithmetic of SEAM's pixel correlation module (PCM; Wang et al., *Self-supervised equivariant
    attention mechanism for weakly supervised semantic segmentation*, CVPR 2020).

    Args:
        phi: ``"relu"`` for ``φ(c) = relu(c)^power``; ``"shifted"`` for ``φ(c) = ((c + shift) / (1 + shift))^power``,
            which takes linear time for features of any sign; ``"exp"`` for ``φ(c) = exp((c − 1) / temperature)``, a
            softmax over cosines (c ≤ 1, so it needs no running maximum).
        power: Exponent of the ReLU and the shifted form, > 0. Larger is more selective.
        threshold: Cosine in [0, 1] below which the ReLU form is 0, applied before ``power``.
        shift: Of the shifted form, ≥ 0. From 1 on no affinity is negative: with 1, φ is ``1 − ‖x_i − x_j‖² / 4`` for
            unit features. Below 1 opposite pixels repel each other (see below).
        temperature: Of the exp form, > 0; required there, refused elsewhere.
        center: Subtract each image's mean feature before normalising. Sharpens, and makes features signed.
        steps: Number of times the affinity is applied, ≥ 1. The denominator is the same in every step.
        norm_eps: Added to the norm, outside the root, ≥ 0.
        sum_eps: Added to each pixel's sum of affinities, ≥ 0.

    A pixel whose feature is zero has affinity 0 under the ReLU form and becomes 0, even if both eps are 0. Under the
    shifted form its cosines are 0, all its affinities are equal, and it becomes about the CAM's mean.

    With ``shift < 1`` and power 1, affinities of cosines below ``−shift`` are negative. The quotient of sums is still
    exact and a constant CAM still stays as it is, but a polished CAM can leave the range of the CAM, without bound
    where the sum of a pixel's affinities comes near 0.

    Raises:
        ValueError: A parameter is out of range, or does not belong to the chosen ``phi``.
        TypeError: A parameter is of the wrong type.
    """

    phi: Literal["relu", "shifted", "exp"] = "relu"
    power: float = 1.0
    threshold: float = 0.0
    shift: float = 1.0
    temperature: float | None = None
    center: bool = False
    steps: int = 1
    norm_eps: float = 1e-5
    sum_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.phi not in ("relu", "shifted", "exp"):
            raise ValueError(f"phi: expected 'relu', 'shifted' or 'exp', got {self.phi!r}")
        if not isinstance(self.center, bool):
            raise TypeError(f"center: expected True or False, got {self.center!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, Integral):
            raise TypeError(f"steps: expected an int, got {self.steps!r}")
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")
        self._check_number("power", low=0.0, open_low=True)
        self._check_number("threshold", low=0.0, high=1.0)
        self._check_number("shift", low=0.0)
        self._check_number("norm_eps", low=0.0)
        self._check_number("sum_eps", low=0.0)
        foreign = {name: forms for name, forms in FORMS.items() if self.phi not in forms}
        for name, forms in foreign.items():
            if getattr(self, name) != getattr(type(self), name):
                owners = " or ".join(f"phi={form!r}" for form in forms)
                raise ValueError(f"{name}: belongs to {owners}, got {getattr(self, name)!r} with phi={self.phi!r}")
        if self.phi == "exp":
            if self.temperature is None:
                raise ValueError("temperature: phi='exp' needs one > 0, got None; 0.1 is a usual start")
            self._check_number("temperature", low=0.0, open_low=True)
        if self.phi == "shifted" and self.shift < 1.0 and self.power not in (1.0, 2.0):
            raise ValueError(
                f"shift: expected at least 1 with power={self.power:g}, got {self.shift:g}; a cosine below -shift has "
                "no such power: use power 1 or 2"
            )

    def _check_number(self, name: str, *, low: float, high: float = math.inf, open_low: bool = False) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}: expected a number, got {value!r}")
        number = float(value)
        if not (low < number if open_low else low <= number) or not number <= high or math.isinf(number):
            kind = f"> {low:g}" if open_low else f">= {low:g}"
            kind = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"finite and {kind}"
            raise ValueError(f"{name}: expected a number {kind}, got {value!r}")

    @property
    def degree(self) -> int | None:
        """Degree (1 or 2) of φ as a polynomial of the cosine, else None.

        The sum over source pixels can then be taken before the product with the target pixel, in linear time. The
        shifted form is such a polynomial always, the ReLU form only where no feature is negative: no cosine is, so the
        ReLU never acts.
        """
        if self.power not in (1.0, 2.0) or self.phi == "exp" or self.threshold > 0.0:
            return None
        return int(self.power) if self.any_sign or not self.center else None

    @property
    def any_sign(self) -> bool:
        """Whether φ is the same polynomial for features of any sign."""
        return self.phi == "shifted"

    def apply_(self, cosine: Tensor) -> Tensor:
        """Apply φ to a tensor of cosines (any shape, floating) in place; NaN stays NaN."""
        if self.phi == "exp":
            assert self.temperature is not None
            return cosine.sub_(1.0).div_(self.temperature).exp_()
        if self.phi == "shifted":
            cosine.add_(self.shift).div_(1.0 + self.shift)
            if self.degree is None:
                cosine.clamp_min_(0.0)  # −1 can round to less
        elif self.threshold > 0.0:
            cosine.masked_fill_(cosine < self.threshold, 0.0)
        else:
            cosine.clamp_min_(0.0)
        if self.power == 2.0:
            return cosine.square_()
        return cosine if self.power == 1.0 else cosine.pow_(self.power)

    @classmethod
    def parse(cls, text: str) -> Affinity:
        """Read ``"power=2,center"``: comma-separated ``name=value``; a bare ``center`` is True, ``""`` the defaults.

        Raises:
            ValueError: An unknown name, a name given twice, or a value that is not of the parameter's type.
        """
        kinds = {f.name: f.type for f in fields(cls)}
        given: dict[str, object] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (piece.strip() for piece in item.partition("="))
            if name not in kinds:
                raise ValueError(f"affinity: expected one of {', '.join(kinds)}, got {name!r}")
            if name in given:
                raise ValueError(f"affinity: expected each parameter once, got {name} twice")
            given[name] = _value(name, value, str(kinds[name]))
        return cls(**given)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """Return the parameters that differ from the defaults, as ``parse`` reads them; ``"phi=relu"`` if none do."""
        differing = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ",".join(differing) or "phi=relu"


def _value(name: str, text: str, kind: str) -> object:
    """Convert one parameter's text to its type; ``kind`` is its annotation in ``Affinity``."""
    if kind == "bool":
        if text.lower() in ("", "true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
        raise ValueError(f"affinity: {name} expects true or false, got {text!r}")
    if kind.startswith("Literal"):
        return text
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        expected = "an integer" if kind == "int" else "a number"
        raise ValueError(f"affinity: {name} expects {expected}, got {text!r}") from None
