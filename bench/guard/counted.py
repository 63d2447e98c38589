"""``python -m bench.guard.launch TREE bench.guard.counted FILE``: what a tree's kernels move and multiply, as JSON.

A few small calls through the public face, interpreted; per call the bytes loaded and stored and the FLOPs of the matrix
products. Counts are exact: the same kernels on the same inputs give the same numbers everywhere.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

# (method, φ, (C, H, W) of each stage, signed): ragged in every size, and large enough for several tiles of each method.
CALLS: dict[str, tuple[str, str, tuple[tuple[int, int, int], ...], bool]] = {
    "prototypes": ("prototypes", "phi=relu", ((72, 12, 15),), False),
    "shifted": ("prototypes", "phi=shifted", ((72, 12, 15),), True),
    "tiled": ("tiled", "phi=relu", ((72, 12, 15),), True),
    "resident": ("resident", "phi=relu", ((72, 9, 11),), True),
    "fusion": ("prototypes", "phi=relu", ((40, 12, 15), (72, 6, 8)), False),
}
K = 3


def counted(name: str) -> dict[str, int] | str:
    """The numbers of one call, or why this tree cannot make it."""
    from bench import traffic  # needs TRITON_INTERPRET=1 in the environment
    from ssa_fast import Affinity, polish  # whose tree the launcher has seen to

    method, phi, sizes, signed = CALLS[name]
    generator = torch.Generator().manual_seed(0)
    draw: Any = torch.randn if signed else torch.rand
    stages = [draw(1, *size, generator=generator) for size in sizes]
    cam = torch.rand(1, K, 5, 6, generator=generator)
    given = stages if len(stages) > 1 else stages[0]
    try:
        affinity = Affinity.parse(phi)  # an older tree may not know this φ
        with traffic.count({}) as found:
            polish(cam, given, affinity=affinity, method=method, backend="triton", nonnegative=not signed)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return {
        "bytes loaded": found.loaded.total(),
        "bytes stored": found.stored.total(),
        "product FLOPs": found.dot_flops,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({name: counted(name) for name in CALLS}), encoding="utf-8")
