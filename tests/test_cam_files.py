"""Test CAM files: files of other tools are read, their readers accept ours, and no pickle runs code."""

from __future__ import annotations

import io
import os
import pickle
import time
import warnings
import zipfile
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ssa_fast.io.cam_files import (
    FORMATS,
    PICKLED,
    CamFile,
    PickleWarning,
    full_size,
    read_cam,
    suffix,
    write_cam,
)
from ssa_fast.io.cam_values import WSOL_SIZE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::ssa_fast.io.cam_files.PickleWarning")

H, W = 37, 50
CLASSES = np.array([3, 14])


def cams(K: int = 2, size: tuple[int, int] = (H, W), seed: int = 0) -> np.ndarray:
    """Return (K, *size) float32 in [0, 1]; each CAM attains both ends."""
    maps = np.random.default_rng(seed).random((K, *size), dtype=np.float32)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / (high - low)


def content(K: int = 2, size: tuple[int, int] = (H, W)) -> CamFile:
    """Return everything that a run stores, with CAMs of ``size`` for an image of H x W."""
    return CamFile(
        cams(K, size),
        classes=CLASSES[:K],
        size=(H, W),
        names=("cat", "Hund ü")[:K],
        labels=(CLASSES + 1)[:K].astype(np.uint8),
        logits=np.array([0.5, 2.5], dtype=np.float32)[:K],
        image="val/a.png",
        align_corners=False,
        settings={"model": "resnet50", "scales": [1.0, 2.0]},
        version="1.2",
    )


def write_pickled(path: Path, cam: CamFile, format: str) -> Any:
    """Write CAMs and return the content as other codebases read it."""
    write_cam(path, cam, format=format, allow_pickle=True)
    return np.load(path, allow_pickle=True).item()


def psa_file(path: Path) -> np.ndarray:
    """Write a file as PSA's infer_cls.py and SEAM's infer_SEAM.py do; SEAM's CAMs go slightly below 0."""
    norm_cam = np.zeros((20, H, W), np.float32)
    norm_cam[CLASSES] = cams() - np.float32(1e-5)
    label = torch.zeros(20)
    label[torch.from_numpy(CLASSES)] = 1
    np.save(path, {i: norm_cam[i] for i in range(20) if label[i] > 1e-5})
    return norm_cam[CLASSES]


