"""Test the guard against slow-downs: its statistics, its two trees, its gates, and the whole on planted faults."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("resource", reason="the guard reads the scheduler's counts, which Windows does not give")

from bench import compare
from bench.guard import cases, gates, plain, self_check, timing, trees, worker
from bench.guard.verdict import CONFIRMED, LEAST, Times
from bench.measure import ROOT
from ssa_fast import Affinity, reference

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
        with trees.copied(ROOT) as copy:
            shutil.copytree(copy, tmp_path / name)
        self_check.plant(tmp_path / name, planted)
        return tmp_path / name

    return make


def times(generator, *, sessions, slower=1.0, luck=0.01, noise=0.02, hit=0.1):
    """Make up times: each process has a bias, each sample noise, and some samples are disturbed by other processes."""
    found = Times()
    for _ in range(sessions):
        process = np.exp(luck * generator.standard_normal(3)) * [1, slower, 1]
        samples = process * np.exp(noise * generator.standard_normal((timing.ROUNDS, 3)))
        heavy = 1 + generator.pareto(1.1, samples.shape)  # of infinite variance
        found.sessions.append(1e-3 * np.where(generator.random(samples.shape) < hit, samples * heavy, samples))
    return found


NOISE = [dict(), dict(hit=0.2), dict(luck=0.02, noise=0.05)]


@pytest.mark.parametrize("noise", NOISE)
def test_equal_times_are_never_called_slower_or_faster(noise):
    generator = np.random.default_rng(0)
    verdicts = {times(generator, sessions=n, **noise).judge().verdict for n in range(LEAST, 20) for _ in range(20)}
    assert verdicts <= {"same", "too noisy"}


@pytest.mark.parametrize("noise", NOISE)
def test_a_slow_down_of_20_percent_is_seen(noise):
    generator = np.random.default_rng(0)
    for _ in range(100):
        judgement = times(generator, sessions=15, slower=1.2, **noise).judge()
        assert judgement.verdict == "slower"
        assert judgement.settled
        assert judgement.ratio == pytest.approx(1.2, rel=0.05)
    assert times(generator, sessions=15, slower=1 / 1.2, **noise).judge().verdict == "faster"


def test_the_band_has_a_floor_and_follows_the_noise():
    generator = np.random.default_rng(0)
    assert times(generator, sessions=9, luck=0, noise=1e-4).judge().band == pytest.approx(0.05)
    wide = times(generator, sessions=4, luck=0.1, noise=0.2).judge()
    assert wide.band > 0.15
    assert wide.verdict == "too noisy"
    assert not wide.settled


def test_few_sessions_settle_nothing_and_a_slow_down_takes_more_of_them():
    generator = np.random.default_rng(0)
    quiet = dict(luck=0.001, noise=0.001, hit=0)
    assert not times(generator, sessions=LEAST - 1, **quiet).judge().settled
    assert times(generator, sessions=LEAST, **quiet).judge().settled
    assert not times(generator, sessions=CONFIRMED - 1, slower=1.2, **quiet).judge().settled
    assert times(generator, sessions=CONFIRMED, slower=1.2, **quiet).judge().settled


UNMIXED = """
import importlib, sys
from pathlib import Path
from bench.guard import trees
tree = Path(sys.argv[1])
package = trees.import_from(tree)
for name in ("kernels.config", "kernels.configs", "models", "cli", "models.demo_net"):
    importlib.import_module(f"ssa_fast.{name}")
trees.assert_unmixed(tree)
assert all(str(tree) in str(each.__spec__.origin or each.__path__) for each in trees.modules().values())
for missing in ("io.images", "kernels.tiled"):
    try:
        importlib.import_module(f"ssa_fast.{missing}")
    except ModuleNotFoundError as error:
        print(error)
try:
    trees.import_from(tree)
except RuntimeError as error:
    print(error)
