"""Compile every shipped kernel for GPUs that need not be present, and read what the compiler made of it.

The host functions run unchanged on meta tensors; only the launch is replaced: it is recorded, and each distinct
specialization (kernel, constants, types, divisibility) is compiled once for the target. The compiled kernels are
therefore exactly those that would be launched.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bench import aot_cases
from bench.aot_targets import TARGETS
from bench.workers import die_with
from ssa_fast.ops import gpu_info, tile_tables

if TYPE_CHECKING:
    from collections.abc import Callable

    Key: TypeAlias = tuple[str, str, str]  # kernel, config and what of a row
    Compile: TypeAlias = Callable[[], Any]

VERSION = triton.__version__.split("+")[0]
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MATRIX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_s?mfmac?_f32_\w+)")
LOCAL = re.compile(r"\b(?:ld|st)\.local\b")
# A product compiled to ordinary arithmetic: its result has the layout of elementwise tiles.
WITHOUT_MATRIX = re.compile(r"\btt\.dot\b.*-> tensor<[^#>]*#blocked")
PRODUCT = re.compile(r"\btt\.dot\b")
# Of machine code, NVIDIA's or AMD's.
INSTRUCTION = re.compile(r"^(?:\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?|\t)([A-Za-z].*)")
LABEL = re.compile(r"\.(?:L_x_\d+|LBB\d+_\d+)\b")
BRANCHES, NOTHING = ("BRA", "s_cbranch", "s_branch"), ("NOP", "s_nop")
PRODUCTS = ("HMMA", "HGMMA", "IMMA", "UTCHMMA", "UTCQMMA", "QGMMA", "DMMA", "v_mfma", "v_smfmac")
SHORTEST = 12  # instructions of a loop that does work: shorter ones wait for a barrier


@dataclass
class Row:
    """One compiled kernel; spilled and shared memory in bytes, local memory in accesses (AMD: bytes)."""

    target: str
    kernel: str
    config: str  # tiles and flags
    what: str  # types and divisibility
    registers: int = 0
    spilled: int = 0
    local: int = 0
    shared: int = 0
    per_sm: int = 0  # programs that run at a time on a multiprocessor
    matrix: dict[str, int] = field(default_factory=dict)
    loops: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Return the name of the row within its target."""
        return f"{self.kernel} {self.config} {self.what}"


# ---- What would be launched ----


def find_tables(name: str) -> list[Path]:
    """Return the shipped tables that a target's GPUs use: the architecture's, and those of measured GPUs."""
    paths = sorted(tile_tables.SHIPPED.glob("*.json"))
    return [path for path in paths if path.stem == tile_tables.TABLES[name] or tile_tables.read(path)["arch"] == name]


@functools.cache
def recorded(name: str, path: Path) -> dict[Key, Compile]:
    """Return all that a target's GPUs with a table launch: what compiles each distinct kernel."""
    activate(name)
    table = tile_tables.entries(tile_tables.read(path), path)
    tile_tables._tables = lambda stem: [table]  # and no other, whatever the user has measured
    found: dict[Key, Compile] = {}
    for call in aot_cases.calls(gpu_info.Gpu(path.stem, name, TARGETS[name].num_sms), table):
        found |= record(call)
    return found


def activate(name: str) -> None:
    """Make a GPU of a target the active one of this process, for good: much of it stays cached."""
    target = TARGETS[name]
    gpu = GPUTarget(target.backend, target.arch, 32 if target.backend == "cuda" else 64)
    no_gpu = {"get_current_target": lambda: gpu, "get_current_device": lambda: 0, "get_current_stream": lambda _: 0}
    driver.set_active(SimpleNamespace(**no_gpu))
    torch.version.hip = "0" if target.backend == "hip" else None
    warnings.simplefilter("ignore")


def record(call: Callable[[], None]) -> dict[Key, Compile]:
    """Run a host function on meta tensors; return what compiles each kernel that it would launch on the active GPU."""
    found: dict[Key, Compile] = {}
    compile_or_launch = JITFunction.run

    def run(kernel: Any, *_: Any, grid: Any, warmup: bool = False, **arguments: Any) -> None:
        del warmup
        compiles = functools.partial(compile_or_launch, kernel, grid=grid, warmup=True, **arguments)
        found.setdefault(specialization(kernel, arguments), compiles)

    with mock.patch.object(JITFunction, "run", run):
        call()
    return found


def specialization(kernel: Any, arguments: dict[str, Any]) -> Key:
    """Return what decides which compiled kernel a launch uses: constants; types, values of 1, divisibility by 16."""
    config, types, divisible, ones, absent = ([] for _ in range(5))
    for parameter in kernel.params:
        name, value = parameter.name.removesuffix("_ptr"), arguments[parameter.name]
        if parameter.is_constexpr:
            config += [] if value is None or value is False else [name if value is True else f"{name}={value}"]
        elif value is None:
            absent.append(name)
        elif isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            large = bool(torch.version.hip) and value.untyped_storage().nbytes() >= 2**31  # AMD: no buffer operations
            types += [f"{name}:{dtype}{' large' * large}"] if large or dtype not in ("int32", "float32") else []
        elif isinstance(value, int):
            types += [f"{name}:i64"] if abs(value) >= 2**31 else []
            if value == 1 and not parameter.do_not_specialize:
                ones.append(name)
            elif value % 16 == 0 and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment):
                divisible.append(name)
    config += [f"{name[4:]}={arguments[name]}" for name in ("num_warps", "num_stages") if name in arguments]
    lists = (("16 |", divisible), ("1 =", ones), ("without", absent))
    what = types + [f"{what} {' '.join(names)}" for what, names in lists if names]
    return kernel.fn.__name__, " ".join(config), "; ".join(what)