def irn_file(path: Path) -> np.ndarray:
    """Write a file as IRN's step/make_cam.py does: tensors, and an array that is a view of a larger one."""
    label = torch.zeros(20)
    label[torch.from_numpy(CLASSES)] = 1
    valid_cat = torch.nonzero(label)[:, 0]
    padded = torch.zeros(20, 48, 64)
    padded[valid_cat, :H, :W] = torch.from_numpy(cams())
    highres_cam = padded[:, :H, :W][valid_cat]
    strided_cam = torch.rand(20, (H - 1) // 4 + 1, (W - 1) // 4 + 1)[valid_cat]
    np.save(path, {"keys": valid_cat, "cam": strided_cam.cpu(), "high_res": highres_cam.cpu().numpy()})
    return cams()


def clip_es_file(path: Path) -> np.ndarray:
    """Write a file as CLIP-ES's generate_cams_voc12.py does."""
    highres = torch.from_numpy(cams()).numpy().astype(np.float16)
    np.save(path, {"keys": torch.tensor(CLASSES.tolist()).numpy(), "attn_highres": highres})
    return highres.astype(np.float32)


def wsol_file(path: Path) -> np.ndarray:
    """Write a file as wsolevaluation's inference.py does: t2n gives float64, np.save appends the suffix."""
    cam_normalized = torch.from_numpy(cams(1)[0]).numpy().astype(float)
    np.save(path.with_suffix(""), cam_normalized)
    return cams(1)


TOOLS = {"psa": psa_file, "irn": irn_file, "clip-es": clip_es_file, "wsol": wsol_file}


@pytest.mark.parametrize("format", TOOLS)
def test_files_of_other_tools_are_detected_and_read(format: str, tmp_path: Path) -> None:
    path = tmp_path / "2007_000032.npy"
    expected = TOOLS[format](path)
    cam = read_cam(path, allow_pickle=format in PICKLED)
    assert cam.cams.dtype == np.float32
    np.testing.assert_array_equal(cam.cams, expected)
    assert cam.size == (None if format == "wsol" else (H, W))
    np.testing.assert_array_equal(full_size(replace(cam, size=(H, W))), expected)
    assert cam.classes is None if format == "wsol" else cam.classes.dtype == np.int64
    np.testing.assert_array_equal(cam.classes, None if format == "wsol" else CLASSES)
    read_cam(path, format=format, allow_pickle=True)
    for other in set(FORMATS) - {format}:
        with pytest.raises(ValueError, match=rf"format: expected .* to hold '{other}', it holds '{format}'"):
            read_cam(path, format=other, allow_pickle=True)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    """Protocols vary with NumPy's version; half tensors and NumPy integers as keys occur."""
    held = {"keys": torch.tensor([3, 14]), "cam": torch.rand(2, 5, 5).half(), "high_res": cams()}
    psa = {np.int64(3): cams()[0], np.int64(14): np.asfortranarray(cams()[1])}
    for name, value in (("irn", held), ("psa", psa)):
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(np.array(value, dtype=object), buffer, protocol=protocol)
        path = tmp_path / f"{name}.npy"
        path.write_bytes(buffer.getvalue())
        cam = read_cam(path, format=name, allow_pickle=True)
        np.testing.assert_array_equal(cam.cams, cams())
        np.testing.assert_array_equal(cam.classes, CLASSES)


def test_seam_evaluation_reads_psa_files(tmp_path: Path) -> None:
    predict_dict = write_pickled(tmp_path / "a.npy", content(), "psa")
    h, w = next(iter(predict_dict.values())).shape
    tensor = np.zeros((21, h, w), np.float32)
    for key in predict_dict:
        assert type(key) is int
        tensor[key + 1] = predict_dict[key]
    tensor[0, :, :] = 0.25
    predict = np.argmax(tensor, axis=0).astype(np.uint8)
    assert (h, w) == (H, W)
    assert set(np.unique(predict)) == {0, 4, 15}
    np.testing.assert_array_equal(predict, expected_labels(cams(), 0.25))


def expected_labels(maps: np.ndarray, background: float) -> np.ndarray:
    keys = np.array([0, *(CLASSES + 1)])
    return keys[np.concatenate([np.full((1, H, W), background, np.float32), maps]).argmax(0)]


def test_irn_reads_irn_files(tmp_path: Path) -> None:
    cam_dict = write_pickled(tmp_path / "a.npy", content(), "irn")
    assert set(cam_dict) == {"keys", "cam", "high_res"}
    # step/eval_cam.py
    high_res = np.pad(cam_dict["high_res"], ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=0.15)
    keys = np.pad(cam_dict["keys"] + 1, (1, 0), mode="constant")
    assert high_res.dtype == np.float32
    np.testing.assert_array_equal(keys[np.argmax(high_res, axis=0)], expected_labels(cams(), 0.15))
    # step/make_sem_seg_labels.py: tensors on the device, upsampled by 4, cropped to the image
    assert (cam_dict["keys"].dtype, cam_dict["cam"].dtype) == (torch.int64, torch.float32)
    assert cam_dict["cam"].shape == (2, (H - 1) // 4 + 1, (W - 1) // 4 + 1)
    up = interpolate(cam_dict["cam"][None], scale_factor=4, mode="bilinear", align_corners=False)[0, :, :H, :W]
    assert up.shape == (2, H, W)


@pytest.mark.parametrize("align_corners", [True, False])
def test_irn_strided_cams_align_with_high_res(align_corners: bool, tmp_path: Path) -> None:
    """IRN resizes with align_corners=False: a ramp must stay the same ramp, however the CAMs were resized."""
    ramp = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (1, 16, 1))
    cam = CamFile(ramp, classes=np.array([0]), size=(64, 64), align_corners=align_corners)
    held = write_pickled(tmp_path / "a.npy", cam, "irn")
    up = interpolate(held["cam"][None], scale_factor=4, mode="bilinear", align_corners=False)[0].numpy()
    inner = (slice(None), slice(None), slice(8, -8))  # a resized ramp is flat at its ends
    np.testing.assert_allclose(up[inner], held["high_res"][inner], rtol=0, atol=1e-4)  # one pixel is 0.016


def test_clip_es_evaluation_reads_clip_es_files(tmp_path: Path) -> None:
    cam_dict = write_pickled(tmp_path / "a.npy", content(), "clip-es")
    maps = cam_dict["attn_highres"]
    assert maps.dtype == np.float16
    bg_score = np.power(1 - np.max(maps, axis=0, keepdims=True), 2)
    maps = np.concatenate((bg_score, maps), axis=0)
    keys = np.pad(cam_dict["keys"] + 1, (1, 0), mode="constant")
    labels = keys[np.argmax(maps, axis=0)].astype(np.uint8)
    assert labels.shape == (H, W)
    assert set(np.unique(labels)) <= {0, 4, 15}


def test_wsolevaluation_accepts_wsol_files(tmp_path: Path) -> None:
    write_cam(tmp_path / "a.JPEG.npy", content(1, (9, 13)), format="wsol")
    scoremap = np.load(os.path.join(tmp_path, "a.JPEG" + ".npy"))
    assert scoremap.dtype == float  # util.check_scoremap_validity raises TypeError for float32
    assert scoremap.shape == (WSOL_SIZE, WSOL_SIZE)  # the size of its boxes, see tests/inputs/test_wsol_files.py
    assert (scoremap.min(), scoremap.max()) == (0, 1), "evaluate_wsol: the map must attain values 0.0 and 1.0"
    whole = full_size(content(1, (9, 13)))[0].astype(np.float64)
    assert scoremap[0, 0] == (whole[0, 0] - whole.min()) / (whole.max() - whole.min())


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip(format: str, tmp_path: Path) -> None:
    cam = content(1, (WSOL_SIZE, WSOL_SIZE)) if format == "wsol" else content(2)
    cam = replace(cam, size=cam.cams.shape[1:])
    path = tmp_path / f"a{suffix(format)}"
    write_cam(path, cam, format=format, allow_pickle=format in PICKLED)
    again = read_cam(path, allow_pickle=format in PICKLED)
    tolerance = 2**-12 if format in ("ssa", "clip-es") else 0  # half a float16 step below 1
    np.testing.assert_allclose(again.cams, cam.cams, rtol=0, atol=tolerance)
    assert again.size == (None if format == "wsol" else (H, W))
    if format != "wsol":
        np.testing.assert_array_equal(again.classes, CLASSES)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2**-12), ("uint8", 0.5 / 255 + 1e-7)])
