"""The documentation builds without a warning, and is whole without a network connection."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parent.parent
pytest.importorskip("mkdocstrings", reason="MkDocs comes with the extra docs")


@pytest.fixture(scope="module")
def links() -> ModuleType:
    """Return docs/links.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("links", ROOT / "docs/links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_site_builds_and_is_whole(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    pages = sorted(tmp_path.glob("*.html"))
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= {page.stem for page in pages}
    for page in pages:
        html = page.read_text(encoding="utf-8")
        sources = re.findall(r'<(?:img|script)[^>]* src="([^"]+)"|<link rel="stylesheet" href="([^"]+)"', html)
        for source in map("".join, sources):
            assert ":" not in source, f"{page.name} loads {source} from elsewhere"
            if page.name != "404.html":  # which is written for the root of a server
                assert (tmp_path / source.split("?")[0]).is_file(), f"{page.name}: {source} is missing"


def on_page(links: ModuleType, markdown: str) -> str:
    page: Any = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    config: Any = SimpleNamespace(repo_url="https://host/owner/name/")
    return links.on_page_markdown(markdown, page, config, None)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("![x](../bench/results/photos.jpg)", "![x](bench/results/photos.jpg)"),
        ("[x](../tests/inputs)", "[x](https://host/owner/name/blob/main/tests/inputs)"),
        ("[x](../ssa_fast/reference.py#L9)", "[x](https://host/owner/name/blob/main/ssa_fast/reference.py#L9)"),
        ("[x](method.md), [y](https://host/a)", "[x](method.md), [y](https://host/a)"),
    ],
)
def test_links_out_of_docs(links: ModuleType, written: str, expected: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert on_page(links, written) == expected
    assert not caplog.records


def test_a_link_to_a_missing_file_warns(links: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """A warning ends ``make docs``."""
    with caplog.at_level(logging.WARNING):
        on_page(links, "[x](../ssa_fast/nothing.py)")
    assert "../ssa_fast/nothing.py" in caplog.text
