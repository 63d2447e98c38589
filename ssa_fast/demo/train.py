"""Train the demo's classifier from image-level labels alone: ``python -m ssa_fast.demo.train``.

The masks and boxes of the scenes are never read here. The same machine, torch and thread count give the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssa_fast.demo.scenes import CLASSES, make_scenes
from ssa_fast.evaluate.precision import average_precision
from ssa_fast.io.atomic import atomic_write
from ssa_fast.models.demo_net import WEIGHTS, SceneClassifier, export_weights, load_classifier, preprocess

TRAIN_SEED, HELD_OUT_SEED = 1, 2


@dataclass(frozen=True)
class Recipe:
    """How the shipped weights were made."""

    scenes: int = 4000
    held_out: int = 500
    epochs: int = 8
    batch: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    threads: int = 2


@dataclass(frozen=True)
class Training:
    """What a run left behind."""

    path: Path
    sha256: str
    bytes: int
    precision: dict[str, float]
    seconds: float


def _labelled(count: int, seed: int) -> tuple[np.ndarray, Tensor]:
    scenes = make_scenes(count, seed)
    return np.stack([scene.image for scene in scenes]), torch.from_numpy(
        np.stack([scene.labels for scene in scenes])
    ).float()


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the pictures and shift the batch by up to 8 pixels each way."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    rows, columns = torch.randint(-8, 9, (2,), generator=generator).tolist()
    padded = nn.functional.pad(images, (8, 8, 8, 8), mode="reflect")
    height, width = images.shape[2:]
    return padded[:, :, 8 + rows : 8 + rows + height, 8 + columns : 8 + columns + width]


def scores(model: nn.Module, images: np.ndarray, batch: int = 64) -> Tensor:
    """Logits ``(B, K)`` of pictures ``(B, H, W, 3)`` uint8."""
    with torch.inference_mode():
        return torch.cat([model(preprocess(images[start : start + batch])) for start in range(0, len(images), batch)])


def per_class_precision(model: nn.Module, images: np.ndarray, labels: Tensor) -> dict[str, float]:
    """Average precision of each class by name."""
    logits = scores(model, images)
    return {name: average_precision(logits[:, k].numpy(), labels[:, k].numpy()) for k, name in enumerate(CLASSES)}


def _write(model: nn.Module, path: Path) -> tuple[str, int]:
    """Write the weights whole or not at all; their SHA-256 and size come back."""
    arrays: dict[str, Any] = dict(export_weights(model))
    atomic_write(path, lambda temporary: np.savez_compressed(temporary, **arrays))
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest(), len(content)


def train(path: Path = WEIGHTS, recipe: Recipe = Recipe()) -> Training:
    """Train on scenes of seed 1, measure on scenes of seed 2, write ``path``, and print how it went."""
    began = time.perf_counter()
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, labels = _labelled(recipe.scenes, TRAIN_SEED)
    print(f"{recipe.scenes} scenes drawn in {time.perf_counter() - began:.0f} s", flush=True)
    model = SceneClassifier().to(memory_format=torch.channels_last)
    steps = recipe.epochs * (recipe.scenes // recipe.batch)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.2)
    for epoch in range(recipe.epochs):
        model.train()
        losses = []
        for chosen in torch.randperm(recipe.scenes, generator=generator).split(recipe.batch)[
            : recipe.scenes // recipe.batch
        ]:
            pictures = _augment(preprocess(images[chosen.numpy()]), generator).contiguous(
                memory_format=torch.channels_last
            )
            loss = nn.functional.binary_cross_entropy_with_logits(model(pictures), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}/{recipe.epochs}  loss {np.mean(losses):.4f}  {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    sha256, size = _write(model, path)
    precision = per_class_precision(load_classifier(path), *_labelled(recipe.held_out, HELD_OUT_SEED))
    for name, value in precision.items():
        print(f"average precision {name:10s} {100 * value:.2f}")
    print(f"mean average precision {100 * np.mean(list(precision.values())):.2f} on {recipe.held_out} held-out scenes")
    seconds = time.perf_counter() - began
    print(f"{path}: {size} bytes, sha256 {sha256}, {seconds:.0f} s")
    return Training(path, sha256, size, precision, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the demo's classifier from image-level labels.")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go (default: into the package)")
    train(parser.parse_args().out)
