"""What a run leaves on disk: whole or not at all, never over something that is there, readable without pickle."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from ssa_fast import outputs


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def text(content: str):
    return lambda path: path.write_text(content)


def test_place_writes_all(tmp_path: Path) -> None:
    outputs.place({tmp_path / "x/a.txt": text("a"), tmp_path / "y/z/b.txt": text("b")}, overwrite=False)
    assert files(tmp_path) == {"x/a.txt": "a", "y/z/b.txt": "b"}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError("encoder")])
def test_an_error_while_writing_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def breaks(path: Path) -> None:
        path.write_text("half of")
        raise error

    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(type(error)):
        outputs.place({tmp_path / "a.txt": text("a"), tmp_path / "old.txt": breaks}, overwrite=True)
    assert files(tmp_path) == {"old.txt": "old"}


def test_an_error_while_renaming_takes_back_what_was_renamed(tmp_path: Path) -> None:
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(OSError, match=r"b\.txt"):
        outputs.place({tmp_path / "a.txt": text("a"), tmp_path / "b.txt": text("b")}, overwrite=True)
    assert files(tmp_path) == {}


def test_existing_targets_are_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("old")
    writers = {tmp_path / "a.txt": text("a"), tmp_path / "b.txt": text("new")}
    with pytest.raises(FileExistsError, match="--overwrite"):
        outputs.place(writers, overwrite=False)
    assert files(tmp_path) == {"b.txt": "old"}
    outputs.place(writers, overwrite=True)
    assert files(tmp_path) == {"a.txt": "a", "b.txt": "new"}


def test_a_target_that_appears_while_writing_is_kept(tmp_path: Path) -> None:
    def rival(path: Path) -> None:
        (tmp_path / "a.txt").write_text("rival's")
        path.write_text("mine")

    with pytest.raises(FileExistsError):
        outputs.place({tmp_path / "a.txt": rival}, overwrite=False)
    assert files(tmp_path) == {"a.txt": "rival's"}


def press(times: int, reached: list[int]) -> None:
    with outputs.interrupts_held():
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        reached.append(times)


def test_interrupts_wait_for_the_end_of_the_block_and_a_second_one_does_not() -> None:
    reached: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        press(1, reached)
    with pytest.raises(KeyboardInterrupt):
        press(2, reached)
    press(0, reached)
    assert reached == [1, 0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_targets_keep_dots_in_names() -> None:
    found = outputs.targets(Path("out"), PurePosixPath("sub/a.b"))
    assert found["cams"] == Path("out/cams/sub/a.b.npz")
    assert found["masks"] == Path("out/masks/sub/a.b.png")


def test_cams_load_without_pickle(tmp_path: Path) -> None:
    cams = np.random.default_rng(0).random((2, 5, 7), dtype=np.float32)
    outputs.save_cams(
        tmp_path / "a.npz",
        cams,
        classes=[3, 999],
        names=["tiger shark", "bolete"],
        labels=[1, 2],
        logits=np.array([1.5, -2.0]),
        settings={"model": "resnet50", "scales": [1.0]},
        version="1.2.3",
    )
    with np.load(tmp_path / "a.npz", allow_pickle=False) as content:
        read = dict(content)
    assert read["cams"].dtype == np.float16
    np.testing.assert_array_equal(read["cams"], cams.astype(np.float16))
    assert read["classes"].tolist() == [3, 999]
    assert read["names"].tolist() == ["tiger shark", "bolete"]
    assert read["labels"].tolist() == [1, 2]
    assert read["logits"].tolist() == [1.5, -2.0]
    assert read["size"].tolist() == [5, 7]
    assert json.loads(str(read["settings"])) == {"model": "resnet50", "scales": [1.0]}
    assert str(read["version"]) == "1.2.3"


def test_boxes_are_coco() -> None:
    ledger = outputs.BoxLedger()
    boxes = [np.array([[1.0, 2.0, 4.0, 8.0]]), np.empty((0, 4))]
    common = {"classes": [7, 2], "names": ["cock", "great white shark"], "scores": [0.75, 0.25], "boxes": boxes}
    ledger.add("a.png", (10, 20), output="a", **common)
    ledger.add("b.png", (5, 5), output="b", **common)
    read = json.loads(ledger.as_json(settings={"model": "m"}, version="1"))
    assert [(image["id"], image["width"], image["height"]) for image in read["images"]] == [(1, 20, 10), (2, 5, 5)]
    assert [annotation["id"] for annotation in read["annotations"]] == [1, 2]
    assert read["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 7,
        "bbox": [1.0, 2.0, 3.0, 6.0],
        "area": 18.0,
        "iscrowd": 0,
        "score": 0.75,
    }
    assert read["categories"] == [{"id": 2, "name": "great white shark"}, {"id": 7, "name": "cock"}]
    assert read["info"]["settings"] == {"model": "m"}
