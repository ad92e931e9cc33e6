"""Rules for request heads: what is ambiguous, too large or not HTTP/1.1 is refused.

llhttp has refused most ambiguous heads already; these rules refuse the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain

from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.messages import BadRequest, Headers, HttpRequest
from headway.gateway.wire.request_target import is_host, resolve_target

_SLASH, _DOT = rb"(?:[/\\]|%(?:25)*(?:2f|5c))", rb"(?:\.|%(?:25)*2e)"
_DOT_SEGMENT = re.compile(_SLASH + _DOT + rb"{1,2}(?:" + _SLASH + rb"|;|%(?:25)*3b|\Z)", re.IGNORECASE)
"""A segment `.` or `..`, however it is encoded: a server behind us may resolve it, and reach what no rule allows."""


_DOT_BYTE, _PERCENT_BYTE = b".%"


def judge_head(request: HttpRequest, version: str, limits: WireLimits) -> BadRequest | None:
    """What is wrong with a head; None if nothing is. `version` is "1.1", as it was parsed.

    A target that is no path is resolved (`resolve_target`).
    """
    headers, named = request.headers, request.named
    repeated = _repeated(headers) if len(named) != len(headers) else ()
    if version not in ("1.0", "1.1"):
        return BadRequest(505, f"HTTP/{version} is not supported; use HTTP/1.1")
    if len(headers) > limits.headers:
        return BadRequest(431, f"the request has more than {limits.headers} headers, the limit `wire.headers`")
    if sum(map(len, chain.from_iterable(headers))) + 4 * len(headers) + len(request.target) > limits.head_bytes:
        return headers_too_long(limits)
    coding = named.get(b"transfer-encoding")
    if coding is not None and (version == "1.0" or coding.lower() != b"chunked" or b"transfer-encoding" in repeated):
        return BadRequest(400, "transfer-encoding must be chunked, once, and only in HTTP/1.1")
    length = named.get(b"content-length")
    if b"content-length" in repeated or (length is not None and coding is not None):
        return BadRequest(
            400, "the length of the body is given twice; send one content-length or transfer-encoding header"
        )
    if b"host" in repeated or (version == "1.1" and b"host" not in named):
        return BadRequest(400, "the request must have exactly one host header")
    if not is_host(named.get(b"host", b"")):
        return BadRequest(400, "the host header names no host; send a name or an address, perhaps with a port")
    if request.method == b"CONNECT" or not request.target.startswith(b"/"):
        fault = resolve_target(request)
        if fault is not None:
            return fault
    if (_DOT_BYTE in request.target or _PERCENT_BYTE in request.target) and _DOT_SEGMENT.search(
        request.target.partition(b"?")[0]
    ) is not None:
        return BadRequest(400, "the path has a segment . or ..; send the path that it stands for")
    return None


def judge_length(request: HttpRequest, limits: WireLimits) -> BadRequest | None:
    """What is wrong with the length that a head gives of its body; None if nothing is, or if it gives none."""
    length = request.named.get(b"content-length")
    return body_too_long(limits) if length is not None and int(length) > limits.body_bytes else None


def _repeated(headers: Headers) -> set[bytes]:
    """Names that occur more than once."""
    numbers = Counter(name for name, _ in headers)
    return {name for name, number in numbers.items() if number > 1}


def not_http(beginning: bytes, error: Exception) -> BadRequest:
    """What was sent cannot be parsed; two protocols that clients speak by mistake are known by how they begin."""
    if beginning.startswith(b"PRI * HTTP/2"):
        return BadRequest(400, "the client began with HTTP/2, and this gateway speaks HTTP/1.1; set the client to that")
    if beginning.startswith(b"\x16\x03"):
        return BadRequest(400, "the client began a TLS handshake, and this address is plain HTTP; use http://")
    return BadRequest(400, f"the request is not valid HTTP/1.1: {error}")


def headers_too_long(limits: WireLimits) -> BadRequest:
    """The request line and the headers are longer than allowed."""
    return BadRequest(431, f"the headers are longer than {limits.head_bytes} bytes, the limit `wire.head_bytes`")


def trailers_too_long(limits: WireLimits) -> BadRequest:
    """What frames a body, or follows it, is longer than allowed."""
    return BadRequest(
        431,
        f"a chunk's extension or the trailers are longer than {limits.head_bytes} bytes, the limit `wire.head_bytes`",
    )


def too_far_ahead(limits: WireLimits) -> BadRequest:
    """Too much was sent before the answer to an earlier request."""
    message = f"more than {limits.ahead_bytes} bytes were sent before the answer to the request before them"
    return BadRequest(413, f"{message} (`wire.ahead_bytes`); send one request after the other")


def body_too_long(limits: WireLimits) -> BadRequest:
    """The body is longer than allowed."""
    return BadRequest(413, f"the body is longer than {limits.body_bytes} bytes, the limit `wire.body_bytes`")
