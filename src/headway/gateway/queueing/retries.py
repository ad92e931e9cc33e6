"""Second tries: how long they wait first, and how many may be under way for the whole gateway.

Laws: second tries of requests that a replica answered with an error are bounded, as in Envoy, by a share of all
requests inside and a least number. Beyond it they wait for one another, in order. A second try begins before its
request's time is over, or not at all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.settings import RequestSettings

_LEAST, _MOST = 0.5, 1.5  # of the mean time before a second try, between which it is drawn


class Retries:
    """One per process. `seed` is of the jitter. `delayed` counts second tries that had to wait for others."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"second tries {seed}")
        self._under_way: set[int] = set()  # numbers of the requests
        self._waiting: dict[int, float] = {}  # number -> since when, the longest first
        self.delayed = 0

    def are_possible(self, requests_inside: int, settings: RequestSettings) -> bool:
        """Whether there is any place for second tries that are bounded."""
        return _places(requests_inside, settings) >= 1

    def has_time(self, request: GatewayRequest, now: float, settings: RequestSettings) -> bool:
        """Whether a second try would begin within its request's time."""
        ends_by = request.arrived.ends_by
        return ends_by is None or now + _MOST * settings.backoff_seconds < ends_by

    def wait(self, request: GatewayRequest, now: float) -> None:
        """A second try of those that are bounded is to begin; `begin` says when it may."""
        self._waiting[request.arrived.number] = now

    def begin(self, requests_inside: int, settings: RequestSettings) -> Iterator[int]:
        """Numbers of waiting requests whose second try begins now; each ends with its request."""
        while self._waiting and len(self._under_way) < _places(requests_inside, settings):
            number = next(iter(self._waiting))
            del self._waiting[number]
            self._under_way.add(number)
            yield number

    def overdue(self, since: float) -> list[int]:
        """Numbers of requests that have waited from then on, or longer."""
        return [number for number, began in self._waiting.items() if began <= since]

    def is_waiting(self, request: GatewayRequest) -> bool:
        """Whether its second try waits for others to end."""
        return request.arrived.number in self._waiting

    def ended(self, request: GatewayRequest) -> bool:
        """A request ended, whether or not it was tried twice; whether waiting second tries are to be looked at."""
        number = request.arrived.number
        self._under_way.discard(number)
        self._waiting.pop(number, None)
        return bool(self._waiting)

    def backoff_seconds(self, settings: RequestSettings) -> float:
        """How long the next second try waits first."""
        return settings.backoff_seconds * self._chance.uniform(_LEAST, _MOST)


def _places(requests_inside: int, settings: RequestSettings) -> float:
    return max(settings.retries_min, settings.retry_share * requests_inside)
