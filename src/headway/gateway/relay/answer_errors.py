"""Errors in place of an answer, or at the end of one that has begun, in the shape of the path that was asked."""

from __future__ import annotations

from dataclasses import replace

from headway.gateway.openai.error_responses import ApiError, Reason, error_response
from headway.gateway.openai.error_shapes import shape_of
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import GatewayRequest, id_text
from headway.gateway.wire.messages import Response

_STATUSES = {Reason.REPLICA_TIMEOUT: 504, Reason.REQUEST_TIMEOUT: 504, Reason.DRAINING: 503, Reason.INTERNAL_ERROR: 500}


def status_of(reason: Reason) -> int:
    """The status of a failure at a replica: 502, but for those that have a status of their own."""
    return _STATUSES.get(reason, 502)


def error_answer(request: GatewayRequest, refusal: Refusal) -> Response:
    """The whole answer to a refused request; the connection gives it the shape of its path."""
    status, message, reason, retry_seconds, headers = refusal
    request_id = request.arrived.request_id
    response = error_response(status, message, reason, retry_seconds=retry_seconds, request_id=id_text(request_id))
    return replace(response, headers=(*response.headers, *headers, (b"x-request-id", request_id)))


def error_event(request: GatewayRequest, status: int, message: str, reason: Reason) -> bytes:
    """The last event of a stream that ends with an error."""
    arrived = request.arrived
    error = ApiError(status, message, reason, request_id=id_text(arrived.request_id))
    return shape_of(arrived.http.path).event(error, request.relayed.events)
