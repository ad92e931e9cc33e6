"""Request targets that are no path: each of the four forms of RFC 9112, section 3.2, has its answer.

A path (origin-form) is used as it came and never gets here. Of an absolute URL, path and authority are used, and its
authority takes the place of `Host`. `OPTIONS *` asks about the gateway itself. `CONNECT` asks for a tunnel: there is
none.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from headway.gateway.wire.messages import BadRequest, HttpRequest

ALLOWED_METHODS = b"GET, HEAD, POST, DELETE, OPTIONS"
"""What `OPTIONS *` is told: the methods that some path takes."""

_ABSOLUTE = re.compile(rb"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>[^#]*)", re.IGNORECASE)
_HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]*|\[[\w.:~!$&'()*+,;=%-]+\])(?::\d*)?", re.ASCII)  # RFC 3986, section 3.2.2


def is_host(value: bytes) -> bool:
    """Whether a `Host` header has a form that a server has to accept; it may be empty (RFC 9110, section 7.2)."""
    return _HOST.fullmatch(value) is not None


def resolve_target(request: HttpRequest) -> BadRequest | None:
    """Read a target that is no path: the request gets the path and the `Host` that it stands for.

    Returns:
        Why it is refused, else None.
    """
    method, target = request.method, request.target
    if method == b"CONNECT":
        return BadRequest(HTTPStatus.NOT_IMPLEMENTED, "this gateway is no proxy, so CONNECT is not implemented")
    if target == b"*":
        if method == b"OPTIONS":
            return None
        return BadRequest(HTTPStatus.BAD_REQUEST, "the request target * is for OPTIONS only; send a path")
    url = _ABSOLUTE.fullmatch(target)
    if url is None:
        return BadRequest(HTTPStatus.BAD_REQUEST, "the request target must be a path, or an http or https URL")
    scheme, authority, rest = url.group("scheme", "authority", "rest")
    if scheme.lower() not in (b"http", b"https"):
        return BadRequest(HTTPStatus.BAD_REQUEST, "the URL in the request line must begin with http:// or https://")
    if b"@" in authority:
        return BadRequest(HTTPStatus.BAD_REQUEST, "the URL in the request line holds a user name; send the key instead")
    if authority.startswith(b":") or not authority or not is_host(authority):
        return BadRequest(HTTPStatus.BAD_REQUEST, "the URL in the request line names no host")
    if not rest.startswith(b"/"):  # "http://host" or "http://host?query": RFC 9112, sections 3.2.1 and 3.2.4
        rest = b"*" if method == b"OPTIONS" and not rest else b"/" + rest
    others = [pair for pair in request.headers if pair[0] != b"host"]
    request.change_headers([(b"host", authority), *others])
    request.change_target(rest)
    return None
