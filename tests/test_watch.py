"""Runs that wait for images, what limits a run, and the stopwatch that tells; every clock is a counter."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ssa_fast import SSA, runs
from ssa_fast.cli.app import app
from ssa_fast.io import images
from ssa_fast.io.datasets import VOC_CLASSES
from ssa_fast.io.stopwatch import Stopwatch, activity, timed
from ssa_fast.models import zoo
from ssa_fast.runs import RunOptions, RunReport, Watch, process
from tests.test_runs import contents

if TYPE_CHECKING:
    from ssa_fast.io.progress import Progress

Step = Callable[[], object]
INTERVAL = 2.0


@pytest.fixture(scope="module")
def classifier() -> zoo.Classifier:
    return zoo.load("demo")


@pytest.fixture(scope="module")
def ssa(classifier: zoo.Classifier) -> SSA:
    return SSA(classifier.model, size="stage")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


class Script:
    """A clock, and a sleep that does the next step and lets the time pass; after the last one comes Ctrl-C."""

    def __init__(self, *steps: Step) -> None:
        self.now, self.steps = 0.0, [*steps]

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if not self.steps:
            raise KeyboardInterrupt
        self.steps.pop(0)()


def nothing() -> None:
    """Let an interval pass."""


@pytest.fixture
def run(classifier: zoo.Classifier, ssa: SSA, folder: Path, out: Path) -> Callable[..., RunReport]:
    def call(*steps: Step, paths: Any = (folder,), **options: Any) -> RunReport:
        script = Script(*steps)
        watch = Watch(INTERVAL, clock=lambda: script.now, sleep=script.sleep)
        own = {name: options.pop(name) for name in ("classifier", "on_progress", "split", "watch") if name in options}
        arguments = {"classifier": classifier, "watch": watch, **own}
        return runs.run(paths, ssa, out, options=RunOptions(**{"overlays": False, **options}), **arguments)

    return call


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (32, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def names(report: RunReport) -> list[str]:
    return sorted(Path(name).name for name in report.done)


def listed(out: Path) -> list[str]:
    return [image["file_name"] for image in json.loads((out / "boxes.json").read_text())["images"]]


@pytest.mark.slow
def test_later_and_changed_images_end_as_in_one_run(run: Any, folder: Path, out: Path, tmp_path: Path) -> None:
    draw(folder / "a.png")
    computed: list[str] = []
    report = run(
        nothing,
        lambda: (draw(folder / "b.png", 1), draw(folder / "sub/c.png", 2)),
        nothing,
        lambda: draw(folder / "a.png", 3, (50, 50)),
        nothing,
        on_progress=lambda progress: computed.append(Path(progress.name).name) if progress.name else None,
    )
    assert computed == ["a.png", "b.png", "c.png", "a.png"]
    assert (report.exit_code, report.signal, report.idle, report.complete) == (130, 2, True, True)
    assert report.stopped == "interrupted while waiting for new images"
    assert (names(report), report.resumed, report.remade) == (["a.png", "b.png", "c.png"], 0, 1)
    assert report.notes == {"made again, as the image has changed.": [str(folder / "a.png")]}
    watched = contents(out)
    shutil.move(out, tmp_path / "watched")
    assert run(watch=None).exit_code == 0
    assert contents(out) == watched


def test_a_file_that_is_being_written_is_left_alone(run: Any, folder: Path) -> None:
    draw(folder / "whole.png", 5, (64, 64))
    content = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    growing = [lambda size=size: (folder / "a.png").write_bytes(content[:size]) for size in (0, 10, 2000, len(content))]
    finished: list[Progress] = []
    report = run(*growing, nothing, on_progress=finished.append)
    assert [(progress.name, progress.error) for progress in finished if progress.name] == [
        (str(folder / "a.png"), None)
    ]
    phases = [progress.phase for progress in finished if progress.phase]
    assert phases == ["waiting", *["settling"] * 4, "waiting"]
    assert (names(report), report.failures) == (["a.png"], [])


def test_it_ends_before_a_file_is_complete(run: Any, folder: Path, out: Path) -> None:
    report = run(lambda: draw(folder / "a.png"))
    assert (report.done, report.idle, report.complete, report.stopped) == ([], False, False, "interrupted")
    assert json.loads((out / "run.json").read_text())["complete"] is False


def test_a_bad_file_is_tried_again_when_it_changes(run: Any, folder: Path, out: Path) -> None:
    (folder / "a.png").write_text("no image")
    (folder / "link.png").symlink_to(folder / "later")
    failures: list[list[dict[str, str]]] = []
    report = run(
        nothing,
        lambda: failures.append(json.loads((out / "report.json").read_text())["failed"]),
        lambda: (
            draw(folder / "a.png"),
            draw(folder / "later.png", 1),
            (folder / "later.png").rename(folder / "later"),
        ),
        nothing,
    )
    assert [[Path(failure["image"]).name for failure in found] for found in failures] == [["a.png", "link.png"]]
    assert (report.failures, names(report)) == ([], ["a.png", "link.png"])


def test_boxes_and_report_follow_while_it_waits(run: Any, folder: Path, out: Path) -> None:
    draw(folder / "a.png")
    seen: list[tuple[int, list[str]]] = []

    def look() -> None:
        seen.append((json.loads((out / "report.json").read_text())["done"], listed(out)))

    run(nothing, lambda: (look(), draw(folder / "b.png", 1)), nothing, look)
    assert seen == [(1, ["a.png"]), (2, ["a.png", "b.png"])]


def test_images_that_are_moved_away_stay_in_the_report(run: Any, folder: Path, out: Path, tmp_path: Path) -> None:
    draw(folder / "a.png")
    report = run(
        nothing, lambda: (folder / "a.png").rename(tmp_path / "a.png"), lambda: draw(folder / "b.png"), nothing
    )
    assert (names(report), listed(out), report.leftovers) == (["a.png", "b.png"], ["a.png", "b.png"], [])


def test_a_second_image_of_one_stem_renames_the_first(run: Any, folder: Path, out: Path) -> None:
    draw(folder / "a.png")
    report = run(nothing, lambda: draw(folder / "a.bmp", 1), nothing)
    assert {path.stem for path in (out / "cams").iterdir()} == {"a", "a_png", "a_bmp"}
    assert (names(report), listed(out), report.leftovers) == (["a.bmp", "a.png"], ["a.bmp", "a.png"], ["a"])


def test_a_name_that_comes_back_is_checked_again(run: Any, folder: Path) -> None:
    draw(folder / "a.png")
    draw(folder / "a.bmp", 1)
    run(watch=None)
    (folder / "a.bmp").unlink()
    draw(folder / "a.png", 2)
    report = run(nothing, lambda: draw(folder / "a.bmp", 1), nothing)  # a_png is the record of the first content
    assert (names(report), report.resumed, report.remade) == (["a.bmp", "a.png"], 1, 1)


def test_one_that_was_replaced_under_another_suffix_is_done(run: Any, folder: Path, out: Path) -> None:
    draw(folder / "a.png")
    report = run(nothing, lambda: ((folder / "a.png").unlink(), draw(folder / "a.bmp", 1)), nothing)
    assert (names(report)[:1], listed(out)) == (["a.bmp"], ["a.bmp"])


@pytest.mark.slow
def test_it_resumes_a_run_and_is_resumed(run: Any, folder: Path, out: Path) -> None:
    for n in range(3):
        draw(folder / f"{n}.png", n)
    assert run(watch=None).exit_code == 0
    draw(folder / "3.png", 3)
    draw(folder / "0.png", 4)
    before = (out / "cams/1.npz").stat().st_mtime_ns
    report = run(nothing)
    assert (report.resumed, report.remade, len(report.done)) == (2, 1, 4)
    again = run(nothing)
    assert (again.resumed, again.remade, len(again.done), again.limit) == (4, 0, 4, None)
    os.utime(folder / "2.png")  # another time, the same content
    assert run(watch=None).resumed == 4
    assert (out / "cams/1.npz").stat().st_mtime_ns == before


def test_files_older_than_the_run_are_kept(run: Any, folder: Path, out: Path) -> None:
    (out / "masks").mkdir(parents=True)
    (out / "masks/late.png").write_text("precious")
    report = run(lambda: draw(folder / "late.png"), nothing)
    assert [failure.reason for failure in report.failures] == [
        f"{out}/masks/late.png exists; pass --overwrite to replace it."
    ]
    assert (out / "masks/late.png").read_text() == "precious"


def test_labels_that_come_later(run: Any, folder: Path, classifier: zoo.Classifier) -> None:
    """An annotation may be written after its image."""
    (folder / "Annotations").mkdir()
    draw(folder / "JPEGImages/a.jpg")
    annotation = "<annotation><object><name>bird</name></object></annotation>"
    failed: list[str] = []
    report = run(
        nothing,
        lambda: (folder / "Annotations/a.xml").write_text(annotation),
        nothing,
        classes="labels",
        classifier=replace(classifier, categories=VOC_CLASSES[: len(classifier.categories)]),
        on_progress=lambda progress: failed.append(progress.error) if progress.error else None,
    )
    assert len(failed) == 1
    assert "its labels cannot be read" in failed[0]
    assert (names(report), report.failures) == (["a.jpg"], [])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_the_waiting(run: Any, folder: Path, out: Path, number: int, code: int) -> None:
    draw(folder / "a.png")
    report = run(nothing, lambda: os.kill(os.getpid(), number), nothing)
    assert (report.exit_code, names(report)) == (code, ["a.png"])
    saved = json.loads((out / "report.json").read_text())
    assert saved["stopped"].endswith(" while waiting for new images")
    assert json.loads((out / "run.json").read_text())["complete"] is True
    assert not list(out.rglob(".*"))


def test_a_glob_may_match_later(run: Any, folder: Path) -> None:
    report = run(lambda: draw(folder / "a.png"), nothing, paths=(f"{folder}/*.png",))
    assert (names(report), report.failures) == (["a.png"], [])


def test_a_folder_that_cannot_be_read_is_reported(run: Any, folder: Path) -> None:
    report = run(nothing, folder.rmdir, nothing)
    assert [failure.reason for failure in report.failures] == ["there is no such file or folder."]
    assert run(nothing, folder.mkdir, nothing, paths=(folder.parent,)).failures == []


def test_what_cannot_be_watched_is_refused(
    run: Any, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, ssa: SSA, classifier: zoo.Classifier
) -> None:
    draw(folder / "a.png")
    with pytest.raises(
        ValueError, match=r"^watch: expected folders and globs, which can grow, got the file .*a\.png; "
    ):
        run(paths=(folder, folder / "a.png"))
    with pytest.raises(ValueError, match=r"^watch: expected a folder, but there is no .*gone; create it first"):
        run(paths=(folder / "gone",))
    with pytest.raises(ValueError, match=r"^split: 'train' is a list of images, which does not grow; "):
        run(split="train")
    with pytest.raises(ValueError, match=r"^watch: expected the paths to look at, got a listing"):
        run(paths=runs.list_images([folder], out, RunOptions()))
    with pytest.raises(ValueError, match=r"^interval: expected a positive number of seconds, got 0"):
        Watch(0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"^watch: one process watches the folders; start it without torchrun"):
        run()
    assert not out.exists()


@pytest.mark.slow
def test_the_command(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(folder / "a.png")
    script = Script(nothing, lambda: draw(folder / "b.png", 1), nothing)
    monkeypatch.setattr(runs, "Watch", partial(Watch, clock=lambda: script.now, sleep=script.sleep))
    arguments = ["run", str(folder), "--model", "demo", "--out", str(out), "--watch", "--interval", "0.5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130, result.output
    assert f"1 done; watching {folder} until Ctrl-C\ndone: {folder}/b.png\n" in result.stderr
    assert "stopped: interrupted while waiting for new images" in result.stderr
    assert "limited by " in result.stdout
    refused = CliRunner().invoke(app, ["run", str(folder), "--out", str(out), "--interval", "3"])
    assert refused.exit_code == 2
    assert "interval: it is that of --watch" in refused.stderr


class Clock:
    """A clock that moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def test_an_inner_activity_interrupts_the_outer_one() -> None:
    clock = Clock()
    stopwatch = Stopwatch(torch.device("cpu"), clock=clock)
    with activity("before"):
        clock.pass_by(100)
    with stopwatch.running():
        clock.pass_by(10)
        with activity("outer"):
            clock.pass_by(1)
            with suppress(ValueError), activity("inner"):
                clock.pass_by(2)
                raise ValueError
            with activity("inner"):
                clock.pass_by(3)
                other = threading.Thread(target=_be_active, args=(clock,))
                other.start()
                other.join()
            clock.pass_by(4)
        items = timed((clock.pass_by(5) for _ in range(2)), "items")
        for _ in items:
            clock.pass_by(7)
    assert stopwatch.seconds == {"outer": 5, "inner": 5 + 6, "items": 10}


