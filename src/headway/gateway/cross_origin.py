"""Cross-origin requests: which web pages may call the API, and the headers that tell their browser so.

Source: the CORS protocol of the Fetch standard. A preflight carries no key by that standard, so none is asked of it.
An engine has no say in it: what its answers tell browsers of other origins is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from headway.gateway.budgets.rate_limit_headers import EVERY_NAME
from headway.gateway.wire.messages import Headers, HttpRequest, Response

_ANY = "*"
_EXPOSED = b", ".join(
    (
        *(b"x-request-id", b"x-headway-replica", b"x-headway-queue-ms", b"x-headway-reason"),
        *(b"x-headway-model", b"x-headway-service-tier"),
        *(b"retry-after", b"retry-after-ms", b"x-should-retry"),  # which clients of the OpenAI API obey
        *EVERY_NAME,
    )
)
_PREFLIGHT_SECONDS = b"600"
TELLS_OTHER_ORIGINS = (b"access-control-", b"timing-allow-origin")
"""How the headers begin by which a server tells browsers what pages of other origins may do."""
_VARIES = (b"vary", b"origin")


class CrossOrigin(NamedTuple):
    """What the configuration says to the page that sent a request.

    Attributes:
        may_read: whether there is such a page and it may read the answer.
        headers: that say so to its browser, on every answer; they also tell caches that other pages get others.
    """

    may_read: bool
    headers: tuple[tuple[bytes, bytes], ...]


def judge_origin(origin: bytes | None, origins: Sequence[str], *, needs_key: bool) -> CrossOrigin:
    """Whether the page that sent a request may read its answer.

    Args:
        origin: of the page, which its browser names; None where no page sent the request.
        origins: that are allowed, as configured.
        needs_key: whether each request needs a key; only then "*" counts, for the key keeps strangers out.
    """
    if not origins:
        return _NO_PAGE
    allows_any = needs_key and _ANY in origins
    if not allows_any and all(origin == _ANY for origin in origins):
        return _NO_PAGE
    if origin is None or not (allows_any or origin.decode("latin-1") in origins):
        return _OTHERS_MAY
    allowed = (b"access-control-allow-origin", origin), (b"access-control-expose-headers", _EXPOSED)
    return CrossOrigin(True, (*allowed, _VARIES))


def without_origin_twice(headers: Headers, ours: tuple[tuple[bytes, bytes], ...]) -> Headers:
    """The headers of an engine's answer; where `ours`, which are added later, name `origin` in `vary`, less that."""
    if _VARIES not in ours:
        return headers
    return [(name, value) for name, value in map(_without_origin, headers) if value or name != _VARIES[0]]


def _without_origin(pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    name, value = pair
    if name != _VARIES[0]:
        return pair
    return name, b", ".join(field for field in map(bytes.strip, value.split(b",")) if field.lower() != b"origin")


def is_preflight(request: HttpRequest) -> bool:
    """Whether a browser asks if its page may send a request."""
    named = request.named
    return request.method == b"OPTIONS" and b"origin" in named and b"access-control-request-method" in named


def preflight_answer(request: HttpRequest) -> Response:
    """Yes: whatever method and headers it wants to send. They are judged when they come."""
    wanted = request.header(b"access-control-request-headers")
    headers = [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", wanted or b"authorization, content-type"),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
    return Response(200, b"", headers=tuple(headers))


_NO_PAGE = CrossOrigin(False, ())
_OTHERS_MAY = CrossOrigin(False, (_VARIES,))
