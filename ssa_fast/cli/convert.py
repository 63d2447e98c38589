"""``ssa-fast convert``: convert CAM files from one format to another."""

from __future__ import annotations

import re
import time
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from ssa_fast.cli import console
from ssa_fast.cli.options import Debug  # noqa: TC001 - typer reads it
from ssa_fast.io.progress import Progress, progress_bars

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ssa_fast.io.cam_files import CamFile

    Job = tuple[Path, Path, str]  # a file to read, its output, and why it cannot be converted (empty if it can)

__all__ = ["command"]

Format = Literal["ssa", "psa", "irn", "clip-es", "wsol"]
SUFFIXES = (".npy", ".npz")
SUMMARY = ("done", "failed", "seconds", "files/s", "outputs")
PICKLE_HELP = "Allow psa, irn and clip-es files: pickles, which can run code when they are read."
CLASS_HELP = "The class stored in a wsol file, by name or index; default: highest logit, else the first."
SUFFIX_HELP = (
    "Suffix of the images, e.g. .jpg, kept in wsol's names; default: as in ssa files, else as the file is called."
)


def _output(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Output")


def command(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="CAM files, and folders of them.")],
    to: Annotated[Format, _output("--to", help="Format to write.")],
    out: Annotated[Path, _output("--out", "-o", help="Output folder; subfolders of the input are kept.")],
    dtype: Annotated[Literal["float16", "uint8"], _output(help="Data type in ssa files.")] = "float16",
    class_: Annotated[str | None, _output("--class", help=CLASS_HELP)] = None,
    image_suffix: Annotated[str | None, _output(help=SUFFIX_HELP)] = None,
    overwrite: Annotated[bool, _output("--overwrite", help="Replace existing files.")] = False,
    source: Annotated[Format | None, typer.Option("--from", help="Read only this format; default: any.")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help=PICKLE_HELP)] = False,
    debug: Debug = False,
) -> None:
    """Convert CAM files between the formats of ssa_fast, PSA, IRN, CLIP-ES and wsolevaluation.

    A file that cannot be converted does not stop the others. Formats other than ssa store CAMs at the image's size;
    wsol does at 224x224, and its names keep the image's suffix: a.jpg.npy.
    Exit code: 0 all done, 1 something failed, 2 wrong usage, 130 after Ctrl-C.

    Example: ssa-fast convert out/cams --to irn --out irn_cams --allow-pickle
    """
    with console.usage_errors(debug=debug):
        conversion = _Conversion(to, out, source, dtype, allow_pickle, class_, image_suffix, overwrite)
        exit_code = _convert_all(conversion, conversion.jobs(paths), debug=debug)
    raise typer.Exit(exit_code)


@dataclass(frozen=True)
class _Conversion:
    to: Format
    out: Path
    source: Format | None
    dtype: Literal["float16", "uint8"]
    allow_pickle: bool
    class_: str | None
    image_suffix: str | None
    overwrite: bool
    unnamed: list[Path] = field(default_factory=list)  # files whose image's suffix is not known

    def __post_init__(self) -> None:
        """Raise ValueError for options that would make every file fail."""
        from ssa_fast.io.cam_files import PICKLED

        if self.to in PICKLED and not self.allow_pickle:
            raise ValueError(
                f"to: {self.to!r} files are pickles, which can run any code when they are read; pass --allow-pickle if "
                "their readers trust you, or choose another format"
            )
        if self.class_ is not None and self.to != "wsol":
            raise ValueError(f"class: expected with --to wsol only, as it stores one map, got --to {self.to}; omit it")
        if self.image_suffix is not None and self.to != "wsol":
            raise ValueError(f"image-suffix: expected with --to wsol only, whose names keep it, got --to {self.to}")
        if self.image_suffix is not None and not re.fullmatch(r"\.\w+", self.image_suffix):
            raise ValueError(f"image-suffix: expected a suffix such as .jpg, got {self.image_suffix!r}")
        if self.source in PICKLED and not self.allow_pickle:
            raise ValueError(
                f"from: {self.source!r} files are pickles, which can run any code when they are read; pass "
                "--allow-pickle if you trust their makers"
            )
        if self.source == "wsol" and (self.to in PICKLED or self.class_ is not None):
            raise ValueError(
                f"from: 'wsol' files do not say which class their map is of, which "
                f"{'--class' if self.class_ is not None else f'--to {self.to}'} needs; leave it out"
            )
        if self.dtype != "float16" and self.to != "ssa":
            raise ValueError(f"dtype: expected with --to ssa only, got --to {self.to}; omit it")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out: expected a folder, got the file {self.out}; choose another --out")

    def jobs(self, paths: Sequence[Path]) -> list[Job]:
        """Return one job per file, in the order of ``paths``; raise ValueError if there is no file."""
        from ssa_fast.io.cam_files import suffix

        suffixes = SUFFIXES if self.source is None else (suffix(self.source),)
        found = [pair for path in paths for pair in self._files(path, suffixes)]
        if not any(path.exists() for path, _ in found):
            raise ValueError(f"paths: expected CAM files (.npy, .npz), found none in {', '.join(map(str, paths))}")
        inputs = {path.resolve() for path, _ in found}
        jobs: dict[tuple[Path, str], Job] = {}  # by file
        owners: dict[str, Path] = {}  # by output
        for path, relative in found:
            key = (path.parent.resolve(), path.name)
            if key in jobs:
                continue
            stem = relative.stem if relative.suffix.lower() in SUFFIXES else relative.name
            name = relative.with_name(stem) if self.to != "wsol" else self._image_name(path, relative.with_name(stem))
            target, refusal = self.out / name.with_name(name.name + suffix(self.to)), ""
            if target.resolve() in inputs:
                refusal = f"its output {target} would replace an input file; choose another --out."
            elif (owner := owners.setdefault(str(target).casefold(), path)) != path:
                refusal = f"its output {target} is also that of {owner}; convert it to another --out."
            jobs[key] = (path, target, refusal)
        return list(jobs.values())

    def _files(self, path: Path, suffixes: Sequence[str]) -> Iterator[tuple[Path, Path]]:
        """Yield files to read, each with its path below the folder that was given."""
        if not path.is_dir():
            yield path, Path(path.name)
            return
        out = self.out.resolve()
        for file in sorted(path.rglob("*")):
            relative = file.relative_to(path)
            hidden = any(part.startswith(".") for part in relative.parts)
            is_output = out != path.resolve() and out in file.resolve().parents
            if file.suffix.lower() in suffixes and file.is_file() and not hidden and not is_output:
                yield file, relative

    def _image_name(self, path: Path, name: Path) -> Path:
        """Return the whole name of a file's image: as the file says, else its own with the suffix."""
        from ssa_fast.io.cam_files import read_image_name
        from ssa_fast.io.datasets import has_image_suffix

        if self.image_suffix is None and (said := read_image_name(path)) is not None:
            return Path(said)
        if has_image_suffix(name):
            return name
        if self.image_suffix is None:
            self.unnamed.append(path)
            return name
        return name.with_name(name.name + self.image_suffix)

    def convert(self, path: Path, target: Path, refusal: str) -> None:
        """Convert one file; raise ValueError or OSError if that is not possible."""
        from ssa_fast.io import cam_files

        if refusal:
            raise ValueError(refusal)
        if target.exists() and not self.overwrite:
            raise ValueError(f"{target} exists; pass --overwrite to replace it.")
        cam = cam_files.read_cam(path, format=self.source, allow_pickle=self.allow_pickle)
        if self.to == "wsol":
            k = _class_position(cam, self.class_)
            per_class = {name: getattr(cam, name) for name in ("cams", "classes", "names", "labels", "logits")}
            cam = replace(cam, **{name: each[k : k + 1] for name, each in per_class.items() if each is not None})
        target.parent.mkdir(parents=True, exist_ok=True)
        cam_files.write_cam(target, cam, format=self.to, dtype=self.dtype, allow_pickle=self.allow_pickle)


