"""Imports point down only, and in no circle: the contracts in pyproject.toml, and a graph that has the kernels too."""

from __future__ import annotations

import ast
import functools
import shutil
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parent.parent
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def lint(folder: Path) -> tuple[int, str]:
    """Return import-linter's exit code and report for the package in ``folder``."""
    pytest.importorskip("importlinter", reason="import-linter comes with the extra dev")
    ended = subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def test_imports_point_down_only() -> None:
    code, report = lint(ROOT)
    assert code == 0, report


def test_an_import_upwards_is_found(tmp_path: Path) -> None:
    """It is one for annotations alone, from the lowest floor to the highest."""
    shutil.copytree(ROOT / "ssa_fast", tmp_path / "ssa_fast", ignore=shutil.ignore_patterns("__pycache__", "kernels"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "ssa_fast/affinity.py").open("a", encoding="utf-8") as file:
        file.write("\nif TYPE_CHECKING:\n    from ssa_fast.cli import app\n")
    code, report = lint(tmp_path)
    assert code == 1, report
    assert "ssa_fast.affinity -> ssa_fast.cli" in report


def modules() -> dict[str, Path]:
    """Return every module of the package with its file, those of ``kernels/`` under the name they are installed as."""
    found = {}
    for folder, package in ((ROOT / "ssa_fast", "ssa_fast"), (ROOT / "kernels", "ssa_fast.kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = [part for part in path.relative_to(folder).with_suffix("").parts if part != "__init__"]
            found[".".join([package, *parts])] = path
    return found


def imported(source: str, known: Mapping[str, object]) -> Iterator[str]:
    """Yield the modules among ``known`` that a file imports, wherever in it and whatever for."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (member if member in known else node.module for member in members)


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """Return what each module imports."""
    known = modules()
    return {name: set(imported(path.read_text(encoding="utf-8"), known)) for name, path in known.items()}


def rooms(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the same graph among the top-level modules and folders; the package's own ``__init__`` is none."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph.items():
        room = name.split(".")[1:2]
        for other in (target.split(".")[1:2] for target in targets):
            if room and other and room != other:
                found[room[0]].add(other[0])
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_is_in_a_circle() -> None:
    assert circle(import_graph()) == []


def test_no_room_is_in_a_circle() -> None:
    assert circle(rooms(import_graph())) == []


def test_kernels_import_no_floor_but_affinity() -> None:
    assert rooms(import_graph())["kernels"] <= {"affinity"}


def test_a_circle_is_found() -> None:
    known = dict.fromkeys(["ssa_fast", "ssa_fast.io", "ssa_fast.io.images", "ssa_fast.api"])
    lazily = "def f():\n    from ssa_fast import io, polish\n    import ssa_fast.io.images, torch\n"
    assert set(imported(lazily, known)) == {"ssa_fast", "ssa_fast.io", "ssa_fast.io.images"}
    assert set(imported("if TYPE_CHECKING:\n    from ssa_fast.api import polish\n", known)) == {"ssa_fast.api"}
    graph = {"ssa_fast.api": {"ssa_fast.io.images"}, "ssa_fast.io": {"ssa_fast.api"}}
    assert circle(graph) == []
    assert set(circle(rooms(graph))) == {"api", "io"}
