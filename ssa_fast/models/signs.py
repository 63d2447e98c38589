"""Follow which tensors of a forward pass are ≥ 0 by construction, such as a ReLU's output, without reading them."""

from __future__ import annotations

import weakref
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


def torch_functions(names: str) -> frozenset[Callable[..., Any]]:
    """Return PyTorch's functions and methods of these names, as a ``TorchFunctionMode`` sees them."""
    owners = (torch, F, torch.special, Tensor)
    return frozenset(getattr(owner, name) for name in names.split() for owner in owners if hasattr(owner, name))


NONNEGATIVE = torch_functions("relu relu_ relu6 sigmoid sigmoid_ hardsigmoid softmax")  # whatever they read
CLAMPED = torch_functions("clamp clamp_ clip clip_ clamp_min clamp_min_ hardtanh hardtanh_")
MAX_POOLED, AVERAGED = torch_functions("max_pool2d max_pool3d"), torch_functions("avg_pool2d avg_pool3d")
SELECTED = torch_functions(
    "view reshape flatten unflatten squeeze unsqueeze expand transpose permute movedim contiguous clone detach chunk "
    "split narrow __getitem__ cat concat stack dropout dropout2d dropout3d adaptive_max_pool2d adaptive_max_pool3d "
    "adaptive_avg_pool2d adaptive_avg_pool3d"
)
UNCOUNTED: frozenset[Any] = torch_functions("numpy __array__ __dlpack__ storage untyped_storage data_ptr") | {
    Tensor.data.__get__,  # type: ignore[attr-defined]
    Tensor.data.__set__,  # type: ignore[attr-defined]
    Tensor.__cuda_array_interface__.__get__,  # type: ignore[attr-defined]
}


class SignTracker(TorchFunctionMode):
    """Knows which tensors PyTorch's functions, called while it is active, made non-negative.

    These are the outputs of activations and clamps, and elements and means of such; NaN is possible in all of them.
    A proof is of a tensor object at its version, which every write into it or a view of it increments. All proofs end
    when somebody takes a way to the memory of an activation on which writes are not counted (``UNCOUNTED``). What
    extensions write into tensors that they do not declare as written is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []  # names of the modules called so far, if somebody tells
        self._known: dict[
            int, tuple[weakref.ref[Tensor], int, int]
        ] = {}  # by id: tensor, version, length of ``called``
        self._uncounted = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, start = kwargs or {}, None
        inputs = find_tensors((*args, *kwargs.values()))
        if func in NONNEGATIVE or (func in CLAMPED and _has_nonnegative_bounds(args[1:], kwargs)):
            start = len(self.called)
        elif _keeps_sign(func, args, kwargs):
            start = self._earliest(inputs)
        elif func in UNCOUNTED and not isinstance(args[0], nn.Parameter):
            self._uncounted = True
        dtypes = {tensor.dtype for tensor in inputs}  # of another dtype, the same bits may be read otherwise
        result = func(*args, **kwargs)
        if start is not None:
            self._add([tensor for tensor in find_tensors((result,)) if tensor.dtype in dtypes], start)
        return result

    def holds(self, tensor: Tensor) -> bool:
        """Return whether the tensor, as it is now, is non-negative by construction."""
        return self._find(tensor) is not None

    def proved_from(self, tensor: Tensor) -> str | None:
        """Return the last of the modules ``called`` before the proof begins, "" for none; None without a proof."""
        start = self._find(tensor)
        return None if start is None else self.called[start - 1] if start else ""

    @contextmanager
    def during(self, model: nn.Module, spans: Iterable[tuple[str, str | None]]) -> Iterator[None]:
        """Be active from a call of the first module of a span to the return of the second.

        For "" as the first it is from the beginning of the ``with`` block, for None as the second to its end.
        """
        open_spans: set[tuple[str, str | None]] = set()
        outer = _get_current_function_mode()

        def enter(span: tuple[str, str | None], *call: Any) -> None:
            open_spans.add(span)
            # A mode is left in the order of entering, so none of the model's own may be entered before this one.
            if _get_current_function_mode() is outer:
                self.__enter__()

        def leave(span: tuple[str, str | None], *call: Any) -> None:
            open_spans.discard(span)
            if not open_spans and _get_current_function_mode() is self:
                self.__exit__(None, None, None)

        handles = []
        for first, last in spans:
            with suppress(AttributeError):  # a model edited since its trace may lack the module
                module = model.get_submodule(first)
                if first:
                    handles.append(module.register_forward_pre_hook(partial(enter, (first, last))))
                else:
                    enter((first, last))
                if last is not None:
                    handles.append(model.get_submodule(last).register_forward_hook(partial(leave, (first, last))))
        try:
            yield
        finally:
            open_spans.clear()
            leave(("", None))
            for handle in handles:
                handle.remove()

    def _find(self, tensor: Tensor) -> int | None:
        """Return how many modules had been called when the proof began, None without one."""
        reference, version, start = self._known.get(id(tensor), (None, 0, 0))
        if reference is None or reference() is not tensor or self._uncounted or tensor._version != version:
            return None
        return start

    def _earliest(self, tensors: list[Tensor]) -> int | None:
        """Return ``_find`` of the tensor whose proof began first; None if one has none."""
        starts = [start for start in map(self._find, tensors) if start is not None]
        return min(starts) if tensors and len(starts) == len(tensors) else None

    def _add(self, tensors: list[Tensor], start: int) -> None:
        for tensor in tensors:
            # An inference tensor has no version; what returns its input (dropout) proves nothing anew.
            if not tensor.is_inference() and self._find(tensor) is None:
                self._known[id(tensor)] = (weakref.ref(tensor), tensor._version, start)


def find_tensors(values: tuple[Any, ...]) -> list[Tensor]:
    """Return the tensors among the values and in their lists and tuples."""
    nested = (value if isinstance(value, list | tuple) else (value,) for value in values)
    return [item for items in nested for item in items if isinstance(item, Tensor)]


def _has_nonnegative_bounds(bounds: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call of clamp has a lower bound ≥ 0, and no upper bound below 0, which would overrule it."""
    given = {**dict(zip(("min", "max"), bounds, strict=False)), **kwargs}
    low, high = given.get("min", given.get("min_val")), given.get("max", given.get("max_val"))
    return isinstance(low, int | float) and low >= 0 and (high is None or (isinstance(high, int | float) and high >= 0))


def _keeps_sign(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a function returns elements or means of what it reads."""
    if func in MAX_POOLED:  # a dilated window may lie in the padding alone, which is −inf
        return len(args) <= 4 and kwargs.get("dilation", 1) in (1, (1, 1), [1, 1], (1, 1, 1), [1, 1, 1])
    if func in AVERAGED:  # a divisor of the caller's own may be negative
        return args[6:] in ((), (None,)) and kwargs.get("divisor_override") is None
    return func in SELECTED