def test_own_files_keep_everything(dtype: str, tolerance: float, tmp_path: Path) -> None:
    cam = content(2, (10, 13))
    write_cam(tmp_path / "a.npz", cam, dtype=dtype)
    again = read_cam(tmp_path / "a.npz")
    assert again.cams.dtype == np.float32
    np.testing.assert_allclose(again.cams, cam.cams, rtol=0, atol=tolerance)
    for name in ("classes", "labels", "logits"):
        expected, found = getattr(cam, name), getattr(again, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    for name in ("size", "names", "align_corners", "settings", "version", "image"):
        assert getattr(again, name) == getattr(cam, name)
    maps = full_size(again)
    expected = interpolate(torch.from_numpy(again.cams)[None], (H, W), mode="bilinear", align_corners=False)[0]
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, expected.numpy(), rtol=0, atol=1e-6)


def test_own_files_of_bare_cams(tmp_path: Path) -> None:
    write_cam(tmp_path / "a.npz", CamFile(cams()))
    again = read_cam(tmp_path / "a.npz")
    assert (again.classes, again.size, again.names, again.labels, again.logits) == (None,) * 5
    with pytest.raises(ValueError, match=r"size: the file does not say"):
        full_size(again)
    np.testing.assert_array_equal(full_size(replace(again, size=(H, W))), again.cams)


