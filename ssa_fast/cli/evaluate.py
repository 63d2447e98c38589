"""``ssa-fast eval``: the field's measures of CAM files against datasets on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ssa_fast.cli import console
from ssa_fast.cli.options import Debug, option

__all__ = ["app"]

PANELS = ("Dataset", "CAMs", "Measures", "Output")
_data, _cams, _measure, _out = (partial(option, panel) for panel in PANELS)

EPILOG = """Example:

ssa-fast eval voc --root VOC2012 --cams out --out scores
"""

app = typer.Typer(
    help="Measure CAM files against a dataset: mIoU over background thresholds, MaxBoxAcc, PxAP.",
    no_args_is_help=True,
)

Cams = Annotated[Path, _cams("Folder of CAM files, or of a run: .npz and .npy in any format of convert.", "--cams")]
Images = Annotated[Path | None, _data("Folder of the images, which only panels need.")]
Split = Annotated[Literal["train", "val", "test"], _data("wsolevaluation's split; val is train-fullsup.")]
Match = Annotated[
    Literal["auto", "names", "index"],
    _cams("How a CAM's class becomes the dataset's: by name, by index, or by name where files have names."),
]
MissingFiles = Annotated[
    Literal["refuse", "skip", "empty"],
    _cams("Images without a CAM file: an error, left out, or counted with CAMs of 0."),
]
AllowPickle = Annotated[bool, _cams("Read psa, irn and clip-es files, which are pickles.", "--allow-pickle")]
Absent = Annotated[
    Literal["skip", "zero"], _measure("Classes in no truth and no prediction: left out (IRN), or 0 (SEAM).")
]
Step = Annotated[float, _measure("Step between thresholds.", min=0.001, max=0.5)]
PredictionsPath = Annotated[
    Path | None, _cams("Predicted classes: a run's folder (--classes top5), or lines image,class,class,...")
]
Save = Annotated[Path | None, _out("Write all numbers to this JSON file.", "--save")]
Out = Annotated[
    Path | None, _out("Folder for the numbers, the threshold curve and panels of the ten worst images.", "--out", "-o")
]
Overwrite = Annotated[bool, _out("Replace existing files.", "--overwrite")]


@dataclass(frozen=True)
class Common:
    """Options of all datasets."""

    root: Path
    cams: Path
    missing: Literal["refuse", "skip", "empty"]
    allow_pickle: bool
    step: float
    save: Path | None
    out: Path | None
    overwrite: bool
    debug: bool

    @classmethod
    def of(cls, given: dict[str, Any]) -> Common:
        """Return those among a command's arguments."""
        return cls(**{name: given[name] for name in cls.__dataclass_fields__})


def _evaluate(given: dict[str, Any], reader: str, measure: str, *, dataset: dict[str, Any], **options: Any) -> None:
    """Run one command: read the dataset by ``reader`` of ``evaluate.datasets``, measure, show and write."""
    common = Common.of(given)
    with console.usage_errors(debug=common.debug):
        from ssa_fast.cli import evaluation_output
        from ssa_fast.evaluate import datasets

        evaluation_output.check_targets(common.save, common.out, overwrite=common.overwrite)
        thresholds = _thresholds(common.step, measure)
        cams = datasets.CamFolder(common.cams, allow_pickle=common.allow_pickle)
        if (predictions := options.pop("predictions", None)) is not None:
            options["predictions"] = datasets.read_predictions(predictions)
        truth = getattr(datasets, f"read_{reader}")(common.root, **dataset)
        options |= {"thresholds": thresholds, "missing": common.missing, "progress": True}
        report = getattr(datasets, f"evaluate_{measure}")(truth, cams, **options)
        settings = {"root": str(common.root), "cams": str(common.cams), "missing": common.missing}
        save, out, overwrite = common.save, common.out, common.overwrite
        evaluation_output.write(report, save=save, out=out, settings=settings, overwrite=overwrite)
        evaluation_output.show(report, panels=out is not None)


def _thresholds(step: float, measure: str) -> list[float]:
    """Return thresholds in [0, 1) for a step, written as the field's scripts do: CAMs above 0 only for label maps."""
    import numpy as np

    count = round(1 / step)
    if abs(count * step - 1) > 1e-9:
        raise ValueError(f"step: expected 1 divided by a whole number, such as 0.01 or 0.001, got {step}")
    return (
        [number / count for number in range(1, count)] if measure == "segmentation" else np.arange(0, 1, step).tolist()
    )


