"""What a router can say of a request by its arguments: an OpenAI body, an HTTP request's head, or what a function says.

Ray's proxy routes a request before it reads the body. So of HTTP only the head is known: the size by `content-length`,
and what its headers say. Where an ingress deployment calls a model's handle with an OpenAI body, that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import msgspec

from headway.gateway.openai.client_hints import HINT_HEADERS
from headway.gateway.openai.client_terms import CLASS_HEADER, NO_QUEUE_HEADER, TIMEOUT_HEADER
from headway.gateway.openai.endpoints import ENDPOINTS, endpoint_of
from headway.gateway.openai.prompt_count import PromptCount, PromptFacts
from headway.gateway.openai.request_body import LARGE_BYTES, read_body
from headway.gateway.openai.token_ratio import TokenRatio
from headway.ray.queue_messages import RequestFacts

_PROMPT_FIELDS = {"messages": "/v1/chat/completions", "prompt": "/v1/completions", "input": "/v1/responses"}
_UNSIZED_PATH = "/v1/completions"  # of what is no API call: its size counts as a prompt's
_HEAD_BYTES_MAX = 16_384
_SMALL_FIELDS = (
    *("model", "stream", "n", "best_of", "service_tier", "priority"),
    *("max_tokens", "max_completion_tokens", "max_output_tokens"),
)
_OTHER_HEADERS = (b"authorization", b"x-api-key", b"x-request-id", CLASS_HEADER, NO_QUEUE_HEADER, TIMEOUT_HEADER)
_HEADERS_MAX = 32
_HEADER_BYTES_MAX = 4_096
_DEFAULT_BODY_BYTES = 0
_COUNT = PromptCount({}, TokenRatio())


class CallMetadata(Protocol):
    """What Ray knows of a call, as far as it is read here."""

    @property
    def request_id(self) -> str:
        """Given by the client, or made by Ray."""

    @property
    def multiplexed_model_id(self) -> str:
        """Model that is wanted of those that are multiplexed; "" for none."""

    @property
    def session_id(self) -> str:
        """Session that the caller names; "" for none."""

    @property
    def is_streaming(self) -> bool:
        """Whether the answer is a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What an application says of one request; what it leaves out is found as for any other request.

    Attributes:
        model: name of the model; each has a queue of its own if the settings list it.
        prompt_tokens: length of the prompt, exact.
        prompt_bytes: its size, from which tokens are estimated where `prompt_tokens` is None.
        output_tokens: output tokens as they are expected, for `hinted` predictions.
        output_tokens_max: a bound on them.
        tenant: who pays: a `[[tenant]]` of the settings, or any name.
        session: conversation or agent run it belongs to.
        priority: lower runs sooner, 0 is normal.
        deadline_seconds: from arrival to the first token.
        tpot_deadline_seconds: bound on the time per output token after the first.
        end_deadline_seconds: from arrival to the last token.
        program: name of the program that it is a part of, an agent's task of several requests.
        program_stage: which stage of it, from 1.
        program_stages: how many stages it has; None where unknown.
        program_deadline_seconds: from arrival to the end of the whole program.
        never_waits: it is refused rather than queued.
    """

    model: str = ""
    prompt_tokens: int | None = None
    prompt_bytes: int | None = None
    output_tokens: int | None = None
    output_tokens_max: int | None = None
    tenant: str = ""
    session: str | None = None
    priority: int | None = None
    deadline_seconds: float | None = None
    tpot_deadline_seconds: float | None = None
    end_deadline_seconds: float | None = None
    program: str | None = None
    program_stage: int | None = None
    program_stages: int | None = None
    program_deadline_seconds: float | None = None
    never_waits: bool = False


Describe = Callable[[Sequence[Any], Mapping[str, Any]], Description | None]
"""(positional arguments of a call, named arguments) -> what is known of it, or None to have them read as usual."""


def describing(path: str | None) -> Describe | None:
    """The function that `module:name` or `module.name` leads to; None for None.

    Raises:
        ValueError: one sentence, if there is none.
    """
    if path is None:
        return None
    if not isinstance(path, str):
        raise ValueError(f"describe must be text, module:function, as each proxy imports it; got {path!r}")
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"describe: {path!r} cannot be imported: {error}; write it as module:function") from None
    if not callable(found):
        raise ValueError(f"describe: {path!r} is no function; write it as module:function")
    return found  # type: ignore[no-any-return]


def facts_of(
    args: Sequence[Any], kwargs: Mapping[str, Any], metadata: CallMetadata, describe: Describe | None = None
) -> RequestFacts:
    """All that the queue gets to know of a call."""
    told = None if describe is None else describe(args, kwargs)
    if told is not None:
        return _told(told, metadata)
    scope = next((scope for scope in map(_scope_of, args) if scope is not None), None)
    if scope is not None:
        return _of_http(scope, metadata)
    headers = _headers_of([*args, *kwargs.values()], kwargs.get("headers"))
    body = next((body for body in map(_body_of, [*args, *kwargs.values()]) if body is not None), None)
    if body is not None:
        return _of_body(body, headers, metadata)
    size = sum(len(one) for one in args if isinstance(one, str | bytes))
    return RequestFacts(
        headers=_kept(headers, metadata),
        head=_head({"stream": metadata.is_streaming}),
        body_bytes=size,
        prompt=PromptFacts(bytes=size),
        adapter=metadata.multiplexed_model_id,
    )


# HTTP, of which the head is known


def _scope_of(argument: Any) -> Mapping[str, Any] | None:
    """The ASGI scope of a request that Ray's proxy passes on."""
    scope = getattr(argument, "asgi_scope", None)
    return scope if isinstance(scope, Mapping) and "headers" in scope else None


