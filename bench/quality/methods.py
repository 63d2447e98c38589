"""The rows of the table, one entry each: the seeds, what others make of a network, SSA with its options, and controls.

Everything is made by the package's own code, as its users get it: a seed by ``SSA``'s own recipe, a polished map by
``polish`` of the shared stages (which is what ``SSA`` returns for that seed), and several views by ``SSA`` itself.
Methods of others are those of the package pytorch-grad-cam.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from ssa_fast import Affinity, polish
from ssa_fast.localize import refine
from ssa_fast.ops.prior import apply_prior
from ssa_fast.ops.resize import minmax, resize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from bench.quality.networks import Sample
    from ssa_fast.ops.prior import Prior

Kind: TypeAlias = Literal["peer", "ssa", "prior", "control"]
VIEWS: Mapping[str, Any] = {"scales": (0.5, 1.0, 1.5, 2.0), "flip": True}
SEED, BLOB, BASELINE = "seed", "centre blob", "SSA"


def blob(sample: Sample) -> Tensor:
    """Return maps (1, K, H, W) that fall off from the centre: the control that sees no image."""
    y, x = (torch.linspace(-1, 1, side) for side in sample.size)
    return torch.exp(-(y[:, None] ** 2 + x**2)).expand(1, sample.classes.shape[1], -1, -1)


SEEDS: dict[str, Callable[[Sample], Tensor]] = {
    "auto": lambda sample: sample.model_seed("auto", sample.classes),
    "grad-cam": lambda sample: sample.model_seed("grad-cam", sample.classes),
    "layercam": lambda sample: sample.model_seed("layercam", sample.classes),
    "blob": blob,
    "wrong": lambda sample: sample.model_seed("auto", sample.wrong),
    "wrong-layercam": lambda sample: sample.model_seed("layercam", sample.wrong),
}


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        run: From a sample and its seed, or from a sample alone, to maps (1, K, h, w) of any size and range.
        seed: Its key in ``SEEDS``, None if ``run`` takes none.
        kind: "peer" is what SSA is compared with, "ssa" what it can do, "prior" the same with an assumption about
            photographs, "control" what a fair gain must beat.
        align_corners: Of the resizing of the maps to the network's input.
    """

    run: Callable[..., Tensor]
    seed: str | None
    kind: Kind
    align_corners: bool = False

    def make(self, name: str, sample: Sample) -> tuple[Tensor, float]:
        """Return the maps (1, K, H, W) in [0, 1] at the input's size, and their CPU ms beyond the forward pass."""
        if self.seed is None:
            maps, spent = sample.made(name, self.run)
        else:
            seed, seed_ms = sample.made(f"seed {self.seed}", SEEDS[self.seed])
            maps, own_ms = sample.made(name, lambda sample: self.run(sample, seed))
            spent = seed_ms + own_ms
        return minmax(resize(maps, sample.size, self.align_corners)), spent


def polished(
    sample: Sample, seed: Tensor, align_corners: bool = False, affinity: str | None = None, prior: Prior | None = None
) -> Tensor:
    """Return SSA's map of the seed; ``affinity`` is that of signed stages or, with "all:" before it, of all stages."""
    chosen = dict(sample.network.ssa().affinities)
    if affinity is not None:
        everywhere = affinity.startswith("all:")
        given = Affinity.parse(affinity.removeprefix("all:"))
        signed = {name: bool((maps < 0).any()) for name, maps in sample.stages.items()}
        chosen = {name: given if everywhere or signed[name] else Affinity() for name in chosen}
    options: dict[str, Any] = {"rescale": True, "size": sample.size, "align_corners": align_corners}
    cams: Tensor = polish(apply_prior(seed, prior), sample.stages, affinity=chosen, **options)
    return cams


def refined(sample: Sample, maps: Tensor) -> Tensor:
    """Return maps after pixel-adaptive refinement (PAMR)."""
    return refine(sample.pixels(), minmax(resize(maps, sample.size, align_corners=False)))


def several_views(sample: Sample, kind: str) -> Tensor:
    """Return the maps of ``SSA(seed=kind)`` at several scales, flipped and not."""
    sample.run_network()
    return sample.network.ssa(seed=kind, align_corners=False, **VIEWS)(sample.images, sample.classes.tolist()).cams


