"""Write files atomically: a reader sees the old content or the new content, never a part of it."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Transaction", "atomic_write", "write_files"]

_counter = itertools.count()


class Transaction:
    """Several files, written under temporary names, then moved into place together by ``commit``.

    Args:
        writers: Target path -> function that writes the file at the path it is given (same suffix as the target).
        tmp_dir: Folder for the temporary files, on the targets' file system; default: each target's own folder.

    Raises:
        OSError: A file or folder could not be written; no temporary file is left.
    """

    def __init__(self, writers: Mapping[Path, Callable[[Path], object]], tmp_dir: Path | None = None) -> None:
        self.moves: dict[Path, Path] = {}  # temporary file -> target
        try:
            for target, write in writers.items():
                folder = tmp_dir or target.parent
                folder.mkdir(parents=True, exist_ok=True)
                temporary = folder / f".ssa-fast-{os.getpid()}-{next(_counter)}{target.suffix}"
                self.moves[temporary] = target
                write(temporary)
        except BaseException:
            self.rollback()
            raise

    @classmethod
    def of_files(cls, moves: Mapping[Path, Path]) -> Transaction:
        """Return a transaction over files that are already written: ``moves`` maps temporary file -> target."""
        transaction = cls({})
        transaction.moves = dict(moves)
        return transaction

    def commit(self) -> None:
        """Move all temporary files into place; on failure, remove those already moved that replaced nothing."""
        created: list[Path] = []
        try:
            for temporary, target in self.moves.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                existed = target.exists()
                if temporary.is_dir() and target.is_dir():
                    shutil.rmtree(target)  # a folder cannot be renamed onto an existing one
                os.replace(temporary, target)
                if not existed:
                    created.append(target)
        except BaseException:
            for path in created:
                _remove(path)
            self.rollback()
            raise

    def rollback(self) -> None:
        """Remove the temporary files."""
        for temporary in self.moves:
            _remove(temporary)


def atomic_write(
    target: Path, content: bytes | str | Callable[[Path], object], *, parents: bool = True, tmp_dir: Path | None = None
) -> None:
    """Write one file atomically, replacing what is there.

    Args:
        target: The file.
        content: Bytes, text (UTF-8), or a function that writes the file at the path it is given.
        parents: Create the target's folder if it is missing; otherwise a missing folder is an error.
        tmp_dir: As in ``Transaction``.

    Raises:
        OSError: The file or its folder could not be written; what was there before is untouched.
    """

    if not parents and not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    if isinstance(content, str):
        content = content.encode()
    write = partial(Path.write_bytes, data=content) if isinstance(content, bytes) else content
    Transaction({target: write}, tmp_dir).commit()


def write_files(writers: Mapping[Path, Callable[[Path], object]], *, overwrite: bool) -> None:
    """Write several files that belong together: all of them appear whole, or none does.

    Args:
        writers: As in ``Transaction``.
        overwrite: Whether existing targets may be replaced.

    Raises:
        FileExistsError: A target exists and ``overwrite`` is not set; nothing was written.
        OSError: A file or folder could not be written.
    """
    if not overwrite:
        _refuse_existing(writers)
    transaction = Transaction(writers)
    try:
        if not overwrite:
            _refuse_existing(writers)  # another process may have written one meanwhile
        transaction.commit()
    except FileExistsError:
        transaction.rollback()
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_existing(paths: Mapping[Path, object]) -> None:
    existing = [str(path) for path in paths if path.exists()]
    if existing:
        raise FileExistsError(f"{existing[0]} exists; pass --overwrite to replace it.")
