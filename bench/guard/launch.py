"""``python -m bench.guard.launch TREE MODULE ARGUMENTS…``: run a module with ``ssa_fast`` taken from ``TREE``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from bench.guard.trees import assert_unmixed, import_from


def main() -> None:
    tree, module = Path(sys.argv[1]), sys.argv[2]
    import_from(tree)
    sys.argv = sys.argv[2:]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        assert_unmixed(tree)


if __name__ == "__main__":
    main()