def _be_active(clock: Clock) -> None:
    """Do something in another thread, of which the stopwatch sees no more than that time passes."""
    with activity("another thread's"):
        clock.pass_by(6)


def test_on_a_gpu_events_tell_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one wait, at the end of the outermost activity."""
    clock, waits = Clock(), []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            self.at = clock.now

        def synchronize(self) -> None:
            waits.append(self.at)

        def elapsed_time(self, end: Event) -> float:
            return 1000 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    stopwatch = Stopwatch(torch.device("cuda"))
    with stopwatch.running(), activity("network"):
        clock.pass_by(3)
        with activity("polishing"):
            clock.pass_by(2)
        assert waits == []
        clock.pass_by(1)
    assert (stopwatch.seconds, waits) == ({"network": 4, "polishing": 2}, [6])


@pytest.mark.parametrize(
    ("reading", "network", "sentence"),
    [
        (10, 3, "limited by reading (77 % of the time, network 23 %)"),
        (1, 9, "limited by the network (90 % of the time, "),
    ],
)
def test_a_run_reports_what_limits_it(
    reading: float, network: float, sentence: str, run: Any, ssa: SSA, folder: Path, out: Path, monkeypatch: Any
) -> None:
    clock = Clock()
    monkeypatch.setattr(process, "Stopwatch", partial(Stopwatch, clock=clock))
    read, forward = images.read_image, ssa._forward
    monkeypatch.setattr(images, "read_image", lambda *given, **how: (clock.pass_by(reading), read(*given, **how))[1])
    monkeypatch.setattr(ssa, "_forward", lambda *given: (clock.pass_by(network), forward(*given))[1])
    for n in range(2):
        draw(folder / f"{n}.png", n)
    report = run(watch=None, workers=0)
    assert report.activities.pop("other") == 0
    assert report.activities == {
        "reading": 2 * reading,
        "network": 2 * network,
        "polishing": 0,
        "masks": 0,
        "writing": 0,
    }
    assert report.limit is not None
    assert report.limit.startswith(sentence)
    saved = json.loads((out / "report.json").read_text())
    assert saved["limit"] == report.limit
    assert saved["activity_seconds"]["reading"] == 2 * reading


@pytest.mark.slow
def test_an_image_in_tiles_counts_by_what_is_done(run: Any, folder: Path) -> None:
    draw(folder / "a.png", size=(96, 96))
    report = run(watch=None, large_above=1000, classes="0")
    assert report.failures == []
    assert report.activities.keys() == {"reading", "network", "polishing", "writing", "other"}
    assert all(report.activities[name] > 0 for name in ("reading", "network", "polishing", "writing"))
