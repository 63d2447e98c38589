"""Predict a kernel's time on an H100 from its compiled code: a model, not a measurement.

``Kernel`` reads Triton's TTIR: loops with their trip counts, and the bytes and products of each. A loop's bounds are
integers computed from the launch's arguments and the program's number, so they are evaluated, not guessed: no kernel
needs a formula of its own. ``assembly_loops`` finds the same loops in the machine code, where instructions are counted.
``predict`` counts everything in clocks of the busiest multiprocessor (SM), from ``cost_model.H100``'s rates; programs
are taken in order, each by the first SM that is free:

- *memory*: each tensor's bytes once, or what is asked of it if that is less, over the whole GPU's bandwidth;
- *L2*: bytes asked for; a program that asks for more of a tensor than the tensor has finds the rest in its L1;
- *issue*: instructions × warps / 4 schedulers, loop by loop;
- *matrix*: FLOPs of the products as the kernel pads them;
- *latency*: a program's start, and for each turn of a loop a round trip to the L2, shared by the loop's asynchronous
  stages, or its own instructions if they take longer; both where no load is asynchronous.

The largest of the first four takes all of its time; of the others, 1/depth does not overlap with it, depth being the
programs on an SM × the stages in flight. A kernel takes the longer of that and of the latency, and a launch.
"""

from __future__ import annotations

import heapq
import math
import operator
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ssa_fast.ops.cost_model import H100

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.aot_targets import Target

DEFINITION = re.compile(r"^(%[\w$.-]+)(?::\d+)? = (.*)$")
NAME = re.compile(r"%[\w$.-]+(?:#\d+)?")
TILE = [re.compile(r"tensor<([\dx]+)x!tt\.ptr<(\w+)>"), re.compile(r"-> tensor<([\dx]+)x(\w+)>")]
TILE += [re.compile(r"tensor<([\dx]+)x(\w+)>")]
DOT = re.compile(r"tensor<(\d+)x(\d+)x\w+> \* tensor<\d+x(\d+)x\w+>")
LOOP = re.compile(r"scf\.for (%[\w$.-]+) = (%[\w$.-]+(?:#\d+)?) to (%[\w$.-]+(?:#\d+)?) step (%[\w$.-]+(?:#\d+)?)")
ACCESS = re.compile(r"\btt\.(?:experimental_)?(?:descriptor_)?(load|store) (.*)")
BITS = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i1": 8}
PASSED_ON = ("tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.bitcast", "arith.extsi", "tt.make_tensor_")
# arith's operations on integers, less what ends their names: signed or not, and "i".
OPERATIONS: dict[str, Any] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": lambda a, b: int(a / b) if b else 0,
    "rem": lambda a, b: int(math.fmod(a, b)) if b else 0,
    "min": min,
    "max": max,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "shl": operator.lshift,
    "shr": operator.rshift,
}
SAMPLED = 32  # programs whose trip counts are evaluated
SIMULATED = 8192  # programs up to which each is given to a multiprocessor


@dataclass
class Block:
    """A loop's body, or a kernel outside its loops: bytes by pointer argument, and FLOPs, each time it runs."""

    loop: tuple[str, str, str, str] | None = None  # variable, begin, end, step
    loaded: list[tuple[str, int]] = field(default_factory=list)
    stored: list[tuple[str, int]] = field(default_factory=list)
    flops: int = 0
    blocks: list[Block] = field(default_factory=list)

    def walk(self, depth: int = 0) -> Iterator[tuple[Block, int]]:
        """Yield this block and those within it, each with its depth, in the order of the code."""
        yield self, depth
        for block in self.blocks:
            yield from block.walk(depth + 1)