sys.modules["ssa_fast.kernels.config"].__file__ = "/elsewhere/config.py"
trees.assert_unmixed(tree)
"""


@pytest.mark.slow
def test_a_process_has_one_tree_only(tree):
    made = tree("lacking")
    (made / "ssa_fast" / "io" / "images.py").unlink()
    (made / "kernels" / "tiled.py").unlink()
    done = subprocess.run(
        [sys.executable, "-c", UNMIXED, str(made)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "no module named 'ssa_fast.io.images' in this tree",
        "no module named 'ssa_fast.kernels.tiled' in this tree",
        "expected a process without ssa_fast, found ssa_fast imported",
    ], done.stderr
    assert "RuntimeError: ssa_fast.kernels.config: expected it from the tree" in done.stderr


@pytest.fixture
def repository(tmp_path):
    """Make a git repository whose only commit holds a package."""
    folder = tmp_path / "repository"
    (folder / "ssa_fast").mkdir(parents=True)
    (folder / "ssa_fast" / "__init__.py").write_text("")
    for arguments in (["init"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_the_worktree_goes_whatever_happens(repository, error):
    (repository / "ssa_fast" / "__init__.py").write_text("uncommitted")
    seen = []

    def use():
        with trees.checked_out("HEAD", repository) as made:
            seen.extend([made, (made / "ssa_fast" / "__init__.py").read_text()])
            raise error

    with pytest.raises(error):
        use()
    assert seen[1] == ""
    assert not seen[0].exists()
    listed = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 1


def test_what_is_no_tree_is_refused(repository, tmp_path, capsys):
    with pytest.raises(trees.NotATree, match="got 'nowhere'"), trees.checked_out("nowhere", repository):
        pass
    for wrong in (["--base-tree", str(tmp_path)], [], ["HEAD", "--base-tree", str(ROOT)], ["HEAD", "--case", "none"]):
        with pytest.raises(SystemExit, match="2"):
            compare.main(wrong)
    said = capsys.readouterr().err
    assert "expected a folder with ssa_fast/__init__.py" in said
    assert "--case: expected a pattern that matches one of tiny/49" in said


@pytest.mark.parametrize("options", [{}, dict(power=2.0), dict(center=True)])
def test_the_plain_formula_is_the_reference(options):
    cam, f = torch.rand(2, 3, 5, 6, dtype=torch.float64), torch.randn(2, 8, 5, 6, dtype=torch.float64)
    expected = reference.polish_stage(cam.flatten(2), f.flatten(2), Affinity(**options))
    torch.testing.assert_close(plain.polish(cam, f, torch.float64, **options), expected, rtol=1e-13, atol=1e-13)


def test_every_set_has_its_names_once():
    for name, every in cases.SETS.items():
        assert len({case.name for case in every}) == len(every)
        assert cases.chosen(name) == list(every)
    assert [case.name for case in cases.chosen("small", "tiled/*")] == ["tiled/4096/signed", "tiled/1024/centred"]


def run(capsys, *arguments):
    """Return exit code and output of the command."""
    code = compare.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


@pytest.mark.slow
def test_a_wrong_result_gets_no_ratio(tree, capsys):
    code, said = run(capsys, "--base-tree", tree("base"), "--tree", tree("wrong", WRONG), "--case", CASE)
    assert code == 2
    assert f"RED {CASE}: error" in said
    assert "of the plain formula" in said
    assert "one rounding" in said
    assert "ratio" not in said


@pytest.mark.slow
def test_what_the_base_lacks_or_gets_wrong_is_not_judged_and_what_the_candidate_cannot_is_red(tree, capsys):
    without, broken = tree("without"), tree("broken", "raise ValueError('broken')")
    (without / "ssa_fast" / "models" / "demo_net.py").unlink()
    code, said = run(capsys, "--base-tree", tree("wrong", WRONG), "--tree", tree("whole"), "--case", CASE)
    assert code == 0
    assert "tiny/49 – – – – – the base is wrong" in " ".join(said.split())
    code, said = run(capsys, "--base-tree", without, "--tree", ROOT, "--case", "ssa/demo", "--gates", "off")
    assert code == 0
    assert "ssa/demo – – – – – new" in " ".join(said.split())
    code, said = run(capsys, "--base-tree", ROOT, "--tree", without, "--case", "ssa/demo")
    assert code == 2
    assert "RED ssa/demo: ModuleNotFoundError: no module named 'ssa_fast.models.demo_net' in this tree" in said
    code, said = run(capsys, "--base-tree", ROOT, "--tree", broken, "--case", CASE)
    assert code == 2
    assert "RED tiny/49: the package does not import: ValueError: broken" in said


class MadeUpWorker:
    """A process that times a tree, except that the times are made up.

    A tree with a planted slow-down takes ``slower`` as long as others. The noise is seeded; ``noise`` is its size.
    """

    generator, noise, slower = np.random.default_rng(0), 0.01, 1.2

    def __init__(self, tree, stand):
        self.seconds = 1e-3 * (self.slower if "_planted" in (tree / "ssa_fast" / "__init__.py").read_text() else 1.0)

    def begin(self, case):
        pass

    def sample(self, bursts, calls):
        return self.seconds * np.exp(self.noise * self.generator.standard_normal()), 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def made_up_times(monkeypatch):
    """Time every tree by ``MadeUpWorker``; the results are still computed, and checked, in real processes."""
    monkeypatch.setattr(MadeUpWorker, "generator", np.random.default_rng(0))
    monkeypatch.setattr(timing, "Worker", MadeUpWorker)
    return monkeypatch


@pytest.mark.slow
@pytest.mark.usefixtures("made_up_times")
def test_a_slow_down_of_20_percent_is_caught(tree, capsys, tmp_path):
    base, slower, file = tree("base"), tree("slower", self_check.SLOWER), tmp_path / "saved.json"
    code, said = run(capsys, "--base-tree", base, "--tree", slower, "--case", CASE, "--save", file)
    assert code == 1, said
    assert f"Got slower: {CASE} (ratio " in said
    assert "report: kernels unchanged" in said
    (row,) = (row for row in json.loads(file.read_text())["rows"] if row["part"] == "time")
    assert row["verdict"] == "slower"
    assert row["ratio"] == pytest.approx(1.2, rel=0.02), said
    assert row["band"] <= 0.1, said
    assert row["sessions"] == CONFIRMED


@pytest.mark.slow
@pytest.mark.usefixtures("made_up_times")
def test_a_tree_beside_its_copy_is_not(tree, capsys):
    code, said = run(capsys, "--base-tree", tree("base"), "--tree", tree("copy"), "--case", CASE)
    assert code == 0, said
    assert "No slower" in said


def test_times_that_stay_noisy_end_with_the_budget(made_up_times, tree):
    """Advance the clock by a second whenever it is read."""
    made_up_times.setattr(MadeUpWorker, "noise", 3.0)
    made_up_times.setattr(timing.time, "monotonic", itertools.count().__next__)
    base = tree("base")
    (times,) = timing.measure(base, base, cases.chosen("small", CASE), None, 30.0, lambda *_: None).values()
    assert times.judge().verdict == "too noisy"
    assert len(times.sessions) == 16  # the first session does not read the clock, each of the others reads it twice


@pytest.mark.slow
@pytest.mark.usefixtures("made_up_times")
def test_the_self_check_says_whether_the_guard_works(capsys):
    code, said = run(capsys, "--self-check")
    assert code == 0, said
    assert said.endswith("self-check passed\n")
    assert self_check.run(lambda given: 0) == 1
    assert capsys.readouterr().out.endswith("self-check failed: a slow-down of 20 %: exit code 0, expected 1\n")


def test_a_sample_is_the_median_of_its_bursts_per_call(monkeypatch):
    """Advance the clock by a given time in each call."""
    now, takes = [0.0], iter([0.1, 0.1, 5.0, 5.0, 0.3, 0.3])
    served = worker._Served.__new__(worker._Served)
    served.device, served.call = "cpu", lambda: now.__setitem__(0, now[0] + next(takes))
    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    seconds, switches = served.sample((3, 2))
    assert seconds == pytest.approx(0.3)
    assert switches >= 0


def test_the_planted_slow_down_takes_a_fifth_longer(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(worker.time, "perf_counter", lambda: now.__setitem__(0, now[0] + 2**-10) or now[0])
    planted = {"polish": lambda: now.__setitem__(0, now[0] + 1.0)}
    exec(self_check.SLOWER, planted)
    planted["polish"]()
    assert now[0] == pytest.approx(1.2, abs=2**-7)


def row(kernel="symmetric_kernel", **numbers):
    """Return a row of the ahead-of-time report."""
    common = dict(target="sm_90", kernel=kernel, config="BLOCK=128", what="float16", problems=[])
    return common | dict(registers=128, shared=1 << 16, matrix={"wgmma.mma_async": 8}) | numbers


def test_the_report_gate():
    spills = [["spills 8 bytes of registers"], ["spills 16 bytes of registers"]]
    same = gates.compare_reports([row(problems=spills[0])], [row(problems=spills[0], registers=120)])
    assert not same.worse
    assert "registers 128 → 120" in same.notes[0]
    for base, candidate in (
        (row(), row(problems=spills[0])),
        (row(problems=spills[0]), row(problems=spills[1])),
        (row(), row(matrix={"wgmma.mma_async": 7})),
        (row(), row(kernel="new_kernel", problems=["uses local memory"])),
    ):
        assert len(gates.compare_reports([base], [candidate]).worse) == 1
    assert not gates.compare_reports([row()], [row(), row(kernel="new_kernel")]).worse
    assert gates.compare_reports([row()], "SyntaxError: invalid syntax").worse == ["SyntaxError: invalid syntax"]
    assert "not judged" in gates.compare_reports("No module named ssa_fast.kernels", [row()]).summary


def test_the_host_gate():
    def runs(launches, *times):
        return [{"rows": [{"case": "one stage", "launches": launches, "us": us}]} for us in times]

    assert not gates.compare_hosts(runs(4, 20.0, 21.0), runs(4, 30.0, 24.0)).worse
    assert "4 launches, 4 before; 26.0 µs" in gates.compare_hosts(runs(4, 20.0, 21.0), runs(4, 30.0, 26.0)).worse[0]
    assert "5 launches, 4 before" in gates.compare_hosts(runs(4, 20.0), runs(5, 20.0)).worse[0]
    assert len(gates.compare_hosts(runs(4, 30.0), runs(4, 20.0)).notes) == 1
    assert gates.compare_hosts(runs(4, 20.0), ["ImportError: no"]).worse == ["ImportError: no"]
    assert "not judged" in gates.compare_hosts(["needs a C compiler"], runs(4, 20.0)).summary


def test_the_traffic_gate():
    numbers = {"bytes loaded": 100, "bytes stored": 10, "product FLOPs": 1000}
    for name in numbers:
        more = numbers | {name: numbers[name] + 1}
        assert len(gates.compare_traffic({"tiled": numbers}, {"tiled": more}).worse) == 1
        less = gates.compare_traffic({"tiled": more}, {"tiled": numbers})
        assert not less.worse
        assert len(less.notes) == 1
    assert not gates.compare_traffic({"tiled": "ValueError: no"}, {"tiled": numbers}).worse
    assert gates.compare_traffic({"tiled": numbers}, {"tiled": "ValueError: no"}).worse


def test_only_what_a_gate_reads_makes_it_run(tree):
    base, other = tree("base"), tree("other")
    (other / "ssa_fast" / "cli" / "__init__.py").write_text("")
    (other / "ssa_fast" / "localize" / "boxes.py").write_text("")
    assert "unchanged" in gates.report(base, other).summary
    assert "unchanged" in gates.traffic(base, other).summary
    (other / "ssa_fast" / "ops" / "triton_backend.py").write_text("")
    assert "unchanged" in gates.report(base, other).summary
    assert gates.fingerprint(base, "ssa_fast/api.py") != gates.fingerprint(other, "ssa_fast/api.py")
    read = gates.fingerprint(base, *gates.REPORTED)
    assert {
        "ssa_fast/ops/tile_tables.py",
        "ssa_fast/ops/gpu_info.py",
        "ssa_fast/affinity.py",
        "kernels/configs/sm_90.json",
    } <= set(read)
    assert "ssa_fast/api.py" not in read


@pytest.mark.interpreter
def test_a_kernel_that_loads_twice_is_caught(tree):
    pytest.importorskip("triton")
    twice = tree("twice")
    kernel = twice / "kernels" / "norms.py"
    line = next(
        line for line in kernel.read_text().splitlines(keepends=True) if line.strip().startswith("f = tl.load(")
    )
    assert line.count("(") == line.count(")")
    kernel.write_text(kernel.read_text().replace(line, line + line))
    found = gates.traffic(tree("base"), twice)
    calls = [what.partition(" bytes")[0].partition(":")[0] for what in found.worse]
    assert calls == ["prototypes", "shifted", "fusion"]
    assert all("bytes loaded" in what for what in found.worse)
