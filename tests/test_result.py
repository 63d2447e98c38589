"""Test what a result of SSA can do beside drawing: choose images, move, save, load, show itself in a notebook."""

from __future__ import annotations

import base64
import io
import re
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssa_fast import SSAResult
from ssa_fast.io.cam_files import CamFile, write_cam
from ssa_fast.localize import html
from ssa_fast.localize.colormaps import table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

B, K = 4, 3
NAMES = ("cat", "<img src=x onerror=alert(1)>", "Größe & “Maß”", "a\x00b\n", "dog")
NOTES = ("logits: <b>output 1</b> was taken.", "naïve, but said")


def make(B: int = B, K: int = K, side: int = 24, seed: int = 0) -> SSAResult:
    """Return a result of random maps; its last image has one class less, and the class of one map is not known."""
    g = torch.Generator().manual_seed(seed)
    valid = torch.ones(B, K, dtype=torch.bool)
    valid[-1, -1] = False
    classes = torch.randint(len(NAMES), (B, K), generator=g).where(valid, -1)
    classes[0, 0] = -1
    shown = valid[:, :, None, None]
    return SSAResult(
        cams=torch.rand(B, K, side, side + 6, generator=g).where(shown, 0.0),
        seed=torch.rand(B, K, 3, 4, generator=g).where(shown, 0.0),
        stages={name: torch.rand(B, K, 6, 8, generator=g).where(shown, 0.0) for name in ("blocks.4", "a/b ü")},
        logits=torch.randn(B, len(NAMES), generator=g),
        classes=classes,
        valid=valid,
        scores=torch.rand(B, K, generator=g).where(valid, 0.0).where(classes >= 0, torch.nan),
        output_names=NAMES,
        notes=NOTES,
    )


def tensors(result: SSAResult) -> dict[str, torch.Tensor]:
    named = {field.name: getattr(result, field.name) for field in fields(result)}
    stages = {f"stages[{name}]": maps for name, maps in named.pop("stages").items()}
    return {name: value for name, value in {**named, **stages}.items() if isinstance(value, torch.Tensor)}


def same(result: SSAResult, expected: SSAResult, rows: Any = slice(None)) -> bool:
    """Whether a result is bit by bit the chosen rows of another, with its names and notes."""
    found, wanted = tensors(result), tensors(expected)
    assert list(found) == list(wanted)
    assert (result.output_names, result.notes) == (expected.output_names, expected.notes)
    pairs = {name: (tensor, wanted[name][rows]) for name, tensor in found.items()}
    return all(
        a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point())
        for a, b in pairs.values()
    )


CHOICES: dict[str, tuple[Any, list[int]]] = {
    "first": (0, [0]),
    "last": (-1, [3]),
    "numpy number": (np.int64(2), [2]),
    "number in a tensor": (torch.tensor(1), [1]),
    "slice": (slice(1, 3), [1, 2]),
    "slice past the end": (slice(2, 99), [2, 3]),
    "none": (slice(4, None), []),
    "every other": (slice(None, None, 2), [0, 2]),
    "backwards": (slice(None, None, -1), [3, 2, 1, 0]),
    "list": ([2, 0, -1], [2, 0, 3]),
    "empty list": ([], []),
    "tensor": (torch.tensor([1, 1]), [1, 1]),
    "array": (np.array([3]), [3]),
    "mask": (torch.tensor([True, False, False, True]), [0, 3]),
    "mask of a list": ([False, True, False, False], [1]),
}


@pytest.mark.parametrize(("index", "rows"), CHOICES.values(), ids=CHOICES)
def test_an_index_chooses_images(index: Any, rows: list[int]) -> None:
    result = make()
    assert same(result[index], result, rows)
    assert len(result[index]) == len(rows)


def test_one_image_works_like_a_batch() -> None:
    result = make()
    assert torch.equal(result[1].masks(), result.masks()[1:2])
    assert result[-1].names == result.names[-1:]
    assert result[0].cams.untyped_storage().data_ptr() == result.cams.untyped_storage().data_ptr()  # no copy
    singles = list(result)
    assert len(singles) == len(result) == B
    assert all(same(single, result, slice(b, b + 1)) for b, single in enumerate(singles))


