"""The rows of the table: the seeds, what others make of a network, SSA with its options, and controls.

Everything is made by the package's own code, as its users get it: a seed by ``SSA``'s own recipe, a polished map by
``polish`` of the shared stages (which is what ``SSA`` returns for that seed), and several views by ``SSA`` itself.
Methods of others are those of the package pytorch-grad-cam.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from bench.quality.networks import Sample
from ssa_fast import Affinity, polish
from ssa_fast.localize import refine
from ssa_fast.ops.prior import apply_prior
from ssa_fast.ops.resize import minmax, resize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from ssa_fast.ops.prior import Prior

SEED, BLOB, BASELINE = "seed", "centre blob", "SSA"


class Method(NamedTuple):
    """One row.

    Attributes:
        kind: "peer" is what SSA is compared with, "ssa" what it can do, "prior" the same with an assumption about
            photographs, "control" what a fair gain must beat.
        source: From a sample to maps (1, K, h, w) of any size and range; rows share what they make.
        ssa: Options of ``polished``, None for the source's own maps.
        pamr: Whether the maps are refined in the end.
    """

    kind: str
    source: Callable[[Sample], Tensor]
    ssa: Mapping[str, Any] | None = None
    pamr: bool = False

    def make(self, sample: Sample) -> tuple[Tensor, float]:
        """Return the maps (1, K, H, W) in [0, 1] at the input's size, and their CPU ms beyond the forward pass."""
        seed, seed_ms = sample.made(self.source)
        maps, own_ms = sample.made(partial(self._finish, seed))
        return minmax(resize(maps, sample.size, align_corners=False)), seed_ms + own_ms

    def _finish(self, seed: Tensor, sample: Sample) -> Tensor:
        maps = seed if self.ssa is None else polished(sample, seed, **self.ssa)
        if not self.pamr:
            return maps
        pixels = to_tensor(sample.image.resize(sample.size[::-1], Image.Resampling.BILINEAR))
        return refine(pixels[None], minmax(resize(maps, sample.size, align_corners=False)))


def polished(
    sample: Sample, seed: Tensor, affinity: str = "", prior: Prior | None = None, last: bool = False, **more: Any
) -> Tensor:
    """Return SSA's map of the seed, or that of the ``last`` stage alone, which is PCM's; ``more`` is for ``polish``.

    ``affinity``, if any, is that of signed stages or, with "all:" before it, of all stages.
    """
    stages = dict([*sample.stages.items()][-1:]) if last else sample.stages
    chosen = {name: sample.ssa().affinities[name] for name in stages}
    if affinity:
        everywhere, given = affinity.startswith("all:"), Affinity.parse(affinity.removeprefix("all:"))
        chosen = {name: given if everywhere or (each < 0).any() else Affinity() for name, each in stages.items()}
    more.setdefault("align_corners", False)
    cams: Tensor = polish(apply_prior(seed, prior), stages, affinity=chosen, rescale=True, size=sample.size, **more)
    return cams


def blob(sample: Sample) -> Tensor:
    """Return maps (1, K, H, W) that fall off from the centre: the control that sees no image."""
    y, x = (torch.linspace(-1, 1, side) for side in sample.size)
    return torch.exp(-(y[:, None] ** 2 + x**2)).expand(1, sample.classes.shape[1], -1, -1)


def several_views(sample: Sample, kind: str) -> Tensor:
    """Return the maps of ``SSA(seed=kind)`` at several scales, flipped and not."""
    sample.runs_network = True
    ssa = sample.ssa(seed=kind, scales=(0.5, 1.0, 1.5, 2.0), flip=True)
    return ssa(sample.images, sample.classes.tolist()).cams


