"""Follow an image through a forward pass: which module outputs the logits depend on, and which every path crosses.

An output that every path from the image to the logits crosses lies on the *main path*: detached, it would make the
logits constant. Gates, offsets, attention maps and side heads do not, whatever their size, and neither does an output
that the logits never read. In the field's words these are the dominators of the logits in the data-flow graph.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class _Origin(NamedTuple):
    """Marks, one bit each, that some path to a tensor crosses, and those that every path crosses."""

    some: int
    every: int


class PathTracker(TorchFunctionMode):
    """Knows of each tensor made while it is active which marked tensors lie on its paths from the image."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[weakref.ref[Tensor], _Origin]] = {}  # by id
        self._bits: dict[str, int] = {}
        self._calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = list(_tensors(result))
        if not outputs and getattr(func, "__name__", "") != "__setitem__":
            return result
        origin = self._joined(_tensors((args, kwargs)))
        if origin is not None:
            for tensor in outputs or [args[0]]:
                self._set(tensor, origin)
                if tensor._base is not None and self._find(tensor._base) is not None and _writes(func):
                    self._set(tensor._base, origin)
        return result

    def start(self, image: Tensor) -> None:
        """Begin all paths at the image."""
        self._set(image, _Origin(0, 0))

    def mark(self, name: str, output: Tensor, inputs: Any) -> None:
        """Mark a module's output; paths that went through code out of sight are those of the module's inputs.

        Of several calls, the last counts.
        """
        origin = self._find(output) or self._joined(_tensors(inputs))
        if origin is not None:
            self._bits[name] = self._calls
            self._calls += 1
            bit = 1 << self._bits[name]
            self._set(output, _Origin(origin.some | bit, origin.every | bit))

    def names(self, logits: Tensor) -> tuple[frozenset[str], frozenset[str]] | None:
        """Return the marked outputs on some path to the logits, and those on every one; None if it is not known."""
        origin = self._find(logits)
        if origin is None:
            return None
        some, every = (
            frozenset(name for name, bit in self._bits.items() if mask >> bit & 1)
            for mask in (origin.some, origin.every)
        )
        return some, every

    def _find(self, tensor: Tensor) -> _Origin | None:
        reference, origin = self._known.get(id(tensor), (None, None))
        return origin if reference is not None and reference() is tensor else None

    def _set(self, tensor: Tensor, origin: _Origin) -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), origin)

    def _joined(self, tensors: Iterator[Tensor]) -> _Origin | None:
        """Return the origin of what is computed from the tensors; those without one, such as weights, are constants."""
        joined = None
        for origin in filter(None, map(self._find, tensors)):
            joined = origin if joined is None else _Origin(joined.some | origin.some, joined.every & origin.every)
        return joined


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
