"""Token usage is read from a stream however it is cut, and only the usage chunk is taken out."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.openai.usage import JsonUsageReader, StreamUsageReader, Usage

EVENTS = [
    b'data: {"choices":[{"text":"a \\"usage\\": no"}]}\n\n',
    b": a comment\n\n",
    b'data: {"choices":[{"text":"b"}],"usage":null}\n\n',
    b'data: {"choices":[{"text":"c"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n',
    b'data: not json "usage": {\n\n',
    b"event: x\r\ndata: {}\r\n\r\n",
]


TOLD = b'{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}'


LAST = b'data: {"choices":[],"usage":' + TOLD + b"}\n\n"


DONE = b"data: [DONE]\n\n"


@given(st.lists(st.sampled_from(EVENTS), max_size=6), st.lists(st.integers(0, 2_000), max_size=10), st.booleans())
def test_only_the_usage_chunk_is_taken_out_however_the_stream_is_cut(
    events: list[bytes], cuts: list[int], hide: bool
) -> None:
    stream = b"".join(events) + LAST + DONE
    places = sorted({cut % (len(stream) + 1) for cut in cuts} | {0, len(stream)})
    watch = StreamUsageReader(hide_usage=hide)
    pieces = [stream[a:b] for a, b in pairwise(places)]
    passed = b"".join(watch.pass_on(piece) for piece in pieces) + watch.rest()
    assert passed == b"".join(events) + (b"" if hide else LAST) + DONE
    assert watch.usage == Usage(3, 4, 2)


def test_an_event_without_end_is_not_kept_for_ever() -> None:
    watch = StreamUsageReader(hide_usage=True)
    passed = sum(len(watch.pass_on(b'"usage":' + b"x" * 100_000)) for _ in range(20))
    assert passed + len(watch.rest()) == 20 * 100_008
    assert passed > 10 * 100_008


def test_json_usage_is_read_at_the_end_unless_too_long() -> None:
    watch = JsonUsageReader()
    body = json.dumps({"choices": [1], "usage": {"prompt_tokens": 5, "completion_tokens": 6}}).encode()
    assert watch.pass_on(body[:10]) + watch.pass_on(body[10:]) + watch.rest() == body
    assert watch.usage == Usage(5, 6, 0)
    long = JsonUsageReader()
    for _ in range(50):
        long.pass_on(b"x" * 100_000)
    long.rest()
    assert long.usage is None
    assert not long._pieces
