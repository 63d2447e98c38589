"""The things that stand in a scene: six animals (the classes) and the distractors (no class).

Each is drawn from signed distances (negative inside) in body coordinates: ``u`` towards the head, ``v`` downwards, the
body about two units long. An animal is a large body under a coat that any other animal may wear, and one small telling
part: head, face or horns. A classifier learns the telling part, so its CAM marks that and leaves the body out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ssa_fast.demo.textures import Array, rgb

if TYPE_CHECKING:
    from collections.abc import Callable


class Layer(NamedTuple):
    """A signed distance ``(h, w)`` and the colour inside it; no colour means the animal's coat."""

    distance: Array
    colour: Array | None


Drawing = list[Layer]

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
    return [
        Layer(_ellipse(u, v, cu, cv, radius, radius), white),
        Layer(_ellipse(u, v, cu, cv, 0.5 * radius, 0.5 * radius), _BLACK),
    ]


def _fish(u: Array, v: Array) -> Drawing:
    trunk = _ellipse(u, v, 0.1, 0.0, 0.78, 0.46)
    tail = _triangle(u, v, (-0.5, 0.0), (-1.0, -0.45), (-1.0, 0.45))
    fin = _triangle(u, v, (0.3, -0.35), (-0.35, -0.35), (-0.2, -0.7))
    head = np.maximum(trunk, 0.52 - u)
    gill = np.maximum(trunk, np.abs(u - 0.5) - 0.06)
    return [
        Layer(_union(trunk, tail, fin), None),
        Layer(head, _ORANGE),
        Layer(gill, _WHITE),
        *_eye(u, v, 0.66, -0.08, 0.11, _WHITE),
    ]


def _owl(u: Array, v: Array) -> Drawing:
    trunk = _ellipse(u, v, 0.0, 0.1, 0.62, 0.8)
    tufts = _union(
        _triangle(u, v, (-0.55, -0.3), (-0.1, -0.6), (-0.5, -0.95)),
        _triangle(u, v, (0.55, -0.3), (0.1, -0.6), (0.5, -0.95)),
    )
    beak = _triangle(u, v, (-0.1, -0.28), (0.1, -0.28), (0.0, -0.02))
    eyes = _eye(u, v, -0.22, -0.36, 0.21, _YELLOW) + _eye(u, v, 0.22, -0.36, 0.21, _YELLOW)
    return [Layer(_union(trunk, tufts), None), *eyes, Layer(beak, _ORANGE)]


def _tortoise(u: Array, v: Array) -> Drawing:
    dome = np.maximum(_ellipse(u, v, -0.12, 0.3, 0.78, 0.85), v - 0.36)
    feet = _union(_ellipse(u, v, -0.55, 0.4, 0.17, 0.2), _ellipse(u, v, 0.28, 0.4, 0.17, 0.2))
    neck = _capsule(u, v, (0.5, 0.25), (0.8, 0.02), 0.13)
    head = _union(neck, _ellipse(u, v, 0.82, -0.02, 0.2, 0.17))
    return [Layer(head, _GREEN), Layer(_union(dome, feet), None), *_eye(u, v, 0.87, -0.06, 0.08, _WHITE)]


def _cat(u: Array, v: Array) -> Drawing:
    trunk = _ellipse(u, v, -0.15, 0.2, 0.68, 0.42)
    legs = _union(_capsule(u, v, (-0.6, 0.3), (-0.6, 0.62), 0.12), _capsule(u, v, (0.3, 0.3), (0.3, 0.62), 0.12))
    tail = _union(_capsule(u, v, (-0.7, 0.1), (-0.95, -0.3), 0.09), _capsule(u, v, (-0.95, -0.3), (-0.8, -0.55), 0.09))
    ears = _union(
        _triangle(u, v, (0.3, -0.2), (0.55, -0.35), (0.33, -0.72)),
        _triangle(u, v, (0.9, -0.2), (0.65, -0.35), (0.87, -0.72)),
    )
    head = _union(_ellipse(u, v, 0.6, -0.15, 0.32, 0.29), ears)
    eyes = _union(_ellipse(u, v, 0.48, -0.2, 0.06, 0.08), _ellipse(u, v, 0.72, -0.2, 0.06, 0.08))
    nose = _ellipse(u, v, 0.6, -0.03, 0.08, 0.06)
    return [Layer(_union(trunk, legs, tail), None), Layer(head, _CREAM), Layer(eyes, _BLACK), Layer(nose, _PINK)]


