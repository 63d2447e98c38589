"""Test the quality command on images that the tests write: readers, scores, folds, intervals, rows, and the whole."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import bench.__main__
from bench.quality import command, examples, methods, networks, report
from bench.quality.examples import LEVELS, box_scorer, mask_scorer
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


def table(photos, capsys, *more):
    """Run the command; return its rows by method or stage, others under "head" and "best"."""
    file = photos / "out.json"
    words = [*map(str, more), "--save", str(file)]
    if "--scenes" not in words:
        words += ["--images", str(photos / "images"), "--model", MODEL]
    assert bench.__main__.main(["quality", *words]) == 0
    found = json.loads(file.read_text("utf-8"))["rows"]
    printed = capsys.readouterr().out
    assert all(str(row.get("method", row.get("stage", row.get("metric", "best")))) in printed for row in found)
    best = {row["priors"]: row for row in found if report.BEST in row}
    named = {row.get("method", row.get("stage", "head")): row for row in found if report.BEST not in row}
    return named | {"best with priors" if priors else "best": row for priors, row in best.items()}


def few(*names):
    return [word for name in names for word in ("--only", name)]


@pytest.mark.slow
def test_the_whole_table_has_every_row_and_reports_what_is_left_out(photos, capsys):
    pytest.importorskip("pytorch_grad_cam")
    found = table(photos, capsys, "--masks", photos / "masks", "--classes", photos / "classes.txt")
    head, best = found["head"], found["best"]
    assert set(methods.METHODS) - set(head["left_out"]) == {row["method"] for row in found.values() if "method" in row}
    assert head["left_out"] == {}
    assert (head["images"], head["maps"], head["rows_tried"]) == (COUNT, COUNT, len(methods.METHODS))
    assert all(found[name]["kind"] == "ssa" for name in best[report.BEST])
    assert all(found[name]["kind"] in ("ssa", "prior") for name in found["best with priors"][report.BEST])
    assert [each["of"] for each in best["ahead"]] == list(methods.RIVALS)


def test_affinities_of_masks(photos, capsys):
    shifted = "phi=shifted,shift=0.5"
    rows = ["phi=relu", shifted, f"all:{shifted}"]
    more = ("--masks", photos / "masks", "--baseline", "phi=relu", "--stages", *few("centre blob"))
    found = table(photos, capsys, *more, *(word for row in rows for word in ("--affinity", row)))
    assert found["head"]["images"] == COUNT
    command_line = json.loads((photos / "out.json").read_text("utf-8"))["command"]
    assert "--masks" in command_line
    assert "out.json" not in command_line
    assert [row["signed"] for row in found.values() if "stage" in row] == [1.0, 1.0, 0.0, 0.0]
    baseline, ours = found["phi=relu"], found[shifted]
    assert [baseline["difference"], *baseline["interval"]] == [0, 0, 0]
    assert ours["difference"] == pytest.approx(ours["score"] - baseline["score"], abs=2e-3)
    assert ours["interval"][0] <= ours["difference"] <= ours["interval"][1]
    assert len({found[name]["score"] for name in rows}) == 3
    assert set(found) >= {*rows, "seed", "centre blob"}


def test_boxes_classes_and_limit(photos, capsys):
    more = ("--boxes", photos / "boxes.txt", "--classes", photos / "classes.txt", "--limit", COUNT - 1)
    found = table(photos, capsys, *more, *few("SSA"), "--goal", "+8")
    assert found["head"]["images"] == COUNT - 1
    assert found["SSA"]["precision"] is None
    over_seed = found["best"]["ahead"][0]
    assert over_seed["of"] == "seed"
    assert found["best"]["reached"] == (over_seed["difference"] >= 8 and over_seed["interval"][0] > 0)
    boxes = examples.boxes(photos / "boxes.txt")
    chosen = examples.from_folder(photos / "images", str(photos / "classes.txt"), boxes)
    assert [list(each.truths) for each in chosen] == [[index % 5] for index in range(COUNT)]


def test_scenes_have_a_map_per_class(photos, capsys):
    found = table(photos, capsys, "--scenes", 4, "--model", "demo", *few("SSA"), "--goal", "20")
    scenes = examples.from_scenes(4)
    assert found["head"]["maps"] == sum(len(each.truths) for each in scenes) > found["head"]["images"] == 4
    assert found["SSA"]["score"] > found["seed"]["score"]
    assert found["best"]["reached"] is (found["best"]["score"] >= 20)
    assert [each.read().size for each in scenes] == [(128, 128)] * 4


@pytest.mark.slow
def test_a_network_trained_on_scenes_is_read_again(tmp_path, photos, capsys):
    threads = torch.get_num_threads()
    networks.train_on_scenes("silu", 1, tmp_path / "net.pt", scenes=8, epochs=1, batch=4, threads=threads)
    found = table(photos, capsys, "--scenes", 2, "--model", f"scenes={tmp_path / 'net.pt'}", "--stages", *few("SSA"))
    assert [row["signed"] for row in found.values() if "stage" in row] == [1.0] * 4
    torch.save({}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected a file of"):
        networks.load(f"scenes={tmp_path / 'other.pt'}")


def test_saved_figures_are_shown_side_by_side(photos, capsys):
    table(photos, capsys, "--masks", photos / "masks", *few("SSA", "centre blob"), "--model", MODEL)
    bench.__main__.main(["quality", "--show", str(photos / "out.json"), str(photos / "out.json")])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.count("|") == 6 for line in lines if line.startswith(("| SSA", "| centre")))


@pytest.mark.parametrize("size", [(SIDE, SIDE), (SIDE // 2, SIDE // 2)])  # truths are brought to the map's size
def test_a_perfect_map_scores_1_and_an_empty_one_0(photos, size):
    mask = np.array(Image.open(photos / "masks/0.png")).astype(np.float32)
    mask = F.adaptive_max_pool2d(torch.from_numpy(mask)[None], size)[0].numpy()
    found = [
        *examples.from_folder(photos / "images", "3", examples.boxes(photos / "boxes.txt")),
        *examples.from_folder(photos / "images", "3", examples.masks(photos / "masks")),
    ]
    for example in (found[0], found[COUNT]):
        score = example.truths[3](SimpleNamespace(image=example.read(), size=size))
        assert (score(mask).levels[0] > (0.999 if size == (SIDE, SIDE) else 0.8)).all()
        assert (score(np.zeros(size, np.float32)).levels[:, 1:] == 0).all()


def of_mask(labels):
    return mask_scorer(lambda: labels, 1, "a mask", SimpleNamespace(size=labels.shape))


def of_box(box, image_size, size):
    return box_scorer([box], SimpleNamespace(image=Image.new("RGB", image_size[::-1]), size=size))


def test_scores_at_the_threshold_that_a_map_gives_by_itself():
    cam = np.full((20, 40), 0.3, np.float32)
    cam[2:8, 4:12] = 1
    box, mask = of_box([2, 1, 6, 4], (10, 20), cam.shape)(cam), of_mask(cam == 1)(cam)
    assert box.own == mask.own == 1
    assert len(box.levels[0]) == len(mask.levels[0]) == len(LEVELS)
    assert of_mask(cam == 1)(1 - cam).own == 0


def test_a_label_map_has_an_object_by_its_value_and_pixels_that_are_not_counted(photos, capsys):
    """VOC's masks are indexed images; the map's largest value is where nothing is counted."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[:16], labels[16:32], labels[32:48] = 1, 2, 255
    for index in range(2):
        image = Image.fromarray(labels).convert("P")
        image.putdata(labels.ravel().tolist())
        image.save(photos / f"masks/{index}.png")
    cam = np.select([labels == 1, labels == 2, labels == 255], [0.5, 0.2, 1.0]).astype(np.float32)
    truth = examples.masks(photos / "masks", 1)["0"]
    found = truth(SimpleNamespace(size=cam.shape))(cam)
    assert found.levels[0, LEVELS.index(0.1)] == 0.5
    assert found.levels[0, LEVELS.index(0.3)] == found.precision == 1
    more = ("--masks", photos / "masks", "--object", 1, "--limit", 2, *few("SSA"))
    assert table(photos, capsys, *more)["head"]["maps"] == 2


