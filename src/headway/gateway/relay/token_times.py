"""Token times of one stream: when its latest token came, and how long after the one before."""

from __future__ import annotations

from collections.abc import Callable

from headway.gateway.queueing.request_state import RelayedAnswer
from headway.gateway.replicas.inter_token_latency import InterTokenLatency

_NO_TOKEN_BYTES = 16
"""A piece of so few bytes holds `data: [DONE]` or a comment; an event with a token is longer."""


class TokenTimes:
    """Written to the answer, and to the latency of the replica that gives it."""

    __slots__ = ("_latency", "_now", "_relayed")

    def __init__(self, relayed: RelayedAnswer, latency: InterTokenLatency, now: Callable[[], float]) -> None:
        """`now` is the dispatcher's clock."""
        self._relayed = relayed
        self._latency = latency
        self._now = now

    def came(self, piece: bytes) -> None:
        """A piece of the stream was passed on: the path of every token. Tokens that come together count once."""
        if len(piece) <= _NO_TOKEN_BYTES:
            return
        relayed = self._relayed
        before = relayed.latest_token_at
        if before is None:
            relayed.latest_token_at = relayed.first_byte_at
        else:
            relayed.latest_token_at = now = self._now()
            self._latency.observe(now - before)