def _class_position(cam: CamFile, wanted: str | None) -> int:
    """Return the position of a class in a file; by default the highest logit's, or the first."""
    if wanted is None:
        return 0 if cam.logits is None else int(cam.logits.argmax())
    wanted = wanted.strip()
    names = [name.casefold() for name in cam.names or ()]
    if wanted.casefold() in names:
        return names.index(wanted.casefold())
    indices = [] if cam.classes is None else [str(index) for index in cam.classes.tolist()]
    if wanted in indices:
        return indices.index(wanted)
    known = ", ".join([*(cam.names or ()), *indices]) or "one map without a class"
    raise ValueError(f"class: expected a name or index that the file has ({known}), got {wanted!r}; choose one of them")


def _convert_all(conversion: _Conversion, jobs: Sequence[Job], *, debug: bool) -> int:
    """Run all jobs; print failures as they occur, each warning once, and a table. Return the exit code."""
    from ssa_fast.io.cam_files import PickleWarning

    screen, seen, interrupted, start = console.err(), set[str](), False, time.perf_counter()
    done, failures = 0, list[tuple[Path, str, Exception]]()

    def show(kind: str, style: str, line: str) -> None:
        screen.print(Text(f"{kind}: ", style).append(line, "default"), soft_wrap=True)

    if conversion.unnamed:
        screen.print(
            f"notice: {len(conversion.unnamed)} files such as {conversion.unnamed[0]} do not say their image's suffix, "
            "which wsolevaluation wants in the name (a.jpg.npy); if its image ids have one, pass --image-suffix"
        )
    with progress_bars(screen) if screen.is_terminal else nullcontext() as on_progress:
        try:
            for number, job in enumerate(jobs, 1):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", PickleWarning)
                    try:
                        conversion.convert(*job)
                        done += 1
                    except Exception as error:
                        failures.append((job[0], _reason(job[0], error), error))
                        show("failed", "red", "{}: {}".format(*failures[-1]))
                for line in {str(warning.message) for warning in caught} - seen:
                    seen.add(line)
                    show("warning", "yellow", line)
                if on_progress is not None:
                    on_progress(Progress(number, len(jobs), phase="convert"))
        except KeyboardInterrupt:
            interrupted = True
    seconds, result = time.perf_counter() - start, console.out()
    if debug:
        for _, _, failure in failures:
            traceback.print_exception(failure)
    if failures:
        result.print(console.table("failed", ("file", "reason"), [each[:2] for each in failures]))
    rate = f"{done / seconds:.1f}" if seconds else "-"
    row = (done, len(failures), f"{seconds:.1f}", rate, conversion.out if done else "-")
    title = "interrupted; finished files were kept" if interrupted else "convert"
    result.print(console.table(title, SUMMARY, [row], right=SUMMARY[:4]))
    return 130 if interrupted else int(bool(failures))


def _reason(path: Path, error: Exception) -> str:
    """Return in one line why a file was not converted."""
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename not in (None, str(path)) else ""
        return f"{error.strerror or type(error).__name__}{where}"
    line = " ".join(str(error).split()) or type(error).__name__
    return line.removeprefix(f"path: {path} ")
