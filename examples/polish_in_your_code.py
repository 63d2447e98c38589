"""Polish class activation maps inside your own code: your own CAM, torch-cam's, or pytorch-grad-cam's.

Whoever has a CAM and the features of a network needs one call, ``ssa_fast.polish``. Install and run::

    pip install "ssa_fast[photos]" torchcam grad-cam
    python polish_in_your_code.py photo.jpg --out maps
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchcam.methods import LayerCAM

import ssa_fast
from ssa_fast.io.images import read_image
from ssa_fast.models import zoo


def own_cam(model: torch.nn.Module, images: torch.Tensor, k: int) -> torch.Tensor:
    """Return the classifier's own CAM (B, 1, h, w): its last features, weighted as its last layer does."""
    with torch.no_grad():
        return torch.einsum("c,bchw->bhw", model.classifier.weight[k], model.forward_features(images)).relu()[:, None]


def torch_cam(model: torch.nn.Module, images: torch.Tensor, k: int) -> list[torch.Tensor]:
    """Return what torch-cam gives: a list with one map (B, h, w) per layer."""
    with LayerCAM(model, target_layer="bn2") as extractor:
        return extractor(k, model(images))


def pytorch_grad_cam(model: torch.nn.Module, images: torch.Tensor, k: int) -> torch.Tensor:
    """Return what pytorch-grad-cam gives: an array (B, H, W) of the image's size; here with an axis for the class."""
    with GradCAM(model, [model.bn2]) as extractor:
        return torch.from_numpy(extractor(images, [ClassifierOutputTarget(k)]))[:, None]


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("image", type=Path)
parser.add_argument("--out", type=Path, default=Path("maps"), help="folder of the heat maps")
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)

classifier, rgb = zoo.load("efficientnet_lite0"), read_image(given.image).rgb
images = classifier.preprocess(rgb, 224)
with torch.no_grad():
    k = int(classifier.model(images).argmax())
    stages = classifier.model.forward_intermediates(images, indices=[2, 3, 4], intermediates_only=True)

for source in (own_cam, torch_cam, pytorch_grad_cam):
    cam = source(classifier.model, images, k)
    # Several stages: SSA. One: SEAM's PCM(cam, f). "shifted" as these features have both signs; after a ReLU: "relu".
    polished = ssa_fast.polish(cam, stages, affinity=ssa_fast.Affinity(phi="shifted"))
    path = given.out / f"{source.__name__}.jpg"
    Image.fromarray(ssa_fast.overlay(rgb, polished)).save(path)
    print(f"{classifier.categories[k]}: {tuple(polished.shape)} in {path}")
