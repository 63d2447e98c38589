"""Show how far a command is that also runs on other trees of the package, which may be too old to show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

T = TypeVar("T")


def paced(items: Sequence[T], what: str) -> Iterable[T]:
    """Return ``items``, with the progress of ``ssa_fast.io.progress.paced`` where the package has it."""
    try:
        from ssa_fast.io import progress

        return progress.paced(items, what, costs=[1.0] * len(items))
    except (ImportError, AttributeError):
        return items
