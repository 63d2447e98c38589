"""Train the demo's classifier from image-level labels alone: ``python -m ssa_fast.demo.train``.

The scenes' masks and boxes are not used. The same machine, torch and thread count give the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ssa_fast.demo.scenes import CLASSES, make_scenes
from ssa_fast.evaluate.precision import average_precision
from ssa_fast.io.atomic import atomic_write
from ssa_fast.models.demo_net import WEIGHTS, SceneClassifier, export_weights, load_classifier, preprocess

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults are those of the shipped weights."""

    scenes: int = 4000
    held_out: int = 500
    epochs: int = 8
    batch: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    threads: int = 2
    seed: int = 0  # of the initial weights, the order of the scenes and their augmentation


def _load_scenes(count: int, seed: int) -> tuple[np.ndarray, Tensor]:
    """Return images ``(B, H, W, 3)`` uint8 and labels ``(B, K)`` float32."""
    scenes = make_scenes(count, seed)
    labels = np.stack([scene.labels for scene in scenes])
    return np.stack([scene.image for scene in scenes]), torch.from_numpy(labels).float()


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip half of the images horizontally and shift the batch by up to 8 pixels each way."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    rows, columns = torch.randint(-8, 9, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    padded = nn.functional.pad(images, (8, 8, 8, 8), mode="reflect")[:, :, 8 + rows :, 8 + columns :]
    return padded[:, :, :height, :width]


def per_class_precision(model: nn.Module, images: np.ndarray, labels: Tensor, batch: int = 64) -> dict[str, float]:
    """Return the average precision of each class by name, on images ``(B, H, W, 3)`` uint8."""
    with torch.inference_mode():
        logits = torch.cat([model(preprocess(images[at : at + batch])) for at in range(0, len(images), batch)])
    return {name: average_precision(logits[:, k].numpy(), labels[:, k].numpy()) for k, name in enumerate(CLASSES)}


def fit(make_model: Callable[[], nn.Module], recipe: Recipe = Recipe()) -> nn.Module:
    """Train a model, from ``preprocess``'s images to logits (B, K), on scenes of seed 1; return it in training mode."""
    start = time.perf_counter()
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    images, labels = _load_scenes(recipe.scenes, seed=1)
    print(f"{recipe.scenes} scenes generated in {time.perf_counter() - start:.0f} s", flush=True)
    model = make_model().to(memory_format=torch.channels_last)
    steps = recipe.scenes // recipe.batch
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    total = recipe.epochs * steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total, pct_start=0.2)
    for epoch in range(recipe.epochs):
        model.train()
        losses = []
        for chosen in torch.randperm(recipe.scenes, generator=generator).split(recipe.batch)[:steps]:
            batch = _augment(preprocess(images[chosen.numpy()]), generator)
            logits = model(batch.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        taken = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{recipe.epochs}  loss {np.mean(losses):.4f}  {taken:.0f} s", flush=True)
    return model


def train(path: Path = WEIGHTS, recipe: Recipe = Recipe()) -> str:
    """Train on scenes of seed 1, test on those of seed 2, write the weights and return their SHA-256."""
    start = time.perf_counter()
    model = fit(SceneClassifier, recipe)
    arrays: Any = export_weights(model)
    atomic_write(path, lambda temporary: np.savez_compressed(temporary, **arrays))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    precision = per_class_precision(load_classifier(path), *_load_scenes(recipe.held_out, seed=2))
    for name, value in precision.items():
        print(f"average precision {name:10s} {100 * value:.2f}")
    print(f"mean average precision {100 * np.mean(list(precision.values())):.2f} on {recipe.held_out} held-out scenes")
    print(f"{path}: {path.stat().st_size} bytes, sha256 {sha256}, {time.perf_counter() - start:.0f} s")
    return sha256


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the demo's classifier from image-level labels.")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file for the weights (default: in the package)")
    train(parser.parse_args().out)