def others(sample: Sample, base: str, *, product: bool) -> Tensor:
    """Return the mean of the stages' maps by a class of pytorch-grad-cam, or their product, RefineCAM (1, K, H, W).

    The package's ``RefineCAM`` runs the network once per stage; here its base method records all stages in one run per
    class, which gives the same maps sooner. ModuleNotFoundError if the package is not installed.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class Product(getattr(pytorch_grad_cam, base)):  # type: ignore[misc]
        def aggregate_multi_layers(self, cam_per_target_layer: list[Any]) -> Any:
            return scale_cam_image(np.prod([scale_cam_image(layer[:, 0]) for layer in cam_per_target_layer], axis=0))

    sample.run_network()
    model, stages = sample.network.model, sample.network.ssa().info.stages
    layers, last = [model.get_submodule(name) for name in stages], list(stages.values())[-1]
    method = Product if product else getattr(pytorch_grad_cam, base)
    with method(model, layers, partial(last.layout.view, image_size=sample.size)) as cam:
        image = sample.images.clone().requires_grad_()  # the recorder's hooks need a graph, as parameters are frozen
        with torch.enable_grad():
            maps = [cam(image, [ClassifierOutputTarget(index)])[0] for index in sample.classes[0].tolist()]
    return torch.stack([torch.from_numpy(each).float() for each in maps])[None]


def _alone(seed: str, kind: Kind = "peer") -> Method:
    return Method(lambda sample, maps: maps, seed, kind)


def _ssa(seed: str = "auto", kind: Kind = "ssa", **options: Any) -> Method:
    return Method(partial(polished, **options), seed, kind, options.get("align_corners", False))


def _pamr(seed: str, kind: Kind = "ssa", prior: Prior | None = None) -> Method:
    return Method(lambda sample, maps: refined(sample, polished(sample, maps, prior=prior)), seed, kind)


METHODS: dict[str, Method] = {
    BLOB: _alone("blob", "control"),
    SEED: _alone("auto"),
    "Grad-CAM": _alone("grad-cam"),
    "LayerCAM": _alone("layercam"),
    "seed, PAMR": Method(refined, "auto", "peer"),
    "LayerCAM, PAMR": Method(refined, "layercam", "peer"),
    "LayerCAM of pytorch-grad-cam": Method(partial(others, base="LayerCAM", product=False), None, "peer"),
    "RefineCAM": Method(partial(others, base="GradCAMPlusPlus", product=True), None, "peer"),
    "RefineCAM of LayerCAM": Method(partial(others, base="LayerCAM", product=True), None, "peer"),
    "PCM, last stage": Method(
        lambda sample, seed: polish(seed, list(sample.stages.values())[-1]), "auto", "peer", align_corners=True
    ),
    BASELINE: _ssa(),
    "SSA, align_corners=True": _ssa(align_corners=True),
    "SSA, phi=relu on all stages": _ssa(affinity="all:phi=relu"),
    "SSA, phi=shifted on all stages": _ssa(affinity="all:phi=shifted"),
    "SSA, power=2": _ssa(affinity="all:phi=relu,power=2"),
    "SSA, center": _ssa(affinity="all:phi=relu,center=True"),
    "SSA, phi=exp": _ssa(affinity="all:phi=exp,temperature=0.2"),
    "SSA, PAMR": _pamr("auto"),
    "SSA, several views": Method(partial(several_views, kind="auto"), None, "ssa"),
    "SSA of Grad-CAM": _ssa("grad-cam"),
    "SSA of LayerCAM": _ssa("layercam"),
    "SSA of LayerCAM, PAMR": _pamr("layercam"),
    "SSA of LayerCAM, several views": Method(partial(several_views, kind="layercam"), None, "ssa"),
    "SSA, center prior": _ssa("auto", "prior", prior="center"),
    "SSA of LayerCAM, center prior": _ssa("layercam", "prior", prior="center"),
    "SSA of LayerCAM, center prior, PAMR": _pamr("layercam", "prior", "center"),
    "SSA of a centre blob": _ssa("blob", "control"),
    "SSA of a centre blob, PAMR": _pamr("blob", "control"),
    "SSA of a wrong class": _ssa("wrong", "control"),
    "SSA of a wrong class's LayerCAM": _ssa("wrong-layercam", "control"),
    "SSA of a wrong class's LayerCAM, center prior": _ssa("wrong-layercam", "control", prior="center"),
    "SSA of a wrong class's LayerCAM, center prior, PAMR": _pamr("wrong-layercam", "control", "center"),
}
RIVALS = (
    *(name for name, method in METHODS.items() if method.kind == "peer"),
    BLOB,
    "SSA of a centre blob",
    "SSA of a centre blob, PAMR",
)
"""Rows that the best setting of SSA is compared with."""


def of_affinity(text: str) -> Method:
    """Return the row of an affinity's text, see ``polished``; ValueError if it is none."""
    Affinity.parse(text.removeprefix("all:"))
    return _ssa(affinity=text)
