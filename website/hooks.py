"""What mkdocs cannot know: pages made from the code, pages from beside `docs`, and links that leave the site.

Every page is written for readers of the repository; here its links are turned, so that nothing is written twice.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.core import TyperGroup
from typer.main import get_command

from headway.cli.app import app

ROOT = Path(__file__).parents[1]
BESIDE = {"ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository's root -> where the site has them."""
_INTRODUCTION = """# Command line

Made from the code: what `headway VERB --help` prints. Exit status: 0 done, 1 a fault of Headway, 2 a mistake in the
input, 130 interrupted, 141 the reader of the output left.
"""
_LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of a folder where the navigation says `FOLDER/*`."""
    if config.nav is not None:
        config.nav = _expanded(config.nav, Path(config.docs_dir))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    files.append(File.generated(config, "reference/command-line.md", content=_command_line_page()))
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


def _command_line_page() -> str:
    """Markdown of all verbs, in the order of `headway --help`."""
    root = get_command(app)
    return "\n".join([_INTRODUCTION, *_verbs(root, "headway")]) + "\n"


def _verbs(command: Any, name: str) -> Iterator[str]:
    context = typer.Context(command, info_name=name)
    if isinstance(command, TyperGroup):
        for below in command.list_commands(context):
            verb = command.get_command(context, below)
            if verb is not None and not verb.hidden:
                yield from _verbs(verb, f"{name} {below}")
        return
    yield f"## {name}\n"
    yield f"{(command.help or '').strip()}\n"
    usage = " ".join(context.command.collect_usage_pieces(context))
    yield f"```\n{name} {usage}\n```\n"
    rows = [row for one in command.params if (row := _row(one, context)) is not None]
    if rows:
        yield "| option | what it does |\n|---|---|"
        yield from rows
        yield ""


def _row(parameter: Any, context: typer.Context) -> str | None:
    record = parameter.get_help_record(context)
    if record is None:
        return None
    names, help_text = (part.replace("|", "\\|").replace("\n", " ") for part in record)
    return f"| `{names}` | {help_text} |"
