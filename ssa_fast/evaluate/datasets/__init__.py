"""Datasets on disk, their CAM files, and the field's measures of both: the functions behind ``ssa-fast eval``."""

from ssa_fast.evaluate.datasets.base import LabelledImage, LocalizationSet, LocatedImage, SegmentationSet
from ssa_fast.evaluate.datasets.boxes import BoxReport, evaluate_boxes
from ssa_fast.evaluate.datasets.cam_folder import CamFolder
from ssa_fast.evaluate.datasets.coco import read_coco
from ssa_fast.evaluate.datasets.folder import read_folder
from ssa_fast.evaluate.datasets.pixels import PixelReport, evaluate_pixels
from ssa_fast.evaluate.datasets.predictions import read_predictions
from ssa_fast.evaluate.datasets.segmentation import SegmentationReport, evaluate_segmentation
from ssa_fast.evaluate.datasets.voc import read_voc
from ssa_fast.evaluate.datasets.wsol import read_cub, read_imagenet, read_openimages

__all__ = [
    "BoxReport",
    "CamFolder",
    "LabelledImage",
    "LocalizationSet",
    "LocatedImage",
    "PixelReport",
    "SegmentationReport",
    "SegmentationSet",
    "evaluate_boxes",
    "evaluate_pixels",
    "evaluate_segmentation",
    "read_coco",
    "read_cub",
    "read_folder",
    "read_imagenet",
    "read_openimages",
    "read_predictions",
    "read_voc",
]
