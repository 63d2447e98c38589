"""Test the grid of ``python -m bench``: names, providers, the ways in which a provider ends, and files."""

from __future__ import annotations

import json
import mmap
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import __main__, calibrate, grid, problems, providers
from bench.measure import Device
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
        ("resnet50/96/K1/B4", Problem(4, 1, 3, 96, 96, 3, 3, "float32", layout="", net="resnet50")),
        (
            "efficientnet_b0/512",
            Problem(1, 20, 3, 512, 512, 16, 16, "float32", layout="", net="efficientnet_b0"),
        ),
    ],
)
def test_a_name_says_a_problem(name, found):
    assert problems.named(name) == found


@pytest.mark.parametrize(
    "name",
    [
        *("", "resnet50", "resnet50/100/layer1", "resnet50/0/layer1", "resnet50/224/layer5", "vgg/224/layer1"),
        *("resnet50/224/layer1/K0", "resnet50/224/layer1/B0", "resnet50/224/layer1/B2/K2", "resnet50-d8/224"),
        *("swin_t/512/layer1", "swin_t/512/signed", "resnet50/224/layer1/signed/nhwc", " resnet50/224/layer1"),
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"^problem: expected <net>/<size>.* got '"):
        problems.named(name)


@pytest.mark.parametrize("suite", problems.SUITES)
def test_a_curve_of_a_suite_ascends(suite):
    sizes = {}
    for name in grid.chosen(suite, []):  # one that ended at one size has ended at all larger ones
        sizes.setdefault(problems.curve(name), []).append(problems.named(name).L)
    assert all(each == sorted(each) for each in sizes.values())


def test_what_the_suites_hold():
    every = [problems.named(name) for name in problems.SUITES["full"]]
    assert {each.K for each in every} == {1, 20, 1000}
    assert {each.B for each in every} == {1, 32}
    assert {each.net for each in every} == {"", *problems.WHOLE}
    assert {each.values for each in every if not each.net} == {"relu", "randn"}
    assert {"phi=shifted", "center"} < {each.affinity for each in every}
    assert problems.SUITES["curve"][:2] == ["resnet50/224/layer1", "resnet50/512/layer1"]


def test_problems_are_chosen_by_pattern():
    assert grid.chosen(None, []) == problems.SUITES["small"]
    found = grid.chosen("curve", ["*/signed", "resnet50/32/layer1"])
    assert found == [*(name for name in problems.SUITES["curve"] if "signed" in name), "resnet50/32/layer1"]


def test_auto_and_what_is_followed_are_chosen_along():
    stage, network = (problems.named(name) for name in ("resnet50/64/layer1", "resnet50/64"))
    assert [each.name for each in grid.selected(providers.of(stage, CPU), ["xᵀx"])] == ["auto", "xᵀx"]
    found = [each.name for each in grid.selected(providers.of(network, CPU), ["polish*"])]
    assert found == ["backbone", "polish and fuse"]
    assert grid.selected(providers.of(network, CPU), ["auto"]) == []


# Providers.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "/signed", "/shifted", "/centred", "/nhwc", "/K3/B2"])
def test_every_provider_is_right_or_says_why_not(kind):
    problem, dry_run = problems.named(f"resnet50/32/layer1{kind}"), Device(dry_run=True)  # dry: no compiler
    cam, f = problem.draw(CPU.device, 3)
    right, refused = truth(problem, cam, f), set()
    assert [each.name for each in providers.of(problem, dry_run)][:2] == ["auto", "auto again"]
    for provider in providers.of(problem, dry_run):
        if reasons := provider.reasons(problem, dry_run):
            assert all(isinstance(reason, str) and reason for reason in reasons)
            refused.add(provider.name)
            continue
        assert min(provider.work(problem, dry_run)) >= 0
        for variant, call in provider.built(dry_run, problem, cam, f):
            if provider.answer == "square":
                error = problems.square_error(f, torch.arange(64), call())
            else:
                error = relative_error(call().flatten(2), right)
            assert error < 1e-5, f"{provider.name}, {variant}"
    assert ("algebra" in refused) == (kind in ("/signed", "/shifted", "/centred"))
    assert ("dense PCM" in refused) == (kind == "/shifted")
    assert ("xᵀx" in refused) == (kind == "/K3/B2")


def test_providers_of_a_gpu():
    class Gpu(Device):
        on_gpu = True

    names = [each.name for each in providers.of(problems.named("resnet50/64/layer1"), Gpu())]
    assert len(names) == len(set(names))
    assert {"resident", "prototypes", "prototypes in PyTorch", "tiled", "tiled in PyTorch", "second_order"} <= {*names}
    assert len(providers.PROVIDERS["FlexAttention"].names(problems.named("resnet50/64/layer1"), Gpu())) == 5


def test_a_compiler_is_needed(monkeypatch):
    problem = problems.named("resnet50/64/layer1")
    assert providers.no_compiler(problem, CPU) == ""
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
    for layout, call in forward.built(CPU, problem, cam, net):
        assert relative_error(call(), net.truth()) < 1e-3, layout
    assert all(call().shape == (1, 2, 16, 16) for _, call in fused.built(CPU, problem, cam, net))
    shapes = [tuple(stage.shape[1:]) for stage in net.stages("contiguous")[0]]
    assert shapes == [(C, 64 // step, 64 // step) for C, step in problems.WHOLE[name].values()]


# Figures.


def test_shares_are_of_the_ceiling_that_binds():
    ceilings = {"copy_gb_s": 10.0, "product_gflop_s": 100.0}
    assert grid.share(Workload(10**11, 10**9), ceilings, 2000.0) == {"share": 0.5, "bound": "product"}
    assert grid.share(Workload(10**9, 10**10), ceilings, 2000.0) == {"share": 0.5, "bound": "copy"}
    assert grid.share(None, ceilings, 1.0) == {"share": None, "bound": ""}


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
    "late": (build_late, "over budget", f"a call took longer than {FOREVER} s"),
    "killed": (build_killed, "out of memory", "the system killed the process"),
}


def planted(problem, device):
    ends = [plant(name, build) for name, (build, _, _) in ENDS.items()]
    return [*providers.AUTO, *ends, plant("ok", build_broken, ("broken", "works"))]


def ran(tmp_path, *given, providers_of=providers.of):
    path = tmp_path / "grid.json"
    given = [*given, "--save", str(path), "--rounds", "2", "--seed", "5", "--limit", str(FOREVER)]
    code = grid.main(given, providers_of, TINY_CEILINGS)
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
        (("--problem", "vgg*"), "--problem: expected a pattern of names that --list prints, got 'vgg*'"),
        (("--provider", "nobody"), "--provider: no provider of these problems is named nobody; see --list"),
    ],
)
def test_wrong_usage(given, told, capsys):
    with pytest.raises(SystemExit) as ended:
        grid.main([*given])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_what_there_is_can_be_listed(capsys):
    assert __main__.main(["--suite", "curve", "--list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].replace("|", "").split() == ["resnet50/224/layer1", "1", "20", "256", "3,136", "56×56"]
    assert any(line.split()[1:2] == ["algebra"] and "5 of 15" in line for line in printed)


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
    folder = Path(grid.__file__).parent
    for module, text in __main__.COMMANDS.values():
        assert (folder / f"{module}.py").exists() or (folder / module / "__init__.py").exists(), text


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
    code = f"from tests.test_bench_grid import *; grid.main({given}, then_for_ever, TINY_CEILINGS)"
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
