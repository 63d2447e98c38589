"""The objects of a scene: six animals (the classes) and distractors (no class).

Each is drawn from signed distances (negative inside) in body coordinates: ``u`` towards the head, ``v`` downwards, the
body about two units long. The body's coat is common to all classes; a classifier learns the small discriminative part
(head, face or horns), so its CAM misses the body.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssa_fast.demo.textures import Array, rgb
from ssa_fast.models.demo_net import CLASSES

Drawing = list[tuple[Array, Array | None]]
"""Shapes, each by its signed distances ``(h, w)`` and its colour; None stands for the animal's coat."""
Draw = Callable[[Array, Array], Drawing]

_BLACK, _WHITE = rgb(0.0, 0.0, 0.06), rgb(0.12, 0.04, 0.97)
_ORANGE, _YELLOW, _CREAM = rgb(0.075, 0.95, 0.98), rgb(0.14, 0.85, 0.99), rgb(0.11, 0.22, 0.96)
_GREEN, _TEAL, _PINK, _GREY = rgb(0.26, 0.75, 0.55), rgb(0.43, 0.9, 0.36), rgb(0.96, 0.55, 0.92), rgb(0.6, 0.08, 0.55)


def _ellipse(u: Array, v: Array, cu: float, cv: float, a: float, b: float) -> Array:
    return (np.hypot((u - cu) / np.float32(a), (v - cv) / np.float32(b)) - 1.0) * np.float32(min(a, b))


def _capsule(u: Array, v: Array, start: tuple[float, float], end: tuple[float, float], radius: float) -> Array:
    du, dv = end[0] - start[0], end[1] - start[1]
    along = np.clip(((u - start[0]) * du + (v - start[1]) * dv) / (du * du + dv * dv), 0.0, 1.0)
    return np.hypot(u - start[0] - along * du, v - start[1] - along * dv) - np.float32(radius)


def _triangle(u: Array, v: Array, *corners: tuple[float, float]) -> Array:
    centre = np.mean(corners, axis=0)
    sides = []
    for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
        normal = np.array([v1 - v0, u0 - u1]) / np.hypot(u1 - u0, v1 - v0)
        if normal @ (centre - (u0, v0)) > 0:
            normal = -normal
        sides.append((u - u0) * np.float32(normal[0]) + (v - v0) * np.float32(normal[1]))
    return np.maximum.reduce(sides)


def _union(*distances: Array) -> Array:
    return np.minimum.reduce(distances)


def _eye(u: Array, v: Array, cu: float, cv: float, radius: float, white: Array) -> Drawing:
    pupil = 0.5 * radius
    return [(_ellipse(u, v, cu, cv, radius, radius), white), (_ellipse(u, v, cu, cv, pupil, pupil), _BLACK)]


def _fish(u: Array, v: Array) -> Drawing:
    trunk = _ellipse(u, v, 0.1, 0.0, 0.78, 0.46)
    tail = _triangle(u, v, (-0.5, 0.0), (-1.0, -0.45), (-1.0, 0.45))
    fin = _triangle(u, v, (0.3, -0.35), (-0.35, -0.35), (-0.2, -0.7))
    head = np.maximum(trunk, 0.52 - u)
    gill = np.maximum(trunk, np.abs(u - 0.5) - 0.06)
    eye = _eye(u, v, 0.66, -0.08, 0.11, _WHITE)
    return [(_union(trunk, tail, fin), None), (head, _ORANGE), (gill, _WHITE), *eye]


def _owl(u: Array, v: Array) -> Drawing:
    trunk = _ellipse(u, v, 0.0, 0.1, 0.62, 0.8)
    tufts = [_triangle(u, v, (s * 0.55, -0.3), (s * 0.1, -0.6), (s * 0.5, -0.95)) for s in (-1, 1)]
    beak = _triangle(u, v, (-0.1, -0.28), (0.1, -0.28), (0.0, -0.02))
    eyes = _eye(u, v, -0.22, -0.36, 0.21, _YELLOW) + _eye(u, v, 0.22, -0.36, 0.21, _YELLOW)
    return [(_union(trunk, *tufts), None), *eyes, (beak, _ORANGE)]


def _tortoise(u: Array, v: Array) -> Drawing:
    dome = np.maximum(_ellipse(u, v, -0.12, 0.3, 0.78, 0.85), v - 0.36)
    feet = _union(_ellipse(u, v, -0.55, 0.4, 0.17, 0.2), _ellipse(u, v, 0.28, 0.4, 0.17, 0.2))
    neck = _capsule(u, v, (0.5, 0.25), (0.8, 0.02), 0.13)
    head = _union(neck, _ellipse(u, v, 0.82, -0.02, 0.2, 0.17))
    return [(head, _GREEN), (_union(dome, feet), None), *_eye(u, v, 0.87, -0.06, 0.08, _WHITE)]


