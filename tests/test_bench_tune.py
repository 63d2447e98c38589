"""The three steps on a GPU without a GPU: the scripts with stand-ins for what they call, and tuning run dry."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import asdict, make_dataclass, replace

import pytest
import torch

from bench import tiles, tune
from bench.measure import ROOT, Device
from bench.problems import Problem
from ssa_fast.kernels.config import Gather, Symmetric
from ssa_fast.ops import gpu_info, tile_tables
from tests.kernels import test_invariants

H200 = gpu_info.Gpu("NVIDIA H200", "sm_90", 132)
SMALL = Problem(B=1, K=3, C=20, H=6, W=7, values="rand")
TABLE = f"{tile_tables.slug(gpu_info.INTERPRETER.name)}.json"

PYTHON = """#!/bin/sh
case "$*" in
    "-c import torch"*) exit "$NO_GPU" ;;
    "-c import"*) exit "$NO_PLUGIN" ;;
    *) echo "$*" >>"$CALLS"; exit "$TESTS" ;;
esac
"""
SANITIZER = """#!/bin/sh
echo "$*" >>"$CALLS"
while [ "$1" != --log-file ]; do shift; done
[ -z "$FOUND" ] || echo "========= $FOUND" >"$2"
exit 1
"""


@pytest.fixture
def run_script(tmp_path):
    """Return a function that runs a script of bench with stand-ins for the programs named; it returns what came."""

    def run(script, programs, **environment):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in programs.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        given = {"PATH": f"{folder}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), **environment}
        command = ["bash", str(ROOT / "bench" / script), str(tmp_path / "out")]
        return subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    ("failing", "found", "code"),
    [
        ("0", "ERROR SUMMARY: 0 errors", 0),
        ("1", "ERROR SUMMARY: 0 errors", 1),
        ("0", "ERROR SUMMARY: 10 errors", 1),
        ("0", "RACECHECK SUMMARY: 20 hazards displayed (0 errors, 20 warnings)", 0),
        ("0", "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", 1),
        ("0", "", 0),
        ("0", None, 0),
        ("1", None, 1),
    ],
)
def test_the_check_says_whether_anything_was_wrong(run_script, tmp_path, failing, found, code):
    programs = {"python3": PYTHON} | ({} if found is None else {"compute-sanitizer": SANITIZER})
    done = run_script("gpu-check.sh", programs, NO_GPU="0", NO_PLUGIN="0", TESTS=failing, FOUND=found or "")
    assert done.returncode == code, done
    tests, *watched = (tmp_path / "calls").read_text().splitlines()
    files = re.findall(r"tests/kernels/\S+", tests)
    assert len(files) == 9
    assert files[0].endswith("test_shipped.py")
    assert all((ROOT / each).is_file() for each in files)
    assert f"--junitxml {tmp_path}/out/kernels.xml" in tests
    assert re.search(r"-n \d+ --maxprocesses 12 --timeout 120", tests)
    if found is None:
        assert "compute-sanitizer is not on the PATH" in done.stdout
        assert not watched
        return
    assert [line.split()[1] for line in watched] == ["memcheck", "racecheck"]
    assert all(line.endswith("tests/kernels/test_invariants.py -k test_watched") for line in watched)
    assert test_invariants.test_watched
    assert done.stdout.count(found or "it does not work here") == 2


def test_the_check_does_without_plugins_and_refuses_without_a_gpu(run_script, tmp_path):
    done = run_script("gpu-check.sh", {"python3": PYTHON}, NO_GPU="1", NO_PLUGIN="1", TESTS="0")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    (tmp_path / "bin").rename(tmp_path / "before")
    done = run_script("gpu-check.sh", {"python3": PYTHON}, NO_GPU="0", NO_PLUGIN="1", TESTS="0")
    assert done.returncode == 0
    assert not {"-n", "--timeout"} & {*(tmp_path / "calls").read_text().split()}


@pytest.mark.interpreter
def test_counters_are_those_of_calls_that_work(run_script, tmp_path, monkeypatch):
    done = run_script("gpu-counters.sh", {"ncu": '#!/bin/sh\nprintf "%s\\n" "$@" >"$CALLS"\n'})
    assert done.returncode == 0, done.stderr
    options, _, code = (tmp_path / "calls").read_text().partition("python3\n-c\n")
    assert f"--log-file\n{tmp_path}/out/counters.csv\n" in options
    launched, real, draw = [], tiles.launch, Problem.draw

    def launch(method, problem, *_):
        launched.append(method)
        tiny = problem.tiny()
        assert real(method, tiny, *draw(tiny, torch.device("cpu"), 0)).isfinite().all()

    monkeypatch.setattr(tiles, "launch", launch)
    monkeypatch.setattr(Problem, "draw", lambda *_: (None, None))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    exec(code, {})
    assert launched == ["prototypes", "tiled", "resident"]
    (pattern,) = re.findall("regex:(.+)", options)
    kernels = {
        name for path in (ROOT / "kernels").glob("*.py") for name in re.findall(r"def (\w+_kernel)\(", path.read_text())
    }
    assert {"gather_kernel", "apply_kernel", "symmetric_kernel", "resident_kernel"} <= {
        name for name in kernels if re.search(pattern, name)
    }


def test_counters_need_their_program(run_script):
    done = run_script("gpu-counters.sh", {})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_each_command_fits_its_limit():
    """A command on the page takes at most 9.5 minutes."""
    check, counters = ((ROOT / "bench" / name).read_text() for name in ("gpu-check.sh", "gpu-counters.sh"))
    pairs = re.findall(r"timeout .*?-k (\d+) (\d+) ", check + counters)
    tests, tool, counting = (int(after) + int(limit) for after, limit in pairs)
    assert tests + 2 * tool + 15 <= 570
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    (budget,) = re.findall(r'bench tune --out "\$OUT" --budget (\d+) && bash bench/gpu-counters.sh "\$OUT"', page)
    assert int(budget) + counting + 15 <= 570
    assert 'bash bench/gpu-check.sh "$OUT"' in page


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "there is no GPU here: "),
        (["--dry-run"], "--dry-run: expected --out"),
        (["--only", "fusion"], "invalid choice: 'fusion'"),
    ],
)
def test_what_cannot_be_tuned_is_refused(monkeypatch, capsys, given, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        tune.main(given)
    assert ended.value.code == 2
    assert why in capsys.readouterr().err.splitlines()[-1]


def test_a_gpu_without_kernels_and_a_broken_table_are_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SSA_FAST_CONFIGS", str(tmp_path))
    for gpu, why in ((gpu_info.Gpu("Old", "sm_70", 80), "sm_70"), (H200, "nvidia-h200.json: expected JSON")):
        (tmp_path / "nvidia-h200.json").write_text("no table")
        monkeypatch.setattr(Device, "gpu", gpu)
        with pytest.raises(SystemExit):
            tune.main(["--dry-run", "--out", str(tmp_path)])
        assert why in capsys.readouterr().err.splitlines()[-1]


def search_of(kernel, problem):
    return tune.Search(kernel, problem, tiles.tiles(tune.MODULES[kernel], H200, problem))


def test_every_kernel_is_tuned():
    assert {kernel for kernel, _ in tune.problems()} == {*tune.MODULES} == {*tile_tables.KERNELS}


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
    found = search_of(kernel, problem).propose(tune.ROUNDS[0][0])
    assert any(wanted.items() <= asdict(each).items() for each in found)


@pytest.mark.filterwarnings("ignore:no tiles were measured")
@pytest.mark.parametrize("kernel", tune.MODULES)
def test_candidates_begin_with_the_present_tiles_and_go_on_around_the_best(kernel):
    for problem in (each for name, each in tune.problems() if name == kernel):
        search = search_of(kernel, problem)
        first = search.propose(12)
        assert len({*first}) == len(first) >= 8
        assert first[0] == search.start
        assert kernel != "tiled" or len({type(each) for each in first}) == 2
        search.tried = {each: {"status": "ok", "us": 5.0} for each in first} | {first[3]: {"status": "ok", "us": 4.0}}
        assert search.best == first[3]
        more = search.propose(6)
        assert len({*first, *more}) == len(first) + len(more) > len(first)
        for each in more:
            pairs = zip(asdict(each).items(), asdict(first[3]).items(), strict=True)
            assert 1 <= sum(a != b for a, b in pairs) <= 2


def test_candidates_take_their_fields_from_the_dataclass():
    start = Gather(block_l=32, rows=32, num_warps=4, num_stages=1, block_c=256)
    more = make_dataclass("Gather", [("lookahead", int, 4)], bases=(Gather,), frozen=True)(**asdict(start))
    (found, twice) = ([*tune.steps(more, fields)] for fields in (1, 2))
    assert {each.lookahead for each in found} == {2, 4, 8}
    assert {each.num_stages for each in found} == {1, 2}
    assert len({*found, *twice}) == len(found) + len(twice)
    banded = Symmetric(block=64, block_c=64, bands=4, chunk=4, rows=32, num_warps=4, num_stages=2)
    assert all(each.chunk % each.bands == 0 for each in tune.steps(banded, 2))


def test_wrong_candidates_are_not_timed():
    search = search_of("gather", replace(SMALL, C=256, H=128, W=128))
    start, *others = search.propose(5)
    for own, passing in ((1e-7, 1e-6), (1e-3, 2e-3), (0.2, 1e-6)):
        errors = zip([start, *others], [own, passing, 1.01 * passing, float("inf")], strict=False)
        search.tried = {each: {"status": "ok", "error": error} for each, error in errors}
        search.tried[others[3]] = {"status": "failed", "why": "shared memory"}
        assert search.right() == [start, others[0]][own > 0.1 :]
        assert search.tried[others[1]]["status"] == search.tried[others[2]]["status"] == "wrong"


@pytest.fixture
def two_kernels(monkeypatch, tmp_path):
    """Let the tuner have two problems, and a table with an entry for a third."""
    monkeypatch.setattr(tune, "problems", lambda: [(kernel, SMALL) for kernel in ("gather", "tiled")])
    monkeypatch.setenv("SSA_FAST_CONFIGS", str(tmp_path))
    old = {"kernel": "gather", "C": 4096, "L": 1, "K": 1, "config": {"block_l": 16, "rows": 16, "num_warps": 4}}
    table = {"gpu": "x", "arch": "sm_90", "source": "x", "versions": {}, "entries": [old]}
    (tmp_path / TABLE).write_text(json.dumps(table))


@pytest.mark.interpreter
@pytest.mark.usefixtures("two_kernels")
def test_tuning_run_dry_writes_a_table_that_is_read(tmp_path, capsys):
    for _ in range(2):  # the second takes the place of the first
        assert tune.main(["--dry-run", "--commit", "abc", "--out", str(tmp_path)]) == 0
    written = tile_tables.read(tmp_path / TABLE)
    assert tune.DRY_RUN in written["source"]
    entries = tile_tables.entries(written, tmp_path / TABLE)
    assert [entry.kernel for entry in entries] == ["tiled", "gather", "gather"]
    assert all("µs for the whole call" in entry.why and "before" in entry.why for entry in entries[:-1])
    assert f"2 of 2 problems timed; {tune.DRY_RUN}" in capsys.readouterr().out
    saved = json.loads((tmp_path / "tune.json").read_text())
    assert saved["settings"] == {"budget_s": tune.BUDGET_S, "dry_run": True}
    assert saved["machine"]["torch"] == torch.__version__
    assert [row["what"].partition(",")[0] for row in saved["rows"]] == ["gather", "tiled"]
    for row in saved["rows"]:
        assert len(row["tried"]) == 4  # two rounds of two
        assert all(each["us"] > 0 and each["error"] < 1e-4 and each["config"] for each in row["tried"])


@pytest.mark.interpreter
@pytest.mark.usefixtures("two_kernels")
def test_a_tuning_that_ends_half_way_leaves_what_it_found(tmp_path, monkeypatch):
    polish = tune.polish

    def polish_once(method, *given):
        if method == "tiled":
            raise KeyboardInterrupt
        polish(method, *given)

    monkeypatch.setattr(tune, "polish", polish_once)
    with pytest.raises(KeyboardInterrupt):
        tune.main(["--dry-run", "--out", str(tmp_path)])
    assert len(tile_tables.read(tmp_path / TABLE)["entries"]) == 2
    assert len(json.loads((tmp_path / "tune.json").read_text())["rows"][0]["tried"]) == 4
    assert {each.name for each in tmp_path.iterdir()} == {TABLE, "tune.json"}


@pytest.mark.usefixtures("two_kernels")
def test_time_that_is_up_is_told(tmp_path, capsys):
    assert tune.main(["--dry-run", "--budget", "0", "--out", str(tmp_path)]) == 1
    assert "0 of 2 problems timed" in capsys.readouterr().out
    assert len(tile_tables.read(tmp_path / TABLE)["entries"]) == 1
    rows = json.loads((tmp_path / "tune.json").read_text())["rows"]
    assert {each["status"] for row in rows for each in row["tried"]} == {"not reached"}


@pytest.mark.interpreter
def test_candidates_that_fail_or_are_wrong_are_dropped(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tune, "problems", lambda: [("apply", SMALL)])
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
    assert tune.main(["--dry-run", "--out", str(tmp_path)]) == 0
    (entry,) = tile_tables.read(tmp_path / TABLE)["entries"]
    assert entry["config"] == vars(called[0])
    assert "'ok': 1, 'failed': 2, 'wrong': 1" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "tune.json").read_text())["rows"]
    assert [each.get("us") is not None for each in row["tried"]] == [True, *[False] * 3]
    assert ["shared memory" in each.get("why", "") for each in row["tried"]] == [False, True] * 2
