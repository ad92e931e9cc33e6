"""Files of OpenAI's API: a batch's input and output, and dumped responses of chat, completions and Responses.

Seen: the types of the package openai 3.52 and the page of the Batch API.
"""

from __future__ import annotations

from collections.abc import Iterator

from headway.bench.traces.column_map import ColumnMap
from headway.bench.traces.request_logs import Entry, Record, RequestLog, either
from headway.bench.traces.values import Fault, shown

CHARACTERS_PER_TOKEN = 4  # of English text, by OpenAI's own rule of thumb; only where nothing was counted
_BOUNDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def _of_response(record: Record) -> Iterator[Entry]:
    yield {
        **record,
        "created": either(record, "created", "created_at"),
        "usage.prompt_tokens": either(record, "usage.prompt_tokens", "usage.input_tokens"),
        "usage.completion_tokens": either(record, "usage.completion_tokens", "usage.output_tokens"),
    }


def _of_batch_output(record: Record) -> Iterator[Entry]:
    if record.get("error") is not None:
        yield "the request of the batch failed: it has an `error`"
        return
    response = record.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    if not isinstance(response, dict) or not isinstance(body, dict):
        raise Fault("`response.body` must be an object", shown(response))
    if response.get("status_code") != 200:
        yield f"`response.status_code` is {shown(response.get('status_code'))}"
        return
    yield from _of_response(body)


def _of_batch_input(record: Record) -> Iterator[Entry]:
    body = record.get("body")
    if not isinstance(body, dict):
        raise Fault("`body` must be an object", shown(body))
    url = str(record.get("url"))
    if "embedding" in url or "moderation" in url:
        yield f"`url` is {shown(url)}"
        return
    characters = sum(map(_characters, (body.get(name) for name in ("messages", "prompt", "input", "instructions"))))
    bound = either(body, *_BOUNDS)
    yield {
        "arrival": 0,
        "characters ÷ 4": max(1, round(characters / CHARACTERS_PER_TOKEN)),
        "max_tokens": bound,
        "bound": bound,
    }


def _characters(value: object) -> int:
    """Characters of the text in a prompt, not of pictures and roles."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(_characters, value))
    if isinstance(value, dict):
        return _characters(value.get("content")) + _characters(value.get("text"))
    return 0


_RESPONSE = ColumnMap(
    {"arrival": "created", "prompt": "usage.prompt_tokens", "output": "usage.completion_tokens"}, {"arrival": 1.0}
)
_CREATED = "a response tells its arrival in whole seconds (`created`), and no time of its first token or end"

LOGS = (
    RequestLog(
        "OpenAI batch output",
        (frozenset({"custom_id", "response"}),),
        _RESPONSE,
        _of_batch_output,
        (_CREATED,),
    ),
    RequestLog(
        "OpenAI batch input",
        (frozenset({"custom_id", "body", "url"}),),
        ColumnMap(
            {"arrival": "arrival", "prompt": "characters ÷ 4", "output": "max_tokens", "max_output": "bound"},
            {"arrival": 1.0},
        ),
        _of_batch_input,
        (
            "a batch's input has no lengths: a prompt counts one token for 4 characters, an output is as long as its "
            "max_tokens, and all arrive together; the batch's output file has the true lengths",
        ),
    ),
    RequestLog(
        "OpenAI responses",
        (
            frozenset({"object", "created", "usage", "prompt_tokens"}),
            frozenset({"object", "created_at", "usage", "input_tokens"}),
        ),
        _RESPONSE,
        _of_response,
        (_CREATED,),
    ),
)
