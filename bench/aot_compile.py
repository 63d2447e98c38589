"""Compile every shipped kernel for GPUs that need not be present, and check the compiler's output.

The host functions run unchanged on meta tensors; only the launch is replaced: it is recorded, and each distinct
specialization (kernel, constants, types, divisibility) is compiled once for the target. The compiled kernels are
therefore exactly those that would be launched.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

try:
    from triton.runtime.cache import triton_key
except ImportError:  # Triton before 3.4
    from triton.compiler.compiler import triton_key

from bench.aot_model import Launch, Row, assembly_loops
from bench.aot_targets import TARGETS, Target
from bench.workers import die_with
from ssa_fast.ops import gpu_info, tile_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

VERSION = triton.__version__.split("+")[0]
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MATRIX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_s?mfmac?_f32_\w+)")
LOCAL = re.compile(r"\b(?:ld|st)\.local\b")
# A product compiled to ordinary arithmetic: its result has the layout of elementwise tiles.
WITHOUT_MATRIX = re.compile(r"\btt\.dot\b.*-> tensor<[^#>]*#blocked")
PRODUCT = re.compile(r"\btt\.dot\b")
NO_KERNEL = ("empty", "view", "expand", "slice", "select", "as_strided", "detach", "alias", "permute", "transpose")


class Recorded(NamedTuple):
    """The launches of a call, and PyTorch's operations between them, which launch kernels of their own."""

    launches: list[Launch]
    others: int


def activate(target: Target) -> None:
    """Make ``target`` the active GPU of this process, for good.

    Raises:
        RuntimeError: ``TRITON_INTERPRET`` is set.
    """
    if gpu_info.interpreting():
        raise RuntimeError("TRITON_INTERPRET is set, but interpreted kernels cannot be compiled; unset it")
    gpu = GPUTarget(target.backend, target.arch, 32 if target.backend == "cuda" else 64)
    no_gpu = SimpleNamespace(
        get_current_target=lambda: gpu, get_current_device=lambda: 0, get_current_stream=lambda device=None: 0
    )
    driver.set_active(no_gpu)
    torch.version.hip = "0" if target.backend == "hip" else None


class _Operations(TorchDispatchMode):
    """Count operations of PyTorch that run a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += not any(word in name for word in NO_KERNEL)
        return func(*args, **(kwargs or {}))


def record(call: Callable[[], None]) -> Recorded:
    """Run a host function on meta tensors; return what it would launch on the active GPU."""
    launches: list[Launch] = []

    def run(self: Any, *_: Any, grid: Any, warmup: bool = False, **arguments: Any) -> None:
        del warmup
        launches.append(Launch(self, tuple(grid), arguments, specialization(self, arguments)))

    original, JITFunction.run = JITFunction.run, run
    try:
        with _Operations() as operations:
            call()
    finally:
        JITFunction.run = original
    return Recorded(launches, operations.count)


def specialization(kernel: Any, arguments: dict[str, Any]) -> tuple[str, ...]:
    """Return what decides which compiled kernel a launch uses: constants, types, values of 1, divisibility by 16."""
    found = [kernel.fn.__name__]
    for parameter in kernel.params:
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            kind = f"={value}"
        elif isinstance(value, torch.Tensor):
            small = "" if value.untyped_storage().nbytes() < 2**31 else " large"  # AMD: buffer operations
            kind = f":{str(value.dtype).removeprefix('torch.')}{small if torch.version.hip else ''}"
        elif isinstance(value, int) and not isinstance(value, bool):
            kind = ":i64" if abs(value) >= 2**31 else ":i32"
            if not parameter.do_not_specialize:
                divisible = value % 16 == 0 and not parameter.do_not_specialize_on_alignment
                kind += "=1" if value == 1 else "%16" if divisible else ""
        else:
            kind = f":{type(value).__name__}"
        found.append(parameter.name + kind)
    options = {name: arguments[name] for name in ("num_warps", "num_stages") if name in arguments}
    return (*found, *(f"{name[4:]}={value}" for name, value in options.items()))


def describe(launch: Launch) -> tuple[str, str]:
    """Return the tiles and enabled flags of a launch, and the types and divisibility it was compiled for."""
    constants = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr} | {"warps", "stages"}
    config: list[str] = []
    types: list[str] = []
    divisible, ones, absent = list[str](), list[str](), list[str]()
    for item in launch.key[1:]:
        name, kind = re.fullmatch(r"(\w+?)(?:_ptr)?([:=].*)", item).groups()  # type: ignore[union-attr]
        if name in constants:
            config += [name] if kind == "=True" else [item] if kind not in ("=False", "=None") else []
        elif kind == "=None":
            absent.append(name)
        elif kind.endswith("=1"):
            ones.append(name)
        elif kind.endswith("%16"):
            divisible.append(name)
        elif kind not in (":i32", ":int32", ":float32", ":float"):
            types.append(name + kind)
    lists = (("16 |", divisible), ("1 =", ones), ("without", absent))
    return " ".join(config), "; ".join(types + [f"{what} {' '.join(names)}" for what, names in lists if names])


def compile_row(name: str, launch: Launch, uses: int) -> Row:
    """Compile a launch, which was recorded ``uses`` times, for target ``name``; return what came of it."""
    warnings.simplefilter("ignore")
    activate(TARGETS[name])
    warps = launch.arguments.get("num_warps", 4)
    row = Row(name, launch.kernel.fn.__name__, *describe(launch), warps, uses)
    try:
        binary = launch.kernel.run(grid=launch.grid, warmup=True, **launch.arguments)
    except Exception as error:
        root: BaseException = error
        while root.__cause__:
            root = root.__cause__  # Triton's outer errors quote source code; the root cause has the message
        row.problems = [f"{type(error).__name__}: {str(root).strip().splitlines()[-1]}"]
    else:
        inspect_binary(binary, row)
        row.ttir = _name_parameters(row.ttir, launch)
    return row


def _name_parameters(ttir: str, launch: Launch) -> str:
    """Give a kernel's parameters their names where Triton numbers them, as 3.2 does; a value of 1 is no parameter."""
    given = zip(launch.kernel.params, launch.key[1:], strict=False)
    names = [each.name for each, item in given if not (each.is_constexpr or item.endswith(("=None", "=1")))]
    return re.sub(r"%arg(\d+)\b", lambda at: f"%{names[int(at[1])]}" if int(at[1]) < len(names) else at[0], ttir)


