"""Second tries: how long they wait first, and how many may be under way for the whole gateway.

Laws: second tries that a replica may execute a second time while it works on the first are bounded, as in Envoy, by a
share of all requests inside and a least number; a second try begins before its request's time is over, or not at all.
"""

from __future__ import annotations

import random

from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.settings import RequestSettings

_LEAST, _MOST = 0.5, 1.5  # of the mean time before a second try, between which it is drawn


class Retries:
    """One per process. `seed` is of the jitter. `withheld` counts second tries that the bound did not allow."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"second tries {seed}")
        self._under_way: set[int] = set()  # numbers of the requests
        self.withheld = 0

    def has_place(self, requests_inside: int, settings: RequestSettings) -> bool:
        """Whether one more second try of those that are bounded may begin."""
        return len(self._under_way) < max(settings.retries_min, settings.retry_share * requests_inside)

    def has_time(self, request: GatewayRequest, now: float, settings: RequestSettings) -> bool:
        """Whether a second try would begin within its request's time."""
        ends_by = request.arrived.ends_by
        return ends_by is None or now + _MOST * settings.backoff_seconds < ends_by

    def begin(self, request: GatewayRequest) -> None:
        """A second try of those that are bounded begins; it ends with its request."""
        self._under_way.add(request.arrived.number)

    def ended(self, request: GatewayRequest) -> None:
        """A request ended, whether or not it was tried twice."""
        self._under_way.discard(request.arrived.number)

    def backoff_seconds(self, settings: RequestSettings) -> float:
        """How long the next second try waits first."""
        return settings.backoff_seconds * self._chance.uniform(_LEAST, _MOST)
