"""JSON body of a request: the fields that are read, and the few that are written; all else stays byte for byte."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, TypeVar, cast

import msgspec

from headway.domain.foreign_counts import token_count
from headway.gateway.openai.endpoints import UNLISTED, Endpoint

T = TypeVar("T")
LARGE_BYTES = 1 << 17
"""A longer body is read in steps, see `large_body.py`; within this any body takes a few milliseconds."""
_SEQUENCES_MAX = 16_384  # vLLM refuses more (`VLLM_MAX_N_SEQUENCES`)
_SEVERAL = re.compile(rb'\[\s*(["\[])')
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


NO_PRIORITY = (b"", b"0", b"null")
"""How a body says that it asks for no priority."""


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool | None = None


_JSON_NAMES = {"priority_bytes": "priority", "arguments_bytes": "vllm_xargs", "salt_bytes": "cache_salt"}


class Body(msgspec.Struct, rename=_JSON_NAMES):
    """The fields that are read; everything else is left alone, unread. Its decoder adds the fields of an endpoint."""

    endpoint: ClassVar[Endpoint]
    model: str = ""
    service_tier: str | None = None
    stream: bool | None = None
    n: int | None = None
    best_of: int | None = None
    priority_bytes: msgspec.Raw = msgspec.Raw(b"")
    arguments_bytes: msgspec.Raw = msgspec.Raw(b"")
    salt_bytes: msgspec.Raw = msgspec.Raw(b"")
    stream_options: StreamOptions | msgspec.UnsetType | None = msgspec.UNSET

    def rename(self, model: str) -> None:
        """It goes to the model of this name, which is written into the body when it is sent."""
        self.model = model

    def take_texts(self, model: str, service_tier: str | None) -> None:
        """Those of a large body, which its decoder leaves unread."""
        self.model, self.service_tier = model, service_tier

    @property
    def prompt_bytes(self) -> bytes:
        """The prompt as it stands in the JSON, copied; empty if there is none."""
        return bytes(self.prompt_view)

    @property
    def prompt_view(self) -> memoryview:
        """The same, not copied."""
        for name in self.endpoint.prompt_fields:
            if prompt := getattr(self, name):
                return memoryview(prompt)
        return memoryview(b"")

    @property
    def prompt_head_bytes(self) -> bytes:
        """What of the prompt stands in other fields: tools, and the system's message; copied."""
        return b"".join([bytes(view) for view in self.prompt_head_views])

    @property
    def prompt_head_views(self) -> list[memoryview]:
        """The same by field, not copied."""
        return [memoryview(getattr(self, name)) for name in self.endpoint.prompt_head_fields]

    @property
    def priority(self) -> int | None:
        """The client's own priority, if it is a number; "5" and 5.0 are."""
        if not self.priority_bytes:
            return None
        try:
            return _WHOLE_NUMBER.decode(self.priority_bytes)
        except msgspec.DecodeError:
            return None

    @property
    def cache_salt(self) -> str:
        """vLLM's `cache_salt`: prompts of different salts share no KV blocks; "" for none."""
        if not self.salt_bytes:
            return ""
        try:
            return _SALT.decode(self.salt_bytes) or ""
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""  # the replica answers with what is wrong with it

    @property
    def output_tokens_max(self) -> int | None:
        """The client's own bound on one sequence's output; 0 is the tightest, and counts as 1."""
        for name in self.endpoint.output_bound_fields:
            bound: int | None = getattr(self, name)
            if bound is not None:
                return max(1, token_count(bound)) if bound >= 0 else None
        return None

    def sequences(self, prompts: int) -> int:
        """Outputs that are generated at once: `n` or `best_of` for each of `prompts` prompts."""
        each = max(1, self.n or 1, self.best_of or 1)
        return min(each * prompts, _SEQUENCES_MAX)

    @property
    def raw_fields(self) -> tuple[str, ...]:
        """Those that are views of the request's bytes, which cannot be freed before them."""
        endpoint = self.endpoint
        prompt = *endpoint.prompt_fields, *endpoint.prompt_head_fields
        return "priority_bytes", "arguments_bytes", "salt_bytes", *prompt, endpoint.agent_field

    @property
    def agent_bytes(self) -> bytes:
        """Dynamo's tables as they stand in the JSON; empty if there are none."""
        return bytes(getattr(self, self.endpoint.agent_field))


@cache
def _decoder(endpoint: Endpoint, *, names_raw: bool = False) -> msgspec.json.Decoder[Body]:
    """As lenient as engines are: "100" and 100.0 are whole numbers. `names_raw` leaves the texts of a body unread."""
    names = *endpoint.prompt_fields, *endpoint.prompt_head_fields, endpoint.agent_field
    raw = [(name, msgspec.Raw, msgspec.Raw(b"")) for name in names]
    bounds = [(name, int | None, None) for name in endpoint.output_bound_fields]
    if names_raw:
        raw += [(name, msgspec.Raw, msgspec.Raw(b"")) for name in _TEXTS]
    fields = cast(Any, [*raw, *bounds])  # the stub knows pairs and triples of one type only
    body = msgspec.defstruct("Body", fields, bases=(Body,), namespace={"endpoint": endpoint})
    return cast("msgspec.json.Decoder[Body]", msgspec.json.Decoder(body, strict=False))


_NAME = msgspec.json.Decoder(str)
_TIER = msgspec.json.Decoder(str | None)
_TEXTS = ("model", "service_tier")
_TEXT_BYTES_MAX = 1 << 12  # of a large body's name of a model, or service tier
_WHOLE_NUMBER = msgspec.json.Decoder(int | None, strict=False)
_SALT = msgspec.json.Decoder(str | None)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANYTHING = msgspec.json.Decoder()
FIRST_NAME = re.compile(rb'\s*\{\s*"')
"""What an object with a field begins with."""


