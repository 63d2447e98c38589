"""What interpreted kernels load, store and multiply, counted exactly: the interpreter's builders are wrapped.

    with traffic.count({"features": f, "out": out}) as counted:
        resident.polish(cam, f, …)
    counted.loaded["features"], counted.stored["out"], counted.dot_flops

Counted is what the programs ask for, masked elements left out: a byte that a cache would serve counts as one of memory.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor


@dataclass
class Traffic:
    """Bytes loaded and stored by tensor, ``"other"`` for those without a name, and matrix products by ``(M, N, K)``."""

    loaded: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)
    dots: Counter[tuple[int, int, int]] = field(default_factory=Counter)

    @property
    def dot_flops(self) -> int:
        """FLOPs of all matrix products, 2·M·N·K each."""
        return sum(2 * M * N * K * times for (M, N, K), times in self.dots.items())


@contextmanager
def count(tensors: Mapping[str, Tensor]) -> Iterator[Traffic]:
    """Count what kernels do in the block; needs ``TRITON_INTERPRET=1`` before Triton is imported.

    Args:
        tensors: by name, what to tell apart; where two share memory, the bytes are the first's.
    """
    traffic = Traffic()
    ranges = {name: _range(tensor) for name, tensor in tensors.items()}

    def add(counter: Counter[str], pointers: Any, mask: Any) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        for name, (begin, end) in ranges.items():
            inside = (begin <= addresses) & (addresses < end)
            counter[name] += int(inside.sum()) * size
            addresses = addresses[~inside]
        counter["other"] += addresses.size * size

    # Triton's versions differ in what follows the first arguments; unmasked accesses come by these two as well.
    def load(pointers: Any, mask: Any, *_: Any) -> None:
        add(traffic.loaded, pointers, mask)

    def store(pointers: Any, value: Any, mask: Any, *_: Any) -> None:
        add(traffic.stored, pointers, mask)

    def dot(a: Any, b: Any, *_: Any) -> None:
        (M, K), (_rows, N) = a.data.shape, b.data.shape
        traffic.dots[M, N, K] += 1

    def wrapped(note: Any, function: Any) -> Any:
        def call(self: Any, *given: Any) -> Any:
            note(*given)
            return function(self, *given)

        return call

    with ExitStack() as stack:
        for name, note in (("create_masked_load", load), ("create_masked_store", store), ("create_dot", dot)):
            function = wrapped(note, getattr(InterpreterBuilder, name))
            stack.enter_context(mock.patch.object(InterpreterBuilder, name, function))
        yield traffic


def _range(tensor: Tensor) -> tuple[int, int]:
    """First address of a tensor's elements, whatever its strides, and the one beyond its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
