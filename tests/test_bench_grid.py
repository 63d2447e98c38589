"""Test the grid of ``python -m bench``: names, providers, the ways in which a provider ends, and files."""

from __future__ import annotations

import argparse
import importlib.util
import json
import mmap
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import __main__, calibrate, goals, grid, problems, providers
from bench.measure import Device, Times
from bench.problems import Problem, relative_error, sampled_truth, truth
from bench.providers import Provider, Workload
from bench.workers import Workers, job
from tests import grids

CPU = Device()
TINY_CEILINGS = (1 << 16, 64)
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
        (
            "resnet50-d8/512/layer4/B2/centred",
            Problem(2, 20, 2048, 64, 64, 64, 64, "float32", values="relu", affinity="center"),
        ),
        ("resnet50/32/layer1/nhwc", Problem(1, 20, 256, 8, 8, 1, 1, "float32", layout="nhwc", values="relu")),
        (
            "resnet50/32/layer1/K3/B2/shifted/centred/nhwc/bfloat16/high",
            Problem(2, 3, 256, 8, 8, 1, 1, "bfloat16", "nhwc", "randn", "phi=shifted,center", "high"),
        ),
        ("resnet50/96/K1/B4", Problem(4, 1, 3, 96, 96, 3, 3, "float32", layout="", net="resnet50")),
        ("swin_t/512/float16", Problem(1, 20, 3, 512, 512, 16, 16, "float16", layout="", net="swin_t")),
    ],
)
def test_a_name_says_a_problem(name, found):
    assert problems.named(name) == found


