"""Tile tables per GPU: the tiles each kernel uses there, looked up by nearness, written by a tuner.

A table is a JSON file: ``gpu``, ``arch``, ``source`` (how its tiles were found), ``versions`` and ``entries``. An entry
names a ``kernel``, the ``C``, ``L`` and ``K`` that its ``config`` was made for, and ``why``. It may state a ``dtype``
(float16 and bfloat16 are interchangeable), a ``precision``, a ``phi`` and bounds ``min_C``, ``max_C``, ``min_L`` …: it
then applies to nothing else, however near. The table of a GPU has its name (``nvidia-h200.json``); that of an
architecture (``sm_90.json``) was compiled ahead of time, not timed, and applies to GPUs without a table of their own.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import warnings
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ssa_fast.io.atomic import atomic_write
from ssa_fast.kernels import config as configs
from ssa_fast.kernels.config import Apply, Full, Gather, Prepare, Resident, Symmetric
from ssa_fast.ops.gpu_info import DEFAULT_GPU, INTERPRETER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ssa_fast.ops.gpu_info import Gpu

Config: TypeAlias = "Gather | Apply | Prepare | Full | Symmetric | Resident"

SHIPPED = Path(configs.__file__).with_name("configs")
KERNELS = ("gather", "apply", "prepare", "tiled", "resident")
LINEAR = ("gather", "apply")
FORMS = {"full": Full, "symmetric": Symmetric}  # of "tiled"
KINDS = {"gather": Gather, "apply": Apply, "prepare": Prepare, "resident": Resident}
ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4}
PRECISIONS = ("default", "high")
PHIS = ("relu", "shifted", "exp")
SIZES = ("C", "L", "K")
FIELDS: dict[str, tuple[type, str]] = {
    "gpu": (str, "a string"),
    "arch": (str, "a string"),
    "source": (str, "a string"),
    "versions": (dict, "an object"),
    "entries": (list, "a list"),
}
BOUNDS = tuple(f"{end}_{size}" for size in SIZES for end in ("min", "max"))

# Architecture -> architecture whose table it uses; all were compiled with it.
TABLES = {
    "sm_80": "sm_80",
    "sm_86": "sm_86",
    "sm_89": "sm_89",
    "sm_90": "sm_90",
    "sm_100": "sm_100",
    "sm_103": "sm_100",
    "sm_120": "sm_120",
    "sm_121": "sm_120",
    "gfx942": "gfx942",
    "gfx950": "gfx950",
}


@dataclass(frozen=True)
class Entry:
    """One entry of a table; ``None`` for a field that it leaves open."""

    kernel: str
    C: int
    L: int
    K: int
    config: Config
    why: str
    dtype: str | None
    precision: str | None
    phi: str | None
    bounds: tuple[tuple[str, int], ...]

    def serves(self, sizes: dict[str, int], dtype: str, precision: str, phi: str | None = None) -> bool:
        """Return whether the entry's config is correct, if not optimal, for a stage of these sizes."""
        if self.precision not in (None, precision) or self.phi not in (None, phi):
            return False
        if self.dtype is not None and ITEMSIZES[self.dtype] != ITEMSIZES.get(dtype):
            return False
        return all(
            sizes[name[-1]] <= bound if name.startswith("max") else sizes[name[-1]] >= bound
            for name, bound in self.bounds
        )

    def distance(self, sizes: dict[str, int]) -> float:
        """Return the squared distance to a stage in log2 of C, L and K."""
        return sum(math.log2(sizes[name] / getattr(self, name)) ** 2 for name in SIZES)


def config(
    kernel: str,
    *,
    gpu: Gpu,
    C: int,
    L: int,
    K: int,
    dtype: str,
    precision: str,
    phi: str | None = None,
    center: bool = False,
    B: int = 1,
) -> Config:
    """Return the tiles of ``kernel`` on ``gpu`` for a stage of ``C`` channels, ``L`` pixels and ``K`` classes.

    They are the config of the nearest entry, in log2 of C, L and K, among those that apply to this dtype
    (``"float16"``), precision and φ (None: those that apply to every φ). For "tiled" it is a ``Full`` or ``Symmetric``.
    The passes of prototypes hold features that they ``center`` in float32, so they use the tiles of that dtype, and
    those for the pixels of all ``B`` images, since these share a launch and no program reads more than its own.

    Raises:
        ValueError: The GPU's architecture is not supported, no entry applies to the stage, or a table is malformed.
    """
    if kernel in LINEAR:
        dtype, L = "float32" if center else dtype, B * L
    return _config(kernel, gpu, C, L, K, dtype, precision, phi, os.environ.get("SSA_FAST_CONFIGS"))


@functools.lru_cache(maxsize=4096)
def _config(
    kernel: str, gpu: Gpu, C: int, L: int, K: int, dtype: str, precision: str, phi: str | None, _directory: str | None
) -> Config:
    if reasons := not_supported_reasons(gpu):
        raise ValueError("; ".join(reasons))
    measured = _tables(slug(gpu.name))
    if not measured and gpu not in (INTERPRETER, DEFAULT_GPU):
        _warn_once(gpu.name)
    for table in [*measured, *_tables(TABLES[gpu.arch])]:
        if entry := nearest(table, kernel, C=C, L=L, K=K, dtype=dtype, precision=precision, phi=phi):
            return entry.config
    raise ValueError(
        f"no tiles of the kernel {kernel!r} for C={C}, L={L}, K={K}, {dtype}, precision={precision!r} in the tables of "
        f"{gpu.name} ({gpu.arch}); see {user_directory()} and {SHIPPED}"
    )


