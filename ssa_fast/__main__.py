"""Run ``ssa-fast`` as ``python -m ssa_fast``."""

from __future__ import annotations

from ssa_fast.cli import main

if __name__ == "__main__":
    main()
