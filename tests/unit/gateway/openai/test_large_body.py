"""A large body is read in steps as a small one is read at once, and refused where one step would be long."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from headway.gateway.openai.endpoints import CHAT, COMPLETIONS, Endpoint
from headway.gateway.openai.large_body import LargeBody, written_in_parts
from headway.gateway.openai.prompt_count import NO_PROMPT, PromptCount
from headway.gateway.openai.request_body import LARGE_BYTES, read_body, slices, with_fields, with_usage_asked
from headway.gateway.openai.token_ratio import TokenRatio

COUNT = PromptCount({}, TokenRatio(), 700)
VALUES_MAX = 40_000
LONG = "word, é " * (LARGE_BYTES // 8)


def read(content: bytes, endpoint: Endpoint = COMPLETIONS, values_max: int = 10**9) -> tuple[LargeBody, int]:
    large = LargeBody(content, endpoint, values_max)
    return large, sum(1 for _ in large.steps(COUNT))


FIELDS: list[tuple[Endpoint, dict[str, Any]]] = [
    (COMPLETIONS, {"model": "m", "prompt": LONG}),
    (COMPLETIONS, {"odd": LONG}),
    (COMPLETIONS, {"model": "m", "prompt": [[1] * 50_000, [2] * 50_000], "n": 2}),
    (COMPLETIONS, {"model": "m", "prompt": [5] * LARGE_BYTES, "stream": True}),
    (COMPLETIONS, {"stream_options": {"x": 1}, "stream": True, "prompt": LONG, "priority": 3, "max_tokens": 7}),
    (COMPLETIONS, {"stream_options": None, "prompt": LONG, "vllm_xargs": {"a": LONG}}),
    (COMPLETIONS, {"model": "m", "prompt": [LONG, LONG, "a"]}),
    (CHAT, {"model": "m", "messages": [{"role": "user", "content": LONG}] * 3, "tools": [LONG]}),
    (CHAT, {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + LONG}}]}]}),
]


@pytest.mark.parametrize(("endpoint", "fields"), FIELDS)
@pytest.mark.parametrize("dump", [json.dumps, lambda fields: json.dumps(fields, ensure_ascii=False) + " \n"])
def test_it_is_read_and_written_as_a_small_one(
    endpoint: Endpoint, fields: dict[str, Any], dump: Callable[[object], str]
) -> None:
    content = dump(fields).encode()
    assert len(content) > LARGE_BYTES
    large, _ = read(content, endpoint)
    small = read_body(content, endpoint)
    assert large.fault is None
    assert large.body is not None
    assert small is not None
    assert {name: bytes(getattr(large.body, name)) for name in small.raw_fields} == {
        name: bytes(getattr(small, name)) for name in small.raw_fields
    }
    assert (large.body.model, large.body.stream, large.body.n) == (small.model, small.stream, small.n)
    assert large.prompt == COUNT.read(small)
    for changes in (
        {"priority": 5},
        {"vllm_xargs": {"b": 1}},
        {"priority": 5, "stream_options": {"include_usage": True}},
    ):
        parts = written_in_parts(content, large.body, changes)
        ours = changes | (with_usage_asked(content) if "stream_options" in changes else {})
        written = b"".join(parts)
        assert json.loads(written) == json.loads(with_fields(content, ours))
        pairs = json.loads(written, object_pairs_hook=list)
        assert len({name for name, _ in pairs}) == len(pairs), "no field may be there twice"


def test_an_object_without_fields_gets_ours() -> None:
    content = b"{" + b" " * LARGE_BYTES + b"}"
    body = read(content)[0].body
    assert body is not None
    assert json.loads(b"".join(written_in_parts(content, body, {"priority": 5}))) == {"priority": 5}


def test_the_long_part_of_what_is_written_is_not_copied() -> None:
    content = json.dumps({"prompt": LONG, "priority": 1}).encode()
    body = read(content)[0].body
    assert body is not None
    for changes in ({"priority": 2}, {"stream_options": {}}):
        copied = [part for part in written_in_parts(content, body, changes) if isinstance(part, bytes)]
        assert sum(map(len, copied)) < 100


REFUSED: dict[str, tuple[bytes, int, str]] = {
    "many small keys": (b"{" + b'"a":1,' * 100_000 + b'"prompt":"x"}', 413, "more than 40,000 values"),
    "many small keys in an odd body": (b'{"n":"x",' + b'"a":1,' * 19_000 + b'"b":"' + b"x" * LARGE_BYTES, 413, "2,000"),
    "many keys beside the prompt": (
        b"{" + b'"a":1,' * 1_500 + b'"prompt":"' + b"x" * LARGE_BYTES + b'"}',
        413,
        "more than 2,000 values beside its prompt",
    ),
    "many token ids": (b'{"prompt":[' + b"1," * 100_000 + b"1]}", 413, "more than 40,000 values"),
    "many messages": (b'{"messages":[' + b'{"content":[]},' * 20_000 + b"{}]}", 413, "values"),
    "no UTF-8 at the end": (b'{"prompt":"' + b"x" * 2_000_000 + b'\xff"}', 400, "can't decode byte 0xff"),
    "half a letter at the end of a slice": (
        b'{"prompt":"' + b"x" * ((1 << 20) - 12) + b'\xc3xx"}',
        400,
        "can't decode",
    ),
    "half a letter at the end": (b'{"prompt":"' + b"x" * (1 << 20) + b"\xc3", 400, "unexpected end of data"),
    "nested deeply": (b'{"prompt":' + b"[" * 200_000, 413, "values"),
    "cut off": (b'{"prompt":"' + b"x" * LARGE_BYTES, 400, "truncated"),
    "blanks": (b'{"prompt":' + b" " * 400_000 + b'"x"}', 413, "values"),
    "blanks before the brace": (b" " * (2 * LARGE_BYTES) + b"{" + b'"a":1,' * 100_000, 413, "values"),
}


@pytest.mark.parametrize(("content", "status", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_take_long_is_refused_with_a_sentence(content: bytes, status: int, why: str) -> None:
    assert len(content) > LARGE_BYTES
    fault = read(content, values_max=VALUES_MAX)[0].fault
    assert fault is not None
    assert fault[0] == status
    assert why in fault[1]


def test_a_letter_may_lie_across_two_slices() -> None:
    content = b'{"prompt":"' + b"x" * ((1 << 20) - 12) + "é€😀".encode() * 400_000 + b'"}'
    large, steps = read(content)
    assert large.fault is None
    assert steps > 2 * len(content) >> 20, "at most a megabyte is looked at in a step"


@pytest.mark.parametrize("content", [b"--x\r\n" + b"{,:" * 100_000, b"[" + b"{}," * 100_000 + b"1]", b"\xff" * 200_000])
def test_what_is_no_object_is_not_read(content: bytes) -> None:
    large, steps = read(content, values_max=VALUES_MAX)
    assert (large.body, large.prompt, large.fault, steps) == (None, NO_PROMPT, None, 0)


def test_slices_are_the_whole() -> None:
    content = bytes(range(256)) * 10
    assert b"".join(slices(content, 100)) == content
    assert max(map(len, slices(content, 100))) == 100