def test_own_files_open_with_numpy_defaults_and_hold_no_pickle(tmp_path: Path) -> None:
    write_cam(tmp_path / "a.npz", content(), dtype="uint8")
    with np.load(tmp_path / "a.npz") as saved:  # allow_pickle=False
        assert saved["cams"].dtype == np.uint8
        assert set(saved.files) == {field.name for field in fields(CamFile)}
        assert not any(saved[name].dtype.hasobject for name in saved.files)
        assert saved.zip.getinfo("cams.npy").file_size == 128 + 2 * H * W


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_equal_cams_are_equal_bytes(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cam(tmp_path / "a.npz", content(), dtype=dtype)
    later = time.localtime(time.time() + 1e7)
    monkeypatch.setattr(time, "localtime", lambda *_: later)
    write_cam(tmp_path / "b.npz", content(), dtype=dtype)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("format", PICKLED)
def test_pickles_need_the_flag(format: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    TOOLS[format](path)
    with pytest.raises(ValueError, match=r"path: .*a\.npy is a pickle: reading a pickle runs .*--allow-pickle"):
        read_cam(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"path: .*a\.npy would be a pickle: .*--allow-pickle"):
        write_cam(path, content(), format=format)
    assert not path.exists()


class Malicious:
    """An object that runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


class Nested(Malicious):
    """The same inside a tensor's storage, which is a pickle of its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        buffer = io.BytesIO()
        torch.save(Malicious(self.mark), buffer)
        return torch.storage._load_from_bytes, (buffer.getvalue(),)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Malicious, rf"is refused: the pickle references {os.name}\.system; only NumPy arrays and tensors"),
        (Nested, "is refused: a tensor in the pickle holds more than numbers"),
    ],
)
def test_a_pickle_that_runs_code_is_refused_even_with_the_flag(kind: type[Malicious], why: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "a.npy"
    np.save(path, {"keys": kind(mark), "high_res": cams()})
    np.load(path, allow_pickle=True)
    assert mark.exists()  # the file really is malicious
    mark.unlink()
    with pytest.raises(ValueError, match="is a pickle"):
        read_cam(path)
    with pytest.raises(ValueError, match=rf"path: .*a\.npy {why}"):
        read_cam(path, allow_pickle=True)
    assert not mark.exists()


@pytest.mark.parametrize("format", PICKLED)
def test_the_warning_names_its_caller_and_may_be_an_error(format: str, tmp_path: Path) -> None:
    with pytest.warns(PickleWarning, match="runs whatever code its author put in") as writing:
        write_cam(tmp_path / "a.npy", content(), format=format, allow_pickle=True)
    with pytest.warns(PickleWarning, match="runs whatever code its author put in") as reading:
        read_cam(tmp_path / "a.npy", allow_pickle=True)
    assert [warning.filename for warning in (*writing, *reading)] == [__file__] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", PickleWarning)
        with pytest.raises(PickleWarning):
            read_cam(tmp_path / "a.npy", allow_pickle=True)


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_files_give_one_clear_error(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix(format)}"
    TOOLS.get(format, lambda path: write_cam(path, content()))(path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"path: .*a\.np[yz] is damaged or not a CAM file"):
            read_cam(path, allow_pickle=True)


def test_a_flipped_bit_in_an_own_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_cam(path, content())
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged or not a CAM file"):
        read_cam(path)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"a": 1}, r"holds a dictionary with \['a'\]; expected PSA's, IRN's or CLIP-ES's keys"),
        ({}, r"holds a dictionary with \[\]"),
        ([1, {}], r"holds objects of shape \(2,\); expected one dictionary"),
        (np.zeros((2, 3, 4), np.float32), r"holds float32 \(2, 3, 4\); expected one floating"),
        (np.zeros((3, 4), np.uint8), r"holds uint8 \(3, 4\); expected one floating"),
        ({"keys": CLASSES[:1], "high_res": np.zeros((2, 3, 4), np.float32)}, "classes: expected 2, one per CAM, got 1"),
        ({0: np.zeros((3, 4)), 1: np.zeros((4, 3))}, "damaged or not a CAM file"),
    ],
)
def test_other_content_is_refused(held: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array(held, dtype=object) if isinstance(held, list) else held)
    with pytest.raises(ValueError, match=message):
        read_cam(tmp_path / "a.npy", allow_pickle=True)


def test_other_archives_and_missing_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="is an archive without CAMs"):
        read_cam(tmp_path / "a.npz")
    (tmp_path / "image.npy").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match="is damaged or not a CAM file"):
        read_cam(tmp_path / "image.npy")
    with pytest.raises(FileNotFoundError):
        read_cam(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError):
        write_cam(tmp_path / "none" / "a.npz", content())


