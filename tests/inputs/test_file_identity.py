"""Heading 10: whether a file or Zarr is still the one that it was, whatever its times say.

The class of inputs: files whose content and times change together, apart, or within a tick of the clock; folders that
are one image; files that are too large to hash, and those that have no end.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ssa_fast.io import identity

OLD = 10**9  # seconds since the epoch: long before anything is written down


def age(path: Path) -> None:
    os.utime(path, (OLD, OLD))


def test_a_zarr_is_all_of_its_files(tmp_path: Path) -> None:
    for name in ("0/c/0", "0/c/1", "zarr.json"):
        (tmp_path / "a.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a.zarr" / name).write_text(name)
        age(tmp_path / "a.zarr" / name)
    before, noted = identity.identify(tmp_path / "a.zarr"), OLD + 10**8
    assert before["bytes"] == 5 + 5 + 9
    assert identity.is_same(tmp_path / "a.zarr", before, noted)
    assert identity.is_same(Path(shutil.copytree(tmp_path / "a.zarr", tmp_path / "copy")), before, noted)
    (tmp_path / "a.zarr/0/c/1").write_text("xxxxx")
    age(tmp_path / "a.zarr/0/c/1")
    assert not identity.is_same(tmp_path / "a.zarr", before, noted)
    (tmp_path / "a.zarr/0/c/1").rename(tmp_path / "a.zarr/0/c/2")
    assert not identity.is_same(tmp_path / "a.zarr", identity.identify(tmp_path / "copy"), noted)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX: named pipes")
def test_what_has_no_end_is_not_hashed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="is no regular file"):
            identity.identify(path)


def test_hashes_are_made_on_doubt_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("abc")
    age(path)
    before, later = identity.identify(path), path.stat().st_ctime + 100
    monkeypatch.setattr(identity, "_hash", lambda *_: pytest.fail("hashed"))
    assert identity.is_same(path, before, later)
    path.write_text("abcd")
    assert not identity.is_same(path, before, later), "another size needs no hash"
    monkeypatch.undo()
    path.write_text("abc")
    os.utime(path, (OLD, OLD))
    assert identity.is_same(path, before, later)
    assert identity.is_same(path, before, OLD), "written down within the clock's tick: compared by content"


def test_files_that_are_too_large_to_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size and time of modification decide, as for make."""
    path = tmp_path / "a"
    path.write_text("abc")
    monkeypatch.setattr(identity, "HASHED", 2)
    before = identity.identify(path)
    assert before["hash"] is None
    assert identity.is_same(path, before, 0.0)
    path.chmod(0o600)
    assert identity.is_same(path, before, 0.0)
    age(path)
    assert not identity.is_same(path, before, 0.0)
