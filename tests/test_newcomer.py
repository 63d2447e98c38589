"""The newcomer's first minute: the README's install line, its first snippet and its command, in a fresh environment.

A true fresh environment downloads PyTorch, gigabytes that a test cannot fetch. So the package is built and installed as
the README says, but alone (``--no-deps``), in a new virtual environment that sees neither the checkout nor the packages
of this one. Of these it gets links to exactly what the README's extra brings: the requirements in the built metadata,
and theirs, and so on. Whatever a requirement is missing for cannot be imported there, and nothing can be downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from ssa_fast.localize.drawing import CELL, GAP, SIDE, TITLE
from tests import pages
from tests.pages import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = pytest.mark.slow

README = pages.blocks(ROOT / "README.md")
OFFLINE = """
import socket

def refuse(self, address):
    raise OSError(f"connection to {address}: nothing may be downloaded here")

socket.socket.connect = refuse
"""


def install_line() -> str:
    """Return the requirement in the README's first ``pip install`` line, such as ``.[photos]``."""
    lines = "".join(block.text for block in README if block.language == "sh")
    return re.findall(r'^pip install "(\.\[[\w,]+\])"', lines, re.MULTILINE)[0]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package, built from a copy of the checkout: what git would track, and no more."""
    pytest.importorskip("setuptools", reason="the package is built with the setuptools at hand, as it is offline")
    source, built = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", ".*")
    for path in [*ROOT.glob("*.*"), ROOT / "LICENSE", ROOT / "ssa_fast", ROOT / "kernels"]:
        if path.is_file():
            shutil.copy(path, source)
        elif path.name in ("ssa_fast", "kernels"):
            shutil.copytree(path, source / path.name, ignore=ignored, symlinks=True)
    (source / "ssa_fast/kernels").unlink(missing_ok=True)  # a link that a checkout may have
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", built, source)
    (found,) = built.glob("*.whl")
    return found


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def closure(requirements: Iterable[str], extras: set[str]) -> dict[str, metadata.Distribution]:
    """Return the installed distributions that requirements bring, by name, ssa_fast's own extras followed."""
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    own = list(requirements)
    pending = [(Requirement(text), extra) for text in own for extra in ("", *extras)]
    while pending:
        requirement, extra = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            if name == "ssa-fast":
                pending += [(Requirement(text), wanted) for text in own]
                continue
            try:
                found[name] = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                pytest.skip(f"{name} is not installed: it comes with the extra test")
            pending += [(Requirement(text), wanted) for text in found[name].requires or ()]
        if name in found:
            assert requirement.specifier.contains(found[name].version, prereleases=True), str(requirement)
    return found


def link(distributions: dict[str, metadata.Distribution], target: Path) -> None:
    """Link the files of distributions into a folder; a folder that others share is made, and its files are linked."""
    owners: dict[str, set[str]] = {}
    for distribution in metadata.distributions():
        for top in {file.parts[0] for file in distribution.files or ()}:
            owners.setdefault(top, set()).add(canonicalize_name(distribution.metadata["Name"]))
    for distribution in distributions.values():
        files = distribution.files or ()
        whole = {top for top in {file.parts[0] for file in files} if owners[top] <= distributions.keys()}
        for name in {*whole, *(str(file) for file in files if file.parts[0] not in whole)} - {"..", "__pycache__"}:
            if name.startswith(("../", "__pycache__/")) or (target / name).exists():
                continue
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(distribution.locate_file(name))


def fresh_environment(wheel: Path, folder: Path, *, without: str = "") -> Path:
    """Install the wheel by the README's line; return the environment's folder of programs."""
    venv.create(folder, symlinks=True)
    programs = folder / "bin"
    requirement = f"{wheel}{install_line()[1:]}"
    pip("--python", programs / "python", "install", "--no-deps", "--no-index", requirement)
    (packages,) = folder.glob("lib/python*/site-packages")
    (installed,) = metadata.distributions(path=[str(packages)])
    needed = [text for text in installed.requires or () if not without or not text.startswith(without)]
    link(closure(needed, set(re.findall(r"\w+", install_line()))), packages)
    (packages / "sitecustomize.py").write_text(OFFLINE)
    return programs


def run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder`` with nothing of this process's environment that could help or disturb."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    kept |= {"HOME": str(folder), "PYTHONNOUSERSITE": "1"}
    return subprocess.run([*map(str, command)], cwd=folder, env=kept, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_environment(wheel, tmp_path_factory.mktemp("fresh"))


def test_the_first_snippet_saves_a_panel(programs: Path, tmp_path: Path) -> None:
    """Its map is yellow on the cat's face, and not in the corner beside it."""
    snippet = next(block for block in README if block.language == "python")
    (tmp_path / "first.py").write_text(snippet.text)
    done = run(tmp_path, programs / "python", "first.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    with Image.open(tmp_path / "panel.png") as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    height = 300 * CELL // 451  # of a cell: the photograph has 451 x 300 pixels
    cells = [sheet[TITLE : TITLE + height, x : x + CELL] for x in range(SIDE, sheet.shape[1] - CELL, CELL + GAP)]
    photo, fused = cells[0], cells[-3]  # boxes and mask come last
    yellow = (fused - photo)[..., 1] - (fused - photo)[..., 2]
    assert yellow[45:120, 60:165].mean() > yellow[:30, -30:].mean() + 30


def test_the_command_in_the_readme_runs(programs: Path, tmp_path: Path) -> None:
    commands = (command.words for command in pages.commands(ROOT / "README.md"))
    words = next(words for words in commands if words[:2] == ("ssa-fast", "run"))
    (tmp_path / words[2]).mkdir()
    Image.effect_noise((96, 64), 60).convert("RGB").save(tmp_path / words[2] / "a.jpg")
    done = run(tmp_path, programs / words[0], *words[1:])
    assert done.returncode == 0, done.stderr
    out = tmp_path / words[words.index("--out") + 1]
    assert {path.name for path in out.iterdir()} >= {"cams", "masks", "overlays", "boxes.json", "report.json"}


def test_the_package_is_the_installed_one(programs: Path, tmp_path: Path) -> None:
    done = run(tmp_path, programs / "python", "-c", "import ssa_fast.kernels as k; print(k.__file__)")
    assert done.stdout.startswith(str(programs.parent)), done.stderr
    for hidden in ("pytest", "hypothesis", "bench", "tests"):
        assert run(tmp_path, programs / "python", "-c", f"import {hidden}").returncode == 1, hidden


def test_the_release_would_pass_its_smoke_test(programs: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/smoke.py", tmp_path)
    done = run(tmp_path, programs / "python", "smoke.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("works")


def test_a_missing_requirement_is_found(wheel: Path, tmp_path: Path) -> None:
    """Were timm not in the extra, the snippet would end with its name."""
    programs = fresh_environment(wheel, tmp_path / "fresh", without="timm")
    snippet = next(block for block in README if block.language == "python")
    (tmp_path / "first.py").write_text(snippet.text)
    done = run(tmp_path, programs / "python", "first.py")
    assert done.returncode == 1
    assert "timm" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("target", ["demo", "docs", "test", "lint"])
def test_make_installs_extras_that_exist(target: str, wheel: Path, tmp_path: Path) -> None:
    """``make -n`` shows what a fresh clone would do."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = run(tmp_path, "make", "--dry-run", "--directory", ROOT, f"VENV={tmp_path}", target)
    assert done.returncode == 0, done.stderr
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', done.stdout)
    (known,) = metadata.distributions(path=[str(wheel)])
    assert set(extras.split(",")) <= {*known.metadata.get_all("Provides-Extra")}
