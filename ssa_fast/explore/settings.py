"""What a view shows, as the page sends it; every value checked but those that only the network can judge."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ssa_fast.affinity import Affinity
from ssa_fast.explore.images import SIDE

if TYPE_CHECKING:
    from ssa_fast.models.stage_affinity import StageAffinities

AFFINITIES = {
    "auto": "Automatic, in linear time",
    "phi=relu": "ReLU of the cosine (PCM)",
    "power=2": "ReLU, squared",
    "phi=shifted": "Shifted cosine",
    "phi=shifted,power=2": "Shifted cosine, squared",
    "center": "ReLU of centred features",
    "threshold=0.5": "Cosines from 0.5 on",
    "phi=exp,temperature=0.1": "Exponential (softmax-like)",
}
"""Affinities that the page offers, as ``Affinity.parse`` and ``ssa-fast run --affinity`` read them."""

Name = Annotated[str, Field(min_length=1, max_length=200)]
Stages = Annotated[list[Name], Field(min_length=1, max_length=16)] | None
Side = Annotated[int, Field(ge=32, le=SIDE)] | None


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NetworkRequest(_Request):
    """A network, run on an image: ``size`` is the image's shorter side then, None its own size."""

    network: Name
    image: Name
    stages: Stages = None
    size: Side = None

    @property
    def stage_names(self) -> tuple[str, ...] | None:
        """The stages; None for the network's own."""
        return None if self.stages is None else tuple(self.stages)


class _WithAffinity(NetworkRequest):
    affinity: Annotated[str, Field(max_length=200)] = "auto"

    @field_validator("affinity")
    @classmethod
    def _readable(cls, text: str) -> str:
        text = text.strip()
        return text if text == "auto" else str(Affinity.parse(text))

    @property
    def affinities(self) -> StageAffinities:
        """The affinity as ``SSA`` takes it."""
        return "auto" if self.affinity == "auto" else Affinity.parse(self.affinity)


class CorrelationRequest(_WithAffinity):
    """The pixel at fractions ``y`` and ``x`` of an image's height and width."""

    y: Annotated[float, Field(ge=0, le=1)]
    x: Annotated[float, Field(ge=0, le=1)]


class ViewSettings(_WithAffinity):
    """The settings of a view, as ``SSA`` takes them; ``full`` asks for it whatever time it takes."""

    classes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=5)]
    fuse: Literal["mean", "max", "sum", "product"] = "mean"
    weights: list[float] | None = None
    seed: Name = "auto"
    prior: Literal["center"] | None = None
    full: bool = False

    @property
    def id(self) -> str:
        """A name of the view: equal settings have the same."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:24]


class DownloadOptions(BaseModel):
    """How a view's map becomes boxes, a mask and a figure; "auto" is the map's own threshold."""

    model_config = ConfigDict(extra="forbid", frozen=True)  # not strict: an address holds nothing but text

    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    background: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    components: Literal["largest", "all"] = "largest"
    colormap: Literal["viridis", "cividis", "magma", "turbo"] = "viridis"
