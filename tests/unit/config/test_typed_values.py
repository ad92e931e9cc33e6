"""Values checked against declared types: what is taken, and the one sentence for what is not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.config.typed_values import Bounds, Described, checked, read_table, type_in_words

Seconds = Annotated[float, Bounds(least=0.05, unit="seconds")]


@dataclass(frozen=True)
class Part:
    """A table below the table."""

    size: int
    name: str = "x"


@dataclass(frozen=True)
class Whole:
    """A table with every kind of key."""

    wait: Seconds = 1.0
    mode: Literal["a", "b"] = "a"
    limit: int | None = None
    parts: Sequence[Part] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    part: Part = Part(1)


@pytest.mark.parametrize(
    ("declared", "value", "taken"),
    [
        (float, 3, 3.0),
        (float, math.inf, math.inf),
        (int | None, None, None),
        (int | str, "x", "x"),
        (Literal["a", 1], 1, 1),
        (Annotated[int, Bounds(least=1, most=2)], 2, 2),
        (Mapping[str, float], {"a": 1}, {"a": 1.0}),
        (tuple[int, ...], [1, 2], (1, 2)),
        (Part, {"size": 2}, Part(2)),
        (Any, {1}, {1}),
    ],
)
def test_what_fits_is_taken_as_its_type(declared: Any, value: object, taken: object) -> None:
    result = checked(value, declared, "key")
    assert result == taken
    assert type(result) is type(taken)


@pytest.mark.parametrize(
    ("declared", "value", "sentence"),
    [
        (float, True, "key must be a number, got True"),
        (float, 10**400, "key must be a number, got 1"),
        (int, True, "key must be a whole number, got True"),
        (int, 1.0, "key must be a whole number, got 1.0"),
        (bool, 1, "key must be true or false, got 1"),
        (Literal["a", 1], True, "key must be one of 'a', 1, got True"),
        (int | str, 1.5, "key must be a whole number or a text, got 1.5"),
        (Seconds, 0, "key must be a number of seconds of at least 0.05, got 0"),
        (Seconds, math.inf, "key must be a number of seconds of at least 0.05, got inf"),
        (Seconds, math.nan, "key must be a number of seconds of at least 0.05, got nan"),
        (Annotated[float, Bounds(above=0, most=8)], 0, "key must be a number above 0 and at most 8, got 0"),
        (Annotated[float, Bounds(above=0, most=8)], 9, "key must be a number above 0 and at most 8, got 9"),
        (Annotated[str, Described("a path")] | None, 5, "key must be a path, got 5"),
        (Mapping[str, float], {"a": "x"}, "key.a must be a number, got 'x'"),
        (Mapping[str, float], {"a\nb": "x"}, "key.'a\\nb' must be a number, got 'x'"),
        (Mapping[str, float], 3, "key must be a table of names, each with a number, got 3"),
        (tuple[int, ...], [1, "x"], "key[1] must be a whole number, got 'x'"),
        (tuple[int, ...], 1, "key must be a list, got 1"),
        (Sequence[Part], {}, "key must be a list; write [[key]], got {}"),
        (Part, 3, "key must be a table of size, name, got 3"),
        (Part, {}, "key.size is missing"),
    ],
)
def test_what_does_not_fit_is_one_sentence(declared: Any, value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        checked(value, declared, "key")


def test_a_table_becomes_its_dataclass() -> None:
    content = {"wait": 2, "mode": "b", "parts": [{"size": 1}], "weights": {"t": 1}, "part": {"size": 3, "name": "y"}}
    assert read_table(Whole, content) == Whole(2.0, "b", None, (Part(1),), {"t": 1.0}, Part(3, "y"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"wate": 1}, "unknown key queue.wate: did you mean 'wait'? choose from wait, mode"),
        ({"parts": [{"size": 1, "nam": "x"}]}, "unknown key queue.parts[0].nam: did you mean 'name'?"),
        ({"part": {"size": True}}, "queue.part.size must be a whole number, got True"),
    ],
)
def test_a_mistake_in_a_table_names_the_key(content: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        read_table(Whole, content, "queue.")


def test_a_key_may_be_read_its_own_way() -> None:
    readers = {"limit": lambda value, where: f"{where}={value}"}
    assert read_table(Whole, {"limit": "off"}, "queue.", readers).limit == "queue.limit=off"  # type: ignore[comparison-overlap]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
DECLARED = [float, int, bool, str, Seconds, Mapping[str, float], tuple[int, ...], int | None, Part, Literal["a"]]


@given(JSON, st.sampled_from(DECLARED))
def test_any_value_is_taken_or_refused_in_one_line(value: object, declared: Any) -> None:
    sentence = ""
    try:
        result = checked(value, declared, "key")
    except ValueError as error:
        sentence = str(error)
    assert "\n" not in sentence
    if not sentence:
        assert repr(checked(result, declared, "key")) == repr(result), "what was taken is taken again"


def test_types_in_words() -> None:
    assert type_in_words(float | None) == "a number"
    assert type_in_words(Mapping[str, int]) == "a table of names, each with a whole number"
    assert type_in_words(Mapping[str, Mapping[str, Any]]) == "a table of names, each with a table"
    assert type_in_words(Annotated[int, Bounds(most=3)]) == "a whole number of at most 3"
