"""Test atomic writes: all files appear, or none, and existing ones are kept."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from ssa_fast.io import atomic
from ssa_fast.runs.manifest import output_paths


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def text(content: str):
    return lambda path: path.write_text(content)


def test_write_files_writes_all(tmp_path: Path) -> None:
    atomic.write_files({tmp_path / "x/a.txt": text("a"), tmp_path / "y/z/b.txt": text("b")}, overwrite=False)
    assert files(tmp_path) == {"x/a.txt": "a", "y/z/b.txt": "b"}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError("encoder")])
def test_an_error_while_writing_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def breaks(path: Path) -> None:
        path.write_text("half of")
        raise error

    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(type(error)):
        atomic.write_files({tmp_path / "a.txt": text("a"), tmp_path / "old.txt": breaks}, overwrite=True)
    assert files(tmp_path) == {"old.txt": "old"}


def test_an_error_while_renaming_removes_what_was_renamed(tmp_path: Path) -> None:
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(OSError, match=r"b\.txt"):
        atomic.write_files({tmp_path / "a.txt": text("a"), tmp_path / "b.txt": text("b")}, overwrite=True)
    assert files(tmp_path) == {}


def test_existing_targets_are_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("old")
    writers = {tmp_path / "a.txt": text("a"), tmp_path / "b.txt": text("new")}
    with pytest.raises(FileExistsError, match="--overwrite"):
        atomic.write_files(writers, overwrite=False)
    assert files(tmp_path) == {"b.txt": "old"}
    atomic.write_files(writers, overwrite=True)
    assert files(tmp_path) == {"a.txt": "a", "b.txt": "new"}


def test_a_target_that_appears_while_writing_is_kept(tmp_path: Path) -> None:
    def rival(path: Path) -> None:
        (tmp_path / "a.txt").write_text("rival's")
        path.write_text("mine")

    with pytest.raises(FileExistsError):
        atomic.write_files({tmp_path / "a.txt": rival}, overwrite=False)
    assert files(tmp_path) == {"a.txt": "rival's"}


def test_targets_keep_dots_in_names() -> None:
    found = output_paths(Path("out"), PurePosixPath("sub/a.b"), {"cams": ".npz", "masks": ".png"})
    assert found["cams"] == Path("out/cams/sub/a.b.npz")
    assert found["masks"] == Path("out/masks/sub/a.b.png")
