"""`ssa-fast convert`: CAM files from one format to another."""

from __future__ import annotations

import time
import traceback
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ssa_fast.cli import console
from ssa_fast.cli.options import Debug  # noqa: TC001 - typer reads it

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ssa_fast.io.cam_files import CamFile

__all__ = ["command"]

Format = Literal["ssa", "psa", "irn", "clip-es", "wsol"]
SUFFIXES = (".npy", ".npz")
SUMMARY = ("done", "failed", "seconds", "files/s", "outputs")


def command(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="CAM files, and folders of them.")],
    to: Annotated[Format, typer.Option("--to", help="Format to write.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files; paths below a folder are kept.")],
    source: Annotated[
        Format | None, typer.Option("--from", help="Format demanded of what is read; else each file is recognised.")
    ] = None,
    dtype: Annotated[Literal["float16", "uint8"], typer.Option(help="Numbers in ssa's files.")] = "float16",
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Read and write psa, irn and clip-es files: pickles, which can run code."),
    ] = False,
    wanted: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="To wsol, which holds one map: the class to take, by name or index; else that of the highest logit, "
            "or the first where a file has no logits.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    debug: Debug = False,
) -> None:
    """Convert CAM files between the project's format and those of PSA, IRN, CLIP-ES and wsolevaluation.

    A file that cannot be converted never stops the others. The formats but ssa hold CAMs at the picture's size.
    Exit code: 0 all done, 1 something failed, 2 wrong usage, 130 after Ctrl-C.
    """
    with console.usage_errors(debug=debug):
        conversion = _Conversion(to, out, source, dtype, allow_pickle, wanted, overwrite)
        conversion.check()
        jobs = conversion.jobs(paths)
        done = _watched(conversion, jobs)
    _close(done, out, debug=debug)
    raise typer.Exit(130 if done.interrupted else int(bool(done.failures)))


@dataclass(frozen=True)
class _Job:
    """A file to read and where its conversion goes, or why neither can be."""

    path: Path
    target: Path | None
    refusal: str = ""


@dataclass
class _Done:
    """How it ended; `failures` are names, reasons, and errors where there were any."""

    count: int = 0
    failures: list[tuple[str, str, Exception | None]] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False


@dataclass(frozen=True)
class _Conversion:
    to: Format
    out: Path
    source: Format | None
    dtype: Literal["float16", "uint8"]
    allow_pickle: bool
    wanted: str | None
    overwrite: bool

    def check(self) -> None:
        """Refuse now what would otherwise make every file fail.

        Raises:
            ValueError: options that do not go together, or a file where the folder is to be.
        """
        from ssa_fast.io.cam_files import PICKLED

        if self.to in PICKLED and not self.allow_pickle:
            raise ValueError(
                f"to: {self.to!r} files are pickles, which run any code when they are read; pass --allow-pickle if "
                "whoever reads them trusts you, or take another format"
            )
        if self.wanted is not None and self.to != "wsol":
            raise ValueError(
                f"class: expected with --to wsol only, which holds one map, got --to {self.to}; leave it out"
            )
        if self.dtype != "float16" and self.to != "ssa":
            raise ValueError(f"dtype: expected with --to ssa only, got --to {self.to}; leave it out")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out: expected a folder, got the file {self.out}; choose another --out")

    def jobs(self, paths: Sequence[Path]) -> list[_Job]:
        """What there is to do, in the order of `paths` and sorted inside each folder.

        Raises:
            ValueError: there is no file to read.
        """
        found = [pair for path in paths for pair in self._below(path)]
        if not any(path.exists() for path, _ in found):
            raise ValueError(f"paths: expected CAM files (.npy, .npz), found none in {', '.join(map(str, paths))}")
        unique: dict[tuple[Path, str], tuple[Path, Path]] = {}
        for path, relative in found:
            unique.setdefault((path.parent.resolve(), path.name), (path, relative))
        originals = {path.resolve() for path, _ in found}
        takers: dict[str, Path] = {}
        return [self._job(path, relative, originals, takers) for path, relative in unique.values()]

    def _below(self, path: Path) -> Iterator[tuple[Path, Path]]:
        """Files to read, with their paths below what was given; what is asked for by name is read or reported."""
        from ssa_fast.io.cam_files import suffix

        if not path.is_dir():
            yield path, Path(path.name)
            return
        suffixes = SUFFIXES if self.source is None else (suffix(self.source),)
        inside = self.out.resolve()
        for file in sorted(path.rglob("*")):
            relative = file.relative_to(path)
            hidden = any(part.startswith(".") for part in relative.parts)
            ours = inside != path.resolve() and inside in file.resolve().parents
            if file.suffix.lower() in suffixes and file.is_file() and not hidden and not ours:
                yield file, relative

    def _job(self, path: Path, relative: Path, originals: set[Path], takers: dict[str, Path]) -> _Job:
        from ssa_fast.io.cam_files import suffix

        stem = relative.stem if relative.suffix.lower() in SUFFIXES else relative.name
        target = self.out / relative.with_name(stem + suffix(self.to))
        if target.resolve() in originals:
            return _Job(path, None, f"its output {target} would replace a file of this call; choose another --out.")
        first = takers.setdefault(str(target).casefold(), path)
        if first != path:
            return _Job(path, None, f"its output {target} is that of {first}, too; convert it into another --out.")
        return _Job(path, target)

    def convert(self, job: _Job) -> None:
        """Read, choose the class where only one can stay, and write.

        Raises:
            ValueError, OSError: why it cannot be.
        """
        from ssa_fast.io import cam_files

        if job.target is None:
            raise ValueError(job.refusal)
        if job.target.exists() and not self.overwrite:
            raise ValueError(f"{job.target} exists; pass --overwrite to replace it.")
        cam = cam_files.read(job.path, format=self.source, allow_pickle=self.allow_pickle)
        if self.to == "wsol":
            cam = _only(cam, _place(cam, self.wanted))
        job.target.parent.mkdir(parents=True, exist_ok=True)
        cam_files.write(job.target, cam, format=self.to, dtype=self.dtype, allow_pickle=self.allow_pickle)


