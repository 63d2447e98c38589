"""Runs over images: folders and datasets of any length, in batches, over several processes, resumable."""

from ssa_fast.runs.options import RunOptions
from ssa_fast.runs.predictor import Prediction, Predictor
from ssa_fast.runs.report import Failure, RunReport
from ssa_fast.runs.runner import list_images, run
from ssa_fast.runs.watch import Watch

__all__ = ["Failure", "Prediction", "Predictor", "RunOptions", "RunReport", "Watch", "list_images", "run"]
