"""Heading 15: CAM files as training codes leave them.

The class of inputs: an intact file whose CAMs are tensors of any type, with or without gradient, saved by ``np.save``
or ``torch.save``, or whose image has no class. It is read, or refused with the real reason; only a file that cannot be
decoded is called damaged.
"""

from __future__ import annotations

import io
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from ssa_fast.io.cam_files import CamFile, PickleWarning, read_cam, write_cam

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAPS = torch.rand(2, 12, 16, generator=torch.Generator().manual_seed(0))
TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "bfloat16": lambda maps: maps.bfloat16(),
    "half": lambda maps: maps.half(),
    "double": lambda maps: maps.double(),
    "requires grad": lambda maps: maps.clone().requires_grad_(),
    "result with gradient": lambda maps: maps.clone().requires_grad_() * 1,
    "parameter": nn.Parameter,
    "view": lambda maps: maps.flip(0).flip(0).transpose(1, 2).contiguous().transpose(1, 2),
    "array": lambda maps: maps.numpy(),
}


def save_pickled(path: Path, held: Any) -> None:
    np.save(path, np.array(held, dtype=object), allow_pickle=True)


@pytest.mark.filterwarnings("ignore::ssa_fast.io.cam_files.PickleWarning")
@pytest.mark.parametrize("how", ["np.save", "torch.save"])
@pytest.mark.parametrize("kind", [kind for kind in TENSORS if kind != "result with gradient"])  # cannot be pickled
def test_cam_files_with_tensors_of_any_type(kind: str, how: str, tmp_path: Path) -> None:
    maps = TENSORS[kind](MAPS)
    planes = [nn.Parameter(plane.detach()) if isinstance(plane, torch.Tensor) else plane for plane in maps]
    contents = {
        "psa": {3: planes[0], torch.tensor(14): planes[1]},
        "irn": {"keys": torch.tensor([3, 14]), "cam": maps, "high_res": maps},
        "clip-es": {"keys": [3, 14], "attn_highres": maps},
    }
    expected = (maps.detach().float() if isinstance(maps, torch.Tensor) else torch.from_numpy(maps)).numpy()
    for format, held in contents.items():
        if how == "torch.save":
            torch.save(held, tmp_path / "a.npy")
        else:
            save_pickled(tmp_path / "a.npy", held)
        cam = read_cam(tmp_path / "a.npy", format=format, allow_pickle=True)
        np.testing.assert_array_equal(cam.cams, expected)
        assert cam.cams.dtype == np.float32
        assert cam.classes is not None
        assert cam.classes.tolist() == [3, 14]


@pytest.mark.parametrize("kind", [kind for kind in TENSORS if kind != "array"])
def test_tensors_are_written(kind: str, tmp_path: Path) -> None:
    maps = TENSORS[kind](MAPS)
    cam = CamFile(maps, classes=torch.tensor([3, 14]), size=(12, 16))
    for format, tolerance in (("ssa", 2**-11), ("irn", 0)):
        path = tmp_path / f"a.{format}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PickleWarning)
            write_cam(path, cam, format=format, allow_pickle=True)
            again = read_cam(path, allow_pickle=True)
        np.testing.assert_allclose(again.cams, maps.detach().float().numpy(), rtol=0, atol=tolerance)
        assert again.classes is not None
        assert again.classes.tolist() == [3, 14]


@pytest.mark.filterwarnings("ignore::ssa_fast.io.cam_files.PickleWarning")
@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ({"keys": torch.zeros(0, dtype=torch.long)}, "holds no class, hence no CAM: its image has no labels"),
        ({"keys": np.zeros(0, int), "high_res": np.zeros((0, 4, 4), np.float32)}, "holds no class, hence no CAM"),
        ({"keys": [], "attn_highres": torch.zeros(0, 4, 4)}, "holds no class, hence no CAM"),
        ({}, "no class: its image has no labels"),
        ({"keys": [3], "high_res": np.zeros((4, 4), np.float32)}, r"CAMs of shape \(4, 4\); expected \(K, H, W\)"),
        ({"keys": [3, 4], "high_res": np.zeros((1, 4, 4), np.float32)}, "classes: expected 1, one per CAM, got 2"),
        (
            {"high_res": np.zeros((1, 4, 4), np.float32)},
            r"with \['high_res'\]; expected PSA's, IRN's or CLIP-ES's keys",
        ),
    ],
)
def test_intact_files_are_not_called_damaged(held: Any, reason: str, tmp_path: Path) -> None:
    save_pickled(tmp_path / "a.npy", held)
    with pytest.raises(ValueError, match=reason) as caught:
        read_cam(tmp_path / "a.npy", allow_pickle=True)
    assert "damaged" not in str(caught.value)


def test_own_files_without_classes(tmp_path: Path) -> None:
    """An archive of CAMs alone is read; one without a CAM, or of a type that NumPy does not know, says so."""
    np.savez(tmp_path / "a.npz", cams=MAPS.numpy())
    cam = read_cam(tmp_path / "a.npz")
    assert (cam.classes, cam.size, cam.image) == (None, None, None)
    np.testing.assert_array_equal(cam.cams, MAPS.numpy())
    np.savez(tmp_path / "a.npz", cams=MAPS.numpy()[:0])
    with pytest.raises(ValueError, match=r"a\.npz holds no class, hence no CAM"):
        read_cam(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", cams=MAPS.bfloat16().view(torch.int16).numpy().view("V2"))
    with pytest.raises(ValueError, match=r"a\.npz holds CAMs of type \|V2; expected float16, float32 or uint8"):
        read_cam(tmp_path / "a.npz")
    torch.save({"keys": [3], "high_res": MAPS, "model": nn.Linear(1, 1)}, tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"is refused: the pickle references torch\.nn\.modules\.linear\.Linear"):
        read_cam(tmp_path / "a.npy")
    torch.save([1], tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npy is a torch\.save of a list; expected a dictionary of CAMs"):
        read_cam(tmp_path / "a.npy")
    buffer = io.BytesIO()
    pickle.dump({"keys": [3]}, buffer)
    (tmp_path / "a.npy").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="is damaged or not a CAM file"):
        read_cam(tmp_path / "a.npy", allow_pickle=True)
