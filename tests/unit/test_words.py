"""Words that a machine can keep: one name for one thing, terms of the glossary, plain texts for users."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from headway.policies.catalog import ROOMS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "headway"
FILES = sorted(SOURCE.rglob("*.py"))
# The rows of docs/glossary.md: what stands in their first column.
GLOSSARY = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
PAGES = sorted((SOURCE / "gateway" / "observing" / "page").glob("live.*"))
# Not docs/results, which are records, nor the page on style, which names the words themselves.
FOLDERS = [ROOT, *(ROOT / "docs" / name for name in ("", "decisions", "policies", "serve"))]
DOCUMENTS = [page for folder in FOLDERS for page in sorted(folder.glob("*.md")) if page.name != "style.md"]
# Words of docs/style.md that no user is to read.
BANNED = re.compile(
    r"\b(whoever|nobody|somebody|anybody|anew|told of|is told|said ago|by lot|at the door|put aside|steps back"
    r"|is had|cannot be had|bears out|those who|of yours|knobs?)\b",
    re.IGNORECASE,
)


# Pages that people write. Those of policies are docstrings with formulas; the changelog's lines are no prose.
PROSE = [page for page in DOCUMENTS if page.parent.name != "policies" and page.name != "CHANGELOG.md"]
SENTENCE_WORDS = 40
"""Twice what docs/style.md allows: a list of names may be so long, a thought may not."""


def class_names(source: str) -> list[str]:
    return [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def texts(source: str, *, is_command: bool = False) -> Iterator[tuple[int, str]]:
    """What users read of a file: its first line, and every string in it with a space that documents no code.

    Such a string is a message, a HELP line or an option's help. The docstring of a command is its help.
    """
    tree = ast.parse(source)
    yield 1, (ast.get_docstring(tree) or "").partition("\n")[0]
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
        if is_text and (is_command or id(node) not in documentation):
            yield node.lineno, node.value


def sentences(page: str) -> Iterator[str]:
    """The sentences of a Markdown page, without code, tables, headings and the targets of links."""
    page = re.sub(r"^```.*?^```", "\n", page, flags=re.DOTALL | re.MULTILINE)
    page = re.sub(r"^(\||#| {4,}| *!\[|<!--).*$", "", page, flags=re.MULTILINE)
    page = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r"`(?:[^`\n]|\n(?!\n))*`", "CODE", page))
    for block in re.split(r"\n\s*\n|\n\s*(?:[-*>]|\d+\.)\s", f"\n{page}"):
        yield from re.split(r"(?<=[.!?])[\"')*]*\s+(?=[\"'(*]*[A-Z0-9])", " ".join(block.split()))


def too_long(page: str) -> list[str]:
    return [found for found in sentences(page) if len(re.findall(r"\S*\w\S*", found)) > SENTENCE_WORDS]


def head_noun(name: str) -> str:
    return name.rpartition("_")[2]


def is_in_glossary(name: str) -> bool:
    """Whether the name's head noun, in the singular or as it is, is a word of a term of the glossary."""
    words = {word for term in GLOSSARY for word in re.findall(r"[a-z]+", term.lower())}
    noun = head_noun(name)
    singulars = {noun, noun.removesuffix("s"), noun.removesuffix("es"), re.sub("ies$", "y", noun)}
    return bool(singulars & words)


def twice(named: Iterator[tuple[str, Path]]) -> dict[str, list[str]]:
    places = defaultdict(list)
    for name, file in named:
        places[name].append(str(file.relative_to(SOURCE)))
    return {name: files for name, files in places.items() if len(files) > 1}


def test_no_class_name_means_two_things() -> None:
    assert twice((name, file) for file in FILES for name in class_names(file.read_text(encoding="utf-8"))) == {}


def test_no_file_name_means_two_things() -> None:
    assert twice((file.stem, file) for file in FILES if not file.stem.startswith("__")) == {}


def test_every_room_and_file_is_named_by_a_word_of_the_glossary() -> None:
    policies = {policy.__module__.rpartition(".")[2] for room in ROOMS.values() for policy in room.values()}
    names = {file.parent.name for file in FILES} | {file.stem for file in FILES if not file.stem.startswith("__")}
    assert sorted(name for name in names - policies if not is_in_glossary(name)) == []


@pytest.mark.parametrize("room", sorted({file.relative_to(SOURCE).parts[0] for file in FILES}))
def test_no_user_reads_a_banned_word(room: str) -> None:
    found = [
        f"{file.relative_to(SOURCE)}:{line}: {match[0]!r} in {text[:60]!r}"
        for file in FILES
        if file.relative_to(SOURCE).parts[0] == room
        for line, text in texts(file.read_text(encoding="utf-8"), is_command=room == "cli")
        for match in BANNED.finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_banned_word_is_on_the_live_page(page: Path) -> None:
    assert BANNED.findall(page.read_text(encoding="utf-8")) == []


def test_no_banned_word_is_in_the_documents() -> None:
    assert len(DOCUMENTS) > 60
    found = {page.name: BANNED.findall(page.read_text(encoding="utf-8")) for page in DOCUMENTS}
    assert {page: words for page, words in found.items() if words} == {}


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.stem)
def test_no_sentence_of_the_documents_is_two(page: Path) -> None:
    assert too_long(page.read_text(encoding="utf-8")) == []


# A test of words that cannot fail proves nothing.


def test_a_second_class_or_file_of_a_name_is_found() -> None:
    first, second = SOURCE / "cli" / "clock.py", SOURCE / "gateway" / "clock.py"
    assert twice(iter([("clock", first), ("clock", second), ("hour", first)])) == {
        "clock": ["cli/clock.py", "gateway/clock.py"]
    }
    assert class_names("class A:\n    class _B: pass\ndef f():\n    class C: pass") == ["A", "_B", "C"]


def test_a_name_without_a_term_of_the_glossary_is_found() -> None:
    assert not is_in_glossary("last_straws")
    assert is_in_glossary("request_queues")


@pytest.mark.parametrize(
    "planted",
    [
        '"""Whoever waits."""',
        'def f():\n    raise ValueError(f"replica {1} is told of it")',
        'log.info("nobody waits for %s", model)',
        'HELP = {"x": "Requests put aside"}',
    ],
)
def test_a_banned_word_is_found(planted: str) -> None:
    assert [text for _, text in texts(planted) if BANNED.search(text)]


def test_documentation_of_code_is_not_a_text_of_users_and_a_commands_is() -> None:
    planted = 'def load():\n    """Nobody reads this."""'
    assert not [text for _, text in texts(planted) if BANNED.search(text)]
    assert [text for _, text in texts(planted, is_command=True) if BANNED.search(text)]


def test_a_long_sentence_is_found_and_code_and_tables_are_not() -> None:
    long = " ".join(["Word"] * (SENTENCE_WORDS + 1))
    assert too_long(f"# {long}\n\nShort. {long}.\n") == [f"{long}."]
    assert too_long(f"- [{long}](page.md)\n- Short.\n") == [long]
    assert not too_long(f"```\n{long}\n```\n\n| {long} |\n\n    {long}\n\n`{long}`\n")
    assert not too_long(f"{long[:100]}. {long[:100].capitalize()}.\n- {long[:60]}\n1. {long[:60]}\n")