def _of_http(scope: Mapping[str, Any], metadata: CallMetadata) -> RequestFacts:
    headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
    length = dict(reversed(headers)).get(b"content-length", b"")
    size = int(length) if length.isdigit() and len(length) < 16 else _DEFAULT_BODY_BYTES
    path = str(scope.get("path", ""))
    return RequestFacts(
        path=path if path in ENDPOINTS else _UNSIZED_PATH,
        headers=_kept(headers, metadata),
        head=_head({"stream": metadata.is_streaming}),
        body_bytes=size,
        prompt=PromptFacts(bytes=size),
        adapter=metadata.multiplexed_model_id,
    )


# A call of a handle


def _headers_of(arguments: Iterable[Any], named: Any) -> list[tuple[bytes, bytes]]:
    """Of a named argument `headers`, or the first argument that has headers, as Ray's LLM ingress passes them on."""
    for one in (named, *(getattr(argument, "headers", None) for argument in arguments)):
        if isinstance(one, Mapping):
            pairs = list(one.items())[:_HEADERS_MAX]
            return [(_bytes(name).lower(), _bytes(value)) for name, value in pairs]
    return []


def _bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "replace")


def _body_of(argument: Any) -> Mapping[str, Any] | None:
    """An OpenAI body: a mapping with a prompt, or a pydantic model of one."""
    if not isinstance(argument, Mapping):
        if not any(hasattr(argument, name) for name in _PROMPT_FIELDS):
            return None
        dump = getattr(argument, "model_dump", None)
        argument = dump(mode="json", exclude_unset=True) if callable(dump) else None
    is_body = isinstance(argument, Mapping) and any(name in argument for name in _PROMPT_FIELDS)
    return argument if is_body else None


def _of_body(body: Mapping[str, Any], headers: list[tuple[bytes, bytes]], metadata: CallMetadata) -> RequestFacts:
    name = next(name for name in _PROMPT_FIELDS if name in body)
    path = _PROMPT_FIELDS[name]
    endpoint = endpoint_of(path)
    written = _json(dict(body))
    read = read_body(written, endpoint) if len(written) <= LARGE_BYTES else None
    prompt_fields = {*endpoint.prompt_fields, *endpoint.prompt_head_fields}
    head = _head({key: value for key, value in body.items() if key not in prompt_fields})
    return RequestFacts(
        path=path,
        headers=_kept(headers, metadata),
        head=head,
        body_bytes=len(written),
        prompt=PromptFacts(bytes=len(written)) if read is None else _COUNT.read(read),
        adapter=metadata.multiplexed_model_id,
    )


def _head(fields: dict[str, Any]) -> bytes:
    """JSON of the fields that are no prompt; of many only those that are read."""
    written = _json(fields)
    if len(written) <= _HEAD_BYTES_MAX:
        return written
    return _json({key: fields[key] for key in _SMALL_FIELDS if key in fields and _is_small(fields[key])})


def _is_small(value: Any) -> bool:
    return not isinstance(value, str | bytes | list | dict) or len(value) <= 1_024


def _json(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)


# What an application says


def _told(told: Description, metadata: CallMetadata) -> RequestFacts:
    hints: list[tuple[bytes, bytes]] = []
    for name, value in (
        (b"x-headway-output-tokens", told.output_tokens),
        (b"x-request-priority", told.priority),
        (b"x-session-id", told.session),
        (b"x-slo-ttft-ms", _milliseconds(told.deadline_seconds)),
        (b"x-slo-tpot-ms", _milliseconds(told.tpot_deadline_seconds)),
        (b"x-headway-end-deadline-ms", _milliseconds(told.end_deadline_seconds)),
        (b"x-headway-program", told.program),
        (b"x-headway-program-stage", told.program_stage),
        (b"x-headway-program-stages", told.program_stages),
        (b"x-headway-program-deadline-ms", _milliseconds(told.program_deadline_seconds)),
        (NO_QUEUE_HEADER, "true" if told.never_waits else None),
    ):
        if value is not None:
            hints.append((name, _bytes(value)))
    head: dict[str, Any] = {"model": told.model, "stream": metadata.is_streaming}
    if told.output_tokens_max is not None:
        head["max_tokens"] = told.output_tokens_max
    tokens = told.prompt_tokens
    size = told.prompt_bytes if told.prompt_bytes is not None else 4 * (tokens or 0)
    return RequestFacts(
        headers=_kept(hints, metadata),
        head=_head(head),
        body_bytes=size,
        prompt=PromptFacts(bytes=size, ids=tokens or 0),
        tenant=told.tenant,
        is_trusted=True,
        adapter=metadata.multiplexed_model_id,
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _kept(headers: Iterable[tuple[bytes, bytes]], metadata: CallMetadata) -> list[tuple[bytes, bytes]]:
    """The headers that the queue reads, with what Ray knows besides."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if len(kept) < _HEADERS_MAX and len(value) <= _HEADER_BYTES_MAX and _is_read(name):
            kept.append((name, value))
    names = {name for name, _ in kept}
    if metadata.session_id and not any(HINT_HEADERS.get(name.replace(b"_", b"-")) == "session" for name in names):
        kept.append((b"x-session-id", metadata.session_id.encode()))
    if metadata.request_id and b"x-request-id" not in names:
        kept.append((b"x-request-id", metadata.request_id.encode()))
    return kept


def _is_read(name: bytes) -> bool:
    return name in _OTHER_HEADERS or name.replace(b"_", b"-") in HINT_HEADERS
