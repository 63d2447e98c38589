"""Which CAM file belongs to which image of a dataset."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from ssa_fast.evaluate.datasets import CamFolder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("image", "file"),
    [
        ("2007_000032", "2007_000032.npz"),
        ("2007_000032", "VOC2012/JPEGImages/2007_000032.npy"),
        ("val2/0/1.jpeg", "val2/0/1.jpeg.npy"),
        ("val2/0/1.jpeg", "0/1.npz"),
        ("val2/0/1.jpeg", "1.npz"),
        ("a.b.jpg", "a.b.npz"),
    ],
)
def test_a_cam_file_is_found_by_the_end_of_its_path(tmp_path: Path, image: str, file: str) -> None:
    for run in ("cams", "."):  # a run's folder has them in "cams"
        path = tmp_path / "run" / run / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        (tmp_path / "run" / run / "other.npz").touch()
        assert CamFolder(tmp_path / "run").find(image) == path
        assert CamFolder(tmp_path / "run").find("not/there.jpg") is None
        assert CamFolder(tmp_path / "run").find("val3/7/1.jpeg") == (path if file == "1.npz" else None)
        shutil.rmtree(tmp_path / "run")


def test_files_that_several_images_could_be_of_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/1.npz", "1.npy"):
        (tmp_path / name).touch()
    cams = CamFolder(tmp_path)
    assert cams.find("a/1.jpg") == tmp_path / "a/1.npz", "an exact match goes first"
    with pytest.raises(ValueError, match=r"one CAM file of b/a/1.jpg, got .*1\.np[yz], .*1\.np[yz]"):
        cams.find("b/a/1.jpg")
    (tmp_path / "a/1.npz").unlink()
    with pytest.raises(ValueError, match=r"a CAM file per image, got .*1\.npy for both x/1.jpg and y/1.jpg"):
        CamFolder(tmp_path).find_all(["x/1.jpg", "y/1.jpg"], "refuse")
    with pytest.raises(FileNotFoundError, match=r"none for 1: 2\.jpg; pass the folder that a run wrote"):
        CamFolder(tmp_path).find_all(["2.jpg"], "skip")
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path / "a", "none in")):
        with pytest.raises(FileNotFoundError, match=message):
            CamFolder(folder)
