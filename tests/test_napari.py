"""The napari plugin: its manifest, which files it takes, and layers that lie over the image."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ssa_fast
from ssa_fast.integrations.napari import COLORMAPS, SINGLE, get_reader, read_layers
from ssa_fast.io import pyramid
from ssa_fast.io.cam_files import CamFile, full_size, write_cam
from ssa_fast.io.placement import Placement
from ssa_fast.localize.masks import voc_palette

MANIFEST = Path(ssa_fast.__file__).with_name("napari.yaml")
NAMES = ("tabby", "tiger cat")


def npz(path: Path, shape: tuple[int, int], size: tuple[int, int], *, align_corners: bool = False) -> CamFile:
    cams = np.random.default_rng(0).random((2, *shape), np.float32).astype(np.float16).astype(np.float32)
    about: dict[str, Any] = {"names": NAMES, "classes": np.array([281, 282]), "image": "a.jpg"}
    cam = CamFile(cams, size=size, align_corners=align_corners, settings={"model": "demo"}, **about)
    write_cam(path, cam)
    return cam


def tiff(path: Path, maps: np.ndarray, **options: Any) -> None:
    pytest.importorskip("tifffile", reason="tifffile comes with the extra large")
    names = [f"class {k}" for k in range(len(maps))]
    arguments = {"shape": maps.shape, "names": names, "metadata": {"classes": [3]}, **options}
    pyramid.write(path, lambda k, y0, y1, x0, x1: maps[k, y0:y1, x0:x1], **arguments)


def sample(data: np.ndarray, scale: list[float], translate: list[float], size: tuple[int, int]) -> np.ndarray:
    """Return what napari draws at each pixel of the image: linear between the layer's pixels, in its coordinates."""
    for axis in (0, 1):
        at = (np.arange(size[axis]) - translate[axis]) / scale[axis]
        at = at.clip(0, data.shape[axis] - 1)
        low = np.floor(at).astype(int).clip(0, max(data.shape[axis] - 2, 0))
        high = (low + 1).clip(0, data.shape[axis] - 1)
        share = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        data = data.take(low, axis) * (1 - share) + data.take(high, axis) * share
    return data


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_cam_lies_over_its_image(tmp_path: Path, align_corners: bool) -> None:
    cam = npz(tmp_path / "a.npz", (6, 9), (40, 31), align_corners=align_corners)
    layers = read_layers(str(tmp_path / "a.npz"))
    assert [options["name"] for _, options, _ in layers] == list(NAMES)
    for k, (data, options, kind) in enumerate(layers):
        drawn = sample(data, options["scale"], options["translate"], (40, 31))
        np.testing.assert_allclose(drawn, full_size(cam)[k], atol=1e-5)
        assert (kind, options["blending"], options["contrast_limits"]) == ("image", "additive", (0.0, 1.0))
        assert options["metadata"] == {"image": "a.jpg", "class": 281 + k, "settings": {"model": "demo"}}
    assert [options["colormap"] for _, options, _ in layers] == list(COLORMAPS[:2])


def test_a_tiff_is_read_level_by_level(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).integers(0, 256, (2, 1500, 2100), dtype=np.uint8)
    tiff(tmp_path / "cams.tif", maps)
    layers = read_layers(tmp_path / "cams.tif")
    assert [options["name"] for _, options, _ in layers] == ["class 0", "class 1"]
    for (data, options, kind), full in zip(layers, maps, strict=True):
        assert (kind, options["multiscale"], options["contrast_limits"]) == ("image", True, (0.0, 255.0))
        assert [level.shape for level in data] == [(1500, 2100), (750, 1050), (375, 525)]
        assert not any(isinstance(level, np.ndarray) for level in data), "read at once"
        np.testing.assert_array_equal(np.asarray(data[0][700:710, 30:50]), full[700:710, 30:50])
        assert "scale" not in options, "it has the image's pixels"
    assert layers[0][1]["metadata"]["classes"] == [3]
    tiff(tmp_path / "scaled.tif", maps[:1, :50, :60], placement=Placement(pixel_size=(0.5, 0.5), unit="micrometer"))
    assert read_layers(tmp_path / "scaled.tif")[0][1]["metadata"]["classes"] == [3], "in OME-XML"


