"""Track on disk which images are complete: settings, a record per image, and ``boxes.json``.

An image is complete when its record exists, which is written after all its files. It holds what its outputs were made
from: the file's name and identity, the classes and the weights. The records of a batch are one file: a resumed run
forms the same batches as an uninterrupted one, so that its results round alike; for that, one record that no longer
holds (``runs.changes``) takes its batch with it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from ssa_fast.io.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path, PurePosixPath

    from ssa_fast.io.datasets import ImageSource
    from ssa_fast.io.identity import Identity
    from ssa_fast.large import LargeImageResult
    from ssa_fast.runs.predictor import Prediction

MANIFEST, RECORDS, BOXES, REPORT, TMP = "run.json", "records", "boxes.json", "report.json", ".tmp"

IMAGE_KEYS = ("width", "height", "output", "background")  # of a record, listed in ``boxes.json``

ImageRecord: TypeAlias = "dict[str, Any]"  # JSON object of one complete image, see ``image_record``


class Manifest:
    """The state of the run in the folder ``out``; ``settings`` (JSON values) and ``version`` decide it.

    So do ``network``, further JSON values that are not among the outputs' settings, and ``weights``, a hash.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        version: str,
        *,
        network: Mapping[str, Any] | None = None,
        weights: str = "",
    ) -> None:
        self.out, self.version, self.weights = out, version, weights
        self.network: dict[str, Any] = json.loads(json.dumps(dict(network or {})))
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._all_settings = {"ssa_fast": version, **self.settings}
        self.tmp_dir = out / TMP / f"{socket.gethostname()}-{os.getpid()}"  # of this process
        self.done: set[str] = set()  # output names of complete images
        self.preexisting: set[str] = set()  # output files that are older than the run, relative to ``out``

    def open(self, targets: Iterable[Path], *, overwrite: bool) -> None:
        """Start a run that may write ``targets``, or resume the one that is there; otherwise raise ValueError.

        Targets that exist before the first start are only replaced with ``overwrite``, which also starts a run anew
        that is complete or had other settings.
        """
        before = self._read()
        if before is None and (self.out / BOXES).exists() and not overwrite:
            raise ValueError(f"out: {self.out / BOXES} exists; pass --overwrite, or another folder")
        differences = [] if before is None else self._differences(before)
        if differences and not overwrite:
            raise ValueError(
                f"out: the run in {self.out} was made with other settings ({'; '.join(differences)}); "
                "use them, another folder, or --overwrite to start anew"
            )
        shutil.rmtree(self.out / TMP, ignore_errors=True)  # of processes that were killed
        if before is not None and not differences:
            self.network = self.network or before["network"]
        if before is None or (overwrite and (differences or before["complete"])):
            shutil.rmtree(self.out / RECORDS, ignore_errors=True)
            (self.out / BOXES).unlink(missing_ok=True)
            before = {"preexisting": sorted(self._relative(target) for target in targets if target.exists())}
        self._write([] if overwrite else before["preexisting"], complete=False)

    def refresh(self, done: set[str] | None = None) -> None:
        """Update ``done`` and ``preexisting`` from the disk; ``done`` is not read if it is given."""
        manifest = self._read()
        self.preexisting = set(manifest["preexisting"]) if manifest else set()
        self.done = {record["output"] for _, _, batch in self.batches() for record in batch} if done is None else done

    def is_preexisting(self, target: Path) -> bool:
        """Return True if a target is a file that is older than the run, which must not replace it."""
        return self._relative(target) in self.preexisting and target.exists()

    def commit(self, records: Sequence[ImageRecord]) -> None:
        """Mark images as complete, all at the same moment."""
        content = [{**record, "weights": self.weights} for record in records]
        self.write(f"{RECORDS}/{records[0]['output']}.json", json.dumps(content, indent=1))
        self.done.update(record["output"] for record in records)

    def batches(self) -> Iterator[tuple[Path, float, list[ImageRecord]]]:
        """Yield the records by batch, in the order of their first output names, with their file and its time."""
        root = self.out / RECORDS
        for path in sorted(root.rglob("*.json"), key=lambda path: path.relative_to(root).parts):
            yield path, path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8"))

    def write_boxes(self, file_names: Mapping[str, str]) -> Path | None:
        """Write ``boxes.json`` and return its path; remove it and return None without a record.

        Args:
            file_names: Output name -> file name of the images to list: records of others are left out.
        """
        if self.done & file_names.keys():
            return self.write(BOXES, lambda path: self._save_boxes(path, file_names))
        (self.out / BOXES).unlink(missing_ok=True)
        return None

    def write(self, name: str, content: str | Callable[[Path], object]) -> Path:
        """Write a file of the folder atomically and return its path."""
        path = self.out / name
        atomic_write(path, content, tmp_dir=self.tmp_dir)
        return path

    def close(self, *, complete: bool) -> None:
        """Record whether the run is complete, and remove the temporary files."""
        self._write(sorted(self.preexisting), complete=complete)
        shutil.rmtree(self.out / TMP, ignore_errors=True)

    def _save_boxes(self, path: Path, file_names: Mapping[str, str]) -> None:
        """Stream COCO's detection annotations to a file: there may be millions of them."""
        categories: dict[int, str] = {}
        images = annotations = 0
        with path.open("w", encoding="utf-8") as file, tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
            info = {"description": f"ssa_fast {self.version}", "settings": self._all_settings}
            file.write(f'{{"info": {json.dumps(info)},\n"images": [')
            for record in (record for _, _, batch in self.batches() for record in batch):
                if record["output"] not in file_names:
                    continue
                images += 1
                image = {"id": images, "file_name": file_names[record["output"]]}
                image |= {key: record[key] for key in IMAGE_KEYS if record.get(key) is not None}
                _write_item(file, images, image)
                categories.update(zip(record["classes"], record["names"], strict=True))
                for annotation in _annotations(record, images):
                    annotations += 1
                    _write_item(spool, annotations, {"id": annotations, **annotation})
            file.write('\n],\n"annotations": [')
            spool.seek(0)
            shutil.copyfileobj(spool, file)
            named = [{"id": index, "name": name} for index, name in sorted(categories.items())]
            file.write(f'\n],\n"categories": {json.dumps(named)}}}\n')

    def _read(self) -> dict[str, Any] | None:
        path = self.out / MANIFEST
        if not path.exists():
            return None
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            known = {key: manifest[key] for key in ("settings", "preexisting", "complete")}
            return known | {"network": manifest.get("network", {}), "weights": manifest.get("weights", "")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"out: {path} is no run's manifest ({error}); remove it or use another folder") from None

    def _write(self, preexisting: Sequence[str], *, complete: bool) -> None:
        content = {"settings": self._all_settings, "preexisting": list(preexisting), "complete": complete}
        content |= {"network": self.network, "weights": self.weights}
        self.write(MANIFEST, json.dumps(content, indent=1))

    def _differences(self, before: Mapping[str, Any]) -> list[str]:
        """Return the settings that differ from those of an earlier start, or else what differs in the network.

        Equal weights are equal under any name; others under the same name concern the records, see ``runs.changes``.
        """
        there, here = dict(before["settings"]), dict(self._all_settings)
        if self.weights and before["weights"] == self.weights:
            there.pop("weights", None), here.pop("weights", None)
        found = _differences(there, here)
        if found or not (before["network"] and self.network):
            return found
        there, here = ({**network, **network["ssa"], "ssa": None} for network in (before["network"], self.network))
        return _differences(there, here)

    def _relative(self, target: Path) -> str:
        return target.relative_to(self.out).as_posix()


