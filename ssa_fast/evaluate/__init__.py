"""Standard measures of CAMs: mIoU over background thresholds, MaxBoxAcc, top-1 localisation, PxAP, boundary F."""

from ssa_fast.evaluate.boundary import boundary_f
from ssa_fast.evaluate.boxes import BoxAccuracy, box_accuracy, box_iou, max_box_acc, resize_boxes
from ssa_fast.evaluate.contours import contour_boxes
from ssa_fast.evaluate.localization import LocalizationAccuracy, localization_accuracy
from ssa_fast.evaluate.precision import average_precision, pixel_average_precision
from ssa_fast.evaluate.segmentation import Sweep, confusion_matrix, iou_per_class, mean_iou, threshold_sweep
from ssa_fast.localize.boxes import component_boxes

__all__ = [
    "BoxAccuracy",
    "LocalizationAccuracy",
    "Sweep",
    "average_precision",
    "boundary_f",
    "box_accuracy",
    "box_iou",
    "component_boxes",
    "confusion_matrix",
    "contour_boxes",
    "iou_per_class",
    "localization_accuracy",
    "max_box_acc",
    "mean_iou",
    "pixel_average_precision",
    "resize_boxes",
    "threshold_sweep",
]
