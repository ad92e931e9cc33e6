"""A table taken key by key: each method's mistakes name file and key, and no key is left over unseen."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from headway.config.table_reader import TableReader

VALUES = {"size": 3, "share": 0.5, "name": "x", "on": True, "steps": [1, 2.5], "part": {"size": 0}}


def test_what_is_there_is_handed_out() -> None:
    table = TableReader("file", VALUES)
    assert (table.whole("size"), table.positive("share", most=1), table.number("size")) == (3, 0.5, 3.0)
    assert (table.text("name"), table.flag("on", default=False), table.flag("off", default=False)) == ("x", True, False)
    assert table.numbers("steps") == (1.0, 2.5)
    assert table.table("part").whole("size", least=0) == 0
    assert table.optional_table("none") is None
    assert table.keys() == tuple(table.values())
    table.close()


@pytest.mark.parametrize(
    ("take", "sentence"),
    [
        (lambda table: table.text("size"), "file: size must be a text that is not empty, got 3"),
        (lambda table: table.whole("missing"), "file: missing is missing"),
        (lambda table: table.positive("size", most=2), "file: size must be a number above 0 and at most 2, got 3"),
        (lambda table: table.number("name"), "file: name must be a number of at least 0, got 'x'"),
        (lambda table: table.flag("size", default=True), "file: size must be true or false, got 3"),
        (lambda table: table.numbers("share"), "file: share must be a list"),
        (lambda table: table.table("size"), "file: size must be a table, got 3"),
        (lambda table: table.table("other"), "file: other is missing: add a table [other]"),
        (
            lambda table: table.table("part").whole("size"),
            "file: part.size must be a whole number of at least 1",
        ),
        (lambda table: table.close(), "file: unknown key size: choose from"),
    ],
)
def test_a_mistake_is_one_sentence(take: Callable[[TableReader], object], sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        take(TableReader("file", VALUES))


@pytest.mark.parametrize("steps", [[], [2, 1], [0], [1, "x"]])
def test_a_list_of_numbers_rises_and_is_not_empty(steps: list[object]) -> None:
    with pytest.raises(ValueError, match=r"^file: steps"):
        TableReader("file", {"steps": steps}).numbers("steps")