def read_body(content: bytes, endpoint: Endpoint = UNLISTED) -> Body | None:
    """The fields of a JSON body; None if it is not a JSON object or a field we read has a wrong type."""
    try:
        return _decode(content, endpoint)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def why_unreadable(content: bytes, endpoint: Endpoint = UNLISTED) -> str:
    """What is wrong with a body that `read_body` does not read: which field, and what it should be."""
    if not content:
        return "the request has no body; send a JSON object"
    try:
        _decode(content, endpoint)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return why_no_object(error)
    return "the body cannot be read"


def why_no_object(error: Exception) -> str:
    """The sentence about a body that could not be decoded."""
    if isinstance(error, RecursionError):
        return "the body is nested too deeply; send a flatter JSON object"
    what, _, place = str(error).partition(" - at `$.")
    if place and isinstance(error, msgspec.ValidationError):
        return f"`{place.rstrip('`')}` in the body is not valid: {what[:1].lower()}{what[1:]}"
    return f"the body is not a valid JSON object: {error}"


def slices(content: bytes | memoryview, size: int) -> Iterator[memoryview]:
    """Parts of a body of at most `size` bytes, not copied."""
    view = memoryview(content)
    for at in range(0, len(view), size):
        yield view[at : at + size]


def decoded(content: bytes, endpoint: Endpoint) -> Body:
    """The fields of a JSON body that is known to be UTF-8. Raises DecodeError or RecursionError if it is none."""
    return _decoder(endpoint).decode(content)


def decoded_large(content: bytes, endpoint: Endpoint) -> Body:
    """The same of a large body: a pass that builds nothing of its size, whatever is long in it.

    Raises ValueError, one sentence, if a text that is read here is long.
    """
    body = _decoder(endpoint, names_raw=True).decode(content)
    body.take_texts(_text(body, "model", _NAME) or "", _text(body, "service_tier", _TIER))
    return body


def _text(body: Body, name: str, kind: msgspec.json.Decoder[T]) -> T | None:
    """A text of a body whose texts are left unread; None where it is not there."""
    value: msgspec.Raw = getattr(body, name)
    judge_text(name, value)
    try:
        return kind.decode(value) if value else None
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{error} - at `$.{name}`") from None


def judge_text(name: str, value: bytes | msgspec.Raw) -> None:
    """Raise ValueError, one sentence, if a text of a large body that is read whole is long."""
    if len(value) > _TEXT_BYTES_MAX:
        raise ValueError(f"the field {name} holds more than {_TEXT_BYTES_MAX:,} bytes; send a shorter one")


def _decode(content: bytes, endpoint: Endpoint) -> Body:
    body = decoded(content, endpoint)
    if not content.isascii():
        content.decode()  # msgspec skips fields unread, and what is written into the body later reads all of them
    return body


def with_fields(body: bytes, changes: Mapping[str, object]) -> bytes:
    """The body with some top-level fields set; the other fields keep their bytes and their order."""
    for name in changes:
        if _mentions(body, b'"%b"' % name.encode()):
            fields: dict[str, Any] = _FIELDS.decode(body)
            fields.update(changes)
            return msgspec.json.encode(fields)
    # None of the names is in it, not even in escapes: they are appended, and the rest is not parsed again.
    whole = body.rstrip(b" \t\r\n")
    ours = msgspec.json.encode(changes)
    return whole[:-1] + (b"," if FIRST_NAME.match(whole) else b"") + ours[1:]


def with_usage_asked(body: bytes) -> dict[str, object]:
    """The change to `with_fields` that asks for a stream's usage, other stream options kept."""
    given = top_level(body).get("stream_options", b"") if _mentions(body, b'"stream_options"') else b""
    return {"stream_options": {**top_level(given), "include_usage": True}}


def _mentions(body: bytes, quoted_name: bytes) -> bool:
    """Whether a field of this name may be there; only a \\u escape can hide the letters of a name."""
    # Not `in`: at bytes it tries a whole number first, and the exception within costs more than the search.
    return body.find(quoted_name) >= 0 or body.find(b"\\u") >= 0


def extra_arguments(body: Body) -> dict[str, msgspec.Raw]:
    """The fields of `vllm_xargs` as they stand in it; {} if it is missing or not an object."""
    return top_level(body.arguments_bytes)


def top_level(content: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object as they stand in it; {} if it is none."""
    if not content:
        return {}  # as mostly: an exception costs more
    try:
        return _FIELDS.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def agent_tables(body: Body) -> tuple[dict[str, Any], dict[str, Any]]:
    """Dynamo's `agent_hints` and `agent_context`, each {} if there is none."""
    content = getattr(body, body.endpoint.agent_field)
    if not content:  # as mostly
        return {}, {}
    tables = top_level(content)
    return _table(tables.get("agent_hints", b"")), _table(tables.get("agent_context", b""))


def _table(content: bytes | msgspec.Raw) -> dict[str, Any]:
    """A JSON object; {} if it is something else, or holds a number beyond all floats."""
    try:
        table = _ANYTHING.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def prompts_in(prompt: bytes, endpoint: Endpoint) -> int:
    """How many prompts a completion holds: a list of texts, or of lists of token ids, is several.

    In a large one they are estimated by its quotes or brackets: to list all items would take too long.
    """
    first = _SEVERAL.match(prompt) if endpoint.takes_prompts else None
    if first is None:
        return 1
    if len(prompt) > LARGE_BYTES:
        marks = prompt.count(b"]") - 1 if first[1] == b"[" else (prompt.count(b'"') - prompt.count(b'\\"')) // 2
        return max(1, marks)
    prompts: list[msgspec.Raw] = _ITEMS.decode(prompt)
    return max(1, len(prompts))