def others(sample: Sample, base: str, product: bool = False) -> Tensor:
    """Return the mean of the stages' maps by a class of pytorch-grad-cam, or their product, RefineCAM (1, K, H, W).

    The package's ``RefineCAM`` runs the network once per stage; here its base method records all stages in one run per
    class, which gives the same maps sooner. ModuleNotFoundError if the package is not installed.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def scaled(layer: Any) -> Any:
        return scale_cam_image(layer[:, 0])

    sample.runs_network = True
    model, stages = sample.ssa().model, sample.ssa().info.stages
    layers, last = [model.get_submodule(name) for name in stages], list(stages.values())[-1]
    with getattr(pytorch_grad_cam, base)(model, layers, partial(last.layout.view, image_size=sample.size)) as cam:
        if product:
            cam.aggregate_multi_layers = lambda found: scale_cam_image(np.prod([*map(scaled, found)], axis=0))
        image = sample.images.clone().requires_grad_()  # the recorder's hooks need a graph, as parameters are frozen
        with torch.enable_grad():
            maps = [cam(image, [ClassifierOutputTarget(index)])[0] for index in sample.classes[0].tolist()]
    return torch.stack([torch.from_numpy(each).float() for each in maps])[None]


def of_affinity(text: str) -> Method:
    """Return the row of an affinity's text, see ``polished``; ValueError if it is none."""
    Affinity.parse(text.removeprefix("all:"))
    return Method("ssa", CAM, {"affinity": text})


CAM, GRAD_CAM, LAYERCAM = (partial(Sample.seed, kind=kind) for kind in ("auto", "grad-cam", "layercam"))
WRONG, WRONG_LAYERCAM = (partial(Sample.seed, kind=kind, wrong=True) for kind in ("auto", "layercam"))
PRIOR = {"prior": "center"}
METHODS = {
    BLOB: Method("control", blob),
    SEED: Method("peer", CAM),
    "Grad-CAM": Method("peer", GRAD_CAM),
    "LayerCAM": Method("peer", LAYERCAM),
    "seed, PAMR": Method("peer", CAM, pamr=True),
    "LayerCAM, PAMR": Method("peer", LAYERCAM, pamr=True),
    "LayerCAM of pytorch-grad-cam": Method("peer", partial(others, base="LayerCAM")),
    "RefineCAM": Method("peer", partial(others, base="GradCAMPlusPlus", product=True)),
    "RefineCAM of LayerCAM": Method("peer", partial(others, base="LayerCAM", product=True)),
    "PCM, last stage": Method("peer", CAM, {"affinity": "all:phi=relu", "align_corners": True, "last": True}),
    BASELINE: Method("ssa", CAM, {}),
    "SSA, align_corners=True": Method("ssa", CAM, {"align_corners": True}),
    "SSA, phi=relu on all stages": of_affinity("all:phi=relu"),
    "SSA, phi=shifted on all stages": of_affinity("all:phi=shifted"),
    "SSA, power=2": of_affinity("all:phi=relu,power=2"),
    "SSA, center": of_affinity("all:phi=relu,center=True"),
    "SSA, phi=exp": of_affinity("all:phi=exp,temperature=0.2"),
    "SSA, PAMR": Method("ssa", CAM, {}, pamr=True),
    "SSA, several views": Method("ssa", partial(several_views, kind="auto")),
    "SSA of Grad-CAM": Method("ssa", GRAD_CAM, {}),
    "SSA of LayerCAM": Method("ssa", LAYERCAM, {}),
    "SSA of LayerCAM, PAMR": Method("ssa", LAYERCAM, {}, pamr=True),
    "SSA of LayerCAM, several views": Method("ssa", partial(several_views, kind="layercam")),
    "SSA, center prior": Method("prior", CAM, PRIOR),
    "SSA of LayerCAM, center prior": Method("prior", LAYERCAM, PRIOR),
    "SSA of LayerCAM, center prior, PAMR": Method("prior", LAYERCAM, PRIOR, pamr=True),
    "SSA of a centre blob": Method("control", blob, {}),
    "SSA of a centre blob, PAMR": Method("control", blob, {}, pamr=True),
    "SSA of a wrong class": Method("control", WRONG, {}),
    "SSA of a wrong class's LayerCAM": Method("control", WRONG_LAYERCAM, {}),
    "SSA of a wrong class's LayerCAM, center prior": Method("control", WRONG_LAYERCAM, PRIOR),
    "SSA of a wrong class's LayerCAM, center prior, PAMR": Method("control", WRONG_LAYERCAM, PRIOR, pamr=True),
}
RIVALS = [name for name, method in METHODS.items() if method.kind == "peer"]
RIVALS += [name for name, method in METHODS.items() if method.source is blob]
"""Rows that the best setting of SSA is compared with."""
