"""Launch a kernel: the one way for every host function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triton.runtime.jit import JITFunction


def launch(kernel: JITFunction[Any], grid: tuple[int, ...], **arguments: Any) -> None:
    """Launch ``kernel`` on ``grid`` programs with its arguments, constants and compiler options by name."""
    kernel[grid](**arguments)
