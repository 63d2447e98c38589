"""Tile tables per GPU: which shape of tiles each kernel takes there, found by nearness, and written by a tuner.

A table is a JSON file: ``gpu``, ``arch``, ``source`` (how its shapes were found), ``versions`` and ``entries``. An
entry names a ``kernel``, the ``C``, ``L`` and ``K`` that its ``config`` is for and ``why`` it is that config. It may
state a ``dtype`` (float16 and bfloat16 stand for each other), a ``precision``, a ``phi`` and bounds ``min_C``,
``max_C``, ``min_L`` …: it then serves nothing else, however near. Tables of a GPU are named after it,
``nvidia-h200.json``; those of an architecture, ``sm_90.json``, were compiled for it and not timed, and serve the GPUs
without a table of their own.
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
from ssa_fast.kernels import config as shapes
from ssa_fast.kernels.config import Apply, Full, Gather, Prepare, Resident, Symmetric
from ssa_fast.ops.gpu_info import DEFAULT_GPU, INTERPRETER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ssa_fast.ops.gpu_info import Gpu

Config: TypeAlias = "Gather | Apply | Prepare | Full | Symmetric | Resident"

SHIPPED = Path(shapes.__file__).with_name("configs")
KERNELS = ("gather", "apply", "prepare", "tiled", "resident")
FORMS = {"full": Full, "symmetric": Symmetric}  # of "tiled"
KINDS = {"gather": Gather, "apply": Apply, "prepare": Prepare, "resident": Resident}
ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4}
PRECISIONS = ("default", "high")
PHIS = ("relu", "exp")
SIZES = ("C", "L", "K")
FIELDS: dict[str, tuple[type, str]] = {
    "gpu": (str, "a text"),
    "arch": (str, "a text"),
    "source": (str, "a text"),
    "versions": (dict, "an object"),
    "entries": (list, "a list"),
}
BOUNDS = tuple(f"{end}_{size}" for size in SIZES for end in ("min", "max"))

# Whose table an architecture takes. sm_86 and sm_89 have sm_80's instructions and sm_120's 99 KB of shared memory: the
# tiles made for sm_120 fit them, those of sm_80 need up to 163 KB. All of these were compiled with the table they take.
TABLES = {
    "sm_80": "sm_80",
    "sm_86": "sm_120",
    "sm_89": "sm_120",
    "sm_90": "sm_90",
    "sm_100": "sm_100",
    "sm_103": "sm_100",
    "sm_120": "sm_120",
    "sm_121": "sm_120",
    "gfx942": "gfx942",
}


@dataclass(frozen=True)
class Entry:
    """One line of a table; ``None`` for what it leaves open."""

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
        """Whether the entry's config is right, if not best, for a stage of these sizes."""
        if self.precision not in (None, precision) or self.phi not in (None, phi):
            return False
        if self.dtype is not None and ITEMSIZES[self.dtype] != ITEMSIZES.get(dtype):
            return False
        return all(
            sizes[name[-1]] <= bound if name.startswith("max") else sizes[name[-1]] >= bound
            for name, bound in self.bounds
        )

    def distance(self, sizes: dict[str, int]) -> float:
        return sum(math.log2(sizes[name] / getattr(self, name)) ** 2 for name in SIZES)


def config(
    kernel: str, *, gpu: Gpu, C: int, L: int, K: int, dtype: str, precision: str, phi: str | None = None
) -> Config:
    """The tiles of ``kernel`` on ``gpu`` for a stage of ``C`` channels and ``L`` pixels, and ``K`` classes.

    It is the config of the nearest entry, in log2 of C, L and K, among those that serve this dtype (``"float16"``) and
    precision, and this φ (None: those that serve every φ). "tiled" answers with ``Full`` or ``Symmetric``.

    Raises:
        ValueError: the GPU's architecture is not supported, no entry serves the stage, or a table is not in order.
    """
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
    """The entry of ``kernel`` that serves and lies nearest to ``C``, ``L`` and ``K``, the first of equals; or None."""
    serving = [entry for entry in table if entry.kernel == kernel and entry.serves(sizes, dtype, precision, phi)]
    return min(serving, key=lambda entry: entry.distance(sizes), default=None)


def not_supported_reasons(gpu: Gpu) -> list[str]:
    """Why there are no tiles for ``gpu``; empty if there are."""
    if gpu.arch in TABLES:
        return []
    return [f"the kernels were compiled for {', '.join(TABLES)} and {gpu.name} is {gpu.arch}; use backend='torch'"]


@functools.cache
def _warn_once(name: str) -> None:
    warnings.warn(
        f"no tiles were measured on {name}: taking its architecture's, compiled ahead of time and never timed; "
        "`python -m bench tune` measures and keeps better ones",
        stacklevel=4,
    )


def _tables(stem: str) -> list[list[Entry]]:
    """The entries of the tables ``stem``, the user's before the shipped one."""
    paths = [directory / f"{stem}.json" for directory in (user_directory(), SHIPPED)]
    return [entries(read(path), path) for path in paths if path.is_file()]


def user_directory() -> Path:
    """Where a user's own tables are kept: ``$SSA_FAST_CONFIGS``, or ``~/.cache/ssa_fast/configs``."""
    named = os.environ.get("SSA_FAST_CONFIGS")
    return Path(named) if named else Path.home() / ".cache" / "ssa_fast" / "configs"


def slug(name: str) -> str:
    """A GPU's name as a file's: ``"NVIDIA H200"`` becomes ``"nvidia-h200"``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def read(path: Path) -> dict[str, Any]:
    """The table in a file.

    Raises:
        ValueError: it is no table; the message names the file and the field.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, {error}") from None
    list(_checked(table, path))
    return table


def write(table: dict[str, Any], path: Path) -> None:
    """Check a table and write it, one entry a line; a reader sees the old file or the new one, never a part of it."""
    list(_checked(table, path))
    head = json.dumps({name: value for name, value in table.items() if name != "entries"}, indent=2, ensure_ascii=False)
    lines = ",\n".join(f"    {json.dumps(entry, ensure_ascii=False)}" for entry in table["entries"])
    atomic_write(path, f'{head[:-2]},\n  "entries": [\n{lines}\n  ]\n}}\n')
    _config.cache_clear()


def entries(table: dict[str, Any], path: Path) -> list[Entry]:
    """The entries of a table; ``path`` is named in errors, as in ``read``."""
    return list(_checked(table, path))


def _checked(table: Any, path: Path) -> Iterator[Entry]:
    for name, (kind, said) in FIELDS.items():
        if not isinstance(table, dict) or not isinstance(table.get(name), kind):
            raise ValueError(f"{path}: {name}: expected {said}")
    for number, entry in enumerate(table["entries"]):
        try:
            yield _entry(entry)
        except ValueError as error:
            raise ValueError(f"{path}: entries[{number}].{error}") from None


def _entry(entry: dict[str, Any]) -> Entry:
    """One checked entry; a ``ValueError`` begins with the field's name."""
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
        config=_built(kind, entry["config"]),
        why=str(entry.get("why", "")),
        dtype=_one_of(entry, "dtype", tuple(ITEMSIZES)) if "dtype" in entry else None,
        precision=_one_of(entry, "precision", PRECISIONS) if "precision" in entry else None,
        phi=_one_of(entry, "phi", PHIS) if "phi" in entry else None,
        bounds=tuple((name, _positive(entry, name)) for name in BOUNDS if name in entry),
    )


def _built(kind: Any, values: dict[str, Any]) -> Config:
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