@pytest.mark.parametrize("index", [4, -5, [0, 4], torch.tensor([-5])])
def test_an_image_that_is_not_there_is_refused(index: Any) -> None:
    with pytest.raises(IndexError, match=r"index: expected an image from -4 to 3, got (4|-5); the result has 4"):
        make()[index]


@pytest.mark.parametrize(
    "index", [(0, 1), "cams", 1.0, None, [0.5], [[0]], torch.tensor([True]), torch.tensor(1.0), np.zeros((1, 2), int)]
)
def test_other_indices_are_refused(index: Any) -> None:
    with pytest.raises(TypeError, match="index: expected "):
        make()[index]


def test_to_moves_every_tensor_and_nothing_twice() -> None:
    result = make()
    moved = result.to("meta", non_blocking=True)
    assert {tensor.device.type for tensor in tensors(moved).values()} == {"meta"}
    assert {name: t.shape for name, t in tensors(moved).items()} == {n: t.shape for n, t in tensors(result).items()}
    assert (moved.output_names, moved.notes) == (NAMES, NOTES)
    assert result.cpu() is result.to(torch.device("cpu")) is result
    with pytest.raises(TypeError, match=r"device: expected a device, got torch.float16; .* result\.cams\.half\(\)"):
        result.to(torch.float16)  # type: ignore[arg-type]


def test_numpy_is_a_dict_of_arrays() -> None:
    result = make()
    arrays = result.numpy()
    assert list(arrays) == ["cams", "seed", "logits", "classes", "valid", "scores", "stages", "names"]
    for name, tensor in tensors(result).items():
        array = arrays["stages"][name[7:-1]] if name.startswith("stages") else arrays[name]
        assert isinstance(array, np.ndarray)
        assert np.shares_memory(array, tensor.numpy())
    assert arrays["names"].shape == (B, K)
    assert arrays["names"][0, 0] == "map 0"
    assert arrays["names"][-1, -1] == ""
    assert make(K=1, B=1).numpy()["names"].dtype.kind == "U"


def test_a_saved_result_comes_back(tmp_path: Path) -> None:
    result, path = make(), tmp_path / "result.npz"
    result.save(path)
    assert same(SSAResult.load(path), result)
    assert [each.name for each in tmp_path.iterdir()] == ["result.npz"]
    first = path.read_bytes()
    make().save(str(path))
    assert path.read_bytes() == first
    with np.load(path, allow_pickle=False) as archive:  # and is read without this package
        assert np.array_equal(archive["cams"], result.cams.numpy())
    empty = replace(result[:0], stages={}, output_names=(), notes=())
    empty.save(path)
    assert same(SSAResult.load(path), empty)


