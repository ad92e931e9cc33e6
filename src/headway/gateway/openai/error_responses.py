"""Error responses, and the closed list of reasons why a request was refused or failed.

They are made in OpenAI's format; `error_shapes.py` gives them that of the path asked, when they leave.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import NamedTuple

from headway.gateway.wire.messages import Response

REASON_HEADER = b"x-headway-reason"
RETRY_SECONDS_MAX = 120.0
"""openai-python obeys delays up to this one; a longer one makes it give up at once (`_base_client.py`)."""
_OVERLOADED_SECONDS = 1.0  # after which a client may retry that broke a limit of connections or bodies


class Reason(StrEnum):
    """Why a request was not answered by a replica: the values of `x-headway-reason` and of the metric's label."""

    MALFORMED = "malformed"
    OVERLOADED = "overloaded"
    UNAUTHORISED = "unauthorised"
    NOT_FOUND = "not-found"
    UNKNOWN_MODEL = "unknown-model"
    QUEUE_FULL = "queue-full"
    TENANT_QUEUE_FULL = "tenant-queue-full"
    CLASS_FULL = "class-full"
    NO_QUEUE = "no-queue"
    OVER_BUDGET = "over-budget"
    DEADLINE_UNMEETABLE = "deadline-unmeetable"
    QUEUE_TIMEOUT = "queue-timeout"
    REQUEST_TIMEOUT = "request-timeout"
    NO_REPLICA = "no-replica"
    DRAINING = "draining"
    STANDBY = "standby"
    REPLICA_FAILED = "replica-failed"
    REPLICA_TIMEOUT = "replica-timeout"
    CANCELLED = "cancelled"
    STORAGE_FULL = "storage-full"
    INTERNAL_ERROR = "internal-error"


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_CODES: dict[Reason, str] = {
    Reason.OVERLOADED: "server_is_overloaded",
    Reason.UNAUTHORISED: "invalid_api_key",
    Reason.UNKNOWN_MODEL: "model_not_found",
    Reason.QUEUE_FULL: "rate_limit_exceeded",
    Reason.TENANT_QUEUE_FULL: "rate_limit_exceeded",
    Reason.CLASS_FULL: "rate_limit_exceeded",
    Reason.NO_QUEUE: "rate_limit_exceeded",
    Reason.OVER_BUDGET: "rate_limit_exceeded",
    Reason.DEADLINE_UNMEETABLE: "rate_limit_exceeded",
    Reason.QUEUE_TIMEOUT: "rate_limit_exceeded",
    Reason.NO_REPLICA: "server_is_overloaded",
    Reason.DRAINING: "server_is_overloaded",
    Reason.STANDBY: "server_is_overloaded",
}


class ApiError(NamedTuple):
    """What an error says, in whatever shape. `param` names the field at fault; `request_id` is the request's."""

    status: int
    message: str
    reason: Reason
    param: str | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorResponse(Response):
    """A response that is an error, with what it says."""

    error: ApiError


def code_of(error: ApiError) -> str:
    """OpenAI's code of an error."""
    return _CODES.get(error.reason, str(error.reason).replace("-", "_"))


def error_body(error: ApiError) -> bytes:
    """`{"error": {message, type, param, code}}`, OpenAI's shape."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    fields = {"message": error.message, "type": kind, "param": error.param, "code": code_of(error)}
    return json.dumps({"error": fields}).encode()


_FINAL = (
    *(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST, HTTPStatus.GONE),
    *(HTTPStatus.CONFLICT, HTTPStatus.INSUFFICIENT_STORAGE),  # client libraries would try both again
)


def error_response(
    status: int,
    message: str,
    reason: Reason,
    *,
    retry_seconds: float | None = None,
    param: str | None = None,
    request_id: str = "",
) -> Response:
    """An error as client libraries read it; `retry_seconds` becomes both retry headers, at most 120 s."""
    headers = [(REASON_HEADER, str(reason).encode())]
    if retry_seconds is not None:
        headers += retry_headers(retry_seconds)
    elif reason is Reason.REQUEST_TIMEOUT or status in _FINAL:  # client libraries try a 504 again, which takes as long
        headers.append((b"x-should-retry", b"false"))
    error = ApiError(status, message, reason, param, request_id)
    return ErrorResponse(status, error_body(error), headers=tuple(headers), error=error)


def not_found(message: str, *, param: str | None = None) -> Response:
    """The response to a request for a path, a file, a batch or a request that is not there."""
    return error_response(HTTPStatus.NOT_FOUND, message, Reason.NOT_FOUND, param=param)


def bad_request(status: int, message: str) -> Response:
    """The response to a request that is not valid, or beyond a limit of the wire (`RequestHandler.bad_request`)."""
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return error_response(status, message, Reason.OVERLOADED, retry_seconds=_OVERLOADED_SECONDS)
    return error_response(status, message, Reason.MALFORMED)


def reason_of(response: Response) -> str:
    """The reason that a response made here gives; "" if it gives none."""
    return next((value.decode() for name, value in response.headers if name == REASON_HEADER), "")


def retry_headers(seconds: float) -> list[tuple[bytes, bytes]]:
    """`Retry-After` in whole seconds, rounded up, and `retry-after-ms`, which openai-python reads first."""
    bounded = min(max(seconds, 0.001), RETRY_SECONDS_MAX)
    return [(b"retry-after", b"%d" % math.ceil(bounded)), (b"retry-after-ms", b"%d" % math.ceil(bounded * 1000))]
