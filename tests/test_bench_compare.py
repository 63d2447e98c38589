"""Test the guard against slow-downs: its statistics, its two trees, its gates, and the whole on planted faults."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("resource", reason="the guard reads the scheduler's counts, which Windows does not give")

from bench import aot, compare, compare_jobs, measure
from bench.compare import CONFIRMED, LEAST, judged
from bench.measure import ROOT, Device
from tests.test_layout import import_graph

CASE = "tiny/49"
WRONG = """
def _planted(inner):
    def polish(*arguments, **options):
        out = inner(*arguments, **options)
        out[..., -1, -1] *= 1.0001
        return out

    return polish


polish = _planted(polish)
"""


@pytest.fixture
def tree(tmp_path):
    """Return a function that copies the package, with code planted at the end of ``ssa_fast/__init__.py``."""

    def make(name, planted=""):
        compare.copy_of(ROOT, made := tmp_path / name)
        with (made / "ssa_fast" / "__init__.py").open("a", encoding="utf-8") as file:
            file.write(planted)
        return made

    return make


def times(generator, *, sessions, slower=1.0, luck=0.01, noise=0.02, hit=0.1):
    """Make up times: each process has a bias, each sample noise, and some samples are disturbed by other processes."""
    found = []
    for _ in range(sessions):
        process = np.exp(luck * generator.standard_normal(3)) * [1, slower, 1]
        samples = process * np.exp(noise * generator.standard_normal((compare.ROUNDS, 3)))
        heavy = 1 + generator.pareto(1.1, samples.shape)  # of infinite variance
        found.append(1e-3 * np.where(generator.random(samples.shape) < hit, samples * heavy, samples))
    return found


NOISE = [dict(), dict(hit=0.2), dict(luck=0.02, noise=0.05)]


@pytest.mark.parametrize("noise", NOISE)
def test_a_slow_down_of_20_percent_is_seen_and_equal_times_are_never_called_slower_or_faster(noise):
    generator = np.random.default_rng(0)
    equal = {judged(times(generator, sessions=n, **noise))["verdict"] for n in range(LEAST, 20) for _ in range(20)}
    assert equal <= {"same", "too noisy"}
    for _ in range(100):
        found = judged(times(generator, sessions=15, slower=1.2, **noise))
        assert found["verdict"] == "slower"
        assert found["ratio"] == pytest.approx(1.2, rel=0.05)
    assert judged(times(generator, sessions=15, slower=1 / 1.2, **noise))["verdict"] == "faster"


def test_the_band_follows_the_noise_and_a_slow_down_takes_more_sessions():
    generator = np.random.default_rng(0)
    quiet = dict(luck=0.001, noise=0.001, hit=0)
    assert judged(times(generator, sessions=9, **quiet))["band"] == pytest.approx(0.05)
    wide = judged(times(generator, sessions=4, luck=0.1, noise=0.2))
    assert wide["band"] > 0.15
    assert wide["verdict"] == "too noisy"
    for least, slower in ((LEAST, 1.0), (CONFIRMED, 1.2)):
        assert judged(times(generator, sessions=least - 1, slower=slower, **quiet))["verdict"] == "too noisy"
        assert judged(times(generator, sessions=least, slower=slower, **quiet))["verdict"] != "too noisy"


UNMIXED = """
import importlib, sys
from pathlib import Path
from bench import workers
tree = Path(sys.argv[1])
package = workers.import_from(tree)
for name in ("kernels.config", "kernels.configs", "models", "cli", "models.demo_net"):
    importlib.import_module(f"ssa_fast.{name}")
workers.assert_unmixed(tree)
try:
    workers.import_from(tree)
except RuntimeError as error:
    print(error)
