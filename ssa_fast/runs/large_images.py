"""Pictures of a run that are too large for the network at once: done in tiles, one after the other."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ssa_fast.io import atomic
from ssa_fast.large import bars, large
from ssa_fast.large.export import Look
from ssa_fast.runs.manifest import output_paths

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from ssa_fast.io.datasets import ImageSource
    from ssa_fast.runs.manifest import Manifest
    from ssa_fast.runs.predictor import Predictor

KINDS = {"cams": ".tif", "masks": ".tif", "previews": ".png"}
"""Folders and suffixes of what such a picture leaves: tiled TIFFs with smaller copies, and a picture to look at."""


def polish(
    source: ImageSource,
    name: PurePosixPath,
    predictor: Predictor,
    manifest: Manifest,
    classes: list[int] | None,
    settings: dict[str, Any],
    *,
    progress: bool,
) -> list[str]:
    """Write one large picture's files and its record; what its owner may want to know of it."""
    options, classifier = predictor.options, predictor.classifier
    targets = output_paths(manifest.out, name, KINDS)
    drafts = {kind: manifest.tmp_dir / f"giant-{kind}{target.suffix}" for kind, target in targets.items()}
    manifest.tmp_dir.mkdir(parents=True, exist_ok=True)
    look = Look(
        **asdict(options.postprocess),
        labels=predictor.labels,
        names=lambda chosen: [classifier.categories[index] for index in chosen],
        metadata={"settings": settings},
    )

    def run(**watched: Any) -> Any:
        return large(
            predictor.ssa,
            source.path,
            predictor.classes if classes is None else classes,
            cams=drafts["cams"],
            mask=drafts["masks"],
            preview=drafts["previews"],
            memory=options.memory,
            scratch=manifest.tmp_dir,
            mean=classifier.mean,
            std=classifier.std,
            look=look,
            **watched,
        )

    if progress:
        with bars() as watch:
            result = run(watch=watch)
    else:
        result = run()
    scores = classifier.probabilities(result.logits)[result.classes]
    names, labels = look.names(result.classes), look.labels(result.classes)
    notes = [
        f"done in tiles of {result.tile} pixels with {result.halo} around; its outputs are TIFFs, its CAM 8 bits"
        + (f", its boxes right to {result.box_precision} pixels." if result.box_precision > 1 else ".")
    ]
    H, W = result.size
    atomic.Transaction.of_files({drafts[kind]: target for kind, target in targets.items()}).commit()
    manifest.commit(
        [
            {
                "output": str(name),
                "file_name": source.relative.as_posix(),
                "bytes": source.path.stat().st_size,
                "width": W,
                "height": H,
                "classes": result.classes,
                "names": list(names),
                "labels": list(labels),
                "scores": scores.tolist(),
                "boxes": [found.tolist() for found in result.boxes],
                "notes": notes,
            }
        ]
    )
    return notes
