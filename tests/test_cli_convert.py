"""Test ``ssa-fast convert``: outputs, refusals and exit codes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ssa_fast.cli.app import app
from ssa_fast.io import cam_files
from ssa_fast.io.cam_files import FORMATS, PICKLED, CamFile, suffix
from ssa_fast.io.cam_values import WSOL_SIZE, minmax, nearest_pixels

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::ssa_fast.io.cam_files.PickleWarning")

H, W = 24, 30
MAPS = np.random.default_rng(0).random((2, H, W), dtype=np.float32)
CAMS = CamFile(
    MAPS,
    classes=np.array([3, 14]),
    size=(H, W),
    names=("cat", "Dog"),
    logits=np.array([0.5, 2.5], dtype=np.float32),
    version="1",
)


def call(*arguments: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


def refused(*arguments: object) -> str:
    """Return the one line on stderr after a wrong call."""
    result = call(*arguments, exit_code=2)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def failed(*arguments: object) -> str:
    """Return stderr of a call in which files fail."""
    return call(*arguments, exit_code=1).stderr


def cam_file(path: Path, format: str = "ssa", cam: CamFile = CAMS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "wsol":
        cam = CamFile(cam.cams[:1])
    cam_files.write_cam(path, cam, format=format, allow_pickle=True)
    return path


def at_wsol_size(maps: np.ndarray) -> np.ndarray:
    """See tests/inputs/test_wsol_files.py."""
    return np.stack([minmax(plane[nearest_pixels(H)[:, None], nearest_pixels(W)]) for plane in maps])


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("source", FORMATS[:4])
def test_every_format_into_every_other(source: str, to: str, tmp_path: Path) -> None:
    cam_file(tmp_path / f"in/a{suffix(source)}", source)
    named = ("--image-suffix", ".png") if to == "wsol" else ()
    call(tmp_path / "in", "--from", source, "--to", to, *named, "--out", tmp_path / "out", "--allow-pickle")
    name = "a.png.npy" if to == "wsol" else f"a{suffix(to)}"
    assert files(tmp_path / "out") == [name]
    cam = cam_files.read_cam(tmp_path / "out" / name, format=to, allow_pickle=True)
    first = 1 if to == "wsol" and source == "ssa" else 0  # only ssa has logits
    expected = at_wsol_size(MAPS[first : first + 1]) if to == "wsol" else MAPS
    np.testing.assert_allclose(cam.cams, expected, rtol=0, atol=2**-11)
    if to != "wsol":
        assert cam.classes is not None
        assert cam.classes.tolist() == [3, 14]
    if source == to == "ssa":
        assert (cam.names, cam.version) == (CAMS.names, "1")


def test_wsol_becomes_ssa_and_lacks_classes_for_the_others(tmp_path: Path) -> None:
    path = cam_file(tmp_path / "a.npy", "wsol")
    call(path, "--to", "ssa", "--out", tmp_path / "out")
    assert cam_files.read_cam(tmp_path / "out/a.npz").classes is None
    for to in PICKLED:
        assert "files need classes" in failed(path, "--to", to, "--out", tmp_path / to, "--allow-pickle")


def test_subfolders_are_kept_and_only_the_last_suffix_is_replaced(tmp_path: Path) -> None:
    for name in ("top.npz", "val/n01/a.JPEG.npz", "val/2007.x.npz", ".hidden.npz", ".ssa-fast/b.npz"):
        cam_file(tmp_path / "in" / name)
    (tmp_path / "in/readme.txt").write_text("hello")
    single = cam_file(tmp_path / "other/deep/single.npz")
    result = call(tmp_path / "in", single, "--to", "wsol", "--out", tmp_path / "out")
    assert files(tmp_path / "out") == ["single.npy", "top.npy", "val/2007.x.npy", "val/n01/a.JPEG.npy"]
    assert "│    4 │      0 │" in result.stdout


def test_outputs_inside_the_input_folder_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "cams"
    cam_file(folder / "a.npz")
    for _ in range(2):
        call(folder, "--to", "ssa", "--out", folder / "small", "--dtype", "uint8", "--overwrite")
    assert files(folder) == ["a.npz", "small/a.npz"]
    with np.load(folder / "small/a.npz") as saved:
        assert saved["cams"].dtype == np.uint8


def test_strided_cams_are_written_at_the_images_size(tmp_path: Path) -> None:
    path = cam_file(tmp_path / "a.npz", cam=replace(CAMS, cams=MAPS[:, ::2, ::2].copy()))
    call(path, "--to", "wsol", "--out", tmp_path)
    assert np.load(tmp_path / "a.npy").shape == (WSOL_SIZE, WSOL_SIZE)
    call(path, "--to", "irn", "--out", tmp_path / "irn", "--allow-pickle")
    assert cam_files.read_cam(tmp_path / "irn/a.npy", allow_pickle=True).cams.shape == (2, H, W)


def test_bad_files_do_not_stop_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "[bold] in"
    good = cam_file(folder / "good.npz")
    cam_file(folder / "zz.npz")
    (folder / "cut.npz").write_bytes(good.read_bytes()[:100])
    (folder / "empty.npy").touch()
    np.save(folder / "other.npy", np.zeros((2, 3), np.int64))
    missing = tmp_path / "missing.npz"
    result = call(folder, missing, "--to", "wsol", "--out", tmp_path / "out", exit_code=1)
    assert files(tmp_path / "out") == ["good.npy", "zz.npy"]
    stderr = result.stderr.splitlines()
    assert len(stderr) == 5
    assert "do not say their image's suffix" in stderr[0]
    for name, reason in {
        folder / "cut.npz": "is damaged or not a CAM file",
        folder / "empty.npy": "is damaged or not a CAM file",
        folder / "other.npy": "holds int64 (2, 3); expected one floating (H, W) map",
        missing: "No such file or directory",
    }.items():
        assert any(line.startswith(f"failed: {name}: {reason}") for line in stderr), result.stderr
        assert str(name) in result.stdout
    assert "│    2 │      4 │" in result.stdout


def test_debug_prints_tracebacks(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("hello")
    stderr = failed(tmp_path / "a.npz", "--to", "wsol", "--out", tmp_path, "--debug")
    assert "Traceback" in stderr
    assert "Traceback" not in failed(tmp_path / "a.npz", "--to", "wsol", "--out", tmp_path)


@pytest.mark.parametrize("source", PICKLED)
def test_pickles_are_read_only_with_the_flag(source: str, tmp_path: Path) -> None:
    for name in "abc":
        cam_file(tmp_path / f"in/{name}.npy", source)
    arguments = (tmp_path / "in", "--to", "ssa", "--out", tmp_path / "out")
    stderr = failed(*arguments)
    assert stderr.count("is a pickle: reading a pickle runs whatever code its author put in") == 3
    assert "--allow-pickle" in stderr
    assert "warning" not in stderr
    assert files(tmp_path) == ["in/a.npy", "in/b.npy", "in/c.npy"]
    result = call(*arguments, "--allow-pickle")
    assert result.stderr.count("warning: ") == 1
    assert "runs whatever code its author put in" in result.stderr
    assert files(tmp_path / "out") == ["a.npz", "b.npz", "c.npz"]


@pytest.mark.parametrize("to", PICKLED)
def test_pickles_are_written_only_with_the_flag(to: str, tmp_path: Path) -> None:
    path = cam_file(tmp_path / "a.npz")
    stderr = refused(path, "--to", to, "--out", tmp_path / "out")
    assert f"'{to}' files are pickles" in stderr
    assert "--allow-pickle" in stderr
    assert not (tmp_path / "out").exists()
    assert call(path, "--to", to, "--out", tmp_path / "out", "--allow-pickle").stderr.count("warning: ") == 1


def test_no_warning_without_a_pickle(tmp_path: Path) -> None:
    path = cam_file(tmp_path / "a.npz")
    arguments = ("--image-suffix", ".png", "--allow-pickle")
    assert call(path, "--to", "wsol", "--out", tmp_path, *arguments).stderr == ""


@pytest.mark.parametrize(
    ("arguments", "logits", "expected"),
    [
        ((), (0.5, 2.5), 1),
        ((), (2.5, 0.5), 0),
        ((), None, 0),
        (("--class", "cat"), (0.5, 2.5), 0),
        (("--class", "dog"), (2.5, 0.5), 1),
        (("--class", "3"), (0.5, 2.5), 0),
        (("--class", "14"), None, 1),
    ],
)
def test_wsol_takes_the_requested_class_or_the_highest_logit(
    arguments: tuple[str, ...], logits: tuple[float, ...] | None, expected: int, tmp_path: Path
) -> None:
    cam = replace(CAMS, logits=None if logits is None else np.array(logits, dtype=np.float32))
    call(cam_file(tmp_path / "a.npz", cam=cam), "--to", "wsol", "--out", tmp_path, *arguments)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), at_wsol_size(MAPS)[expected], rtol=0, atol=2**-11)


def test_a_file_without_the_class_fails(tmp_path: Path) -> None:
    cam_file(tmp_path / "in/a.npz")
    cam_file(tmp_path / "in/b.npz", cam=replace(CAMS, names=("bird", "cow"), classes=np.array([1, 2])))
    stderr = failed(tmp_path / "in", "--to", "wsol", "--class", "dog", "--out", tmp_path / "out")
    assert "class: expected a name or index that the file has (bird, cow, 1, 2), got 'dog'" in stderr
    assert files(tmp_path / "out") == ["a.npy"]


def test_wrong_usage(tmp_path: Path) -> None:
    path = cam_file(tmp_path / "a.npz")
    out = ("--out", tmp_path / "out")
    assert "class: expected with --to wsol only" in refused(path, "--to", "ssa", "--class", "cat", *out)
    assert "dtype: expected with --to ssa only" in refused(path, "--to", "wsol", "--dtype", "uint8", *out)
    assert "out: expected a folder" in refused(path, "--to", "wsol", "--out", path)
    assert "found none in" in refused(tmp_path / "missing.npz", "--to", "wsol", *out)
    (tmp_path / "empty").mkdir()
    assert "found none in" in refused(tmp_path / "empty", "--to", "wsol", *out)
    for wrong in (("--to", "png"), ("--to", "ssa", "--from", "png"), ("--to", "ssa", "--dtype", "float64"), ()):
        call(path, *wrong, *out, exit_code=2)
    assert not (tmp_path / "out").exists()


def test_from_demands_a_format_and_its_suffix(tmp_path: Path) -> None:
    cam_file(tmp_path / "in/a.npz")
    cam_file(tmp_path / "in/b.npy", "irn")
    cam_file(tmp_path / "in/c.npy", "psa")
    arguments = ("--from", "irn", "--to", "ssa", "--out", tmp_path / "out", "--allow-pickle")
    assert "to hold 'irn', it holds 'psa'" in failed(tmp_path / "in", *arguments)
    assert files(tmp_path / "out") == ["b.npz"]


def test_existing_files_are_kept_without_overwrite(tmp_path: Path) -> None:
    path = cam_file(tmp_path / "in/a.npz")
    target = tmp_path / "out/a.npy"
    target.parent.mkdir()
    target.write_text("mine")
    arguments = (path, "--to", "wsol", "--out", tmp_path / "out")
    assert f"{target} exists; pass --overwrite" in failed(*arguments)
    assert target.read_text() == "mine"
    call(*arguments, "--overwrite")
    assert np.load(target).shape == (WSOL_SIZE, WSOL_SIZE)


def test_no_output_replaces_an_input_or_another_output(tmp_path: Path) -> None:
    cam_file(tmp_path / "one/a.npz")
    cam_file(tmp_path / "two/a.npz")
    cam_file(tmp_path / "two/b.npz")
    before = (tmp_path / "one/a.npz").read_bytes()
    stderr = failed(tmp_path / "one", "--to", "ssa", "--dtype", "uint8", "--out", tmp_path / "one", "--overwrite")
    assert "would replace an input file" in stderr
    assert (tmp_path / "one/a.npz").read_bytes() == before
    stderr = failed(tmp_path / "one", tmp_path / "two", "--to", "wsol", "--out", tmp_path / "out", "--overwrite")
    assert f"is also that of {tmp_path / 'one/a.npz'}" in stderr
    assert files(tmp_path / "out") == ["a.npy", "b.npy"]


def test_a_file_named_twice_is_converted_once(tmp_path: Path) -> None:
    path = cam_file(tmp_path / "in/a.npz")
    result = call(path, tmp_path / "in", path, "--to", "wsol", "--out", tmp_path / "out")
    assert "│    1 │      0 │" in result.stdout


def test_ctrl_c_keeps_finished_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        cam_file(tmp_path / f"in/{name}.npz")
    read = cam_files.read_cam

    def interrupted(path: Path, **options: object) -> CamFile:
        if path.name == "b.npz":
            raise KeyboardInterrupt
        return read(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cam_files, "read_cam", interrupted)
    result = call(tmp_path / "in", "--to", "wsol", "--out", tmp_path / "out", exit_code=130)
    assert "interrupted; finished files were kept" in result.stdout
    assert files(tmp_path / "out") == ["a.npy"]