def _place(cam: CamFile, wanted: str | None) -> int:
    """Which of a file's classes is the one asked for; else that of the highest logit, or the first."""
    if wanted is None:
        return 0 if cam.logits is None else int(cam.logits.argmax())
    names = [name.casefold() for name in cam.names or ()]
    if wanted.strip().casefold() in names:
        return names.index(wanted.strip().casefold())
    indices = [] if cam.classes is None else [str(index) for index in cam.classes.tolist()]
    if wanted.strip() in indices:
        return indices.index(wanted.strip())
    held = ", ".join([*(cam.names or ()), *indices]) or "one map without a class"
    raise ValueError(f"class: expected a name or index that the file has ({held}), got {wanted!r}; give one of them")


def _only(cam: CamFile, k: int) -> CamFile:
    return replace(
        cam,
        cams=cam.cams[k : k + 1],
        classes=None if cam.classes is None else cam.classes[k : k + 1],
        names=None if cam.names is None else cam.names[k : k + 1],
        labels=None if cam.labels is None else cam.labels[k : k + 1],
        logits=None if cam.logits is None else cam.logits[k : k + 1],
    )


def _watched(conversion: _Conversion, jobs: Sequence[_Job]) -> _Done:
    """All conversions under a progress bar, failures told as they come and each warning once."""
    from ssa_fast.io.cam_files import PickleWarning

    columns = (TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    screen = console.err()
    name = TextColumn("{task.fields[name]}", markup=False)
    done, told = _Done(), set[str]()
    start = time.perf_counter()
    with Progress(*columns, name, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=len(jobs), name="")

        def tell(kind: str, colour: str, line: str) -> None:
            bar.console.print(Text(f"{kind}: ", colour).append(line, "default"), soft_wrap=True)

        try:
            for job in jobs:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", PickleWarning)
                    failure = _failure(conversion, job)
                for line in {str(warning.message): None for warning in caught}:
                    if line not in told:
                        told.add(line)
                        tell("warning", "yellow", line)
                if failure is None:
                    done.count += 1
                else:
                    done.failures.append((str(job.path), *failure))
                    tell("failed", "red", f"{job.path}: {failure[0]}")
                bar.update(task, advance=1, name=str(job.path))
        except KeyboardInterrupt:
            done.interrupted = True
    done.seconds = time.perf_counter() - start
    return done


def _failure(conversion: _Conversion, job: _Job) -> tuple[str, Exception] | None:
    """Why a file is not converted, in one line, with the error; None where it is."""
    try:
        conversion.convert(job)
    except OSError as error:
        where = f" ({error.filename})" if error.filename not in (None, str(job.path)) else ""
        return f"{error.strerror or type(error).__name__}{where}", error
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        return line.removeprefix(f"path: {job.path} "), error
    return None


def _close(done: _Done, out: Path, *, debug: bool) -> None:
    """The closing tables: what was done, how fast, and what failed."""
    screen = console.out()
    if debug:
        for _, _, error in done.failures:
            if error is not None:
                traceback.print_exception(error)
    if done.failures:
        screen.print(console.table("failed", ("file", "reason"), [failure[:2] for failure in done.failures]))
    rate = f"{done.count / done.seconds:.1f}" if done.seconds else "-"
    row = (done.count, len(done.failures), f"{done.seconds:.1f}", rate, out if done.count else "-")
    title = "interrupted; what is complete was kept" if done.interrupted else "convert"
    screen.print(console.table(title, SUMMARY, [row], right=SUMMARY[:4]))
