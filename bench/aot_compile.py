"""Compile every shipped kernel for GPUs that need not be present, and check the compiler's output.

The host functions run unchanged on meta tensors, once per entry of the shipped tables; only the launch is replaced by a
compilation for the target. The compiled kernels are therefore exactly those that would be launched.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

try:
    from triton.runtime.cache import triton_key
except ImportError:  # Triton before 3.4
    from triton.compiler.compiler import triton_key

from ssa_fast.affinity import Affinity
from ssa_fast.kernels import fusion
from ssa_fast.ops import gpu_info, tile_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from multiprocessing.connection import Connection

VERSION = triton.__version__.split("+")[0]
TRITON = tuple(int(part) for part in VERSION.split(".")[:2])
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
MATRIX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_s?mfmac?_f32_\w+)")
LOCAL = re.compile(r"\b(?:ld|st)\.local\b")
# A product compiled to ordinary arithmetic: its result has the layout of elementwise tiles.
WITHOUT_MATRIX = re.compile(r"\btt\.dot\b.*-> tensor<[^#>]*#blocked")
PRODUCT = re.compile(r"\btt\.dot\b")


@dataclass(frozen=True)
class Target:
    """A GPU architecture: Triton's target, KiB of shared memory per program, the first Triton for it."""

    gpu: GPUTarget
    shared: int
    since: tuple[int, int] = (3, 2)


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163),
    "sm_86": Target(GPUTarget("cuda", 86, 32), 99),
    "sm_89": Target(GPUTarget("cuda", 89, 32), 99),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227, (3, 3)),
    "sm_103": Target(GPUTarget("cuda", 103, 32), 227, (3, 5)),
    "sm_120": Target(GPUTarget("cuda", 120, 32), 99, (3, 3)),
    "sm_121": Target(GPUTarget("cuda", 121, 32), 99, (3, 5)),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64),
}
DEFAULT_TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")


@dataclass
class Row:
    """One compiled kernel; spilled and shared memory in bytes, local memory in accesses (AMD: bytes)."""

    target: str
    kernel: str
    config: str
    what: str
    registers: int = 0
    spilled: int = 0
    local: int = 0
    shared: int = 0
    matrix: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    hash: str = ""

    @property
    def label(self) -> str:
        """Return the name of the row within its target."""
        return f"{self.kernel} {self.config} {self.what}"

    @property
    def numbers(self) -> list[Any]:
        """Return the numbers that the golden file records."""
        return [self.registers, self.spilled, self.local, self.shared, self.matrix]


def compile_launches(target: GPUTarget, call: Callable[[], None]) -> list[tuple[str, str, Any]]:
    """Compile each kernel that ``call`` would launch; return its name, constants and binary.

    ``target`` stays the active GPU of this process afterwards.

    Raises:
        RuntimeError: ``TRITON_INTERPRET`` is set.
    """
    if gpu_info.interpreting():
        raise RuntimeError("TRITON_INTERPRET is set, but interpreted kernels cannot be compiled; unset it")
    no_gpu = SimpleNamespace(
        get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda device=None: 0
    )
    driver.set_active(no_gpu)
    torch.version.hip = "0" if target.backend == "hip" else None
    found: list[Any] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        binary = launch(self, *args, grid=grid, warmup=True, **kwargs)
        found.append((self.fn.__name__, _constants(self, kwargs), binary))
        return binary

    launch, JITFunction.run = JITFunction.run, run
    try:
        call()
    finally:
        JITFunction.run = launch
    return found


def _constants(kernel: Any, arguments: dict[str, Any]) -> str:
    """Return the tiles and enabled flags of a launch, e.g. ``"ROWS=32 FLAT warps=8 stages=3"``."""
    constants = {param.name: arguments[param.name] for param in kernel.params if param.is_constexpr}
    constants |= {name[4:]: arguments[name] for name in ("num_warps", "num_stages") if name in arguments}
    return " ".join(
        name if value is True else f"{name}={value}" for name, value in constants.items() if value not in (False, None)
    )


@dataclass(frozen=True)
class Stage:
    """A representative stage without its sizes; ``ragged``: its row length prevents vector loads."""

    affinity: Affinity
    dtype: str
    channels_last: bool = False
    signed: bool = False
    ragged: bool = False

    def __str__(self) -> str:
        layout = "nhwc" if self.channels_last else "ragged nchw" if self.ragged else "nchw"
        form = "centered shifted" if self.affinity.center and self.affinity.any_sign else self.affinity.phi
        return f"{self.dtype} {form}{', two steps' if self.affinity.steps > 1 else ''} {layout}"


PARTS = {"prototypes": ("gather", "apply"), "tiled": ("prepare", "tiled"), "resident": ("resident",)}
EXP = Affinity(phi="exp", temperature=0.1, center=True)
CUBED = Affinity(phi="shifted", power=3.0)
CENTERED = Affinity(phi="shifted", center=True, steps=2)