def _annotations(record: ImageRecord, image_id: int) -> Iterator[dict[str, Any]]:
    for index, score, boxes in zip(record["classes"], record["scores"], record["boxes"], strict=True):
        for x1, y1, x2, y2 in boxes:
            width, height = x2 - x1, y2 - y1
            annotation = {"image_id": image_id, "category_id": index, "bbox": [x1, y1, width, height]}
            yield {**annotation, "area": width * height, "iscrowd": 0, "score": score}


def _write_item(file: TextIO, number: int, item: Mapping[str, Any]) -> None:
    file.write(f"{',' if number > 1 else ''}\n {json.dumps(item)}")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, each as "name: there …, here …"."""
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return [f"{name}: there {before.get(name)}, here {now.get(name)}" for name in names]


def image_record(
    source: ImageSource,
    name: PurePosixPath,
    identity: Identity,
    size: Sequence[int],
    result: Prediction | LargeImageResult,
    **rest: Any,
) -> ImageRecord:
    """Return the record of an image of ``size`` (H, W, ...); ``rest``: "scores", "boxes", "notes" and "background"."""
    return {
        "output": str(name),
        "file_name": source.file_name,
        "identity": identity,
        "width": size[1],
        "height": size[0],
        "classes": result.classes,
        "names": result.names,
        "labels": result.labels,
        **rest,
    }


def output_paths(out: Path, name: PurePosixPath, kinds: Mapping[str, str]) -> dict[str, Path]:
    """Return the output files of the image called ``name``, by folder; ``kinds`` maps folder -> suffix."""
    return {folder: out / folder / name.with_name(name.name + suffix) for folder, suffix in kinds.items()}
