"""CAM files of datasets of weakly supervised localisation: the map of each image's true class.

Maps have wsolevaluation's 224 x 224 pixels, whatever their images' sizes: what ``ssa-fast convert --to wsol`` writes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import interpolate

from ssa_fast.io.cam_files import CamFile, full_size
from ssa_fast.io.cam_values import WSOL_SIZE, minmax, nearest_pixels
from ssa_fast.localize import estimate_background

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ssa_fast.evaluate.datasets.base import LocalizationSet, LocatedImage
    from ssa_fast.evaluate.datasets.cam_folder import CamFolder, Missing

__all__ = ["LocalizationSource", "Pairs"]

Pairs = tuple[tuple["LocatedImage", Path | None], ...]


class LocalizationSource:
    """A dataset together with its CAM files: one image's map of its true class at a time.

    Args:
        dataset, cams: Both.
        missing: What an image without a CAM of its true class is, see ``Missing``.
    """

    def __init__(self, dataset: LocalizationSet, cams: CamFolder, missing: Missing = "refuse") -> None:
        self.dataset, self.cams, self.missing = dataset, cams, missing

    def pairs(self) -> Pairs:
        """Return the images that count, with their files; errors are those of ``CamFolder.find_all``."""
        files = self.cams.find_all([image.id for image in self.dataset.images], self.missing)
        pairs = zip(self.dataset.images, files, strict=True)
        return tuple(pair for pair in pairs if self.missing != "skip" or pair[1] is not None)

    def read(
        self, image: LocatedImage, path: Path | None, notes: Counter[str] | None = None
    ) -> tuple[NDArray[np.float64], CamFile | None]:
        """Return the map (224, 224) in [0, 1] of an image's class, 0 everywhere without one, and the file's content.

        Raises:
            ValueError: The file cannot be read, or has no map of the class and ``missing`` is "refuse".
        """
        notes = Counter() if notes is None else notes
        cam = None if path is None else self.cams.read(path)
        empty = np.zeros((WSOL_SIZE, WSOL_SIZE))
        if cam is None or path is None:
            notes[
                "have no CAM file and count as a map of zeros" if path is None else "have no class in their file"
            ] += 1
            return empty, cam
        classes = [image.label] if cam.classes is None else cam.classes.tolist()  # wsolevaluation's is of the true one
        if image.label not in classes:
            if self.missing == "refuse":
                raise ValueError(
                    f"cams: expected a map of class {image.label}, the true one of {image.id}, got those of "
                    f"{classes} in {path}; make them with --classes labels, or pass --missing empty "
                    "to count them as wrong"
                )
            notes["have no map of their true class and count as a map of zeros"] += 1
            return empty, cam
        k = classes.index(image.label)
        one = CamFile(cam.cams[k : k + 1], size=cam.size, align_corners=cam.align_corners)
        if cam.size is not None and image.size is not None and cam.size != (image.size[1], image.size[0]):
            notes["have CAMs of another size than the dataset says the image has, such as one turned upright"] += 1
        return minmax(_at_wsol_size(one, notes)), cam


def estimate_threshold(cam: NDArray[np.float64]) -> float:
    """Return a threshold in [0, 1) for a map (h, w) that does not look at the truth; NaN for one of zeros."""
    if not cam.any():
        return float("nan")
    return min(float(estimate_background(torch.from_numpy(cam)[None])), float(np.nextafter(1.0, 0.0)))


def describe(notes: Counter[str], source: LocalizationSource, pairs: Pairs) -> list[str]:
    """Return what the reader should know of the numbers, one sentence each."""
    total = len(source.dataset.images)
    said = [*source.dataset.notes, *(f"{n} of {len(pairs)} images {note}" for note, n in notes.items())]
    if skipped := total - len(pairs):
        said.append(f"{skipped} of {total} images have no CAM file and are left out")
    return said


def _at_wsol_size(cam: CamFile, notes: Counter[str]) -> NDArray[np.float64]:
    """Return the one map of a file at wsolevaluation's size."""
    square = (WSOL_SIZE, WSOL_SIZE)
    if cam.size is not None:
        rows, columns = map(nearest_pixels, cam.size)
        return full_size(cam)[0][rows[:, None], columns].astype(np.float64)
    if cam.cams.shape[1:] == square:
        return cam.cams[0].astype(np.float64)
    notes["have maps of another size, resized bicubically to 224 x 224 as wsolevaluation does"] += 1
    maps = torch.from_numpy(np.ascontiguousarray(cam.cams, dtype=np.float32))[None]
    # OpenCV's INTER_CUBIC has the same kernel (a = -0.75) and the same pixel centres.
    return interpolate(maps, square, mode="bicubic", align_corners=False)[0, 0].double().numpy()
