"""Test the grid of ``python -m bench``: names, providers, the ways in which a provider ends, and the files written."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import baselines, command, forks, grid, memory, problems, providers, roofline, table, trial, workers
from bench.networks import Network
from bench.problem import Problem, relative_error, sampled_truth, truth
from bench.providers import Provider, Workload
from bench.stand import Device

CPU = Device(device="cpu")
KINDS = ("", "/signed", "/shifted", "/centred", "/nhwc", "/K3/B2")
TINY_CEILINGS = (1 << 16, 64)
HANGS = 600  # seconds after which a test that waits fails
FOREVER = 3600  # seconds that no test takes

ROW = {
    *("problem", "B", "K", "C", "H", "W", "L", "dtype", "layout", "values", "affinity", "provider", "ours", "variant"),
    *("status", "why", "error", "warm_ms", "cold_ms", "rounds", "ratio", "peak_extra_mib", "share", "bound"),
}


# Names and suites.


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("resnet50/512/layer1", Problem(1, 20, 256, 128, 128, 16, 16, "float32", values="relu")),
        ("resnet50/224/layer4/K1000/B32", Problem(32, 1000, 2048, 7, 7, 7, 7, "float32", values="relu")),
        ("resnet50/1024/layer2/signed", Problem(1, 20, 512, 128, 128, 32, 32, "float32", values="randn")),
        ("resnet50-d8/512/layer3/K1", Problem(1, 1, 1024, 64, 64, 64, 64, "float32", values="relu")),
        (
            "resnet50-d8/512/layer4/B2/centred",
            Problem(2, 20, 2048, 64, 64, 64, 64, "float32", values="relu", affinity="center"),
        ),
        ("resnet50/32/layer1/nhwc", Problem(1, 20, 256, 8, 8, 1, 1, "float32", layout="nhwc", values="relu")),
        ("resnet50/4096", Network(1, 20, 4096)),
        ("efficientnet_b0/512", Network(1, 20, 512, "efficientnet_b0")),
        ("resnet50/96/K1/B4", Network(4, 1, 96)),
    ],
)
def test_a_name_says_a_problem(name, found):
    assert problems.problem(name) == found
    assert str(problems.parse(name)) == name


def test_defaults_need_not_be_named():
    assert str(problems.parse("resnet50/224/layer1/K20/B1")) == "resnet50/224/layer1"


@pytest.mark.parametrize(
    "name",
    [
        *("", "resnet50", "resnet50/100/layer1", "resnet50/0/layer1", "resnet50/224/layer5", "vgg/224/layer1"),
        *("resnet50/224/layer1/K0", "resnet50/224/layer1/B0", "resnet50/224/layer1/B2/K2", "resnet50-d8/224"),
        *("swin_t/512/features.1", "swin_t/512/layer1", "swin_t/512/signed"),
        *("resnet50/224/signed", "resnet50/224/layer1/signed/nhwc", " resnet50/224/layer1"),
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"^problem: expected <net>/<size>.* got '"):
        problems.parse(name)


@pytest.mark.parametrize("suite", problems.SUITES)
def test_suites(suite):
    names = problems.suite(suite)
    assert len(names) == len(set(names)) > 3
    assert all(str(problems.parse(name)) == name and problems.problem(name) for name in names)
    sizes = {}
    for name in names:  # a curve that ended at one size has ended at all larger ones
        label = problems.parse(name)
        sizes.setdefault(label.curve(), []).append(label.size)
    assert all(each == sorted(each) for each in sizes.values())


def test_what_the_suites_hold():
    curve = problems.suite("curve")
    assert [problems.parse(name).size for name in curve] == [224, 512, 1024, 2048, 4096] * 3
    labels = [problems.parse(name) for name in problems.suite("full")]
    assert {label.stage for label in labels} == {"", *problems.STAGES}
    assert {label.kind for label in labels} == {"", *problems.KINDS}
    assert {label.net for label in labels} == {*problems.NETS, *problems.WHOLE}
    assert {label.K for label in labels} == {1, 20, 1000}
    assert {label.B for label in labels} == {1, 32}


def test_problems_are_chosen_by_pattern():
    assert command.chosen(None, []) == problems.suite("small")
    found = command.chosen("curve", ["*/signed", "resnet50/32/layer1"])
    assert found == [*(name for name in problems.suite("curve") if "signed" in name), "resnet50/32/layer1"]
    with pytest.raises(ValueError, match="got 'vgg"):
        command.chosen(None, ["vgg*"])


def test_auto_and_what_is_followed_are_chosen_along():
    stage, network = (problems.problem(name) for name in ("resnet50/64/layer1", "resnet50/64"))
    assert [each.name for each in command.selected(providers.of(stage, CPU), ["xᵀx"])] == ["auto", "xᵀx"]
    assert [each.name for each in command.selected(providers.of(network, CPU), ["polish*"])] == [
        "backbone",
        "polish and fuse",
    ]
    assert command.selected(providers.of(network, CPU), ["auto"]) == []


# Providers.


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_provider_is_right_or_says_why_not(kind):
    problem = problems.problem(f"resnet50/32/layer1{kind}")
    dry_run = Device(dry_run=True)  # torch.compile without a compiler
    cam, f = problem.draw(CPU.device, 3)
    right = truth(problem, cam, f)
    names = [each.name for each in providers.of(problem, dry_run)]
    assert names[:2] == ["auto", "auto again"]
    assert {*baselines.BASELINES} - {"dense PCM float32"} <= {*names}
    for provider in providers.of(problem, dry_run):
        reasons = provider.reasons(problem, dry_run)
        assert all(isinstance(reason, str) and reason for reason in reasons)
        if reasons:
            continue
        found = list(provider.build(dry_run, problem, cam, f))
        assert len({variant for variant, _ in found}) == len(found) > 0
        for variant, call in found:
            out = call()
            if provider.answer == "square":
                x = torch.nn.functional.normalize(f[0].flatten(1).double(), dim=0)
                error = relative_error(out, x.mT @ x)
            else:
                error = relative_error(out.flatten(2), right)
            assert error < 1e-5, f"{provider.name}, {variant}"
        work = provider.work(problem, dry_run)
        assert min(work) > 0
    refused = {each.name for each in providers.of(problem, dry_run) if each.reasons(problem, dry_run)}
    assert ("algebra" in refused) == (kind in ("/signed", "/shifted", "/centred"))
    assert ("dense PCM" in refused) == (kind == "/shifted")
    assert ("xᵀx" in refused) == (kind == "/K3/B2")


def test_providers_of_a_gpu():
    problem = problems.problem("resnet50/64/layer1")

    class Gpu(Device):
        on_gpu = True

    names = [each.name for each in providers.of(problem, Gpu(device="cpu"))]
    assert len(names) == len(set(names))
    assert {"resident", "prototypes", "prototypes in PyTorch", "tiled", "tiled in PyTorch", "second_order"} <= {*names}


def test_a_compiler_is_needed(monkeypatch):
    problem = problems.problem("resnet50/64/layer1")
    assert providers.no_compiler(problem, CPU) == []
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    (reason,) = providers.no_compiler(problem, CPU)
    assert "g++" in reason


def test_the_truth_of_centred_features():
    problem = Problem(B=2, K=3, C=8, H=9, W=7, h=4, w=3, values="rand", affinity="center,power=2")
    cam, f = problem.draw(CPU.device, 5)
    at = torch.tensor([0, 13, 62])
    assert relative_error(sampled_truth(problem, cam, f, at, sources=10), truth(problem, cam, f)[-1][:, at]) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", problems.WHOLE)
def test_whole_networks(name):
    problem = problems.problem(f"{name}/64/K2")
    cam, net = problem.draw(CPU.device, 3)
    assert all(affinity.any_sign is (name != "resnet50") for affinity in net.affinities)
    forward, fused = providers.NETWORK
    layouts = dict(forward.build(CPU, problem, cam, net))
    logits = [call() for call in layouts.values()]
    assert relative_error(logits[0], logits[1].double()) < 1e-3
    for layout, call in fused.build(CPU, problem, cam, net):
        assert layout in layouts
        assert call().shape == (1, 2, 16, 16)
    shapes = [tuple(stage.shape[1:]) for stage in net.stages("contiguous")]
    assert shapes == [(C, 64 // step, 64 // step) for C, step in problems.WHOLE[name].values()]


# Results that are predicted.


def fresh(**more):
    given = {"stand": CPU, "place": None, "seed": 1, "limit_s": 20.0, "rounds": 2}
    return grid.Grid(**given, ceilings={"copy_gb_s": 10.0, "product_gflop_s": 100.0}, **more)


def test_the_hopeless_is_not_begun():
    name = "resnet50/4096/layer1/signed"
    wanted = [each for each in providers.PEERS if each.name in ("dense PCM", "chunked PCM", "algebra")]
    dense, chunked, algebra = fresh().rows(name, wanted)
    assert dense["status"] == "out of memory"
    assert dense["why"].startswith("predicted: it would hold 8 TiB and ")
    assert chunked["status"] == "over budget"
    assert chunked["why"] == "predicted: its 607 TFLOP take 6,069 s at the product's measured ceiling"
    assert algebra["status"] == "unsupported"
    assert "signed" in algebra["why"]


def test_ratios_are_of_the_rounds_of_both():
    assert grid.ratios([2.0, 4.0, 6.0], [1.0, 1.0])["p50"] == 3.0
    assert grid.ratios([], [1.0]) is None
    assert grid.quantiles(list(range(101)), 1) == {"p20": 20.0, "p50": 50.0, "p80": 80.0}


def test_shares_are_of_the_ceiling_that_binds():
    ceilings = {"copy_gb_s": 10.0, "product_gflop_s": 100.0}
    assert grid.share(Workload(10**11, 10**9, 0), ceilings, 2000.0) == {"share": 0.5, "bound": "product"}
    assert grid.share(Workload(10**9, 10**10, 0), ceilings, 2000.0) == {"share": 0.5, "bound": "copy"}
    assert grid.share(None, ceilings, 1.0) == {"share": None, "bound": ""}


def test_a_ceiling_that_was_not_measured_is_missing():
    assert roofline.giga_per_second(2 * 64**3, [3.0, 2.0]) == 2.621e-4  # slow, but not 0
    assert roofline.giga_per_second(10**9, [0.0]) is None
    missing = {"copy_gb_s": 10.0, "product_gflop_s": None}
    assert grid.share(Workload(10**11, 10**9, 0), missing, 2000.0) == {"share": None, "bound": ""}
    assert grid.seconds_at(None, 1e15) is None
    settings = {"limit_s": 1, "seed": 2}
    machine = {
        "cpu": "x",
        "cores": 2,
        "threads": 2,
        "memory_gib": 8,
        "torch": "2",
        "python": "3",
        "commit": "",
        "date": "",
    }
    assert "copy 10 GB/s, float32 product – GFLOP/s" in [*table.head(machine, missing, settings)][1]


def test_slow_calls_take_part_in_fewer_rounds():
    provider = providers.PEERS[0]
    rounds = [trial.Variant(provider, 0, seconds).rounds(15) for seconds in (1e-4, 0.3, 1.5, 9.0, 11.0)]
    assert rounds == [15, 5, 3, 3, 1]


# Complete runs, with planted providers: functions of this module, which the processes import by name.


def plant(name, build, ours=False):
    return Provider(name, build, providers.none, _work, ours=ours)


def _work(problem, stand):
    return Workload(1000, 1000, 0)


def build_wrong(stand, problem, cam, f):
    yield "twice as much", lambda: 2 * baselines.dense_pcm(cam, f)


def build_hungry(stand, problem, cam, f):
    bound, _ = resource.getrlimit(resource.RLIMIT_DATA)  # set by the fork; untouched pages take no memory
    gib = bound // 2**30 + 1
    yield "hungry", lambda: [torch.empty(1 << 28) for _ in range(gib)]


def build_sleeper(stand, problem, cam, f):
    yield "sleeper", lambda: time.sleep(FOREVER)
    yield "another", lambda: time.sleep(FOREVER)


def build_late(stand, problem, cam, f):
    """End as a call that takes longer than its limit does, without the wait."""
    yield "late", lambda: os.kill(os.getpid(), signal.SIGALRM)
    yield "another", lambda: os.kill(os.getpid(), signal.SIGALRM)


def build_killed(stand, problem, cam, f):
    yield "killed", lambda: os.kill(os.getpid(), signal.SIGKILL)


def build_broken(stand, problem, cam, f):
    yield "broken", lambda: 1 / 0
    yield "works", lambda: baselines.dense_pcm(cam, f)


def build_all_broken(stand, problem, cam, f):
    yield "broken", lambda: 1 / 0


ENDS = {
    "wrong": (build_wrong, "wrong", "relative error 1 against float64"),
    "hungry": (build_hungry, "out of memory", "allocate"),
    "late": (build_late, "over budget", f"a call took longer than {FOREVER} s"),
    "killed": (build_killed, "out of memory", "the system killed the process"),
    "all broken": (build_all_broken, "failed", "ZeroDivisionError"),
}


def planted(problem, stand):
    return [*providers.AUTO, *(plant(name, build) for name, (build, _, _) in ENDS.items()), plant("ok", build_broken)]


class Here:
    """Do jobs in this process, for tests that need no other."""

    def do(self, task):
        return workers.perform(task, CPU)

    hold = do

    def end(self):
        trial.inputs.cache_clear()


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(command, "ForkServer", Here)
    monkeypatch.setattr(memory, "settle", lambda: None)
    monkeypatch.setattr(memory, "beyond_cache", lambda: 1 << 16)
    monkeypatch.setattr(CPU, "_flush", None)


def ran(tmp_path, *given, providers_of=providers.of):
    path = tmp_path / "grid.json"
    given = [*given, "--save", str(path), "--rounds", "2", "--seed", "5", "--limit", str(FOREVER)]
    code = command.main(given, providers_of, TINY_CEILINGS)
    return code, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.slow
def test_every_end_is_a_result_and_a_curve_ends_once(tmp_path, capsys):
    names = ("resnet50/64/layer1", "resnet50/96/layer1")
    code, saved = ran(tmp_path, *(f"--problem={name}" for name in names), providers_of=planted)
    printed = capsys.readouterr()
    assert code == 0, printed.err  # only peers went wrong
    first, second = ([row for row in saved["rows"] if row["problem"] == name] for name in names)
    for name, (_, status, why) in ENDS.items():
        row, later = (next(row for row in rows if row["provider"] == name) for rows in (first, second))
        assert row["status"] == status, row
        assert why in row["why"], row
        assert row["warm_ms"] is row["cold_ms"] is row["ratio"] is None
        assert row["rounds"] == 0
        assert f"{name:19} {status}: " in printed.out
        if status in grid.ENDED:
            assert (later["status"], later["why"]) == (status, "already so at L=256")
        else:
            assert later["status"] == row["status"]
            assert later["why"] != "already so at L=256"
    for rows in (first, second):
        alive = {row["provider"]: row for row in rows if row["status"] == "ok"}
        assert [*alive] == ["auto", "auto again", "ok"]
        assert alive["ok"]["variant"] == "works"
        assert alive["auto"]["ratio"] is None
        for row in alive.values():
            assert row["rounds"] == 2
            assert row["warm_ms"]["p20"] <= row["warm_ms"]["p50"] <= row["warm_ms"]["p80"]
            assert row["error"] < 1e-5
        assert alive["auto again"]["ratio"]["p50"] > 0
    assert next(row for row in first if row["provider"] == "wrong")["error"] == pytest.approx(1.0, abs=1e-3)
    assert all(len(line) <= table.WIDTH for line in printed.out.splitlines()[1:])


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_wrong_answer_of_ours_fails_the_run(tmp_path, capsys):
    def mine(problem, stand):
        return [*providers.AUTO, plant("mine", build_wrong, ours=True)]

    code, saved = ran(tmp_path, "--problem", "resnet50/32/layer1", providers_of=mine)
    assert code == 1
    row = saved["rows"][-1]
    assert (row["provider"], row["status"], row["warm_ms"]) == ("mine", "wrong", None)
    assert "resnet50/32/layer1: mine is wrong: relative error 1 against float64" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_what_is_written(tmp_path, capsys):
    given = ["--problem", "resnet50/64/layer1", "--problem", "resnet50/64"]
    given += [f"--provider={name}" for name in ("auto*", "prototypes", "second_order", "chunked PCM", "xᵀx", "polish*")]
    code, saved = ran(tmp_path, *given)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert [*saved] == ["command", "machine", "ceilings", "settings", "rows"]
    assert saved["command"].startswith("python -m bench --problem resnet50/64/layer1")
    assert str(tmp_path) not in json.dumps(saved)
    assert saved["settings"] == {"suite": "", "rounds": 2, "limit_s": FOREVER, "seed": 5, "device": "cpu"}
    assert {"cpu", "cores", "threads", "memory_gib", "torch", "commit"} <= saved["machine"].keys()
    assert [*saved["ceilings"]] == ["copy_gb_s", "product_gflop_s"]
    assert all(value > 0 for value in saved["ceilings"].values())
    rows = {row["provider"]: row for row in saved["rows"]}
    assert [*rows] == [
        *("auto", "auto again", "prototypes", "second_order", "chunked PCM", "xᵀx", "backbone", "polish and fuse")
    ]
    fused = rows.pop("polish and fuse")
    assert fused.keys() == ROW | {"share_of_backbone"}
    assert [*fused["share_of_backbone"]] == ["p20", "p50", "p80"]
    assert fused["variant"] == rows["backbone"]["variant"]
    assert (fused["H"], fused["W"], fused["C"]) == (64, 64, 3)
    assert all(row.keys() == ROW for row in rows.values())
    assert [row["ours"] for row in rows.values()] == [True, True, True, True, False, False, False]
    assert rows.pop("second_order")["status"] == "unsupported"
    for row in rows.values():
        assert (row["status"], row["why"]) == ("ok", ""), row
        assert 0 <= row["error"] < 1e-3
        assert row["peak_extra_mib"] >= 0
    product = rows["xᵀx"]
    assert product["bound"] in ("product", "copy")
    assert product["share"] > 0


@pytest.mark.slow
def test_a_call_longer_than_its_limit_ends_its_process():
    problem = problems.problem("resnet50/32/layer1")
    given = {"problem": problem, "provider": plant("sleeper", build_sleeper), "at": 0, "seed": 1, "right": None}
    server = forks.ForkServer()
    try:
        (row,) = server.do(workers.job("bench.trial:check", "x", FOREVER, limit_s=0.05, **given))
        assert (row["status"], row["why"]) == ("over budget", "a call took longer than its limit")
        (row,) = server.do(workers.job(f"{__name__}:sleeps", "x", 0.05))
        assert (row["status"], row["why"]) == ("over budget", "the whole of it took longer than 0.05 s")
    finally:
        server.end()


def test_memory_is_what_the_process_grew_by(monkeypatch):
    readings = iter([{"VmRSS": 500, "VmHWM": 900}, {"VmRSS": 600, "VmHWM": 1700}, {"VmRSS": 500}, {"VmHWM": 400}])
    monkeypatch.setattr(memory, "_lines", lambda path: next(readings))
    monkeypatch.setattr(memory.Path, "write_text", lambda path, text: None)
    assert memory.watched(lambda: "result") == ("result", 1200)
    assert memory.watched(lambda: "result") == ("result", 0)


FILLED = 64 << 20


def build_filling(stand, problem, cam, f):
    def call():
        with mmap.mmap(-1, FILLED) as pages:
            pages.write(b"1" * FILLED)
        return baselines.dense_pcm(cam, f)

    yield "fills", call


def with_filling(problem, stand):
    return [*providers.AUTO, plant("fills", build_filling)]


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system resets no process's peak")
def test_memory_given_back_counts_at_its_peak(tmp_path):
    code, saved = ran(tmp_path, "--problem", "resnet50/32/layer1", providers_of=with_filling)
    assert code == 0
    auto, _, fills = saved["rows"]
    cpus = os.cpu_count()
    uncounted = cpus * max(64, 2 * cpus) * mmap.PAGESIZE / 2**20  # Linux counts each CPU's pages in batches
    written = 2 * FILLED / 2**20  # the bytes object, and the pages
    assert written - uncounted <= fills["peak_extra_mib"] <= written + uncounted + 4
    assert auto["peak_extra_mib"] <= uncounted + 4


@pytest.mark.usefixtures("here")
def test_a_budget_that_ends_is_told(tmp_path, capsys):
    code, saved = ran(tmp_path, "--problem", "resnet50/64/layer1", "--budget", "0")
    assert code == 3
    assert saved is None
    assert "ended before: resnet50/64/layer1." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--problem", "vgg/224/layer1"), "problem: expected <net>/<size>"),
        (("--problem", "vgg*"), "--problem: expected a pattern of names that --list prints, got 'vgg*'"),
        (("--provider", "nobody"), "--provider: no provider of these problems is named nobody; see --list"),
    ],
)
def test_wrong_usage(given, told, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(given)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_what_there_is_can_be_listed(capsys):
    assert command.main(["--suite", "curve", "--list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split() == ["resnet50/224/layer1", "1", "20", "256", "3,136", "56×56"]
    assert any(line.split()[:1] == ["algebra"] and "5 of 15" in line for line in printed)


def pid_and_sleep(stand, problem, cam, f):
    def call():
        Path(os.environ["GRID_PID"]).write_text(str(os.getpid()))
        time.sleep(FOREVER)

    yield "sleeps", call


def then_for_ever(problem, stand):
    return [*providers.AUTO, *([plant("sleeper", pid_and_sleep)] if problem.H > 8 else [])]


@pytest.mark.slow
def test_a_run_that_is_killed_keeps_what_it_has(tmp_path):
    path, pid = tmp_path / "grid.json", tmp_path / "pid"
    given = ["--problem=resnet50/32/layer1", "--problem=resnet50/64/layer1", f"--save={path}", "--rounds=2"]
    given.append(f"--limit={FOREVER}")
    code = f"from tests.test_bench_grid import *; command.main({given}, then_for_ever, TINY_CEILINGS)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"GRID_PID": str(pid)},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + HANGS
    while not (pid.exists() and pid.read_text()) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    sleeper = int(pid.read_text())
    process.kill()
    process.wait()
    saved = json.loads(path.read_text())
    assert [row["problem"] for row in saved["rows"]] == ["resnet50/32/layer1"] * 2
    until = time.monotonic() + HANGS
    while _runs(sleeper) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(sleeper)


def _runs(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


# Executors.


def works(_, number):
    return [{"status": "ok", "number": number, "pid": os.getpid()}]


def dies(_):
    os._exit(7)


def sleeps(_):
    time.sleep(FOREVER)


@pytest.mark.slow
def test_a_lone_worker_is_replaced():
    place = workers.WorkerProcess(dry_run=True)
    try:
        first, second = (place.do(workers.job(f"{__name__}:works", "x", HANGS, number=n))[0] for n in (1, 2))
        assert first["pid"] == second["pid"] != os.getpid()
        (row,) = place.do(workers.job(f"{__name__}:dies", "x", HANGS))
        assert row["status"] == "failed"
        assert "exit code 7" in row["why"]
        assert place.do(workers.job(f"{__name__}:works", "x", HANGS, number=3))[0]["pid"] != first["pid"]
    finally:
        place.end()


def test_how_a_process_ended():
    task = workers.job("x:y", "x", 1)
    found = [workers.ended(task, code, "said")["status"] for code in (-signal.SIGALRM, -signal.SIGKILL, 1)]
    assert found == ["over budget", "out of memory", "failed"]


def test_providers_can_be_sent_about():
    import pickle

    for name in ("resnet50/64/layer1", "resnet50/64"):
        for each in providers.of(problems.problem(name), CPU):
            again = pickle.loads(pickle.dumps(each))
            assert dataclasses.replace(again, build=None, reasons=None, work=None) == dataclasses.replace(
                each, build=None, reasons=None, work=None
            )
