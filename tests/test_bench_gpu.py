"""Dry runs of the GPU benchmarks: every step runs, failures are reported, and no figure is claimed."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import time
from dataclasses import asdict, make_dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import baselines, measure, stand, tune, workers
from bench.__main__ import arguments
from bench.gpu import command, correctness, counters, goals, invariants, ours, report, sanitize, tiles, timing, whole
from bench.problem import Problem, relative_error, sampled_truth, truth
from ssa_fast.kernels.config import Apply, Gather, Symmetric
from ssa_fast.ops import gpu_info, tile_tables

H200 = gpu_info.Gpu("NVIDIA H200", "sm_90", 132)
TINY = correctness.SMALL
BASELINES = [name for name in baselines.BASELINES if name != "KeOps"]  # not installed with any extra


@pytest.fixture
def few(monkeypatch):
    """Keep one job of each kind, so that a dry run takes seconds."""
    cases = [
        ("prototypes", TINY),
        ("symmetric", replace(TINY, values="randn")),
        ("resident", replace(TINY, values="randn", dtype="bfloat16")),
        ("auto", replace(TINY, values="mixed")),
    ]
    monkeypatch.setattr(correctness, "cases", lambda: iter(cases))
    monkeypatch.setattr(
        timing, "MAIN", (timing.MAIN[2], timing.MAIN[3], ("tiled", timing.SIGNED, dict.fromkeys(BASELINES)))
    )
    monkeypatch.setattr(timing, "MORE", ())
    monkeypatch.setattr(whole, "SMALL_STAGES", whole.SMALL_STAGES[2:4])
    monkeypatch.setattr(invariants, "memory_problems", lambda: [("tiled", TINY)])


def dry_run(tmp_path, **options):
    code = command.main(out=tmp_path, dry_run=True, seed=3, **options)
    return code, json.loads((tmp_path / "gpu.json").read_text())


@pytest.mark.interpreter
@pytest.mark.usefixtures("few")
def test_every_step_runs_dry_and_is_labelled(tmp_path, capsys):
    code, saved = dry_run(tmp_path)
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert printed.splitlines()[0] == printed.splitlines()[-1] == report.DRY_RUN
    assert len(printed.rpartition("\n\n")[2].splitlines()) <= report.LINES
    assert saved["dry_run"] is True
    assert printed.splitlines()[1] == saved["not_shown"] == report.NOT_SHOWN
    rows = saved["rows"]
    assert {row["part"] for row in rows} == {"machine", "roofline", "correctness", "invariant", "timing", "sanitizer"}
    assert all(row["status"] in ("ok", "skipped") for row in rows)
    assert all(row["why"] for row in rows if row["status"] == "skipped")
    for row in rows:
        for goal in row.get("goals", ()):
            assert goal["verdict"] in ("stretch", "must", "missed", "unknown")
            assert {"what", "value", "must", "stretch", "direction"} <= goal.keys()
    everyone = next(row for row in rows if row["part"] == "timing" and row["what"].startswith("tiled"))
    assert [each["name"] for each in everyone["providers"]] == ["ours", *BASELINES]
    for each in everyone["providers"]:  # prototypes are wrong for signed features, so they are not timed
        assert each["status"] == ("wrong" if "algebra" in each["name"] else "ok"), each
        assert ("us" in each) == (each["status"] == "ok")
    small = next(row for row in rows if row["what"].startswith("small, resident"))
    assert [each["name"] for each in small["providers"]] == ["ours", "launch alone", "dense PCM", "dense PCM compiled"]
    assert [goal["what"] for goal in small["goals"]][-2:] == [goals.GOALS[name].what for name in whole.DENSE.values()]
    assert next(row for row in rows if "machine" in row)["machine"]["torch"] == torch.__version__


@pytest.mark.interpreter
@pytest.mark.usefixtures("few")
def test_a_wrong_kernel_fails_its_row_and_the_run(tmp_path, monkeypatch, capsys):
    right = ours.write

    def planted(method, gpu, problem, cam, f, out, given):
        right(method, gpu, problem, cam, f, out, given)
        out[0, 0, 1] *= 1.01

    monkeypatch.setattr(ours, "write", planted)
    code, saved = dry_run(tmp_path, only="correctness: prototypes")
    assert code == 1
    assert [row["status"] for row in saved["rows"] if row["part"] == "correctness"] == ["failed"]
    assert "WRONG failed correctness: prototypes" in capsys.readouterr().out


@pytest.mark.interpreter
@pytest.mark.usefixtures("few")
def test_a_kernel_that_writes_too_little_or_too_much_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "write", lambda *given: given[5].view(-1)[1:].fill_(0.5))
    code, saved = dry_run(tmp_path, only="correctness: prototypes")
    assert code == 1
    assert saved["rows"][1]["error"] == float("inf")
    monkeypatch.setattr(ours, "write", lambda *given: given[5].as_strided((1,), (1,), 0).fill_(0.5))
    code, saved = dry_run(tmp_path, only="correctness: prototypes")
    assert code == 1
    assert "beyond its output" in saved["rows"][1]["why"]


@pytest.mark.interpreter
def test_a_baseline_without_memory_or_right_answer_is_a_result(monkeypatch):
    def without_memory(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")

    def wrong(bench, problem, cam, f):
        yield "wrong", lambda: baselines.dense_pcm(cam, f.float()) * 2
        yield "crashes", lambda: 1 / 0

    monkeypatch.setitem(baselines.BASELINES, "dense PCM", lambda *given: iter([("eager", without_memory)]))
    monkeypatch.setitem(baselines.BASELINES, "chunked PCM", wrong)
    versus = {"dense PCM": "dense_16", "chunked PCM": "chunked_256", "algebra": "algebra_eager"}
    (row,) = timing.compare(
        stand.Device(True), method="prototypes", versus=versus, seed=1, **TINY.tiny().as_arguments()
    )
    assert row["status"] == "ok"
    assert [each["status"] for each in row["providers"]] == ["ok", "out of memory", "wrong", "ok"]
    assert [goal["verdict"] for goal in row["goals"][1:3]] == ["unknown"] * 2
    assert row["goals"][3]["value"] > 0
    assert "dense PCM out of memory" in report.line(row, full=False)


@pytest.mark.parametrize(
    ("at_most", "value", "verdict"),
    [
        (True, 5.0, "stretch"),
        (True, 6.0, "stretch"),
        (True, 12.0, "must"),
        (True, 12.1, "missed"),
        (True, float("nan"), "unknown"),
        (False, 12.0, "must"),
        (False, 6.0, "missed"),
        (False, 30.0, "stretch"),
        (False, None, "unknown"),
    ],
)
def test_goals(at_most, value, verdict):
    goal = goals.Goal("x", 12, 6 if at_most else 24, at_most=at_most)
    assert goal.verdict(value) == goal.row(value)["verdict"] == verdict


def test_a_goal_without_a_stretch():
    assert goals.GOALS["memory_prototypes"].verdict(0.0) == "must"


def test_the_share_of_a_copy_counts_two_reads_of_the_features():
    problem = Problem(B=1, K=2, C=64, H=32, W=32)  # the features are 2^-13 of the copied numbers, both of two bytes
    mine, copy = (
        timing.Provider("ours", times=[1.0, 1.0, 1.0]),
        timing.Provider("copy", times=[2.0**12, 2.0**13, 2.0**14]),
    )
    assert timing.goals_row("bandwidth", mine, copy, problem)["value"] == 1.0
    assert timing.goals_row("product", mine, replace(copy, name="xᵀx"), problem)["value"] == round(2.0**-13, 4)


def test_refused_without_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for run in (command.main, tune.main):
        assert run(out=tmp_path / "x") == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("There is no GPU here: ")
        assert printed.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_time_that_is_up_is_told(tmp_path, capsys):
    code, saved = dry_run(tmp_path, budget=0.0, only="timing: ")
    assert code == 0
    assert {row["status"] for row in saved["rows"]} == {"not reached"}
    assert "not reached: " in capsys.readouterr().out


def test_the_report_is_whole_after_every_row(tmp_path):
    kept = report.Report({"dry_run": False, "seed": 1, "seconds": 1.0}, tmp_path / "gpu.json")
    for number in range(100):
        kept.add([{"part": "correctness", "what": f"case {number}", "status": "failed", "why": "x" * 500}])
        assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == number + 1
    table = kept.table()
    assert len(table) <= report.LINES
    assert max(map(len, table)) <= report.WIDTH
    assert kept.exit_code() == 1


# Jobs for the workers below.
def fine(_, number=1):
    return [{"part": "test", "what": "fine", "status": "ok", "number": number}]


def dies(_):
    os._exit(7)


def hangs(_):
    time.sleep(3600)


def breaks_the_context(_):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.slow
def test_workers_outlive_what_they_run():
    found = {}
    functions = ["fine", "dies", "hangs", "breaks_the_context", "fine"]
    jobs = [
        workers.job(f"{__name__}:{name}", f"test: {at} {name}", 2.0 if name == "hangs" else 600.0)
        for at, name in enumerate(functions)
    ]
    with workers.Pool(dry_run=True) as pool:
        for some in (jobs[:3], jobs[3:]):  # the workers of the first list do the second
            pool.run(
                some,
                count=2,
                until=time.monotonic() + 3600,
                report=lambda task, rows: found.update({task["name"]: rows[0]}),
            )
    assert [found[task["name"]]["status"] for task in jobs] == ["ok", "failed", "timed out", "failed", "ok"]
    assert "exit code 7" in found["test: 1 dies"]["why"]
    assert "illegal memory access" in found["test: 3 breaks_the_context"]["why"]


@pytest.mark.slow
def test_workers_stop_when_the_time_is_up(monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 0.1)
    found = []
    jobs = [workers.job(f"{__name__}:hangs", f"test: {at}", 600.0) for at in range(2)]
    with workers.Pool(dry_run=True) as pool:
        pool.run(jobs, count=1, until=time.monotonic() + 0.5, report=lambda _, rows: found.extend(rows))
    assert [row["status"] for row in found] == ["not reached"] * 2


@pytest.mark.parametrize(
    ("code", "output", "status"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", "ok"),
        (9, "========= Invalid __global__ write\n========= ERROR SUMMARY: 3 errors", "failed"),
        (9, "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", "failed"),
        (1, "Device not supported", "skipped"),
    ],
)
def test_what_the_sanitizer_says(code, output, status):
    row = sanitize.read("memcheck", code, output)
    assert row["status"] == status
    assert output.splitlines()[-1].removeprefix("========= ") in row["why"]


def test_sampled_truth_is_the_truth():
    problem = Problem(B=2, K=3, C=8, H=9, W=7, h=4, w=3, values="randn", affinity="power=2")
    cam, f = problem.draw(torch.device("cpu"), 5)
    at = torch.tensor([0, 13, 62])
    found = sampled_truth(problem, cam, f, at, sources=10)
    assert relative_error(found, truth(problem, cam, f)[-1][:, at]) < 1e-14


def test_errors_do_not_overlook_nan():
    right = torch.tensor([[1.0, float("nan"), 2.0]], dtype=torch.float64)
    assert relative_error(torch.tensor([[1.0, float("nan"), 2.5]]), right) == 0.25
    assert relative_error(torch.tensor([[1.0, 1.0, 2.0]]), right) == float("inf")
    assert relative_error(torch.tensor([[float("nan"), float("nan"), 2.0]]), right) == float("inf")
    assert relative_error(torch.tensor([[1.0]]), right) == float("inf")


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "sliced", "repeated"])
def test_layouts(layout):
    f = Problem(B=2, K=1, C=4, H=5, W=6, layout=layout).draw(torch.device("cpu"), 1)[1]
    assert f.shape == (2, 4, 5, 6)
    assert f.isfinite().all()
    assert f.is_contiguous() == (layout == "nchw")


def test_operands_of_tiled_are_counted_as_they_are_laid_out():
    from ssa_fast.kernels.prepare import Operands

    problem = Problem(B=2, K=40, C=100, H=13, W=19, values="randn", precision="high")
    cam, f = problem.draw(torch.device("cpu"), 1)
    for config in ours.SPARE.values():
        align = config.block * config.bands if hasattr(config, "bands") else max(config.block_i, config.block_j)
        found = Operands.empty(
            cam, f, cam.new_empty(0), rows=config.rows, align_l=align, block_c=config.block_c, high=True, wide=False
        )
        held = 2 * 2 * (found.unit.numel() + found.v.numel()) + 4 * problem.B * found.chunks * found.L_pad
        assert invariants.operand_bytes(problem, config) == held


def test_the_cache_is_flushed_by_reading():
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            read.append(max((each.numel() for each in args if isinstance(each, torch.Tensor)), default=0))
            return function(*args, **(kwargs or {}))

    device = stand.Device(device="cpu")
    names, read = [], []
    device.seconds(lambda: None)
    version = device._flush._version
    with Watch():
        device.seconds(lambda: None)
    assert device._flush._version == version
    assert read == [device._flush.numel()]
    assert not any(name.split(".")[1].endswith("_") for name in names)  # an operation that writes its argument


@pytest.mark.parametrize("only", ["", "timing: ", "timing: tiled", "FlexAttention"])
def test_everything_timed_is_compiled_before(only):
    phases = command.plan("time", 1, False, only, 12)
    assert [phase.name for phase in phases] == ["compile", "main rows", "more rows"]
    warmed = {
        (task["arguments"]["name"], _without_name(task)) for task in phases[0].jobs if "name" in task["arguments"]
    }
    timed = [task for phase in phases[1:] for task in phase.jobs if task["name"].startswith("timing")]
    assert bool(timed) == (only != "FlexAttention")
    for task in timed:
        compiled = [name for name in task["arguments"].get("versus", ()) if name in timing.COMPILED]
        assert {(name, _without_name(task)) for name in ("ours", *compiled)} <= warmed
    module = {"bench.gpu.timing": timing, "bench.gpu.whole": whole}
    assert all(task["function"].partition(":")[0] in module for task in phases[0].jobs[1:])


@pytest.mark.parametrize(("suite", "only", "module"), [("check", "memcheck", sanitize), ("counters", "res", counters)])
def test_what_a_tool_watches_is_compiled_before(suite, only, module):
    phases = command.plan(suite, 1, False, only, 12)
    assert all(task in phases[0].jobs for task in module.warmers(1))
    watched = [task["name"] for phase in phases[1:] for task in phase.jobs]
    assert watched
    assert all(only in name for name in watched)


def _without_name(task):
    return json.dumps({key: value for key, value in task["arguments"].items() if key != "name"}, sort_keys=True)


@pytest.mark.interpreter
def test_what_compiles_calls_what_is_timed(monkeypatch):
    called = []
    monkeypatch.setattr(ours, "launched", lambda *given, **_: called.append("ours"))
    monkeypatch.setattr(whole, "polish", lambda *given, **_: called.append("polish"))
    monkeypatch.setattr(timing, "build", lambda name, *_: called.append(name))
    device = stand.Device(dry_run=True)
    rows = [("tiled", TINY, {"dense PCM": None, "FlexAttention": None})]
    timed = [*timing.jobs(1, True, rows), *whole.small_jobs(1, True)[-1:], *whole.backbone_jobs(1, True)[:1]]
    for task in timing.warmers(timed):
        assert workers.perform(task, device) == []
    assert called == ["FlexAttention", "dense PCM compiled", "ours", "polish", "polish"]


def test_the_commands_of_the_documentation_are_understood():
    text = (measure.ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    found = [line.split("python3 -m bench ")[1:] for line in text.splitlines() if "python3 -m bench" in line]
    parsed = [arguments().parse_args(shlex.split(each.partition(";")[0])) for line in found for each in line]
    assert len(found) == 3
    assert [(each.command, getattr(each, "suite", None), each.budget) for each in parsed] == [
        ("gpu", "check", None),
        ("tune", None, tune.BUDGET_S),
        ("gpu", "counters", None),
        ("gpu", "time", None),
    ]
    assert all(str(each.out) == "$OUT" and not each.dry_run for each in parsed)


def test_each_command_fits_its_limit():
    """Every phase fits its share by the jobs' predicted times, and the shares fit the limit with what ends late."""
    after = workers.GRACE + 10  # a job under way, and the processes' end
    budgets = command.BUDGETS_S
    assert max(budgets["check"], budgets["time"]) + command.START_S + after <= command.LIMIT_S
    assert tune.BUDGET_S + budgets["counters"] + 2 * (command.START_S + after) <= command.LIMIT_S
    for suite, budget in budgets.items():
        now = command.START_S
        for phase in command.plan(suite, 1, False, "", command.SIDE_BY_SIDE):
            now += phase.expected_s()
            assert now <= phase.end * budget, (suite, phase.name, now)
    for kernel, end_s in tune.expected_s(command.SIDE_BY_SIDE).items():
        assert end_s <= tune.KERNELS[kernel] * tune.BUDGET_S, (kernel, end_s)
    assert [*tune.KERNELS.values()] == sorted(tune.KERNELS.values())
    assert set(tune.KERNELS) == {kernel for kernel, _ in tune.problems()} == set(tile_tables.KERNELS)


