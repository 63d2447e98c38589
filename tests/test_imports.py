"""Imports: what works without optional packages, and which file may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ssa_fast
from ssa_fast import kernels

pytestmark = pytest.mark.slow  # fresh processes
PACKAGE = Path(ssa_fast.__file__).parent
KERNELS = sorted(Path(kernels.__file__).parent.glob("*.py"))
STANDARD = {"contextlib", "contextvars", "typing", "dataclasses", "collections", "math", "functools"}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_polish_works_without_the_optional_packages():
    blocked = ["triton", "torchvision", "PIL", "typer", "rich", "scipy", "skimage"]
    run(
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "import torch, ssa_fast\n"
        "out = ssa_fast.polish(torch.rand(2, 4, 4), [torch.rand(8, 6, 6), torch.randn(8, 3, 3)])\n"
        "assert out.shape == (2, 6, 6)\n"
        "assert ssa_fast.overlay(torch.rand(3, 24, 24), out[0]).shape == (3, 24, 24)\n"
    )


def test_import_brings_in_nothing_beyond_torch_and_numpy():
    new = run("import sys, torch, numpy; before = set(sys.modules); import ssa_fast; print(*set(sys.modules) - before)")
    assert all(name.split(".")[0] == "ssa_fast" for name in new.split() if "torch" not in name), new
    assert not {"ssa_fast.ssa", "ssa_fast.cli", "torchvision"} & set(new.split())


def test_reference_imports_torch_alone():
    assert imported(PACKAGE / "reference.py") <= {"torch", "typing", "__future__"}


METHODS = ("dense", "features", "numerics", "prototypes", "resize", "second_order", "tiled", "torch_backend")


@pytest.mark.parametrize("name", METHODS)
def test_pytorch_methods_know_neither_kernels_nor_dispatch(name):
    modules = {f"ssa_fast.ops.{each}" for each in METHODS}
    assert imported(PACKAGE / "ops" / f"{name}.py", depth=3) <= STANDARD | {"torch", "__future__"} | modules


def test_kernels_import_only_triton_torch_and_kernels():
    assert {path.name for path in KERNELS} >= {"prototypes.py", "tiled.py", "resident.py", "primitives.py"}
    for path in KERNELS:
        allowed = {"torch", "triton", "ssa_fast.kernels", "__future__"} | STANDARD
        assert imported(path) <= allowed, path.name


def test_what_decides_needs_no_triton():
    run(
        "import sys\nsys.modules['triton'] = None\n"
        "import ssa_fast.kernels.config, ssa_fast.ops.tile_tables, ssa_fast.ops.dispatch\n"
        "import ssa_fast.ops.triton_backend, torch\n"
        "try:\n    ssa_fast.polish(torch.rand(4, 4), torch.rand(8, 6, 6), backend='triton')\n"
        "except ValueError as error:\n    assert 'the package triton is not installed' in str(error), error\n"
        "else:\n    raise AssertionError('taken without triton')\n"
    )


def test_triton_is_imported_by_the_first_kernel_and_not_before():
    run(
        "import sys, torch, ssa_fast\n"
        "ssa_fast.explain(torch.rand(4, 4), torch.rand(8, 6, 6), backend='triton')\n"
        "assert 'triton' not in sys.modules\n"
        "ssa_fast.polish(torch.rand(4, 4), torch.rand(8, 6, 6), backend='triton')\n"
        "assert 'triton' in sys.modules\n"
    )


def imported(path: Path, depth: int = 2) -> set[str]:
    """Return what a file imports at run time: packages, of ours modules to ``depth`` names; not for annotations."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                parts = f"{node.module or ''}.{alias.name}".split(".")
                names.add(".".join(parts[: depth if parts[0] == "ssa_fast" else 1]))
    return names