def _cat(u: Array, v: Array) -> Drawing:
    trunk = _ellipse(u, v, -0.15, 0.2, 0.68, 0.42)
    legs = _union(_capsule(u, v, (-0.6, 0.3), (-0.6, 0.62), 0.12), _capsule(u, v, (0.3, 0.3), (0.3, 0.62), 0.12))
    tail = _union(_capsule(u, v, (-0.7, 0.1), (-0.95, -0.3), 0.09), _capsule(u, v, (-0.95, -0.3), (-0.8, -0.55), 0.09))
    left, right = ((0.3, -0.2), (0.55, -0.35), (0.33, -0.72)), ((0.9, -0.2), (0.65, -0.35), (0.87, -0.72))
    head = _union(_ellipse(u, v, 0.6, -0.15, 0.32, 0.29), _triangle(u, v, *left), _triangle(u, v, *right))
    eyes = _union(_ellipse(u, v, 0.48, -0.2, 0.06, 0.08), _ellipse(u, v, 0.72, -0.2, 0.06, 0.08))
    nose = _ellipse(u, v, 0.6, -0.03, 0.08, 0.06)
    return [(_union(trunk, legs, tail), None), (head, _CREAM), (eyes, _BLACK), (nose, _PINK)]


def _beetle(u: Array, v: Array) -> Drawing:
    wings = _ellipse(u, v, -0.15, 0.0, 0.72, 0.56)
    hips = ((-0.5, -0.15), (-0.1, 0.0), (0.25, 0.12))  # position along the body, and how far the foot is from it
    ends = [((at, side * 0.4), (at + lean, side * 0.75)) for at, lean in hips for side in (-1, 1)]
    legs = _union(*(_capsule(u, v, *end, 0.05) for end in ends))
    head = _ellipse(u, v, 0.6, 0.0, 0.26, 0.36)
    horns = _union(_capsule(u, v, (0.75, -0.15), (1.0, -0.32), 0.05), _capsule(u, v, (0.75, 0.15), (1.0, 0.32), 0.05))
    dots = _union(_ellipse(u, v, 0.62, -0.17, 0.09, 0.09), _ellipse(u, v, 0.62, 0.17, 0.09, 0.09))
    return [(legs, _BLACK), (wings, None), (_union(head, horns), _BLACK), (dots, _WHITE)]


def _duck(u: Array, v: Array) -> Drawing:
    trunk = _ellipse(u, v, -0.1, 0.25, 0.72, 0.42)
    tail = _triangle(u, v, (-0.5, 0.0), (-0.6, 0.4), (-1.0, -0.12))
    neck = _capsule(u, v, (0.42, 0.15), (0.5, -0.3), 0.17)
    ring = np.maximum(neck, np.abs(v + 0.1) - 0.06)
    bill = _triangle(u, v, (0.66, -0.52), (0.66, -0.28), (1.02, -0.36))
    head = _ellipse(u, v, 0.52, -0.42, 0.25, 0.24)
    eye = _eye(u, v, 0.58, -0.47, 0.07, _WHITE)
    return [(_union(trunk, tail, neck), None), (ring, _WHITE), (bill, _ORANGE), (head, _TEAL), *eye]


CREATURES: dict[str, Draw] = dict(zip(CLASSES, (_fish, _owl, _tortoise, _cat, _beetle, _duck), strict=True))


def _stone(u: Array, v: Array) -> Drawing:
    return [(_union(_ellipse(u, v, 0.0, 0.0, 0.8, 0.55), _ellipse(u, v, 0.3, -0.1, 0.5, 0.5)), _GREY)]


def _leaf(u: Array, v: Array) -> Drawing:
    blade = np.maximum(_ellipse(u, v, 0.0, 0.45, 0.95, 0.8), _ellipse(u, v, 0.0, -0.45, 0.95, 0.8))
    return [(blade, None), (_capsule(u, v, (-1.0, 0.0), (0.7, 0.0), 0.04), _CREAM)]


def _flower(u: Array, v: Array) -> Drawing:
    petals = np.hypot(u, v) - (0.55 + 0.2 * np.cos(5.0 * np.arctan2(v, u))).astype(np.float32)
    return [(petals, None), (_ellipse(u, v, 0.0, 0.0, 0.22, 0.22), _YELLOW)]


DISTRACTORS: tuple[Draw, ...] = (
    _stone,
    _leaf,
    lambda u, v: [(np.maximum(np.abs(u) - 0.7, np.abs(v) - 0.5), None)],  # cushion
    lambda u, v: [(_ellipse(u, v, 0.0, 0.0, 0.6, 0.6), None)],  # ball
    _flower,
)
