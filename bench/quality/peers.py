"""Methods of others that SSA is compared with."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.quality.sample import Sample


def refine_cam(sample: Sample, base: str = "GradCAMPlusPlus") -> Tensor:
    """Return RefineCAM of the package pytorch-grad-cam (1, K, H, W): the product of the stages' maps by ``base``.

    The package's own choice for ``base`` is Grad-CAM++. It runs the network forwards and backwards once per stage and
    class.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    sample.run_network()
    model, layers = sample.network.model, sample.network.ssa().info.stages
    modules, base_method = [model.get_submodule(name) for name in layers], getattr(pytorch_grad_cam, base)
    refine = pytorch_grad_cam.RefineCAM(model, modules, base_method=base_method)
    recorders = [each.activations_and_grads for each in refine.base_cam_per_layer]
    try:
        for recorder, ref in zip(recorders, layers.values(), strict=True):
            recorder.reshape_transform = partial(ref.layout.view, image_size=sample.size)
        image = sample.images.clone().requires_grad_()  # its hooks need a graph, also where parameters are frozen
        with torch.enable_grad():
            maps = [refine(image, [ClassifierOutputTarget(index)])[0] for index in sample.classes[0].tolist()]
    finally:
        for recorder in recorders:
            recorder.release()
        model.zero_grad()
    return torch.stack([torch.from_numpy(each).float() for each in maps])[None]
