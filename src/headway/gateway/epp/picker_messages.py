"""What the endpoint picker tells Envoy, as messages of external processing.

They are written as bytes: to build them of objects of protobuf takes five to ten times as long, several times a
request. Law: what is written is what protobuf would write of the same message.
Sources: Gateway API Inference Extension, proposal 004 (endpoint picker protocol, v1); Envoy's
`external_processor.proto`; protobuf's encoding. In the comments a path of fields is as in `ext_proc.proto`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from headway.gateway.openai.error_responses import reason_of
from headway.gateway.relay.picked_request import PickedRequest
from headway.gateway.wire.messages import Headers, Response

ENDPOINT_HEADER = b"x-gateway-destination-endpoint"
_METADATA = b"envoy.lb"
_PART_BYTES = 62_000  # of a body in one message; Envoy's bound is 64 KB
_FIELD_1, _FIELD_2, _FIELD_3, _FIELD_4, _FIELD_5, _FIELD_6, _FIELD_7, _FIELD_8 = range(0x0A, 0x4A, 8)
"""Tags of fields that hold bytes: texts, or messages."""
_OVERWRITE = b"\x18\x02"  # append_action: OVERWRITE_IF_EXISTS_OR_ADD
_CLEAR_ROUTE_CACHE = b"\x28\x01"
_ENDS = b"\x10\x01"  # end_of_stream
_LAST, _MORE = ([b"%c" % (flag + bits) for bits in range(128)] for flag in (0, 128))  # bytes of a number


def destination(endpoints: Sequence[str], picked: PickedRequest) -> bytes:
    """The request's headers, with the endpoints that Envoy is to send it to: the first that it can reach."""
    set_endpoint, metadata = _of_endpoint(",".join(endpoints))
    mutation = set_endpoint + _changed(picked.headers)
    if picked.removed:
        mutation += b"".join([_field(_FIELD_2, _text(name)) for name in picked.removed])
    common = _field(_FIELD_2, mutation) + _CLEAR_ROUTE_CACHE
    return _field(_FIELD_1, _field(_FIELD_1, common)) + metadata  # request_headers.response, dynamic_metadata


@lru_cache(maxsize=1_024)
def _of_endpoint(endpoint: str) -> tuple[bytes, bytes]:
    """The header that names it, and the metadata."""
    value = _field(_FIELD_3, endpoint.encode())  # string_value
    inner = _field(_FIELD_1, _field(_FIELD_1, ENDPOINT_HEADER) + _field(_FIELD_2, value))  # fields: key, value
    outer = _field(_FIELD_1, _field(_FIELD_1, _METADATA) + _field(_FIELD_2, _field(_FIELD_5, inner)))  # struct_value
    return _changed([(ENDPOINT_HEADER, endpoint.encode())]), _field(_FIELD_8, outer)


def body_parts(body: Sequence[bytes | memoryview], *, ends: bool) -> Iterator[bytes]:
    """The request's body; `ends`: no trailers follow it."""
    pieces = [part[at : at + _PART_BYTES] for part in body for at in range(0, len(part), _PART_BYTES)]
    for number, piece in enumerate(pieces or [b""], 1):
        yield _body_part(_FIELD_3, piece, ends=ends and number >= len(pieces))  # request_body


def answer_part(body: bytes, *, ends: bool) -> bytes:
    """A part of an answer that Envoy has shown, as its client is to get it."""
    return _body_part(_FIELD_4, body, ends=ends)  # response_body


def _body_part(tag: int, body: bytes | memoryview, *, ends: bool) -> bytes:
    """TAG.response.body_mutation.streamed_response, its bytes copied once."""
    inner = _head(_FIELD_1, len(body)) if body else b""
    size = len(inner) + len(body) + (2 if ends else 0)
    for outer in (_FIELD_3, _FIELD_3, _FIELD_1, tag):
        head = _head(outer, size)
        inner = head + inner
        size += len(head)
    return b"".join([inner, body, _ENDS if ends else b""])


def answer_with(headers: Headers) -> bytes:
    """The headers of an answer, with these besides."""
    return _field(_FIELD_2, _field(_FIELD_1, _field(_FIELD_2, _changed(headers))))  # response_headers.response


def instead(response: Response, more: Iterable[tuple[bytes, bytes]], *, is_headless: bool) -> bytes:
    """An answer of our own; `more` are headers, and an answer to a HEAD request has no body."""
    headers = _changed([(b"content-type", response.content_type), *response.headers, *more])
    immediate = [
        _field(_FIELD_1, b"\x08" + _number(response.status)),  # status.code
        _field(_FIELD_2, headers),
        b"" if is_headless or not response.body else _field(_FIELD_3, response.body),
        _field(_FIELD_5, f"headway_{reason_of(response) or 'answer'}".encode()),  # details
    ]
    return _field(_FIELD_7, b"".join(immediate))  # immediate_response


REQUEST_TRAILERS = bytes([_FIELD_5, 0])
ANSWER_TRAILERS = bytes([_FIELD_6, 0])


def _changed(headers: Headers) -> bytes:
    """set_headers: header (key, raw_value), append_action."""
    options = []
    for name, value in headers:
        header = _field(_FIELD_1, _text(name)) + (_field(_FIELD_3, value) if value else b"")
        options.append(_field(_FIELD_1, _field(_FIELD_1, header) + _OVERWRITE))
    return b"".join(options)


def _text(name: bytes) -> bytes:
    """As protobuf has texts: UTF-8."""
    return name if name.isascii() else name.decode("latin-1").encode()


def _field(tag: int, content: bytes) -> bytes:
    size = len(content)
    return b"%c%c%b" % (tag, size, content) if size < 128 else b"%c%b%b" % (tag, _number(size), content)


def _head(tag: int, size: int) -> bytes:
    return b"%c%b" % (tag, _number(size))


def _number(value: int) -> bytes:
    """A number as protobuf writes it: seven bits in each byte, the lowest first."""
    written = b""
    while value >= 128:
        written += _MORE[value & 127]
        value >>= 7
    return written + _LAST[value]
