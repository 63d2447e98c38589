"""Shared parts of what is summed or stored tile by tile: checks, blocks of pixels, lasting sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.arrays import detach, give
from ssa_fast.layouts import view_as_stage
from ssa_fast.validation import check_layouts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.layouts import Size


class _TileSum:
    """Base of all that is accumulated over the tiles of one image."""

    def __init__(self, C: int, device: torch.device | str | None, layout: str, grid: Size | None) -> None:
        check_positive("C", C)
        self.C, self.device = C, torch.device(device or "cpu")
        layouts, grids = check_layouts(layout, grid, {"tile": None})
        self._layout, self._grid = layouts["tile"] or "nchw", grids["tile"]
        self.pixels = 0

    def _read_tile(self, feats: Tensor, cam: Tensor | None = None) -> list[Tensor]:
        """Return features as a view ([n,] C, h, w), and the CAM ([n,] K, h, w) if there is one, without gradients.

        Those of volumes are (n, C, d, h, w) and (n, K, d, h, w).

        A public method calls it, whose caller is given the note on gradients.
        """
        if self._layout != "nchw":
            own_pixels = None if cam is None or cam.ndim < 2 else tuple(cam.shape[-3 if cam.ndim == 5 else -2 :])
            feats = view_as_stage("feats", feats, self._layout, self._grid or own_pixels, None)
        self._check_tile(feats, cam)
        given = {"feats": feats} if cam is None else {"feats": feats, "cam": cam}
        tensors, notes = detach(list(given), list(given.values()))
        give(notes, stacklevel=3)
        return tensors

    def _check_tile(self, feats: Tensor, cam: Tensor | None) -> None:
        """Raise ValueError or TypeError unless ``feats`` is ([n,] C, h, w) or (n, C, d, h, w)."""
        check_map("feats", feats, self.C, rank=feats.ndim)

    def _check_not_empty(self) -> None:
        if not self.pixels:
            raise ValueError("feats: nothing was added yet, so there is no result; call add first")

    def _signature(self) -> str:
        """Return the options that two objects must have in common to be merged."""
        return f"C={self.C}"

    def _check_mergeable(self, other: _TileSum) -> None:
        name = type(self).__name__
        if not isinstance(other, type(self)):
            raise TypeError(f"other: expected {name}, got {type(other).__name__}; merge two of the same class")
        if other is self:
            raise ValueError(f"other: expected another {name}, got the same one, whose pixels would count twice")
        if other._signature() != self._signature():
            raise ValueError(
                f"other: expected {self._signature()}, got {other._signature()}; merge {name} of one stage"
            )


class _Accumulator(_TileSum):
    """Base of ``Prototypes`` and ``PixelBank``: the options and checks they share."""

    def __init__(
        self,
        K: int,
        C: int,
        affinity: Affinity,
        device: torch.device | str | None,
        layout: str,
        grid: Size | None,
    ) -> None:
        check_positive("K", K)
        super().__init__(C, device, layout, grid)
        if affinity.steps > 1:
            raise ValueError(
                f"affinity: expected steps=1, got {affinity.steps}; steps > 1 needs a full pass per step: call add() "
                "and apply() on all tiles once per step"
            )
        self.K, self.affinity = K, affinity

    def _check_tile(self, feats: Tensor, cam: Tensor | None) -> None:
        """Check that ``feats`` is ([n,] C, h, w) or (n, C, d, h, w) and ``cam`` alike with K, both floating."""
        if cam is not None:
            check_map("cam", cam, self.K, rank=feats.ndim)
        super()._check_tile(feats, cam)
        axis = 0 if feats.ndim == 3 else 1  # of the channels
        pixels = feats.shape[axis + 1 :]
        if cam is not None and (cam.shape[axis + 1 :] != pixels or cam.shape[:axis] != feats.shape[:axis]):
            raise ValueError(
                f"cam: expected the tile's own pixels, {tuple(pixels)}, as feats has, got "
                f"{tuple(cam.shape)} for feats {tuple(feats.shape)}; resize the CAM to the stage first"
            )

    def _signature(self) -> str:
        return f"K={self.K}, {super()._signature()}, {self.affinity}"


def check_map(name: str, tensor: Tensor, rows: int, *, rank: int) -> None:
    """Raise ValueError or TypeError unless ``tensor`` is of ``rank``, and (rows, h, w), (n, rows, h, w) or as below.

    Of volumes it is (n, rows, d, h, w): without n, it could be n tiles of images.
    """
    rank = rank if rank in (3, 5) else 4
    if tensor.ndim != rank or tensor.shape[0 if rank == 3 else 1] != rows:
        expected = {3: f"({rows}, h, w)", 4: f"(n, {rows}, h, w)", 5: f"(n, {rows}, d, h, w)"}[rank]
        hint = "; where channels come last, pass layout='nhwc' or 'tokens'" if tensor.shape[-1:] == (rows,) else ""
        if rank == 4 and tensor.ndim == 4 and tensor.shape[0] == rows:
            hint = "; of a volume's slab pass [None]"
        raise ValueError(f"{name}: expected {expected}, got {tuple(tensor.shape)}{hint}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}; convert it")


def check_positive(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a whole number > 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a whole number > 0, got {value!r}")


def lasting_zeros(*shape: int, device: torch.device | None = None) -> Tensor:
    """Return float64 zeros that can be added to inside and outside inference mode."""
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=torch.float64, device=device)


def iter_blocks(shape: Sequence[int], size: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of blocks of at most ``size`` pixels (whole rows if they fit) of ``(h, w)``."""
    h, w = shape
    rows, across = max(1, size // max(1, w)), max(1, -(-w // size))
    columns = max(1, -(-w // across))
    for y in range(0, h, rows):
        for x in range(0, w, columns):
            yield slice(y, y + rows), slice(x, x + columns)
