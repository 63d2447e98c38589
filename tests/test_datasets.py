"""Test which images a run finds in files, folders, globs, lists and datasets, and how outputs are named."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from ssa_fast.io.datasets import ImageSource, Listing, find_images, labels_of, output_names


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def relatives(listing: Listing) -> list[str]:
    return [str(source.relative) for source in listing.sources]


def test_folders_are_searched_in_order_and_other_files_are_reported(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a.JPG", "sub/deep/c.tiff", "sub/notes.txt", ".hidden.png", ".cache/d.png")
    listing = find_images([tmp_path])
    assert relatives(listing) == ["a.JPG", "b.png", "sub/deep/c.tiff"]
    assert [path.name for path, _ in listing.skipped] == ["notes.txt"]
    assert not listing.missing


def test_each_file_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.png", "in/b.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alias").symlink_to(tmp_path / "in")
    listing = find_images(["in/b.png", "in", "./in/../in/a.png", tmp_path / "in" / "b.png", "alias"])
    assert relatives(listing) == ["b.png", "a.png"]


def test_symlink_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert relatives(find_images([tmp_path / "in"])) == ["a.png"]


def test_missing_paths_and_files_with_any_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "scan.dat")
    listing = find_images([tmp_path / "scan.dat", tmp_path / "nowhere"])
    assert relatives(listing) == ["scan.dat"]
    assert [path.name for path, _ in listing.missing] == ["nowhere"]


def test_output_folders_are_excluded(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "out/masks/a.png")
    listing = find_images([tmp_path], exclude=[tmp_path / "out" / "masks"])
    assert relatives(listing) == ["a.png"]
    assert [path.name for path, _ in listing.skipped] == ["masks"]


def test_output_names_are_unique_in_any_order() -> None:
    paths = ["x/a.png", "x/a.jpg", "x/A.png", "y/a.png", "x/a_png", "x/deep/a.png", "x/b.tar.gz", "x/a_jpg.png"]
    given = [ImageSource(Path(path), PurePosixPath(path).relative_to(path[0])) for path in paths]
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
    given = [ImageSource(Path(path), PurePosixPath(path)) for path in ("a/2007_000032.jpg", "b/2007_000032.jpg")]
    assert list(map(str, output_names(given))) == ["a/2007_000032", "b/2007_000032"]


def test_names_of_globs_start_at_the_first_wildcard(tmp_path: Path) -> None:
    touch(tmp_path, "set/a.png", "set/b.jpg", "set/deep/c.png", "set/deep/[d].png")
    assert relatives(find_images([tmp_path / "set/*.png"])) == ["a.png"]
    assert relatives(find_images([tmp_path / "set/**/*.png"])) == ["a.png", "deep/[d].png", "deep/c.png"]
    assert relatives(find_images([tmp_path / "set/deep/[d].png"])) == ["[d].png"], "an existing file is not a glob"
    assert find_images([tmp_path / "set/*.gif"]).missing[0][1] == "no file matches it."


def test_lists_stand_for_the_paths_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "lists/near.png", "far/away.png", "work/here.png")
    monkeypatch.chdir(tmp_path / "work")
    lines = ["near.png", "", f"{tmp_path}/far/away.png", "  here.png ", "gone.png", "../far/away.png"]
    (tmp_path / "lists/train.txt").write_text("\n".join(lines))
    listing = find_images([tmp_path / "lists/train.txt"])
    assert relatives(listing) == ["near.png", "away.png", "here.png"]
    assert [str(path) for path, _ in listing.missing] == ["gone.png"]
    assert "train.txt lists it" in listing.missing[0][1]
    (tmp_path / "lists/bad.txt").write_bytes(b"\xff\xfe")
    assert "cannot be read" in find_images([tmp_path / "lists/bad.txt"]).missing[0][1]


def test_the_first_folders_are_an_imagefolders_classes(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.png", "cat/deep/b.png", "c.png")
    listing = find_images([tmp_path])
    labels = {source.relative.name: labels_of(source) for source in listing.sources if source.relative.name != "c.png"}
    assert labels == {"a.png": ("dog",), "b.png": ("cat",)}
    assert listing.sources[1].dataset == ("cat", "dog")
    with pytest.raises(ValueError, match="it has no labels"):
        labels_of(listing.sources[0])


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Return a folder in VOC's layout with three images: two are in a split, two have annotations."""
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


def test_voc_folders_stand_for_their_images_and_have_labels(voc: Path) -> None:
    everything = find_images([voc]).sources
    assert [str(source.relative) for source in everything] == ["2007_1.jpg", "2007_2.jpg", "2007_3.jpg"]
    assert labels_of(everything[0]) == ("cat", "sofa")
    for source in everything[1:]:
        with pytest.raises(ValueError, match="cannot be read"):
            labels_of(source)
    assert relatives(find_images([voc], split="train")) == ["2007_3.jpg", "2007_1.jpg"]
    assert relatives(find_images([voc], split="cat_train")) == ["2007_2.jpg", "2007_3.jpg"]
    pairs = voc / "pairs.txt"  # the format of PSA's lists
    pairs.write_text("/JPEGImages/2007_2.jpg /SegmentationClass/2007_2.png\n")
    assert relatives(find_images([voc], split=str(pairs))) == ["2007_2.jpg"]
    assert "no split 'test'" in find_images([voc], split="test").missing[0][1]


def test_a_split_needs_a_voc_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"^split: expected a folder with VOC's layout"):
        find_images([tmp_path], split="train")


def test_a_zarr_folder_is_one_image(tmp_path: Path) -> None:
    touch(tmp_path, "slide.zarr/0/c/0.png", "a.png")
    assert relatives(find_images([tmp_path])) == ["a.png", "slide.zarr"]
    assert relatives(find_images([tmp_path / "slide.zarr"])) == ["slide.zarr"]
