"""Read and write CAM files: this project's format (compact, no pickle) and those of other codebases.

| format | written by | content |
|---|---|---|
| ``ssa`` | ssa_fast | ``.npz``: CAMs at a stage's size, float16 or uint8, with classes, size and settings |
| ``psa`` | PSA, SEAM | pickled ``.npy``: {class index: (H, W) float32} |
| ``irn`` | IRN | pickled ``.npy``: {"keys": (K,), "cam": (K, h, w) at stride 4, "high_res": (K, H, W)} |
| ``clip-es`` | CLIP-ES | pickled ``.npy``: {"keys": (K,), "attn_highres": (K, H, W) float16} |
| ``wsol`` | wsolevaluation | ``.npy``: (224, 224) float64, 0 to 1, one map per image, see ``cam_values.WSOL_SIZE`` |

Class indices are 0-based without a background in all formats; the other codebases add 1 when they read them.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from ssa_fast.io.atomic import atomic_write
from ssa_fast.io.cam_values import in_unit, minmax, nearest_pixels, to_array, to_float16
from ssa_fast.io.restricted_pickle import Refused, RestrictedUnpickler, pickle_module

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

__all__ = [
    *("FORMATS", "PICKLED", "CamFile", "NoCamError", "PickleWarning"),
    *("full_size", "read_cam", "read_image_name", "suffix", "write_cam"),
]

FORMATS = ("ssa", "psa", "irn", "clip-es", "wsol")
PICKLED = ("psa", "irn", "clip-es")
IRN_STRIDE = 4
DEFLATE_LEVEL = 2  # half the time of NumPy's 6 for 0.2 % more bytes: CAMs are noise to deflate
DTYPES = {
    "classes": np.int64,
    "names": np.str_,
    "labels": np.uint8,
    "logits": np.float32,
    "size": np.int64,
    "image": np.str_,
}
"""Fields that an ``ssa`` file may lack, and their dtypes in it."""

PICKLE_RISK = (
    "reading a pickle runs whatever code its author put in; allow_pickle=True (--allow-pickle) is for files that you "
    "made or whose makers you trust"
)
PICKLE_WARNING = f"pickled CAM files are used: {PICKLE_RISK}"


class PickleWarning(UserWarning):
    """A pickled file was read or written, as requested."""


class NoCamError(ValueError):
    """An intact file that holds no CAM, because its image has no class."""


class _NoCam(Refused):
    pass


@dataclass(frozen=True, eq=False)
class CamFile:
    """The CAMs of one image.

    Attributes:
        cams: float32 (K, h, w), at the image's size or smaller (strided). Tensors are converted.
        classes: int64 (K,) class indices, 0-based without a background; None if the format has none.
        size: (H, W) of the image; None if the file does not say.
        names, labels, logits: K class names, values in the mask, and logits; only in this project's files.
        image: The image's file name, below the folder that was given to the run; only in this project's files.
        align_corners: Mode of the bilinear resizing to ``size``.
        settings, version: How the CAMs were made, and by which version of ssa_fast.

    Raises:
        ValueError: ``cams`` is not floating (K, h, w), or another field does not have K entries.
    """

    cams: np.ndarray
    classes: np.ndarray | None = None
    size: tuple[int, int] | None = None
    names: tuple[str, ...] | None = None
    labels: np.ndarray | None = None
    logits: np.ndarray | None = None
    image: str | None = None
    align_corners: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    def __post_init__(self) -> None:
        for name in ("cams", "classes", "labels", "logits"):
            object.__setattr__(self, name, to_array(getattr(self, name)))
        if self.cams.ndim != 3 or self.cams.size == 0 or self.cams.dtype.kind != "f":
            raise ValueError(
                f"cams: expected floating (K, h, w), got {self.cams.dtype} {self.cams.shape}; give one image's CAMs"
            )
        for name in ("classes", "names", "labels", "logits"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.cams):
                raise ValueError(f"{name}: expected {len(self.cams)}, one per CAM, got {len(value)}")


def suffix(format: str) -> str:
    """Return the file suffix of a format."""
    return ".npz" if format == "ssa" else ".npy"


def full_size(cam: CamFile) -> np.ndarray:
    """Return the CAMs at the image's size, (K, H, W) float32, resized bilinearly as SSA does.

    Raises:
        ValueError: ``cam.size`` is None.
    """
    if cam.size is None:
        raise ValueError("size: the file does not say the image's (H, W); set it with dataclasses.replace")
    if cam.cams.shape[1:] == tuple(cam.size):
        return np.asarray(cam.cams, dtype=np.float32)
    maps = torch.from_numpy(np.ascontiguousarray(cam.cams, dtype=np.float32))[None]
    resized = interpolate(maps, cam.size, mode="bilinear", align_corners=cam.align_corners)[0]
    low, high = (bound[0, :, None, None] for bound in (maps.amin((2, 3)), maps.amax((2, 3))))
    return resized.clamp_(low, high).numpy()  # rounding must not exceed a CAM's own range


def write_cam(
    path: str | Path, cam: CamFile, *, format: str = "ssa", dtype: str = "float16", allow_pickle: bool = False
) -> None:
    """Write one image's CAMs atomically; equal CAMs give equal bytes.

    Args:
        path: The file; its folder must exist.
        cam: The CAMs.
        format: One of ``FORMATS``; all but "ssa" store the ``full_size``.
        dtype: Of "ssa" files: "float16", or "uint8" for 255 times the CAM, rounded. "uint8" and "wsol" need CAMs in
            [0, 1].
        allow_pickle: Required for the formats in ``PICKLED``.

    Raises:
        ValueError: An unknown format or dtype, a pickle without ``allow_pickle``, or CAMs that the format cannot store.
        OSError: The file cannot be written.
    """
    _check_format(format)
    if format in PICKLED:
        if not allow_pickle:
            raise ValueError(f"path: {path} would be a pickle: {PICKLE_RISK}")
        warnings.warn(PICKLE_WARNING, PickleWarning, stacklevel=2)
    buffer = io.BytesIO()
    if format == "ssa":
        write_archive(buffer, _own_content(cam, dtype))
    else:
        np.save(buffer, _foreign_content(cam, format), allow_pickle=format in PICKLED)
    atomic_write(Path(path), buffer.getvalue(), parents=False)


def read_cam(path: str | Path, *, format: str | None = None, allow_pickle: bool = False) -> CamFile:
    """Read one image's CAMs; the format is detected.

    Args:
        path: The file.
        format: Refuse files in any other format.
        allow_pickle: Required for the formats in ``PICKLED``.

    Raises:
        ValueError: A pickle without ``allow_pickle`` or of more than arrays, a damaged file, or another format.
        NoCamError: A ValueError: the file is intact, but its image has no class.
        OSError: The file cannot be opened.
    """
    if format is not None:
        _check_format(format)
    content = Path(path).read_bytes()
    try:
        found, cam = _read_archive(content) if content[:2] == b"PK" else _read_npy(content, allow_pickle)
    except PickleWarning:  # if the caller turned warnings into errors
        raise
    except Refused as refused:
        kind = NoCamError if isinstance(refused, _NoCam) else ValueError
        raise kind(f"path: {path} {refused}") from None
    except Exception as error:  # damaged data raise nearly every exception
        raise ValueError(f"path: {path} is damaged or not a CAM file ({type(error).__name__}: {error})") from error
    if format not in (None, found):
        raise ValueError(f"format: expected {path} to hold {format!r}, it holds {found!r}; leave format out")
    return cam


def read_image_name(path: Path) -> str | None:
    """Return the image's file name that an ``ssa`` file holds, without reading its CAMs; None if it holds none.

    A name that leads out of a folder is none: the file may come from anywhere.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            name = str(archive["image"])
    except Exception:  # ``read_cam`` raises the proper error for a damaged file
        return None
    parts = PurePosixPath(name).parts
    return None if not parts or name.startswith("/") or ".." in parts or "\\" in name else name


