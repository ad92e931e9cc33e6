"""Answers are read however they are cut: usage in every spelling, and whether they are whole."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.openai.answer_readers import JsonReader, SequencesReader, StreamReader
from headway.gateway.openai.endpoints import CHAT, MESSAGES, RESPONSES
from headway.gateway.openai.usage import Usage

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
    watch = StreamReader(hide_usage=hide)
    pieces = [stream[a:b] for a, b in pairwise(places)]
    passed = b"".join(watch.pass_on(piece) for piece in pieces) + watch.rest()
    assert passed == b"".join(events) + (b"" if hide else LAST) + DONE
    assert watch.usage == Usage(3, 4, 2)


def test_an_event_without_end_is_not_kept_for_ever() -> None:
    watch = StreamReader(hide_usage=True)
    passed = sum(len(watch.pass_on(b'"usage":' + b"x" * 100_000)) for _ in range(20))
    assert passed + len(watch.rest()) == 20 * 100_008
    assert passed > 10 * 100_008


def test_json_usage_is_read_at_the_end_unless_too_long() -> None:
    watch = JsonReader()
    body = json.dumps({"choices": [1], "usage": {"prompt_tokens": 5, "completion_tokens": 6}}).encode()
    assert watch.pass_on(body[:10]) + watch.pass_on(body[10:]) + watch.rest() == body
    assert watch.usage == Usage(5, 6, 0)
    long = JsonReader()
    for _ in range(50):
        long.pass_on(b"x" * 100_000)
    long.rest()
    assert long.usage is None
    assert not long._pieces


SPELLINGS = {
    "blanks": b'data: {"choices" : [ ] , "usage" : {"prompt_tokens" : 3 , "completion_tokens" : 4}}\n\n',
    "no blank after the colon": b'data:{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
    "no choices": b'data: {"id":"c","usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
    "null choices": b'data: {"choices":null,"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
    "floats": b'data: {"choices":[],"usage":{"prompt_tokens":3.0,"completion_tokens":4.0}}\n\n',
    "null error": b'data: {"choices":[],"error":null,"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
    "CRLF": b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\r\n\r\n',
    "CR": b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\r\r',
    "several lines": b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
}


@pytest.mark.parametrize("chunk", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("first", [b"", b'data: {"choices":[{"text":"' + b"x" * 1_500_000 + b'"}]}\n\n'])
@pytest.mark.parametrize("size", [7, 65_536])
def test_usage_is_hidden_and_read_in_every_spelling(chunk: bytes, first: bytes, size: int) -> None:
    stream = first + chunk + DONE
    if size < 100 and first:
        return  # the same with larger pieces
    reader = StreamReader(hide_usage=True)
    passed = b"".join(reader.pass_on(stream[at : at + size]) for at in range(0, len(stream), size)) + reader.rest()
    assert passed.replace(b"\n\n", b"") == (first + DONE).replace(b"\n\n", b"")
    assert reader.usage == Usage(3, 4, 0)
    assert reader.fault(CHAT.stream_end) is None


@pytest.mark.parametrize("count", [b"1e300", b"9" * 400, b"-1e5", b"true", b'"many"', b"[]", b"{}", b"1e9"])
def test_a_count_beyond_all_bounds_is_none(count: bytes) -> None:
    content = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":' + count + b"}}"
    whole = JsonReader()
    whole.pass_on(content)
    whole.rest()
    assert whole.usage is None or whole.usage == Usage(3, 0, 0)
    stream = StreamReader(hide_usage=True)
    stream.pass_on(b"data: " + content + b"\n\n")
    assert stream.usage == whole.usage


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=5),
    st.lists(st.integers(0, 5_000), max_size=10),
    st.randoms(use_true_random=False),
)
def test_tokens_of_the_longest_of_several_sequences_however_the_stream_is_cut(
    lengths: list[int], cuts: list[int], chance: Random
) -> None:
    """In lockstep, in any order within a step; a text that quotes a finish reason ends nothing."""
    steps: list[bytes] = []
    for step in range(1, max(lengths) + 1):
        running = [index for index, length in enumerate(lengths) if step <= length]
        chance.shuffle(running)
        events = [
            b'data: {"choices":[{"index":%d,"text":"\\"finish_reason\\": \\"stop\\"","finish_reason":%b}]}\n\n'
            % (index, b'"length"' if step == lengths[index] else b"null")
            for index in running
        ]
        steps.append(b"".join(events))
    reader = SequencesReader(len(lengths), hide_usage=False)
    stream, ends = b"".join(steps), {sum(map(len, steps[: number + 1])): number + 1 for number in range(len(steps))}
    packets = chance.sample(sorted(ends), chance.randint(1, len(ends)))
    for begin, end in pairwise(sorted({cut % len(stream) for cut in cuts} | {0, *packets, len(stream)})):
        assert reader.pass_on(stream[begin:end]) is not None
        if end in ends:
            assert reader.sequence_tokens == ends[end]
    assert reader.events == sum(lengths)


def test_an_end_of_an_event_that_is_cut_in_two_is_counted() -> None:
    event = b'data: {"choices":[{"index":0,"text":"a","finish_reason":"length"}]}\n\n'
    reader = SequencesReader(4, hide_usage=False)
    for piece in (event[:-1], b"\n" + event, event * 2):
        reader.pass_on(piece)
    assert (reader.sequence_tokens, reader.events) == (1, 4)


TOKEN = b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'
ENDED = b'data: {"choices":[{"text":"","finish_reason":"length"}]}\n\n'
ENGINE_DIED = b'data: {"error":{"message":"the engine died","type":"InternalServerError","code":500}}\n\n'
GOOD_ENDS = {
    "[DONE]": TOKEN + DONE,
    "finish reason": TOKEN + ENDED,
    "finish reason, usage": TOKEN + ENDED + LAST,
    "finish reason, usage, [DONE]": TOKEN + ENDED + LAST + DONE,
    "finish reason, a comment": TOKEN + ENDED + b": ping\n\n",
    "the last event without its end": TOKEN + DONE.rstrip(),
    "[DONE], lines ended by CR LF": (TOKEN + DONE).replace(b"\n", b"\r\n"),
    "[DONE], lines ended by CR": (TOKEN + DONE).replace(b"\n", b"\r"),
    "words about errors": b'data: {"choices":[{"text":"\\"error\\": {\\"error\\""}]}\n\n' + DONE,
    "a null error": b'data: {"error":null,"choices":[{"text":"a"}]}\n\n' + DONE,
}
BAD_ENDS = {
    "a token": (TOKEN, True, True),
    "nothing": (b"", True, True),
    "half an event": (TOKEN + ENDED[:-20], True, True),
    "usage": (TOKEN + LAST, True, True),
    "an error": (TOKEN + ENGINE_DIED, False, True),
    "an error, [DONE]": (TOKEN + ENGINE_DIED + DONE, False, True),
    "an error, many tokens, [DONE]": (TOKEN * 3 + ENGINE_DIED + TOKEN * 50 + ENDED + DONE, False, True),
    "an error at the start": (ENGINE_DIED + TOKEN * 50 + DONE, False, True),
    "an error event of several lines": (TOKEN + b"event: error\n" + ENGINE_DIED + TOKEN * 9 + DONE, False, True),
    "an error as old vLLM wrote it": (
        TOKEN + b'data: {"object":"error","error":"died"}\n\n' + TOKEN * 9 + DONE,
        False,
        True,
    ),
    "an error, usage, [DONE]": (TOKEN + ENGINE_DIED + LAST + DONE, False, True),
    "an error with a usage": (
        b'data: {"error":"died","usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n' + DONE,
        False,
        True,
    ),
    "an error of the request": (b'data: {"error":{"message":"too long","code":400}}\n\n' + DONE, False, False),
    "finish reason error": (TOKEN + ENDED.replace(b"length", b"error") + DONE, False, True),
    "finish reason abort": (TOKEN + ENDED.replace(b"length", b"abort") + DONE, False, True),
}


def streamed(stream: bytes, size: int) -> tuple[bytes, StreamReader]:
    reader = StreamReader(hide_usage=False)
    return b"".join(
        [*(reader.pass_on(stream[at : at + size]) for at in range(0, len(stream), size)), reader.rest()]
    ), reader


@pytest.mark.parametrize("stream", GOOD_ENDS.values(), ids=GOOD_ENDS.keys())
@pytest.mark.parametrize("size", [1, 9, 10_000])
def test_a_stream_with_a_mark_of_its_end_is_whole(stream: bytes, size: int) -> None:
    passed, reader = streamed(stream, size)
    assert passed == stream
    assert reader.fault(CHAT.stream_end) is None


@pytest.mark.parametrize(("stream", "is_cut", "is_of_replica"), BAD_ENDS.values(), ids=BAD_ENDS.keys())
@pytest.mark.parametrize("size", [1, 9, 10_000])
def test_a_stream_that_stops_or_holds_an_error_is_no_success(
    stream: bytes, is_cut: bool, is_of_replica: bool, size: int
) -> None:
    passed, reader = streamed(stream, size)
    assert passed == stream
    fault = reader.fault(CHAT.stream_end)
    assert fault is not None
    assert (fault.is_cut, fault.is_of_replica) == (is_cut, is_of_replica)


def test_of_a_crowd_of_events_in_one_packet_the_last_are_read_and_an_error_wherever_it_stands() -> None:
    early, late = ENGINE_DIED, LAST
    stream = TOKEN + early + b'data: {"usage":null}\n\n' * 5_000 + ENDED + late + DONE
    reader = StreamReader(hide_usage=True)
    assert reader.pass_on(stream) == stream.replace(late, b"")
    assert reader.usage is not None
    fault = reader.fault(CHAT.stream_end)
    assert fault is not None
    assert "the engine died" in fault.why


@pytest.mark.parametrize("crowd", [b'data: {"error":null}\n\n', b'data: {"usage":null}\n\n', b"data: {}\n\n"])
@pytest.mark.parametrize("before", [0, 3, 4_990, 5_000])
def test_a_crowd_hides_no_error_at_either_end_of_its_packet(crowd: bytes, before: int) -> None:
    stream = crowd * before + ENGINE_DIED + crowd * (5_000 - before) + ENDED + LAST + DONE
    reader = StreamReader(hide_usage=True)
    assert reader.pass_on(stream) == stream.replace(LAST, b"")
    assert reader.events == 5_000 + 3
    assert reader.usage == Usage(3, 4, 2)
    fault = reader.fault(CHAT.stream_end)
    assert fault is not None
    assert "the engine died" in fault.why


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b"\r"])
def test_many_blank_lines_end_one_event(blank: bytes) -> None:
    reader = StreamReader(hide_usage=True)
    stream = b"data: {}" + blank * 100_000 + b"data: {}" + blank * 2
    assert reader.pass_on(b"d") + reader.pass_on(stream[1:]) + reader.rest() == stream
    assert reader.events == 2


def test_an_error_counts_wherever_it_stands_when_each_event_comes_alone() -> None:
    for before in (0, 1, 7):
        reader = StreamReader(hide_usage=True)
        for event_alone in [TOKEN] * before + [ENGINE_DIED] + [TOKEN] * 7 + [ENDED, DONE]:
            assert reader.pass_on(event_alone) == event_alone
        fault = reader.fault(CHAT.stream_end)
        assert fault is not None
        assert "the engine died" in fault.why


@pytest.mark.parametrize(
    ("content", "may_be_cut", "is_fault"),
    [
        (b'{"choices":[{"text":"a"}]}', True, False),
        (b'{"choices":[{"te', True, True),
        (b"", True, True),
        (b'{"choices":[{"te', False, False),  # its announced length came
        (b'{"error":{"message":"died"}}', False, True),
        (b'{"error":null,"choices":[]}', False, False),
    ],
)
def test_a_json_answer_that_stops_or_holds_an_error_is_no_success(
    content: bytes, may_be_cut: bool, is_fault: bool
) -> None:
    reader = JsonReader(may_be_cut=may_be_cut)
    reader.pass_on(content)
    reader.rest()
    assert (reader.fault(CHAT.stream_end) is not None) is is_fault


def event(**content: object) -> bytes:
    return b"event: x\ndata: " + json.dumps(content).encode() + b"\n\n"


def test_messages_count_the_prompt_at_the_start_and_the_output_at_the_end() -> None:
    counts = {"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 1}
    stream = event(type="message_start", message={"usage": counts}) + event(type="content_block_delta")
    stream += event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9})
    reader = StreamReader(hide_usage=False, fields=MESSAGES.usage)
    assert reader.pass_on(stream) == stream
    assert reader.usage == Usage(25, 9, 20)
    cut = reader.fault(MESSAGES.stream_end)
    assert cut is not None
    assert cut.is_cut
    assert reader.pass_on(event(type="message_stop"))
    assert reader.fault(MESSAGES.stream_end) is None
    failed = StreamReader(hide_usage=False, fields=MESSAGES.usage)
    failed.pass_on(event(type="error", error={"type": "overloaded_error", "message": "busy"}))
    fault = failed.fault(MESSAGES.stream_end)
    assert fault is not None
    assert "busy" in fault.why


def test_responses_end_with_an_event_that_holds_the_answer() -> None:
    done = {"usage": {"input_tokens": 5, "output_tokens": 9, "input_tokens_details": {"cached_tokens": 2}}}
    reader = StreamReader(hide_usage=False, fields=RESPONSES.usage)
    reader.pass_on(event(type="response.created", response={"error": None, "usage": None}))
    reader.pass_on(event(type="response.completed", response={"error": None, **done}))
    assert reader.usage == Usage(5, 9, 2)
    assert reader.fault(RESPONSES.stream_end) is None
    failed = StreamReader(hide_usage=False, fields=RESPONSES.usage)
    failed.pass_on(event(type="response.failed", response={"error": {"message": "died"}, "usage": None}))
    fault = failed.fault(RESPONSES.stream_end)
    assert fault is not None
    assert not fault.is_cut
