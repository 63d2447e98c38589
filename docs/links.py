"""Let pages link to any file of the repository as on GitHub, by ``../PATH``; MkDocs alone knows ``docs/`` only.

Figures and result files become part of the site, so that it can be read offline; others are linked in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
COPIED = "bench/results/"
LINK = re.compile(r"\]\(\.\./([^)#\s]+)")
log = get_plugin_logger("links")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files in ``bench/results/`` to the site, at the same path."""
    for path in sorted(ROOT.glob(f"{COPIED}**/*.*")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave ``docs/`` to the copied file, else to the repository; warn where there is no such file."""

    def target(link: re.Match[str]) -> str:
        path = posixpath.normpath(link[1])
        if not (ROOT / path).exists():
            log.warning("%s links to ../%s, which is not in the repository", page.file.src_uri, path)
        if path.startswith(COPIED) and (ROOT / path).is_file():
            return f"]({path}"
        return f"]({config.repo_url.rstrip('/')}/blob/main/{path}"

    return LINK.sub(target, markdown)