def _beetle(u: Array, v: Array) -> Drawing:
    wings = _ellipse(u, v, -0.15, 0.0, 0.72, 0.56)
    legs = _union(
        *(
            _capsule(u, v, (at, side * 0.4), (at + lean, side * 0.75), 0.05)
            for at, lean in ((-0.5, -0.15), (-0.1, 0.0), (0.25, 0.12))
            for side in (-1, 1)
        )
    )
    head = _ellipse(u, v, 0.6, 0.0, 0.26, 0.36)
    horns = _union(_capsule(u, v, (0.75, -0.15), (1.0, -0.32), 0.05), _capsule(u, v, (0.75, 0.15), (1.0, 0.32), 0.05))
    dots = _union(_ellipse(u, v, 0.62, -0.17, 0.09, 0.09), _ellipse(u, v, 0.62, 0.17, 0.09, 0.09))
    return [Layer(legs, _BLACK), Layer(wings, None), Layer(_union(head, horns), _BLACK), Layer(dots, _WHITE)]


def _duck(u: Array, v: Array) -> Drawing:
    trunk = _ellipse(u, v, -0.1, 0.25, 0.72, 0.42)
    tail = _triangle(u, v, (-0.5, 0.0), (-0.6, 0.4), (-1.0, -0.12))
    neck = _capsule(u, v, (0.42, 0.15), (0.5, -0.3), 0.17)
    ring = np.maximum(neck, np.abs(v + 0.1) - 0.06)
    bill = _triangle(u, v, (0.66, -0.52), (0.66, -0.28), (1.02, -0.36))
    head = _ellipse(u, v, 0.52, -0.42, 0.25, 0.24)
    return [
        Layer(_union(trunk, tail, neck), None),
        Layer(ring, _WHITE),
        Layer(bill, _ORANGE),
        Layer(head, _TEAL),
        *_eye(u, v, 0.58, -0.47, 0.07, _WHITE),
    ]


CREATURES: dict[str, Callable[[Array, Array], Drawing]] = {
    "fish": _fish,
    "owl": _owl,
    "tortoise": _tortoise,
    "cat": _cat,
    "beetle": _beetle,
    "duck": _duck,
}


def _stone(u: Array, v: Array) -> Drawing:
    return [Layer(_union(_ellipse(u, v, 0.0, 0.0, 0.8, 0.55), _ellipse(u, v, 0.3, -0.1, 0.5, 0.5)), _GREY)]


def _leaf(u: Array, v: Array) -> Drawing:
    blade = np.maximum(_ellipse(u, v, 0.0, 0.45, 0.95, 0.8), _ellipse(u, v, 0.0, -0.45, 0.95, 0.8))
    return [Layer(blade, None), Layer(_capsule(u, v, (-1.0, 0.0), (0.7, 0.0), 0.04), _CREAM)]


def _cushion(u: Array, v: Array) -> Drawing:
    return [Layer(np.maximum(np.abs(u) - 0.7, np.abs(v) - 0.5), None)]


def _ball(u: Array, v: Array) -> Drawing:
    return [Layer(_ellipse(u, v, 0.0, 0.0, 0.6, 0.6), None)]


def _flower(u: Array, v: Array) -> Drawing:
    turn = np.arctan2(v, u)
    petals = np.hypot(u, v) - (0.55 + 0.2 * np.cos(5.0 * turn)).astype(np.float32)
    return [Layer(petals, None), Layer(_ellipse(u, v, 0.0, 0.0, 0.22, 0.22), _YELLOW)]


DISTRACTORS: tuple[Callable[[Array, Array], Drawing], ...] = (_stone, _leaf, _cushion, _ball, _flower)
