"""HTTP messages: a request as it was parsed, and a whole response made here.

Laws: header names are lower case; nothing that is written contains a byte that could end a header early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from itertools import chain
from typing import NamedTuple, Protocol, TypeAlias

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""(lower-case name, value), in the order received; a name may appear several times."""

HOP_BY_HOP = frozenset(
    [
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ]
)
"""Headers of one connection, never forwarded (RFC 9110, section 7.6.1)."""

VIA_HEADER = b"via"
"""Names each gateway that passed a request on (RFC 9110, section 7.6.3); one that finds itself there is in a loop."""

TRACE_HEADER = b"traceparent"
"""Of W3C Trace Context."""

COMMON_NAMES = {
    name: name
    for name in (
        *(b"accept", b"accept-encoding", b"accept-language", b"authorization", b"connection", b"content-length"),
        *(b"content-type", b"host", TRACE_HEADER, b"user-agent", b"x-forwarded-for", b"x-request-id"),
        *(b"x-stainless-arch", b"x-stainless-async", b"x-stainless-helper-method", b"x-stainless-lang"),
        *(b"x-stainless-os", b"x-stainless-package-version", b"x-stainless-read-timeout"),
        *(b"x-stainless-retry-count", b"x-stainless-runtime", b"x-stainless-runtime-version"),
    )
}
"""Names that most requests have: kept in memory once, not once per waiting request."""

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_LF, _CR, _NUL = b"\n\r\0"


class BodySink(Protocol):
    """Takes the body of one request, piece by piece, so that none of it has to be kept in memory.

    Attributes:
        bytes_max: of the body; a longer one is refused.
        seconds_max: until the whole body has come.
        fault: why no more of it is wanted, once there is a reason.
    """

    bytes_max: int
    seconds_max: float
    fault: Response | None

    def begin(self, read_on: Callable[[], None]) -> None:
        """The body begins to come; `read_on` has it read again after `take` stopped it."""

    def take(self, piece: bytes) -> bool:
        """The next piece. False: read no more until `read_on` is called."""

    def abandon(self) -> None:
        """The body will not become whole: its client left, or it was refused."""


@dataclass(slots=True)
class HttpRequest:
    """One whole request.

    `target` is the request line's, path and query. `owner` names its API key's tenant, if any. `reply_headers` are
    added to its answer. `keeps_forwarded`: it came from a proxy that may say who its client is. `client_address` is
    that of the peer that sent it here, a proxy's if there is one; `certificate_names` are those of its certificate.
    `endpoints`, host:port each, are those that its proxy may send it to; () where any will do.
    `sink` takes its body as it comes, which is then not kept: its handler sets it when it has judged the head.
    `refusal`, in the handler's own form, is what it gets whatever its body says: the body is then not kept; `holder`,
    likewise, is whose its key is; `fields`, likewise, is what was found of a large body.
    """

    method: bytes
    target: bytes
    headers: Headers
    body: bytes = b""
    keep_alive: bool = True
    speaks_chunked: bool = True  # HTTP/1.1; to 1.0 a body of unknown length ends with the connection
    owner: str = ""
    keeps_forwarded: bool = False
    client_address: str = ""
    certificate_names: tuple[str, ...] = ()
    reply_headers: tuple[tuple[bytes, bytes], ...] = ()
    endpoints: tuple[str, ...] = ()
    refusal: object | None = None
    sink: BodySink | None = None
    holder: object | None = None
    fields: object | None = None
    named: dict[bytes, bytes] = field(init=False, repr=False)
    """The first value of each header."""
    path: str = field(init=False)
    """The target without its query; "*" where it is that; "" where it is no path."""

    def __post_init__(self) -> None:
        self.named = dict(reversed(self.headers))
        self.change_target(self.target)

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its lower-case name."""
        return self.named.get(name)

    def change_headers(self, headers: Headers) -> None:
        """Other headers take the place of those that it has."""
        self.headers = headers
        self.named = dict(reversed(headers))

    def change_target(self, target: bytes) -> None:
        """Another target takes the place of the one that it has."""
        self.target = target
        path = target.partition(b"?")[0]
        self.path = path.decode("latin-1") if path.startswith(b"/") or target == b"*" else ""

    def was_passed_on(self, via: bytes) -> bool:
        """Whether the gateway of that name in `via` headers has passed it on before."""
        if VIA_HEADER not in self.named:
            return False
        return any(via in value for name, value in self.headers if name == VIA_HEADER)


class BadRequest(NamedTuple):
    """Why a request is not taken; `RequestHandler.bad_request` makes the response."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Response:
    """One whole response made here."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())


def connection_names(headers: Headers) -> set[bytes]:
    """Names of further headers of one connection: those that its `connection` headers list."""
    return {token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")}


def with_headers(response: Response, more: tuple[tuple[bytes, bytes], ...]) -> Response:
    """The response with more headers."""
    return replace(response, headers=(*response.headers, *more)) if more else response


def status_line(status: int) -> bytes:
    """The first line of a response, with its line end."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status


def header_lines(headers: Headers | tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Headers as they are written.

    Raises:
        ValueError: a name or value holds CR, LF or NUL, which would end the header early.
    """
    content = b"".join(chain.from_iterable(headers))
    if _LF in content or _CR in content or _NUL in content:
        raise ValueError("a header holds a line break or a NUL")
    return b"\r\n".join([*map(b": ".join, headers), b""])
