"""Token counts in answers: where each endpoint puts them, and how they are read from one JSON object.

Law: a count outside its bounds is no count, however it is written; nothing in an answer raises.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import msgspec

from headway.domain.foreign_counts import TOKENS_MAX

"""A larger count is no count: a hundred times the longest context that any model has."""
_FAULT_CHARACTERS_MAX = 200
_VALUE_BYTES_MAX = 1 << 16  # of a usage or an error, each of whose values becomes an object


class Usage(NamedTuple):
    """Tokens of one request, as the replica counted them."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int

    def merged(self, earlier: Usage | None) -> Usage:
        """This one, with an earlier event's counts where it has none: Anthropic counts the prompt at the start."""
        if earlier is None or (self.prompt_tokens and self.output_tokens):
            return self
        return Usage(
            self.prompt_tokens or earlier.prompt_tokens,
            self.output_tokens or earlier.output_tokens,
            self.cached_tokens or earlier.cached_tokens,
        )


class UsageFields(NamedTuple):
    """Where an answer holds its token counts: names of the fields of `usage`."""

    prompt: str
    output: str
    prompt_details: str
    stream_envelope: str | None = None
    """Field of a stream's event that may hold the answer with its `usage`; None where the event is the answer."""
    prompt_parts: tuple[str, ...] = ()
    """Further counts that belong to the prompt: what Anthropic's API read from its cache and wrote into it."""
    cached: str = "cached_tokens"
    """The cached tokens, in `prompt_details` or, where that is missing, in `usage` itself."""


COMPLETION_USAGE = UsageFields("prompt_tokens", "completion_tokens", "prompt_tokens_details")
RESPONSES_USAGE = UsageFields("input_tokens", "output_tokens", "input_tokens_details", stream_envelope="response")
MESSAGES_USAGE = UsageFields(
    "input_tokens",
    "output_tokens",
    "input_tokens_details",
    stream_envelope="message",
    prompt_parts=("cache_read_input_tokens", "cache_creation_input_tokens"),
    cached="cache_read_input_tokens",
)


class EngineError(NamedTuple):
    """An engine's error inside an answer with status 200."""

    message: str
    is_of_replica: bool
    """False where its code is 4xx: the request is at fault."""


class AnswerFacts(NamedTuple):
    """What one JSON object of an answer holds."""

    usage: Usage | None = None
    is_usage_alone: bool = False
    """It holds a usage and no choices: the chunk that a stream ends with on request."""
    error: EngineError | None = None


NO_FACTS = AnswerFacts()
_ANYTHING = msgspec.json.Decoder()
_EMPTY = frozenset([b"", b"null", b"[]", b"{}", b'""', b"false"])
_BLANKS_MAX = 64
_ERROR_TYPES = frozenset([b'"error"', b'"response.failed"'])


class AnswerParser:
    """Reads the facts from JSON. msgspec skips what it does not read."""

    def __init__(self, fields: UsageFields) -> None:
        self._fields = fields
        nothing = msgspec.Raw(b"")
        parts: Any = [(name, msgspec.Raw, nothing) for name in ("usage", "choices", "error", "type", "envelope")]
        names = {"envelope": fields.stream_envelope or "no envelope"}
        self._answer: msgspec.json.Decoder[Any] = msgspec.json.Decoder(msgspec.defstruct("Answer", parts, rename=names))

    def facts(self, content: bytes) -> AnswerFacts:
        """Of an event's data, or of a whole JSON answer; none where it is no JSON object."""
        try:
            answer = self._answer.decode(content)
            inside = self._inside(answer)
            usage = self._usage(answer.usage)
            if usage is None and inside is not None:
                usage = self._usage(inside.usage)
            error = _error(answer)
            if error is None and inside is not None:
                error = _error(inside)
        except (
            msgspec.DecodeError,
            ValueError,
            RecursionError,
        ):  # ValueError: no UTF-8, a number of thousands of digits
            return NO_FACTS
        has_usage = bytes(answer.usage).startswith(b"{") and error is None
        return AnswerFacts(usage, has_usage and _is_empty(answer.choices), error)

    def _inside(self, answer: Any) -> Any:
        """The answer within an event, where the endpoint puts one there."""
        content = bytes(answer.envelope)
        return self._answer.decode(content) if content.startswith(b"{") else None

    def _usage(self, content: msgspec.Raw) -> Usage | None:
        is_readable = not _is_empty(content) and len(content) <= _VALUE_BYTES_MAX
        counts = _ANYTHING.decode(content) if is_readable else None
        if not isinstance(counts, dict):
            return None
        fields = self._fields
        details = counts.get(fields.prompt_details)
        cached = _count((details if isinstance(details, dict) else counts).get(fields.cached))
        parts = [_count(counts.get(name)) for name in (fields.prompt, *fields.prompt_parts)]
        output = _count(counts.get(fields.output))
        if output is None or None in parts:
            return None
        return Usage(sum(part for part in parts if part), output, cached or 0)


parser_of = cache(AnswerParser)


def _is_empty(value: msgspec.Raw) -> bool:
    """Whether a value is missing, null, false or holds nothing, with or without blanks inside."""
    content = bytes(value)
    return len(content) < _BLANKS_MAX and b"".join(content.split()) in _EMPTY


def _count(value: object) -> int | None:
    """A count in any spelling of a whole number (3, 3.0); 0 if it is missing, None if it is out of bounds."""
    if value is None:
        return 0
    if not isinstance(value, int | float) or isinstance(value, bool) or not value <= TOKENS_MAX:
        return None
    return max(0, int(value)) if value >= 0 else 0


def _error(answer: Any) -> EngineError | None:
    """OpenAI's `{"error": …}` in any spelling; Anthropic's and the Responses API's events of that type."""
    if _is_empty(answer.error):
        return EngineError("the engine reported an error", True) if bytes(answer.type) in _ERROR_TYPES else None
    error = _ANYTHING.decode(answer.error) if len(answer.error) <= _VALUE_BYTES_MAX else "an error beyond all bounds"
    if not isinstance(error, dict):
        return EngineError(str(error)[:_FAULT_CHARACTERS_MAX], True)
    code = error.get("code")
    is_of_request = isinstance(code, int) and 400 <= code < 500
    return EngineError(str(error.get("message", ""))[:_FAULT_CHARACTERS_MAX], not is_of_request)
