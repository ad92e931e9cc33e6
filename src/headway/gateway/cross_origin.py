"""Cross-origin requests: which web pages may call the API, and the headers that tell their browser so.

Source: the CORS protocol of the Fetch standard. A preflight carries no key by that standard, so none is asked of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from headway.gateway.wire.messages import Headers, HttpRequest, Response

_ANY = "*"
_EXPOSED = b"x-request-id, x-headway-replica, x-headway-queue-ms, x-headway-reason, retry-after, retry-after-ms"
_PREFLIGHT_SECONDS = b"600"


def reply_headers(headers: Headers, origins: Sequence[str], *, needs_key: bool) -> tuple[tuple[bytes, bytes], ...]:
    """Headers of every answer to this request: its page may read it; empty where it may not, or there is no page.

    Args:
        headers: of the client's request.
        origins: that are allowed, as configured.
        needs_key: whether each request needs a key; only then "*" counts, for the key keeps strangers out.
    """
    origin = next((value for name, value in headers if name == b"origin"), None)
    if origin is None or (origin.decode("latin-1") not in origins and not (needs_key and _ANY in origins)):
        return ()
    return (
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"origin"),
    )


def is_preflight(request: HttpRequest) -> bool:
    """Whether a browser asks if its page may send a request."""
    return request.method == b"OPTIONS" and request.header(b"access-control-request-method") is not None


def preflight_answer(request: HttpRequest) -> Response:
    """Yes: whatever method and headers it wants to send. They are judged when they come."""
    wanted = request.header(b"access-control-request-headers")
    headers = [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", wanted or b"authorization, content-type"),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
    return Response(200, b"", headers=tuple(headers))
