"""Refusals that need no body: of a key, a host name, a web page, a path, a method or a header sent twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from http import HTTPStatus

from headway.gateway.openai.allowed_paths import why_not_allowed
from headway.gateway.openai.error_responses import Reason, bad_request, error_response, not_found
from headway.gateway.signed_tokens import KeyFault
from headway.gateway.wire.messages import HttpRequest, Response, with_headers

_ASKS_KEY = ((b"www-authenticate", b'Bearer realm="headway"'),)
_OUR_HEADERS = b"x-headway-"
_NAME_CHARACTERS_SHOWN = 100
_FOREIGN_PAGE = "pages of this origin may not call this gateway; its operator can add the origin to `cors_origins`"


def no_key(fault: KeyFault) -> Response:
    """The refusal of a request whose key or token opens nothing."""
    refusal = error_response(fault.status, fault.message, Reason.UNAUTHORISED, retry_seconds=fault.retry_seconds)
    return with_headers(refusal, _ASKS_KEY) if fault.status == HTTPStatus.UNAUTHORIZED else refusal


def foreign_page() -> Response:
    """The refusal of a preflight of a web page that may not call the API."""
    return error_response(403, _FOREIGN_PAGE, Reason.MALFORMED)


def foreign_host() -> Response:
    """The refusal of a name that cannot lead here, where nothing but a loopback address keeps strangers out."""
    message = "this gateway listens on this machine only, and is not known by the name in the host header"
    return error_response(421, f"{message}; its operator can add that name to `hosts`", Reason.MALFORMED)


def loop() -> Response:
    """The refusal of a request that this gateway has sent itself."""
    message = "this request was passed on by this gateway before: the url of a replica leads back to it"
    return error_response(508, f"{message}; name the engine's own address", Reason.MALFORMED)


def not_forwarded(request: HttpRequest, more: Collection[str]) -> Response | None:
    """The refusal of a path or a method that no replica may get; None if one may. `more`: see `why_not_allowed`."""
    fault = why_not_allowed(request.path, request.method, more)
    if fault is None:
        return None
    status, message, methods = fault
    refusal = not_found(message) if status == HTTPStatus.NOT_FOUND else bad_request(status, message)
    return with_headers(refusal, ((b"allow", methods.encode()),)) if methods else refusal


def repeated_term(request: HttpRequest) -> Response | None:
    """The refusal of a header of ours that is sent more than once: whichever counted, its client might mean the other.

    None where there is none.
    """
    if len(request.named) == len(request.headers):  # as mostly
        return None
    numbers = Counter(name for name, _ in request.headers if name.startswith(_OUR_HEADERS))
    repeated = next((name for name, number in numbers.items() if number > 1), None)
    if repeated is None:
        return None
    shown = repeated.decode("latin-1")[:_NAME_CHARACTERS_SHOWN]
    return error_response(400, f"the header {shown} is sent more than once; send it once", Reason.MALFORMED)


def head_not_forwarded() -> Response:
    """The refusal of a HEAD request, whose answer no replica is asked for."""
    refusal = error_response(405, "HEAD requests are not forwarded; use GET", Reason.MALFORMED)
    return with_headers(refusal, ((b"allow", b"GET"),))