PREPARED = {"block_l": 32, "block_c": 64, "num_warps": 4}


def killed(write):
    """What a process had reported that was killed while it wrote over and over: a number, by a pipe."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(reader)  # or it would write for ever, to itself, if this process were killed
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            for number in range(1, 10**6):
                write(number)
                os.write(writer, number.to_bytes(4, "little"))
        finally:
            os._exit(1)
    told = [os.read(reader, 4) for _ in range(3)]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writer)
    while len(more := os.read(reader, 4)) == 4:
        told.append(more)
    os.close(reader)
    return int.from_bytes(told[-1], "little")


def test_a_killed_run_leaves_whole_json_with_its_rows(tmp_path):
    path = tmp_path / "gpu.json"
    assert report.Report({"dry_run": False}, path).rows == json.loads(path.read_text())["rows"] == []

    def write(number):
        kept.add([{"part": "correctness", "what": f"case {number}", "status": "ok", "why": "x" * 5000}])

    for _ in range(5):
        kept = report.Report({"dry_run": False, "seed": 1, "seconds": 1.0}, path)
        told = killed(write)
        assert told <= len(json.loads(path.read_text())["rows"]) <= told + 1


@pytest.mark.usefixtures("fake_gpu")
def test_a_killed_tuning_leaves_a_table_with_its_entries(tmp_path, monkeypatch):
    monkeypatch.setenv("SSA_FAST_CONFIGS", str(tmp_path))
    add_entry(tune.Table(stand.Device(device="cpu"), tmp_path, False, "abc"), 0, 10**7)
    for _ in range(3):
        table = tune.Table(stand.Device(device="cpu"), tmp_path, False, "abc")
        before = len(tile_tables.read(table.path)["entries"])
        told = killed(functools.partial(add_entry, table, before * 10**4))
        written = tile_tables.read(table.path)
        assert before + told <= len(written["entries"]) <= before + told + 1
        assert written["entries"][-1]["C"] == 10**7  # an entry of an earlier run is kept
        assert "commit abc" in written["source"]


def add_entry(table, base, number):
    table.add({"kernel": "prepare", "C": base + number, "L": 64, "K": 20, "config": PREPARED})


@pytest.fixture
def fake_gpu(monkeypatch):
    """Let the CPU stand for an H200 where only names are asked for."""
    monkeypatch.setattr(stand.Device, "gpu", H200)


PROFILED = """==PROF== Connected to process 1
==PROF== Disconnected from process 1
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name"
"0","1","gather_kernel","GPU Speed Of Light Throughput","Duration","us","90.21",""
"0","1","gather_kernel","GPU Speed Of Light Throughput","DRAM Throughput","%","81.50",""
"0","1","gather_kernel","","","","","SOLBottleneck"
"1","1","apply_kernel","Launch Statistics","Registers Per Thread","register/thread","1,063",""
"""


def test_what_the_profiler_says(monkeypatch, tmp_path, capsys):
    kernels = counters.read(PROFILED)
    assert [name for name, _ in kernels] == ["gather_kernel", "apply_kernel"]
    assert counters.shown(kernels[0][1]) == "time 90.21 us, DRAM 81.50 %"
    assert kernels[1][1] == {"Registers Per Thread": "1,063 register/thread"}
    assert counters.read("==ERROR== The user does not have permission") == []
    tool = tmp_path / "tool"
    tool.write_text(f"#!/bin/sh\ncat << 'END'\n{PROFILED}END\n")
    tool.chmod(0o755)
    monkeypatch.setattr(counters.shutil, "which", lambda _: str(tool))
    rows = workers.perform(counters.jobs(1)[-1], stand.Device(device="cpu"))
    assert [row["what"].partition(",")[0] for row in rows] == ["gather_kernel", "apply_kernel"]
    kept = report.Report({"dry_run": False, "seed": 1, "seconds": 1.0}, None)
    kept.add(rows)
    assert sum("DRAM 81.50 %" in line for line in kept.table()) == 1


def test_kernels_are_told_from_what_pytorch_launches():
    def event(name, us, kind=torch.autograd.DeviceType.CUDA):
        return SimpleNamespace(name=name, device_type=kind, time_range=SimpleNamespace(elapsed_us=lambda: us))

    events = [
        event("gather_kernel", 5.0),
        event("void at::native::reduce_kernel<512>", 9.0),
        event("gather_kernel", 7.0),
    ]
    events += [event("Memset (Device)", 1.0), event("launch", 2.0, torch.autograd.DeviceType.CPU)]
    assert counters.grouped(events) == {"gather_kernel": [5e-6, 7e-6]}


@pytest.mark.parametrize("module", [counters, sanitize])
def test_a_missing_tool_is_named(module, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    (row, *_) = workers.perform(module.jobs(1)[-1], stand.Device(device="cpu"))
    assert row["status"] == "skipped"
    assert f"{module.PROGRAM} is not on the PATH" in row["why"]


@pytest.mark.parametrize("module", [counters, sanitize])
def test_a_tool_that_does_not_work_here_is_told(module, monkeypatch, tmp_path):
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho LibraryNotLoaded; exit 3\n")
    tool.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda _: str(tool))
    (row, *_) = workers.perform(module.jobs(1)[-1], stand.Device(device="cpu"))
    assert row["status"] == "skipped"
    assert "LibraryNotLoaded" in row["why"]


@pytest.mark.interpreter
def test_what_the_sanitizer_watches_is_right(monkeypatch):
    device = stand.Device(dry_run=True)
    method, problem = sanitize.CASES["prototypes-sliced"]
    monkeypatch.setitem(sanitize.CASES, "prototypes-sliced", (method, problem.tiny()))
    for case in ("prototypes-sliced", sanitize.FUSION):
        assert sanitize.run(case, device, 1) < 1e-4


# What reading the compiled code of sm_90 found best: kernel, (C, side), tiles.
FOUND = [
    ("gather", 256, 128, dict(block_l=32, num_warps=4)),
    ("gather", 1024, 14, dict(block_c=256, num_stages=1)),
    ("gather", 2048, 7, dict(block_c=256, num_stages=1)),
    ("gather", 512, 28, dict(block_l=16, block_c=256)),
    ("apply", 1024, 32, dict(block_l=16, block_c=256, num_warps=4, num_stages=2)),
    ("tiled", 256, 128, dict(bands=2, chunk=4, block=128, block_c=64, num_warps=8, num_stages=3)),
    ("tiled", 1024, 32, dict(block=64, bands=1, chunk=1)),
]


@pytest.mark.filterwarnings("ignore:no tiles were measured")
@pytest.mark.parametrize(("kernel", "C", "side", "wanted"), FOUND)
def test_candidates_contain_the_tiles_that_the_compiled_code_speaks_for(kernel, C, side, wanted):
    (problem,) = [
        each
        for name, each in tune.problems()
        if (name, each.C, each.H, each.K, each.dtype, each.precision) == (kernel, C, side, 20, "float16", "default")
    ]
    search = tune.Search(kernel, problem, ours.tiles(tiles.MODULES[kernel], H200, problem))
    search.propose(H200, tune.CANDIDATES[0])
    assert any(wanted.items() <= asdict(each).items() for each in search.tried)


@pytest.mark.filterwarnings("ignore:no tiles were measured")
def test_candidates_fit_and_begin_with_the_present_tiles():
    for kernel, problem in tune.problems():
        search = tune.Search(kernel, problem, ours.tiles(tiles.MODULES[kernel], H200, problem))
        assert 8 <= len(search.propose(H200, tune.CANDIDATES[0])) <= tune.CANDIDATES[0]
        assert search.tried[0] == search.beside[tune._argument(kernel)]
        assert all(tiles.fits(each, problem, H200, search.tried[0]) for each in search.tried[1:])
        search.times = {3: 1.0, 0: 2.0}
        found = [search.tried[at] for at in search.propose(H200, tune.CANDIDATES[1])]
        assert found
        assert len(set(search.tried)) == len(search.tried)
        steps = [
            sum(a != b for a, b in zip(asdict(each).items(), asdict(search.tried[3]).items(), strict=False))
            for each in found
        ]
        assert max(steps) <= 2  # the neighbours of the best


def test_candidates_take_their_fields_from_the_dataclass():
    problem = Problem(B=1, K=20, C=256, H=64, W=64)
    start = Gather(block_l=32, rows=32, num_warps=4, num_stages=1, block_c=256)
    more = make_dataclass("Gather", [("lookahead", int, 4)], bases=(Gather,), frozen=True)(**asdict(start))
    found = tiles.candidates("gather", problem, H200, [more], [], 30)
    assert {each.lookahead for each in found} == {2, 4, 8}
    others = tiles.candidates("gather", problem, H200, [more], found, 10)
    assert len({*found, *others}) == 40
    banded = Symmetric(block=64, block_c=64, bands=4, chunk=4, rows=32, num_warps=4, num_stages=2)
    assert all(each.chunk % each.bands == 0 for each in tiles._neighbours([banded], 2))
    assert not tiles.fits(replace(banded, block=128, bands=4, num_warps=4, rows=64), problem, H200, banded)
    apply = Apply(block_l=64, block_c=64, rows=32, num_warps=4, num_stages=2)
    assert tiles.fits(replace(apply, block_c=256), problem, H200, apply)
    assert not tiles.fits(replace(apply, block_c=512), problem, H200, apply)  # more channels than there are


@pytest.mark.interpreter
def test_tuning_run_dry_writes_a_table_that_is_read(tmp_path, monkeypatch, capsys):
    small = Problem(B=1, K=3, C=20, H=6, W=7, values="rand")
    kernels = ("gather", "tiled")
    monkeypatch.setattr(tune, "problems", lambda: [(kernel, small) for kernel in kernels])
    monkeypatch.setenv("SSA_FAST_CONFIGS", str(tmp_path))
    assert tune.main(dry_run=True, seed=1, only="tiled") == 0
    assert not list(tmp_path.iterdir())
    path = tmp_path / f"{tile_tables.slug(gpu_info.INTERPRETER.name)}.json"
    old = {"kernel": "gather", "C": 4096, "L": 1, "K": 1, "config": {"block_l": 16, "rows": 16, "num_warps": 4}}
    table = {"gpu": "x", "arch": "sm_90", "source": "x", "versions": {}, "entries": [old]}
    path.write_text(json.dumps(table))
    assert tune.main(out=tmp_path, dry_run=True, seed=1) == 0
    written = tile_tables.read(path)
    assert report.DRY_RUN in written["source"]
    entries = tile_tables.entries(written, path)
    assert [entry.kernel for entry in entries] == [*kernels, "gather"]
    assert all("µs for the whole call" in entry.why and "next" in entry.why for entry in entries[:-1])
    assert report.DRY_RUN in capsys.readouterr().out
    rows = json.loads((tmp_path / "tune.json").read_text())["rows"]
    assert [row["what"].partition(",")[0] for row in rows[1:]] == [*kernels]
    for row in rows[1:]:
        assert row["status"] == "ok"
        assert len(row["tried"]) == 4  # two rounds of two
        assert row["tried"][0]["us"] > 0


@pytest.mark.interpreter
def test_candidates_that_fail_or_are_wrong_are_dropped(monkeypatch, tmp_path):
    small = Problem(B=1, K=3, C=20, H=6, W=7, values="rand")
    monkeypatch.setattr(tune, "problems", lambda: [("apply", small)])
    monkeypatch.setenv("SSA_FAST_CONFIGS", str(tmp_path))
    right, called = ours.write, []

    def write(method, gpu, problem, cam, f, out, given):
        right(method, gpu, problem, cam, f, out, given)
        if given["apply"] not in called:
            called.append(given["apply"])
        number = called.index(given["apply"])
        if number % 2 == 1:
            raise RuntimeError("out of resource: shared memory")
        if number:
            out.mul_(1.1)

    monkeypatch.setattr(ours, "write", write)
    assert tune.main(out=tmp_path, dry_run=True, seed=1) == 0
    (entry,) = tile_tables.read(next(path for path in tmp_path.iterdir() if path.name != "tune.json"))["entries"]
    assert entry["config"] == vars(called[0])
    assert "next" not in entry["why"]
    row = json.loads((tmp_path / "tune.json").read_text())["rows"][1]
    assert "2 ok, 2 failed" in row["why"]
    assert [each["us"] is not None for each in row["tried"]] == [True, *[False] * 3]
    assert ["shared memory" in (each["why"] or "") for each in row["tried"]] == [False, True] * 2
