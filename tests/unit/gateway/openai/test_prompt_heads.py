"""What stands before the messages belongs to the prompt: tools, `system`, `instructions`; and calls of tools do too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from headway.gateway.openai.endpoints import CHAT, COUNT_TOKENS, MESSAGES, RESPONSES, Endpoint
from headway.gateway.openai.large_body import LargeBody
from headway.gateway.openai.prompt_count import PromptCount
from headway.gateway.openai.request_body import Body, read_body
from headway.gateway.openai.token_ratio import TokenRatio

TOOL = {"type": "function", "name": "look", "description": "looks things up", "parameters": {}}
SAID = [{"role": "user", "content": "one two three"}]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> PromptCount:
    """Counts words and signs: each is a token."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizer.save(str(file))
    return PromptCount({"m": str(file)}, TokenRatio())


def body_of(endpoint: Endpoint, **fields: Any) -> Body:
    body = read_body(json.dumps({"model": "m", **fields}).encode(), endpoint)
    assert body is not None
    return body


def counted(count: PromptCount, body: Body) -> tuple[int, int]:
    facts = count.read(body)
    found = count.at_once(body, facts, facts.bytes)[1]
    assert found is not None
    return found.tokens, found.messages


@pytest.mark.parametrize(
    ("endpoint", "fields", "tokens", "messages"),
    [
        (CHAT, {"messages": SAID}, 3, 1),
        (MESSAGES, {"messages": SAID, "system": "four five"}, 5, 1),
        (MESSAGES, {"messages": SAID, "system": [{"type": "text", "text": "four five"}]}, 5, 1),
        (COUNT_TOKENS, {"messages": SAID, "system": "four five"}, 5, 1),
        (RESPONSES, {"input": "one two three", "instructions": "four five"}, 5, 1),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "c", "output": "a b"}]}, 2, 1),
        (RESPONSES, {"input": [{"type": "function_call", "name": "f", "arguments": "a b"}]}, 2, 1),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "a b"}}]}]}, 2, 1),
        (MESSAGES, {"messages": [{"content": [{"type": "tool_result", "content": "a b"}]}]}, 2, 1),
        (MESSAGES, {"messages": [{"content": [{"type": "tool_result", "content": [{"text": "a b"}]}]}]}, 2, 1),
        (MESSAGES, {"messages": [{"content": [{"type": "tool_use", "input": {"a": 1}}]}]}, 7, 1),  # { " a " : 1 }
        (MESSAGES, {"messages": [{"content": [{"type": "thinking", "thinking": "a b"}]}]}, 2, 1),
    ],
)
def test_every_text_of_a_prompt_is_counted(
    words: PromptCount, endpoint: Endpoint, fields: dict[str, Any], tokens: int, messages: int
) -> None:
    found = counted(words, body_of(endpoint, **fields))
    assert found[1] == messages
    assert abs(found[0] - tokens) <= 2  # neighbouring signs are one token of this tokenizer
    assert found[0] >= min(tokens, 2)


@pytest.mark.parametrize("endpoint", [CHAT, MESSAGES, RESPONSES])
def test_tools_and_the_rest_before_the_messages_are_part_of_size_and_prefix(endpoint: Endpoint) -> None:
    count = PromptCount({}, TokenRatio())
    long = {name: [{"role": "user", "content": "x" * 9_000}] for name in endpoint.prompt_fields}
    bare, tooled = (body_of(endpoint, **long, **more) for more in ({}, {"tools": [TOOL]}))
    assert count.read(tooled).bytes == count.read(bare).bytes + len(json.dumps([TOOL]))
    assert count.read(tooled).hashes[0] != count.read(bare).hashes[0]
    assert "tools" in tooled.raw_fields  # freed with the body


def test_a_large_body_is_read_the_same_and_its_tools_are_no_values_beside_the_prompt() -> None:
    count = PromptCount({}, TokenRatio())
    fields = {"model": "m", "messages": SAID, "system": "x" * 200_000, "tools": [{"a": [0] * 30_000}]}
    content = json.dumps(fields).encode()
    large = LargeBody(content, MESSAGES, 100_000)
    for _ in large.steps(count):
        pass
    assert large.fault is None
    small = read_body(content, MESSAGES)
    assert small is not None
    assert large.prompt == count.read(small)