def write_archive(file: BinaryIO | Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as ``np.savez_compressed`` does, but at ``DEFLATE_LEVEL``; equal arrays give equal bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in arrays.items():
            member = io.BytesIO()
            np.save(member, value, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy")  # without a date
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, DEFLATE_LEVEL)


def _own_content(cam: CamFile, dtype: str) -> dict[str, Any]:
    if dtype == "float16":
        stored = to_float16(cam.cams)
    elif dtype == "uint8":
        stored = np.rint(in_unit(cam.cams, "dtype: uint8") * 255).astype(np.uint8)
    else:
        raise ValueError(f"dtype: expected float16 or uint8, got {dtype!r}")
    arrays: dict[str, Any] = {
        "cams": stored,
        "align_corners": cam.align_corners,
        "settings": json.dumps(dict(cam.settings)),
        "version": cam.version,
    }
    optional = {name: getattr(cam, name) for name in DTYPES}
    return arrays | {name: np.asarray(value, DTYPES[name]) for name, value in optional.items() if value is not None}


def _read_archive(content: bytes) -> tuple[str, CamFile]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name.rpartition("/")[2] for name in archive.namelist()}
    if "data.pkl" in members:  # torch.save of what the codebases give to np.save
        if "constants.pkl" in members:
            raise Refused("is a TorchScript archive, not a CAM file")
        restricted = pickle_module(RestrictedUnpickler)
        held = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=restricted)
        if not isinstance(held, dict):
            raise Refused(f"is a torch.save of a {type(held).__name__}; expected a dictionary of CAMs")
        return _parse(held)
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if "cams" not in arrays:
        raise Refused("is an archive without CAMs; give a file that ssa_fast wrote")
    if arrays["cams"].dtype.kind not in "fu":
        raise Refused(f"holds CAMs of type {arrays['cams'].dtype}; expected float16, float32 or uint8")
    return "ssa", _checked(
        arrays["cams"].astype(np.float32) / (255 if arrays["cams"].dtype == np.uint8 else 1),
        classes=arrays.get("classes"),
        size=tuple(arrays["size"].tolist()) if "size" in arrays else None,
        names=tuple(arrays["names"].tolist()) if "names" in arrays else None,
        labels=arrays.get("labels"),
        logits=arrays.get("logits"),
        image=str(arrays["image"]) if "image" in arrays else None,
        align_corners=bool(arrays.get("align_corners", False)),
        settings=json.loads(str(arrays["settings"])) if "settings" in arrays else {},
        version=str(arrays.get("version", "")),
    )


