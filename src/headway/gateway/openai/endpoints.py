"""Endpoints of the OpenAI API, one row per HTTP path: what it is, and where its body and its answer hold what we read.

A new endpoint is a new row. The same on every path: the model, `stream`, `n` and `priority` stand in fields of these
names, and a session may be named by a header (`client_hints.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from headway.gateway.openai.usage import COMPLETION_USAGE, MESSAGES_USAGE, RESPONSES_USAGE, UsageFields

_DONE = re.compile(rb"^data:[ \t]*\[DONE\]", re.MULTILINE)
_FINISHED = re.compile(rb'^data:[ \t]*\[DONE\]|"finish_reason"\s*:\s*(?!null)\S', re.MULTILINE)
_MESSAGE_STOPPED = re.compile(rb'"message_stop"')
_RESPONSE_ENDED = re.compile(rb'"response\.(?:completed|incomplete|failed)"')


_TIERS = {name: name for name in ("auto", "default", "flex", "batch", "priority")}


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """One path of the API. The shape of its errors is in `error_shapes.py`.

    Attributes:
        kind: "generation" produces output tokens; each kind has queues of its own.
        span_name: of its OpenTelemetry span, an operation name of the GenAI conventions where they have one.
        prompt_fields: body fields that may hold the prompt; the first that is there is read.
        prompt_head_fields: body fields that belong to the prompt and stand before it in chat templates, in that order.
        output_bound_fields: body fields that may bound the output tokens; the first that is set counts.
        agent_field: body field with Dynamo's tables: session, priority and expected output tokens.
        needs_json: a POST whose body is no readable JSON object is answered with 400.
        usage: names of the token counts in its answer.
        usage_on_request: a stream ends with its usage only if `stream_options.include_usage` asks for it.
        takes_prompts: its prompt may be a list of prompts, each with an answer of its own.
        takes_engine_hints: Headway's vLLM plug-in reads its hints in `vllm_xargs`.
        service_tiers: values of the body's `service_tier` -> the tier here; empty where its API has none.
        stream_end: what is found in the last events of a stream that is whole; a generation path has one.
        last_event: what only the last event of a stream holds; a finish reason may be that of one of several choices.
        is_generation: whether its answer is output tokens.
    """

    kind: Literal["generation", "other"] = "other"
    span_name: str = "other"
    prompt_fields: tuple[str, ...] = ("messages", "prompt", "input")
    prompt_head_fields: tuple[str, ...] = ()
    output_bound_fields: tuple[str, ...] = ("max_completion_tokens", "max_tokens")
    agent_field: str = "nvext"
    needs_json: bool = False
    usage: UsageFields = COMPLETION_USAGE
    usage_on_request: bool = False
    takes_prompts: bool = False
    takes_engine_hints: bool = False
    service_tiers: Mapping[str, str] = field(default_factory=dict)
    stream_end: re.Pattern[bytes] = _FINISHED
    last_event: re.Pattern[bytes] = _DONE
    is_generation: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_generation", self.kind == "generation")


CHAT = Endpoint(
    kind="generation",
    span_name="chat",
    prompt_fields=("messages",),
    prompt_head_fields=("tools",),
    service_tiers=_TIERS,
    needs_json=True,
    usage_on_request=True,
    takes_engine_hints=True,
)
COMPLETIONS = Endpoint(
    kind="generation",
    span_name="text_completion",
    prompt_fields=("prompt",),
    service_tiers=_TIERS,
    needs_json=True,
    takes_prompts=True,
    usage_on_request=True,
    takes_engine_hints=True,
)
EMBEDDINGS = Endpoint(
    span_name="embeddings", prompt_fields=("messages", "input"), output_bound_fields=(), needs_json=True
)
RESPONSES = Endpoint(
    kind="generation",
    span_name="chat",
    prompt_fields=("input",),
    prompt_head_fields=("tools", "instructions"),
    output_bound_fields=("max_output_tokens",),
    service_tiers=_TIERS,
    needs_json=True,
    usage=RESPONSES_USAGE,
    takes_engine_hints=True,
    stream_end=_RESPONSE_ENDED,
    last_event=_RESPONSE_ENDED,
)
MESSAGES = Endpoint(
    kind="generation",
    span_name="chat",
    prompt_fields=("messages",),
    prompt_head_fields=("tools", "system"),
    output_bound_fields=("max_tokens",),
    service_tiers={"auto": "auto", "standard_only": "default"},
    needs_json=True,
    usage=MESSAGES_USAGE,
    takes_engine_hints=True,
    stream_end=_MESSAGE_STOPPED,
    last_event=_MESSAGE_STOPPED,
)
COUNT_TOKENS = Endpoint(
    prompt_fields=MESSAGES.prompt_fields,
    prompt_head_fields=MESSAGES.prompt_head_fields,
    output_bound_fields=(),
    needs_json=True,
    usage=MESSAGES_USAGE,
)
UNLISTED = Endpoint()
"""Every other path: forwarded as it came, and read by the usual names where its body is JSON."""

ENDPOINTS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/responses": RESPONSES,  # of the same vendor, newer
    "/v1/messages": MESSAGES,  # Anthropic's API, which vLLM and SGLang serve too
    "/v1/messages/count_tokens": COUNT_TOKENS,
}


def endpoint_of(path: str) -> Endpoint:
    """The row of a path."""
    return ENDPOINTS.get(path, UNLISTED)
