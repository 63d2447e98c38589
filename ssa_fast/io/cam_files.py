"""CAM files: the project's own, compact and free of pickle, and those of the codebases that others read with.

| format | written by | content |
|---|---|---|
| `ssa` | ssa_fast | `.npz`: CAMs at a stage's size, float16 or uint8, and what is needed to read them |
| `psa` | PSA, SEAM | pickled `.npy`: {class index: (H, W) float32} |
| `irn` | IRN | pickled `.npy`: {"keys": (K,), "cam": (K, h, w) at stride 4, "high_res": (K, H, W)} |
| `clip-es` | CLIP-ES | pickled `.npy`: {"keys": (K,), "attn_highres": (K, H, W) float16} |
| `wsol` | wsolevaluation | `.npy`: (H, W) float64 in [0, 1], one map per image |

Class indices are 0-based without a background in all of them; the readers there add 1.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from ssa_fast.io.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FORMATS", "PICKLED", "CamFile", "PickleWarning", "full_size", "read", "suffix", "write"]

FORMATS = ("ssa", "psa", "irn", "clip-es", "wsol")
PICKLED = ("psa", "irn", "clip-es")
IRN_STRIDE = 4
HALF_STEP = 0.5 / 255  # SEAM's CAMs reach a little below 0: what rounds to 0 or 255 counts as in [0, 1]
EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip file's earliest date, so that the same CAMs are the same bytes

WHY = (
    "reading a pickle runs whatever code its author put in; allow_pickle=True (--allow-pickle) is for files that you "
    "made or whose makers you trust"
)
# What the pickles of the codebases above hold: arrays and tensors. All other names are refused, which narrows what a
# bad file can do; it is no replacement for trust.
HARMLESS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch", "Size"),
}


class PickleWarning(UserWarning):
    """A pickled file is read or written, as was asked for."""


@dataclass(frozen=True, eq=False)
class CamFile:
    """One picture's CAMs.

    Attributes:
        cams: float32 (K, h, w), as the file has them: at the picture's size, or smaller (strided).
        classes: int64 (K,) class indices, 0-based without a background; None where the format knows none.
        size: (H, W) of the picture, None where the file does not say.
        names, labels, logits: K of each, in the project's own files: class names, values in the mask, logits.
        align_corners: of the bilinear resizing to `size`.
        settings, version: how the CAMs were made, and by which version.
    """

    cams: np.ndarray
    classes: np.ndarray | None = None
    size: tuple[int, int] | None = None
    names: tuple[str, ...] | None = None
    labels: np.ndarray | None = None
    logits: np.ndarray | None = None
    align_corners: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    def __post_init__(self) -> None:
        if self.cams.ndim != 3 or self.cams.size == 0 or self.cams.dtype.kind != "f":
            raise ValueError(
                f"cams: expected floating (K, h, w), got {self.cams.dtype} {self.cams.shape}; give one picture's CAMs"
            )
        for name in ("classes", "names", "labels", "logits"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.cams):
                raise ValueError(f"{name}: expected {len(self.cams)}, one per CAM, got {len(value)}")


def suffix(format: str) -> str:
    """The suffix that files of a format have."""
    return ".npz" if format == "ssa" else ".npy"


def full_size(cam: CamFile) -> np.ndarray:
    """The CAMs (K, H, W) float32 at the picture's size, resized bilinearly as SSA does it.

    Raises:
        ValueError: the file does not say what size that is.
    """
    if cam.size is None:
        raise ValueError("size: the file does not say the picture's (H, W); set it with dataclasses.replace")
    if cam.cams.shape[1:] == tuple(cam.size):
        return np.asarray(cam.cams, dtype=np.float32)
    maps = torch.from_numpy(np.ascontiguousarray(cam.cams, dtype=np.float32))[None]
    resized = interpolate(maps, cam.size, mode="bilinear", align_corners=cam.align_corners)[0]
    low, high = (bound[0, :, None, None] for bound in (maps.amin((2, 3)), maps.amax((2, 3))))
    result: np.ndarray = resized.clamp_(low, high).numpy()  # rounding must not lead out of a CAM's own range
    return result


def write(
    path: str | Path, cam: CamFile, *, format: str = "ssa", dtype: str = "float16", allow_pickle: bool = False
) -> None:
    """Write one picture's CAMs; the file appears whole or not at all, and equal CAMs make equal bytes.

    The formats but "ssa" hold CAMs at the picture's size: `full_size` of what is given. "ssa" keeps the size given and
    stores float16, or uint8: 255 times the CAM, rounded, which has to lie in [0, 1], as "wsol" files demand it, too.

    Raises:
        ValueError: an unknown format or dtype, a pickled format without `allow_pickle`, or CAMs that the format cannot
            hold, with the reason.
        OSError: the file cannot be written.
    """
    _check_format(format)
    if format in PICKLED:
        if not allow_pickle:
            raise ValueError(f"path: {path} would be a pickle: {WHY}")
        _warn_of_pickle(stacklevel=3)
    content = _npz(cam, dtype) if format == "ssa" else _npy(_foreign(cam, format))
    atomic_write(Path(path), content, parents=False)


def read(path: str | Path, *, format: str | None = None, allow_pickle: bool = False) -> CamFile:
    """Read one picture's CAMs, whichever of the formats they are in; `format` demands one.

    Raises:
        ValueError: a pickled file without `allow_pickle`, one that holds more than arrays, a damaged file, or another
            format than demanded; with the reason.
        OSError: the file cannot be opened.
    """
    if format is not None:
        _check_format(format)
    content = Path(path).read_bytes()
    try:
        found, cam = _read_npz(content) if content[:2] == b"PK" else _read_npy(content, allow_pickle)
    except PickleWarning:  # where the caller has made warnings errors
        raise
    except _Refused as refused:
        raise ValueError(f"path: {path} {refused}") from None
    except Exception as error:  # damaged data meets the readers with nearly every exception there is
        raise ValueError(f"path: {path} is damaged or no CAM file ({type(error).__name__}: {error})") from error
    if format not in (None, found):
        raise ValueError(f"format: expected {path} to hold {format!r}, it holds {found!r}; leave format out")
    return cam


class _Refused(Exception):
    """Why a sound file is not read."""


def _npz(cam: CamFile, dtype: str) -> bytes:
    if dtype not in ("float16", "uint8"):
        raise ValueError(f"dtype: expected float16 or uint8, got {dtype!r}")
    arrays: dict[str, np.ndarray] = {"cams": _half(cam.cams) if dtype == "float16" else _bytes(cam.cams)}
    if cam.classes is not None:
        arrays["classes"] = np.asarray(cam.classes, dtype=np.int64)
    if cam.names is not None:
        arrays["names"] = np.asarray(cam.names, dtype=np.str_)
    if cam.labels is not None:
        arrays["labels"] = np.asarray(cam.labels, dtype=np.uint8)
    if cam.logits is not None:
        arrays["logits"] = np.asarray(cam.logits, dtype=np.float32)
    if cam.size is not None:
        arrays["size"] = np.asarray(cam.size, dtype=np.int64)
    arrays["align_corners"] = np.asarray(cam.align_corners)
    arrays["settings"] = np.asarray(json.dumps(dict(cam.settings)))
    arrays["version"] = np.asarray(cam.version)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", EPOCH), _npy(array), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _read_npz(content: bytes) -> tuple[str, CamFile]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if "cams" not in arrays:
        raise _Refused("is an archive without CAMs; give a file that ssa_fast wrote")
    cams = arrays["cams"]
    values = cams.astype(np.float32) / (255 if cams.dtype == np.uint8 else 1)
    size = arrays.get("size")
    return "ssa", CamFile(
        values.astype(np.float32),
        classes=arrays.get("classes"),
        size=None if size is None else (int(size[0]), int(size[1])),
        names=tuple(arrays["names"].tolist()) if "names" in arrays else None,
        labels=arrays.get("labels"),
        logits=arrays.get("logits"),
        align_corners=bool(arrays.get("align_corners", True)),
        settings=json.loads(str(arrays["settings"])) if "settings" in arrays else {},
        version=str(arrays.get("version", "")),
    )


def _foreign(cam: CamFile, format: str) -> np.ndarray:
    """What another codebase's file holds, as the array that `np.save` would have been given."""
    size = cam.size or (cam.cams.shape[1], cam.cams.shape[2])
    high_res = np.ascontiguousarray(full_size(CamFile(cam.cams, size=size, align_corners=cam.align_corners)))
    if format == "wsol":
        if len(high_res) != 1:
            raise ValueError(f"format: 'wsol' files hold one map, got {len(high_res)} classes; choose one of them")
        return _in_unit(high_res[0], "format: 'wsol'").astype(np.float64)  # its reader refuses float32
    if cam.classes is None:
        raise ValueError(f"format: {format!r} files name their classes, got CAMs without; set `classes`")
    keys = np.asarray(cam.classes, dtype=np.int64)
    content: dict[Any, Any]
    if format == "psa":
        content = {int(key): plane for key, plane in zip(keys, high_res, strict=True)}
    elif format == "irn":
        strided = tuple(-(-side // IRN_STRIDE) for side in size)
        # From high_res: IRN counts pixels by their centres, whatever the CAMs were resized by.
        maps = interpolate(torch.from_numpy(high_res)[None], strided, mode="bilinear", align_corners=False)[0]
        content = {"keys": torch.from_numpy(keys), "cam": maps, "high_res": high_res}
    else:
        content = {"keys": keys, "attn_highres": _half(high_res)}
    return np.array(content, dtype=object)


def _in_unit(cams: np.ndarray, what: str) -> np.ndarray:
    if not (cams.min() >= -HALF_STEP and cams.max() <= 1 + HALF_STEP):
        raise ValueError(
            f"{what} holds CAMs in [0, 1] only, got {cams.min():g} to {cams.max():g}; rescale them, or take another"
        )
    clipped: np.ndarray = cams.clip(0, 1)
    return clipped


def _bytes(cams: np.ndarray) -> np.ndarray:
    return np.rint(_in_unit(cams, "dtype: uint8") * 255).astype(np.uint8)


def _half(cams: np.ndarray) -> np.ndarray:
    largest = np.finfo(np.float16).max
    if (np.isfinite(cams) & (np.abs(cams) > largest)).any():
        raise ValueError(f"cams: float16 holds values up to {largest:g}, got {np.abs(cams).max():g}; rescale them")
    half: np.ndarray = cams.astype(np.float16)
    return half


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype == object)
    return buffer.getvalue()


def _read_npy(content: bytes, allow_pickle: bool) -> tuple[str, CamFile]:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if not dtype.hasobject:
        array = np.load(io.BytesIO(content), allow_pickle=False)
        if array.ndim != 2 or array.dtype.kind != "f":
            raise _Refused(f"holds {array.dtype} {array.shape}; expected wsolevaluation's one floating (H, W) map")
        return "wsol", CamFile(array[None].astype(np.float32), size=(array.shape[0], array.shape[1]))
    if not allow_pickle:
        raise _Refused(f"is a pickle: {WHY}")
    _warn_of_pickle(stacklevel=4)
    if shape != ():
        raise _Refused(f"holds objects of shape {shape}; expected one dictionary")
    held = _Arrays(stream).load()
    held = held.item() if isinstance(held, np.ndarray) else held
    if not isinstance(held, dict):
        raise _Refused(f"holds a {type(held).__name__}; expected a dictionary of CAMs")
    return _understand(held)


def _understand(held: dict[Any, Any]) -> tuple[str, CamFile]:
    if "high_res" in held and "keys" in held:
        return "irn", _keyed(held["keys"], held["high_res"])
    if "attn_highres" in held and "keys" in held:
        return "clip-es", _keyed(held["keys"], held["attn_highres"])
    if held and all(isinstance(key, int | np.integer) for key in held):
        keys = list(held)
        return "psa", _keyed(np.asarray(keys), np.stack([np.asarray(held[key]) for key in keys]))
    raise _Refused(f"holds a dictionary with {sorted(map(str, held))[:5]}; expected PSA's, IRN's or CLIP-ES's keys")


def _keyed(keys: Any, cams: Any) -> CamFile:
    maps = np.asarray(cams, dtype=np.float32)
    return CamFile(maps, classes=np.asarray(keys, dtype=np.int64), size=(maps.shape[1], maps.shape[2]))


class _Arrays(pickle.Unpickler):
    """An unpickler that knows arrays, tensors and plain containers, and refuses everything else by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage_from_bytes
        if (module, name) in HARMLESS or (module == "_codecs" and name == "encode"):
            return super().find_class(module, name)
        raise _Refused(f"asks for {module}.{name} while it is read, which no CAM needs: it is not read")


def _storage_from_bytes(content: bytes) -> Any:
    """A tensor's numbers inside a pickle are a file of torch.save of its own."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _Refused("holds a tensor that is not numbers alone: it is not read") from None


def _warn_of_pickle(*, stacklevel: int) -> None:
    warnings.warn(f"pickled CAM files are in use: {WHY}", PickleWarning, stacklevel=stacklevel)


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
