"""Train further networks on the demo's scenes: ``python -m bench.quality.scenes relu|silu SEED FILE``.

They have the demo's architecture and recipe; "silu" has signed features instead of the ReLU's. A trained file is read
by ``python -m bench quality --scenes N --model scenes=FILE``. Training takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ssa_fast.demo.train import Recipe, fit
from ssa_fast.io.atomic import atomic_write
from ssa_fast.models.demo_net import ResidualBlock, SceneClassifier

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


class _Block(ResidualBlock):
    """A residual block with another activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__(inputs, outputs, stride)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.second(self.activation(self.first(x))) + self.shortcut(x))


def build(activation: str) -> SceneClassifier:
    """Return the demo's architecture with an activation, untrained."""
    model = SceneClassifier()
    model.stem[1] = ACTIVATIONS[activation]()
    widths = (24, 32, 64, 96, 128)
    for at in range(4):
        block = _Block(widths[at], widths[at + 1], 2 if at else 1, activation)
        setattr(model, f"layer{at + 1}", block)
    return model


def train(activation: str, seed: int, path: Path, **recipe: int) -> None:
    """Train a network on scenes and write it; ``recipe`` changes the demo's hyperparameters."""
    model = fit(lambda: build(activation), Recipe(seed=seed, **recipe))
    saved = {"activation": activation, "state": model.state_dict()}
    atomic_write(path, lambda temporary: torch.save(saved, temporary))


def load(path: Path) -> SceneClassifier:
    """Load what ``train`` wrote, in evaluation mode.

    Raises:
        ValueError: The file is another.
    """
    saved = torch.load(path, weights_only=True)
    if not isinstance(saved, dict) or saved.get("activation") not in ACTIVATIONS:
        raise ValueError(f"model: expected a file of `python -m bench.quality.scenes`, got {path}; train one")
    model = build(saved["activation"])
    model.load_state_dict(saved["state"])
    return model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activation", choices=list(ACTIVATIONS))
    parser.add_argument("seed", type=int)
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    train(given.activation, given.seed, given.file)
