"""The shipped tables of colours are matplotlib's."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from ssa_fast.localize.colormaps import COLORMAPS, table


@pytest.mark.parametrize("name", COLORMAPS)
def test_tables_are_matplotlibs(name: str) -> None:
    colours = table(name)
    assert colours.dtype == np.uint8
    np.testing.assert_array_equal(colours, matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3])


def test_a_table_is_the_callers_own() -> None:
    table("magma")[:] = 0
    assert table("magma").any()


@pytest.mark.parametrize("name", ["jet", "", None])
def test_other_maps_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"colormap: expected one of viridis, cividis, magma, turbo, got .*choose"):
        table(name)