# ---- What the compiler makes of it ----


def compile_table(name: str, path: Path) -> list[Row]:
    """Compile each distinct kernel that a target's GPUs with a table launch, on all cores; return their rows."""
    rows = []
    with forked(os.cpu_count() or 1) as pool:
        keys = pool.submit(_keys, name, path).result()
        for key, compiled in [(key, pool.submit(_compile, name, path, key)) for key in keys]:
            try:
                rows.append(compiled.result())
            except BrokenProcessPool:
                rows.append(Row(name, *key, problems=["the compiling process died"]))
    return rows


def forked(jobs: int) -> ProcessPoolExecutor:
    """Return processes that have what this one has now, and end with it."""
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(jobs, context, initializer=die_with, initargs=(os.getpid(),))


def _keys(name: str, path: Path) -> list[Key]:
    return list(recorded(name, path))


def _compile(name: str, path: Path, key: Key) -> Row:
    return compile_row(name, key, recorded(name, path)[key])  # recorded anew in each process: no launch can be sent


def compile_row(name: str, key: Key, compiles: Compile) -> Row:
    """Compile a kernel for the target that is active; return what came of it."""
    row = Row(name, *key)
    try:
        binary = compiles()
    except Exception as error:
        root: BaseException = error
        while root.__cause__:
            root = root.__cause__  # Triton's outer errors quote source code; the root cause has the message
        row.problems = [f"{type(error).__name__}: {str(root).strip().splitlines()[-1]}"]
    else:
        inspect_binary(binary, row)
    return row


def inspect_binary(binary: Any, row: Row) -> None:
    """Fill ``row`` with the compiler's numbers and the problems they show."""
    target, assembly = TARGETS[row.target], binary.asm
    text = code = assembly["ptx" if target.backend == "cuda" else "amdgcn"]
    if target.backend == "cuda":
        usage, code = _read_cubin(assembly["cubin"])
        counts = {name: int(count) for name, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
        row.registers, row.spilled = counts["REG"], counts["STACK"] + counts["LOCAL"]
        row.local = len(LOCAL.findall(text))
    else:
        counts = {name: int(count) for name, count in re.findall(r"\.(\w+):\s+(\d+)$", text, flags=re.MULTILINE)}
        row.registers, row.spilled = counts["vgpr_count"], 4 * (counts["vgpr_spill_count"] + counts["sgpr_spill_count"])
        row.local = counts["private_segment_fixed_size"]
    row.shared, row.loops = binary.metadata.shared, find_loops(code)
    row.matrix = dict(sorted(Counter(MATRIX.findall(text)).items()))
    row.per_sm = target.occupancy(row.registers, row.shared, binary.metadata.num_warps)
    products, without = len(PRODUCT.findall(assembly["ttir"])), len(WITHOUT_MATRIX.findall(assembly["ttgir"]))
    if row.spilled:
        row.problems.append(f"spills {row.spilled} bytes of registers")
    if row.local:
        row.problems.append("uses local memory")
    if row.shared > target.shared << 10:
        row.problems.append(f"needs {row.shared / 1024:.0f} KiB of shared memory, {row.target} has {target.shared}")
    if without or (products and not row.matrix):
        row.problems.append(f"{without or products} of {products} matrix products without matrix instructions")


def _read_cubin(cubin: bytes) -> list[str]:
    """Return the resources that a binary uses as cuobjdump prints them, and its code as nvdisasm does."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = (f"{BIN}/cuobjdump", "-res-usage", file.name), (f"{BIN}/nvdisasm", "-c", file.name)
        return [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]


def find_loops(assembly: str) -> list[tuple[int, int]]:
    """Return the instructions and matrix instructions of each loop, inner loops excluded, in the order of the code."""
    code: list[str] = []
    labels: dict[str, int] = {}
    ends: dict[int, int] = {}  # of each loop, by its start
    for line in assembly.splitlines():
        if label := LABEL.match(line):
            labels[label[0]] = len(code)
        elif (found := INSTRUCTION.match(line)) and not found[1].startswith(NOTHING):
            code.append(found[1])
    for at, instruction in enumerate(code):
        if instruction.startswith(BRANCHES) and (to := LABEL.search(instruction)):
            start = labels.get(to[0], at)
            if at + 1 - start >= SHORTEST:
                ends[start] = at + 1
    loops = []
    for start, end in sorted(ends.items()):
        inner = (range(*span) for span in ends.items() if start <= span[0] and span[1] <= end and span != (start, end))
        own = set(range(start, end)).difference(*inner)
        loops.append((len(own), sum(code[at].startswith(PRODUCTS) for at in own)))
    return loops
