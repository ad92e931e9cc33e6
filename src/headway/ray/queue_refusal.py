"""The exception of a refused call. In a file of its own: Ray pickles a router's file by value, and callers import this.

Its message is one sentence; Ray makes the HTTP answer of it.
"""

from __future__ import annotations

from http import HTTPStatus

from ray.serve.exceptions import BackPressureError

from headway.ray.queue_messages import RefusedRequest


class QueueRefusal(BackPressureError):  # type: ignore[misc] # of Ray, which mypy does not see
    """Refused by the queue. Ray answers an HTTP request with its status and `Retry-After`.

    Attributes:
        reason: a `Reason` of the gateway, for example `queue-full`.
    """

    def __init__(self, message: str, status_code: int, retry_after_s: float | None, reason: str) -> None:
        super().__init__(0, 0, status_code, retry_after_s)
        self.args = (message, status_code, retry_after_s, reason)  # by which it pickles
        self._sentence = message
        self.reason = reason

    def __str__(self) -> str:
        return self._sentence

    @property
    def message(self) -> str:
        """What the client reads."""
        return self._sentence


def refusal_of(refusal: RefusedRequest) -> QueueRefusal:
    """The exception that Ray turns into an HTTP answer; its proxy passes 408, 429 and 503 on, and no other status."""
    status = 408 if refusal.status == HTTPStatus.GATEWAY_TIMEOUT else refusal.status
    return QueueRefusal(refusal.message, status, refusal.retry_seconds, refusal.reason)
