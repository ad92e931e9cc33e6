"""Large JSON body: read and written without holding the event loop, however it is filled.

Laws: between two passes over a large body every other connection has its turn, and a pass is one call in C over bytes
that are bounded (`wire.body_bytes`) and over values that are bounded (`wire.body_values`). What is sent on is not
copied: it is the client's bytes with ours between them.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus

import msgspec

from headway.gateway.openai.endpoints import RESPONSES, Endpoint
from headway.gateway.openai.found_fields import FoundFields, judge_hints, written_again
from headway.gateway.openai.prompt_count import NO_PROMPT, PromptCount
from headway.gateway.openai.request_body import (
    FIRST_NAME,
    LARGE_BYTES,
    Body,
    StreamOptions,
    decoded_large,
    slices,
    top_level,
    why_no_object,
)

_SLICE_BYTES = 1 << 20
_BESIDE_SHARE = 20
"""Values beside the prompt may be a twentieth of all: where a field is replaced, each of them becomes an object."""
_MARKS = (b",", b":", b"[", b"{")
_BLANKS = b" \t\r\n"
_BLANKS_A_VALUE = 8
_MODEL_NAME = b'"model"'
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_FIRST_MODEL = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"model"[ \t\r\n]*:[ \t\r\n]*')
_LAST_BYTES = 1 << 16  # of a body, where `model` is looked for: most clients write it first, or behind the messages
_LOOKS = 16  # at fields of that name there


class LargeBody:
    """One that is read by `steps`.

    Attributes:
        body: its fields; None where it is no readable JSON object.
        prompt: what was read of its prompt.
        asked_model: the name that its client wrote, where it has a body.
        fault: status and message, where it is refused.
    """

    def __init__(
        self,
        content: bytes,
        endpoint: Endpoint,
        values_max: int,
        rename: Callable[[Body], str] = lambda body: body.model,
        found: FoundFields | None = None,
        look: Callable[[], Iterator[None]] = lambda: iter(()),
    ) -> None:
        """A large body.

        Args:
            content: its bytes.
            endpoint: the row of its path.
            values_max: `WireLimits.body_values`.
            rename: gives it the name of the model that it goes to, and returns the one that its client wrote.
            found: takes its fields where they have to be known to send it.
            look: finds the fields of one that is no readable JSON object, in steps. May raise ValueError, one sentence.
        """
        self._found = found
        self._look = look
        self.asked_model = ""
        self._rename = rename
        self.body: Body | None = None
        self.prompt = NO_PROMPT
        self.fault: tuple[int, str] | None = None
        self._content = content
        self._endpoint = endpoint
        self._values_max = values_max

    def steps(self, prompt_count: PromptCount) -> Iterator[None]:
        """Read it, a pass between two steps; `prompt_count` reads its prompt."""
        yield from self._read(prompt_count)
        if self.body is None and (self.fault is None or self.fault[0] == HTTPStatus.BAD_REQUEST):
            try:
                yield from self._look()
            except ValueError as error:
                self.fault = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)

    def _read(self, prompt_count: PromptCount) -> Iterator[None]:
        begins = self._content[:LARGE_BYTES].lstrip(_BLANKS)
        if begins and not begins.startswith(b"{"):
            return  # a form, a file
        values, beside_max = 0, self._values_max // _BESIDE_SHARE
        utf8 = _Utf8Check()
        try:
            for piece in slices(self._content, _SLICE_BYTES):
                values += _values_in(bytes(piece))
                utf8.look_at(piece)
                yield
            utf8.end()
            if values > self._values_max:
                self.fault = 413, _TOO_MANY.format(self._values_max)
                return
            body = decoded_large(self._content, self._endpoint)
            judge_hints(map(len, (body.priority_bytes, body.arguments_bytes, body.agent_bytes)))
            self.asked_model = self._rename(body)
            yield
            for self.prompt in prompt_count.read_in_steps(body):
                yield
            for content in (body.prompt_view, *body.prompt_head_views):
                for piece in slices(content, _SLICE_BYTES):
                    values -= _values_in(bytes(piece))
                    yield
            self.body = body
            if values <= beside_max and self._found is not None and self._needs_fields(body):
                self._found.json = top_level(self._content)
                yield
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.fault = 400, why_no_object(error)
        except ValueError as error:
            self.fault = 413, str(error)
        if values > beside_max:
            self.fault = 413, _TOO_MANY_BESIDE.format(beside_max)

    def _needs_fields(self, body: Body) -> bool:
        """Whether some field may have to be replaced where it stands, or may name an object that a replica stored."""
        if body.endpoint is RESPONSES:
            return True
        if body.priority_bytes or body.arguments_bytes or body.agent_bytes or body.service_tier:
            return True
        options = body.stream_options
        if body.stream and body.endpoint.usage_on_request and options is not msgspec.UNSET:
            return not (isinstance(options, StreamOptions) and options.include_usage)
        is_renamed = self.asked_model and body.model != self.asked_model
        return bool(is_renamed and _model_in(self._content, self.asked_model) is None)


class _Utf8Check:
    """Whether pieces of a body are UTF-8. A fault is told at the end, for values are counted in all pieces."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")()
        self._fault: UnicodeDecodeError | None = None

    def look_at(self, piece: memoryview) -> None:
        """The next piece."""
        if self._fault is None and (not bytes(piece).isascii() or self._decoder.getstate()[0]):
            try:
                self._decoder.decode(piece)
            except UnicodeDecodeError as error:
                self._fault = error

    def end(self) -> None:
        """There are no more. Raises UnicodeDecodeError if they are no UTF-8."""
        if self._fault is not None:
            raise self._fault
        self._decoder.decode(b"", final=True)


