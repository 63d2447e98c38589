"""Standard measures of CAMs: mean IoU over background thresholds, MaxBoxAccV2 and PxAP."""

from ssa_fast.evaluate.boxes import BoxAccuracy, box_accuracy, box_iou, max_box_acc
from ssa_fast.evaluate.precision import average_precision, pixel_average_precision
from ssa_fast.evaluate.segmentation import Sweep, confusion_matrix, iou_per_class, mean_iou, threshold_sweep
from ssa_fast.localize.boxes import component_boxes

__all__ = [
    "BoxAccuracy",
    "Sweep",
    "average_precision",
    "box_accuracy",
    "box_iou",
    "component_boxes",
    "confusion_matrix",
    "iou_per_class",
    "max_box_acc",
    "mean_iou",
    "pixel_average_precision",
    "threshold_sweep",
]
