"""Watch the tensors that a network's modules read and return."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ssa_fast.models.layout import find_first_tensor
from ssa_fast.models.trace import hooked_inference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

Verb: TypeAlias = Literal["reads", "returns"]


@contextmanager
def watch_tensors(model: nn.Module, watch: Callable[[str, Verb, Tensor], None]) -> Iterator[None]:
    """Call ``watch`` with a module's name and the first floating-point tensor that it reads or returns, in order.

    Within, the model is in evaluation mode, without gradients.
    """

    def see(name: str, verb: Verb, value: Any) -> None:
        tensor = find_first_tensor(value)
        if tensor is not None and tensor.is_floating_point():
            watch(name, verb, tensor)

    def enter(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        see(name, "reads", args)

    def leave(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        see(name, "returns", output)

    names = [name for name, _ in model.named_modules() if name]
    after, before = ({name: partial(hook, name) for name in names} for hook in (leave, enter))
    with hooked_inference(model, after, before):
        yield


def describe_place(model: nn.Module, name: str, verb: Verb) -> str:
    """Return in words where something begins: in a module, or in the forward around it before it is called."""
    kind = type(model.get_submodule(name)).__name__
    return f"{'in' if verb == 'returns' else 'before'} {name!r} ({kind})"
