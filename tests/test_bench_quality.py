"""Test the quality command on images that the tests write: readers, folds, LayerCAM, and the whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import bench.__main__
from bench import quality
from ssa_fast import SSA
from ssa_fast.models import inspect_model
from tests.networks import Pyramid

SIDE, COUNT = 64, 6
MODEL = f"{__name__}:tiny"


def tiny():
    """Return a network whose first stages are signed, and its preprocessing."""
    torch.manual_seed(0)
    network = Pyramid().eval()
    for block in network.blocks[:2]:
        block.relu = torch.nn.Identity()
    return network, lambda image: torch.from_numpy(np.asarray(image) / 255.0).permute(2, 0, 1)[None].float()


@pytest.fixture
def photos(tmp_path):
    """Write bright rectangles on noise, with their masks, boxes and classes."""
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    boxes, classes = [], []
    for index in range(COUNT):
        x0, y0 = (int(corner) for corner in generator.integers(0, SIDE // 2, 2))
        image = generator.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        image[y0 : y0 + 24, x0 : x0 + 24], mask[y0 : y0 + 24, x0 : x0 + 24] = 255, 1
        Image.fromarray(image).save(tmp_path / f"images/{index}.png")
        Image.fromarray(mask).save(tmp_path / f"masks/{index}.png")
        boxes.append(f"val/{index}.png,{x0},{y0},{x0 + 24},{y0 + 24}\n")
        classes.append(f"val/{index}.png,{index % 5}\n")
    (tmp_path / "boxes.txt").write_text("".join(boxes), "utf-8")
    (tmp_path / "classes.txt").write_text("".join(classes), "utf-8")
    return tmp_path


def options(photos, *more):
    return ["--images", str(photos / "images"), "--model", MODEL, "--side", "32", *map(str, more)]


def table(photos, capsys, *more):
    """Run the command; return its rows by method or stage, the head under "command"."""
    file = photos / "out.json"
    assert bench.__main__.main(["quality", *options(photos, *more), "--save", str(file)]) == 0
    found = json.loads(file.read_text("utf-8"))["rows"]
    printed = capsys.readouterr().out
    assert all(str(row.get("method", row.get("stage", row.get("metric")))) in printed for row in found)
    return {row.get("method", row.get("stage", "head")): row for row in found}


@pytest.mark.parametrize("seed", ["auto", "layercam", "blob"])
def test_masks(photos, capsys, seed):
    shifted = "phi=shifted,shift=0.5"
    more = ("--masks", photos / "masks", "--affinity", shifted, "--affinity", f"all:{shifted}", "--seed", seed)
    found = table(photos, capsys, *more)
    assert found["head"]["images"] == COUNT
    assert "--masks" in found["head"]["command"]
    assert "out.json" not in found["head"]["command"]
    assert [row["signed"] for row in found.values() if "stage" in row] == [1.0, 1.0, 0.0, 0.0]
    baseline, ours = found["phi=relu"], found[shifted]
    assert [baseline["difference"], *baseline["interval"]] == [0, 0, 0]
    assert ours["difference"] == pytest.approx(ours["score"] - baseline["score"], abs=2e-3)
    assert ours["interval"][0] <= ours["difference"] <= ours["interval"][1]
    assert len({row["score"] for name, row in found.items() if "shifted" in name or name == "phi=relu"}) == 3


def test_boxes_classes_and_limit(photos, capsys):
    more = ("--boxes", photos / "boxes.txt", "--classes", photos / "classes.txt", "--limit", COUNT - 1)
    found = table(photos, capsys, *more)
    assert found["head"]["images"] == COUNT - 1
    chosen = quality.examples(photos / "images", None, photos / "boxes.txt", str(photos / "classes.txt"))
    assert [each.label for each in chosen] == [index % 5 for index in range(COUNT)]


def test_a_perfect_map_scores_1_and_an_empty_one_0(photos):
    for truth in ({"masks": photos / "masks", "boxes": None}, {"masks": None, "boxes": photos / "boxes.txt"}):
        example = quality.examples(photos / "images", classes="3", **truth)[0]
        mask = torch.from_numpy(np.array(Image.open(photos / "masks/0.png"))).float()
        assert example.label == 3
        assert (example.score(mask) == 1).all()
        assert (example.score(torch.zeros(SIDE, SIDE))[:, 1:] == 0).all()
        half = torch.nn.functional.max_pool2d(mask[None], 2)[0]  # boxes are brought to the map's size
        assert (example.score(half)[0] > 0.8).all()


def test_thresholds_come_from_the_other_half():
    scores = np.zeros((4, 2, 3))
    scores[::2, :, 0], scores[1::2, :, 2] = 1.0, 1.0  # each half is best at a threshold that is worst for the other
    assert (quality.held_out(scores) == 0).all()
    scores[1::2, 0, 0] = 2.0  # of criterion 0 alone
    np.testing.assert_array_equal(quality.held_out(scores), [0.5, 1.0, 0.5, 1.0])


def test_the_maps_are_those_of_ssa(photos):
    """The maps that are scored are those of ``SSA``, with affinities by the stages' signs."""
    network, preprocess = tiny()
    image = preprocess(Image.open(photos / "images/0.png"))
    run = quality.Run(network, "auto", False, SIDE, {})
    seed, stages = run._forward(quality.Example(photos, 2), image)
    text = "phi=shifted,shift=0.5"
    found = quality.minmax(quality.make_method(text, False)(seed, stages))
    affinity = {name: quality.Affinity.parse(text if index < 2 else "") for index, name in enumerate(run.info.stages)}
    ours = SSA(network, affinity=affinity, align_corners=False, size="stage")(image, [2])
    torch.testing.assert_close(found, ours.cams)