def _foreign_content(cam: CamFile, format: str) -> np.ndarray:
    """Return the array that another codebase would pass to ``np.save``."""
    size = cam.size or (cam.cams.shape[1], cam.cams.shape[2])
    high_res = np.ascontiguousarray(full_size(CamFile(cam.cams, size=size, align_corners=cam.align_corners)))
    if format == "wsol":
        if len(high_res) != 1:
            raise ValueError(f"format: 'wsol' files hold one map, got {len(high_res)} classes; choose one of them")
        rows, columns = (nearest_pixels(side) for side in size)
        # wsolevaluation refuses float32, and asks for maps that reach 0 and 1.
        return minmax(in_unit(high_res[0], "format: 'wsol'")[rows[:, None], columns].astype(np.float64))
    if cam.classes is None:
        raise ValueError(f"format: {format!r} files need classes, got CAMs without; set classes")
    keys = np.asarray(cam.classes, dtype=np.int64)
    content: dict[Any, Any]
    if format == "psa":
        content = {int(key): plane for key, plane in zip(keys, high_res, strict=True)}
    elif format == "irn":
        strided = tuple(-(-side // IRN_STRIDE) for side in size)
        # Resized from high_res: IRN uses align_corners=False, however the CAMs were resized.
        maps = interpolate(torch.from_numpy(high_res)[None], strided, mode="bilinear", align_corners=False)[0]
        content = {"keys": torch.from_numpy(keys), "cam": maps, "high_res": high_res}
    else:
        content = {"keys": keys, "attn_highres": to_float16(high_res)}
    return np.array(content, dtype=object)


def _read_npy(content: bytes, allow_pickle: bool) -> tuple[str, CamFile]:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if not dtype.hasobject:
        array = np.load(io.BytesIO(content), allow_pickle=False)
        if array.ndim != 2 or array.dtype.kind != "f":
            raise Refused(f"holds {array.dtype} {array.shape}; expected one floating (H, W) map (wsolevaluation)")
        return "wsol", _checked(array[None].astype(np.float32))  # at wsolevaluation's size, not the image's
    if not allow_pickle:
        raise Refused(f"is a pickle: {PICKLE_RISK}")
    warnings.warn(PICKLE_WARNING, PickleWarning, stacklevel=3)
    if shape != ():
        raise Refused(f"holds objects of shape {shape}; expected one dictionary")
    held = RestrictedUnpickler(stream).load()
    held = held.item() if isinstance(held, np.ndarray) else held
    if not isinstance(held, dict):
        raise Refused(f"holds a {type(held).__name__}; expected a dictionary of CAMs")
    return _parse(held)


def _parse(held: dict[Any, Any]) -> tuple[str, CamFile]:
    for format, name in (("irn", "high_res"), ("clip-es", "attn_highres")):
        if "keys" in held and (name in held or len(held["keys"]) == 0):
            return format, _keyed(held["keys"], held.get(name))
    if held and all(_is_index(key) for key in held):
        return "psa", _keyed([int(key) for key in held], np.stack([to_array(plane) for plane in held.values()]))
    found = f"{sorted(map(str, held))[:5]}{'' if held else ', no class: its image has no labels'}"
    kind = Refused if held else _NoCam
    raise kind(f"holds a dictionary with {found}; expected PSA's, IRN's or CLIP-ES's keys")


def _is_index(key: object) -> bool:
    return isinstance(key, int | np.integer) or (isinstance(key, torch.Tensor) and key.ndim == 0)


def _keyed(keys: Any, cams: Any) -> CamFile:
    indices = np.asarray(to_array(keys), dtype=np.int64)
    if len(indices) == 0:
        raise _NoCam("holds no class, hence no CAM: its image has no labels")
    maps = np.asarray(to_array(cams), dtype=np.float32)
    if maps.ndim != 3:
        raise Refused(f"holds CAMs of shape {maps.shape}; expected (K, H, W)")
    return _checked(maps, classes=indices, size=(maps.shape[1], maps.shape[2]))


def _checked(cams: np.ndarray, **rest: Any) -> CamFile:
    if len(cams) == 0:
        raise _NoCam("holds no class, hence no CAM")
    try:
        return CamFile(cams, **rest)
    except ValueError as error:
        raise Refused(f"is intact, but its content does not go together ({error})") from None


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
