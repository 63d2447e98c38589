"""Read a compiled kernel: loops with their trip counts, and the bytes and products of each, from Triton's TTIR.

A loop's bounds are integers computed from the launch's arguments and the program's number, so they are evaluated, not
guessed: no kernel needs a formula of its own, and a changed kernel is read as it is. ``assembly_loops`` finds the same
loops in the machine code, where instructions are counted.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFINITION = re.compile(r"^(%[\w$.-]+)(?::\d+)? = (.*)$")
NAME = re.compile(r"%[\w$.-]+(?:#\d+)?")
POINTERS = re.compile(r"tensor<([\dx]+)x!tt\.ptr<(\w+)>")
TILE = re.compile(r"-> tensor<([\dx]+)x(\w+)>")
DOT = re.compile(r"tensor<(\d+)x(\d+)x\w+> \* tensor<\d+x(\d+)x\w+>")
LOOP = re.compile(r"scf\.for (%[\w$.-]+) = (%[\w$.-]+(?:#\d+)?) to (%[\w$.-]+(?:#\d+)?) step (%[\w$.-]+(?:#\d+)?)")
BITS = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i1": 8}
PASSED_ON = ("tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.bitcast", "arith.extsi", "tt.make_tensor_")

OPERATIONS: dict[str, Any] = {
    "addi": lambda a, b: a + b,
    "subi": lambda a, b: a - b,
    "muli": lambda a, b: a * b,
    "divsi": lambda a, b: int(a / b) if b else 0,
    "divui": lambda a, b: a // b if b else 0,
    "remsi": lambda a, b: int(math.fmod(a, b)) if b else 0,
    "remui": lambda a, b: a % b if b else 0,
    "minsi": min,
    "maxsi": max,
    "minui": min,
    "maxui": max,
    "andi": lambda a, b: a & b,
    "ori": lambda a, b: a | b,
    "xori": lambda a, b: a ^ b,
    "shli": lambda a, b: a << b,
    "shrsi": lambda a, b: a >> b,
    "shrui": lambda a, b: a >> b,
}
COMPARISONS: dict[str, Any] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "slt": lambda a, b: a < b,
    "sle": lambda a, b: a <= b,
    "sgt": lambda a, b: a > b,
    "sge": lambda a, b: a >= b,
    "ult": lambda a, b: a < b,
    "ule": lambda a, b: a <= b,
    "ugt": lambda a, b: a > b,
    "uge": lambda a, b: a >= b,
}


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
        open_blocks: list[Block | None] = []  # one per brace; None where it opens no loop
        stack = [self.root]
        for line in _unique_names(ttir):
            if line.startswith("tt.func"):
                self.parameters = re.findall(r"(%[\w$.-]+): ", line)
                continue
            if found := DEFINITION.match(line):
                self.definitions[found[1]] = found[2]
            if line.startswith("}") and open_blocks:
                if open_blocks.pop() is not None:
                    stack.pop()
                if not line.endswith("{"):
                    continue
            if loop := LOOP.search(line):
                block = Block(loop.groups())  # type: ignore[arg-type]
                stack[-1].blocks.append(block)
                stack.append(block)
                open_blocks.append(block)
            elif line.endswith("{") and not line.startswith("module"):
                open_blocks.append(None)
            else:
                self._add(stack[-1], line)

    def _add(self, block: Block, line: str) -> None:
        if "tt.dot" in line and (shape := DOT.search(line)):
            block.flops += 2 * math.prod(map(int, shape.groups()))
        for what, found in (("load", block.loaded), ("store", block.stored)):
            if re.search(rf"\btt\.(?:experimental_)?(?:descriptor_)?{what} ", line):
                tile = POINTERS.search(line) or TILE.search(line) or re.search(r"tensor<([\dx]+)x(\w+)>", line)
                if tile:
                    count = math.prod(int(size) for size in tile[1].split("x"))
                    first = NAME.search(line.split(f"{what} ", 1)[1])
                    found.append((self.base(first[0] if first else ""), count * BITS.get(tile[2], 32) // 8))

    def base(self, name: str) -> str:
        """Return the argument that a pointer is computed from, without ``%``; "" if it is not one."""
        for _ in range(99):
            if name in self.parameters:
                return name[1:]
            definition = self.definitions.get(name.split("#")[0], "")
            if not definition.startswith(PASSED_ON):
                return self._carried(name)
            operand = NAME.search(definition)
            if operand is None:
                return ""
            name = operand[0]
        return ""

    def _carried(self, name: str) -> str:
        """Return the argument behind a pointer that a loop carries."""
        for definition in self.definitions.values():
            if definition.startswith("scf.for") and (
                start := re.search(rf"{re.escape(name)} = (%[\w$.#-]+)", definition)
            ):
                return self.base(start[1])
        return ""

    def trips(self, arguments: Mapping[str, int], grid: tuple[int, ...], program: tuple[int, ...]) -> list[int]:
        """Return how often each block of ``root.walk()`` runs in one program, for a launch's integer arguments.

        Raises:
            ValueError: A loop's bounds are not computed from integers; a loaded number counts as 0, a comparison of
                floating-point numbers as false.
        """
        values: dict[str, int | None] = {f"%{name}": value for name, value in arguments.items()}
        counts = [1]

        def visit(block: Block, times: int) -> None:
            for inner in block.blocks:
                assert inner.loop is not None
                variable, *bounds = inner.loop
                begin, end, step = (self._evaluate(bound, values, grid, program) for bound in bounds)
                if begin is None or end is None or not step:
                    raise ValueError(f"loop {variable}: expected bounds computed from integers, got {bounds}")
                once = max(0, -(-(end - begin) // step))
                for stale in [name for name in values if name not in known]:
                    del values[stale]
                values[variable] = begin + once // 2 * step
                known.add(variable)
                counts.append(times * once)
                visit(inner, times * once)

        known = set(values)
        visit(self.root, 1)
        return counts

    def _evaluate(
        self, name: str, values: dict[str, int | None], grid: tuple[int, ...], program: tuple[int, ...]
    ) -> int | None:
        """Return an integer's value; None if it is not computed from arguments alone."""
        if name not in values:
            values[name] = None  # of a cycle
            values[name] = self._compute(self.definitions.get(name, ""), values, grid, program)
        return values[name]

    def _compute(
        self, definition: str, values: dict[str, int | None], grid: tuple[int, ...], program: tuple[int, ...]
    ) -> int | None:
        operation = definition.split(" ", 1)[0].removeprefix("arith.")
        if operation == "constant":
            value = definition.split()[1]
            return {"true": 1, "false": 0}.get(value) if value in ("true", "false") else int(value)
        if operation in ("tt.get_program_id", "tt.get_num_programs"):
            values_of, default = (program, 0) if operation.endswith("id") else (grid, 1)
            axis = "xyz".index(definition.split()[1])
            return values_of[axis] if axis < len(values_of) else default
        if operation in ("tt.load", "cmpf"):  # a loop for numbers out of range usually has no turn
            return 0
        operands = [self._evaluate(each, values, grid, program) for each in NAME.findall(definition)]
        if any(each is None for each in operands):
            return None
        if operation in ("extsi", "extui", "trunci", "index_cast"):
            return operands[0]
        if operation == "select":
            return operands[1] if operands[0] else operands[2]
        if operation == "cmpi":
            return int(COMPARISONS[definition.split()[1].rstrip(",")](*operands))
        known = OPERATIONS.get(operation)
        return int(known(*operands)) if known and len(operands) == 2 else None


