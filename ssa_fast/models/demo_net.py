"""Define the demo's classifier: a small residual network, trained by ``ssa_fast.demo.train``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WEIGHTS = Path(__file__).parents[1] / "demo" / "weights.npz"
CLASSES = ("fish", "owl", "tortoise", "cat", "beetle", "duck")


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut and a final ReLU: the features are never negative."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_bn(inputs, outputs, 3, stride)
        self.second = _conv_bn(outputs, outputs, 3, 1)
        self.shortcut = _conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class SceneClassifier(nn.Module):
    """Multi-label classifier: ``(B, 3, H, W)`` from ``preprocess`` to logits ``(B, num_classes)``.

    Stages ``layer1`` … ``layer4`` have strides 2, 4, 8 and 16. The head is global average pooling and one linear layer,
    so the CAM of Zhou et al. (CVPR 2016) is exact: the mean of ``fc.weight · layer4`` over pixels, plus the bias,
    is the logit.
    """

    def __init__(self, num_classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_bn(3, 24, 3, 2), nn.ReLU())
        self.layer1 = ResidualBlock(24, 32, 1)
        self.layer2 = ResidualBlock(32, 64, 2)
        self.layer3 = ResidualBlock(64, 96, 2)
        self.layer4 = ResidualBlock(96, 128, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return self.fc(torch.flatten(self.avgpool(features), 1))


def preprocess(images: np.ndarray) -> Tensor:
    """Convert uint8 RGB images ``(B, H, W, 3)`` to ``(B, 3, H, W)`` float32, (x − 0.5) / 0.25 of [0, 1]."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.25


def export_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Return the parameters and running statistics as float16 arrays, as stored in ``weights.npz``."""
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    return {name: value.detach().cpu().numpy().astype(np.float16) for name, value in state.items()}


def load_classifier(path: Path = WEIGHTS) -> SceneClassifier:
    """Load the trained classifier in evaluation mode, float32, on the CPU; ValueError for other arrays."""
    model = SceneClassifier()
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    shapes = {name: value.shape for name, value in export_weights(model).items()}
    names = shapes.keys() | arrays.keys()
    wrong = sorted(name for name in names if name not in arrays or arrays[name].shape != shapes.get(name))
    if wrong:
        raise ValueError(
            f"path: expected the arrays of SceneClassifier, got others in {path} ({', '.join(wrong)}); "
            "train them again with `python -m ssa_fast.demo.train`"
        )
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    return model.eval()
