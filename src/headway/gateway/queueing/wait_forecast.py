"""A forecast of a request's wait: the work ahead of it over the rate at which work leaves the queue.

The rate is measured while requests wait, for the whole fleet's speed: where replicas are down it is less by their share
of that speed, from the moment they are. Orders other than FCFS serve some lengths before others. So the wait of each
length class is learned as a share of the whole queue's drain time at arrival.
"""

from __future__ import annotations

import math

from headway.domain.request import Request, expected_output_tokens, uncached_prefill_tokens

_HALF_LIFE_SECONDS = 30.0
_CREDIBLE_SECONDS = 3.0  # of backlog seen before the rate is believed
_LEARNING = 0.1
_OUTPUT_WEIGHT = 2.0  # tokens: an output token costs about twice a prompt token (VTC, arXiv 2401.00588)


def work_of(request: Request) -> float:
    """Expected work, in weighted tokens."""
    return uncached_prefill_tokens(request) + _OUTPUT_WEIGHT * expected_output_tokens(request) * request.sequences


class WaitForecast:
    """The forecast of one queue."""

    def __init__(self) -> None:
        self._work = 0.0  # decayed: work that left while requests waited
        self._seconds = 0.0  # decayed: time in which requests waited, weighted by the share of speed that was up
        self._share_up = 1.0
        self._since: float | None = None  # since when requests wait; moves on with every update
        self._shares: dict[int, float] = {}  # length class -> mean of (wait / drain time at arrival)

    def backlog(self, waits: bool, now: float) -> None:
        """Whether any request waits, from now on."""
        if self._since is not None:
            self._pass_time(now, self._since)
        self._since = now if waits else None

    def speed_up(self, share: float, now: float) -> None:
        """Which share of the speed of all replicas that serve the queue is up, from now on."""
        if self._since is not None:
            self._pass_time(now, self._since)
        self._share_up = share

    def dispatched(self, work: float, now: float) -> None:
        """Work left the queue; it counts only if requests had been waiting."""
        if self._since is not None:
            self._pass_time(now, self._since)
            self._work += work

    def waited(self, request: Request, drain_seconds: float, seconds: float) -> None:
        """A request waited `seconds` where the forecast for the queue ahead of it was `drain_seconds`."""
        if drain_seconds > 0:
            share = min(3.0, seconds / drain_seconds)
            known = self._shares.get(_length_class(request))
            self._shares[_length_class(request)] = share if known is None else known + _LEARNING * (share - known)

    def rate(self) -> float | None:
        """Weighted tokens a second that leave while requests wait; None before enough was seen, or with none up."""
        if self._seconds < _CREDIBLE_SECONDS or self._work <= 0 or self._share_up <= 0:
            return None
        return self._share_up * self._work / self._seconds

    def drain_seconds(self, waiting_work: float) -> float | None:
        """Seconds until that much waiting work has left; None before enough was seen."""
        rate = self.rate()
        return None if rate is None else waiting_work / rate

    def wait_seconds(self, request: Request, drain_seconds: float) -> float:
        """The forecast for a request that arrives now, behind work that leaves within `drain_seconds`."""
        return drain_seconds * self._shares.get(_length_class(request), 1.0)

    def _pass_time(self, now: float, since: float) -> None:
        seconds = now - since
        if seconds <= 0:
            return
        keep = math.exp2(-seconds / _HALF_LIFE_SECONDS)
        self._work *= keep
        self._seconds = self._seconds * keep + seconds * self._share_up
        self._since = now


def _length_class(request: Request) -> int:
    """Prompts within a factor of two of each other share a class."""
    return request.prompt_tokens.bit_length()