sys.modules["ssa_fast.kernels.config"].__file__ = "/elsewhere/config.py"
workers.assert_unmixed(tree)
"""


@pytest.mark.slow
def test_a_process_has_one_tree_only(tree):
    command = [sys.executable, "-c", UNMIXED, str(tree("own"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "expected a process without ssa_fast, found ssa_fast imported\n", done.stderr
    assert "RuntimeError: ssa_fast.kernels.config: expected it from the tree" in done.stderr


def test_a_revision_is_what_was_committed(tmp_path):
    repository = tmp_path / "repository"
    init = repository / "ssa_fast" / "__init__.py"
    init.parent.mkdir(parents=True)
    init.write_text("committed")
    (repository / "kernels").mkdir()
    (repository / "kernels" / "__init__.py").touch()
    for arguments in (["init"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "first"]):
        subprocess.run(["git", "-C", str(repository), *arguments], check=True, capture_output=True)
    init.write_text("changed")
    for source, text in (("HEAD", "committed"), (repository, "changed")):
        compare.copy_of(source, tmp_path / text, repository)
        assert (tmp_path / text / "ssa_fast" / "__init__.py").read_text() == text
        assert (tmp_path / text / "ssa_fast" / "kernels" / "__init__.py").is_file()
    (repository / "kernels" / "__init__.py").unlink()
    (repository / "kernels").rmdir()
    for source, why in (("nowhere", "got nowhere; git fetch it first"), (repository, "has no ssa_fast with kernels")):
        with pytest.raises(compare.Refused, match=why):
            compare.copy_of(source, tmp_path / why, repository)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_copied_trees_go_when_it_is_stopped(tmp_path, sent):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "bench", "compare", str(ROOT), "--no-gates"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert "base" in process.stdout.readline()
    assert len(list(tmp_path.glob("bench-compare-*/*"))) == 2
    process.send_signal(sent)
    process.wait(60)
    deadline = time.monotonic() + 10
    while list(tmp_path.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(tmp_path.glob("*"))


def run(capsys, *arguments):
    """Return exit code and output of the command."""
    code = compare.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["nowhere"], "No comparison: expected a commit, branch, tag or a folder with ssa_fast, got nowhere"),
        ([ROOT, "--tree", "nowhere"], "No comparison: expected a commit, branch, tag or a folder"),
        ([ROOT, "--case", "none"], "--case: expected a pattern that matches one of tiny/49"),
    ],
)
def test_wrong_arguments_are_refused(capsys, wrong, said):
    code, out = run(capsys, *wrong)
    assert code == 2
    assert said in out


LONE, FUSED = compare_jobs.COUNTED[0], compare_jobs.COUNTED[-1]


@pytest.mark.parametrize("case", [LONE, FUSED, compare_jobs.CASES[-1]], ids=lambda case: case.name)
def test_an_answer_is_checked_by_the_definition(case):
    """A right one passes; one that is off in a single pixel, of another size or not a number does not."""
    (row,) = compare_jobs.answer(Device("cpu"), case)
    out, *given = row["arrays"]
    assert not compare_jobs.mistake(case, [out, *given], on_gpu=False)
    off, smaller, nan = out.copy(), out[..., :-1], out.copy()
    off[0, 0, -1, -1] += 1e-3
    nan[0, 0, 0, 0] = float("nan")
    for wrong in (off, smaller, nan):
        assert "expected at most" in compare_jobs.mistake(case, [wrong, *given], on_gpu=False)


@pytest.mark.slow
def test_a_wrong_result_gets_no_ratio_and_a_wrong_base_no_judgement(tree, capsys):
    wrong, whole, broken = tree("wrong", WRONG), tree("whole"), tree("broken", "raise ValueError('broken')")
    code, said = run(capsys, whole, "--tree", wrong, "--case", CASE)
    assert code == 2
    assert f"RED {CASE}: error" in said
    assert "ratio" not in said
    code, said = run(capsys, wrong, "--tree", whole, "--case", CASE)
    assert code == 0
    assert f"not judged, the base's {CASE}: error" in said
    assert "tiny/49 | – | – | – | – | – | not judged" in " ".join(said.split())
    code, said = run(capsys, ROOT, "--tree", broken, "--case", CASE)
    assert code == 2
    assert "ValueError: broken" in said
    (whole / "ssa_fast" / "models" / "demo_net.py").unlink()
    code, said = run(capsys, ROOT, "--tree", whole, "--case", "ssa/demo")
    assert code == 2
    assert "RED ssa/demo: " in said
    assert "demo_net" in said


class MadeUp:
    """Times that are made up: a tree with a planted slow-down takes ``slower`` as long. Results are real."""

    def __init__(self):
        self.generator, self.noise, self.slower = np.random.default_rng(0), 0.01, 1.2

    def __call__(self, workers, case):
        planted = compare.SLOWER in (workers.tree / "ssa_fast" / "__init__.py").read_text()
        return 1e-3 * (self.slower if planted else 1.0) * np.exp(self.noise * self.generator.standard_normal())


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(compare, "seconds", found := MadeUp())
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("made_up")
def test_a_slow_down_of_20_percent_is_caught_and_a_copy_is_not(tree, capsys, tmp_path):
    base, slower, file = tree("base"), tree("slower", compare.SLOWER), tmp_path / "saved.json"
    code, said = run(capsys, base, "--tree", slower, "--case", CASE, "--save", file)
    assert code == 1, said
    assert f"Got slower; slower: {CASE}." in said
    saved = json.loads(file.read_text())
    (row,) = (row for row in saved["rows"] if row["part"] == "time")
    assert (row["verdict"], row["sessions"]) == ("slower", CONFIRMED)
    assert row["ratio"] == pytest.approx(1.2, rel=0.02), said
    assert saved["settings"]["candidate"] == f"the tree {slower}"
    code, said = run(capsys, base, "--tree", tree("copy"), "--case", CASE)
    assert code == 0, said
    assert "No slower" in said


def test_times_that_stay_noisy_end_with_the_budget(made_up, monkeypatch, tree):
    """Advance the clock by a second whenever it is read."""
    made_up.noise = 3.0
    monkeypatch.setattr(compare.time, "monotonic", itertools.count().__next__)
    base, (case, *_) = tree("base"), compare_jobs.CASES
    (sessions,) = compare.measure(base, base, [case], {}, 30.0).values()
    assert judged(sessions)["verdict"] == "too noisy"
    assert len(sessions) == 31  # the first does not read the clock


@pytest.mark.slow
def test_the_self_check_says_whether_the_guard_works(made_up, capsys):
    code, said = run(capsys, "--self-check")
    assert code == 0, said
    assert said.endswith("self-check passed\n")
    made_up.slower = 1.0
    code, said = run(capsys, "--self-check")
    assert code == 1
    assert said.endswith("self-check failed: a slow-down of 20 %: exit code 0, expected 1\n")


def test_a_case_that_fails_while_it_is_timed_is_told(capsys, monkeypatch):
    monkeypatch.setattr(compare, "mistakes", lambda *_: {})
    broken = compare_jobs.Case("broken", (compare_jobs.stage(8, 5, affinity="power=2"),), "prototypes")
    monkeypatch.setattr(compare, "CASES", [broken])
    code, said = run(capsys, ROOT, "--no-gates")
    assert code == 2
    assert "No comparison: broken, which had been right, failed while it was timed: ValueError: method" in said


def test_a_sample_is_the_median_of_its_bursts_per_call(monkeypatch):
    """Advance the clock by a given time in each call."""
    now, takes = [0.0], iter([1e-3, 1e-3, 5.0, 5.0, 2e-3, 2e-3])
    call = lambda: now.__setitem__(0, now[0] + next(takes))  # noqa: E731
    monkeypatch.setattr(compare_jobs, "warm", lambda *_: (call, 2, 3))
    monkeypatch.setattr(compare_jobs.time, "perf_counter", lambda: now[0])
    (found,) = compare_jobs.sample(Device("cpu"), compare_jobs.CASES[0])
    assert found["seconds"] == pytest.approx(2e-3)


def test_the_planted_slow_down_takes_a_fifth_longer(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now.__setitem__(0, now[0] + 2**-10) or now[0])
    planted = {"polish": lambda: now.__setitem__(0, now[0] + 1.0)}
    exec(compare.SLOWER, planted)
    planted["polish"]()
    assert now[0] == pytest.approx(1.2, abs=2**-7)


def rows(label="kernel", **numbers):
    return [{"label": label, "numbers": {"problems": 0, "registers": 128, "matrix": -8} | numbers}]


FAILED = [{"what": "report", "status": "failed", "why": "SyntaxError: no"}]


@pytest.mark.parametrize(
    ("base", "candidate", "worse", "notes"),
    [
        (rows(), rows(), [], []),
        (rows(spilled=8), rows(spilled=8, registers=140), [], ["kernel: registers 140, 128 before"]),
        (rows(spilled=8), rows(spilled=16), ["kernel: spilled 16, 8 before"], []),
        (rows(), rows(problems=1), ["kernel: problems 1, 0 before"], []),
        (rows(), rows(matrix=-7), ["kernel: matrix -7, -8 before"], []),
        (rows(), rows() + rows("new"), [], []),
        (rows(), rows("new", problems=1), ["new: problems 1, 0 before"], []),
        (rows(loaded=5242880), rows(loaded=5242881), ["kernel: loaded 5,242,881, 5,242,880 before"], []),
        (rows(launches=4), rows(launches=3), [], ["kernel: launches 3, 4 before"]),
        (rows(us=20.0), rows(us=30.0) + rows(us=24.0), [], ["kernel: us 24, 20 before"]),
        (rows(us=20.0) + rows(us=21.0), rows(us=30.0) + rows(us=26.0), ["kernel: us 26, 20 before"], []),
        (rows(), FAILED, ["report: SyntaxError: no"], []),
        (FAILED, rows(), [], ["the base's report: SyntaxError: no"]),
        (FAILED, FAILED, ["report: SyntaxError: no"], ["the base's report: SyntaxError: no"]),
    ],
)
def test_what_is_worse_for_a_gate_and_what_it_notes(base, candidate, worse, notes):
    gate = compare.weighed("", base, candidate)
    assert (gate["worse"], gate["notes"]) == (worse, notes)
    assert gate["verdict"] == ("worse" if worse else "same")


def test_the_numbers_of_a_gate_are_those_that_a_command_saves(monkeypatch):
    """A field that the command no longer has is an error, not a number that nobody compares."""
    saved = dict(target="sm_90", kernel="k", config="c", what="w", problems=["a", "b"], matrix={"HMMA": 3, "x": 1})
    saved |= dict(spilled=1, local=2, registers=3, shared=4)
    monkeypatch.setattr(aot, "main", lambda words: measure.save(Path(words[-1]), [saved]))
    (row,) = compare_jobs.figures(Device("cpu"), "aot", [])
    numbers = dict(problems=2, spilled=1, local=2, matrix=-4, registers=3, shared=4)
    assert row == {"label": "sm_90 k c w", "numbers": numbers}
    del saved["spilled"]
    with pytest.raises(KeyError, match="spilled"):
        compare_jobs.figures(Device("cpu"), "aot", [])


def test_a_worse_gate_fails_the_comparison(capsys, monkeypatch):
    monkeypatch.setattr(compare, "mistakes", lambda *_: {})
    monkeypatch.setattr(compare, "measure", lambda *_: {})
    monkeypatch.setattr(compare, "gate", lambda name, *_: compare.weighed(name, rows(), rows(problems=name == "host")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, said = run(capsys, ROOT, "--case", CASE)
    assert code == 1
    assert "host: 3 numbers compared, 0 new\n  WORSE kernel: problems 1, 0 before" in said
    assert "Got slower; worse: host." in said
    code, said = run(capsys, ROOT, "--case", CASE, "--no-gates")
    assert code == 0
    assert "host" not in said


def test_only_what_a_gate_depends_on_makes_it_run(tree):
    base, other = tree("base"), tree("other")
    (other / "ssa_fast" / "cli" / "__init__.py").write_text("")
    (other / "ssa_fast" / "localize" / "boxes.py").write_text("")
    assert all("unchanged" in compare.gate(name, base, other)["summary"] for name in compare.READ)
    (other / "ssa_fast" / "ops" / "triton_backend.py").write_text("")
    assert "unchanged" in compare.gate("report", base, other)["summary"]
    assert compare.read(base, "traffic") != compare.read(other, "traffic")
    read = compare.read(base, "report")
    assert {"ops/gpu_info.py", "affinity.py", "kernels/configs/sm_90.json"} <= set(read)
    assert "api.py" not in read


def imports_of(name):
    """Return all modules of the package that one imports, and those these import."""
    graph, waiting, found = import_graph(), [name], set()
    while waiting:
        if (module := waiting.pop()) not in found:
            found.add(module)
            waiting += graph[module]
    return found


@pytest.mark.parametrize(
    ("name", "roots"), [("report", ["ops.tile_tables", "ops.gpu_info"]), ("traffic", ["api"]), ("host", ["api"])]
)
def test_nothing_that_a_gate_depends_on_is_left_out(tree, name, roots):
    read = compare.read(tree("own"), name)
    needed = {module for root in roots for module in imports_of(f"ssa_fast.{root}")}
    files = {"/".join(module.split(".")[1:]) for module in needed if not module.startswith("ssa_fast.io")}
    assert {f"{file}.py" for file in files if file} - {"ops.py", "kernels.py"} <= read.keys()


@pytest.mark.interpreter
def test_a_kernel_that_loads_twice_is_caught(tree):
    pytest.importorskip("triton")
    twice = tree("twice")
    kernel = twice / "ssa_fast" / "kernels" / "norms.py"
    text = kernel.read_text()
    line = next(line for line in text.splitlines(keepends=True) if line.strip().startswith("f = tl.load("))
    assert line.count("(") == line.count(")")
    kernel.write_text(text.replace(line, line + line))
    found = compare.gate("traffic", tree("base"), twice)
    assert [what.partition(":")[0] for what in found["worse"]] == ["prototypes", "shifted", "fusion"]
    assert all("bytes loaded" in what for what in found["worse"])
