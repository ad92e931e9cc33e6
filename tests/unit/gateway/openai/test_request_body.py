"""Request bodies: read or refused, fields written into them, prefixes hashed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.openai.endpoints import COMPLETIONS
from headway.gateway.openai.request_body import (
    agent_tables,
    prompts_in,
    read_body,
    why_unreadable,
    with_fields,
    with_usage_asked,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NESTED = st.recursive(st.none() | FINITE | st.text(max_size=5), st.lists, max_leaves=8)


@given(st.dictionaries(st.text(max_size=8), NESTED, max_size=5))
def test_setting_a_field_changes_no_other(content: dict[str, object]) -> None:
    after = json.loads(with_fields(json.dumps(content).encode(), {"priority": 3}))
    assert after == {**content, "priority": 3}


def usage_asked(content: bytes) -> bytes:
    return with_fields(content, with_usage_asked(content))


def test_bodies_are_read_or_refused() -> None:
    body = read_body(b'{"model":"m","max_tokens":5,"max_completion_tokens":7,"messages":[1, 2],"odd":{"x":1}}')
    assert body is not None
    assert (body.output_tokens_max, body.prompt_bytes) == (7, b"[1, 2]")
    for bad in (b"[1]", b"{", b'{"model":1}', b'{"stream":"yes"}', b"\xff", b'{"max_tokens":1.5}', b"[" * 100_000):
        assert read_body(bad) is None
        assert why_unreadable(bad).startswith(("the body is not a valid JSON object: ", "the body is nested", "`"))
    for bad, sentence in (
        (b'{"max_tokens":1.5}', "`max_tokens` in the body is not valid: expected `int | null`, got `float`"),
        (b'{"model":1}', "`model` in the body is not valid: expected `str`, got `int`"),
        (b"[1]", "the body is not a valid JSON object: Expected `object`, got `array`"),
    ):
        assert why_unreadable(bad) == sentence
    lenient = read_body(
        b'{"model":"m","max_tokens":"100","n":2.0,"stream":"true","stream_options":{"include_usage":1}}'
    )
    assert lenient is not None
    assert (lenient.output_tokens_max, lenient.stream) == (100, True)
    assert usage_asked(b'{"stream_options":{"a":1}}') == b'{"stream_options":{"a":1,"include_usage":true}}'


NAMES = st.sampled_from(["model", "priority", "stream_options", "prompt", "é"])


VALUES = st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.dictionaries(NAMES, st.integers())


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, st.integers(), min_size=1), st.booleans(), st.booleans())
def test_ours_win_and_the_rest_stays(
    body: dict[str, object], changes: dict[str, object], escaped: bool, spaced: bool
) -> None:
    written = json.dumps(body, ensure_ascii=escaped, indent=1 if spaced else None).encode() + b" \n" * spaced
    assert json.loads(with_fields(written, changes)) == {**body, **changes}


def test_what_is_not_touched_keeps_its_bytes() -> None:
    assert with_fields(b'{"a" : 1.0,\n"b":[ ]} ', {"c": 1}) == b'{"a" : 1.0,\n"b":[ ],"c":1}'
    assert with_fields(b" { } ", {"c": 1}) == b' { "c":1}'


@pytest.mark.parametrize("name", [b'"priority"', rb'"priorit\u0079"', rb'"\u0070riority"'])
def test_a_name_in_disguise_is_replaced_too(name: bytes) -> None:
    made = with_fields(b'{"prompt":"x",%b:-100}' % name, {"priority": 0})
    assert json.loads(made, object_pairs_hook=list) == [("prompt", "x"), ("priority", 0)]


def test_stream_options_are_kept_beside_ours() -> None:
    written = rb'{"stream":true,"stream\u005foptions":{"chunk":1}}'
    changed = with_fields(written, with_usage_asked(written))
    assert json.loads(changed) == {"stream": True, "stream_options": {"chunk": 1, "include_usage": True}}
    assert with_usage_asked(b'{"stream_options":null}') == {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    "content",
    [
        b'{"model":"m","stream_options":{"a":"\xff"}}',
        b'{"model":"m","stop":"\xff"}',
        b'{"model":"m","\xff":1}',
        b'{"model":"m","nvext":{"\x80":{}}}',
        b'{"model":"m","prompt":"\xed\xa0\x80"}',
    ],
)
def test_a_body_that_is_no_utf8_in_any_of_its_fields_is_refused(content: bytes) -> None:
    assert read_body(content) is None
    assert why_unreadable(content).startswith("the body is not a valid JSON object: 'utf-8' codec can't decode byte")


def test_a_number_that_no_float_holds_keeps_its_bytes_and_is_no_hint() -> None:
    content = (
        b'{"stream_options":{"a":1e4000},"nvext":{"agent_hints":{"osl":1e4000},"agent_context":{"session_id":"s"}}}'
    )
    body = read_body(content)
    assert body is not None
    assert agent_tables(body) == ({}, {"session_id": "s"})
    assert b'"stream_options":{"a":1e4000,"include_usage":true}' in usage_asked(content)


@pytest.mark.parametrize(
    ("fields", "sequences"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": "a", "n": None}, 1),
        ({"prompt": "a", "n": 3}, 3),
        ({"prompt": "a", "n": "3"}, 3),
        ({"prompt": "a", "n": 2, "best_of": 5}, 5),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": [[1, 2], [3]], "n": 2}, 4),
        ({"prompt": [1, 2, 3]}, 1),  # one prompt of token ids
        ({"prompt": []}, 1),
        ({"prompt": "a", "n": 0}, 1),
        ({"prompt": "a", "n": -5}, 1),
        ({"prompt": "a", "n": 10**15}, 16_384),
    ],
)
def test_sequences_are_counted(fields: dict[str, object], sequences: int) -> None:
    body = read_body(json.dumps({"model": "m", **fields}).encode(), COMPLETIONS)
    assert body is not None
    assert body.sequences(prompts_in(body.prompt_bytes, COMPLETIONS)) == sequences


@pytest.mark.parametrize(
    ("bound", "counts"), [(0, 1), (1, 1), ("7", 7), (-1, None), (None, None), (10**15, 100_000_000)]
)
def test_an_output_bound_of_0_is_the_tightest(bound: object, counts: int | None) -> None:
    body = read_body(json.dumps({"model": "m", "prompt": "a", "max_tokens": bound}).encode(), COMPLETIONS)
    assert body is not None
    assert body.output_tokens_max == counts
