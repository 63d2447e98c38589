"""Run the recipes of docs/recipes.md in small: those with weights on networks of the same kind with random ones."""

from __future__ import annotations

import ast
import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ssa_fast import SSA, LargeImageSSA, runs
from ssa_fast.cli.app import app
from ssa_fast.io.images import read_image
from ssa_fast.localize.masks import voc_palette
from ssa_fast.models import zoo
from ssa_fast.runs import RunOptions
from ssa_fast.runs.training_set import export_training_set
from tests.pages import ROOT, blocks
from tests.samples import CAT, save_photo, save_slide, scenes_with_cats

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = ROOT / "docs/recipes.md"


def recipe(word: str) -> str:
    """Return the one block of the page that holds a word."""
    (found,) = [block.text for block in blocks(PAGE) if block.language == "python" and word in block.text]
    return found


# --- a training set


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in PNG and JPEG, one JPEG that is stored on its side, and one bad file."""
    folder = tmp_path_factory.mktemp("set") / "photos"
    (folder / "sub").mkdir(parents=True)
    for n, scene in enumerate(scenes_with_cats(5)):
        Image.fromarray(scene.image[:96]).save(folder / ("sub" if n == 4 else ".") / f"{n}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def results(photos: Path) -> Path:
    """A run over them with two classes, whose indices are no labels of a set."""
    return polish([photos], photos.with_name("results"), classes=f"{CAT},0")


def polish(paths: Sequence[Path], out: Path, **options: Any) -> Path:
    classifier = zoo.load("demo")
    made = RunOptions(**{"overlays": False, "workers": 0, **options})
    report = runs.run(paths, SSA(classifier.model, size="stage"), out, classifier=classifier, options=made)
    assert not report.failures
    return out


def labels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image)


@pytest.mark.slow
def test_mmsegs_training_set(photos: Path, results: Path, tmp_path: Path) -> None:
    made = export_training_set([photos], results, tmp_path / "set", "mmseg", validation=0.4)
    classes = ("background", *(zoo.load("demo").categories[k] for k in sorted((CAT, 0))))
    assert (made.classes, made.suffix, made.skipped) == (classes, ".jpg", ())
    assert (len(made.training), len(made.validation)) == (3, 2)
    assert sorted(made.training + made.validation) == ["0", "1", "2", "3", "sub/4"]
    to = {0: 0, 255: 255, 1: 1, CAT + 1: 2} if CAT else {}
    for part, names in (("training", made.training), ("validation", made.validation)):
        for name in names:
            image = tmp_path / f"set/img_dir/{part}/{name}.jpg"
            assert image.read_bytes() == (photos / f"{name}.jpg").read_bytes()
            before, after = labels(results / f"masks/{name}.png"), labels(tmp_path / f"set/ann_dir/{part}/{name}.png")
            assert np.array_equal(after, np.vectorize(to.__getitem__)(before))
            assert after.max() > 0
    config: dict[str, Any] = {}
    exec((tmp_path / "set/dataset.py").read_text(), config)
    assert config["metainfo"]["classes"] == classes
    assert config["metainfo"]["palette"] == np.array(voc_palette()).reshape(-1, 3)[:3].tolist()
    for part, loader in (("training", config["train_dataloader"]), ("validation", config["val_dataloader"])):
        dataset = loader["dataset"]
        assert (dataset["type"], dataset["reduce_zero_label"], dataset["ignore_index"]) == (
            "BaseSegDataset",
            False,
            255,
        )
        images, masks = (
            Path(dataset["data_root"], dataset["data_prefix"][key]) for key in ("img_path", "seg_map_path")
        )
        pairs = {path.relative_to(images).with_suffix(dataset["seg_map_suffix"]) for path in images.rglob("*.jpg")}
        assert pairs == {path.relative_to(masks) for path in masks.rglob("*.png")}, part


@pytest.mark.slow
def test_hugging_faces_training_set(photos: Path, results: Path, tmp_path: Path) -> None:
    """As imagefolder reads it: each line's "*_file_name" is a path beside the file, and becomes a column of images."""
    out = tmp_path / "set"
    result = CliRunner().invoke(
        app, ["export", str(photos), "--results", str(results), "--to", "hf", "--out", str(out), "--validation", "0.2"]
    )
    assert result.exit_code == 0, result.output
    id2label = {int(label): name for label, name in json.loads((out / "id2label.json").read_text()).items()}
    assert list(id2label) == [0, 1, 2]
    counts = {}
    for part in ("train", "validation"):
        lines = (out / part / "metadata.jsonl").read_text().splitlines()
        counts[part] = len(lines)
        for row in map(json.loads, lines):
            assert row.keys() == {"image_file_name", "label_file_name"}
            image, label = (out / part / row[key] for key in ("image_file_name", "label_file_name"))
            assert read_image(image).rgb.shape[:2] == labels(label).shape
            assert set(np.unique(labels(label)).tolist()) <= {*id2label, 255}
    assert counts == {"train": 4, "validation": 1}


