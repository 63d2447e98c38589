"""Large images of a run: processed in tiles, one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssa_fast.io import atomic
from ssa_fast.large import LargeImageSSA, OutputPaths
from ssa_fast.runs.manifest import image_record, output_paths
from ssa_fast.runs.options import MAX_LABEL

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from ssa_fast.io.datasets import ImageSource
    from ssa_fast.runs.manifest import Manifest
    from ssa_fast.runs.predictor import Predictor

KINDS = {"cams": ".tif", "masks": ".tif", "previews": ".png"}  # folder -> suffix of a large image's outputs


def polish(
    source: ImageSource,
    name: PurePosixPath,
    predictor: Predictor,
    manifest: Manifest,
    classes: list[int] | None,
) -> list[str]:
    """Write one large image's files and its record; return notes for the user."""
    options, classifier = predictor.options, predictor.classifier
    targets = output_paths(manifest.out, name, KINDS)
    temporary = {kind: manifest.tmp_dir / f"large-{kind}{target.suffix}" for kind, target in targets.items()}
    manifest.tmp_dir.mkdir(parents=True, exist_ok=True)
    polish_large = LargeImageSSA(
        predictor.ssa, memory=options.memory, scratch=manifest.tmp_dir, mean=classifier.mean, std=classifier.std
    )
    count = len(classifier.categories)
    result = polish_large(
        source.path,
        predictor.classes if classes is None else classes,
        out=OutputPaths(*temporary.values()),
        overwrite=True,
        postprocess=options.postprocess,
        names=classifier.categories,
        labels=range(1, count + 1) if count <= MAX_LABEL else None,
        metadata={"settings": manifest.settings},
        progress=options.progress,
    )
    assert result.logits is not None
    scores = classifier.probabilities(result.logits)[result.classes]
    notes = [
        f"done in tiles of {result.tile} pixels with a halo of {result.halo}; outputs are TIFFs, CAMs have 8 bits"
        + (f", boxes are exact to {result.box_precision} pixels." if result.box_precision > 1 else ".")
    ]
    atomic.Transaction.of_files({temporary[kind]: target for kind, target in targets.items()}).commit()
    boxes = [found.tolist() for found in result.boxes]
    record = image_record(source, name, result.size, result, scores=scores.tolist(), boxes=boxes, notes=notes)
    manifest.commit([record])
    return notes
