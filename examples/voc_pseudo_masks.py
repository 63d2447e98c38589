"""Make pseudo-masks of a VOC folder from its image-level labels, and measure them against its true masks.

The network is a classifier with VOC's 20 outputs, as SEAM and IRN train one; ``--weights`` is its state dict. Run again
after an interruption, the script goes on where it stopped. Install and run::

    pip install "ssa_fast[eval]"
    python voc_pseudo_masks.py VOCdevkit/VOC2012 --model resnet50 --weights voc.pth --out pseudo-masks
"""

import argparse
from pathlib import Path

from ssa_fast import SSA, runs
from ssa_fast.evaluate.datasets import CamFolder, evaluate_segmentation, read_voc
from ssa_fast.localize import PostprocessOptions
from ssa_fast.models import zoo


def main() -> None:
    """Write CAMs and masks of a split, then print two mean IoUs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("voc", type=Path, help="a folder with JPEGImages, Annotations, SegmentationClass and ImageSets")
    parser.add_argument("--split", default="train")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--background", type=float, help="score of the background; default: each image's own")
    parser.add_argument("--out", type=Path, default=Path("pseudo-masks"))
    given = parser.parse_args()

    classifier = zoo.load(given.model, given.weights)
    ssa = SSA(classifier.model, size="stage")  # stored CAMs stay small
    options = runs.RunOptions(
        classes="labels", postprocess=PostprocessOptions(background=given.background), overlays=False
    )
    report = runs.run([given.voc], ssa, given.out, classifier=classifier, options=options, split=given.split)
    for failure in report.failures:
        print(f"failed: {failure.name}: {failure.reason}")
    print(f"{len(report.done)} masks in {given.out / 'masks'}, CAMs in {given.out / 'cams'}")

    found = evaluate_segmentation(read_voc(given.voc, split=given.split), CamFolder(given.out / "cams"))
    print(f"mIoU, background score of each image estimated without the truth: {found.truth_free.miou:.1%}")
    print(f"mIoU, best background score by the truth ({found.sweep.best_threshold:.2f}): {found.sweep.best_miou:.1%}")


if __name__ == "__main__":  # the images are read by other processes, which import this file
    main()