@pytest.mark.slow
def test_images_of_several_kinds_become_pngs(tmp_path: Path) -> None:
    """One is stored on its side, which readers treat differently; what the network saw is what is trained on."""
    folder = tmp_path / "in"
    folder.mkdir()
    for n, (scene, orientation) in enumerate(zip(scenes_with_cats(2), (1, 6), strict=True)):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(scene.image[:96]).save(folder / f"{n}.jpg", exif=exif)
    (folder / "bad.jpg").write_text("no image")
    polished = tmp_path / "results"
    classifier = zoo.load("demo")
    ssa = SSA(classifier.model, size="stage")
    report = runs.run([folder], ssa, polished, classifier=classifier, options=RunOptions(overlays=False))
    assert len(report.failures) == 1
    made = export_training_set([folder], polished, tmp_path / "set", "mmseg", validation=0.0)
    assert (made.suffix, made.validation) == (".png", ())
    assert made.skipped == ((folder / "bad.jpg", "the run has no mask of it."),)
    for name in made.training:
        rgb = read_image(tmp_path / f"set/img_dir/training/{name}.png").rgb
        assert np.array_equal(rgb, read_image(folder / f"{name}.jpg").rgb)
        assert rgb.shape[:2] == labels(tmp_path / f"set/ann_dir/training/{name}.png").shape


@pytest.mark.slow
def test_a_training_set_is_refused_with_the_reason(photos: Path, results: Path, tmp_path: Path) -> None:
    def export(paths: Any = (photos,), of: Path = results, out: Path = tmp_path / "set", **options: Any) -> None:
        export_training_set(paths, of, out, options.pop("layout", "hf"), **options)

    for arguments, message in (
        ({"layout": "coco"}, r"^layout: expected one of mmseg, hf, got 'coco'"),
        ({"validation": 1.0}, r"^validation: expected a share in \[0, 1\), got 1"),
        ({"of": photos}, r"^results: .*photos is no output folder of ssa-fast run"),
        ({"out": photos}, r"^out: .*photos exists; pass --overwrite"),
        ({"out": results, "overwrite": True}, r"^out: .*results holds other things than a training set, which "),
        ({"out": photos, "overwrite": True}, r"^out: .*photos holds other things than a training set, which "),
        (
            {"paths": (photos / "sub/4.jpg",)},
            r"^paths: expected the images of the run .* none with a mask \(.*4\.jpg: ",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            export(**arguments)
    broken = shutil.copytree(results, tmp_path / "broken")
    mask = labels(broken / "masks/0.png").copy()
    mask[0, 0] = 200
    Image.fromarray(mask).convert("P").save(broken / "masks/0.png")
    with pytest.raises(ValueError, match=r"^results: .*0\.png has values that its record does not name"):
        export(of=broken)
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.glob(".*"))
    shutil.copytree(photos, tmp_path / "train/train")
    twin = polish([tmp_path / "train"], tmp_path / "twin", classes="0")
    with pytest.raises(ValueError, match=r"^out: .*train holds the images themselves"):
        export(paths=(tmp_path / "train",), of=twin, out=tmp_path / "train", overwrite=True)
    assert (tmp_path / "train/train/sub/4.jpg").exists()
    export()
    export(overwrite=True, layout="mmseg")
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"img_dir", "ann_dir", "dataset.py"}


# --- networks with random weights


TEXT = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZE = {"image_size": 64, "patch_size": 8}


