"""What of ``python -m bench compare`` needs no GPU: compiled kernels, traffic and launches, compared exactly."""

from __future__ import annotations

import ast
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.workers import Workers, job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measure import Device

LIMIT_S = 3600.0
# (method, φ, (C, H, W) of each stage, signed): ragged in every size, and large enough for several tiles of each method.
CALLS: dict[str, tuple[str, str, tuple[tuple[int, int, int], ...], bool]] = {
    "prototypes": ("prototypes", "phi=relu", ((72, 12, 15),), False),
    "shifted": ("prototypes", "phi=shifted", ((72, 12, 15),), True),
    "tiled": ("tiled", "phi=relu", ((72, 12, 15),), True),
    "resident": ("resident", "phi=relu", ((72, 9, 11),), True),
    "fusion": ("prototypes", "phi=relu", ((40, 12, 15), (72, 6, 8)), False),
}
# What each gate's numbers depend on beside the kernels: these files of the package, and all that they import of it.
READ = {
    "report": ("ssa_fast/ops/tile_tables.py", "ssa_fast/ops/gpu_info.py"),
    "traffic": ("ssa_fast/api.py",),
    "host": ("ssa_fast/api.py",),
}
# How a number may change: by a factor up to this; None: any change is told; what is not here must not grow.
ALLOWED: dict[str, float | None] = {"registers": None, "shared": None, "µs per call": 1.25}
MATRIX, COUNTED = "matrix instructions missing", ("bytes loaded", "bytes stored", "product FLOPs")
FIGURES = {MATRIX, *COUNTED, "launches", "µs per call", "registers", "shared"}  # any other number is a problem's


@dataclass
class Gate:
    """What a comparison found: what got worse, and what else is worth telling."""

    name: str
    summary: str = ""
    worse: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(name: str, base: Path, candidate: Path) -> Gate:
    """Compare two trees by one gate, unless they do not differ in anything that it depends on."""
    if read(base, name) == read(candidate, name):
        return Gate(name, "kernels and all that it depends on unchanged, not measured again")
    found: dict[Path, list[Any]] = {base: [], candidate: []}
    for _ in range(2 if name == "host" else 1):
        for tree, rows in found.items():
            environment = {"TRITON_INTERPRET": "1" if name == "traffic" else None}
            with Workers(tree=tree, environment=environment) as workers:
                rows += workers.do(job(f"bench.compare_gates:{name}", name, LIMIT_S))
    return judged(name, found[base], found[candidate])


def read(tree: Path, name: str) -> dict[str, bytes]:
    """Return the contents by path of all files that a gate's numbers depend on."""
    kernels = (path for path in (tree / "kernels").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    waiting, found = [*kernels, *(tree / root for root in READ[name])], {}
    while waiting:
        path = waiting.pop()
        key = path.relative_to(tree).as_posix()
        # ``ssa_fast/__init__.py`` is no part of what a kernel does.
        if key in found or key == "ssa_fast/__init__.py" or not path.is_file():
            continue
        found[key] = path.read_bytes()
        if path.suffix == ".py":
            imported = (tree.joinpath(*module.split(".")) for module in _imports(found[key]))
            waiting += [file for at in imported for file in (at.with_suffix(".py"), at / "__init__.py")]
    return found


def _imports(source: bytes) -> Iterator[str]:
    """Yield names of all that a file imports from the package, be they modules or what is in one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def judged(name: str, base: list[Any], candidate: list[Any]) -> Gate:
    """Compare rows ``{"label", "numbers"}``, or those that say why there are none.

    Of a label that comes several times the least numbers count. No number may grow, but for ``ALLOWED``.
    """
    gate, before, now = Gate(name), _least(base), _least(candidate)
    gate.worse = [f"{row.get('label', 'the candidate')}: {row['why']}" for row in candidate if "why" in row]
    if not before and not gate.worse:
        return Gate(name, f"not judged, the base has none: {base[0]['why']}")
    for label, numbers in now.items():
        gate.notes += [f"{label}: new"] * (label not in before)
        for what, value in numbers.items():
            # What is new has no figures to compare with, and may have no problem.
            old = before.get(label, {}).get(what, value if what in FIGURES else 0)
            most = ALLOWED.get(what, 1.0)
            said = f"{label}: {what} {value:,.9g}, {old:,.9g} before"
            if most is not None and value > most * old:
                gate.worse.append(said)
            elif value != old and (most is None or value * most < old):
                gate.notes.append(said)
    gate.summary = f"{len(now)} compared" if now else "the candidate failed"
    return gate


def _least(rows: list[Any]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if "numbers" in row:
            old = found.get(row["label"], {})
            found[row["label"]] = {what: min(value, old.get(what, value)) for what, value in row["numbers"].items()}
    return found


# ---- In a worker that has one tree's package ----


def report(_: Device) -> list[Any]:
    """Compile every kernel ahead of time; a problem is counted by the first number in it."""
    from bench import aot

    rows = []
    for row in _saved(aot.main, "--target", "sm_90", "--save"):
        numbers = {name: row[name] for name in ("registers", "shared")}
        numbers[MATRIX] = -sum(row["matrix"].values())  # the more the better
        for problem in row["problems"]:
            size = re.search(r"\d+", problem)
            numbers[re.sub(r"\d+", "…", problem)] = int(size[0]) if size else 1
        rows.append({"label": f"{row['target']} {row['kernel']} {row['config']} {row['what']}", "numbers": numbers})
    return rows


def host(_: Device) -> list[Any]:
    """Count launches and time the host's part of calls on a driver that does nothing."""
    from bench import host

    rows = _saved(host.main, "--save")
    return [{"label": row["case"], "numbers": {"launches": row["launches"], "µs per call": row["us"]}} for row in rows]


def _saved(main: Any, *arguments: str) -> list[Any]:
    """Return the rows of the file that a command of ``bench`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        main([*arguments, str(file)])
        found = json.loads(file.read_text(encoding="utf-8"))
    return found["rows"] if isinstance(found, dict) else found


def traffic(_: Device) -> list[Any]:
    """Count what a few small interpreted calls load, store and multiply: the same numbers everywhere."""
    from bench import traffic  # needs TRITON_INTERPRET=1 in the environment
    from ssa_fast import Affinity, polish

    rows: list[Any] = []
    for name, (method, phi, sizes, signed) in CALLS.items():
        generator = torch.Generator().manual_seed(0)
        stages = [(torch.randn if signed else torch.rand)(1, *size, generator=generator) for size in sizes]
        cam, given = torch.rand(1, 3, 5, 6, generator=generator), stages if len(stages) > 1 else stages[0]
        try:
            affinity = Affinity.parse(phi)  # an older tree may not know this φ
            with traffic.count({}) as found:
                polish(cam, given, affinity=affinity, method=method, backend="triton", nonnegative=not signed)
        except (TypeError, ValueError) as error:
            rows.append({"label": name, "why": f"{type(error).__name__}: {error}"})
            continue
        counted = (found.loaded.total(), found.stored.total(), found.dot_flops)
        rows.append({"label": name, "numbers": dict(zip(COUNTED, counted, strict=True))})
    return rows
