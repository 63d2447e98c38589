"""Heading 9: CAM files are found and scored by the codebases whose formats they have.

The class of inputs: files whose names and sizes another tool's reader decides. wsolevaluation resizes true boxes and
masks to 224 x 224 and never a map, and opens an image's whole name with ".npy" behind it; PSA, IRN and CLIP-ES open the
id without a suffix. Its scores are computed here by its rules as documented: MaxBoxAcc (V1: the largest contour at
IoU 50; V2: the best contour, averaged over IoU 30, 50 and 70) and PxAP, with OpenCV as it uses it. A perfect map of an
image of any size scores 100.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from typer.testing import CliRunner

from ssa_fast import SSA, runs
from ssa_fast.cli.app import app
from ssa_fast.io.cam_files import CamFile, full_size, read_cam, write_cam
from ssa_fast.io.cam_values import WSOL_SIZE, nearest_pixels
from ssa_fast.models import zoo
from ssa_fast.runs import RunOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

cv2 = pytest.importorskip("cv2", reason="OpenCV computes wsolevaluation's contours; it comes with grad-cam")

SIDE = 224
THRESHOLDS = np.arange(0, 1, 0.01)  # its cam_curve_interval
SIZES = ((300, 400), (400, 300), (224, 224), (500, 333), (1000, 64), (96, 128), (37, 50), (2000, 3000))


def load_map(folder: Path, image_id: str) -> np.ndarray:
    """Load a map and check it as ``check_scoremap_validity`` does."""
    scoremap = np.load(f"{folder}/{image_id}.npy")
    assert scoremap.dtype == np.float64
    assert scoremap.ndim == 2
    assert not np.isnan(scoremap).any()
    assert scoremap.min() >= 0
    assert scoremap.max() <= 1
    return scoremap


def true_box(box: Sequence[int], size: tuple[int, int]) -> list[int]:
    """Resize x0 y0 x1 y1 to 224 x 224, rounding down, as for an image of (H, W)."""
    return [int(value * SIDE / size[axis]) for value, axis in zip(box, (1, 0, 1, 0), strict=True)]


def map_boxes(scoremap: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
    """Return the boxes of all contours at a share of the maximum, and which contour is the largest."""
    grey = (scoremap * 255).astype(np.uint8)[..., None]
    _, binary = cv2.threshold(grey, int(threshold * grey.max()), 255, cv2.THRESH_BINARY)
    contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not contours:
        return np.zeros((1, 4), int), 0
    boxes = []
    for x, y, width, height in map(cv2.boundingRect, contours):
        boxes.append([x, y, min(x + width, scoremap.shape[1] - 1), min(y + height, scoremap.shape[0] - 1)])
    return np.array(boxes), int(np.argmax([cv2.contourArea(contour) for contour in contours]))


def overlaps(boxes: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the IoU of every box with every true one; both ends belong to a box."""
    low, high = np.maximum(boxes[:, None, :2], true[:, :2]), np.minimum(boxes[:, None, 2:], true[:, 2:])
    shared = np.prod(np.maximum(0, high - low + 1), axis=2)
    area = [np.prod(each[:, 2:] - each[:, :2] + 1, axis=1) for each in (boxes, true)]
    return shared / (area[0][:, None] + area[1] - shared)


def max_box_acc(folder: Path, truth: Mapping[str, tuple[Any, tuple[int, int]]]) -> tuple[float, float]:
    """Return MaxBoxAcc and MaxBoxAccV2; ``truth`` maps ids -> true boxes and the image's (H, W)."""
    single, best = [], []
    for image_id, (boxes, size) in truth.items():
        true = np.array([true_box(box, size) for box in boxes])
        scoremap = load_map(folder, image_id)
        single.append([])
        best.append([])
        for threshold in THRESHOLDS:
            found, largest = map_boxes(scoremap, threshold)
            ious = overlaps(found, true)
            single[-1].append(ious[largest].max())
            best[-1].append(ious.max())
    first = (np.array(single) >= 0.5).mean(axis=0).max()
    second = [(np.array(best) >= iou).mean(axis=0).max() for iou in (0.3, 0.5, 0.7)]
    return 100 * float(first), 100 * float(np.mean(second))


def pixel_precision(folder: Path, truth: Mapping[str, np.ndarray]) -> float:
    """Return PxAP; ``truth`` maps ids -> true mask at the image's size."""
    edges = np.append(THRESHOLDS, [1.0, 2.0, 3.0])
    counts = np.zeros((2, len(edges) - 1))
    for image_id, mask in truth.items():
        resized = cv2.resize(np.float32(mask), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) > 0.5
        scoremap = load_map(folder, image_id)
        for k, pixels in enumerate((scoremap[resized], scoremap[~resized])):
            counts[k] += np.histogram(pixels, bins=edges)[0]
    true_positive, false_positive = counts[:, ::-1].cumsum(axis=1)
    found = true_positive + false_positive
    precision = true_positive / np.maximum(found, 1)
    recall = true_positive / counts[0].sum()
    return 100 * float((precision[1:] * np.diff(recall))[found[1:] > 0].sum())


