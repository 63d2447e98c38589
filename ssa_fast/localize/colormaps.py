"""Tables of colours that are even to the eye, without matplotlib.

They are matplotlib's own in its 8 bits. Viridis and magma (N. Smith, S. van der Walt) and cividis (Nuñez et al., PLoS
ONE 2018) are CC0 and safe for colour-blind readers; turbo (A. Mikhailov, Google) is Apache-2.0 and is not.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLORMAPS = ("viridis", "cividis", "magma", "turbo")
FILE = Path(__file__).with_name("colormaps.npz")


def table(name: str = "viridis") -> NDArray[np.uint8]:
    """Return the colours of a map from its lowest to its highest value: (256, 3) uint8 RGB.

    Args:
        name: One of ``COLORMAPS``.

    Raises:
        ValueError: There is no such map.
    """
    if name not in COLORMAPS:
        raise ValueError(f"colormap: expected one of {', '.join(COLORMAPS)}, got {name!r}; choose one of them")
    return _load()[name].copy()


@cache
def _load() -> dict[str, NDArray[np.uint8]]:
    with np.load(FILE) as tables:
        return {name: tables[name] for name in COLORMAPS}