@pytest.mark.parametrize(
    ("cam", "options", "message"),
    [
        (content(), {"format": "wsol"}, "'wsol' files hold one map, got 2 classes"),
        (CamFile(cams(1) * 1.5), {"format": "wsol"}, r"format: 'wsol' holds CAMs in \[0, 1\] only, got 0 to 1.5"),
        (CamFile(cams(1) * 1.5), {"dtype": "uint8"}, r"dtype: uint8 holds CAMs in \[0, 1\] only, got 0 to 1.5"),
        (CamFile(cams(1) * np.nan), {"dtype": "uint8"}, r"in \[0, 1\] only"),
        (CamFile(cams(1) * 1e6), {}, r"cams: float16 holds values up to 65504, got 1e\+06"),
        (CamFile(cams(1)), {"format": "psa", "allow_pickle": True}, "'psa' files need classes"),
        (content(), {"format": "png"}, "format: expected one of ssa, psa, irn, clip-es, wsol, got 'png'"),
        (content(), {"dtype": "int4"}, "dtype: expected float16 or uint8, got 'int4'"),
    ],
)
def test_cams_that_a_format_cannot_store_are_refused(
    cam: CamFile, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_cam(tmp_path / "a", cam, **options)
    assert list(tmp_path.iterdir()) == []


def test_values_that_round_into_the_unit_interval_are_accepted(tmp_path: Path) -> None:
    """SEAM's CAMs start at -1e-5 / (max - min)."""
    seam = CamFile(cams(1) - np.float32(1e-5))
    write_cam(tmp_path / "a.npz", seam, dtype="uint8")
    assert read_cam(tmp_path / "a.npz").cams.min() == 0
    write_cam(tmp_path / "a.npy", seam, format="wsol")
    assert np.load(tmp_path / "a.npy").min() == 0


def test_nan_stays_in_its_own_cam(tmp_path: Path) -> None:
    maps = cams(2, (9, 13))
    maps[0, 4, 4] = np.nan
    write_cam(tmp_path / "a.npz", CamFile(maps, size=(H, W)))
    resized = full_size(read_cam(tmp_path / "a.npz"))
    assert np.isnan(resized[0]).any()
    assert np.isfinite(resized[1]).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cams": cams()[0]}, r"cams: expected floating \(K, h, w\)"),
        ({"cams": np.zeros((0, 3, 3), np.float32)}, r"cams: expected floating \(K, h, w\)"),
        ({"cams": np.zeros((1, 3, 3), np.uint8)}, r"cams: expected floating \(K, h, w\), got uint8"),
        ({"cams": cams(), "names": ("one",)}, "names: expected 2, one per CAM, got 1"),
        ({"cams": cams(), "logits": np.zeros(3)}, "logits: expected 2, one per CAM, got 3"),
    ],
)
def test_inconsistent_fields_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CamFile(**wrong)


def test_a_failed_write_keeps_the_existing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    write_cam(path, content())
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_cam(path, replace(content(), version="2"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_equal_cams_give_equal_bytes_that_numpy_reads(tmp_path: Path) -> None:
    half = replace(content(), cams=cams(2, (10, 13)).astype(np.float16))
    for name, cam in (("a", content()), ("b", content()), ("c", half)):
        write_cam(tmp_path / f"{name}.npz", cam)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "c.npz", allow_pickle=False) as archive, zipfile.ZipFile(tmp_path / "c.npz") as members:
        assert archive["cams"].dtype == np.float16
        assert np.array_equal(archive["cams"], half.cams)
        assert {info.compress_type for info in members.infolist()} == {zipfile.ZIP_DEFLATED}
        assert {info.date_time for info in members.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_bench_store_compares_every_layout_with_irn() -> None:
    from bench import store

    maps = torch.from_numpy(cams(2, (10, 13)))[None]
    smooth = interpolate(maps, (20, 26), mode="bicubic").clamp(0, 1)[0].numpy()
    found = store.rows("two", [replace(content(2), cams=smooth, size=(80, 104))] * 2)
    assert [row["layout"] for row in found] == list(store.LAYOUTS)
    by_name = {row["layout"]: row for row in found}
    irn, half, byte = (by_name[name] for name in (store.REFERENCE, "ssa: float16, strided", "ssa: uint8, strided"))
    raw = 4 * 2 * (80 * 104 + 20 * 26)
    assert raw < irn["bytes"] < raw + 2000
    assert (irn["times_smaller"], irn["largest_error"], irn["mask_pixels_changed"]) == (1, 0, 0)
    assert half["times_smaller"] == pytest.approx(irn["bytes"] / half["bytes"], rel=0.01)
    assert byte["bytes"] < half["bytes"] < irn["bytes"] / 10
    assert 0 < half["largest_error"] <= 2.0**-12
    assert half["largest_error"] < byte["largest_error"] <= 0.5 / 255 + 1e-5