def inspect_binary(binary: Any, row: Row) -> None:
    """Fill ``row`` with the compiler's numbers and the problems they show."""
    target, assembly = TARGETS[row.target], binary.asm
    text = assembly["ptx" if target.backend == "cuda" else "amdgcn"]
    row.shared, row.ttir = binary.metadata.shared, assembly["ttir"]
    row.matrix = dict(sorted(Counter(MATRIX.findall(text)).items()))
    if target.backend == "cuda":
        usage, sass = _read_cubin(assembly["cubin"])
        row.registers, row.spilled, row.local = usage["REG"], usage["STACK"] + usage["LOCAL"], len(LOCAL.findall(text))
        row.outside, row.loops = assembly_loops(sass)
    else:
        counts = {name: int(count) for name, count in re.findall(r"\.(\w+):\s+(\d+)$", text, flags=re.MULTILINE)}
        row.registers, row.spilled = counts["vgpr_count"], 4 * (counts["vgpr_spill_count"] + counts["sgpr_spill_count"])
        row.local = counts["private_segment_fixed_size"]
        row.outside, row.loops = assembly_loops(text)
    products, without = len(PRODUCT.findall(assembly["ttir"])), len(WITHOUT_MATRIX.findall(assembly["ttgir"]))
    if row.spilled:
        row.problems.append(f"spills {row.spilled} bytes of registers")
    if row.local:
        row.problems.append("uses local memory")
    if row.shared > target.shared << 10:
        row.problems.append(f"needs {row.shared / 1024:.0f} KiB of shared memory, {row.target} has {target.shared}")
    if without or (products and not row.matrix):
        row.problems.append(f"{without or products} of {products} matrix products without matrix instructions")


def _read_cubin(cubin: bytes) -> tuple[dict[str, int], str]:
    """Return the REG, STACK and LOCAL counts that cuobjdump reports, and nvdisasm's text, "" if it cannot read it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = partial(subprocess.run, capture_output=True, text=True)
        usage = run([BIN / "cuobjdump", "-res-usage", file.name], check=True).stdout
        sass = run([BIN / "nvdisasm", "-c", file.name], check=False)
    found = re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)
    return {name: int(number) for name, number in found}, "" if sass.returncode else sass.stdout


def find_tables(name: str) -> list[Path]:
    """Return the shipped tables that a target's GPUs use: the architecture's, then those of measured GPUs."""
    others = sorted(path for path in tile_tables.SHIPPED.glob("*.json") if path.stem not in tile_tables.TABLES)
    measured = [path for path in others if tile_tables.read(path)["arch"] == name]
    return [tile_tables.SHIPPED / f"{tile_tables.TABLES[name]}.json", *measured]


def warm_up() -> None:
    """Do before forking what takes seconds in each process: Triton's hash of itself and PyTorch's lazy imports."""
    triton_key()
    torch.linalg.vector_norm(torch.empty(1, 1, device="meta"), ord=math.inf, dim=1)


_launches: list[tuple[str, Launch, int]] = []  # what forked processes find here: a recorded launch cannot be sent


def _compile(at: int) -> Row:
    return compile_row(*_launches[at])


def compile_distinct(name: str, launches: Sequence[Launch], jobs: int) -> dict[tuple[str, ...], Row]:
    """Compile each distinct specialization once, in ``jobs`` processes; return its row by its key."""
    uses = Counter(launch.key for launch in launches)
    first = {launch.key: launch for launch in reversed(launches)}
    _launches[:] = [(name, first[key], count) for key, count in uses.items()]
    rows = {}
    with forked(jobs) as pool:
        for (key, count), compiled in zip(
            uses.items(), [pool.submit(_compile, at) for at in range(len(uses))], strict=True
        ):
            try:
                rows[key] = compiled.result()
            except BrokenProcessPool:
                why = "the compiling process died"
                rows[key] = Row(name, key[0], *describe(first[key]), uses=count, problems=[why])
    return rows


def forked(jobs: int) -> ProcessPoolExecutor:
    """Return processes that have what this one has now, and end with it."""
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(jobs, context, initializer=die_with, initargs=(os.getpid(),))
