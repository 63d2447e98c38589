"""Write and read ``SSAResult`` files: an ``.npz`` of arrays, exactly as they are, with no pickle in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast._version import __version__
from ssa_fast.io.atomic import atomic_write
from ssa_fast.io.cam_files import write_archive
from ssa_fast.io.restricted_pickle import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ARRAYS", "read_result", "write_result"]

ARRAYS = ("cams", "seed", "logits", "classes", "valid", "scores")
KINDS = {"classes": "i", "valid": "b"}  # of dtypes; of others "f"
FORMAT = "ssa_fast.SSAResult 1"


def write_result(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a result's fields atomically; equal fields give equal bytes.

    Args:
        path: The file, ``.npz``; its folder must exist.
        content: The arrays of ``ARRAYS``, ``stages`` (name -> array), ``output_names`` and ``notes`` (strings).

    Raises:
        ValueError: The path has another suffix.
        OSError: The file cannot be written.
    """
    target = Path(path)
    if target.suffix != ".npz":
        raise ValueError(f'path: expected a file name that ends in ".npz", got {target.name!r}; rename it')
    stages = content["stages"]
    about = {"format": FORMAT, "version": __version__, "stages": list(stages)}
    about |= {name: list(content[name]) for name in ("output_names", "notes")}
    arrays = {name: content[name] for name in ARRAYS}
    arrays |= {f"stage_{n}": maps for n, maps in enumerate(stages.values())}
    arrays["about"] = json.dumps(about)
    atomic_write(target, lambda temporary: write_archive(temporary, arrays), parents=False)


def read_result(path: str | Path) -> dict[str, Any]:
    """Return what ``write_result`` wrote: arrays, ``stages``, ``output_names`` and ``notes``.

    Raises:
        ValueError: The file is damaged, or holds something else.
        OSError: The file cannot be opened.
    """
    with Path(path).open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            about = json.loads(str(arrays["about"]))
            if about["format"] != FORMAT:
                raise Refused(f"holds {about['format']!r}; expected {FORMAT!r}: read it with the version that wrote it")
            content = {name: arrays[name] for name in ARRAYS}
            content |= {name: tuple(map(str, about[name])) for name in ("output_names", "notes")}
            content["stages"] = {str(name): arrays[f"stage_{n}"] for n, name in enumerate(about["stages"])}
            _check(content)
        except Refused as refused:
            raise ValueError(f"path: {path} {refused}") from None
        except Exception as error:  # damaged data raise nearly every exception
            raise ValueError(
                f"path: {path} is damaged or not a file that SSAResult.save wrote ({type(error).__name__}: {error})"
            ) from error
    return content


def _check(content: Mapping[str, Any]) -> None:
    """Refuse arrays of other types, and those of which some have other images or classes than the rest."""
    B, K = content["classes"].shape
    arrays = {name: content[name] for name in ARRAYS}
    arrays |= {f"stage {name!r}": maps for name, maps in content["stages"].items()}
    for name, array in arrays.items():
        shape = array.shape[:2]
        if shape != (B, K) and not (name == "logits" and shape[:1] == (B,)):
            raise Refused(f"is intact, but has {name} for {shape} images and classes, others for {(B, K)}")
        if array.dtype.kind != KINDS.get(name, "f") or not array.dtype.isnative:
            raise Refused(f"is intact, but its {name} are {array.dtype.str}, which SSAResult.save does not write")
