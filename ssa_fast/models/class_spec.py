"""Read the classes that a caller asks for: indices, names, multi-hot rows or a list per image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ssa_fast.models.class_names import index_of

Classes: TypeAlias = (
    "str | Sequence[int | str] | Sequence[Sequence[int | str]] | Sequence[Tensor] | Tensor | np.ndarray | None"
)

INDICES = r"[\d\s,+-]*"
"""Text that holds no name, but indices at most."""
PADDING = -1
"""The class index of a position that an image does not use, because another image has more classes."""


@dataclass(frozen=True, eq=False)
class ClassSelection:
    """The classes of B images, K positions each; images with fewer classes are padded at their end.

    Attributes:
        index, valid: (B, K) int64 and bool: the class of each position, ``PADDING`` where it is not valid.
        padded: Whether any position is not valid.
        notes: How the classes were read, where they could be read in two ways.
        named: Whether names stood for some of them.
    """

    index: Tensor
    valid: Tensor
    padded: bool = False
    notes: tuple[str, ...] = ()
    named: bool = False

    @property
    def filled(self) -> Tensor:
        """The indices with 0 in place of padding, for reading tensors by them."""
        return self.index.clamp(min=0) if self.padded else self.index

    def to(self, device: torch.device) -> ClassSelection:
        """Return the selection on a device, copied from the host without waiting."""
        index, valid = (each.to(device, non_blocking=True) for each in (self.index, self.valid))
        return replace(self, index=index, valid=valid)


def resolve_classes(classes: Classes | ClassSelection, logits: Tensor, names: Sequence[str] = ()) -> ClassSelection:
    """Return the classes of each image, on the logits' device.

    Indices are checked on the host and copied from there without waiting for the device; only those in a tensor on the
    device have to be fetched first.

    Args:
        classes: None or "predicted" (the most probable class of each image), "topN" such as "top5"; K indices or names
            for all images; one list of them per image, of any lengths, or rows padded with ``PADDING``; or multi-hot
            rows as wide as the logits, of bool, or of zeros and ones. Lists, tensors or arrays.
        logits: (B, num_classes).
        names: A name per output; () if there are none.

    Raises:
        TypeError: ``classes`` is neither a string, integers, names nor zeros and ones.
        ValueError: An unknown name or string, no class at all, a class twice for one image, another number of images,
            an index out of range, soft labels, or zeros and ones that are indices and multi-hot rows alike.
    """
    images, num_classes = logits.shape
    if isinstance(classes, ClassSelection):
        return classes.to(logits.device)
    if classes is None or isinstance(classes, str):
        text = "predicted" if classes is None else classes
        parsed = parse_classes(text, num_classes, names)
        if isinstance(parsed, int):
            index = logits.topk(parsed, dim=1).indices
            return ClassSelection(index, torch.ones_like(index, dtype=torch.bool))
        named = re.fullmatch(INDICES, text) is None
        return replace(select_rows([parsed] * images, num_classes), named=named).to(logits.device)
    rows, notes, named = _read_rows(classes, images, num_classes, names)
    return replace(select_rows(rows, num_classes), notes=notes, named=named).to(logits.device)


def asks_for_top(classes: Classes | ClassSelection) -> bool:
    """Return whether the classes are chosen by the logits: None, "predicted" or "topN"."""
    return classes is None or (isinstance(classes, str) and bool(re.fullmatch(r"predicted|top\d+", classes.strip())))


def parse_classes(text: str, num_classes: int, names: Sequence[str], owner: str = "the model") -> int | list[int]:
    """Parse classes in text: the N of "predicted" (1) or "topN", or the indices of names and numbers.

    Names are separated by commas, unless the whole text is a name. ``owner`` is what has the classes, for messages.

    Raises:
        ValueError: An index out of range, more top classes than outputs, or a name of no class or of several.
    """
    text = text.strip()
    if asks_for_top(text):
        return parse_count(text, num_classes)
    if not names and not re.fullmatch(INDICES, text):
        raise ValueError(f'classes: expected "predicted", "topN" such as "top5", or class indices, got {text!r}')
    parts = [text] if text in names else [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError("classes: expected comma-separated names or indices, 'predicted' or 'top5', got nothing")
    return list(dict.fromkeys(index_of(part, names, num_classes, owner) for part in parts))


def parse_count(text: str, num_classes: int) -> int:
    """Parse the number of classes of an image from "predicted" or "topN", N at most ``num_classes``."""
    count = 1 if text == "predicted" else int(text.removeprefix("top"))
    if not 1 <= count <= num_classes:
        raise ValueError(f"classes: expected top1 to top{num_classes} for this model, got {text!r}; ask for fewer")
    return count


def select_rows(rows: Sequence[Sequence[int]], num_classes: int) -> ClassSelection:
    """Return the selection of one list of class indices per image, on the CPU.

    Raises:
        ValueError: An index out of range or twice in a row, or no class at all.
    """
    width = max(map(len, rows), default=0)
    if not width:
        raise ValueError('classes: expected at least one class, got none; pass class indices, "predicted" or "topN"')
    index = np.full((len(rows), width), PADDING, dtype=np.int64)
    for b, row in enumerate(rows):
        wrong = [each for each in row if not 0 <= each < num_classes]
        if wrong:
            raise ValueError(
                f"classes: expected indices in 0..{num_classes - 1}, the model's outputs, got {wrong[0]}; correct it"
            )
        if len(set(row)) < len(row):
            twice = next(each for each in row if list(row).count(each) > 1)
            raise ValueError(
                f"classes: expected each class once per image, got {twice} twice for image {b}; pass classes[:, None] "
                f"for one class per image, or zeros and ones of width {num_classes} for multi-hot rows"
            )
        index[b, : len(row)] = row
    valid = index != PADDING
    return ClassSelection(torch.from_numpy(index), torch.from_numpy(valid), padded=not valid.all())


def _read_rows(
    classes: Any, images: int, num_classes: int, names: Sequence[str]
) -> tuple[list[list[int]], tuple[str, ...], bool]:
    """Return one list of indices per image, notes on how they were read, and whether names were among them."""
    given = _plain(classes)
    if isinstance(given, np.ndarray):
        return *_read_array(given, images, num_classes), False
    per_image = bool(given) and all(isinstance(row, list) for row in given)
    rows: list[list[Any]] = given if per_image else [given]
    flat = [each for row in rows for each in row]
    if any(isinstance(each, list) for each in flat):
        raise TypeError(
            f"classes: expected integers, or one list of them per image, got {given!r:.80}; pass class indices"
        )
    named = any(isinstance(each, str) for each in flat)
    if len({len(row) for row in rows}) == 1 and not named:
        return *_read_array(np.asarray(given), images, num_classes), False
    if per_image and len(rows) != images:
        raise ValueError(f"classes: expected one list per image, {images}, got {len(rows)}; pass as many as images")
    wrong = [each for each in flat if isinstance(each, bool) or not isinstance(each, Integral | str)]
    if wrong:
        raise TypeError(
            f"classes: expected integers or names, got {wrong[0]!r} in lists of unequal lengths; pass class indices"
        )
    found = [
        [index_of(each, names, num_classes) if isinstance(each, str) else int(each) for each in row] for row in rows
    ]
    return (found, (), named) if per_image else (found * images, _shared(len(flat), images), named)


def _plain(classes: Any) -> np.ndarray | list[Any]:
    """Return classes as an array of numbers or as nested lists, before anything about them is checked."""
    if isinstance(classes, Tensor) and classes.is_nested:
        return [row.tolist() for row in classes.unbind()]
    if isinstance(classes, Tensor):
        host = classes.detach().to_dense().cpu()
        return (host.float() if host.dtype == torch.bfloat16 else host).numpy()
    if hasattr(classes, "__array__"):
        array = np.asarray(classes)
        if array.dtype.kind not in "OUS" or not array.ndim:
            return array
        classes = array.tolist()
    if not isinstance(classes, Sequence):
        raise TypeError(
            f'classes: expected "predicted", "topN", or a list of class indices, got {classes!r:.80}; '
            "write [index] for a single class"
        )
    return [_plain_item(item) for item in classes]


def _plain_item(item: Any) -> Any:
    if isinstance(item, Tensor | np.ndarray | np.generic):
        return item.tolist()
    if isinstance(item, Sequence) and not isinstance(item, str):
        return [each.tolist() if isinstance(each, Tensor | np.ndarray | np.generic) else each for each in item]
    return item


def _read_array(values: np.ndarray, images: int, num_classes: int) -> tuple[list[list[int]], tuple[str, ...]]:
    """Read an array of indices or of multi-hot rows, (K,) for all images or (B, K); see ``_read_rows``."""
    if values.ndim not in (1, 2) or (values.ndim == 2 and len(values) != images):
        raise ValueError(
            f"classes: expected (K,) or (B, K) indices with B = {images} images, got {values.shape}; "
            "pass one list for all images or one per image"
        )
    if not values.size:
        raise ValueError('classes: expected at least one class, got none; pass class indices, "predicted" or "topN"')
    multi_hot = bool(np.isin(values, (0, 1)).all()) and values.shape[-1] == num_classes
    if values.dtype.kind not in "iu":
        if not multi_hot or values.dtype.kind not in "bf":
            raise _not_indices(values, num_classes)
        return _hot_rows(values, images), ()
    # Zeros and ones as wide as the outputs are no indices if one is there twice: always, beyond two outputs.
    could_be_indices = num_classes <= 2 and bool((values.sum(axis=-1) == num_classes - 1).all())
    if multi_hot and not could_be_indices and (values.ndim, num_classes) != (1, 1):
        if values.ndim == 1 and 1 < images == num_classes:
            raise ValueError(
                f"classes: expected indices or multi-hot rows, got {num_classes} zeros and ones, which may be one "
                "class per image, too; pass classes[:, None] for that, or bool for multi-hot"
            )
        return _hot_rows(values, images), ()
    if values.ndim == 1:
        notes = _shared(len(values), images)
        return [values.tolist()] * images, notes + (_both_readings(2) if multi_hot and num_classes == 2 else ())
    if multi_hot and (values != values[0]).any():
        raise ValueError(
            "classes: expected indices or multi-hot rows, got 0 1 and 1 0, which may be either for two outputs; pass "
            'bool for multi-hot, or "top2" for both classes'
        )
    if values.shape[1] == num_classes and values.min() == PADDING and values.max() <= 1:
        raise ValueError("classes: expected indices or zeros and ones, got rows of -1, 0 and 1; pass labels == 1")
    rows = [[each for each in row if each != PADDING] for row in values.tolist()]
    return rows, _both_readings(num_classes) if multi_hot else ()


def _hot_rows(values: np.ndarray, images: int) -> list[list[int]]:
    rows = [np.flatnonzero(row).tolist() for row in np.atleast_2d(values)]
    return rows if values.ndim == 2 else rows * images


def _not_indices(values: np.ndarray, num_classes: int) -> Exception:
    """Return the error for numbers that are neither indices nor multi-hot rows."""
    real = values.dtype.kind == "f"
    if real and values.shape[-1] == num_classes and ((values >= 0) & (values <= 1)).all():
        soft = values[(values > 0) & (values < 1)][0]
        return ValueError(f"classes: expected zeros and ones, got soft labels such as {soft:.3g}; pass labels > 0.5")
    return TypeError(
        f"classes: expected integers, got {values.dtype} of shape {values.shape}; pass class indices, or zeros and "
        f"ones of shape (B, {num_classes}) for multi-hot rows"
    )


def _shared(count: int, images: int) -> tuple[str, ...]:
    """Return the note on a list for all images that has one class per image, too."""
    if not 1 < count == images:
        return ()
    return (
        f"classes were read as {count} classes for every image; for one class per image pass classes[:, None], or "
        "[[c] for c in classes]",
    )


def _both_readings(num_classes: int) -> tuple[str, ...]:
    width = "one output" if num_classes == 1 else "two outputs"
    return (f"zeros and ones for a model of {width} were read as class indices; pass bool for multi-hot rows",)
