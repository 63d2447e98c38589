"""What interpreted kernels load, store and multiply, counted exactly: the interpreter's builders are wrapped.

    with traffic.count({"features": f, "out": out}) as counted:
        resident.polish(cam, f, …)
    counted.loaded["features"], counted.stored["out"], counted.dot_flops

Counted is what the programs ask for, masked elements left out: a byte that a cache would serve counts as one of memory.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
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
    traffic, builder = Traffic(), InterpreterBuilder
    load, store, dot = builder.create_masked_load, builder.create_masked_store, builder.create_dot

    def add(counter: Counter[str], pointers: Any, mask: Any) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        for name, tensor in tensors.items():
            offsets = addresses - tensor.untyped_storage().data_ptr()
            inside = (offsets >= 0) & (offsets < tensor.untyped_storage().nbytes())
            counter[name] += int(inside.sum()) * size
            addresses = addresses[~inside]
        counter["other"] += addresses.size * size

    # Triton's versions differ in what follows the first arguments; unmasked accesses come by these two as well.
    def counted_load(self: Any, pointers: Any, mask: Any, *more: Any) -> Any:
        add(traffic.loaded, pointers, mask)
        return load(self, pointers, mask, *more)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *more: Any) -> Any:
        add(traffic.stored, pointers, mask)
        return store(self, pointers, value, mask, *more)

    def counted_dot(self: Any, a: Any, b: Any, *more: Any) -> Any:
        traffic.dots[a.data.shape[0], b.data.shape[1], a.data.shape[1]] += 1
        return dot(self, a, b, *more)

    with (
        mock.patch.object(builder, "create_masked_load", counted_load),
        mock.patch.object(builder, "create_masked_store", counted_store),
        mock.patch.object(builder, "create_dot", counted_dot),
    ):
        yield traffic
