"""What is launched on a GPU, as far as a driver that does nothing can show: arguments, streams, threads, host time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import host
from bench.measure import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(host.not_here()), reason=host.not_here())]

PROLOGUE = """
import threading
import torch
from bench import host
driver = host.install_empty_driver()
from triton.runtime.jit import JITFunction
from ssa_fast import Affinity, polish
from ssa_fast.ops import launch_plan, launch_recorder

LOG = []
call_launcher = driver.launcher_cls.__call__

def logged(self, *given):
    *head, stream, function = given[:5]
    names = [name for name in self.names]
    LOG.append((self.kernel, tuple(head), stream, given[9:]))
    return call_launcher(self, *given)

def named(self, src, metadata, make=driver.launcher_cls.__init__):
    self.kernel, self.names = src.fn.fn.__name__, src.fn.arg_names
    make(self, src, metadata)

driver.launcher_cls.__call__, driver.launcher_cls.__init__ = logged, named

def launched(function, *given, **options):
    LOG.clear()
    result = function(*given, **options)
    return result, list(LOG)

def number(argument):
    return argument.data_ptr() if isinstance(argument, torch.Tensor) else argument

def stages(dtype=torch.float16, channels=(256, 1024), side=(20, 10)):
    return [torch.rand(1, C, s, s).to(dtype) for C, s in zip(channels, side)]

cam = torch.rand(1, 20, 10, 10)
"""


def run(code: str, prologue: str = PROLOGUE) -> str:
    done = subprocess.run(
        [sys.executable, "-c", prologue + code], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_replay_launches_what_the_call_launched():
    """The same kernels, grids, numbers and inputs; only pointers to outputs and workspaces differ."""
    run(
        """
for given, options in (
    (stages(), {}),
    (stages()[0], {"method": "tiled", "affinity": Affinity(steps=2)}),
    (stages(torch.float32)[1], {"method": "resident", "affinity": Affinity("exp", temperature=0.1)}),
    (stages(), {"affinity": Affinity("shifted", center=True), "rescale": True, "size": (33, 33)}),
):
    launch_plan.PLANS.clear()
    (_, recorded), (_, replayed) = (launched(polish, cam, given, backend="triton", **options) for _ in range(2))
    assert len(launch_plan.PLANS) == 1 and len(recorded) == len(replayed) > 0, (len(recorded), len(replayed))
    inputs = {tensor.data_ptr() for tensor in launch_plan.inputs_of(cam, given)}
    moved = {}
    for (kernel, grid, stream, before), (again, same_grid, same_stream, after) in zip(recorded, replayed):
        assert (kernel, grid, stream, len(before)) == (again, same_grid, same_stream, len(after))
        for was, now in zip(before, after):
            if isinstance(was, torch.Tensor) and was.data_ptr() not in inputs:
                assert now % 16 == was.data_ptr() % 16
                moved.setdefault((kernel, was.data_ptr(), now), was)
            else:
                assert number(was) == now, (kernel, was, now)
    assert moved
"""
    )


def test_ssa_launches_two_kernels_of_the_fusion_and_runs_the_network_once():
    run(
        """
from ssa_fast import SSA
from ssa_fast.models.demo_net import load_classifier
ssa = SSA(load_classifier())
forwards = []
ssa.model.register_forward_hook(lambda *_: forwards.append(1))
from ssa_fast.ops import dispatch
decide = dispatch._candidates
dispatch._candidates = lambda problem, method, backend: decide(problem, method, "triton")
from ssa_fast.ops import fusion, stage
stage.needs_sign = lambda *_: False  # as on a GPU
plan_fusion = fusion.plan_fusion
fusion.plan_fusion = lambda problem, backend: plan_fusion(problem, "triton")
images = torch.randn(1, 3, 128, 128)
for _ in range(2):
    forwards.clear()
    _, log = launched(ssa, images)
    kernels = [kernel for kernel, *_ in log]
    assert len(forwards) == 1
    maps = 1 + len(ssa.stage_names) + 1  # rescaled for the result: the seed, the stages and the fused CAMs
    fusion = [name for name in kernels if name in ("extrema_kernel", "fuse_kernel")]
    assert fusion == ["extrema_kernel", "fuse_kernel"] * (1 + maps), fusion
    assert kernels.count("plane_kernel") <= 1, kernels  # the stages share what it finds
