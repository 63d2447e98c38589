"""What a run leaves on disk: files that belong together, placed whole or not at all."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path, PurePosixPath

__all__ = ["Staged", "place", "stage", "targets"]

_drafts = itertools.count()


def targets(out: Path, name: PurePosixPath, kinds: Mapping[str, str]) -> dict[str, Path]:
    """Where the files of the picture called `name` go: one path per folder of `kinds` (folder -> suffix)."""
    return {folder: out / folder / name.with_name(name.name + suffix) for folder, suffix in kinds.items()}


@dataclass
class Staged:
    """Files written as drafts, which have yet to become what they are to be called: `moves` is draft -> target."""

    moves: dict[Path, Path] = field(default_factory=dict)

    def place(self) -> None:
        """Rename the drafts; where one cannot be, take back those that stand where nothing stood, and the rest."""
        fresh: list[Path] = []
        try:
            for draft, target in self.moves.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                existed = target.exists()
                if draft.is_dir() and target.is_dir():
                    shutil.rmtree(target)  # a folder can only be renamed to where none is
                os.replace(draft, target)
                if not existed:
                    fresh.append(target)
        except BaseException:
            for path in fresh:
                _remove(path)
            self.discard()
            raise

    def discard(self) -> None:
        """Remove the drafts."""
        for draft in self.moves:
            _remove(draft)


def stage(writers: Mapping[Path, Callable[[Path], object]], drafts: Path | None = None) -> Staged:
    """Write files as drafts, all of them or none.

    Args:
        writers: target path -> function that writes the file at the path it is given, which has the target's suffix.
        drafts: a folder on the targets' file system; None for each target's own folder.

    Raises:
        OSError: a file or folder could not be written; no draft is left.
    """
    staged = Staged()
    try:
        for target, write in writers.items():
            folder = drafts or target.parent
            folder.mkdir(parents=True, exist_ok=True)
            draft = folder / f".ssa-fast-{os.getpid()}-{next(_drafts)}{target.suffix}"
            staged.moves[draft] = target
            write(draft)
    except BaseException:
        staged.discard()
        raise
    return staged


def place(writers: Mapping[Path, Callable[[Path], object]], *, overwrite: bool) -> None:
    """Write several files that belong together: all of them appear whole, or none does.

    Args:
        writers: as for `stage`.
        overwrite: whether targets that exist may be replaced.

    Raises:
        FileExistsError: a target exists and `overwrite` is not set; nothing was written.
        OSError: a file or folder could not be written.
    """
    if not overwrite:
        _refuse_existing(writers)
    staged = stage(writers)
    try:
        if not overwrite:
            _refuse_existing(writers)  # another process may have placed its own meanwhile
    except FileExistsError:
        staged.discard()
        raise
    staged.place()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_existing(paths: Mapping[Path, object]) -> None:
    existing = [str(path) for path in paths if path.exists()]
    if existing:
        raise FileExistsError(f"{existing[0]} exists; pass --overwrite to replace it.")