def test_thresholds_and_the_best_row_come_from_the_other_half():
    image = np.arange(4)
    scores = np.zeros((4, 2, 3))
    scores[::2, :, 0], scores[1::2, :, 2] = 1.0, 1.0  # each half is best at a threshold that is worst for the other
    assert (report.held_out(image, scores) == 0).all()
    scores[1::2, 0, 0] = 2.0  # of criterion 0 alone
    np.testing.assert_array_equal(report.held_out(image, scores), [0.5, 1.0, 0.5, 1.0])
    even, odd = np.zeros((4, 1, 1)), np.zeros((4, 1, 1))
    even[::2], odd[1::2] = 1.0, 0.9
    best, names = report.best_of(image, {"even": even, "odd": odd})
    assert names == ["odd", "even"]
    assert (best == 0).all()
    assert (report.held_out(np.array([0, 0, 1]), np.ones((3, 1, 1))) == 1).all()


def test_intervals_draw_images_with_all_their_maps():
    image = np.repeat(np.arange(200), 3)
    values = np.random.default_rng(1).normal(size=200)[image]  # the same for all maps of an image
    low, high = report.intervals(image, np.stack([values, 0 * values]))[0]
    expected = 1.96 * values.std() / np.sqrt(200)
    assert high - values.mean() == pytest.approx(expected, rel=0.15)
    assert values.mean() - low == pytest.approx(expected, rel=0.15)
    assert (report.intervals(image, np.zeros((1, 600))) == 0).all()