@pytest.mark.parametrize(
    "name",
    [
        *("", "resnet50", "resnet50/100/layer1", "resnet50/0/layer1", "resnet50/224/layer5", "vgg/224/layer1"),
        *("resnet50/224/layer1/K0", "resnet50/224/layer1/B0", "resnet50/224/layer1/B2/K2", "resnet50-d8/224"),
        *("swin_t/512/layer1", "swin_t/512/signed", "resnet50/224/layer1/nhwc/signed", " resnet50/224/layer1"),
        *("resnet50/224/layer1/signed/shifted", "resnet50/224/high", "resnet50/224/layer1/float32"),
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"^problem: expected <net>/<size>.* got '"):
        problems.named(name)


@pytest.mark.parametrize("suite", set(problems.SUITES) - {"gpu"})  # a GPU's has the most important first
def test_a_curve_of_a_suite_ascends(suite):
    sizes = {}
    for name in problems.SUITES[suite]:  # one that ended at one size has ended at all larger ones
        sizes.setdefault(problems.curve(name), {})[problems.named(name).L] = None
    assert all([*each] == sorted(each) for each in sizes.values())


def test_what_the_suites_hold():
    every = [problems.named(name) for suite in problems.SUITES.values() for name in suite]
    assert {each.K for each in every} == {1, 20, 200, 1000}
    assert {each.dtype for each in every} == {"float32", "float16", "bfloat16"}
    assert all(len(suite) == len({*suite}) for suite in problems.SUITES.values())
    assert {each.net for each in every} == {"", *problems.WHOLE}
    assert {each.values for each in every if not each.net} == {"relu", "randn"}
    assert {"phi=shifted", "center"} < {each.affinity for each in every}
    assert problems.SUITES["curve"][:2] == ["resnet50/224/layer1", "resnet50/512/layer1"]


def selected(*given, suite=None, problem=(), dry_run=False):
    options = argparse.Namespace(suite=suite, problem=problem, provider=given, dry_run=dry_run)
    found = grid.chosen(options, Device(dry_run=dry_run))
    return {name: [each.name for each in entrants] for name, (_, entrants) in found.items()}


def test_problems_are_chosen_by_pattern():
    assert [*selected()] == problems.SUITES["small"]
    found = [*selected(suite="curve", problem=["*/signed", "resnet50/32/layer1"])]
    assert found == [*(name for name in problems.SUITES["curve"] if "signed" in name), "resnet50/32/layer1"]


def test_auto_and_what_is_followed_are_chosen_along():
    stage, network = "resnet50/64/layer1", "resnet50/64"
    assert selected("xᵀx", "polish*", problem=[stage, network]) == {
        stage: ["auto", "xᵀx"],
        network: ["backbone", "polish and fuse"],
    }
    assert selected("auto", problem=[stage, network]) == {stage: ["auto"]}


# Providers.


@pytest.mark.slow
@pytest.mark.interpreter
@pytest.mark.parametrize("kind", ["", "/signed", "/shifted", "/centred", "/nhwc", "/K3/B2", "/float16", "/signed/high"])
def test_every_provider_is_right_or_says_why_not(kind):
    """In a dry run: without a compiler, and with a GPU's providers, in Triton's interpreter."""
    problem, dry_run = problems.named(f"resnet50/32/layer1{kind}"), Device(dry_run=True)
    cam, f = problem.draw(CPU.device, 3)
    right, refused = truth(problem, cam, f), set()
    most = 5e-3 if kind == "/float16" else 1e-5
    of_kernels = most if kind == "/signed/high" else 1e-3  # by default their products are of half precision
    every = providers.of(problem, dry_run)
    names = [each.name for each in every]
    assert names[:2] == ["auto", "auto again"]
    assert len(names) == len(set(names))
    assert {"resident", "prototypes", "prototypes in PyTorch", "tiled", "tiled in PyTorch", "second_order"} <= {*names}
    assert ("dense PCM float32" in names) == (kind == "/float16")
    for provider in every:
        if reasons := provider.reasons(problem, dry_run):
            assert all(isinstance(reason, str) and reason for reason in reasons)
            refused.add(provider.name)
            continue
        assert min(provider.work(problem, dry_run)) >= 0
        for variant in provider.names(problem, dry_run):
            out = provider.build(dry_run, problem, cam, f, variant)()
            if provider.answer == "square":
                error = problems.square_error(f, torch.arange(64), out)
            else:
                error = relative_error(out.flatten(2), right)
            assert error < (of_kernels if "triton" in variant else most), f"{provider.name}, {variant}"
    assert ("algebra" in refused) == (kind in ("/signed", "/shifted", "/centred", "/signed/high"))
    assert ("dense PCM" in refused) == (kind == "/shifted")
    assert ("xᵀx" in refused) == (kind == "/K3/B2")


def test_a_compiler_is_needed(monkeypatch):
    problem = problems.named("resnet50/64/layer1")
    assert providers.no_compiler(problem, CPU) == providers.no_compiler(problem, Device(dry_run=True)) == ""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "g++" in providers.no_compiler(problem, CPU)


def test_providers_can_be_sent_about():
    for each in providers.PROVIDERS.values():
        assert pickle.loads(pickle.dumps(each)).name == each.name


def test_the_truth_of_centred_features():
    problem = Problem(B=2, K=3, C=8, H=9, W=7, h=4, w=3, values="rand", affinity="center,power=2")
    cam, f = problem.draw(CPU.device, 5)
    at = torch.tensor([0, 13, 62])
    assert relative_error(sampled_truth(problem, cam, f, at, sources=10), truth(problem, cam, f)[-1][:, at]) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", problems.WHOLE)
def test_whole_networks(name):
    problem = problems.named(f"{name}/64/K2")
    cam, net = problem.draw(CPU.device, 3)
    assert all(affinity.any_sign is (name != "resnet50") for affinity in net.affinities)
    forward, fused = providers.of(problem, CPU)
    calls = {layout: forward.build(CPU, problem, cam, net, layout) for layout in forward.names(problem, CPU)}
    for layout, call in calls.items():  # each has a network of its own
        assert relative_error(call(), net.cropped(torch.float64)) < 1e-3, layout
        assert fused.build(CPU, problem, cam, net, layout)().shape == (1, 2, 16, 16)
    shapes = [tuple(stage.shape[1:]) for stage in net.stages("contiguous")[0]]
    assert shapes == [(C, 64 // step, 64 // step) for C, step in problems.WHOLE[name].values()]


# Figures.


def test_shares_are_of_the_ceiling_that_binds():
    ceilings, problem = {"copy_gb_s": 10.0, "float16_gflop_s": 100.0}, Problem(1, 1, 1, 1, 1)
    assert grid.share(Workload(10**11, 10**9), problem, ceilings, 2000.0) == {"share": 0.5, "bound": "product"}
    assert grid.share(Workload(10**9, 10**10), problem, ceilings, 2000.0) == {"share": 0.5, "bound": "copy"}
    assert grid.share(None, problem, ceilings, 1.0) == {"share": None, "bound": ""}


@pytest.mark.parametrize(
    ("at_most", "value", "verdict"),
    [
        (True, 6.0, "stretch"),
        (True, 12.0, "met"),
        (True, 12.1, "missed"),
        (True, float("nan"), "unknown"),
        (False, 30.0, "stretch"),
        (False, 12.0, "met"),
        (False, 6.0, "missed"),
        (False, None, "unknown"),
    ],
)
def test_a_goal_is_met_or_missed(at_most, value, verdict):
    judged = goals.Goal("tiled", "", "share", 12, 6 if at_most else 24).judged(value)
    assert (judged["verdict"], judged["direction"]) == (verdict, "<=" if at_most else ">=")
    assert verdict in goals.words(judged)


def test_goals_are_of_cold_times_and_of_rows():
    name = "resnet50/512/layer1/signed/float16"
    rows = {each: {"error": 2e-5} for each in ("auto", "tiled", "xᵀx", "dense PCM")}
    times = {each: Times(cold=[seconds] * 3) for each, seconds in (("tiled", 1.0), ("xᵀx", 2.0), ("dense PCM", 5.0))}
    goals.judge(name, rows, times)
    found = {goal["figure"]: (goal["value"], goal["verdict"]) for goal in rows["tiled"]["goals"]}
    assert found == {
        "xᵀx": (0.5, "stretch"),
        "dense PCM": (5.0, "met"),
        "error": (2e-5, "stretch"),
        **dict.fromkeys(("dense PCM float32", "FlexAttention", "chunked PCM"), (None, "unknown")),
    }
    assert not any("goals" in rows[each] for each in rows if each != "tiled")


def test_every_goal_is_on_providers_and_problems_that_there_are():
    wanted, judged = selected(suite="gpu", dry_run=True), set()
    figures = {"share", "error", "graph_ms", "eager_ms", "share_of_backbone", "graph_share_of_backbone"}
    for name, entrants in wanted.items():
        of_stage = {goal for goal in goals.of(name) if goal.provider in entrants}
        assert of_stage, name
        assert all(goal.figure in {*entrants, *figures} for goal in of_stage)
        judged |= of_stage
    assert judged == {*goals.GOALS}


# Complete runs, with planted providers: functions of this module, which the processes import by name.


def work(problem, device):
    return Workload(1000, 1000)


def plant(name, build, variants=("a",), ours=False):
    return Provider(name, build, work, variants=variants, ours=ours)


def build_wrong(device, problem, cam, f, variant):
    return lambda: 2 * providers.dense_pcm(cam, f)


def build_hungry(device, problem, cam, f, variant):
    bound, _ = resource.getrlimit(resource.RLIMIT_DATA)  # set by the worker; untouched pages take no memory
    return lambda: [torch.empty(1 << 28) for _ in range(bound // 2**30 + 1)]


def build_late(device, problem, cam, f, variant):
    """End as a call that takes longer than its limit does, without the wait."""
    return lambda: os.kill(os.getpid(), signal.SIGALRM)


def build_killed(device, problem, cam, f, variant):
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def build_broken(device, problem, cam, f, variant):
    return (lambda: 1 / 0) if variant == "broken" else lambda: providers.dense_pcm(cam, f)


ENDS = {
    "wrong": (build_wrong, "wrong", "relative error 1 against float64"),
    "hungry": (build_hungry, "out of memory", "allocate"),
    "late": (build_late, "over budget", "a call took longer than its limit"),
    "killed": (build_killed, "out of memory", "the system killed the process"),
}


def planted(problem, device):
    ends = [plant(name, build) for name, (build, _, _) in ENDS.items()]
    return [*providers.AUTO, *ends, plant("ok", build_broken, ("broken", "works"))]


def ran(tmp_path, *given, providers_of=providers.of):
    path = tmp_path / "grid.json"
    given = [*given, "--save", str(path), "--rounds", "2", "--seed", "5", "--limit", str(FOREVER)]
    with mock.patch.object(providers, "of", providers_of), mock.patch.dict(grid.SIZES, cpu=TINY_CEILINGS):
        code = grid.main(given)
    return code, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.slow
def test_every_end_is_a_result_and_a_curve_ends_once(tmp_path, capsys):
    names = ("resnet50/64/layer1", "resnet50/96/layer1")
    code, saved = ran(tmp_path, *(f"--problem={name}" for name in names), providers_of=planted)
    printed = capsys.readouterr()
    assert code == 0, printed.err  # only peers went wrong
    first, second = ({row["provider"]: row for row in saved["rows"] if row["problem"] == name} for name in names)
    for name, (_, status, why) in ENDS.items():
        row, later = first[name], second[name]
        assert row["status"] == status, row
        assert why in row["why"], row
        assert row["warm_ms"] is row["cold_ms"] is row["ratio"] is None
        assert f"{name}: {status}: " in printed.out
        expected = (status, "already so at L=256") if status in grid.ENDED else (status, row["why"])
        assert (later["status"], later["why"]) == expected
    for rows in (first, second):
        alive = {name: row for name, row in rows.items() if row["status"] == "ok"}
        assert [*alive] == ["auto", "auto again", "ok"]
        assert alive["ok"]["variant"] == "works"
        assert alive["auto"]["ratio"] is None
        for row in alive.values():
            assert row["rounds"] == 2
            assert row["warm_ms"]["p20"] <= row["warm_ms"]["p50"] <= row["warm_ms"]["p80"]
            assert row["error"] < 1e-5
        assert alive["auto again"]["ratio"]["p50"] > 0


def wrong_of_ours(problem, device):
    return [*providers.AUTO, plant("mine", build_wrong, ours=True)]


@pytest.mark.slow
def test_a_wrong_answer_of_ours_fails_the_run(tmp_path, capsys):
    code, saved = ran(tmp_path, "--problem", "resnet50/32/layer1", providers_of=wrong_of_ours)
    assert code == 1
    row = saved["rows"][-1]
    assert (row["provider"], row["status"], row["warm_ms"]) == ("mine", "wrong", None)
    assert "resnet50/32/layer1: mine is wrong: relative error 1 against float64" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_written(tmp_path, capsys):
    given = ["--problem", "resnet50/64/layer1", "--problem", "resnet50/64"]
    given += [f"--provider={name}" for name in ("auto*", "second_order", "xᵀx", "polish*")]
    code, saved = ran(tmp_path, *given)
    assert code == 0, capsys.readouterr().err
    assert {*saved} == {"command", "machine", "settings", "ceilings", "rows"}
    assert saved["command"].startswith("python -m bench --problem resnet50/64/layer1")
    assert str(tmp_path) not in json.dumps(saved)
    assert saved["settings"] == {"suite": "", "rounds": 2, "limit_s": FOREVER, "seed": 5, "device": "cpu"}
    assert {"cpu", "cores", "threads", "memory_gib", "torch", "commit"} <= saved["machine"].keys()
    assert all(value > 0 for value in saved["ceilings"].values())
    rows = {row["provider"]: row for row in saved["rows"]}
    ours = ["auto", "auto again", "second_order", "polish and fuse"]
    assert [*rows] == [*ours[:3], "xᵀx", "backbone", "polish and fuse"]
    assert [name for name, row in rows.items() if row["ours"]] == ours
    assert rows["auto"]["variant"].endswith(", torch")
    fused = rows.pop("polish and fuse")
    assert fused.keys() == ROW | {"share_of_backbone"}
    assert [*fused["share_of_backbone"]] == ["p20", "p50", "p80"]
    assert fused["variant"] == rows["backbone"]["variant"]
    assert all(row.keys() == ROW for row in rows.values())
    assert rows.pop("second_order")["status"] == "unsupported"
    for row in rows.values():
        assert (row["status"], row["why"]) == ("ok", ""), row
        assert 0 <= row["error"] < 1e-3
        assert row["peak_extra_mib"] >= 0
    assert rows["xᵀx"]["bound"] in ("product", "copy")
    assert rows["xᵀx"]["share"] > 0


FILLED = 64 << 20


def build_filling(device, problem, cam, f, variant):
    def call():
        with mmap.mmap(-1, FILLED) as pages:
            pages.write(b"1" * FILLED)
        return providers.dense_pcm(cam, f)

    return call


def with_filling(problem, device):
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


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--problem", "vgg/224/layer1"), "problem: expected <net>/<size>"),
        (("--problem", "vgg*"), "got 'vgg*'; --list prints those of a suite"),
        (("--provider", "nobody"), "--provider: no provider of these problems is named nobody; see --list"),
        (("--device", "cuda"), "--device: expected cpu, since PyTorch sees no GPU here, got cuda"),
        (("--suite", "gpu"), "--suite gpu: expected a GPU, and PyTorch sees none here; --dry-run tries every step"),
    ],
)
def test_wrong_usage(given, told, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        grid.main([*given])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_what_there_is_can_be_listed(capsys):
    assert __main__.main(["--suite", "curve", "--list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(problems.SUITES["curve"])
    assert printed[0].startswith("resnet50/224/layer1: B=1 K=20 C=256 L=56×56 float32 ")
    assert ["algebra" in line.split(", ") for line in printed] == [True] * 5 + [False] * 10


# A GPU's run, dry.


@pytest.mark.slow
@pytest.mark.interpreter
def test_a_gpus_run_runs_dry_and_is_labelled(tmp_path, capsys):
    names = ("resnet50/512/layer1/signed/float16", "resnet50/224/layer3/float16", "resnet50/512/float16")
    path = tmp_path / "gpu.json"
    given = [
        "--suite",
        "gpu",
        "--dry-run",
        "--seed",
        "3",
        "--save",
        str(path),
        *(f"--problem={name}" for name in names),
    ]
    code, printed = grid.main(given), capsys.readouterr().out
    assert code == 0, printed
    assert printed.splitlines()[0] == printed.splitlines()[-1] == grid.DRY_RUN
    saved = json.loads(path.read_text())
    assert saved["settings"]["note"] == grid.DRY_RUN
    assert {*saved["ceilings"]} == {"copy_gb_s", "float16_gflop_s"}
    assert list(dict.fromkeys(row["problem"] for row in saved["rows"])) == [*names]
    assert {row["status"] for row in saved["rows"]} == {"ok"}
    signed, small, network = ({row["provider"]: row for row in saved["rows"] if row["problem"] == n} for n in names)
    peers = ["dense PCM", "chunked PCM", "FlexAttention", "xᵀx", "dense PCM float32"]
    assert [*signed] == ["auto", "auto again", "tiled", *peers]
    assert {goal["figure"] for goal in signed["tiled"]["goals"]} == {*peers, "error"}
    assert all(goal["value"] > 0 for goal in signed["tiled"]["goals"])
    figures = {goal["figure"]: goal["verdict"] for goal in small["prototypes"]["goals"]}
    assert figures.keys() == {"graph_ms", "eager_ms", "error"}
    assert figures["graph_ms"] == "unknown"  # no graph is captured here
    assert figures["error"] in ("met", "stretch")
    assert [*network] == ["backbone", "polish and fuse"]
    assert network["polish and fuse"]["goals"][0]["value"] > 0
    assert "tiled: xᵀx " in printed


def test_time_that_is_up_is_told_of_every_provider(tmp_path):
    code, saved = ran(tmp_path, "--problem", "resnet50/32/layer1", "--budget", "0")
    assert code == 0
    ended = {row["status"] for row in saved["rows"]}
    assert ended == {"not reached", "unsupported"}
    assert {row["why"] for row in saved["rows"] if row["status"] == "not reached"} == {"the time was up"}


class Many:
    """Workers of whose jobs every second fails."""

    def run(self, tasks, *, count, until):
        assert count >= 1
        yield from ((task, [{"status": ("ok", "out of memory")[at % 2], "at": at}]) for at, task in enumerate(tasks))


def test_what_fails_side_by_side_is_tried_again_alone():
    own = grid.Grid(CPU, None, {"seed": 1, "limit_s": 1.0}, {})
    problem = problems.named("resnet50/32/layer1")
    wanted = {"x": (problem, [plant("a", build_wrong, ("1", "2", "3")), providers.PROVIDERS["second_order"]])}
    own.check_side_by_side(Many(), wanted, 0.0)
    assert {name: row["at"] for name, row in own.checked.items()} == {"check: x: a: 1": 0, "check: x: a: 3": 2}
    own._do = lambda task: {"status": "ok", "name": task.name}
    assert own._checked("x", *[wanted["x"][0], wanted["x"][1][0]]) == {
        "1": {"status": "ok", "at": 0},
        "2": {"status": "ok", "name": "check: x: a: 2"},
        "3": {"status": "ok", "at": 2},
    }


class Clock(Device):
    """A device on which calls take as long as they say."""

    def seconds(self, call, pause=0.0, cold=True):
        return call()


def build_timed(device, problem, cam, f, variant):
    return lambda: float(variant)


def test_the_fastest_variant_is_raced_and_followed():
    variants = ["0.002", "0.001", "breaks"]
    leader, follower = (plant(name, build_timed, variants) for name in ("leader", "follower"))
    entrants = [(leader, variants), (replace(follower, follows="leader"), ["0.001", "0.0005"])]
    (row,) = grid.race(Clock(), problem=problems.named("resnet50/32/layer1"), entrants=entrants, seed=1, rounds=2)
    assert row["variants"] == {"leader": "0.001", "follower": "0.001"}
    assert row["times"]["follower"].warm == [0.001] * 2


def build_slow_at_first(device, problem, cam, f, variant):
    times = iter([20.0])
    return lambda: next(times, 0.001)


def test_compilation_does_not_make_a_call_slow():
    provider = Provider("compiled", build_slow_at_first, work, (providers.no_compiler,))
    (row,) = grid.race(
        Clock(), problem=problems.named("resnet50/32/layer1"), entrants=[(provider, ["a"])], seed=1, rounds=2
    )
    assert row["times"]["compiled"].warm == [0.001] * 2


def test_a_gpus_race_gives_shares_of_the_forward_in_graphs_and_goals():
    own = grid.Grid(CPU, None, {"seed": 1, "limit_s": 1.0, "rounds": 3}, {"copy_gb_s": 1.0, "float16_gflop_s": 1.0})
    own.checked = {
        f"check: resnet50/64/float16: {each.name}: {variant}": {
            "status": "ok", "why": "", "seconds": 1.0, "error": 1e-3, "peak_extra_mib": 2.0,
        }
        for each in providers.NETWORK for variant in each.variants
    }  # fmt: skip
    seconds, graphs = {"backbone": 2.0, "polish and fuse": 0.2}, {"backbone": 1.0, "polish and fuse": 0.01}
    own._do = lambda task: {
        "status": "ok",
        "times": {name: Times(cold=[value] * 3, warm=[value] * 3) for name, value in seconds.items()},
        "variants": dict.fromkeys(seconds, "channels_last"),
        "host": {name: {"eager_ms": 1.0, "graph_ms": value} for name, value in graphs.items()},
    }
    name = "resnet50/64/float16"
    forward, fused = own.rows(name, problems.named(name), providers.NETWORK)
    assert (forward["variant"], forward["error"], forward["peak_extra_mib"]) == ("channels_last", 1e-3, 2.0)
    assert forward["ratio"]["p50"] == 10.0
    assert fused["share_of_backbone"]["p50"] == 0.1
    found = {goal["figure"]: goal["verdict"] for goal in fused["goals"]}
    assert found == {"share_of_backbone": "missed", "graph_share_of_backbone": "stretch"}
    assert any("graph_share_of_backbone 0.01: stretch" in line for line in grid.printed([forward, fused]))


# Inputs and the truth.


def test_sampled_truth_is_the_truth():
    problem = Problem(B=2, K=3, C=8, H=9, W=7, h=4, w=3, values="randn", affinity="power=2")
    cam, f = problem.draw(CPU.device, 5)
    at = torch.tensor([0, 13, 62])
    assert relative_error(sampled_truth(problem, cam, f, at, sources=10), truth(problem, cam, f)[-1][:, at]) < 1e-14


def test_errors_do_not_overlook_nan():
    right = torch.tensor([[1.0, float("nan"), 2.0]], dtype=torch.float64)
    assert relative_error(torch.tensor([[1.0, float("nan"), 2.5]]), right) == 0.25
    assert relative_error(torch.tensor([[1.0, 1.0, 2.0]]), right) == float("inf")
    assert relative_error(torch.tensor([[float("nan"), float("nan"), 2.0]]), right) == float("inf")
    assert relative_error(torch.tensor([[1.0]]), right) == float("inf")


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "sliced", "repeated"])
def test_layouts(layout):
    f = Problem(B=2, K=1, C=4, H=5, W=6, layout=layout).draw(CPU.device, 1)[1]
    assert f.shape == (2, 4, 5, 6)
    assert f.isfinite().all()
    assert f.is_contiguous() == (layout == "nchw")


def test_the_cache_is_flushed_by_reading():
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            read.append(max((each.numel() for each in args if isinstance(each, torch.Tensor)), default=0))
            return function(*args, **(kwargs or {}))

    device = Device()
    names, read = [], []
    device.seconds(lambda: None)
    version = device._flushed._version
    with Watch():
        device.seconds(lambda: None)
    assert device._flushed._version == version
    assert read == [device._flushed.numel()]
    assert not any(name.split(".")[1].endswith("_") for name in names)  # an operation that writes its argument


def test_rates_are_fitted_to_a_grid(tmp_path, capsys):
    """Times that follow given rates give these rates back, and the fastest method is picked."""
    rates, rows = calibrate.cost_model.Rates(4e10, 2e10, 1e5), []
    for name in problems.SUITES["rates"]:
        problem, sizes = problems.named(name), problems.named(name).row()
        for method in ("prototypes", "tiled", "dense", "second_order"):
            if reasons := providers.PROVIDERS[method].reasons(problem, CPU):
                assert reasons
                continue
            cost = calibrate.cost_model.cost(method, providers.counted(problem, CPU))
            ms = {"p50": 1e3 * (cost.flops / 4e10 + cost.bytes_moved / 2e10 + cost.launches / 1e5)}
            rows.append(sizes | {"problem": name, "provider": method, "status": "ok", "ours": True, "warm_ms": ms})
    path = grids.save(tmp_path / "rates.json", rows)
    assert calibrate.fit(calibrate.timings(path)) == pytest.approx(rates, rel=1e-6)
    assert __main__.main(["calibrate", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"fitted: the pick is within 10 % of the fastest in {len(problems.SUITES['rates'])} of" in printed


def test_commands(capsys):
    assert __main__.main(["nothing"]) == 2
    assert "expected a command of run, paths, " in capsys.readouterr().err
    for module, _ in __main__.COMMANDS.values():
        assert importlib.util.find_spec(f"bench.{module}"), module


def pid_and_sleep(device, problem, cam, f, variant):
    def call():
        Path(os.environ["GRID_PID"]).write_text(str(os.getpid()))
        time.sleep(FOREVER)

    return call


def then_for_ever(problem, device):
    return [*providers.AUTO, *([plant("sleeper", pid_and_sleep)] if problem.H > 8 else [])]


@pytest.mark.slow
def test_a_run_that_is_killed_keeps_what_it_has_and_leaves_nothing_else(tmp_path):
    path, pid, scratch = tmp_path / "grid.json", tmp_path / "pid", tmp_path / "scratch"
    scratch.mkdir()
    given = ["--problem=resnet50/32/layer1", "--problem=resnet50/64/layer1", f"--save={path}", "--rounds=2"]
    given.append(f"--limit={FOREVER}")
    code = f"from tests.test_bench_grid import *; providers.of = then_for_ever; grid.main({given})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"GRID_PID": str(pid), "TMPDIR": str(scratch)},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (pid.exists() and pid.read_text()) and process.poll() is None:
        time.sleep(0.05)
    sleeper = int(pid.read_text())
    process.kill()
    process.wait()
    assert [row["problem"] for row in json.loads(path.read_text())["rows"]] == ["resnet50/32/layer1"] * 2
    status = Path(f"/proc/{sleeper}/status")
    while status.exists() and "State:\tZ" not in status.read_text():  # a hang fails the test by its own limit
        time.sleep(0.05)
    assert not [each for each in scratch.rglob("*") if each.is_file() and each.suffix == ".log"]
    assert not list(scratch.glob("pymp-*"))


@pytest.mark.slow
def test_a_call_longer_than_its_limit_ends_its_process():
    problem = problems.named("resnet50/32/layer1")
    given = {"problem": problem, "provider": plant("sleeper", build_sleeper), "variant": "a", "seed": 1}
    with Workers() as own:
        (row,) = own.do(job("bench.grid:check", "x", FOREVER, limit_s=0.05, **given))
    assert (row["status"], row["why"]) == ("over budget", "a call took longer than its limit")


def build_sleeper(device, problem, cam, f, variant):
    return lambda: time.sleep(FOREVER)