@pytest.mark.slow
def test_prompts_for_sam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers comes with the extra peers")
    vision = {**VISION, **SIZE, "output_channels": 16, "mlp_dim": 64, "global_attn_indexes": [1], "window_size": 4}
    config = transformers.SamConfig(
        vision_config={**vision, "num_pos_feats": 8},
        prompt_encoder_config={"hidden_size": 16, "mask_input_channels": 8, **SIZE},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 16},
    )
    sizes = {f"{kind}pad_size": {"height": n, "width": n} for kind, n in (("", 64), ("mask_", 32))}
    images = transformers.SamImageProcessor(size={"longest_edge": 64}, mask_size={"longest_edge": 32}, **sizes)
    loaded = {"SamModel": transformers.SamModel(config), "SamProcessor": transformers.SamProcessor(images)}
    names = weights_of(monkeypatch, transformers, loaded)
    monkeypatch.setattr(zoo, "load", lambda name, load=zoo.load: load("demo"))
    save_photo(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found = run(recipe("SamModel"))
    assert names == ["facebook/sam-vit-base"] * 2
    prompts = found["prompts"]
    assert len(prompts) > 0
    assert found["masks"].shape == (len(prompts), *found["image"].shape[:2])
    assert found["masks"].dtype == torch.bool
    assert set(found["classes"]) == set(found["result"].names[0])
    assert found["inputs"]["input_boxes"].shape == (1, len(prompts), 4)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_zero_shot_classifiers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers comes with the extra peers")
    torch.manual_seed(0)
    towers = {"text_config": {**TEXT, "max_position_embeddings": 16}, "vision_config": {**VISION, **SIZE}}
    if kind == "clip":
        towers["text_config"] |= {"bos_token_id": 0, "eos_token_id": 1}
        model = transformers.CLIPModel(transformers.CLIPConfig(**towers, projection_dim=16))
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(**towers))

    class Processor:
        """Tokens and pixels of the right shapes: real ones need files."""

        def __call__(self, text: Any = None, images: Any = None, **rest: Any) -> dict[str, torch.Tensor]:
            if text is not None:
                return {"input_ids": torch.tensor([[ord(letter) % 99 for letter in f"{each:16.16}"] for each in text])}
            pixels = torch.from_numpy(np.array(images.resize((64, 64)))).permute(2, 0, 1)
            return {"pixel_values": pixels[None] / 127.5 - 1}

    weights_of(monkeypatch, transformers, {"AutoModel": model, "AutoProcessor": Processor()})
    save_photo(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found = run(recipe("ZeroShot"))
    result = found["result"]
    assert result.cams.shape == (1, 2, 64, 64)
    assert result.names == [["a cat", "a rocket"]]
    with torch.no_grad():
        pixels, text = found["images"], Processor()(found["prompts"])["input_ids"]
        logits = model(input_ids=text, pixel_values=pixels).logits_per_image
    expected = (logits.sigmoid() if kind == "siglip" else logits.softmax(1))[:, [0, 2]]
    torch.testing.assert_close(result.scores, expected, rtol=1e-4, atol=1e-5)
    assert result.cams.amax() == 1


@pytest.mark.slow
def test_targets_of_a_segmentation_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmentation = pytest.importorskip("torchvision").models.segmentation
    make = segmentation.lraspp_mobilenet_v3_large
    torch.manual_seed(0)
    random = make(weights=None, weights_backbone=None)
    monkeypatch.setattr(segmentation, "lraspp_mobilenet_v3_large", lambda weights: random)
    preset = segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT.transforms
    monkeypatch.setitem(preset.keywords, "resize_size", 64)
    save_photo(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found = run(recipe("lraspp"))
    result, names = found["result"], found["names"]
    assert result.names == [[names[k] for k in found["present"]]]
    assert result.cams.shape == (1, len(found["present"]), *found["images"].shape[-2:])
    with torch.no_grad():
        logits = random(found["images"])["out"][0]
    for k in found["present"]:
        assert torch.equal(found["predicted_pixels"](k)({"out": logits}), logits[k][logits.argmax(0) == k].sum())


def weights_of(monkeypatch: pytest.MonkeyPatch, package: Any, loaded: dict[str, Any]) -> list[str]:
    """Let classes of a package load given objects; return the names that will have been asked for."""
    names: list[str] = []
    for kind, value in loaded.items():
        monkeypatch.setattr(
            getattr(package, kind), "from_pretrained", lambda name, value=value: (names.append(name), value)[1]
        )
    return names


def run(code: str) -> dict[str, Any]:
    """Run a block of the page and return what it defines."""
    found: dict[str, Any] = {"__name__": "recipe"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random networks have classes without evidence
        exec(compile(ast.parse(code), str(PAGE), "exec"), found)
    return found


# --- slides and maps


@pytest.mark.slow
def test_a_geotiff_keeps_its_place(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio comes with the extra test, where it has wheels")
    from rasterio.transform import from_origin

    save_slide(tmp_path / "slide.tif", side=512)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is not georeferenced yet
        with rasterio.open(tmp_path / "slide.tif") as plain:
            pixels = plain.read()
    place = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_300_000, 0.5, 0.5)}
    shape = {"width": 512, "height": 512, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    with rasterio.open(tmp_path / "orthophoto.tif", "w", driver="GTiff", **shape, **place) as file:
        file.write(pixels)
    net = zoo.load("demo")
    polish_large = LargeImageSSA(SSA(net.model, names=net.categories), mean=net.mean, std=net.std)
    result = polish_large(tmp_path / "orthophoto.tif", classes=["cat", 0], out=tmp_path / "cams.tif")
    with rasterio.open(tmp_path / "orthophoto.tif") as source:
        for path in (result.cams, result.mask):
            with rasterio.open(path) as made:
                assert (made.crs, made.transform, made.bounds, made.shape) == (
                    *(source.crs, source.transform, source.bounds, source.shape),
                )
    with rasterio.open(result.mask) as mask:
        assert mask.colormap(1)[1] == (128, 0, 0, 255)
    with rasterio.open(f"GTIFF_DIR:2:{result.cams}") as second:  # as QGIS lists a page
        assert second.crs == place["crs"]