@app.command(epilog=EPILOG)
def voc(
    *,
    root: Annotated[Path, _data("VOC2012, VOCdevkit or its parent.", "--root")],
    split: Annotated[str, _data("A list in ImageSets/Segmentation, or a file of ids.")] = "train",
    labels: Annotated[
        str | None, _data("Folder of label maps; default: SegmentationClass, else SegmentationClassAug.")
    ] = None,
    cams: Cams,
    match: Match = "auto",
    missing: MissingFiles = "refuse",
    allow_pickle: AllowPickle = False,
    absent: Absent = "skip",
    step: Step = 0.01,
    save: Save = None,
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """PASCAL VOC 2012: mean IoU over background thresholds."""
    _evaluate(locals(), "voc", "segmentation", dataset={"split": split, "labels": labels}, match=match, absent=absent)


@app.command()
def coco(
    *,
    root: Annotated[Path, _data("Folder with annotations/ and the images' folders.", "--root")],
    split: Annotated[str, _data("Of annotations/instances_SPLIT.json.")] = "train2014",
    annotations: Annotated[Path | None, _data("That file, if it is elsewhere.")] = None,
    images: Images = None,
    cams: Cams,
    match: Match = "auto",
    missing: MissingFiles = "refuse",
    allow_pickle: AllowPickle = False,
    absent: Absent = "skip",
    step: Step = 0.01,
    save: Save = None,
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """COCO 2014: mean IoU over background thresholds, label maps drawn from the instances."""
    dataset = {"split": split, "annotations": annotations, "images": images}
    _evaluate(locals(), "coco", "segmentation", dataset=dataset, match=match, absent=absent)


@app.command()
def folder(
    *,
    root: Annotated[Path, _data("Folder with images/ and masks/, paired by name.", "--root")],
    images: Annotated[str, _data("Folder of the images, in root or elsewhere; only panels need it.")] = "images",
    masks: Annotated[str, _data("Folder of the masks, in root or elsewhere.")] = "masks",
    classes: Annotated[
        str | None,
        _data("Class names, cat,dog or a file with one per line: masks are label maps; default: figure and ground."),
    ] = None,
    cams: Cams,
    match: Match = "auto",
    missing: MissingFiles = "refuse",
    allow_pickle: AllowPickle = False,
    absent: Absent = "skip",
    step: Step = 0.01,
    save: Save = None,
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """A folder of images and masks: IoU over background thresholds."""
    dataset = {"images": images, "masks": masks, "classes": classes}
    _evaluate(locals(), "folder", "segmentation", dataset=dataset, match=match, absent=absent)


@app.command()
def cub(
    *,
    root: Annotated[Path, _data("CUB_200_2011, or wsolevaluation's metadata of it.", "--root")],
    split: Split = "test",
    masks: Annotated[
        bool, _data("Measure against the masks of segmentations/ (PxAP) instead of the boxes.", "--masks")
    ] = False,
    images: Annotated[Path | None, _data("Folder of the images; default: images/ in root.")] = None,
    cams: Cams,
    predictions: PredictionsPath = None,
    missing: MissingFiles = "refuse",
    allow_pickle: AllowPickle = False,
    step: Step = 0.01,
    save: Save = None,
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """CUB-200-2011: MaxBoxAcc, MaxBoxAccV2, GT-known, top-1 and top-5 localisation."""
    dataset = {"split": split, "masks": masks, "images": images}
    _evaluate(locals(), "cub", "pixels" if masks else "boxes", dataset=dataset, **_predictions(predictions, masks))


@app.command()
def imagenet(
    *,
    root: Annotated[Path, _data("wsolevaluation's metadata/ILSVRC, or its folder of a split.", "--root")],
    split: Split = "test",
    images: Images = None,
    cams: Cams,
    predictions: PredictionsPath = None,
    missing: MissingFiles = "refuse",
    allow_pickle: AllowPickle = False,
    step: Step = 0.01,
    save: Save = None,
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """ImageNet: MaxBoxAcc, MaxBoxAccV2, GT-known, top-1 and top-5 localisation."""
    dataset = {"split": split, "images": images}
    _evaluate(locals(), "imagenet", "boxes", dataset=dataset, predictions=predictions)


@app.command()
def openimages(
    *,
    root: Annotated[Path, _data("wsolevaluation's metadata/OpenImages, or its folder of a split.", "--root")],
    split: Split = "test",
    masks: Annotated[Path | None, _data("Folder that the masks' paths are relative to; default: root.")] = None,
    images: Images = None,
    cams: Cams,
    missing: MissingFiles = "refuse",
    allow_pickle: AllowPickle = False,
    step: Step = 0.01,
    save: Save = None,
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """OpenImages: pixel average precision (PxAP), and pixel IoU over thresholds."""
    dataset = {"split": split, "masks": masks, "images": images}
    _evaluate(locals(), "openimages", "pixels", dataset=dataset)


def _predictions(path: Path | None, masks: bool) -> dict[str, Path | None]:
    if masks and path is not None:
        with console.usage_errors(debug=False):
            raise ValueError("predictions: expected with boxes only, got --masks too; leave one out")
    return {} if masks else {"predictions": path}
