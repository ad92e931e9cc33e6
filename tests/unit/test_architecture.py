"""The pages that lead people through the tree: every path leads somewhere, and what is promised of commands is so."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PAGES = sorted(str(path.relative_to(ROOT)) for path in DOCUMENTS)
ROOMS = sorted(path.name for path in (ROOT / "src" / "headway").iterdir() if (path / "__init__.py").exists())


def links(page: str) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    return [target for target in targets if not target.startswith("http")]


def headings(page: Path) -> set[str]:
    """The fragments under which GitHub finds the headings of a page."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    titles = re.findall(r"(?m)^#+ (.*)", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def leads_somewhere(page: str, target: str) -> bool:
    path, _, fragment = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    return file.exists() and (not fragment or fragment in headings(file))


def test_every_link_of_every_page_leads_somewhere() -> None:
    targets = [(page, target) for page in PAGES for target in links(page)]
    assert len(targets) > 200
    assert [found for found in targets if not leads_somewhere(*found)] == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    assert leads_somewhere("docs/serve.md", "#limitations")
    assert not leads_somewhere("docs/serve.md", "#limits-of-nothing")
    assert not leads_somewhere("docs/serve.md", "serve/nothing.md")


def test_the_life_of_a_request_names_what_there_is() -> None:
    """Each `Class.method` and each `_function` on the page exists."""
    page = (ROOT / "docs" / "life-of-a-request.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:\w+\.)?([A-Z]\w+\.\w+)`", page)) - {"ARCHITECTURE.md"}
    assert len(named) > 30
    assert named - methods() == set()
    private = set(re.findall(r"`(?:\w+\.)?(_\w+)`", page))
    assert len(private) > 5
    assert private - {name.partition(".")[2] for name in methods()} == set()


def methods() -> set[str]:
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "src").rglob("*.py")]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {
        f"{one.name}.{part.name}"
        for one in classes
        for part in one.body
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_room_is_on_the_map() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert [room for room in ROOMS if f"(src/headway/{room})" not in text] == []


def test_the_map_is_three_pages_at_most() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 135


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/pytest -q -n auto"
    for file in ("README.md", ".ci/run", "justfile"):
        assert command in (ROOT / file).read_text(encoding="utf-8"), file


def test_ci_is_a_script_that_bash_can_read() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)


@pytest.mark.parametrize("room", ROOMS)
def test_files_read_like_a_page(room: str) -> None:
    """Under 400 lines unless its docstring says "One file because …", and no file named after nothing."""
    empty_names = {"utils", "util", "common", "helpers", "misc", "base", "manager", "core"}
    for file in (ROOT / "src" / "headway" / room).rglob("*.py"):
        assert file.stem not in empty_names, file
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400 or "One file because" in (ast.get_docstring(ast.parse(text)) or ""), file