assert len(launch_plan.PLANS) == 2  # the polishing and the rescaling
"""
    )


def test_streams_threads_and_profilers():
    run(
        """
from triton import knobs
f = stages()[0]
options = {"backend": "triton", "method": "tiled"}
polish(cam, f, **options)

driver.get_current_stream = lambda device=None: 77
_, log = launched(polish, cam, f, **options)
assert {stream for _, _, stream, _ in log} == {77}

# Threads at one time: every launch of a replay has the replay's own input and workspace.
cams = [torch.rand_like(cam) for _ in range(8)]
found, start = {}, threading.Barrier(8)
run_launcher = driver.launcher_cls.__call__
def kept(self, *given):
    found.setdefault(threading.get_ident(), []).append((self.kernel, dict(zip(self.names, given[9:]))))
driver.launcher_cls.__call__ = kept
def work(n):
    start.wait()
    outs[n] = [polish(cams[n], f, **options) for _ in range(20)]
    mine[n] = threading.get_ident()
outs, mine = {}, {}
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
driver.launcher_cls.__call__ = run_launcher
for n in range(8):
    log = found[mine[n]]
    assert {given["cam_ptr"] for _, given in log if "cam_ptr" in given} == {cams[n].data_ptr()}
    units = [given["unit_ptr"] for _, given in log if "unit_ptr" in given]
    per_call = len(units) // 20
    assert per_call >= 2 and all(len(set(units[i : i + per_call])) == 1 for i in range(0, len(units), per_call))
    written = [given["out_ptr"] for _, given in log if "out_ptr" in given]
    assert {out.data_ptr() for out in outs[n]} == set(written)

# A profiler's hooks see every launch by its name.
seen = []
hook = lambda metadata: seen.append(metadata.get()["name"])
knobs.runtime.launch_enter_hook.add(hook)
_, log = launched(polish, cam, f, **options)
assert seen == [kernel for kernel, *_ in log] and seen
knobs.runtime.launch_enter_hook.remove(hook)
polish(cam, f, **options)
assert len(seen) == len(log)
"""
    )


def test_an_older_triton_launches_through_its_jit_and_explain_says_so():
    out = run(
        """
from ssa_fast import explain
launch_plan.FIRST_TRITON = (99, 0)
f = stages()[0]
polish(cam, f, backend="triton")
(plan,) = launch_plan.PLANS.values()
assert not plan.has_binaries
_, log = launched(polish, cam, f, backend="triton")
assert len(log) == len(plan.steps)
explain(cam, f, backend="triton")
launch_plan.FIRST_TRITON = (3, 6)
print("----")
explain(cam, f, backend="triton")
"""
    )
    older, newer = out.split("----")
    assert "launches kernels through its JIT" in " ".join(older.split())
    assert "JIT" not in newer


def test_the_host_benchmark_counts_launches_and_times_them(tmp_path):
    """Times are printed, not judged: a busy machine must not fail a test."""
    file = tmp_path / "host.json"
    out = run(
        "host.CASES = {name: case for name, case in host.CASES.items() if 'resident' in name}\n"
        f"assert host.main(['--save', {str(file)!r}]) in (0, 1)",
        prologue="from bench import host\n",
    )
    (row,) = json.loads(file.read_text())["rows"]
    assert row["case"] in out
    assert row["launches"] == 1
    assert min(row["us"], row["anew_us"]) > 0


def test_without_a_compiler_the_host_benchmark_says_so(monkeypatch, capsys):
    monkeypatch.setattr(host, "COMPILER", None)
    assert host.main([]) == 2
    assert "needs a C compiler (gcc or clang), and found none" in capsys.readouterr().err


def test_the_driver_leaves_no_folder_behind():
    folder = Path(run("import os\nprint(os.environ['TRITON_LIBCUDA_PATH'])").strip())
    assert folder.name.startswith("empty-driver-")
    assert not folder.exists()
