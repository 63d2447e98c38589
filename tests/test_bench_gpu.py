"""Rehearse the GPU benchmarks on the CPU: every step runs, failures are reported, and no figure is claimed."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest
import torch

from bench import peers, stand, tune, workers
from bench.gpu import command, correctness, goals, ours, promises, report, sanitize, tiles, timing, whole
from bench.problem import Problem, relative_error, sampled_truth, truth
from ssa_fast.ops import gpu_info, tile_tables

H200 = gpu_info.Gpu("NVIDIA H200", "sm_90", 132)
TINY = correctness.SMALL
PEERS = [name for name in peers.PEERS if name != "KeOps"]  # not installed with any extra


@pytest.fixture
def few(monkeypatch):
    """Keep one job of each kind, so that a rehearsal takes seconds."""
    cases = [
        ("prototypes", TINY),
        ("symmetric", replace(TINY, values="randn")),
        ("resident", replace(TINY, values="randn", dtype="bfloat16")),
        ("auto", replace(TINY, values="mixed")),
    ]
    monkeypatch.setattr(correctness, "cases", lambda: iter(cases))
    monkeypatch.setattr(
        timing, "MAIN", (timing.MAIN[2], timing.MAIN[3], ("tiled", timing.SIGNED, dict.fromkeys(PEERS)))
    )
    monkeypatch.setattr(timing, "MORE", ())
    monkeypatch.setattr(whole, "SMALL_STAGES", whole.SMALL_STAGES[2:4])
    monkeypatch.setattr(promises, "memory_problems", lambda: [("tiled", TINY)])


def rehearse(tmp_path, **options):
    path = tmp_path / "gpu.json"
    code = command.main(save=path, rehearse=True, seed=3, **options)
    return code, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.interpreter
@pytest.mark.usefixtures("few")
def test_every_step_is_rehearsed_and_labelled(tmp_path, capsys):
    code, saved = rehearse(tmp_path, out=tmp_path / "unused")
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert printed.splitlines()[0] == printed.splitlines()[-1] == report.REHEARSAL
    assert len(printed.rpartition("\n\n")[2].splitlines()) <= report.LINES
    assert not (tmp_path / "unused").exists()
    assert saved["rehearsal"] is True
    rows = saved["rows"]
    assert {row["part"] for row in rows} == {"machine", "ceiling", "correctness", "promise", "timing", "sanitizer"}
    assert all(row["status"] in ("ok", "skipped") for row in rows)
    assert all(row["why"] for row in rows if row["status"] == "skipped")
    for row in rows:
        for goal in row.get("goals", ()):
            assert goal["verdict"] in ("moonshot", "must", "missed", "unknown")
            assert {"what", "value", "must", "moonshot", "direction"} <= goal.keys()
    everyone = next(row for row in rows if row["part"] == "timing" and row["what"].startswith("tiled"))
    assert [each["name"] for each in everyone["providers"]] == ["ours", *PEERS]
    for each in everyone["providers"]:  # prototypes are wrong for signed features, so they are not timed
        assert each["status"] == ("wrong" if "algebra" in each["name"] else "ok"), each
        assert ("us" in each) == (each["status"] == "ok")
    assert next(row for row in rows if "machine" in row)["machine"]["torch"] == torch.__version__


@pytest.mark.interpreter
@pytest.mark.usefixtures("few")
def test_a_wrong_kernel_fails_its_row_and_the_run(tmp_path, monkeypatch, capsys):
    right = ours.write

    def planted(way, gpu, problem, cam, f, out, given):
        right(way, gpu, problem, cam, f, out, given)
        out[0, 0, 1] *= 1.01

    monkeypatch.setattr(ours, "write", planted)
    code, saved = rehearse(tmp_path, only="correctness: prototypes")
    assert code == 1
    assert [row["status"] for row in saved["rows"]] == ["failed"]
    assert "WRONG failed correctness: prototypes" in capsys.readouterr().out


@pytest.mark.interpreter
@pytest.mark.usefixtures("few")
def test_a_kernel_that_writes_too_little_or_too_much_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "write", lambda *given: given[5].view(-1)[1:].fill_(0.5))
    code, saved = rehearse(tmp_path, only="correctness: prototypes")
    assert code == 1
    assert saved["rows"][0]["error"] == float("inf")
    monkeypatch.setattr(ours, "write", lambda *given: given[5].as_strided((1,), (1,), 0).fill_(0.5))
    code, saved = rehearse(tmp_path, only="correctness: prototypes")
    assert code == 1
    assert "beyond its output" in saved["rows"][0]["why"]


@pytest.mark.interpreter
def test_a_peer_without_memory_or_right_answer_is_a_result(monkeypatch):
    def without_memory(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")

    def wrong(bench, problem, cam, f):
        yield "wrong", lambda: peers.dense_pcm(cam, f.float()) * 2
        yield "crashes", lambda: 1 / 0

    monkeypatch.setitem(peers.PEERS, "dense PCM", lambda *given: iter([("eager", without_memory)]))
    monkeypatch.setitem(peers.PEERS, "chunked PCM", wrong)
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
        (True, 5.0, "moonshot"),
        (True, 6.0, "moonshot"),
        (True, 12.0, "must"),
        (True, 12.1, "missed"),
        (True, float("nan"), "unknown"),
        (False, 12.0, "must"),
        (False, 6.0, "missed"),
        (False, 30.0, "moonshot"),
        (False, None, "unknown"),
    ],
)
def test_goals(at_most, value, verdict):
    goal = goals.Goal("x", 12, 6 if at_most else 24, at_most=at_most)
    assert goal.verdict(value) == goal.row(value)["verdict"] == verdict


def test_a_goal_without_a_moonshot():
    assert goals.GOALS["memory_prototypes"].verdict(0.0) == "must"


def test_the_share_of_a_copy_counts_two_reads_of_the_features():
    problem = Problem(B=1, K=2, C=64, H=32, W=32)  # the features are 2^-13 of the copied numbers, both of two bytes
    mine, peer = (
        timing.Provider("ours", times=[1.0, 1.0, 1.0]),
        timing.Provider("copy", times=[2.0**12, 2.0**13, 2.0**14]),
    )
    assert timing.goals_row("bandwidth", mine, peer, problem)["value"] == 1.0
    assert timing.goals_row("product", mine, replace(peer, name="xᵀx"), problem)["value"] == round(2.0**-13, 4)


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
    code, saved = rehearse(tmp_path, budget=0.0, only="timing: ")
    assert code == 0
    assert {row["status"] for row in saved["rows"]} == {"not reached"}
    assert "not reached: " in capsys.readouterr().out


def test_the_report_is_whole_after_every_row(tmp_path):
    kept = report.Report({"rehearsal": False, "seed": 1, "seconds": 1.0}, tmp_path / "gpu.json")
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
    workers.run(
        jobs,
        count=2,
        until=time.monotonic() + 3600,
        report=lambda task, rows: found.update({task["name"]: rows[0]}),
        rehearse=True,
    )
    assert [found[task["name"]]["status"] for task in jobs] == ["ok", "failed", "timed out", "failed", "ok"]
    assert "exit code 7" in found["test: 1 dies"]["why"]
    assert "illegal memory access" in found["test: 3 breaks_the_context"]["why"]


@pytest.mark.slow
def test_workers_stop_when_the_time_is_up(monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 0.1)
    found = []
    jobs = [workers.job(f"{__name__}:hangs", f"test: {at}", 600.0) for at in range(2)]
    workers.run(jobs, count=1, until=time.monotonic() + 0.5, report=lambda _, rows: found.extend(rows), rehearse=True)
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
        assert promises.operand_bytes(problem, config) == held


@pytest.mark.filterwarnings("ignore:no tiles were measured")
def test_candidates_fit_and_begin_with_the_present_tiles():
    for kernel, problem in tune.problems():
        found = tune._candidates(kernel, problem, H200, tune.MOST)
        assert 5 < len(found) <= tune.MOST
        present = ours.tiles(tiles.MODULES[kernel], H200, problem)
        assert tiles.as_config(kernel, found[0]) in present.values()
        assert len({json.dumps(each, sort_keys=True) for each in found}) == len(found)


@pytest.mark.interpreter
def test_tuning_rehearsed_writes_a_table_that_is_read(tmp_path, monkeypatch, capsys):
    small = Problem(B=1, K=3, C=20, H=6, W=7, values="rand")
    kernels = ("gather", "apply", "tiled", "resident")
    monkeypatch.setattr(tune, "problems", lambda: [(kernel, small) for kernel in kernels])
    monkeypatch.setenv("SSA_FAST_CONFIGS", str(tmp_path))
    assert tune.main(rehearse=True, seed=1, only="resident") == 0
    assert not list(tmp_path.iterdir())
    path = tmp_path / "table.json"
    old = {"kernel": "gather", "C": 4096, "L": 1, "K": 1, "config": {"block_l": 16, "rows": 16, "num_warps": 4}}
    table = {"gpu": "x", "arch": "sm_90", "source": "x", "versions": {}, "entries": [old]}
    path.write_text(json.dumps(table))
    assert tune.main(out=path, rehearse=True, seed=1) == 0
    written = tile_tables.read(path)
    assert report.REHEARSAL in written["source"]
    entries = tile_tables.entries(written, path)
    assert [entry.kernel for entry in entries] == [*kernels, "gather"]
    assert all("µs for the whole call" in entry.why and "next" in entry.why for entry in entries[:-1])
    assert report.REHEARSAL in capsys.readouterr().out


@pytest.mark.interpreter
def test_candidates_that_fail_or_are_wrong_are_dropped(monkeypatch, tmp_path, capsys):
    small = Problem(B=1, K=3, C=20, H=6, W=7, values="rand")
    monkeypatch.setattr(tune, "problems", lambda: [("apply", small)])
    right, called = ours.write, []

    def write(way, gpu, problem, cam, f, out, given):
        right(way, gpu, problem, cam, f, out, given)
        called.append(given["apply"])
        number = len(set(called))
        if number == 2:
            raise RuntimeError("out of resource: shared memory")
        if number == 3:
            out.mul_(1.1)

    monkeypatch.setattr(ours, "write", write)
    assert tune.main(out=tmp_path / "table.json", rehearse=True, seed=1) == 0
    (entry,) = tile_tables.read(tmp_path / "table.json")["entries"]
    assert entry["config"] == vars(called[0])
    assert "next" not in entry["why"]
    assert "1 failed" in capsys.readouterr().out
