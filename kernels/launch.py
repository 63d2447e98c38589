"""Launch kernels, and record what is launched so that it can be repeated without the host functions.

A host function computes sizes, allocates and launches; all of that follows from shapes. Between two launches it may
allocate and take views, nothing else: what PyTorch has to compute goes through ``call``, so that a recording is
complete. ``ssa_fast.ops.launch_plan`` repeats recordings.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token

    from triton.runtime.jit import JITFunction

    Result = TypeVar("Result")

# What a host function may do between two launches.
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
VIEWS = {"view", "_unsafe_view", "_reshape_alias", "alias", "detach", "as_strided", "expand", "permute", "transpose"}
VIEWS |= {"select", "slice", "split", "split_with_sizes", "unbind", "squeeze", "unsqueeze"}


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its grid, its arguments by name, and the binary that was compiled for them."""

    kernel: JITFunction[Any]
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    compiled: Any


@dataclass(frozen=True)
class Call:
    """One call of a function that runs in PyTorch: its arguments, and the tensor that it returned."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    result: Any


class Places(Protocol):
    """What tells where tensors lie that are used in a step, given by its number."""

    def allocate(self, tensor: Tensor) -> None:
        """Note a new tensor."""

    def locate(self, tensor: Tensor, step: int) -> Any:
        """Return the place of an argument."""

    def locate_result(self, tensor: Any, step: int) -> Any:
        """Return the place of the tensor that a call returned."""


class Recording(TorchDispatchMode):
    """Context in which the launches and calls of this thread are kept, in order.

    Their tensors are not: what ``places`` says of a tensor stands in its place.

    Attributes:
        steps: What was launched and called.
        missed: Names of operators that PyTorch computed outside of a call; the steps are complete if there are none.
    """

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places
        self.steps: list[Launch | Call] = []
        self.missed: list[str] = []

    def __enter__(self) -> Recording:
        """Begin to record."""
        self._token: Token[Recording | None] = _recording.set(self)
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: object) -> None:
        """Stop recording."""
        super().__exit__(*error)
        _recording.reset(self._token)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator; note it if it computes anything outside of a launch or a call."""
        result = func(*args, **(kwargs or {}))
        if _recording.get() is self:
            name = func.overloadpacket.__name__
            if name in ALLOCATIONS:
                self.places.allocate(result)
            elif name not in VIEWS:
                self.missed.append(str(func))
        return result

    def located(self, value: Any) -> Any:
        """Return an argument of the next step, with the places of its tensors."""
        return map_nested(Tensor, lambda tensor: self.places.locate(tensor, len(self.steps)), value)


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


def launch(kernel: JITFunction[Any], grid: tuple[int, ...], **arguments: Any) -> None:
    """Launch ``kernel`` on ``grid`` programs with its arguments, constants and compiler options by name."""
    compiled = _unrecorded(kernel[grid], (), arguments)
    if (recording := _recording.get()) is not None:
        recording.steps.append(Launch(kernel, grid, recording.located(arguments), compiled))


def call(function: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Return the tensor that ``function`` computes in PyTorch from tensors (or lists or dicts of them) and options."""
    result = _unrecorded(function, arguments, options)
    if (recording := _recording.get()) is not None:
        located = recording.located(arguments), recording.located(options)
        place = recording.places.locate_result(result, len(recording.steps))
        recording.steps.append(Call(function, *located, place))
    return result


def _unrecorded(function: Callable[..., Result], arguments: tuple[Any, ...], options: dict[str, Any]) -> Result:
    """Call ``function``; what it launches and computes is repeated with it, as one step."""
    token = _recording.set(None)
    try:
        return function(*arguments, **options)
    finally:
        _recording.reset(token)


def map_nested(kind: type, function: Callable[[Any], Any], value: Any) -> Any:
    """Apply ``function`` to what is of ``kind`` in nested lists, tuples and dicts."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {name: map_nested(kind, function, each) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map_nested(kind, function, each) for each in value)
    return value