_TOO_MANY = "the body holds more than {:,} values (wire.body_values); send fewer"
_TOO_MANY_BESIDE = (
    "the body holds more than {:,} values beside its prompt (a twentieth of wire.body_values); send fewer"
)


def written_in_parts(
    content: bytes,
    body: Body,
    changes: Mapping[str, object],
    asked_model: str = "",
    fields: Mapping[str, msgspec.Raw] | None = None,
) -> list[bytes | memoryview]:
    """A large body with some top-level fields set, as the parts that it is sent in.

    `stream_options` in `changes` are joined with the client's own. `asked_model` is the name that stands in the body,
    where `model` is in `changes`. `fields` are all of the body's, where they are known; else they are read again if
    one of them is replaced.
    """
    given = [name for name in changes if _has(body, name)]
    if not given:  # they are appended, and the rest is not parsed again
        return _extended(content, 0, changes)
    at = _model_in(content, asked_model) if fields is None and given == ["model"] else None
    if at is not None:
        others = {name: value for name, value in changes.items() if name != "model"}
        model = msgspec.json.encode(changes["model"])
        return [memoryview(content)[: at[0]], model, *_extended(content, at[1], others)]
    fields = top_level(content) if fields is None else fields
    options = changes.get("stream_options")
    if isinstance(options, dict):
        changes = {**changes, "stream_options": {**top_level(fields.get("stream_options", b"")), **options}}
    return written_again(fields, changes)


def _extended(content: bytes, begin: int, changes: Mapping[str, object]) -> list[bytes | memoryview]:
    """A body from `begin` on, with more fields at its end."""
    end = len(content)
    while content[end - 1] in _BLANKS:
        end -= 1
    comma = b"," if changes and FIRST_NAME.match(content) else b""
    return [memoryview(content)[begin : end - 1], comma + msgspec.json.encode(changes)[1:]]


def _model_in(content: bytes, asked: str) -> tuple[int, int] | None:
    """Where the value of `model` begins and ends, if that shows at the body's end or at its beginning.

    What follows a field of the body itself up to the body's end is the rest of one object; after a field of an object
    within it, it is not. The last `model` counts, for readers of JSON as here.
    """
    value = msgspec.json.encode(asked)
    end, least = len(content), max(0, len(content) - _LAST_BYTES)
    for _ in range(_LOOKS):
        name = content.rfind(_MODEL_NAME, least, end)
        if name < 0:
            break
        end = name
        colon = _COLON.match(content, name + len(_MODEL_NAME))
        if colon is not None and top_level(b"{" + content[name:]):
            return (colon.end(), colon.end() + len(value)) if content.startswith(value, colon.end()) else None
    first = _FIRST_MODEL.match(content)
    if first is None or not content.startswith(value, first.end()):
        return None
    return first.end(), first.end() + len(value)


def _has(body: Body, name: str) -> bool:
    """Whether the client's body has this field, one of those that the gateway may write."""
    if name == "stream_options":
        return body.stream_options is not msgspec.UNSET
    if name in ("model", "service_tier"):
        return bool(getattr(body, name))
    given = {"priority": body.priority_bytes, "vllm_xargs": body.arguments_bytes}
    return bool(given.get(name, body.agent_bytes))


def _values_in(piece: bytes) -> int:
    """About the values and names that a reader of JSON meets; what stands in texts counts too.

    Eight blanks take about as long as a value, and count as one.
    """
    blanks = len(piece) - len(piece.translate(None, _BLANKS))
    return sum([piece.count(mark) for mark in _MARKS]) + blanks // _BLANKS_A_VALUE
