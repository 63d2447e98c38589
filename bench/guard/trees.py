"""The trees that are compared, and a finder that takes the whole of ``ssa_fast`` from one of them."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec

PACKAGE = "ssa_fast"
FOLDERS = ("ssa_fast", "kernels")  # what of a tree the package consists of


class NotATree(ValueError):
    """No package to compare there; the text says what was expected."""


@contextmanager
def checked_out(revision: str, repository: Path) -> Iterator[Path]:
    """A git worktree of ``revision``, gone when the block is left, however that happens."""
    commit = commit_of(revision, repository)
    with tempfile.TemporaryDirectory(prefix="bench-base-") as folder:
        tree = Path(folder) / "tree"
        try:
            _git(repository, "worktree", "add", "--quiet", "--detach", str(tree), commit)
            yield checked(tree)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
            _git(repository, "worktree", "prune")


@contextmanager
def copied(source: Path) -> Iterator[Path]:
    """A copy of a tree's package: who edits the tree while it is measured does not change what is measured."""
    checked(source)
    with tempfile.TemporaryDirectory(prefix="bench-tree-") as folder:
        for name in FOLDERS:
            if (source / name).is_dir():
                shutil.copytree(source / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(folder)


def checked(tree: Path) -> Path:
    """``tree``, if it holds the package; else ``NotATree``."""
    if not (tree / PACKAGE / "__init__.py").is_file():
        raise NotATree(f"{tree}: expected a folder with {PACKAGE}/__init__.py, found none; name a checkout of it")
    return tree


def commit_of(revision: str, repository: Path) -> str:
    """The short hash that a revision stands for, ``NotATree`` if it stands for none."""
    try:
        return _git(repository, "rev-parse", "--verify", "--quiet", "--short", f"{revision}^{{commit}}")
    except subprocess.CalledProcessError:
        raise NotATree(
            f"BASE: expected a commit, branch or tag of this repository, got {revision!r}; git fetch it first"
        ) from None


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class TreeFinder:
    """Finds ``ssa_fast`` and all that is in it under one tree, and nowhere else.

    It stands before every other finder: that of an editable install would answer for ``ssa_fast.kernels`` whatever tree
    the rest came from. A module that the tree lacks does not exist.
    """

    def __init__(self, tree: Path) -> None:
        self.tree = tree

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        first, *rest = name.split(".")
        if first != PACKAGE:
            return None
        parts = rest if rest[:1] == ["kernels"] else [first, *rest]
        spec = PathFinder.find_spec(name, [str(self.tree.joinpath(*parts[:-1]))])
        if spec is None:
            raise ModuleNotFoundError(f"no module named {name!r} in this tree", name=name)
        return spec


def import_from(tree: Path) -> Any:
    """The package ``ssa_fast`` of ``tree``, in a process that has not imported any yet."""
    if already := modules():
        raise RuntimeError(f"expected a process without {PACKAGE}, found {min(already)} imported")
    sys.meta_path.insert(0, TreeFinder(tree))
    package = importlib.import_module(PACKAGE)
    assert_unmixed(tree)
    return package


def assert_unmixed(tree: Path) -> None:
    """RuntimeError if a module of the package was loaded from anywhere but ``tree``."""
    for name, module in modules().items():
        places = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", []))
        if not places or not all(Path(place).resolve().is_relative_to(tree.resolve()) for place in places):
            raise RuntimeError(f"{name}: expected it from the tree {tree}, it came from {places or 'nowhere'}")


def modules() -> dict[str, Any]:
    """The package's modules that this process has loaded, by name."""
    return {name: each for name, each in sys.modules.items() if name.partition(".")[0] == PACKAGE}
