"""Generate colours and textures of the scenes: animal coats and ground.

The noise fields, the only shared state, come from a fixed seed, so that a scene depends on its own seed alone.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Coat = Callable[[Array, Array], Array]
"""Colours ``(..., 3)`` at body coordinates ``u``, ``v`` in pixels."""

_BANK_SIZE = 256


def rgb(hue: float, saturation: float, value: float) -> Array:
    """Return an HSV colour as RGB, three float32 numbers in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)


@lru_cache(maxsize=1)
def _noise_bank() -> dict[int, Array]:
    """Return noise fields ``(n, 256, 256)``, mean 0 and standard deviation 1, by grain size in pixels."""
    rng = np.random.default_rng(20211110)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(_BANK_SIZE), np.fft.rfftfreq(_BANK_SIZE), indexing="ij"))
    bank = {}
    for grain in (1, 2, 6, 24):
        white = rng.standard_normal((6, _BANK_SIZE, _BANK_SIZE))
        smooth = np.fft.irfft2(np.fft.rfft2(white) * np.exp(-2.0 * (np.pi * frequency * grain / 2.5) ** 2))
        smooth -= smooth.mean(axis=(1, 2), keepdims=True)
        bank[grain] = (smooth / smooth.std(axis=(1, 2), keepdims=True)).astype(np.float32)
    return bank


def noise(rng: np.random.Generator, height: int, width: int, grain: int) -> Array:
    """Return noise ``(height, width)``, at most 256 each, with grains 1, 2, 6 or 24 pixels wide."""
    fields = _noise_bank()[grain]
    field = fields[rng.integers(len(fields))]
    top, left = rng.integers(_BANK_SIZE - height + 1), rng.integers(_BANK_SIZE - width + 1)
    return field[top : top + height, left : left + width]


PATTERNS: tuple[Callable[[Array, Array], Array], ...] = (
    lambda u, v: np.sin(u),  # stripes
    lambda u, v: np.cos(0.8 * u) * np.cos(0.8 * v) - 0.25,  # spots
    lambda u, v: np.sin(0.7 * u + np.abs(np.sin(0.5 * v)) * 2.0),  # scales
    lambda u, v: np.sin(0.7 * (u + v)) * np.sin(0.7 * (u - v)) * 2.0,  # checks
    lambda u, v: np.sin(np.hypot(u, v)),  # rings
    lambda u, v: np.sin(1.3 * u + 2.0 * np.sin(0.9 * v)) * np.cos(1.1 * v + 1.5 * np.cos(0.8 * u)) * 1.5,  # speckle
)


def random_coat(rng: np.random.Generator, pattern: int, avoid: list[float]) -> tuple[Coat, float]:
    """Return a random coat and its hue, if possible at a distance from the hues in ``avoid``."""
    hue = float(rng.random())
    for _ in range(8):
        if all(abs((hue - other + 0.5) % 1.0 - 0.5) > 0.09 for other in avoid):
            break
        hue = float(rng.random())
    saturation, value = rng.uniform(0.55, 0.9), rng.uniform(0.7, 0.98)
    light = rgb(hue, saturation, value)
    dark = rgb(hue + rng.uniform(-0.05, 0.05), min(1.0, saturation + 0.1), value * rng.uniform(0.45, 0.7))
    frequency = np.float32(2.0 * np.pi / float(rng.uniform(5.5, 8.5)))  # the period is in pixels

    def coat(u: Array, v: Array) -> Array:
        mix = np.clip(0.5 + 0.9 * PATTERNS[pattern](u * frequency, v * frequency), 0.0, 1.0)[..., None]
        return light * mix + dark * (1.0 - mix)

    return coat, hue


_GROUNDS = (  # two colours each (hue, saturation, value): meadow, sand, soil, snow, heath, moss
    ((0.27, 0.50, 0.52), (0.22, 0.48, 0.36)),
    ((0.11, 0.38, 0.80), (0.09, 0.42, 0.62)),
    ((0.07, 0.45, 0.42), (0.06, 0.50, 0.28)),
    ((0.58, 0.06, 0.92), (0.60, 0.14, 0.76)),
    ((0.95, 0.16, 0.48), (0.30, 0.26, 0.36)),
    ((0.36, 0.34, 0.40), (0.16, 0.40, 0.46)),
)


def ground(rng: np.random.Generator, size: int) -> tuple[Array, float]:
    """Return ground ``(size, size, 3)`` and the hue of its first colour."""
    first, second = _GROUNDS[rng.integers(len(_GROUNDS))]
    shift = rng.uniform(-0.03, 0.03)
    light, dark = (rgb(h + shift, s, v) for h, s, v in (first, second))
    patches = np.clip(0.5 + 0.45 * noise(rng, size, size, 24) + 0.25 * noise(rng, size, size, 6), 0.0, 1.0)[..., None]
    grain = 0.05 * noise(rng, size, size, 2) + 0.035 * noise(rng, size, size, 1)
    return (light * patches + dark * (1.0 - patches)) * (1.0 + grain[..., None]), first[0] + shift