def test_a_result_is_saved_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.npz"
    make().save(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        make(seed=1).save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["result.npz"]


def test_where_a_result_is_not_saved(tmp_path: Path) -> None:
    for name in ("result.pt", "result", "result.npz.gz"):
        with pytest.raises(ValueError, match=rf'path: expected a file name that ends in "\.npz", got {name!r}'):
            make().save(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        make().save(tmp_path / "missing/result.npz")
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, **changes: Any) -> None:
    """Write a saved result with some arrays changed, or left out for None, as anyone might."""
    make().save(path)
    with np.load(path) as archive:
        arrays = {**archive, **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


class Trap:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return pytest.fail, ("the file ran code",)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda path: (make().save(path), path.write_bytes(path.read_bytes()[:-200])), "damaged"),
    "text": (lambda path: path.write_text("cams"), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "a CAM file": (lambda path: write_cam(path, CamFile(np.zeros((1, 2, 2), np.float32))), "SSAResult.save"),
    "a pickle inside": (lambda path: rewrite(path, cams=np.array([Trap()], dtype=object)), "damaged"),
    "a missing stage": (lambda path: rewrite(path, stage_1=None), "stage_1"),
    "other images": (lambda path: rewrite(path, seed=np.zeros((3, K, 2, 2))), r"intact, but has seed for \(3, 3\)"),
    "other types": (lambda path: rewrite(path, classes=np.zeros((B, K))), "classes are <f8"),
    "swapped bytes": (lambda path: rewrite(path, scores=np.zeros((B, K), ">f4")), "scores are >f4"),
    "a later format": (lambda path: rewrite(path, about='{"format": "ssa_fast.SSAResult 9"}'), "version that wrote it"),
}


@pytest.mark.parametrize(("write", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_other_files_are_refused(tmp_path: Path, write: Callable[[Path], object], reason: str) -> None:
    path = tmp_path / "result.npz"
    write(path)
    with pytest.raises(ValueError, match=rf"path: .*result\.npz .*{reason}"):
        SSAResult.load(path)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SSAResult.load(tmp_path / "result.npz")


def pictures(page: str) -> list[np.ndarray]:
    """Return the pictures of a page as RGB arrays, without the bar of colours."""
    data = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB")) for each in data[1:]]


def test_a_notebook_shows_seed_and_cam_of_every_class() -> None:
    result = make()
    page = result._repr_html_()
    shown = pictures(page)
    assert len(shown) == 2 * int(result.valid.sum())
    for picture, maps in zip(shown[:2], (result.seed, result.cams), strict=True):
        colours = table()[(maps[0, 0].numpy() * 255).round().astype(int)].astype(int)
        assert picture.shape == colours.shape
        assert np.abs(picture - colours).max() <= 8  # 64 levels of colour
    for names, scores, valid in zip(result.names, result.scores.tolist(), result.valid.tolist(), strict=True):
        for name, score, counts in zip(names, scores, valid, strict=True):
            if counts and name != "map 0":
                assert f"{name} {score:.3g}" in unescaped(page)
    assert "map 0<" in page  # of a class that is not known there is no score
    assert "more" not in page


def unescaped(page: str) -> str:
    from html import unescape

    return unescape(re.sub("<[^>]*>", "", page))


def test_a_notebook_runs_nothing_that_a_name_or_note_says() -> None:
    names = ('"><script>alert(1)</script>', "<b>", "' onload='x", "&", "</figure>")
    page = replace(make(), output_names=names, notes=("<script>", "</div>"))._repr_html_()
    assert set(re.findall(r"</?(\w+)", page)) == {"div", "b", "figure", "figcaption", "img"}
    assert page.count("<div") == page.count("</div>")
    assert page.count("<b>") == 1
    for image in re.findall("<img[^>]*>", page):
        assert re.fullmatch(r'<img src="[^"]+" alt="[^"<>]*" width="\d+" height="\d+" style="[^"]+">', image)
    assert not re.search(r"https?:|javascript:|url\(", page)
    assert "note: <script>" in unescaped(page)


def test_a_notebook_shows_a_few_and_says_how_many_more() -> None:
    """They stay small: here maps are noise, the worst for a picture's size."""
    page = make(B=16, K=7, side=224)._repr_html_()
    assert len(pictures(page)) == 2 * html.IMAGES * html.CLASSES
    assert page.count("and 2 more classes") == html.IMAGES
    assert "and 12 more images: result[4:]" in page
    assert len(page) < 200_000
    assert "and 1 more image:" in make(B=5)._repr_html_()
    assert "and 1 more class<" in make(K=6)._repr_html_()
    assert len(replace(make(), output_names=("long " * 10_000,) * 5)._repr_html_()) < 50_000


def test_maps_of_any_form_are_shown() -> None:
    result = make()
    result.cams[0, 0, :5] = torch.nan
    assert (pictures(result._repr_html_())[1][:5] == 128).all()
    wide = replace(result, cams=torch.rand(B, K, 2, 1000), seed=torch.zeros(B, K, 1, 1))
    assert pictures(wide._repr_html_())[1].shape == (1, 96, 3)
    volume = replace(result, cams=torch.zeros(B, K, 5, 8, 8), seed=torch.zeros(B, K, 3, 4, 4))
    volume.cams[:, :, 2] = 1
    page = volume._repr_html_()
    assert "middle slices" in page
    assert (pictures(page)[1] == table()[255]).all()
    nothing = replace(result, valid=torch.zeros_like(result.valid))
    assert nothing._repr_html_().count("no class") == B
    for without in (result[:0], result.to("meta")):
        assert "SSAResult(" in without._repr_html_()


def test_without_pillow_the_text_is_shown_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "ssa_fast.localize.html")
    page = make()._repr_html_()
    assert "cams: 4 × 3 × 24 × 30, float32, cpu" in page
    assert 'no pictures, as the package PIL is missing: pip install "ssa_fast[app]"' in unescaped(page)
    assert "note: logits: <b>output 1</b> was taken." in unescaped(page)
    assert "<img" not in page