def test_rows_that_a_network_cannot_have_are_left_out_with_the_reason(photos, capsys, monkeypatch):
    def fail(sample):
        raise ValueError("this network cannot")

    monkeypatch.setitem(methods.METHODS, "failing", methods.Method("peer", fail))
    more = ("--masks", photos / "masks", *few("SSA"))
    found = table(photos, capsys, *more, "--only", "fail*")
    assert found["head"]["left_out"] == {"failing": "this network cannot"}
    assert (found["head"]["rows_tried"], found["head"]["class_is_predicted"]) == (2, COUNT)
    assert set(found) == {"head", "seed", "SSA", "best"}
    with pytest.raises(SystemExit):
        table(photos, capsys, *more, "--only", "failing")
    assert "this network cannot" in capsys.readouterr().err


REFUSALS = {
    "--scenes: not allowed with argument --images": ("--scenes", "2"),
    "masks, boxes, model: expected --masks or --boxes beside --images": (),
    "classes: expected a line for every image, got none for 0.png": ("--masks", "{}/masks", "--classes", "{}/boxes"),
    "expected an index, 'predicted' or a file of lines name,index, horse; there is no such file": (
        "--masks",
        "{}/masks",
        "--classes",
        "horse",
    ),
    "images: expected images that have a mask or a box, got none": ("--masks", "{}/other"),
    "images: expected at least 2, a half to choose": ("--masks", "{}/masks", "--limit", "1"),
    "expected a folder of masks": ("--masks", "{}/nowhere"),
    "masks: expected an object in every mask, got none": ("--masks", "{}/black", "--only", "SSA"),
    "only, without, baseline: expected rows of": ("--masks", "{}/masks", "--only", "CAM"),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_refusals(photos, capsys, message):
    (photos / "boxes").write_text("9.png,1\n", "utf-8")
    for name in ("black/0.png", "black/1.png", "other/9.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        Image.new("L", (SIDE, SIDE)).save(photos / name)
    given = ["--images", str(photos / "images"), "--model", MODEL]
    with pytest.raises(SystemExit):
        command.main([*given, *(word.format(photos) for word in REFUSALS[message])])
    assert message in " ".join(capsys.readouterr().err.split())
