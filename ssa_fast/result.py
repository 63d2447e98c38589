"""The result of SSA: polished CAMs, and the boxes, prompts, masks and pictures made from them."""

from __future__ import annotations

import html
import operator
from dataclasses import dataclass, fields, replace
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssa_fast.io.result_files import ARRAYS, read_result, write_result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from PIL.Image import Image

    from ssa_fast.localize import PostprocessOptions, Prompts


@dataclass(frozen=True, eq=False, repr=False)
class SSAResult:
    """CAMs of B images and K classes each; all tensors on the images' device, without gradient.

    ``len(result)`` is B. ``result[0]``, ``result[-1]``, ``result[1:3]`` and ``result[[0, 2]]`` are the results of those
    images, and a loop goes through results of one image. They keep the axis B, so that all methods work on them. A
    notebook shows a result as small pictures.

    Attributes:
        cams: (B, K, H, W) float32 in [0, 1], the fused, polished CAMs at the asked size; a class without evidence is 0.
        seed: (B, K, h, w) float32 in [0, 1], the CAMs before polishing, at the seed layer's size.
        stages: Stage name -> (B, K, h, w) float32 in [0, 1], the polished CAMs at that stage's size.
        logits: (B, num_classes) float32 of the images as given (or of the first scale, if 1 is not among the scales);
            (B, 0) of a model that returns none.
        classes: (B, K) int64, the class each CAM is of; with ``targets``, its position among them. -1 where an image
            has fewer classes than others, and where a given ``cam`` came without classes.
        valid: (B, K) bool, False where an image has fewer classes than others: its maps are 0 there.
        scores: (B, K) float32, the probabilities of the classes, or what the targets gave; 0 where not valid, NaN where
            the class is not known.
        output_names: A name per class index, () if there are none.
        notes: What was assumed about the model and its input, one sentence each.
    """

    cams: Tensor
    seed: Tensor
    stages: dict[str, Tensor]
    logits: Tensor
    classes: Tensor
    valid: Tensor
    scores: Tensor
    output_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[list[str]]:
        """Per image the name of each of its K classes, "" where not valid; reading it waits for the device."""
        rows = zip(self.classes.tolist(), self.valid.tolist(), strict=True)
        return [
            [self._name(k, index) if valid else "" for k, (index, valid) in enumerate(zip(*row, strict=True))]
            for row in rows
        ]

    def __repr__(self) -> str:
        """Return one line per field, with the tensors' shapes instead of their values."""
        lines = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                lines += [f"  {field.name}[{name!r}]: {_shape(tensor)}" for name, tensor in value.items()]
            elif field.name == "output_names":
                continue
            elif field.name == "notes":
                lines += [f"  note: {note}" for note in value]
            else:
                lines.append(f"  {field.name}: {_shape(value)}")
        return "SSAResult(\n" + "\n".join(lines) + "\n)"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: seed and CAM of the first images and classes, names, scores and notes."""
        text = repr(self)
        try:
            from ssa_fast.localize.html import maps_html
        except ModuleNotFoundError as error:
            reason = f'no pictures, as the package {error.name} is missing: pip install "ssa_fast[app]"'
            return f"<pre>{html.escape(text)}</pre><div>{html.escape(reason)}</div>"
        if self.cams.is_meta or not len(self):
            return f"<pre>{html.escape(text)}</pre>"
        captions = [
            [
                name if isnan(score) else f"{name} {score:.3g}"
                for name, score, valid in zip(*image, strict=True)
                if valid
            ]
            for image in zip(self.names, self.scores.tolist(), self.valid.tolist(), strict=True)
        ]
        maps, notes = {"seed": self.seed, "polished CAM": self.cams}, [f"note: {note}" for note in self.notes]
        return maps_html(maps, captions, f"SSAResult: cams {_shape(self.cams)}", notes)

    def __len__(self) -> int:
        """Return B, the number of images."""
        return len(self.cams)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> SSAResult:
        """Return the result of some images: a number, a slice, a list, or a tensor of numbers or (B,) bool.

        Numbers and slices that step forward share memory with this result, as tensors do.

        Raises:
            TypeError: The index is something else, such as a tuple; classes are the second axis of ``cams``.
            IndexError: There is no such image.
        """
        rows: slice | list[int]
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            rows = index if chosen.step > 0 else list(chosen)
        elif isinstance(index, list | Tensor | np.ndarray) and np.ndim(index):
            given = torch.as_tensor(index).cpu()
            if given.dtype == torch.bool and given.shape == (len(self),):
                given = given.nonzero()[:, 0]
            elif given.ndim != 1 or given.dtype == torch.bool or (given.is_floating_point() and len(given)):
                raise TypeError(
                    f"index: expected numbers of images, or {len(self)} bool, got {given.dtype} {tuple(given.shape)}; "
                    "give one axis"
                )
            rows = [self._position(int(number)) for number in given]
        else:
            try:
                position = self._position(operator.index(index))  # type: ignore[arg-type]
            except TypeError:
                raise TypeError(
                    f"index: expected images as a number, a slice or a list, got {type(index).__name__}; "
                    "classes are the second axis of result.cams"
                ) from None
            rows = slice(position, position + 1)
        return self._each(lambda tensor: tensor[rows])

    def __iter__(self) -> Iterator[SSAResult]:
        """Yield the result of each image, with B = 1."""
        return (self[b] for b in range(len(self)))

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> SSAResult:
        """Return the result with all tensors on ``device``, or itself if they are there, as tensors do.

        Raises:
            TypeError: ``device`` is none, such as a dtype: CAMs are float32, ``result.cams.half()`` converts one.
        """
        if not isinstance(device, torch.device | str | int):
            raise TypeError(
                f"device: expected a device, got {device!r}; a result is float32, convert a field: result.cams.half()"
            )
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return self if moved.cams is self.cams else moved

    def cpu(self) -> SSAResult:
        """Return the result with all tensors on the CPU."""
        return self.to("cpu")

    def numpy(self) -> dict[str, Any]:
        """Return the fields as arrays in a dict: ``cams``, ``seed``, ``stages`` (a dict), ``logits``, ``classes``, ….

        ``names`` is among them as (B, K) strings, "" where not valid. Arrays share memory with a result on the CPU.
        """
        found: dict[str, Any] = {name: getattr(self, name).cpu().numpy() for name in ARRAYS}
        found["stages"] = {name: maps.cpu().numpy() for name, maps in self.stages.items()}
        return found | {"names": np.array(self.names, dtype=np.str_).reshape(self.classes.shape)}

    def save(self, path: str | Path) -> None:
        """Write the result to an ``.npz`` file, whole or not at all; ``load`` brings back every field, bit by bit.

        Files that other programs read, one per image and compact: ``ssa_fast.io.cam_files.write_cam``.

        Raises:
            ValueError: The file name does not end in ``.npz``.
            OSError: The file cannot be written; its folder must exist.
        """
        write_result(path, self.numpy() | {"output_names": self.output_names, "notes": self.notes})

    @classmethod
    def load(cls, path: str | Path) -> SSAResult:
        """Return a saved result, on the CPU. No pickle is read, so that a file from anywhere can run no code.

        Raises:
            ValueError: The file is damaged, or none that ``save`` wrote.
            OSError: The file cannot be opened.
        """
        content = read_result(path)
        tensors: dict[str, Any] = {name: torch.from_numpy(content[name]) for name in ARRAYS}
        tensors["stages"] = {name: torch.from_numpy(maps) for name, maps in content["stages"].items()}
        return cls(**tensors, output_names=content["output_names"], notes=content["notes"])

    def boxes(self, options: PostprocessOptions | None = None, **overrides: Any) -> list[list[Tensor]]:
        """Return boxes (n, 4) float32 x1 y1 x2 y2 per image and class; see ``ssa_fast.localize.boxes``."""
        from ssa_fast.localize import boxes

        return boxes(self.cams, options, **overrides)

    def prompts(
        self,
        options: PostprocessOptions | None = None,
        *,
        points: int = 1,
        negative: int = 0,
        size: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        **overrides: Any,
    ) -> list[Prompts]:
        """Return boxes and points for SAM per image, one of each per object; see ``ssa_fast.localize.prompts``.

        ``size`` is (H, W) of the image that SAM gets, or one per image; the CAMs' size by default.
        """
        from ssa_fast.localize import prompts

        return prompts(self.cams, options, points=points, negative=negative, size=size, **overrides)

    def masks(self, options: PostprocessOptions | None = None, **overrides: Any) -> Tensor:
        """Return pseudo-masks (B, H, W) uint8: 0 background, k + 1 for class k; see ``ssa_fast.localize.masks``."""
        from ssa_fast.localize import masks

        return masks(self.cams, options, **overrides)

    def refine(self, images: Tensor, **options: Any) -> SSAResult:
        """Return the result with CAMs that follow the edges of ``images``; see ``ssa_fast.localize.refine``.

        ``images`` are (B, 3, H, W) in [0, 1], before normalisation; the CAMs get their size.
        """
        from ssa_fast.localize import refine

        return replace(self, cams=refine(images, self.cams, **options))

    def panels(
        self,
        images: Tensor,
        *,
        names: Sequence[str] | None = None,
        options: PostprocessOptions | None = None,
        **overrides: Any,
    ) -> list[Image]:
        """Return a panel per image: image, seed, each stage, fused, boxes (all regions) and mask, one row per class.

        ``images`` are (B, 3, H, W) in [0, 1]; ``names`` holds a name per output of the model, by default its own. An
        image's panel has no row for a class that is not valid. See ``ssa_fast.localize.panels``.
        """
        from ssa_fast.localize import panels

        maps: dict[str, Any] = {"seed": self.seed, "stages": self.stages, "classes": self.classes, "valid": self.valid}
        names = names if names is not None else self.output_names or None
        return panels(images, self.cams, **maps, names=names, options=options, **overrides)

    def figure(
        self,
        images: Tensor,
        *,
        names: Sequence[str] | None = None,
        classes: Sequence[int | str] | None = None,
        stages: bool = False,
        boxes: bool = True,
        mask: bool = False,
        columns: int | None = None,
        colormap: str = "viridis",
        **options: Any,
    ) -> Figure:
        """Return a matplotlib figure: image, seed and polished CAM with boxes, a row per class with its probability.

        ``images`` are (B, 3, H, W) in [0, 1]. All options are those of ``ssa_fast.localize.figure.figure``, which also
        draws several results in one figure. Its ``savefig`` writes PNG, SVG and PDF; extra ``figures``.
        """
        from ssa_fast.localize.figure import figure

        drawn: dict[str, Any] = {"names": names, "classes": classes, "stages": stages, "boxes": boxes, "mask": mask}
        return figure([images], [self], **drawn, columns=columns, colormap=colormap, **options)

    def _each(self, change: Callable[[Tensor], Tensor]) -> SSAResult:
        """Return the result with every tensor changed."""
        tensors: dict[str, Any] = {name: change(getattr(self, name)) for name in ARRAYS}
        return replace(self, **tensors, stages={name: change(maps) for name, maps in self.stages.items()})

    def _position(self, number: int) -> int:
        """Return the position of an image, counted from the end if negative."""
        B = len(self)
        if not -B <= number < B:
            raise IndexError(f"index: expected an image from {-B} to {B - 1}, got {number}; the result has {B}")
        return number % B

    def _name(self, k: int, index: int) -> str:
        if index < 0:
            return f"map {k}"
        return self.output_names[index] if self.output_names else f"class {index}"


class StageFeatures(dict[str, "Tensor"]):
    """The stages of images by name, each (B, C, h, w), as ``polish`` takes them, without gradient.

    Attributes:
        logits: (B, num_classes) float32, (B, 0) of a model that returns none.
    """

    def __init__(self, stages: Mapping[str, Tensor], logits: Tensor) -> None:
        super().__init__(stages)
        self.logits = logits


def _shape(tensor: Tensor) -> str:
    sides = " × ".join(map(str, tensor.shape))
    return f"{sides}, {str(tensor.dtype).removeprefix('torch.')}, {tensor.device}"
