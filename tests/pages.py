"""Read the pages: their fenced blocks, the commands in them and in their prose, their headings and links."""

from __future__ import annotations

import re
import shlex
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
FENCE = re.compile(r"^( *)(```+)(\w*)")
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
PROGRAMS = ("ssa-fast ", "python -m ", "make ", "pip install ")
SEPARATORS = {";", "&&", "|", "||"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line of its first line, its language, its text, and why it is not run, or ""."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command on a page: where it stands, its words without variables before it, and whether it is a whole line."""

    place: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    found: list[Block] = []
    fence, start, language, reason, before = "", 0, "", "", ""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        mark = FENCE.match(line)
        if mark and not fence:
            fence, start, language = mark[2], number + 1, mark[3]
            given = NOT_RUN.fullmatch(before.strip())
            reason = given[1] if given else ""
        elif fence and line.strip() == fence:
            found.append(Block(page, start, language, "\n".join(lines[start - 1 : number - 1]) + "\n", reason))
            fence = ""
        before = line
    assert not fence, f"{page.name}:{start}: the block has no end"
    return found


def prose(page: Path) -> str:
    """Return the page with empty lines in place of its fenced blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in blocks(page):
        count = block.text.count("\n")
        lines[block.line - 2 : block.line + count] = [""] * (count + 2)
    return "\n".join(lines)


def split_commands(line: str) -> list[tuple[str, ...]]:
    """Return the commands of a shell line, each without its variables: ``A=1 make x; make y`` are two."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word in SEPARATORS:
            found.append([])
        elif found[-1] or not re.match(r"\w+=", word):
            found[-1].append(word)
    return [tuple(words) for words in found if words]


def commands(page: Path) -> Iterator[Command]:
    """Yield the commands of a page's ``sh`` blocks, then those in its prose, of which parts may be left out."""
    for block in blocks(page):
        if block.language == "sh" and not block.not_run:
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from (Command(str(block), words, True) for words in split_commands(line))
    for number, line in enumerate(prose(page).splitlines(), 1):
        for span in re.findall(r"`([^`]+)`", line):
            if span.startswith(PROGRAMS):
                yield Command(f"{page.relative_to(ROOT)}:{number}", split_commands(span)[0], False)


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Yield line and target of the page's links and images, without those that leave the repository."""
    for number, line in enumerate(prose(page).splitlines(), 1):
        text = re.sub(r"`[^`]*`", "", line)
        for target in re.findall(r"\]\(([^)\s]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
            if not re.match(r"[a-z]+:", target):
                yield number, target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings that GitHub and MkDocs both give them."""
    github, mkdocs = set(), set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        plain = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading)
        kept = re.sub(r"[^\w\s-]", "", plain.lower())
        github.add(kept.replace(" ", "-"))
        ascii_only = unicodedata.normalize("NFKD", kept).encode("ascii", "ignore").decode()
        mkdocs.add(re.sub(r"[-\s]+", "-", ascii_only.strip()))
    return github & mkdocs
