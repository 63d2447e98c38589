"""The compiled kernels spill nothing, use matrix instructions and match the golden file's numbers.

Compilation runs in a process of its own, since Triton interprets in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import aot
from bench.aot_targets import DEFAULT_TARGETS, TARGETS

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
COMPILED = ("sm_90", "gfx942")  # one per backend: all targets take minutes
MOST_VARIANTS = 3
REWRITE = "if intended, run `python -m bench aot --golden`"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with ``arguments`` in the current environment plus ``environment``; ``bench`` can be imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The rows of the targets, and the finished process."""
    file = tmp_path_factory.mktemp("aot") / "rows.json"
    done = run("-m", "bench", "aot", "--target", *COMPILED, "--save", str(file))
    assert file.exists(), done.stderr
    return json.loads(file.read_text())["rows"], done


@pytest.fixture(scope="module")
def golden():
    return json.loads(aot.GOLDEN.read_text(encoding="utf-8"))


def is_version_of(golden):
    import triton

    return triton.__version__ == golden["triton"]


def label(row):
    return f"{row['kernel']} {row['config']} {row['what']}"


def test_every_shipped_kernel_passes(shipped, golden):
    """Of other versions of Triton than the golden file's, registers may be spilled; no other problem is allowed."""
    rows, done = shipped
    assert {row["target"] for row in rows} == set(COMPILED)
    strict = is_version_of(golden)
    problems = [(row["target"], label(row), each) for row in rows for each in row["problems"]]
    assert [problem for problem in problems if strict or "of registers" not in problem[-1]] == []
    assert done.returncode == bool(problems), done.stdout[-2000:]


def test_the_matrix_units_are_used(shipped):
    rows, _ = shipped
    for target, instruction in (("sm_90", "wgmma.mma_async"), ("gfx942", "v_mfma_f32_")):
        used = {row["kernel"] for row in rows if row["target"] == target and instruction in "".join(row["matrix"])}
        assert {"gather_kernel", "apply_kernel", "symmetric_kernel"} <= used


def test_the_report_has_a_line_for_every_kernel(shipped):
    rows, done = shipped
    lines = [line for line in done.stdout.splitlines() if "_kernel " in line]
    for line, row in zip(lines, rows, strict=True):
        cells = [cell.strip("| ") for cell in line.split(" | ")]
        assert cells[:6] == [str(row[name]) for name in ("kernel", "registers", "spilled", "local", "shared", "per_sm")]
        assert f"{row['config']}; {row['what']}" in line
        assert row["per_sm"] >= 1


def test_the_kernels_are_those_of_the_golden_file(shipped, golden):
    rows, _ = shipped
    for target in COMPILED:
        assert {label(row) for row in rows if row["target"] == target} == set(golden["targets"][target]), REWRITE


def test_numbers_match_the_golden_file(shipped, golden):
    if not is_version_of(golden):
        pytest.skip(f"the golden numbers are those of Triton {golden['triton']}, not of the installed version")
    rows, _ = shipped
    for row in rows:
        expected = golden["targets"][row["target"]].get(label(row))
        assert [row[name] for name in aot.NUMBERS] == expected, f"{row['target']} {label(row)}; {REWRITE}"


def test_the_golden_file_holds_only_kernels_that_pass(golden):
    assert set(golden["targets"]) == {*DEFAULT_TARGETS}
    for rows in golden["targets"].values():
        kernels = {label.split()[0] for label in rows}
        assert {"gather_kernel", "apply_kernel", "unit_kernel", "symmetric_kernel", "resident_kernel"} <= kernels
        assert all(spilled == local == 0 for _, spilled, local, _, _, _ in rows.values())


def test_the_golden_file_is_written_as_it_stands(tmp_path, monkeypatch, golden):
    rows = [
        SimpleNamespace(target=target, label=name, **dict(zip(aot.NUMBERS, numbers, strict=True)))
        for target, kernels in golden["targets"].items()
        for name, numbers in kernels.items()
    ]
    before = aot.GOLDEN.read_text(encoding="utf-8")
    monkeypatch.setattr(aot, "GOLDEN", tmp_path / "golden.json")
    aot.write_golden(rows, golden["triton"])
    assert aot.GOLDEN.read_text(encoding="utf-8") == before