def test_layercam_is_the_formula(photos):
    network, preprocess = tiny()
    image = preprocess(Image.open(photos / "images/0.png"))
    info = inspect_model(network, input_shape=SIDE)
    maps, x = [], image
    outputs = []
    for block in network.blocks:
        x = block(x)
        x.retain_grad()
        outputs.append(x)
    network.fc(x.mean((2, 3)))[0, 1].backward()
    for output in outputs:
        cam = (output.grad.relu() * output.detach()).sum(1, keepdim=True).relu()
        maps.append(torch.nn.functional.interpolate(quality.minmax(cam), (SIDE // 4, SIDE // 4), mode="bilinear"))
    torch.testing.assert_close(quality.layercam(network, info, image, 1), torch.stack(maps).mean(0))


def test_what_is_said_of_a_stage():
    maps = torch.zeros(1, 2, 1, 4)
    maps[0, 0] = torch.tensor([3.0, 2.0, 5.0, -1.0])  # cosines 1 among three pixels, -1 with the fourth
    found = quality.describe_stage(maps)
    assert found["mean_cosine_min"] == pytest.approx(-0.5, abs=1e-4)
    assert found["mean_cosine_median"] == pytest.approx(0.5, abs=1e-4)
    assert found["negative_cosines"] == pytest.approx(6 / 16)
    assert found["pixels_averaged_by_relu"] == pytest.approx((3 * 3 / 4 + 1 / 4) / 4, abs=1e-4)


REFUSALS = {
    "masks, boxes: expected one of the two": (),
    "classes: expected a line for every image, got none for 0.png": ("--masks", "{}/masks", "--classes", "{}/boxes"),
    "images: expected images that have a mask or a box, got none": ("--masks", "{}"),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_refusals(photos, capsys, message):
    (photos / "boxes").write_text("9.png,1\n", "utf-8")
    with pytest.raises(SystemExit):
        quality.main(options(photos, *(word.format(photos) for word in REFUSALS[message])))
    assert message in " ".join(capsys.readouterr().err.split())