def rectangle(size: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """Return a map that is 1 in a rectangle, with x0 y0 x1 y1 (the last pixel)."""
    (H, W) = size
    x0, y0, x1, y1 = W // 5, H // 6, W - W // 4, H - H // 3
    perfect = np.zeros((1, H, W), np.float32)
    perfect[:, y0 : y1 + 1, x0 : x1 + 1] = 1
    return perfect, [x0, y0, x1, y1]


def ellipses(size: tuple[int, int]) -> np.ndarray:
    """Return a map that is 1 in two ellipses that touch no edge."""
    y, x = (np.arange(side, dtype=np.float32) / side for side in size)
    parts = ((0.4, 0.3, 0.3, 0.2), (0.7, 0.8, 0.2, 0.1))
    inside = [((y[:, None] - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1 for cy, cx, ry, rx in parts]
    return np.float32(inside[0] | inside[1])[None]


def test_the_sampling_is_opencvs() -> None:
    """Of true masks, on sides of all lengths."""
    for side in (*range(1, 700), 1000, 1333, 2000, 3001, 4096):
        pixels = np.arange(side, dtype=np.float32)[None]
        expected = cv2.resize(pixels, (SIDE, 1), interpolation=cv2.INTER_NEAREST)[0]
        np.testing.assert_array_equal(nearest_pixels(side), expected)
    assert WSOL_SIZE == SIDE


def test_perfect_maps_of_images_of_different_sizes_score_100(tmp_path: Path) -> None:
    boxes, masks = {}, {}
    for n, size in enumerate(SIZES):
        perfect, box = rectangle(size)
        boxes[f"val2/{n}/0.jpeg"] = ([box], size)
        for image_id, maps in ((f"val2/{n}/0.jpeg", perfect), (f"test/{n}.jpg", ellipses(size))):
            (tmp_path / image_id).parent.mkdir(parents=True, exist_ok=True)
            write_cam(tmp_path / f"{image_id}.npy", CamFile(maps, size=size), format="wsol")
        masks[f"test/{n}.jpg"] = ellipses(size)[0]
    assert max_box_acc(tmp_path, boxes) == (100, 100)
    assert pixel_precision(tmp_path, masks) == pytest.approx(100, abs=1e-9)
    every = [torch.from_numpy(load_map(tmp_path, image_id)) for image_id in (*boxes, *masks)]
    assert torch.stack(every).shape[1:] == (SIDE, SIDE), "wsolevaluation's loader stacks a batch"


def test_maps_at_the_images_size_do_not(tmp_path: Path) -> None:
    """The layout of before: what this heading is about, so that the scores above can fail."""
    perfect, box = rectangle((400, 300))
    np.save(tmp_path / "a.jpg.npy", perfect[0].astype(np.float64))
    assert max_box_acc(tmp_path, {"a.jpg": ([box], (400, 300))})[1] < 70


def test_maps_of_a_stage_are_sampled_as_their_image_would_be(tmp_path: Path) -> None:
    """A map is first brought to the image's size as everywhere, then to wsolevaluation's, and scaled as it asks for."""
    maps = torch.rand(1, 1, 10, 13, generator=torch.Generator().manual_seed(0))
    cam = CamFile(maps[0].numpy(), size=(37, 50), align_corners=False)
    write_cam(tmp_path / "a.png.npy", cam, format="wsol")
    whole = interpolate(maps, (37, 50), mode="bilinear", align_corners=False)[0, 0].numpy()
    expected = cv2.resize(whole, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(load_map(tmp_path, "a.png"), expected, rtol=0, atol=1e-6)
    write_cam(tmp_path / "b.png.npy", CamFile(np.full((1, 5, 5), 0.5, np.float32), size=(5, 5)), format="wsol")
    assert not load_map(tmp_path, "b.png").any(), "a constant map becomes 0, as in normalize_scoremap"


def test_a_wsol_file_does_not_say_the_images_size(tmp_path: Path) -> None:
    write_cam(tmp_path / "a.npy", CamFile(rectangle((30, 40))[0], size=(30, 40)), format="wsol")
    cam = read_cam(tmp_path / "a.npy")
    assert cam.size is None
    with pytest.raises(ValueError, match=r"size: the file does not say the image's \(H, W\)"):
        full_size(cam)
    write_cam(tmp_path / "b.npy", cam, format="wsol")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.fixture(scope="module")
def network() -> tuple[zoo.Classifier, SSA]:
    classifier = zoo.load("demo")
    return classifier, SSA(classifier.model, size="stage")


IDS = ("val2/0/0.jpeg", "val2/0/1.JPEG", "a.b.png", "a.jpg", "a.png")  # as in wsolevaluation's image_ids.txt


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for n, image_id in enumerate(IDS):
        (tmp_path / "in" / image_id).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256, (40 + 8 * n, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / image_id)
    return tmp_path / "in"


def npy_names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.npy")}


def test_a_runs_files_have_the_ids_of_the_images(
    images: Path, network: tuple[zoo.Classifier, SSA], tmp_path: Path
) -> None:
    for _ in range(2):
        options = RunOptions(cams="wsol", overlays=False, workers=0)
        report = runs.run([images], network[1], tmp_path / "out", classifier=network[0], options=options)
        assert (report.exit_code, len(report.done)) == (0, 5)
    assert report.resumed == 5
    assert npy_names(tmp_path / "out/cams") == {f"{image_id}.npy" for image_id in IDS}
    listed = json.loads((tmp_path / "out/boxes.json").read_text())["images"]
    assert {image["file_name"] for image in listed} == set(IDS)
    for image_id in IDS:
        assert load_map(tmp_path / "out/cams", image_id).shape == (SIDE, SIDE)


def convert(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments), "--allow-pickle"])
    assert result.exit_code == 0, result.output
    return result.stderr


def test_converted_files_have_the_ids_of_the_images(
    images: Path, network: tuple[zoo.Classifier, SSA], tmp_path: Path
) -> None:
    """``ssa`` files know their image's name, whatever they are called and wherever the conversion starts."""
    options = RunOptions(overlays=False, workers=0)
    runs.run([images], network[1], tmp_path / "out", classifier=network[0], options=options)
    assert {cam.name for cam in (tmp_path / "out/cams").iterdir()} >= {"a_jpg.npz", "a_png.npz", "a.b.npz"}
    assert convert(tmp_path / "out/cams", "--to", "wsol", "--out", tmp_path / "wsol") == ""
    assert npy_names(tmp_path / "wsol") == {f"{image_id}.npy" for image_id in IDS}
    convert(tmp_path / "out/cams/val2/0", "--to", "wsol", "--out", tmp_path / "part")
    assert npy_names(tmp_path / "part") == {f"{image_id}.npy" for image_id in IDS[:2]}
    options = RunOptions(cams="wsol", overlays=False, workers=0)
    runs.run([images], network[1], tmp_path / "direct", classifier=network[0], options=options)
    for image_id in IDS:
        direct, converted = (load_map(tmp_path / folder, image_id) for folder in ("direct/cams", "wsol"))
        np.testing.assert_allclose(converted, direct, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::ssa_fast.io.cam_files.PickleWarning")
def test_files_of_other_codebases_are_named_by_an_option(tmp_path: Path) -> None:
    cam = CamFile(rectangle((30, 40))[0], classes=np.array([3]), size=(30, 40))
    for name in ("2007_000032.npy", "sub/b.JPEG.npy"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_cam(tmp_path / "in" / name, cam, format="irn", allow_pickle=True)
    convert(tmp_path / "in", "--to", "wsol", "--image-suffix", ".jpg", "--out", tmp_path / "named")
    assert npy_names(tmp_path / "named") == {"2007_000032.jpg.npy", "sub/b.JPEG.npy"}
    stderr = convert(tmp_path / "in", "--to", "wsol", "--out", tmp_path / "plain")
    assert npy_names(tmp_path / "plain") == {"2007_000032.npy", "sub/b.JPEG.npy"}
    assert "1 files such as" in stderr
    assert "pass --image-suffix" in stderr


@pytest.mark.parametrize("name", ["../../evil.png", "/tmp/evil.png", "a/../../evil.png", ""])
def test_a_name_in_a_file_does_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    cam = CamFile(rectangle((30, 40))[0], size=(30, 40), image=name)
    (tmp_path / "in").mkdir()
    write_cam(tmp_path / "in/a.npz", cam)
    convert(tmp_path / "in", "--to", "wsol", "--out", tmp_path / "deep/out")
    assert npy_names(tmp_path) == {"deep/out/a.npy"}


@pytest.mark.filterwarnings("ignore::ssa_fast.io.cam_files.PickleWarning")
@pytest.mark.parametrize("kind", ["psa", "irn", "clip-es"])
def test_other_formats_have_the_ids_of_voc(kind: str, network: tuple[zoo.Classifier, SSA], tmp_path: Path) -> None:
    """PSA, SEAM and IRN open ``join(cam_dir, id + ".npy")``, CLIP-ES the image's name with "jpg" replaced by "npy"."""
    for image_id in ("2007_000032", "2007_000039"):
        (tmp_path / "VOC/JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 40), "green").save(tmp_path / f"VOC/JPEGImages/{image_id}.jpg")
    (tmp_path / "VOC/ImageSets/Main").mkdir(parents=True)
    (tmp_path / "VOC/ImageSets/Main/train.txt").write_text("2007_000032\n")
    options = RunOptions(cams=kind, overlays=False, workers=0, allow_pickle=True)
    for folder, split, expected in (
        ("VOC", None, {"2007_000032.npy", "2007_000039.npy"}),
        ("VOC", "train", {"2007_000032.npy"}),
        ("VOC/JPEGImages", None, {"2007_000032.npy", "2007_000039.npy"}),
    ):
        out = tmp_path / f"out-{len(expected)}-{Path(folder).name}"
        runs.run([tmp_path / folder], network[1], out, classifier=network[0], options=options, split=split)
        assert npy_names(out / "cams") == expected
