"""What stands in several files is the same in all: the version, the lowest dependencies, the paths of workflows."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import ssa_fast

ROOT = Path(__file__).parent.parent
MOST = 130  # lines of the README: more belongs into docs/
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_in_one_place() -> None:
    """It is ``_version.py``'s; a citation and the changelog's newest section are of it."""
    assert re.findall(r"^version: (.+)$", read("CITATION.cff"), re.MULTILINE) == [ssa_fast.__version__]
    assert re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[0] == ssa_fast.__version__
    assert 'version = { attr = "ssa_fast._version.__version__" }' in read("pyproject.toml")
    assert not re.search(r"^version = \"", read("pyproject.toml"), re.MULTILINE)


def test_the_citation_names_both_papers() -> None:
    citation, readme = read("CITATION.cff"), read("README.md")
    for words in ("10.1007/s11704-024-3571-9", "Self-supervised Equivariant Attention Mechanism"):
        assert words in citation
        assert words in readme


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= MOST


def test_the_lowest_versions_are_tested() -> None:
    """The job ``lowest`` installs what pyproject.toml names as the least; a patch release of it counts."""
    pinned = dict(re.findall(r"(\w+)==([\d.]+)", read(".github/workflows/ci.yml")))
    for name in ("torch", "triton", "numpy"):
        least = re.findall(rf'"{name}>=([\d.]+)', read("pyproject.toml"))
        assert len(least) == 1
        assert f"{pinned[name]}.".startswith(f"{least[0]}."), name
    assert f'python-version: "{re.findall(r">=(3[.][0-9]+)", read("pyproject.toml"))[0]}"' in read(
        ".github/workflows/ci.yml"
    )


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_name_what_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    files = re.findall(r"(?<!/)\b(?:tests|ssa_fast|bench)/[\w/.]*\w", text)
    assert [file for file in files if not (ROOT / file).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"run: make ([a-z-]+)", text)) <= targets
    for module in re.findall(r"python -m (bench|ssa_fast|tests)\b", text):
        assert importlib.util.find_spec(module) is not None


def test_github_files_are_yaml() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with packages of the extra peers")
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"]:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path.name
