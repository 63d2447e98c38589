"""Run SSA over many images: list them, open the output folder, execute, close."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssa_fast.io import datasets
from ssa_fast.io.datasets import Listing
from ssa_fast.runs import distributed, loader
from ssa_fast.runs.manifest import BOXES, MANIFEST, RECORDS, REPORT, Manifest
from ssa_fast.runs.network import describe_network, hash_weights
from ssa_fast.runs.options import RunOptions
from ssa_fast.runs.predictor import Predictor
from ssa_fast.runs.process import RunProcess
from ssa_fast.runs.signals import signals_as_interrupts
from ssa_fast.runs.watch import WatchedRun, Watcher, check_paths
from ssa_fast.runs.writer import LARGE_OUTPUTS, output_folders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssa_fast.io.progress import OnProgress
    from ssa_fast.models.zoo import Classifier
    from ssa_fast.runs.report import RunReport
    from ssa_fast.runs.watch import Watch
    from ssa_fast.ssa import SSA


def run(
    paths: Sequence[str | Path] | Listing,
    ssa: SSA,
    out: str | Path,
    *,
    classifier: Classifier,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    split: str | None = None,
    settings: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
    watch: Watch | None = None,
) -> RunReport:
    """Polish the CAMs of every image in ``paths`` and write them below ``out``.

    Per image: ``cams/NAME.npz`` (see ``cam_files``; at the size that ``ssa`` gives), ``masks/NAME.png``,
    ``overlays/NAME.png`` and a record in ``records/``; for all of them ``boxes.json``, in the layout of COCO's
    detection annotations, and ``report.json``. Images processed in tiles have TIFFs and a preview instead. A mask's
    values are class indices + 1 if the network has at most 254 classes, else positions in the image's list of classes
    + 1; the CAM file gives them under ``labels``.

    A bad image never stops a run. Started again, a run skips images with a record; those whose file, labels or weights
    have changed since are done again, and counted in the report. Under ``torchrun`` the images are distributed over all
    processes, with the same ``out`` for all of them.

    Args:
        paths: See ``datasets.find_images``; or the images from ``list_images``.
        split: See ``datasets.find_images``.
        ssa: Built on ``classifier.model``; ``size="stage"`` keeps CAM files small.
        out: The output folder.
        classifier: The network with its preprocessing and class names.
        options: Outputs per image, and how to execute.
        settings: Further JSON values for the outputs; a run is only resumed with the same ones.
        on_progress: Called at the start and after each image; on rank 0 only, with the counts of all processes. With
            ``watch`` also whenever nothing can be done, in the phase "waiting" for images, or "settling" while some
            may still be written.
        watch: After the images that are there, process those that come later or change, until a signal ends the run
            (or ``on_progress`` raises KeyboardInterrupt); ``paths`` are folders and globs. A file is read once it has
            stopped growing. ``boxes.json`` and ``report.json`` are brought up to date whenever nothing is left to do.

    Raises:
        ValueError: An option is wrong, there is nothing to read, or ``out`` holds something else; nothing was written.
    """
    from ssa_fast import __version__

    if watch is not None and isinstance(paths, Listing):
        raise ValueError("watch: expected the paths to look at, got a listing, which does not grow; pass the paths")
    if isinstance(paths, Listing):
        images = paths
    else:
        images = list_images(paths, out, options, split=split, watched=watch is not None)
    options.check(classifier)
    predictor = Predictor(classifier, ssa, options)
    settings = {**(settings or {}), **options.fingerprint(predictor.device)}
    network, weights = describe_network(classifier, ssa), hash_weights(classifier.model)
    manifest = Manifest(Path(out), settings, __version__, network=network, weights=weights)
    with distributed.join() as group, signals_as_interrupts():
        process: RunProcess
        if watch is None or isinstance(paths, Listing):
            process = RunProcess(images, predictor, manifest, group, on_progress)
        else:
            find = partial(_find_images, paths, Path(out), options, split)
            watcher = Watcher(watch, find, labels=options.classes == "labels")
            process = WatchedRun(watcher, predictor, manifest, group, on_progress)
        process.open()
        process.execute()
        return process.close()


def list_images(
    paths: Sequence[str | Path],
    out: str | Path,
    options: RunOptions,
    *,
    split: str | None = None,
    watched: bool = False,
) -> Listing:
    """Return the images in ``paths`` without the run's own outputs, having checked that ``options`` go with them.

    No image is opened and no network needed here, so this is the place to refuse what cannot work.

    Args:
        paths: See ``run``.
        out: See ``run``.
        options: See ``run``.
        split: See ``run``.
        watched: Whether images may come later, so that there need be none now.

    Raises:
        ValueError: An option is wrong or does not go with the images, ``out`` is a file, or there is no image; or one
            of the ``paths`` cannot be watched.
    """
    options.check()
    if options.size is not None and options.large_above != RunOptions.large_above:
        raise ValueError("large_above: at one --size no image is processed in tiles; leave out --size or --large-above")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: expected a folder, {out} is a file")
    if watched:
        check_paths([Path(path) for path in paths], split)
        if distributed.world_size() > 1:
            raise ValueError("watch: one process watches the folders; start it without torchrun, or leave --watch out")
    found = _find_images(paths, out, options, split)
    if watched and not found.sources:
        return found
    if not found.sources:
        reasons = [f"{path}: {reason}" for path, reason in (*found.missing, *found.skipped)]
        raise ValueError(f"paths: no image to read ({reasons[0] if reasons else 'the folders are empty'})")
    if options.classes == "labels" and not any(source.dataset for source in found.sources):
        raise ValueError(
            "classes: 'labels' come from an ImageFolder or a folder with VOC's layout, got none; give classes by name"
        )
    if all(map(loader.needs_tiles, found.sources)):
        options.check_tiles()
    return found


def _find_images(paths: Sequence[str | Path], out: Path, options: RunOptions, split: str | None) -> Listing:
    """Return the images in ``paths`` without the run's own outputs."""
    earlier = ("overlays",) if (out / MANIFEST).exists() else ()  # which may have been made with other options
    own_folders = [out / folder for folder in (*output_folders(options), *LARGE_OUTPUTS, RECORDS, *earlier)]
    own_files = {out / name for name in (BOXES, REPORT, MANIFEST)}
    found = datasets.find_images(paths, split=split, exclude=own_folders)
    return replace(found, skipped=tuple((path, reason) for path, reason in found.skipped if path not in own_files))
