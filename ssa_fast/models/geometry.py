"""Find which part of an image a network's maps cover, where its forward crops or pads the image before the backbone.

A map is laid over an image as if it covered the whole of it. A forward that resizes images keeps that true; one that
crops or pads to a square does not. What a forward does is measured: a patch of the image is altered, and the place
where the finest stage changes is compared with the place of the patch.

Of volumes, the patch goes through the whole depth: height and width are measured, nothing is known of the depth.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ssa_fast.models.layout import Window, find_first_tensor, window_size
from ssa_fast.models.trace import hooked_inference, make_trace_image, restored
from ssa_fast.ops.resize import resize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from torch import nn

    from ssa_fast.layouts import Size
    from ssa_fast.models.layout import TensorLayout
    from ssa_fast.models.trace import LayerRef

Geometry: TypeAlias = "str | Callable[[int, int], Window] | None"

# Centres (y, x) of altered patches, as fractions of the image: one that no crop, padding, flip, rotation or
# transposition leaves where it is, and those by which a suspicious forward is measured.
MIN_CELLS = 6  # sides of a map that is too coarse to tell
SCREENED = 0.875, 0.125
PLACES = [(y, x) for y in (0.2, 0.5, 0.8) for x in (0.2, 0.5, 0.8)]


def _square(height: int, width: int, side: int) -> Window:
    top, left = (height - side) / 2, (width - side) / 2
    return top, left, top + side, left + side


KINDS: dict[str, Callable[[int, int], Window]] = {
    "resize": lambda height, width: (0, 0, height, width),
    "center-crop": lambda height, width: _square(height, width, min(height, width)),
    "pad": lambda height, width: _square(height, width, max(height, width)),
    "pad-end": lambda height, width: (0, 0, max(height, width), max(height, width)),
}
NAMES = {
    "center-crop": "crops images to their centred square, so its maps cover only that and the CAMs are 0 beside it",
    "pad": "pads images on both sides to a square, so the padding is cut off its maps",
    "pad-end": "pads images at their end to a square, so the padding is cut off its maps",
}


class SecondTrial(NamedTuple):
    """What images of other sizes have shown.

    Attributes:
        fixed_size: The only (H, W), of volumes (D, H, W), that the network was found to accept, or None.
        fixed_grids: Names of the layers whose tokens do not follow the image's size.
        window: The part of an image (H, W) that the maps cover; None: the whole.
        notes: What was assumed, one sentence each.
    """

    fixed_size: Size | None
    fixed_grids: frozenset[str]
    window: Callable[[int, int], Window] | None
    notes: tuple[str, ...] = ()

    def adapt(self, ref: LayerRef) -> LayerRef:
        """Return the layer with its tokens read as the images have shown."""
        return replace(ref, layout=replace(ref.layout, fixed=ref.name in self.fixed_grids, window=self.window))


def check_geometry(geometry: Geometry) -> Callable[[int, int], Window] | None:
    """Return ``geometry`` as a function of (H, W), None for the whole image; TypeError or ValueError if it is none."""
    if geometry is None:
        return None
    if isinstance(geometry, str) and geometry not in KINDS:
        raise ValueError(f"geometry: expected one of {', '.join(map(repr, KINDS))} or a function, got {geometry!r}")
    if not isinstance(geometry, str) and not callable(geometry):
        raise TypeError(
            f"geometry: expected a name or a function from (H, W) to the (top, left, bottom, right) that the maps "
            f"cover, got {geometry!r}"
        )
    if geometry == "resize":
        return None
    return KINDS[geometry] if isinstance(geometry, str) else lambda height, width: _checked(geometry, height, width)


def _checked(function: Callable[[int, int], Window], height: int, width: int) -> Window:
    window = tuple(function(height, width))
    if len(window) != 4 or not all(map(math.isfinite, window)) or window[2] <= window[0] or window[3] <= window[1]:
        raise ValueError(
            "geometry: expected (top, left, bottom, right) in pixels, top < bottom and left < right, got "
            f"{window!r} for an image of {height} x {width}"
        )
    return window


def over_image(maps: Tensor, window: Window, image_size: Size, align_corners: bool) -> Tensor:
    """Return maps (B, K, h, w) that cover ``window`` as maps of the image's size (H, W), for rescaling.

    Each map's minimum is taken off, so that it is 0 where a map does not reach and its own minimum where it does.
    """
    (height, width), top, left = window_size(window), round(window[0]), round(window[1])
    edges = (left, image_size[1] - left - width, top, image_size[0] - top - height)
    return F.pad(resize(maps - maps.amin((2, 3), keepdim=True), (height, width), align_corners), edges)


def in_window(maps: Tensor, window: Window, image_size: Size, align_corners: bool) -> Tensor:
    """Return maps (B, K, h, w) that cover an image (H, W) as maps that cover ``window``, 0 outside of the image."""
    (height, width), top, left = window_size(window), round(window[0]), round(window[1])
    edges = (-left, left + width - image_size[1], -top, top + height - image_size[0])
    return F.pad(resize(maps, image_size, align_corners), edges)


def try_other_sizes(
    model: nn.Module, refs: Mapping[str, LayerRef], image_size: Size, channels: int, geometry: Geometry
) -> SecondTrial:
    """Run images of other sizes than the trace's, to see whether the network takes them and what its maps cover.

    Raises:
        ValueError: The maps do not follow the image, in none of the known ways; or they do not cover the whole volume.
    """
    window, trial = check_geometry(geometry), _Trial(model, refs, channels)
    *depth, height, width = image_size
    if depth and geometry not in (None, "resize"):
        raise ValueError(
            f"geometry: expected None or 'resize' for a network of volumes, got {geometry!r}; leave it out"
        )
    sides = [(max(1, height // 2), width), (height, 2 * width), (2 * height, 2 * width), (3 * height, 2 * width)]
    *sizes, larger_still = [(*depth, *each) for each in sides]
    size = next((size for size in sizes if trial.base(size) is not None), None)
    if size is None:
        return SecondTrial(image_size, frozenset(), window)
    larger = [each for each in (sizes[1], larger_still) if each != size]
    if geometry is not None:
        return SecondTrial(None, trial.fixed_grids([size, *larger]) if window else trial.fixed_grids([size]), window)
    fixed = trial.fixed_grids([size])
    if trial.follows(size, KINDS["resize"], fixed, places=[SCREENED], tolerance=0.06):
        return SecondTrial(None, fixed, None)
    if depth and trial.unclear:  # a volume's forward takes too long to be classified by many of them
        note = (
            "geometry: whether forward crops, pads or moves volumes could not be measured in "
            f"{trial.finest!r}, whose maps are taken to cover the whole"
        )
        return SecondTrial(None, fixed, None, (note,))
    found = _classify(trial, size, larger)
    if depth and found.window is not None:
        raise ValueError(
            "geometry: expected maps that cover the whole volume, but the model crops or pads volumes in forward; take "
            "that out of the model"
        )
    return found


def _classify(trial: _Trial, size: Size, larger: list[Size]) -> SecondTrial:
    """Return the kind of geometry that explains where patches are found in images of the ``larger`` sizes."""
    trial.unclear = False
    if not trial.repeats(size):
        raise ValueError(
            "geometry: expected a forward that treats images alike, but two runs of one image differ in "
            f"{trial.finest!r}; take random crops and the like out of the model"
        )
    measured = [each for each in larger if trial.base(each) is not None]
    fixed = trial.fixed_grids(measured or [size])
    for kind, function in KINDS.items():
        tolerance = 0.035 if kind in NAMES else 0.06  # maps that cover the whole image stay where they were laid before
        if measured and all(trial.follows(s, function, fixed, places=PLACES, tolerance=tolerance) for s in measured):
            notes = (f"geometry: the model {NAMES[kind]}; geometry= says otherwise",) if kind in NAMES else ()
            return SecondTrial(None, fixed, function if kind in NAMES else None, notes)
    if trial.unclear or not trial.answered or not measured:
        return SecondTrial(
            None,
            trial.fixed_grids([size]),
            None,
            (
                f"geometry: whether forward crops, pads or moves images could not be measured in {trial.finest!r}, "
                "whose maps are taken to cover the whole image; geometry= says it",
            ),
        )
    raise ValueError(
        "geometry: expected a forward whose maps follow the image, but a change in one place of it is found at another "
        f"in {trial.finest!r}, or nowhere, or everywhere (a crop, flip, rotation, shift or random transformation in "
        'forward, or maps that are none); take it out of the model, or pass geometry="resize", "center-crop", "pad", '
        '"pad-end", or a function from (H, W) to the (top, left, bottom, right) that the maps cover'
    )


class _Trial:
    """Runs images through the network and finds in the finest of the layers ``refs`` where they were altered."""

    def __init__(self, model: nn.Module, refs: Mapping[str, LayerRef], channels: int) -> None:
        self._model, self._refs, self._channels = model, refs, channels
        self._bases: dict[Size, dict[str, Tensor] | None] = {}
        self.unclear = False  # whether a map was too coarse, or changed in most places at once
        self.answered = False  # whether any patch changed the map
        self.finest = max(refs, key=lambda name: refs[name].layout.pixels)

    def base(self, size: Size) -> dict[str, Tensor] | None:
        """Return the layers' outputs for an image of ``size``; None if the network does not take it."""
        if size not in self._bases:
            self._bases[size] = self._run(make_trace_image(self._model, size, self._channels))
        return self._bases[size]

    def repeats(self, size: Size) -> bool:
        """Return whether a second run gives the same map."""
        base, again = self.base(size), self._run(make_trace_image(self._model, size, self._channels))
        if base is None or again is None or base[self.finest].shape != again[self.finest].shape:
            return False
        difference = (base[self.finest] - again[self.finest]).double().norm()
        return bool(difference <= 1e-2 * base[self.finest].double().norm())

    def fixed_grids(self, sizes: list[Size]) -> frozenset[str]:
        """Return the names of the layers that return as many tokens at all ``sizes`` as in the trace."""
        bases = [base for base in map(self.base, sizes) if base is not None]
        tokens = {n: ref.layout for n, ref in self._refs.items() if ref.layout.kind == "tokens"}
        return frozenset(
            name
            for name, layout in tokens.items()
            if all(base[name].shape[1] == layout.prefix + layout.pixels for base in bases)
        )

    def follows(
        self,
        size: Size,
        window: Callable[[int, int], Window],
        fixed: frozenset[str],
        *,
        places: list[tuple[float, float]],
        tolerance: float,
    ) -> bool:
        """Return whether every patch is found where it is if the maps cover ``window``, or nowhere outside of it."""
        height, width = size[-2:]
        top, left, bottom, right = window(height, width)
        layout = replace(self._refs[self.finest].layout, fixed=self.finest in fixed)
        if len(size) == 2:
            layout = replace(layout, window=window)
        for y, x in places:
            centre = (y * height - top) / (bottom - top), (x * width - left) / (right - left)
            half = 0.125 * height / (bottom - top), 0.125 * width / (right - left)
            inside = all(h - 1e-6 <= c <= 1 - h + 1e-6 for c, h in zip(centre, half, strict=True))
            if not inside and all(-h < c < 1 + h for c, h in zip(centre, half, strict=True)):
                continue  # cut by the window's edge
            try:
                found, cells = self._locate(layout, size, y, x)
            except (ValueError, RuntimeError):  # tokens that are no grid of this window
                return False
            if (found is not None) != inside:
                return False
            if found is not None and any(
                abs(at - expected) > max(tolerance, 0.25 / number)  # a quarter of a cell of the map
                for at, expected, number in zip(found, centre, cells, strict=True)
            ):
                return False
        return True

    def _run(self, image: Tensor) -> dict[str, Tensor] | None:
        outputs: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensor = find_first_tensor(output)
            if tensor is not None:
                outputs[name] = tensor.clone() if self._refs[name].modified_inplace else tensor

        with restored(self._model), hooked_inference(self._model, {n: partial(keep, n) for n in self._refs}):
            try:
                self._model(image)
            except Exception:  # whatever a network raises at a size that it does not take
                return None
        return outputs if len(outputs) == len(self._refs) else None

    def _locate(
        self, layout: TensorLayout, size: Size, y: float, x: float
    ) -> tuple[tuple[float, float] | None, tuple[int, int]]:
        """Alter a quarter of each side around (y, x); return where the map changes, in fractions, and its (h, w)."""
        image = make_trace_image(self._model, size, self._channels)
        begins = [max(0, round((p - 0.125) * side)) for p, side in zip((y, x), size[-2:], strict=True)]
        ends = [max(b + 1, round((p + 0.125) * side)) for b, p, side in zip(begins, (y, x), size[-2:], strict=True)]
        patch = image[..., begins[0] : ends[0], begins[1] : ends[1]]
        patch.copy_(1 - 2 * patch)  # a change of noise and of the mean, so that filters of any kind answer all over it
        base, altered = self.base(size), self._run(image)
        assert base is not None
        before, after = (layout.view(each[self.finest], size).double() for each in (base, altered or base))
        others = tuple(range(before.ndim - 2))
        change = torch.linalg.vector_norm(after - before, dim=others)
        cells = change.shape[0], change.shape[1]
        if not bool(change.amax() > 1e-5 * torch.linalg.vector_norm(before, dim=others).amax()):
            return None, cells
        self.answered = True
        change = (change >= 0.3 * change.amax()).double()
        self.unclear |= min(cells) < MIN_CELLS or bool(change.mean() > 0.5)
        rows, columns = (change.sum(axis) / change.sum() for axis in (1, 0))
        places = [(torch.arange(len(p), device=p.device) + 0.5) / len(p) for p in (rows, columns)]
        return (float((rows * places[0]).sum()), float((columns * places[1]).sum())), cells
