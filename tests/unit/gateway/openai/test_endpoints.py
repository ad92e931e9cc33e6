"""A row of the table of endpoints says where a body and an answer hold what is read."""

from __future__ import annotations

import pytest

from headway.gateway.openai.answer_readers import JsonReader, StreamReader
from headway.gateway.openai.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, UNLISTED, Endpoint, endpoint_of
from headway.gateway.openai.prompt_count import PromptCount
from headway.gateway.openai.request_body import agent_tables, read_body
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.openai.usage import Usage, UsageFields
from tests.support.gateway_requests import counted_at_once

OWN_USAGE = UsageFields("input_tokens", "output_tokens", "input_tokens_details", stream_envelope="response")
OWN = Endpoint(
    kind="generation",
    prompt_fields=("input",),
    output_bound_fields=("max_output_tokens",),
    agent_field="agent",
    usage=OWN_USAGE,
)


@pytest.mark.parametrize(
    ("path", "row", "is_generation"),
    [
        ("/v1/chat/completions", CHAT, True),
        ("/v1/completions", COMPLETIONS, True),
        ("/v1/embeddings", EMBEDDINGS, False),
        ("/v1/audio/speech", UNLISTED, False),
        ("/v1/completions/", UNLISTED, False),
    ],
)
def test_every_path_has_a_row(path: str, row: Endpoint, is_generation: bool) -> None:
    assert endpoint_of(path) is row
    assert row.is_generation is is_generation


def test_a_row_says_where_the_body_holds_what_is_read() -> None:
    content = b'{"input":[1, 2,3],"prompt":"x","max_output_tokens":9,"max_tokens":5,"agent":{"agent_hints":{"osl":4}}}'
    own, chat = read_body(content, OWN), read_body(content, CHAT)
    assert own is not None
    assert (own.prompt_bytes, own.output_tokens_max, agent_tables(own)[0]) == (b"[1, 2,3]", 9, {"osl": 4})
    assert counted_at_once(PromptCount({}, TokenRatio()), own, len(content))[0] == 3
    assert chat is not None
    assert (chat.prompt_bytes, chat.output_tokens_max, agent_tables(chat)[0]) == (b"", 5, {})
    assert read_body(b'{"max_output_tokens":"many"}', OWN) is None
    assert read_body(b'{"max_output_tokens":"many"}', CHAT) is not None


def test_a_row_says_where_the_answer_holds_its_usage() -> None:
    counts = b'{"input_tokens":7,"output_tokens":3,"input_tokens_details":{"cached_tokens":2}}'
    whole = JsonReader(OWN_USAGE)
    whole.pass_on(b'{"usage":' + counts + b"}")
    whole.rest()
    assert whole.usage == Usage(7, 3, 2)
    stream = StreamReader(hide_usage=False, fields=OWN_USAGE)
    for event in (
        b'data: {"type":"response.created","response":{"usage":null}}\n\n',
        b'data: {"type":"response.output_text.delta","delta":"hi"}\n\n',
        b'data: {"type":"response.completed","response":{"usage":' + counts + b"}}\n\n",
    ):
        assert stream.pass_on(event) == event
    assert (stream.usage, stream.events) == (Usage(7, 3, 2), 3)