def _unique_names(ttir: str) -> Iterator[str]:
    """Yield the lines without their locations; names that several scopes define become different ones."""
    scopes: list[dict[str, str]] = [{}]
    used: set[str] = set()

    def define(name: str) -> str:
        unique = f"{name}.{len(used)}" if name in used else name
        used.add(unique)
        return unique

    def renamed(found: re.Match[str]) -> str:
        name, mark, part = found[0].partition("#")
        return next((scope[name] for scope in reversed(scopes) if name in scope), name) + mark + part

    for raw in ttir.splitlines():
        line = (raw if "tt.func" in raw else re.sub(r" loc\(.*$", "", raw)).strip()
        if line.startswith("}") and len(scopes) > 1:
            scopes.pop()
        defined, body = (found[1], found[2]) if (found := DEFINITION.match(line)) else ("", line)
        scopes.append({name: define(name) for name in re.findall(r"(%[\w$.-]+) = (?=%)", body)})
        body = NAME.sub(renamed, body)
        if not line.endswith("{"):
            scopes.pop()
        if defined:
            scope = scopes[-2] if line.endswith("{") else scopes[-1]
            scope[defined] = define(defined)
            body = f"{scope[defined]} = {body}"
        yield body


@dataclass
class Loop:
    """A loop of the machine code: its own body, inner loops excluded; ``loaded``: bytes that a thread loads a turn."""

    depth: int
    instructions: int
    matrix: int
    asynchronous: bool
    loaded: int = 0


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