class Kernel:
    """A kernel's TTIR, parsed."""

    def __init__(self, ttir: str) -> None:
        self.definitions: dict[str, str] = {}
        self.parameters: list[str] = []
        self.root = Block()
        used: set[str] = set()
        stack: list[tuple[Block, dict[str, str]]] = [(self.root, {})]  # of each open brace: the block, unique names

        def define(name: str) -> str:
            """Return a name that no other scope has."""
            unique = f"{name}.{len(used)}" if name in used else name
            used.add(unique)
            return unique

        def renamed(found: re.Match[str]) -> str:
            name, mark, part = found[0].partition("#")
            return next((names[name] for _, names in reversed(stack) if name in names), name) + mark + part

        for raw in ttir.splitlines():
            line = (raw if "tt.func" in raw else re.sub(r" loc\(.*$", "", raw)).strip()
            if line.startswith("}") and len(stack) > 1:
                stack.pop()
            block, names = stack[-1]
            defined, body = (found[1], found[2]) if (found := DEFINITION.match(line)) else ("", line)
            stack.append((block, {name: define(name) for name in re.findall(r"(%[\w$.-]+) = (?=%)", body)}))
            body = NAME.sub(renamed, body)
            if defined:
                names[defined] = define(defined)
                self.definitions[names[defined]] = body
            if line.startswith("tt.func"):
                self.parameters = re.findall(r"(%[\w$.-]+): ", line)
            elif loop := LOOP.search(body):
                block.blocks.append(Block(loop.groups()))  # type: ignore[arg-type]
                stack[-1] = block.blocks[-1], stack[-1][1]
            elif not line.endswith("{"):
                stack.pop()
                self._add(block, body)

    def _add(self, block: Block, line: str) -> None:
        if "tt.dot" in line and (shape := DOT.search(line)):
            block.flops += 2 * math.prod(map(int, shape.groups()))
        access = ACCESS.search(line)
        if access and (tile := next(filter(None, (each.search(line) for each in TILE)), None)):
            size = math.prod(int(size) for size in tile[1].split("x")) * BITS.get(tile[2], 32) // 8
            first = NAME.search(access[2])
            found = block.loaded if access[1] == "load" else block.stored
            found.append((self.base(first[0] if first else ""), size))

    def base(self, name: str) -> str:
        """Return the argument that a pointer is computed from, without ``%``; "" if it is not one."""
        for _ in range(99):
            if name in self.parameters:
                return name[1:]
            definition = self.definitions.get(name.split("#")[0], "")
            operand = NAME.search(definition) if definition.startswith(PASSED_ON) else self._carried(name)
            if operand is None:
                return ""
            name = operand[0].rpartition(" ")[2]
        return ""

    def _carried(self, name: str) -> re.Match[str] | None:
        """Return what ends in the first value of a pointer that a loop carries."""
        loops = (each for each in self.definitions.values() if each.startswith("scf.for"))
        start = re.compile(rf"{re.escape(name)} = %[\w$.#-]+")
        return next(filter(None, map(start.search, loops)), None)

    def trips(self, arguments: Mapping[str, int], grid: tuple[int, ...], program: tuple[int, ...]) -> list[int]:
        """Return how often each block of ``root.walk()`` runs in one program, for a launch's integer arguments.

        Raises:
            ValueError: A loop's bounds are not computed from integers; a loaded number counts as 0, a comparison of
                floating-point numbers as false.
        """
        known: dict[str, int | None] = {f"%{name}": value for name, value in arguments.items()}
        counts = [1]

        def visit(block: Block, times: int) -> None:
            for inner in block.blocks:
                assert inner.loop is not None
                variable, *bounds = inner.loop
                values = _Integers(self.definitions, dict(known), grid, program)
                begin, end, step = (values.of(bound) for bound in bounds)
                if begin is None or end is None or not step:
                    raise ValueError(f"loop {variable}: expected bounds computed from integers, got {bounds}")
                once = max(0, -(-(end - begin) // step))
                known[variable] = begin + once // 2 * step  # half-way, for loops within
                counts.append(times * once)
                visit(inner, times * once)

        visit(self.root, 1)
        return counts


class _Integers(NamedTuple):
    """The integers that one program computes."""

    definitions: Mapping[str, str]
    values: dict[str, int | None]
    grid: tuple[int, ...]
    program: tuple[int, ...]

    def of(self, name: str) -> int | None:
        """Return an integer's value; None if it is not computed from arguments alone."""
        if name not in self.values:
            self.values[name] = None  # of a cycle
            self.values[name] = self._compute(self.definitions.get(name, ""))
        return self.values[name]

    def _compute(self, definition: str) -> int | None:
        operation, _, rest = definition.removeprefix("arith.").partition(" ")
        word = rest.split()[0].rstrip(",") if rest else ""
        if operation == "constant":
            return int({"true": "1", "false": "0"}.get(word, word))
        if operation in ("tt.get_program_id", "tt.get_num_programs"):
            by_axis, default = (self.program, 0) if operation.endswith("id") else (self.grid, 1)
            return dict(zip("xyz", by_axis, strict=False)).get(word, default)
        if operation in ("tt.load", "cmpf"):  # a loop for numbers out of range usually has no turn
            return 0
        operands: list[Any] = [self.of(each) for each in NAME.findall(definition)]
        if any(each is None for each in operands):
            return None
        if operation in ("extsi", "extui", "trunci", "index_cast"):
            return int(operands[0])
        if operation == "select":
            return int(operands[1] if operands[0] else operands[2])
        if operation == "cmpi":  # "slt": signed, less than
            return int(getattr(operator, word.lstrip("su"))(*operands))
        known = OPERATIONS.get(re.sub(r"[su]?i$", "", operation))
        return int(known(*operands)) if known and len(operands) == 2 else None


@dataclass
class Loop:
    """A loop of the machine code: its own body, inner loops excluded; ``loaded``: bytes that a thread loads a turn."""

    depth: int
    instructions: int
    matrix: int
    asynchronous: bool
    loaded: int = 0


@dataclass
class Row:
    """One compiled kernel; spilled and shared memory in bytes, local memory in accesses (AMD: bytes)."""

    target: str
    kernel: str
    config: str
    what: str
    warps: int = 4
    uses: int = 1  # launches that were recorded with it
    registers: int = 0
    spilled: int = 0
    local: int = 0
    shared: int = 0
    matrix: dict[str, int] = field(default_factory=dict)
    outside: int = 0
    loops: list[Loop] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    predicted: dict[str, float] = field(default_factory=dict)  # seconds of its launches, by case
    ttir: str = ""

    @property
    def label(self) -> str:
        """Return the name of the row within its target."""
        return f"{self.kernel} {self.config} {self.what}"

    @property
    def numbers(self) -> list[Any]:
        """Return the numbers that the golden file records."""
        loops = [[loop.instructions, loop.matrix] for loop in self.loops]
        return [self.registers, self.spilled, self.local, self.shared, self.matrix, loops]


class Launch(NamedTuple):
    """A recorded launch; ``key`` is its specialization."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    key: tuple[str, ...]


SASS = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(.*)$")
SASS_MATRIX = ("HMMA", "HGMMA", "IMMA", "UTCHMMA", "UTCQMMA", "QGMMA", "DMMA")
AMD = re.compile(r"^\t([a-z][a-z0-9_]*)(.*)$")
SHORTEST = 12  # instructions of a loop that does work: shorter ones wait for a barrier


def assembly_loops(text: str) -> tuple[int, list[Loop]]:
    """Return the instructions outside all loops, and the loops in the order of the code, of SASS or AMD assembly."""
    code: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"^\.?(L_x_\d+|LBB\d+_\d+):", line):
            labels[label[1]] = len(code)
        elif (found := SASS.match(line) or AMD.match(line)) and found[1] not in ("NOP", "s_nop"):
            code.append((found[1], found[2]))
    spans = []
    for at, (name, operands) in enumerate(code):
        if name.startswith(("BRA", "s_cbranch", "s_branch")) and (to := re.search(r"(L_x_\d+|LBB\d+_\d+)", operands)):
            start = labels.get(to[1], at + 1)
            if at - start + 1 >= SHORTEST:
                spans.append((start, at + 1))
    starts = {start: max(end for first, end in spans if first == start) for start, _ in spans}
    ordered = sorted(starts.items(), key=lambda span: (span[0], -span[1]))
    loops, covered = [], 0
    for start, end in ordered:
        outer = [span for span in ordered if span != (start, end) and span[0] <= start and end <= span[1]]
        inner = [span for span in ordered if span != (start, end) and start <= span[0] and span[1] <= end]
        own = set(range(start, end)) - {at for first, last in inner for at in range(first, last)}
        covered += len(own)
        names = [code[at][0] for at in sorted(own)]
        matrix = sum(name.startswith(SASS_MATRIX) or "mfma" in name for name in names)
        copies = any(name.startswith(("LDGSTS", "UTMALDG", "UBLKCP")) for name in names)
        loops.append(Loop(len(outer), len(own), matrix, copies, sum(map(_loaded, names))))
    return len(code) - covered, loops


def _loaded(name: str) -> int:
    """Return the bytes that a thread loads from memory by one instruction of SASS."""
    if not name.startswith("LDG."):
        return 0
    return next((size for suffix, size in ((".128", 16), (".64", 8), ("16", 2), ("8", 1)) if name.endswith(suffix)), 4)


class Prediction(NamedTuple):
    """The time of one launch, and the largest term of the model in it."""

    seconds: float
    bound: str


def match_loops(kernel: Kernel, loops: list[Loop], warps: int) -> list[tuple[Loop | None, int]]:
    """Return the machine code's loop of each of the kernel's blocks, and how many turns one of its turns makes.

    The root and what is not found have no loop. Where there are more loops than in the source, compilers have unrolled
    some and added a remainder: the longest of a depth count, and the bytes that a turn loads tell its turns.
    """
    blocks = list(kernel.root.walk())
    matched: list[tuple[Loop | None, int]] = [(None, 1)] * len(blocks)
    for depth in {depth for _, depth in blocks if depth}:
        wanted = [at for at, (_, each) in enumerate(blocks) if each == depth]
        found = [loop for loop in loops if loop.depth == depth - 1]
        longest = sorted(found, key=lambda loop: -loop.instructions)[: len(wanted)]
        for at, loop in zip(wanted, [loop for loop in found if loop in longest], strict=False):
            turn = sum(size for _, size in blocks[at][0].loaded)
            unrolled = loop.loaded * 32 * warps // turn if turn and len(found) > len(wanted) else 1
            matched[at] = loop, max(1, unrolled)
    return matched


def predict(kernel: Kernel, row: Row, launch: Launch, target: Target) -> Prediction:
    """Predict one launch of a compiled kernel."""
    integers = {name: value for name, value in launch.arguments.items() if isinstance(value, int)}
    sizes = {name: each.numel() * each.itemsize for name, each in launch.arguments.items() if hasattr(each, "numel")}
    occupancy = target.occupancy(row.registers, row.shared, row.warps)
    blocks = [block for block, _ in kernel.root.walk()]
    matched = match_loops(kernel, row.loops, row.warps)
    programs, grid = math.prod(launch.grid), launch.grid
    sample = [(programs - 1) * n // (SAMPLED - 1) for n in range(SAMPLED)] if programs > SAMPLED else range(programs)
    counted = [kernel.trips(integers, grid, (at % grid[0], at // grid[0] % (*grid, 1)[1])) for at in sample]
    mean = [sum(times) / len(counted) for times in zip(*counted, strict=True)]
    stages = max(1, launch.arguments.get("num_stages", 3) if any(loop.asynchronous for loop in row.loops) else 1)
    issue, matrix, chains = [], [], []  # of each sampled program, in clocks
    for times in counted:
        inside = (n * loop.instructions / m for n, (loop, m) in zip(times, matched, strict=True) if loop)
        issue.append((row.outside + sum(inside)) * row.warps / H100.schedulers)
        matrix.append(sum(n * block.flops for n, block in zip(times, blocks, strict=True)) / H100.flops_per_clock)
        turns = sum(n / m for n, block, (_, m) in list(zip(times, blocks, matched, strict=True))[1:] if block.loaded)
        waiting = turns * H100.latency / max(1, stages - 1)
        chains.append(H100.start + (max(waiting, issue[-1]) if stages > 1 else waiting + issue[-1]))
    loaded, memory = _traffic([block.loaded for block in blocks], mean, programs, sizes)
    stored, written = _traffic([block.stored for block in blocks], mean, programs, sizes)
    clocks = {
        "memory": (memory + written) / H100.bytes_per_clock / H100.num_sms,
        "L2": (loaded + stored) / H100.l2_bytes_per_clock / H100.num_sms,
        "issue": most_loaded(issue, programs, target.num_sms),
        "matrix": most_loaded(matrix, programs, target.num_sms),
    }
    most, depth = max(clocks.values()), min(occupancy, -(-programs // target.num_sms)) * stages
    busy = most + (sum(clocks.values()) - most) / depth
    clocks["latency"] = most_loaded(chains, programs, target.num_sms * occupancy)
    seconds = max(busy, clocks["latency"]) / H100.clock + H100.launch
    return Prediction(seconds, max(clocks, key=clocks.__getitem__))


def most_loaded(sampled: list[float], programs: int, servers: int) -> float:
    """Return the load of the busiest of ``servers`` that take ``programs`` in order, each when it is free.

    ``sampled`` are the loads of evenly spaced programs, the first and the last among them.
    """
    if programs > SIMULATED:  # more than so many that the last ones matter little
        return sum(sampled) / len(sampled) * programs / servers
    loads = [0.0] * servers
    for at in range(programs):
        nearest = round(at * (len(sampled) - 1) / max(1, programs - 1))
        heapq.heapreplace(loads, loads[0] + sampled[nearest])
    return max(loads)


def _traffic(
    accesses: Sequence[list[tuple[str, int]]], times: Sequence[float], programs: int, tensors: Mapping[str, int]
) -> tuple[float, float]:
    """Return the bytes that programs ask the L2 for, and those that go through the memory."""
    asked: Counter[str] = Counter()
    for n, block in zip(times, accesses, strict=True):
        for name, size in block:
            asked[name] += n * size  # type: ignore[assignment]
    l2 = sum(min(size, tensors.get(name, size)) * programs for name, size in asked.items())
    return l2, sum(min(size * programs, tensors.get(name, size * programs)) for name, size in asked.items())
