"""What is complete, on disk: a run's settings, a record for every picture, and the `boxes.json` made of them.

A picture is complete when its record is there, which is written after all its files. The records of a batch are one
file, so that a batch is complete or not as a whole: what is left after a stop falls into the same batches as it would
have without one, and a batch's rounding is its own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TextIO

from ssa_fast.io.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ssa_fast.io.datasets import ImageSource

MANIFEST, RECORDS, BOXES, REPORT, DRAFTS = "run.json", "records", "boxes.json", "report.json", ".drafts"

Record = dict[str, Any]


class Ledger:
    """The records in one output folder.

    `settings` decide the outputs, and `version` is the package's that makes them. `done` maps a picture's output name
    to what its record says of the file it was made from.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], version: str) -> None:
        self.out = out
        self.settings = {"ssa_fast": version, **json.loads(json.dumps(settings))}
        self.drafts = out / DRAFTS / f"{socket.gethostname()}-{os.getpid()}"
        self.done: dict[str, tuple[str, int]] = {}
        self.kept: set[str] = set()

    def open(self, targets: Sequence[Path], *, overwrite: bool) -> None:
        """Begin a run in the folder, or take up the one that is there.

        Files of `targets` that were there before the first start are none of ours, and are kept unless `overwrite` is
        set. `overwrite` begins anew where the run that is there is complete or had other settings.

        Raises:
            ValueError: `out` is no folder, or holds a foreign `boxes.json` or a run with other settings.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out: expected a folder, {self.out} is a file")
        before = self._manifest()
        if before is None and (self.out / BOXES).exists() and not overwrite:
            raise ValueError(f"out: {self.out / BOXES} exists; pass --overwrite, or another folder")
        differences = [] if before is None else _differences(before["settings"], self.settings)
        if differences and not overwrite:
            raise ValueError(
                f"out: the run in {self.out} was made with other settings ({'; '.join(differences)}); "
                "use them, another folder, or --overwrite to begin anew"
            )
        shutil.rmtree(self.out / DRAFTS, ignore_errors=True)  # of processes that were killed
        if before is None or (overwrite and (differences or before["complete"])):
            shutil.rmtree(self.out / RECORDS, ignore_errors=True)
            (self.out / BOXES).unlink(missing_ok=True)
            before = {"kept": sorted(self._relative(target) for target in targets if target.exists())}
        self._write_manifest([] if overwrite else before["kept"], complete=False)

    def read(self) -> None:
        """Learn from the disk what is complete."""
        manifest = self._manifest()
        self.kept = set(manifest["kept"]) if manifest else set()
        self.done = {record["output"]: (record["file_name"], record["bytes"]) for record in self.records()}

    def foreign(self, target: Path) -> bool:
        """Whether a target is a file that was there before the run, and is not its to replace."""
        return self._relative(target) in self.kept and target.exists()

    def is_done(self, source: ImageSource, name: PurePosixPath) -> bool:
        """Whether a picture is complete.

        Raises:
            ValueError: another picture's outputs have its name, or the picture has changed since.
        """
        found = self.done.get(str(name))
        if found is None:
            return False
        mine = (source.relative.as_posix(), source.path.stat().st_size)
        if found != mine:
            raise ValueError(
                f"{name} was made from {found[0]} of {found[1]:,} bytes, this is {mine[0]} of {mine[1]:,} bytes; "
                "choose another --out, or pass --overwrite to begin anew."
            )
        return True

    def commit(self, records: Sequence[Record]) -> None:
        """Make pictures complete, all of them in the same moment."""
        path = self.out / RECORDS / f"{records[0]['output']}.json"
        atomic_write(path, json.dumps(list(records), indent=1), tmp_dir=self.drafts)
        self.done.update({record["output"]: (record["file_name"], record["bytes"]) for record in records})

    def records(self) -> Iterator[Record]:
        """All records, in the order of their batches' first output names."""
        root = self.out / RECORDS
        for path in sorted(root.rglob("*.json"), key=lambda path: path.relative_to(root).parts):
            yield from json.loads(path.read_text(encoding="utf-8"))

    def write_boxes(self) -> Path | None:
        """Assemble `boxes.json` from the records; None if there is none."""
        if not self.done:
            return None
        path = self.out / BOXES
        atomic_write(path, self._boxes_into, tmp_dir=self.drafts)
        return path

    def write_report(self, text: str) -> None:
        """Replace `report.json`."""
        atomic_write(self.out / REPORT, text, tmp_dir=self.drafts)

    def close(self, *, complete: bool) -> None:
        """End a start: the manifest tells whether anything is left to do; drafts are gone."""
        self._write_manifest(sorted(self.kept), complete=complete)
        shutil.rmtree(self.out / DRAFTS, ignore_errors=True)

    def _boxes_into(self, draft: Path) -> None:
        """COCO's detection annotations, written as the records are read: there may be millions of them."""
        categories: dict[int, str] = {}
        images = annotations = 0
        with draft.open("w", encoding="utf-8") as file, tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
            info = {"description": f"ssa_fast {self.settings['ssa_fast']}", "settings": self.settings}
            file.write(f'{{"info": {json.dumps(info)},\n"images": [')
            for record in self.records():
                images += 1
                _item(file, images, {"id": images, **{key: record[key] for key in IMAGE_KEYS}})
                categories.update(zip(record["classes"], record["names"], strict=True))
                for annotation in _annotations(record, images):
                    annotations += 1
                    _item(spool, annotations, {"id": annotations, **annotation})
            file.write('\n],\n"annotations": [')
            spool.seek(0)
            shutil.copyfileobj(spool, file)
            named = [{"id": index, "name": name} for index, name in sorted(categories.items())]
            file.write(f'\n],\n"categories": {json.dumps(named)}}}\n')

    def _manifest(self) -> dict[str, Any] | None:
        path = self.out / MANIFEST
        if not path.exists():
            return None
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return {key: manifest[key] for key in ("settings", "kept", "complete")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"out: {path} is no run's manifest ({error}); remove it or use another folder") from None

    def _write_manifest(self, kept: Sequence[str], *, complete: bool) -> None:
        text = json.dumps({"settings": self.settings, "kept": list(kept), "complete": complete}, indent=1)
        atomic_write(self.out / MANIFEST, text, tmp_dir=self.drafts)

    def _relative(self, target: Path) -> str:
        return PurePosixPath(target.relative_to(self.out)).as_posix()


IMAGE_KEYS = ("file_name", "width", "height", "output")


def _annotations(record: Record, image: int) -> Iterator[dict[str, Any]]:
    for index, score, found in zip(record["classes"], record["scores"], record["boxes"], strict=True):
        for x1, y1, x2, y2 in found:
            yield {
                "image_id": image,
                "category_id": index,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": score,
            }


def _item(file: TextIO, count: int, item: Mapping[str, Any]) -> None:
    file.write(f"{',' if count > 1 else ''}\n {json.dumps(item)}")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two runs' settings, each as "name: there …, here …"."""
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return [f"{name}: there {before.get(name)}, here {now.get(name)}" for name in names]


def output_paths(out: Path, name: PurePosixPath, kinds: Mapping[str, str]) -> dict[str, Path]:
    """Return where the files of the image called ``name`` go: one path per folder of ``kinds`` (folder -> suffix)."""
    return {folder: out / folder / name.with_name(name.name + suffix) for folder, suffix in kinds.items()}
