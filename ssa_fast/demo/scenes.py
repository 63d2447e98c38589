"""Generate weakly labelled scenes: animals and distractors on textured ground.

Training sees only ``labels``, the animals in a scene. ``mask`` and ``boxes`` are the truth for the demo's measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import ndimage

from ssa_fast.demo.creatures import CREATURES, DISTRACTORS
from ssa_fast.demo.textures import PATTERNS, Array, Coat, ground, noise, random_coat
from ssa_fast.models.demo_net import CLASSES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ssa_fast.demo.creatures import Draw

__all__ = ["CLASSES", "SIZE", "Scene", "make_scene", "make_scenes"]

SIZE = 128


@dataclass(frozen=True)
class Scene:
    """An image, its image-level labels and its true mask and boxes.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        labels: ``(K,)`` bool, presence of each of ``CLASSES``.
        mask: ``(H, W)`` uint8, 0 for ground and distractors, ``k + 1`` for class ``k``.
        boxes: ``(n, 4)`` int64, ``x0, y0, x1, y1`` in pixels, far edges exclusive, one per class present.
        box_classes: ``(n,)`` int64, the class ``k`` of each box.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.bool_]
    mask: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    box_classes: NDArray[np.int64]


class _Place(NamedTuple):
    """Position of an object: centre and half-length in pixels, rotation in radians, direction -1 or 1."""

    x: float
    y: float
    scale: float
    angle: float
    direction: int


def _find_place(rng: np.random.Generator, scale: float, taken: list[_Place], size: int) -> _Place | None:
    """Return a place with little overlap with those taken, or None if 30 random places have too much."""
    margin = 0.85 * scale
    for _ in range(30):
        x, y = rng.uniform(margin, size - margin, 2)
        if all(np.hypot(x - other.x, y - other.y) > 0.82 * (scale + other.scale) for other in taken):
            return _Place(float(x), float(y), scale, float(rng.uniform(-0.35, 0.35)), int(rng.choice((-1, 1))))
    return None


def _paint(canvas: Array, place: _Place, draw: Draw, coat: Coat) -> tuple[Array, tuple[slice, slice]]:
    """Draw one object and its shadow into ``canvas``; return its coverage in [0, 1] and its window."""
    size, radius = canvas.shape[0], 1.15 * place.scale
    rows, columns = (slice(max(0, int(c - radius)), min(size, int(c + radius) + 1)) for c in (place.y, place.x))
    window = (rows, columns)
    y, x = np.mgrid[window].astype(np.float32)
    x, y = (x - np.float32(place.x)) * place.direction, y - np.float32(place.y)
    cos, sin, scale = np.array((np.cos(place.angle), np.sin(place.angle), place.scale), np.float32)
    u, v = cos * x + sin * y, cos * y - sin * x
    layers = draw(u / scale, v / scale)
    whole = np.minimum.reduce([distance for distance, _ in layers]) * scale
    view = canvas[window]
    shadow = np.clip(1.0 - np.pad(whole, ((2, 0), (1, 0)), mode="edge")[:-2, :-1] / 4.0, 0.0, 1.0)[..., None]
    view *= 1.0 - 0.3 * shadow
    fur, light = coat(u, v), (1.0 - 0.16 * v / scale)[..., None]
    for distance, colour in layers:
        cover = np.clip(0.5 - distance * scale, 0.0, 1.0)[..., None]
        view += cover * ((fur if colour is None else colour) * light - view)
    return np.clip(0.5 - whole, 0.0, 1.0), window


def _blades(rng: np.random.Generator, canvas: Array) -> None:
    """Draw short blades of grass, lighter or darker than the ground."""
    size = canvas.shape[0]
    for x, y in rng.integers(2, size - 8, (28, 2)):
        steps, lean = np.arange(rng.integers(3, 7)), float(rng.uniform(-0.6, 0.6))
        columns = np.clip(x + np.round(lean * steps).astype(int), 0, size - 1)
        canvas[y + steps, columns] *= np.float32(rng.choice((0.72, 1.28)))


def _boxes(mask: NDArray[np.uint8], labels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the box around the visible pixels of each class present."""
    regions = ndimage.find_objects(mask)
    present = (regions[k] for k in np.flatnonzero(labels))
    return np.array([(x.start, y.start, x.stop, y.stop) for y, x in present], np.int64)


def make_scene(rng: np.random.Generator, size: int = SIZE) -> Scene:
    """Return a scene of ``size`` × ``size`` pixels, ``size`` ≤ 256: 1 to 3 animals and distractors each."""
    canvas, ground_hue = ground(rng, size)
    _blades(rng, canvas)
    labels, mask = np.zeros(len(CLASSES), bool), np.zeros((size, size), np.uint8)
    kinds = rng.permutation(len(CLASSES))[: rng.choice((1, 2, 3), p=(0.35, 0.45, 0.2))].tolist()
    objects: list[int | None] = kinds + [None] * int(rng.integers(1, 4))
    places: list[_Place] = []
    hues = [ground_hue]
    for kind in objects:
        scale = float(rng.uniform(10, 17) if kind is None else rng.uniform(22, 36)) * size / SIZE
        place = _find_place(rng, scale, places, size)
        if place is None:
            continue
        places.append(place)
        own = kind is not None and rng.random() < 0.5  # the class's own pattern instead of a random one
        pattern = kind if kind is not None and own else int(rng.integers(len(PATTERNS)))
        coat, hue = random_coat(rng, pattern, hues)
        draw = DISTRACTORS[rng.integers(len(DISTRACTORS))] if kind is None else CREATURES[CLASSES[kind]]
        cover, window = _paint(canvas, place, draw, coat)
        mask[window][cover > 0.5] = 0 if kind is None else kind + 1
        if kind is not None:
            labels[kind] = True
            hues.append(hue)
    canvas *= 1.0 + 0.02 * noise(rng, size, size, 1)[..., None]
    image = (np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return Scene(image, labels, mask, _boxes(mask, labels), np.flatnonzero(labels))


def make_scenes(count: int, seed: int, size: int = SIZE) -> list[Scene]:
    """Return ``count`` scenes, each from its own generator: scene ``i`` does not depend on ``count``."""
    return [make_scene(np.random.default_rng((seed, index)), size) for index in range(count)]
