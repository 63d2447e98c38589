"""Which pictures a run is over: files, folders, globs, lists and datasets, each picture once and under one name."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from ssa_fast.io import datasets
from ssa_fast.io.datasets import Source, labels_of, output_names


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def relatives(found: datasets.Found) -> list[str]:
    return [str(source.relative) for source in found.sources]


def test_folders_are_searched_in_order_and_the_rest_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a.JPG", "sub/deep/c.tiff", "sub/notes.txt", ".hidden.png", ".cache/d.png")
    found = datasets.find([tmp_path])
    assert relatives(found) == ["a.JPG", "b.png", "sub/deep/c.tiff"]
    assert [path.name for path, _ in found.skipped] == ["notes.txt"]
    assert not found.missing


def test_a_file_met_twice_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.png", "in/b.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alias").symlink_to(tmp_path / "in")
    found = datasets.find(["in/b.png", "in", "./in/../in/a.png", tmp_path / "in" / "b.png", "alias"])
    assert relatives(found) == ["b.png", "a.png"]


def test_link_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert relatives(datasets.find([tmp_path / "in"])) == ["a.png"]


def test_missing_paths_and_files_named_outright(tmp_path: Path) -> None:
    touch(tmp_path, "scan.dat")
    found = datasets.find([tmp_path / "scan.dat", tmp_path / "nowhere"])
    assert relatives(found) == ["scan.dat"]
    assert [path.name for path, _ in found.missing] == ["nowhere"]


def test_own_outputs_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "out/masks/a.png")
    found = datasets.find([tmp_path], leave_out=[tmp_path / "out" / "masks"])
    assert relatives(found) == ["a.png"]
    assert [path.name for path, _ in found.skipped] == ["masks"]


def test_output_names_never_meet_whatever_the_order() -> None:
    paths = ["x/a.png", "x/a.jpg", "x/A.png", "y/a.png", "x/a_png", "x/deep/a.png", "x/b.tar.gz", "x/a_jpg.png"]
    given = [Source(Path(path), PurePosixPath(path).relative_to(path[0])) for path in paths]
    names = dict(zip(paths, map(str, output_names(given)), strict=True))
    assert names["x/deep/a.png"] == "deep/a"
    assert names["x/b.tar.gz"] == "b.tar"
    assert names["x/a_png"] == "a_png"
    assert names["x/a.jpg"] == "a_jpg-2"
    assert names["y/a.png"] != names["x/a.png"]
    assert len({name.casefold() for name in names.values()}) == len(paths)
    backwards = output_names(given[::-1])
    assert list(map(str, backwards[::-1])) == list(names.values())


def test_plain_names_lose_their_suffix_only() -> None:
    given = [Source(Path(path), PurePosixPath(path)) for path in ("a/2007_000032.jpg", "b/2007_000032.jpg")]
    assert list(map(str, output_names(given))) == ["a/2007_000032", "b/2007_000032"]


def test_globs_name_files_from_where_they_begin(tmp_path: Path) -> None:
    touch(tmp_path, "set/a.png", "set/b.jpg", "set/deep/c.png", "set/deep/[d].png")
    assert relatives(datasets.find([tmp_path / "set/*.png"])) == ["a.png"]
    assert relatives(datasets.find([tmp_path / "set/**/*.png"])) == ["a.png", "deep/[d].png", "deep/c.png"]
    assert relatives(datasets.find([tmp_path / "set/deep/[d].png"])) == ["[d].png"], "a file of that name is no glob"
    assert datasets.find([tmp_path / "set/*.gif"]).missing[0][1] == "no file matches it."


def test_lists_stand_for_the_paths_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "lists/near.png", "far/away.png", "work/here.png")
    monkeypatch.chdir(tmp_path / "work")
    lines = ["near.png", "", f"{tmp_path}/far/away.png", "  here.png ", "gone.png", "../far/away.png"]
    (tmp_path / "lists/train.txt").write_text("\n".join(lines))
    found = datasets.find([tmp_path / "lists/train.txt"])
    assert relatives(found) == ["near.png", "away.png", "here.png"]
    assert [str(path) for path, _ in found.missing] == ["gone.png"]
    assert "train.txt lists it" in found.missing[0][1]
    (tmp_path / "lists/bad.txt").write_bytes(b"\xff\xfe")
    assert "cannot be read" in datasets.find([tmp_path / "lists/bad.txt"]).missing[0][1]


def test_the_first_folders_are_an_imagefolders_classes(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.png", "cat/deep/b.png", "c.png")
    found = datasets.find([tmp_path])
    labels = {source.relative.name: labels_of(source) for source in found.sources if source.relative.name != "c.png"}
    assert labels == {"a.png": ("dog",), "b.png": ("cat",)}
    assert found.sources[1].dataset == ("cat", "dog")
    with pytest.raises(ValueError, match="no dataset tells its labels"):
        labels_of(found.sources[0])


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC's layout with three pictures, of which two are in a split and two have annotations."""
    root = tmp_path / "VOC2012"
    touch(root, *(f"JPEGImages/2007_{n}.jpg" for n in (1, 2, 3)), "SegmentationClass/2007_1.png")
    for folder in ("Annotations", "ImageSets/Segmentation", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_3\n2007_1\n")
    (root / "ImageSets/Main/cat_train.txt").write_text("2007_1 -1\n2007_2  1\n2007_3  0\n")
    objects = "".join(f"<object><name>{name}</name></object>" for name in ("sofa", "cat", "cat"))
    (root / "Annotations/2007_1.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "Annotations/2007_2.xml").write_text("<annotation><obj")
    return root


def test_voc_folders_stand_for_their_pictures_and_know_labels(voc: Path) -> None:
    everything = datasets.find([voc]).sources
    assert [str(source.relative) for source in everything] == ["2007_1.jpg", "2007_2.jpg", "2007_3.jpg"]
    assert labels_of(everything[0]) == ("cat", "sofa")
    for source in everything[1:]:
        with pytest.raises(ValueError, match="cannot be read"):
            labels_of(source)
    assert relatives(datasets.find([voc], split="train")) == ["2007_3.jpg", "2007_1.jpg"]
    assert relatives(datasets.find([voc], split="cat_train")) == ["2007_2.jpg", "2007_3.jpg"]
    pairs = voc / "pairs.txt"  # as PSA lists them
    pairs.write_text("/JPEGImages/2007_2.jpg /SegmentationClass/2007_2.png\n")
    assert relatives(datasets.find([voc], split=str(pairs))) == ["2007_2.jpg"]
    assert "no split 'test'" in datasets.find([voc], split="test").missing[0][1]


def test_a_split_wants_a_voc_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"^split: expected a folder with VOC's layout"):
        datasets.find([tmp_path], split="train")


def test_a_zarr_folder_is_one_picture(tmp_path: Path) -> None:
    touch(tmp_path, "slide.zarr/0/c/0.png", "a.png")
    assert relatives(datasets.find([tmp_path])) == ["a.png", "slide.zarr"]
    assert relatives(datasets.find([tmp_path / "slide.zarr"])) == ["slide.zarr"]
