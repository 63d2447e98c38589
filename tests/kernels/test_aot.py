"""The compiled kernels spill nothing, use matrix instructions and match the golden file's numbers.

Compilation runs in a process of its own, since Triton interprets in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("aot-golden.json")
TARGETS = ("sm_90", "gfx942")  # one per backend: all targets take minutes


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with ``arguments`` in the current environment plus ``environment``; ``bench`` can be imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


def aot(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "bench", "aot", *arguments)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The rows of the targets, and the finished process."""
    file = tmp_path_factory.mktemp("aot") / "rows.json"
    done = aot("--target", *TARGETS, "--json", str(file))
    assert file.exists(), done.stderr
    return json.loads(file.read_text()), done


def is_golden_version():
    import triton

    return triton.__version__ == json.loads(GOLDEN.read_text())["triton"]


def label(row):
    return f"{row['kernel']} {row['config']} {row['what']}"


def test_every_shipped_kernel_passes(shipped):
    rows, done = shipped
    assert {row["target"] for row in rows} == set(TARGETS)
    failing = {f"{row['target']} {label(row)}": row["problems"] for row in rows if row["problems"]}
    if is_golden_version():
        assert not failing
        assert done.returncode == 0, done.stdout[-2000:]
    else:  # spilled registers change with the version of Triton; no other problem is allowed
        others = {
            name: problems
            for name, problems in failing.items()
            if not all("of registers" in problem for problem in problems)
        }
        assert not others


def test_the_matrix_units_are_used(shipped):
    rows, _ = shipped
    for target, instruction in (("sm_90", "wgmma.mma_async"), ("gfx942", "v_mfma_f32_")):
        used = {row["kernel"] for row in rows if row["target"] == target and instruction in "".join(row["matrix"])}
        assert {"gather_kernel", "apply_kernel", "symmetric_kernel"} <= used


def test_numbers_match_the_golden_file(shipped):
    golden = json.loads(GOLDEN.read_text())
    if not is_golden_version():
        pytest.skip(f"the golden numbers are those of Triton {golden['triton']}, not of the installed version")
    rows, _ = shipped
    numbers = ("registers", "spilled", "local", "shared", "matrix")
    for row in rows:
        expected = golden["targets"][row["target"]].get(label(row))
        assert [row[name] for name in numbers] == expected, (
            f"{row['target']} {label(row)}; if intended, run `python -m bench aot --golden`"
        )


def test_the_golden_file_holds_only_kernels_that_pass():
    golden = json.loads(GOLDEN.read_text())
    assert set(golden["targets"]) == {"sm_80", "sm_90", "sm_100", "sm_120", "gfx942"}
    for rows in golden["targets"].values():
        kernels = {label.split()[0] for label in rows}
        assert {"gather_kernel", "apply_kernel", "unit_kernel", "symmetric_kernel", "resident_kernel"} <= kernels
        assert all(spilled == local == 0 for _, spilled, local, _, _ in rows.values())


def test_tiles_that_are_too_large_fail(tmp_path):
    stage = dict(C=256, L=1024, K=20, dtype="float32", precision="default")
    entries = [
        stage | dict(kernel="gather", config=dict(block_l=16, block_c=128, rows=16, num_warps=4)),
        stage | dict(kernel="apply", config=dict(block_l=64, block_c=128, rows=32, num_warps=4, num_stages=9)),
        stage | dict(kernel="apply", config=dict(block_l=128, block_c=64, rows=32, num_warps=1, num_stages=1)),
    ]
    table, rows = tmp_path / "table.json", tmp_path / "rows.json"
    table.write_text(json.dumps(dict(gpu="", arch="sm_90", source="", versions={}, entries=entries)))
    done = aot("--target", "sm_90", "--table", str(table), "--json", str(rows))
    assert done.returncode == 1
    problems = {row["config"]: "".join(row["problems"]) for row in json.loads(rows.read_text())}
    assert any("stages=9" in config and "of shared memory" in text for config, text in problems.items()), done.stdout
    assert any("warps=1" in config and "spills" in text for config, text in problems.items()), done.stdout
    assert any("BLOCK_L=16" in config and not text for config, text in problems.items()), done.stdout


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


def compile_dummies(tmp_path, code):
    script = tmp_path / "dummies.py"  # Triton reads a kernel's source from its file
    script.write_text(DUMMY + code)
    return run(str(script))


def test_a_product_outside_the_matrix_unit_is_found_beside_one_inside(tmp_path):
    done = compile_dummies(
        tmp_path,
        "calls = [('half', lambda: call(dtype=tl.float16)), ('single', call), ('both', lambda: call(in_unit=True))]\n"
        "for row in aot_compile.compile_rows('sm_90', calls): print(row.what, row.registers > 0, *row.problems)\n",
    )
    assert done.stdout.splitlines() == [
        "half True",
        "single True 1 of 1 matrix products without matrix instructions",
        "both True 1 of 2 matrix products without matrix instructions",
    ], done.stderr


def test_a_failed_launch_and_a_dead_compiler_are_failing_rows(tmp_path):
    done = compile_dummies(
        tmp_path,
        "def fails(): yield 'fails', lambda: call(N=63)\n"
        "def dies(): yield 'dies', lambda: os._exit(3)\n"
        "aot_compile.find_tables = lambda name: []\n"
        "for aot_compile.fusion_launches in (fails, dies):\n"
        "    for rows in aot_compile.compile_targets(['sm_90'], 1): print(rows[0].problems)\n",
    )
    first, second = done.stdout.splitlines()
    assert "CompilationError" in first
    assert "died" in second


def test_the_interpreter_is_refused():
    done = run("-c", "from bench import aot_compile\naot_compile.compile_launches(None, print)", TRITON_INTERPRET="1")
    assert "RuntimeError: TRITON_INTERPRET is set" in done.stderr


def test_an_unknown_target_is_refused():
    done = aot("--target", "sm_75")
    assert done.returncode == 2
    assert "got 'sm_75'" in done.stderr
