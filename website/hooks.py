"""What mkdocs cannot know: pages made from the code, pages from beside `docs`, and links that leave the site.

Every page is written for readers of the repository; here its links are turned, so that nothing is written twice.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference_pages import command_line_page, python_api_page

ROOT = Path(__file__).parents[1]
BESIDE = {"ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository's root -> where the site has them."""
_LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of a folder where the navigation says `FOLDER/*`."""
    if config.nav is not None:
        config.nav = _expanded(config.nav, Path(config.docs_dir))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    files.append(File.generated(config, "reference/command-line.md", content=command_line_page()))
    files.append(File.generated(config, "reference/python-api.md", content=python_api_page()))
    for source, target in BESIDE.items():
        files.append(File.generated(config, target, content=_turned((ROOT / source).read_text("utf-8"), "", config)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page that lead out of `docs`."""
    if page.file.generated_by is not None:
        return markdown
    return _turned(markdown, posixpath.dirname(posixpath.join("docs", page.file.src_uri)), config)


def _expanded(entry: Any, docs: Path) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(below, docs) for title, below in entry.items()}
    if not isinstance(entry, list):
        return entry
    named = {below for below in entry if isinstance(below, str)}
    found: list[Any] = []
    for below in entry:
        if isinstance(below, str) and below.endswith("/*"):
            pages = sorted(page.relative_to(docs).as_posix() for page in docs.glob(f"{below[:-1]}*.md"))
            found += [page for page in pages if page not in named and not page.endswith("/README.md")]
        else:
            found.append(_expanded(below, docs))
    return found


def _turned(markdown: str, folder: str, config: MkDocsConfig) -> str:
    """Links of a page in a folder of the repository, as the site needs them."""

    def turn(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        if not (ROOT / path).exists():
            return link[0]  # mkdocs names it as broken
        if path in BESIDE:
            target = BESIDE[path]
        elif path.startswith("docs/") and (ROOT / path).is_file():
            target = path.removeprefix("docs/")
        else:
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            return f"{link[1]}{str(config.repo_url).rstrip('/')}/{kind}/main/{path}{link[3]}"
        here = folder.removeprefix("docs").strip("/") or "."
        return f"{link[1]}{posixpath.relpath(target, here)}{link[3]}"

    return _LINK.sub(turn, markdown)
