"""The GPU benchmarks without a GPU: dry runs, what is reported of failures, plans, tiles, and missing tools."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, make_dataclass, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import gpu, gpu_timing, measure, providers, tiles, tune, workers
from bench.gpu_timing import GOALS, Case, Goal
from bench.problems import Problem, relative_error, sampled_truth, truth
from ssa_fast.kernels.config import Apply, Gather, Symmetric
from ssa_fast.ops import gpu_info, tile_tables

H200 = gpu_info.Gpu("NVIDIA H200", "sm_90", 132)
TINY = Problem(B=1, K=20, C=256, H=28, W=28, h=7, w=7, values="relu").tiny()
SIGNED = replace(TINY, values="randn")
BASELINES = [each.name for each in [*providers.PEERS, *providers.OTHERS]]
CPU = measure.Device(dry_run=True)


def saved_rows(path):
    return json.loads(path.read_text())["rows"]


@pytest.mark.interpreter
def test_every_timed_step_runs_dry_and_is_labelled(tmp_path, capsys, monkeypatch):
    rows = (
        Case("kernel", SIGNED, "tiled", dict.fromkeys(BASELINES)),
        gpu_timing.CASES[13],
        next(each for each in gpu_timing.CASES if each.kind == "backbone"),
    )
    monkeypatch.setattr(gpu_timing, "CASES", rows)
    code = gpu.main(["time", "--dry-run", "--seed", "3", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert printed.splitlines()[0] == printed.splitlines()[-1] == gpu.DRY_RUN
    saved = json.loads((tmp_path / "gpu-time.json").read_text())
    assert saved["settings"] == {"dry_run": True, "seed": 3, "budget_s": 540.0}
    assert saved["not_shown"] == gpu.NOT_SHOWN
    assert saved["machine"]["torch"] == torch.__version__
    assert {row["part"] for row in saved["rows"]} == {"roofline", "timing", "kernels"}
    assert {row["status"] for row in saved["rows"] if row["part"] != "kernels"} == {"ok"}
    assert {row["status"] for row in saved["rows"] if row["part"] == "kernels"} == {"skipped"}
    for goal in (goal for row in saved["rows"] for goal in row.get("goals", ())):
        assert goal["verdict"] in ("stretch", "must", "missed", "unknown")
        assert {"what", "value", "must", "stretch", "direction"} <= goal.keys()
    everyone, small, backbone = (row for row in saved["rows"] if row["part"] == "timing")
    assert [each["name"] for each in everyone["providers"]] == ["ours", *BASELINES]
    for each in everyone["providers"]:  # prototypes are wrong for signed features, so they are not timed
        assert each["status"] == ("wrong" if "algebra" in each["name"] else "ok"), each
        assert ("us" in each) == (each["status"] == "ok")
    assert [each["name"] for each in small["providers"]] == ["ours", "launch alone", *gpu_timing.DENSE]
    assert [goal["what"] for goal in small["goals"]][-2:] == [GOALS[key].what for key in gpu_timing.DENSE.values()]
    assert [each["name"] for each in backbone["providers"]] == ["ours", "forward", "sign unknown"]
    assert backbone["goals"][0]["value"] > 0


@pytest.mark.slow
@pytest.mark.interpreter
def test_the_check_runs_dry(tmp_path):
    command = [sys.executable, "-m", "bench", "gpu", "check", "--dry-run", "--only", "invariants", "--out", tmp_path]
    done = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = saved_rows(tmp_path / "gpu-check.json")
    assert any(row["what"].startswith("test_invariants.py::test_watched") for row in rows)
    assert {row["status"] for row in rows} == {"ok", "skipped"}
    assert all(row["why"] for row in rows if row["status"] == "skipped")


def test_a_failing_test_is_a_failed_row(tmp_path, monkeypatch):
    folder = tmp_path / "tests" / "kernels"
    folder.mkdir(parents=True)
    (folder / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    for name in ('--device', '--shard'):\n        parser.addoption(name)\n"
    )
    (folder / "test_kind.py").write_text(
        "import pytest\ndef test_right(): pass\ndef test_wrong(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='needs more')\ndef test_other(): pass\n"
    )
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    rows = gpu.run_tests(CPU, file="kind", part="1/1")
    assert [(row["what"].partition("::")[2], row["status"]) for row in rows] == [
        ("test_right", "ok"),
        ("test_wrong", "failed"),
        ("test_other", "skipped"),
    ]
    assert "1 == 2" in rows[1]["why"]
    assert rows[2]["why"].endswith("needs more")
    absent = workers.job("bench.gpu:run_tests", "tests: absent", 9, file="absent", part="1/1")
    assert workers.perform(absent, CPU)[0]["status"] == "failed"


@pytest.mark.interpreter
def test_a_baseline_without_memory_or_right_answer_is_a_result(monkeypatch):
    def without_memory(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")

    def wrong(device, problem, cam, f, variant):
        return (lambda: providers.dense_pcm(cam, f.float()) * 2) if variant == "wrong" else (lambda: 1 / 0)

    for name, build, variants in (
        ("dense PCM", lambda *_: without_memory, ("eager",)),
        ("chunked PCM", wrong, ("wrong", "crashes")),
    ):
        planted = replace(providers.PROVIDERS[name], build=build, variants=variants)
        monkeypatch.setitem(providers.PROVIDERS, name, planted)
    versus = {"dense PCM": "dense_16", "chunked PCM": "chunked_256", "algebra": "algebra_eager"}
    (row,) = gpu_timing.compare(CPU, case=Case("kernel", TINY, "prototypes", versus), seed=1)
    assert row["status"] == "ok"
    assert [each["status"] for each in row["providers"]] == ["ok", "out of memory", "wrong", "ok"]
    assert [goal["verdict"] for goal in row["goals"][1:3]] == ["unknown"] * 2
    assert row["goals"][3]["value"] > 0
    assert "dense PCM out of memory" in gpu.line(row)


@pytest.mark.interpreter
def test_a_wrong_kernel_is_a_wrong_row(monkeypatch, tmp_path):
    launch = tiles.launch
    monkeypatch.setattr(tiles, "launch", lambda *given, **more: 1.1 * launch(*given, **more))
    monkeypatch.setattr(gpu_timing, "CASES", (Case("kernel", TINY, "prototypes"),))
    assert gpu.main(["time", "--dry-run", "--only", "kernel", "--out", str(tmp_path)]) == 0  # selects none
    assert (
        gpu.main(["time", "--dry-run", "--only", "timing: prototypes B=1 K=3 C=20 L=6×7", "--out", str(tmp_path)]) == 1
    )
    assert saved_rows(tmp_path / "gpu-time.json")[0]["status"] == "wrong"


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
    assert Goal("x", 12, 6 if at_most else 24, at_most=at_most).row(value)["verdict"] == verdict


def test_the_share_of_a_copy_counts_two_reads_of_the_features():
    problem = Problem(B=1, K=2, C=64, H=32, W=32)  # the features are 2^-13 of the copied numbers, both of two bytes
    case = Case("kernel", problem, "prototypes", {"copy": "bandwidth", "xᵀx": "product"})
    found = {name: gpu_timing.Entrant(name, error=0.0) for name in ("ours", "copy", "xᵀx")}
    times = {name: [2.0**12, 2.0**13, 2.0**14] for name in ("copy", "xᵀx")} | {"ours": [1.0] * 3}
    _, copy, product = gpu_timing.judged(case, found, times)
    assert copy["value"] == 1.0
    assert product["value"] == round(2.0**-13, 5)


def test_refused_without_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for run, words in ((gpu.main, ["check"]), (tune.main, [])):
        assert run([*words, "--out", str(tmp_path / "x")]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("There is no GPU here: ")
        assert printed.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_time_that_is_up_is_told(tmp_path, capsys):
    assert gpu.main(["time", "--dry-run", "--budget", "0", "--only", "timing: ", "--out", str(tmp_path)]) == 0
    assert {row["status"] for row in saved_rows(tmp_path / "gpu-time.json")} == {"not reached"}
    assert "not reached" in capsys.readouterr().out


OPTIONS = gpu.argparse.Namespace(dry_run=False, seed=1, budget=1.0, commit="abc")


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


def test_a_killed_run_leaves_whole_json_with_its_rows(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    kept = gpu.Record(["gpu"], path, OPTIONS, CPU)
    assert kept.rows == saved_rows(path) == []
    row = {"part": "tests", "status": "failed", "why": "x" * 5000}
    told = killed(lambda number: kept.add([row | {"what": f"case {number}"}]))
    assert told <= len(saved_rows(path)) <= told + 1
    kept.add([row | {"what": "last"}] * 100)
    capsys.readouterr()
    assert kept.end() == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 250


@pytest.mark.parametrize(
    ("code", "output", "status"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", "ok"),
        (9, "========= Invalid __global__ write\n========= ERROR SUMMARY: 3 errors", "failed"),
        (9, "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", "failed"),
        (1, "Device not supported", "skipped"),
        (None, "not done in 150 s", "not reached"),
    ],
)
def test_what_the_sanitizer_says(code, output, status):
    row = gpu.said(code, output)
    assert row["status"] == status
    assert output.splitlines()[-1].removeprefix("========= ") in row["why"]


def test_a_sanitizer_that_is_missing_or_does_not_work_is_told(monkeypatch, tmp_path):
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho LibraryNotLoaded; exit 3\n")
    tool.chmod(0o755)
    task = workers.job("bench.gpu:sanitize", "sanitizer: x", 60, tool="memcheck", case="full")
    for found, why in ((str(tool), "LibraryNotLoaded"), (None, "compute-sanitizer is not on the PATH")):
        monkeypatch.setattr(gpu.shutil, "which", lambda _, found=found: found)
        (row,) = workers.perform(task, measure.Device())
        assert row["status"] == "skipped"
        assert why in row["why"]


@pytest.mark.parametrize("only", ["", "timing: ", "timing: tiled", "FlexAttention"])
def test_everything_timed_is_compiled_before(only):
    compiling, *others = gpu.plan("time", 1, False, only, 12)
    warmed = {(task.arguments["case"].name, task.arguments["name"]) for task in compiling.jobs}
    timed = [task for phase in others for task in phase.jobs if task.part == "timing"]
    assert bool(timed) == (only != "FlexAttention")
    for task in timed:
        case = task.arguments["case"]
        names = ["ours", *(name for name in case.versus if name in gpu_timing.COMPILED)]
        assert {(case.name, name) for name in names} <= warmed


@pytest.mark.interpreter
def test_what_compiles_calls_what_is_timed(monkeypatch):
    called = []
    monkeypatch.setattr(tiles, "launch", lambda *given, **_: called.append("launch"))
    monkeypatch.setattr(gpu_timing.Inputs, "baseline", lambda self, name, error_of: called.append(name))
    case = Case("kernel", SIGNED, "tiled", {"dense PCM": None, "FlexAttention": None})
    for name in ("FlexAttention", "ours"):
        assert gpu_timing.warm(CPU, case=case, name=name, seed=1) == []
    assert called == ["FlexAttention", "launch"]


def test_what_the_sanitizer_watches_are_tests():
    from tests.kernels.test_invariants import WATCHED

    assert [*WATCHED] == gpu.WATCHED
    assert all((measure.ROOT / "tests" / "kernels" / f"test_{name}.py").is_file() for name in gpu.TESTS)


def test_the_commands_of_the_documentation_are_understood():
    text = (measure.ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    found = [line.split("python3 -m bench ")[1:] for line in text.splitlines() if "python3 -m bench" in line]
    assert len(found) == 3
    commands = [shlex.split(each.partition(";")[0]) for line in found for each in line]
    assert [each[:2] for each in commands] == [["gpu", "check"], ["tune", "--out"], ["gpu", "time"]]
    for _, *given in commands:
        parser = gpu.argparse.ArgumentParser()
        parser.add_argument("suite", nargs="?")
        options = gpu.options_of(parser, given)
        assert (str(options.out), options.budget, options.dry_run) == ("$OUT", None, False)


def test_each_command_fits_its_limit():
    after = 15 + workers.GRACE_S + 10  # the process's start, a job under way, and the processes' end
    assert max(gpu.BUDGET_S, tune.BUDGET_S) + after <= 9.5 * 60
    for suite in ("check", "time"):
        shares = [phase.end for phase in gpu.plan(suite, 1, False, "", gpu.SIDE_BY_SIDE)]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
    assert [*tune.KERNELS.values()] == sorted(tune.KERNELS.values())
    assert set(tune.KERNELS) == {kernel for kernel, _ in tune.problems()} == set(tile_tables.KERNELS)


def test_a_killed_tuning_leaves_a_table_with_its_entries(tmp_path, monkeypatch):
    monkeypatch.setenv("SSA_FAST_CONFIGS", str(tmp_path))
    monkeypatch.setattr(measure.Device, "gpu", H200)

    def add_entry(table, base, number):
        tiles = {"block_l": 32, "block_c": 64, "num_warps": 4}
        table.add({"kernel": "prepare", "C": base + number, "L": 64, "K": 20, "config": tiles})

    add_entry(tune.Table(measure.Device(), tmp_path, False, "abc"), 0, 10**7)
    for _ in range(2):
        table = tune.Table(measure.Device(), tmp_path, False, "abc")
        before = len(tile_tables.read(table.path)["entries"])
        told = killed(functools.partial(add_entry, table, before * 10**4))
        written = tile_tables.read(table.path)
        assert before + told <= len(written["entries"]) <= before + told + 1
        assert written["entries"][-1]["C"] == 10**7  # an entry of an earlier run is kept
        assert "commit abc" in written["source"]


# What reading the compiled code of sm_90 found best: kernel, (C, side), tiles.
LEADS = [
    ("gather", 256, 128, dict(block_l=32, num_warps=4)),
    ("gather", 1024, 14, dict(block_c=256, num_stages=1)),
    ("gather", 2048, 7, dict(block_c=256, num_stages=1)),
    ("gather", 512, 28, dict(block_l=16, block_c=256)),
    ("apply", 1024, 32, dict(block_l=16, block_c=256, num_warps=4, num_stages=2)),
    ("tiled", 256, 128, dict(bands=2, chunk=4, block=128, block_c=64, num_warps=8, num_stages=3)),
    ("tiled", 1024, 32, dict(block=64, bands=1, chunk=1)),
]


@pytest.mark.filterwarnings("ignore:no tiles were measured")
@pytest.mark.parametrize(("kernel", "C", "side", "wanted"), LEADS)
def test_candidates_contain_the_tiles_that_the_compiled_code_speaks_for(kernel, C, side, wanted):
    (problem,) = [
        each
        for name, each in tune.problems()
        if (name, each.C, each.H, each.K, each.dtype, each.precision) == (kernel, C, side, 20, "float16", "default")
    ]
    search = tune.Search(kernel, problem, tiles.tiles(tiles.MODULES[kernel], H200, problem))
    search.propose(H200, tune.CANDIDATES[0])
    assert any(wanted.items() <= asdict(each.config).items() for each in search.tried)


@pytest.mark.filterwarnings("ignore:no tiles were measured")
def test_candidates_fit_and_begin_with_the_present_tiles():
    for kernel, problem in tune.problems():
        search = tune.Search(kernel, problem, tiles.tiles(tiles.MODULES[kernel], H200, problem))
        assert 8 <= len(search.propose(H200, tune.CANDIDATES[0])) <= tune.CANDIDATES[0]
        start, best = search.tried[0].config, search.tried[3]
        assert start == search.beside[search.argument]
        assert all(tiles.fits(each.config, problem, H200, start) for each in search.tried[1:])
        search.ranked = [best]
        found = search.propose(H200, tune.CANDIDATES[1])
        assert found
        assert len({each.config for each in search.tried}) == len(search.tried)
        for at in found:  # the neighbours of the best
            pairs = zip(asdict(search.tried[at].config).items(), asdict(best.config).items(), strict=False)
            assert sum(a != b for a, b in pairs) <= 2


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
    assert tune.main(["--dry-run", "--seed", "1", "--only", "tiled"]) == 0
    assert not list(tmp_path.iterdir())
    path = tmp_path / f"{tile_tables.slug(gpu_info.INTERPRETER.name)}.json"
    old = {"kernel": "gather", "C": 4096, "L": 1, "K": 1, "config": {"block_l": 16, "rows": 16, "num_warps": 4}}
    table = {"gpu": "x", "arch": "sm_90", "source": "x", "versions": {}, "entries": [old]}
    path.write_text(json.dumps(table))
    assert tune.main(["--dry-run", "--seed", "1", "--out", str(tmp_path)]) == 0
    written = tile_tables.read(path)
    assert gpu.DRY_RUN in written["source"]
    entries = tile_tables.entries(written, path)
    assert [entry.kernel for entry in entries] == [*kernels, "gather"]
    assert all("µs for the whole call" in entry.why and "next" in entry.why for entry in entries[:-1])
    assert gpu.DRY_RUN in capsys.readouterr().out
    rows = saved_rows(tmp_path / "tune.json")
    assert [row["what"].partition(",")[0] for row in rows] == [*kernels]
    for row in rows:
        assert row["status"] == "ok"
        assert len(row["tried"]) == 4  # two rounds of two
        assert row["tried"][0]["us"] > 0


@pytest.mark.interpreter
def test_candidates_that_fail_or_are_wrong_are_dropped(monkeypatch, tmp_path):
    small = Problem(B=1, K=3, C=20, H=6, W=7, values="rand")
    monkeypatch.setattr(tune, "problems", lambda: [("apply", small)])
    monkeypatch.setenv("SSA_FAST_CONFIGS", str(tmp_path))
    right, called = tiles.polish, []

    def polish(method, gpu, problem, cam, f, out, given):
        right(method, gpu, problem, cam, f, out, given)
        if given["apply"] not in called:
            called.append(given["apply"])
        number = called.index(given["apply"])
        if number % 2 == 1:
            raise RuntimeError("out of resource: shared memory")
        if number:
            out.mul_(1.1)

    monkeypatch.setattr(tune, "polish", polish)
    assert tune.main(["--dry-run", "--seed", "1", "--out", str(tmp_path)]) == 0
    (entry,) = tile_tables.read(next(path for path in tmp_path.iterdir() if path.name != "tune.json"))["entries"]
    assert entry["config"] == vars(called[0])
    assert "next" not in entry["why"]
    (row,) = saved_rows(tmp_path / "tune.json")
    assert "2 ok, 2 failed" in row["why"]
    assert [each["us"] is not None for each in row["tried"]] == [True, *[False] * 3]
    assert ["shared memory" in (each["why"] or "") for each in row["tried"]] == [False, True] * 2


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


def test_the_cache_is_flushed_by_reading():
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            read.append(max((each.numel() for each in args if isinstance(each, torch.Tensor)), default=0))
            return function(*args, **(kwargs or {}))

    device = measure.Device()
    names, read = [], []
    device.seconds(lambda: None)
    version = device._flushed._version
    with Watch():
        device.seconds(lambda: None)
    assert device._flushed._version == version
    assert read == [device._flushed.numel()]
    assert not any(name.split(".")[1].endswith("_") for name in names)  # an operation that writes its argument


# Jobs for the processes below.
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
    with workers.Workers() as pool:
        for some in (jobs[:3], jobs[3:]):  # the workers of the first list do the second
            found |= {task.name: rows[0] for task, rows in pool.run(some, count=2)}
    assert [found[task.name]["status"] for task in jobs] == ["ok", "failed", "over budget", "failed", "ok"]
    assert "exit code 7" in found["test: 1 dies"]["why"]
    assert "illegal memory access" in found["test: 3 breaks_the_context"]["why"]


@pytest.mark.slow
def test_workers_stop_when_the_time_is_up(monkeypatch):
    monkeypatch.setattr(workers, "GRACE_S", 0.1)
    jobs = [workers.job(f"{__name__}:hangs", f"test: {at}", 600.0) for at in range(2)]
    with workers.Workers() as pool:
        rows = [rows[0] for _, rows in pool.run(jobs, count=1, until=time.monotonic() + 0.5)]
    assert [row["status"] for row in rows] == ["not reached"] * 2
