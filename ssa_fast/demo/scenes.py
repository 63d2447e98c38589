"""Weakly labelled scenes: animals and distractors on a cluttered ground.

The only supervision a scene offers is ``labels``: which animals are in it. ``mask`` and ``boxes`` are the truth, which
the demo measures against and training never sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssa_fast.demo.creatures import CREATURES, DISTRACTORS, Drawing
from ssa_fast.demo.textures import PATTERNS, Array, Coat, ground, noise, random_coat
from ssa_fast.models.demo_net import CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["CLASSES", "SIZE", "Scene", "make_scene", "make_scenes"]

SIZE = 128
_OWN_COAT = 0.5  # how often an animal wears its kind's own pattern; else it wears any


@dataclass(frozen=True)
class Scene:
    """One picture, its image-level labels and its truth.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        labels: ``(K,)`` bool, which of ``CLASSES`` are present.
        mask: ``(H, W)`` uint8, 0 for ground and distractors, ``k + 1`` for class ``k``.
        boxes: ``(n, 4)`` int64, ``x0, y0, x1, y1`` in pixels, far ends exclusive, one per animal (no class twice).
        box_classes: ``(n,)`` int64, the class ``k`` of each box.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.bool_]
    mask: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    box_classes: NDArray[np.int64]


@dataclass(frozen=True)
class _Place:
    """Where a thing stands: centre and half-length in pixels, turn in radians, facing left or right."""

    x: float
    y: float
    scale: float
    turn: float
    facing: int


def _find_place(rng: np.random.Generator, scale: float, taken: list[_Place], size: int) -> _Place | None:
    """A place far enough from those taken that things hardly hide each other, or None where no room is found."""
    margin = 0.85 * scale
    for _ in range(30):
        x, y = rng.uniform(margin, size - margin, 2)
        if all(np.hypot(x - other.x, y - other.y) > 0.82 * (scale + other.scale) for other in taken):
            return _Place(float(x), float(y), scale, float(rng.uniform(-0.35, 0.35)), int(rng.choice((-1, 1))))
    return None


def _paint(
    canvas: Array, place: _Place, draw: Callable[[Array, Array], Drawing], coat: Coat
) -> tuple[Array, tuple[slice, slice]]:
    """Draw one thing with its shadow into ``canvas``; give its coverage in [0, 1] and the window drawn in."""
    size, reach = canvas.shape[0], 1.15 * place.scale
    top, left = max(0, int(place.y - reach)), max(0, int(place.x - reach))
    window = (slice(top, min(size, int(place.y + reach) + 1)), slice(left, min(size, int(place.x + reach) + 1)))
    y, x = np.mgrid[window].astype(np.float32)
    x, y = (x - np.float32(place.x)) * place.facing, y - np.float32(place.y)
    cos, sin = np.float32(np.cos(place.turn)), np.float32(np.sin(place.turn))
    u, v = cos * x + sin * y, cos * y - sin * x
    scale = np.float32(place.scale)
    layers = draw(u / scale, v / scale)
    whole = np.minimum.reduce([layer.distance for layer in layers]) * scale
    view = canvas[window]
    below = np.pad(whole, ((2, 0), (1, 0)), mode="edge")[:-2, :-1]
    shadow = np.clip(1.0 - below / 4.0, 0.0, 1.0)[..., None]
    view *= 1.0 - 0.3 * shadow
    fur, light = coat.paint(u, v), (1.0 - 0.16 * v / scale)[..., None]
    for distance, colour in layers:
        cover = np.clip(0.5 - distance * scale, 0.0, 1.0)[..., None]
        view += cover * ((fur if colour is None else colour) * light - view)
    return np.clip(0.5 - whole, 0.0, 1.0), window


def _blades(rng: np.random.Generator, canvas: Array) -> None:
    """Scatter short strokes, lighter or darker than the ground beneath them."""
    size = canvas.shape[0]
    for x, y in rng.integers(2, size - 8, (28, 2)):
        length, lean = int(rng.integers(3, 7)), float(rng.uniform(-0.6, 0.6))
        steps = np.arange(length)
        rows, columns = y + steps, np.clip(x + np.round(lean * steps).astype(int), 0, size - 1)
        canvas[rows, columns] *= np.float32(rng.choice((0.72, 1.28)))


def _boxes(mask: NDArray[np.uint8], labels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The box of each class present, around what is seen of it."""
    edges = []
    for label in np.flatnonzero(labels) + 1:
        rows, columns = np.nonzero(mask == label)
        edges.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return np.array(edges, np.int64)


def make_scene(rng: np.random.Generator, size: int = SIZE) -> Scene:
    """Draw one scene of ``size`` × ``size`` pixels (at most 256): one to three animals and one to three distractors."""
    canvas, ground_hue = ground(rng, size)
    _blades(rng, canvas)
    labels, mask = np.zeros(len(CLASSES), bool), np.zeros((size, size), np.uint8)
    kinds = rng.permutation(len(CLASSES))[: rng.choice((1, 2, 3), p=(0.35, 0.45, 0.2))].tolist()
    things: list[int | None] = kinds + [None] * int(rng.integers(1, 4))
    places: list[_Place] = []
    hues = [ground_hue]
    for kind in things:
        scale = float(rng.uniform(10, 17) if kind is None else rng.uniform(22, 36)) * size / SIZE
        place = _find_place(rng, scale, places, size)
        if place is None:
            continue
        places.append(place)
        own = kind is not None and rng.random() < _OWN_COAT
        pattern = kind if kind is not None and own else int(rng.integers(len(PATTERNS)))
        coat, hue = random_coat(rng, pattern, hues)
        draw = CREATURES[CLASSES[kind]] if kind is not None else DISTRACTORS[rng.integers(len(DISTRACTORS))]
        cover, window = _paint(canvas, place, draw, coat)
        mask[window][cover > 0.5] = 0 if kind is None else kind + 1
        if kind is not None:
            labels[kind] = True
            hues.append(hue)
    canvas *= 1.0 + 0.02 * noise(rng, size, size, 1)[..., None]
    image = (np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return Scene(image, labels, mask, _boxes(mask, labels), np.flatnonzero(labels))


def make_scenes(count: int, seed: int, size: int = SIZE) -> list[Scene]:
    """``count`` scenes, each from its own generator: scene ``i`` is the same however many are asked for."""
    return [make_scene(np.random.default_rng((seed, index)), size) for index in range(count)]