def stages(method: str, entry: tile_tables.Entry) -> list[Stage]:
    """Return stages that cover the entry's dtypes, both memory formats, every φ, and one and two steps."""
    other = Affinity() if method == "prototypes" else EXP
    found: list[Any] = []
    if entry.dtype is None or tile_tables.ITEMSIZES[entry.dtype] == 2:
        found += [
            Stage(Affinity(steps=2), "float16", signed=True),
            Stage(other, "bfloat16", channels_last=True),
            Stage(Affinity(), "float16", ragged=True),
        ]
    if entry.dtype is None or tile_tables.ITEMSIZES[entry.dtype] == 4:
        found += [Stage(Affinity(), "float32", signed=True), Stage(other, "float32", channels_last=True)]
    found = found[:2] if entry.kernel == "tiled" else found  # tiled reads the output of prepare, not the features
    if entry.kernel == "prepare":
        return found
    if method != "prototypes":
        return [*found, Stage(CUBED, entry.dtype or "float16")]
    if entry.dtype == "float32":  # of centered features in any dtype
        return [*found, Stage(Affinity(phi="shifted"), "float32"), Stage(CENTERED, "float16")]
    return [*found, Stage(Affinity(phi="shifted", steps=2), "float16")]


def launches(entry: tile_tables.Entry, table: list[tile_tables.Entry]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield a description and a call of each representative launch of an entry."""
    method = next(method for method, parts in PARTS.items() if entry.kernel in parts)
    precisions = (
        [entry.precision] if entry.precision else ["default"] if method == "prototypes" else tile_tables.PRECISIONS
    )
    bounds = dict(entry.bounds)
    # The corner case: one tile holds all channels, and the number of rows is minimal.
    corner = replace(entry, C=max(min(entry.C, 64), bounds.get("min_C", 1)), K=bounds.get("min_K", 1))
    served_elsewhere = {each.phi for each in table if each.phi and entry.phi is None and _key(each) == _key(entry)}
    cases = [(entry, stage) for stage in stages(method, entry)]
    cases += [(corner, stage) for stage in stages(method, entry)[:2]]
    for precision, (entry, stage) in product(precisions, cases):
        if entry.phi not in (None, stage.affinity.phi) or stage.affinity.phi in served_elsewhere:
            continue
        dtype = "float32" if stage.affinity is CENTERED else stage.dtype
        sizes: Any = dict(C=entry.C, L=entry.L, K=entry.K, dtype=dtype, precision=precision, phi=stage.affinity.phi)
        tiles = {part: tile_tables.nearest(table, part, **sizes) for part in PARTS[method]} | {entry.kernel: entry}
        if missing := [part for part, chosen in tiles.items() if chosen is None]:
            raise ValueError(f"entries: expected one of {missing[0]!r} that serves {sizes}, got none; add one")
        configs = {part: chosen.config for part, chosen in tiles.items() if chosen is not None}
        yield (
            f"{stage} {precision} C={entry.C} L={entry.L} K={entry.K}",
            partial(_polish, method, entry, stage, precision, configs),
        )


def _key(entry: tile_tables.Entry) -> tuple[object, ...]:
    """Return what an entry and a more specific one for some φ have in common."""
    return entry.kernel, entry.C, entry.L, entry.K, entry.dtype, entry.precision


def _polish(method: str, entry: tile_tables.Entry, stage: Stage, precision: str, configs: dict[str, Any]) -> None:
    """Call a method's host function on meta tensors."""
    height = next(side for side in range(math.isqrt(entry.L), 0, -1) if entry.L % side == 0)
    H, W = height, entry.L // height - stage.ragged
    meta = partial(torch.empty, device="meta")
    features = meta(2, entry.C, H, W, dtype=getattr(torch, stage.dtype))
    if stage.channels_last:
        features = features.to(memory_format=torch.channels_last)
    arguments = dict(affinity=stage.affinity, align_corners=True, out=meta(2, entry.K, H * W))
    if method == "prototypes":
        arguments |= dict(num_sms=128, **configs)
    elif method == "tiled":
        arguments |= dict(precision=precision, config=configs["tiled"], prepare=configs["prepare"])
    else:
        arguments |= dict(precision=precision, config=configs["resident"])
    if stage.signed and method != "resident":
        arguments |= dict(signed=meta(2, dtype=torch.int32))
    host = importlib.import_module(f"ssa_fast.kernels.{method}")
    host.polish(meta(2, entry.K, H // 2 + 1, W // 2 + 1), features, **arguments)


def fusion_launches() -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield a description and a call of each representative launch of the fusion kernels."""
    maps = [torch.empty(2, 20, side, side, device="meta") for side in (64, 32, 16)]
    options: Any = dict(weights=[1.0, 1.0, 0.5], align_corners=True, out=torch.empty(2, 20, 64, 64, device="meta"))
    for fuse, rescale in (("mean", True), ("max", True), ("sum", False), ("product", True)):
        label = f"{fuse}{' of rescaled maps' if rescale else ''}"
        yield label, partial(fusion.fuse, maps, fuse=fuse, rescale=rescale, **options)


def compile_rows(name: str, calls: Iterable[tuple[str, Callable[[], None]]]) -> list[Row]:
    """Compile the kernels that the calls would launch on target ``name``; return a row for each."""
    rows, seen = [], set()
    for what, call in calls:
        try:
            kernels = compile_launches(TARGETS[name].gpu, call)
        except Exception as error:
            root: BaseException = error
            while root.__cause__:
                root = root.__cause__  # Triton's outer errors quote source code; the root cause has the message
            message = f"{type(error).__name__}: {str(root).strip().splitlines()[-1]}"
            rows.append(Row(name, "?", "", what, problems=[message]))
            continue
        for kernel, config, binary in kernels:
            if binary.hash not in seen:
                seen.add(binary.hash)
                rows.append(inspect_binary(binary, Row(name, kernel, config, what)))
    return rows


def inspect_binary(binary: Any, row: Row) -> Row:
    """Fill ``row`` with the compiler's numbers and the problems they show."""
    target, assembly = TARGETS[row.target], binary.asm
    text = assembly["ptx" if target.gpu.backend == "cuda" else "amdgcn"]
    row.hash, row.shared = binary.hash, binary.metadata.shared
    row.matrix = dict(sorted(Counter(MATRIX.findall(text)).items()))
    if target.gpu.backend == "cuda":
        usage = _usage(assembly["cubin"])
        row.registers, row.spilled, row.local = usage["REG"], usage["STACK"] + usage["LOCAL"], len(LOCAL.findall(text))
    else:
        counts = {name: int(count) for name, count in re.findall(r"\.(\w+):\s+(\d+)$", text, flags=re.MULTILINE)}
        row.registers, row.spilled = counts["vgpr_count"], 4 * (counts["vgpr_spill_count"] + counts["sgpr_spill_count"])
        row.local = counts["private_segment_fixed_size"]
    products, without = len(PRODUCT.findall(assembly["ttir"])), len(WITHOUT_MATRIX.findall(assembly["ttgir"]))
    if row.spilled:
        row.problems.append(f"spills {row.spilled} bytes of registers")
    if row.local:
        row.problems.append("uses local memory")
    if row.shared > target.shared << 10:
        row.problems.append(f"needs {row.shared / 1024:.0f} KiB of shared memory, {row.target} has {target.shared}")
    if without or (products and not row.matrix):
        row.problems.append(f"{without or products} of {products} matrix products without matrix instructions")
    return row


def _usage(cubin: bytes) -> dict[str, int]:
    """Return the REG, STACK and LOCAL counts that cuobjdump reports."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def find_tables(name: str) -> list[Path]:
    """Return the shipped tables that a target's GPUs use: the architecture's, then those of measured GPUs."""
    others = sorted(path for path in tile_tables.SHIPPED.glob("*.json") if path.stem not in tile_tables.TABLES)
    measured = [path for path in others if tile_tables.read(path)["arch"] == name]
    return [tile_tables.SHIPPED / f"{tile_tables.TABLES[name]}.json", *measured]


def compile_targets(names: Sequence[str], jobs: int, table: Path | None = None) -> Iterator[list[Row]]:
    """Yield the rows of each target that this Triton supports, compiled by ``jobs`` processes."""
    work: list[tuple[str, Any]] = []
    for name in (name for name in names if TARGETS[name].since <= TRITON):
        for path in [table] if table else find_tables(name):
            entries = tile_tables.entries(tile_tables.read(path), path)
            work += [(name, partial(launches, entry, entries)) for entry in entries]
        work.append((name, fusion_launches))
    # Warm up before forking: Triton's hash of itself and PyTorch's lazy imports take seconds in each process.
    triton_key()
    torch.linalg.vector_norm(torch.empty(1, 1, device="meta"), ord=math.inf, dim=1)
    results: dict[int, list[Row]] = {}
    remaining = Counter(name for name, _ in work)
    for number, rows in _in_processes([partial(_compile_task, *item) for item in work], jobs):
        name = work[number][0]
        results[number] = rows or [Row(name, "?", "", f"task {number}", problems=["the compiling process died"])]
        remaining[name] -= 1
        if not remaining[name]:
            own = [row for at in sorted(results) if work[at][0] == name for row in results[at]]
            yield list({row.hash or row.label: row for row in reversed(own)}.values())[::-1]


def _compile_task(name: str, calls: Callable[[], Iterable[tuple[str, Callable[[], None]]]], result: Connection) -> None:
    warnings.simplefilter("ignore")
    result.send(compile_rows(name, calls()))


def _in_processes(tasks: Sequence[Callable[[Connection], None]], jobs: int) -> Iterator[tuple[int, Any]]:
    """Run each task in a forked process; yield ``(number, result)``, None for a process that died."""
    context = multiprocessing.get_context("fork")
    waiting = list(enumerate(tasks))[::-1]
    running: dict[Any, Any] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, task = waiting.pop()
            receiving, sender = context.Pipe(duplex=False)
            process = context.Process(target=task, args=(sender,))
            process.start()
            sender.close()
            running[receiving] = number, process
        for ready in wait(list(running)):
            receiver: Any = ready
            number, process = running.pop(receiver)
            try:
                result = receiver.recv()
            except EOFError:
                result = None
            process.join()
            yield number, result
