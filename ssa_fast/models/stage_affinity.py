"""Choose the affinity of each stage of a network, so that polishing takes linear time whatever the features' sign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from ssa_fast.affinity import Affinity
from ssa_fast.validation import per_stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ssa_fast.validation import Affinities

Sign: TypeAlias = Literal["non-negative", "signed"]
StageAffinities: TypeAlias = "Affinities | Literal['auto']"

SIGNED_DEFAULT = Affinity(phi="shifted")
"""What "auto" takes for signed features."""

REASONS: dict[Sign, str] = {
    "non-negative": "auto: linear time, as the ReLU never acts",
    "signed": "auto: linear time for features of any sign",
}


def choose_affinities(affinity: StageAffinities, signs: Mapping[str, Sign]) -> dict[str, Affinity]:
    """Return the affinity of each stage: as given, or for "auto" by the sign of its features.

    "auto" is PCM's ReLU for a stage without a negative feature, ``SIGNED_DEFAULT`` for any other: both are polynomials
    of degree 1 there.

    Args:
        affinity: "auto", one affinity, or one per stage (sequence or dict by stage).
        signs: Stage name -> the sign of its features.

    Raises:
        TypeError: Something else than an affinity.
        ValueError: Another text than "auto", or affinities that are not one per stage.
    """
    if affinity == "auto":
        return {name: Affinity() if sign == "non-negative" else SIGNED_DEFAULT for name, sign in signs.items()}
    if isinstance(affinity, str):
        raise ValueError(
            f"affinity: expected 'auto', an Affinity or one per stage, got {affinity!r}; "
            "ssa_fast.Affinity() is the ReLU, Affinity(phi='shifted') the shifted cosine"
        )
    return per_stage("affinity", affinity, signs, Affinity)


def affinity_reason(affinity: StageAffinities, sign: Sign) -> str:
    """Return in words why a stage whose features have ``sign`` has the affinity that ``choose_affinities`` returns."""
    return REASONS[sign] if affinity == "auto" else "asked for"


def sign_source(sign: Sign, proved: bool) -> str:
    """Return in words how it is known, on other images than the sample image, that a stage is non-negative."""
    if sign == "signed":
        return ""
    return " (by construction)" if proved else " (read on each image)"
