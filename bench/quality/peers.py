"""Methods of others that SSA is compared with, by the package pytorch-grad-cam."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.quality.sample import Sample


def mean_cam(sample: Sample, base: str) -> Tensor:
    """Return the mean of the stages' maps by a method of the package, by the name of its class (1, K, H, W).

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    import pytorch_grad_cam

    return _run(sample, getattr(pytorch_grad_cam, base))


def refine_cam(sample: Sample, base: str = "GradCAMPlusPlus") -> Tensor:
    """Return RefineCAM (1, K, H, W): the product of the stages' maps by ``base``, which is Grad-CAM++ by default.

    The package's ``RefineCAM`` runs the network once per stage; here its base method records all stages in one run per
    class, which gives the same maps sooner.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.image import scale_cam_image

    class Product(getattr(pytorch_grad_cam, base)):  # type: ignore[misc]
        def aggregate_multi_layers(self, cam_per_target_layer: list[Any]) -> Any:
            return scale_cam_image(np.prod([scale_cam_image(layer[:, 0]) for layer in cam_per_target_layer], axis=0))

    return _run(sample, Product)


def _run(sample: Sample, method: Any) -> Tensor:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    sample.run_network()
    model, stages = sample.network.model, sample.network.ssa().info.stages
    layers, last = [model.get_submodule(name) for name in stages], list(stages.values())[-1]
    with method(model, layers, partial(last.layout.view, image_size=sample.size)) as cam:
        image = sample.images.clone().requires_grad_()  # the recorder's hooks need a graph, as parameters are frozen
        with torch.enable_grad():
            maps = [cam(image, [ClassifierOutputTarget(index)])[0] for index in sample.classes[0].tolist()]
    return torch.stack([torch.from_numpy(each).float() for each in maps])[None]