VARIANTS = """
import json, random
from bench import aot_cases, aot_compile, tiles
from bench.problems import Problem
from ssa_fast.ops.gpu_info import Gpu

aot_compile.activate("sm_90")
gpu = Gpu("any", "sm_90", 132)
draw = random.Random(0)
sizes = [(draw.randint(200, 600), draw.randint(200, 600)) for _ in range(200)]
found = {}
for C, side in ((256, 56), (512, 28), (1024, 14), (2048, 7)):
    for H, W in sorted({(-(-height * side // 224), -(-width * side // 224)) for height, width in sizes}):
        for layout in ("nchw", "nhwc"):
            for method, problem in aot_cases.in_forms(Problem(1, 20, C, H, W, layout=layout), aot_cases.MAIN):
                given = " ".join(map(str, tiles.tiles(method, gpu, problem).values()))
                for key in aot_compile.record(lambda: aot_cases.call(gpu, method, problem)):
                    groups = found.setdefault(key[0], {})
                    groups.setdefault(f"{method} {problem.values} {C} {layout} {given}", set()).add(key)
print(json.dumps({kernel: max(map(len, groups.values())) for kernel, groups in found.items()}))
"""


def test_a_folder_of_image_sizes_compiles_few_variants():
    """Sizes that do not change the code are not specialized: constants, types, and values of 1 or divisible by 16 are.

    They are counted for one stage of the network in one layout with one choice of tiles, so that what remains comes
    from the images' sizes alone.
    """
    done = run("-c", VARIANTS, TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    most = json.loads(done.stdout)
    assert {"gather_kernel", "apply_kernel", "unit_kernel", "resident_kernel"} <= set(most)
    assert {kernel: count for kernel, count in most.items() if count > MOST_VARIANTS} == {}


DUMMY = """
import os
os.environ.pop("TRITON_INTERPRET", None)
import torch, triton, triton.language as tl
from bench import aot_compile

@triton.jit
def product(a_ptr, out_ptr, N: tl.constexpr, ROWS: tl.constexpr, IN_UNIT: tl.constexpr, DTYPE: tl.constexpr):
    n, r = tl.arange(0, N), tl.arange(0, ROWS)
    a = tl.load(a_ptr + n[:, None] * N + n[None, :]).to(DTYPE)
    b = tl.load(a_ptr + n[:, None] * ROWS + r[None, :]).to(DTYPE)
    out = tl.dot(a, b, input_precision="ieee")
    if IN_UNIT:
        out += tl.dot(a.to(tl.float16), b.to(tl.float16))
    tl.store(out_ptr + n[:, None] * ROWS + r[None, :], out)

def call(N=64, in_unit=False, dtype=tl.float32):
    a = torch.empty(N * N, dtype=torch.float16, device="meta")
    product[(1,)](a_ptr=a, out_ptr=a, N=N, ROWS=16, IN_UNIT=in_unit, DTYPE=dtype, num_warps=4, num_stages=1)

"""


def compile_dummies(tmp_path, code, target="sm_90"):
    script = tmp_path / "dummies.py"  # Triton reads a kernel's source from its file
    script.write_text(f"{DUMMY}\naot_compile.activate('{target}')\n{code}")
    done = run(str(script))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_product_outside_the_matrix_unit_is_found_beside_one_inside(tmp_path):
    lines = compile_dummies(
        tmp_path,
        "for each in (lambda: call(dtype=tl.float16), call, lambda: call(in_unit=True)):\n"
        "    for key, compiles in aot_compile.record(each).items():\n"
        "        row = aot_compile.compile_row('sm_90', key, compiles)\n"
        "        print(row.config, row.registers > 0, *row.problems)\n",
    )
    assert lines == [
        "N=64 ROWS=16 DTYPE=fp16 warps=4 stages=1 True",
        "N=64 ROWS=16 DTYPE=fp32 warps=4 stages=1 True 1 of 1 matrix products without matrix instructions",
        "N=64 ROWS=16 IN_UNIT DTYPE=fp32 warps=4 stages=1 True 1 of 2 matrix products without matrix instructions",
    ]


def test_a_failed_launch_and_a_dead_compiler_are_failing_rows(tmp_path):
    first, second = compile_dummies(
        tmp_path,
        "aot_compile.recorded = lambda *_: aot_compile.record(lambda: call(N=63))\n"
        "for compile_row in (aot_compile.compile_row, lambda *_: os._exit(3)):\n"
        "    aot_compile.compile_row = compile_row\n"
        "    for row in aot_compile.compile_table('sm_90', None): print(row.label, row.problems)\n",
    )
    assert "N=63" in first
    assert "CompilationError" in first
    assert "N=63" in second
    assert "died" in second


def test_each_specialization_is_compiled_once(tmp_path):
    lines = compile_dummies(
        tmp_path,
        "def calls(*_): return (call, call, lambda: call(N=32))\n"
        "aot_compile.aot_cases.calls = calls\n"
        "for row in aot_compile.compile_table('sm_90', aot_compile.find_tables('sm_90')[0]): print(row.config)\n",
    )
    assert [line.split()[0] for line in lines] == ["N=64", "N=32"]


TOO_LARGE = """
from bench import aot_cases
from bench.problems import Problem
from ssa_fast.kernels.config import Apply, Gather
from ssa_fast.ops.gpu_info import Gpu

problem = Problem(1, 20, 256, 32, 32, dtype="float32")
for warps, stages, block_l, block_c in ((4, 9, 64, 128), (1, 1, 128, 64)):
    aot_cases.tiles.tiles = lambda *_: {
        "gather": Gather(block_l=16, rows=16, num_warps=4, block_c=128),
        "apply": Apply(block_l=block_l, block_c=block_c, rows=32, num_warps=warps, num_stages=stages),
    }
    launched = aot_compile.record(lambda: aot_cases.call(Gpu("any", "sm_90", 132), "prototypes", problem))
    for key, compiles in launched.items():
        print(key[0], aot_compile.compile_row("sm_90", key, compiles).problems)
"""


def test_tiles_that_are_too_large_fail(tmp_path):
    lines = compile_dummies(tmp_path, TOO_LARGE)
    problems = [line.partition(" ")[2] for line in lines if line.startswith("apply_kernel")]
    assert "of shared memory" in problems[0]
    assert "spills" in problems[1]
    assert "gather_kernel []" in lines


LOOPS = """
@triton.jit
def loops(x_ptr, n, step, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    for i in range(tl.program_id(0), tl.cdiv(n, N), step):
        a = tl.zeros([N, N], tl.float16)
        for j in range(0, i):
            a += tl.load(x_ptr + at + i * N + j)
        tl.store(x_ptr + at + i, tl.dot(a, a).to(tl.float16))

x = torch.empty(64, dtype=torch.float16, device="meta")
((key, compiles),) = aot_compile.record(lambda: loops[(7,)](x_ptr=x, n=1000, step=5, N=64)).items()
products = [products for _, products in aot_compile.compile_row(TARGET, key, compiles).loops]
print(len(products) > 1, max(products) > 0, min(products))
"""


@pytest.mark.parametrize("target", COMPILED)
def test_loops_are_found_in_what_the_compiler_writes(tmp_path, target):
    """The product is in the outer loop and not in the inner one, whatever the compilers unroll."""
    assert compile_dummies(tmp_path, LOOPS.replace("TARGET", repr(target)), target) == ["True True 0"]


@pytest.mark.parametrize(
    ("begin", "label", "add", "product", "branch", "nop"),
    [
        (
            "        /*0a10*/     ",
            ".L_x_",
            "IADD3 R1, R2 ;",
            "HMMA.16816 R4 ;",
            "@!P0 BRA `({}) ;",
            "NOP ;",
        ),
        ("\t", ".LBB0_", "v_add_u32 v1, v2", "v_mfma_f32_32x32x8_f16 v[0:15]", "s_cbranch_scc1 {}", "s_nop 0"),
    ],
    ids=["NVIDIA", "AMD"],
)
def test_a_loops_instructions_are_its_own(begin, label, add, product, branch, nop):
    from bench.aot_compile import find_loops

    outer, inner, short = f"{label}1", f"{label}2", f"{label}3"
    instructions = [add, f"{outer}:", product, nop, *[add] * 3, f"{inner}:  ; nested", *[add] * 20, product, product]
    instructions += [branch.format(inner), f"{short}:", add, branch.format(short), branch.format(outer), add]
    lines = [each if each.startswith(".") else begin + each for each in instructions]
    assert find_loops("\n".join(lines)) == [(1 + 3 + 2 + 1, 1), (20 + 2 + 1, 2)]


def test_programs_of_a_multiprocessor_are_limited_by_registers_warps_and_shared_memory():
    sizes = ((128, 0, 8), (32, 0, 4), (255, 0, 8), (64, 100 << 10, 4), (40, 0, 32))
    assert [TARGETS["sm_90"].occupancy(*each) for each in sizes] == [2, 16, 1, 2, 1]
    assert [TARGETS["gfx942"].occupancy(*each) for each in ((128, 0, 4), (32, 40 << 10, 4))] == [4, 1]


def test_an_unknown_target_is_refused():
    done = run("-m", "bench", "aot", "--target", "sm_75")
    assert done.returncode == 2
    assert "invalid choice: 'sm_75'" in done.stderr
