"""Test the pixel-adaptive refinement against its formula, pixel by pixel."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from ssa_fast.localize import refine, refinement
from ssa_fast.ssa import SSAResult


def literal(image: Tensor, cam: Tensor, dilations: tuple[int, ...], iterations: int) -> Tensor:
    """Return the map (H, W) of one class, by loops over pixels and neighbours in Python floats."""
    channels, height, width = image.shape
    pixels, values = image.double().tolist(), cam.double().tolist()

    def near(y: int, x: int, *, own: bool) -> list[tuple[int, int]]:
        steps = [(d * v, d * u) for d in dilations for v in (-1, 0, 1) for u in (-1, 0, 1) if own or v or u]
        return [(min(max(y + v, 0), height - 1), min(max(x + u, 0), width - 1)) for v, u in steps]

    def weights(y: int, x: int) -> list[float]:
        distances = [0.0] * (8 * len(dilations))
        for plane in pixels:
            around = [plane[v][u] for v, u in near(y, x, own=True)]
            mean = sum(around) / len(around)
            std = math.sqrt(sum((value - mean) ** 2 for value in around) / (len(around) - 1))
            for n, (v, u) in enumerate(near(y, x, own=False)):
                distances[n] += abs(plane[v][u] - plane[y][x]) / (1e-8 + 0.1 * std) / channels
        powers = [math.exp(-distance) for distance in distances]
        return [power / sum(powers) for power in powers]

    table = {(y, x): weights(y, x) for y in range(height) for x in range(width)}
    for _ in range(iterations):
        values = [
            [
                sum(weight * values[v][u] for weight, (v, u) in zip(table[y, x], near(y, x, own=False), strict=True))
                for x in range(width)
            ]
            for y in range(height)
        ]
    found = torch.tensor(values)
    low, high = cam.min(), cam.max()
    return low + (high - low) * (found - found.min()) / (found.max() - found.min())


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cached_pixels", [1 << 20, 0])
@pytest.mark.parametrize("channels", [3, 1])
def test_refine_equals_the_formula(channels: int, cached_pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "CACHED_PIXELS", cached_pixels)
    images, cams = random_maps(2, channels, 7, 9), 0.2 + 0.5 * random_maps(2, 2, 7, 9, seed=1)
    images[0, :, 2:5] = 0.5  # a plane region, with a standard deviation of 0 inside
    refined = refine(images, cams, dilations=(1, 3), iterations=2)
    assert refined.dtype == torch.float32
    for image, maps, found in zip(images, cams, refined, strict=True):
        for cam, each in zip(maps, found, strict=True):
            torch.testing.assert_close(each, literal(image, cam, (1, 3), 2), atol=2e-5, rtol=0)


def test_a_blurred_edge_moves_to_the_images() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[..., 16:] = 0.8
    image += 0.05 * random_maps(1, 3, 32, 32)
    cam = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)  # no edge of its own
    refined = refine(image, cam)[0, 0]
    step, own = refined[:, 16:].mean() - refined[:, :16].mean(), (refined[:, 16] - refined[:, 15]).mean()
    assert step > 0.7  # 0.5 before
    assert own > 0.5  # 0.03 before


def test_what_refinement_keeps() -> None:
    images, cams = random_maps(2, 3, 12, 10), random_maps(2, 3, 12, 10, seed=1)
    cams[0, 1] = 0  # a class that an image lacks
    cams[1, 2] = 0.4
    refined = refine(images, cams)
    assert refined[0, 1].abs().max() == 0
    torch.testing.assert_close(refined[1, 2], cams[1, 2])
    torch.testing.assert_close(refined.amax((2, 3)), cams.amax((2, 3)))
    torch.testing.assert_close(refined.amin((2, 3)), cams.amin((2, 3)))
    torch.testing.assert_close(refine(images[1:], cams[1:, :1]), refined[1:, :1])
    torch.testing.assert_close(refine(images.flip(3), cams.flip(3)), refined.flip(3), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(refine(images, cams, iterations=0), cams)
    assert refine(images, cams[:, :, ::2, ::2]).shape == cams.shape
    broken = cams.clone()
    broken[0, 0, 3, 3] = torch.nan
    spread = refine(images, broken)
    assert spread[0, 0].isnan().all()
    torch.testing.assert_close(spread[1], refined[1])


def test_a_result_is_refined_whole() -> None:
    images, cams = random_maps(1, 3, 16, 16), random_maps(1, 2, 16, 16, seed=1)
    valid = torch.ones(1, 2, dtype=torch.bool)
    result = SSAResult(cams, cams, {}, torch.zeros(1, 9), torch.tensor([[7, 3]]), valid, valid.float())
    refined = result.refine(images)
    assert torch.equal(refined.cams, refine(images, cams))
    assert torch.equal(refined.masks(), dataclasses.replace(result, cams=refined.cams).masks())
    assert refined.seed is result.seed


@pytest.mark.parametrize(
    ("images", "cams", "options", "error", "text"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8), {}, TypeError, "images: .* torch.uint8"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8).numpy(), {}, TypeError, "cams: .* got ndarray"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8), {}, ValueError, r"cams: expected \(B, K, h, w\), got \(1, 8"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(1, 1, 8, 8), {}, ValueError, r"images: expected \(1, 3, H, W\)"),
        (torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8), {}, ValueError, r"images: .* got \(1, 4, 8, 8\)"),
        (torch.full((1, 3, 8, 8), 2.0), torch.zeros(1, 1, 8, 8), {}, ValueError, r"images: .* \[0, 1\], got 2 to 2"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8), {"dilations": ()}, ValueError, "dilations: .* got "),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8), {"dilations": (0, 1)}, ValueError, r"dilations: .*\(0, 1\)"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8), {"iterations": -1}, ValueError, "iterations: .* got -1"),
    ],
)
def test_wrong_arguments(
    images: Tensor, cams: Tensor, options: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        refine(images, cams, **options)  # type: ignore[arg-type]