def test_a_mask_is_a_labels_layer(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (1, 40, 50), dtype=np.uint8)
    tiff(tmp_path / "a.mask.tif", labels, kind="mask", palette=voc_palette())
    ((data, options, kind),) = read_layers(tmp_path / "a.mask.tif")
    assert (kind, options["name"]) == ("labels", "a.mask mask")
    np.testing.assert_array_equal(np.asarray(data[:]), labels[0])


def test_a_single_class_has_an_even_map(tmp_path: Path) -> None:
    tiff(tmp_path / "a.tif", np.zeros((1, 20, 20), np.uint8))
    assert read_layers(tmp_path / "a.tif")[0][1]["colormap"] == SINGLE


def test_only_files_of_this_project_are_taken(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile comes with the extra large")
    npz(tmp_path / "a.npz", (3, 3), (9, 9))
    tiff(tmp_path / "a.tif", np.zeros((1, 20, 20), np.uint8))
    np.savez(tmp_path / "other.npz", cam=np.zeros(3))
    tifffile.imwrite(tmp_path / "other.tif", np.zeros((5, 5), np.uint8))
    for broken in ("broken.npz", "broken.tif"):
        (tmp_path / broken).write_text("nothing")
    taken = sorted(path.name for path in tmp_path.iterdir() if get_reader(str(path)) is not None)
    assert taken == ["a.npz", "a.tif"]
    assert get_reader([str(tmp_path / "a.npz"), str(tmp_path / "a.tif")]) is read_layers
    assert get_reader([str(tmp_path / "a.npz"), str(tmp_path / "other.npz")]) is None
    assert get_reader(str(tmp_path / "gone.tif")) is None
    assert len(read_layers([tmp_path / "a.npz", tmp_path / "a.tif"])) == 3


def test_the_manifest_is_valid_and_opens_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npe2 = pytest.importorskip("npe2", reason="npe2 comes with the extra test")
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    manager = npe2.PluginManager()
    monkeypatch.setattr(npe2.PluginManager, "instance", lambda: manager)
    manager.register(manifest)
    npz(tmp_path / "a.npz", (3, 4), (9, 12))
    layers, reader = npe2.read_get_reader([str(tmp_path / "a.npz")], stack=False)
    assert reader.plugin_name == "ssa_fast"
    assert [(options["name"], kind) for _, options, kind in layers] == [(name, "image") for name in NAMES]
    np.savez(tmp_path / "other.npz", cam=np.zeros(3))
    with pytest.raises(ValueError, match="No readers returned data"):
        npe2.read([str(tmp_path / "other.npz")], stack=False)


def test_the_package_has_the_entry_point() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points."napari.manifest"]\nssa_fast = "ssa_fast:napari.yaml"\n' in text
    assert '"napari.yaml"' in text, "package data"
    found = [entry for entry in metadata.entry_points(group="napari.manifest") if entry.name == "ssa_fast"]
    assert all(entry.value == "ssa_fast:napari.yaml" for entry in found)


@pytest.mark.slow
def test_importing_it_needs_neither_napari_nor_tifffile() -> None:
    blocked = "import sys\nfor name in ('napari', 'npe2', 'tifffile', 'zarr', 'dask'): sys.modules[name] = None\n"
    code = blocked + "from ssa_fast.integrations.napari import get_reader\nassert get_reader('gone.npz') is None\n"
    code += "try: get_reader('gone.tif')\nexcept ModuleNotFoundError as error: print(error)\n"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "path: TIFFs need tifffile; pip install 'ssa_fast[large]'\n"