def nearest(
    table: list[Entry], kernel: str, *, dtype: str, precision: str, phi: str | None = None, **sizes: int
) -> Entry | None:
    """Return the nearest entry of ``kernel`` that applies, the first of equals; None if there is none."""
    serving = [entry for entry in table if entry.kernel == kernel and entry.serves(sizes, dtype, precision, phi)]
    return min(serving, key=lambda entry: entry.distance(sizes), default=None)


def not_supported_reasons(gpu: Gpu) -> list[str]:
    """Return why there are no tiles for ``gpu``; empty if there are."""
    if gpu.arch in TABLES:
        return []
    return [f"the kernels were compiled for {', '.join(TABLES)} and {gpu.name} is {gpu.arch}; use backend='torch'"]


@functools.cache
def _warn_once(name: str) -> None:
    warnings.warn(
        f"no tiles were measured on {name}: using its architecture's, compiled ahead of time and never timed; "
        "`python -m bench tune` measures and saves better ones",
        stacklevel=4,
    )


def _tables(stem: str) -> list[list[Entry]]:
    """Return the entries of the tables called ``stem``, the user's before the shipped ones."""
    paths = [directory / f"{stem}.json" for directory in (user_directory(), SHIPPED)]
    return [entries(read(path), path) for path in paths if path.is_file()]


def user_directory() -> Path:
    """Return the folder of the user's own tables: ``$SSA_FAST_CONFIGS``, or ``~/.cache/ssa_fast/configs``."""
    named = os.environ.get("SSA_FAST_CONFIGS")
    return Path(named) if named else Path.home() / ".cache" / "ssa_fast" / "configs"


def slug(name: str) -> str:
    """Return a GPU's name as a file name: ``"NVIDIA H200"`` becomes ``"nvidia-h200"``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def read(path: Path) -> dict[str, Any]:
    """Read and check the table in a file.

    Raises:
        ValueError: It is not a table; the message names the file and the field.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, {error}") from None
    list(_checked(table, path))
    return table


def write(table: dict[str, Any], path: Path) -> None:
    """Check a table and write it atomically, one entry per line."""
    list(_checked(table, path))
    head = json.dumps({name: value for name, value in table.items() if name != "entries"}, indent=2, ensure_ascii=False)
    lines = ",\n".join(f"    {json.dumps(entry, ensure_ascii=False)}" for entry in table["entries"])
    atomic_write(path, f'{head[:-2]},\n  "entries": [\n{lines}\n  ]\n}}\n')
    _config.cache_clear()


def entries(table: dict[str, Any], path: Path) -> list[Entry]:
    """Return the entries of a table; errors name ``path``, as in ``read``."""
    return list(_checked(table, path))


def _checked(table: Any, path: Path) -> Iterator[Entry]:
    for name, (kind, expected) in FIELDS.items():
        if not isinstance(table, dict) or not isinstance(table.get(name), kind):
            raise ValueError(f"{path}: {name}: expected {expected}")
    for number, entry in enumerate(table["entries"]):
        try:
            yield _entry(entry)
        except ValueError as error:
            raise ValueError(f"{path}: entries[{number}].{error}") from None


def _entry(entry: dict[str, Any]) -> Entry:
    """Return one entry, checked; the message of a ``ValueError`` begins with the field's name."""
    kernel = _one_of(entry, "kernel", KERNELS)
    kind = FORMS[_one_of(entry, "form", tuple(FORMS))] if kernel == "tiled" else KINDS[kernel]
    known = {
        "kernel",
        "config",
        "why",
        "dtype",
        "precision",
        "phi",
        *SIZES,
        *BOUNDS,
        *(["form"] if kernel == "tiled" else []),
    }
    if unknown := set(entry) - known:
        raise ValueError(f"{min(unknown)}: not a field of {kernel!r}")
    if not isinstance(entry.get("config"), dict):
        raise ValueError("config: expected an object")
    return Entry(
        kernel=kernel,
        **{name: _positive(entry, name) for name in SIZES},
        config=_build_config(kind, entry["config"]),
        why=str(entry.get("why", "")),
        dtype=_one_of(entry, "dtype", tuple(ITEMSIZES)) if "dtype" in entry else None,
        precision=_one_of(entry, "precision", PRECISIONS) if "precision" in entry else None,
        phi=_one_of(entry, "phi", PHIS) if "phi" in entry else None,
        bounds=tuple((name, _positive(entry, name)) for name in BOUNDS if name in entry),
    )


def _build_config(kind: Any, values: dict[str, Any]) -> Config:
    known = {field.name: field.default is MISSING for field in fields(kind)}
    if unknown := set(values) - set(known):
        raise ValueError(f"config.{min(unknown)}: not a field of {kind.__name__}, which has {', '.join(known)}")
    given = [name for name, required in known.items() if required or name in values]
    return kind(**{name: _positive(values, name, "config.") for name in given})


def _positive(values: dict[str, Any], name: str, prefix: str = "") -> int:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{prefix}{name}: expected an integer of at least 1, got {value!r}")
    return value


def _one_of(entry: Any, name: str, known: tuple[str, ...]) -> str:
    value = entry.get(name) if isinstance(entry, dict) else None
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value
