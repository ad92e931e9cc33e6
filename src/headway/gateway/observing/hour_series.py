"""The last hour of traffic in slices of 20 s: what the charts of the live page show.

Laws: memory is bounded, whatever comes: 180 slices, each with at most 100 tenants and 100 replicas by name; requests of
further ones count as "others". The sums of the hour are those of its slices: a request is added to both, and a slice
that becomes older is subtracted. So a look adds nothing up again, however many tenants there are.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable
from typing import TypeAlias

from headway.gateway.observing.named_sums import NamedSums, largest
from headway.gateway.observing.request_history import shortened
from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest

LENGTH_BOUNDS = (256, 2_048, 16_384)  # prompt tokens
LENGTH_CLASSES = ("below 256", "256 to 2,047", "2,048 to 16,383", "16,384 and more")
_SLICE_SECONDS = 20.0
_SLICES = 180
_SECONDS_MIN = 5.0  # that a rate is taken over, else the first request of a slice would be a flood
_GROWTH = 1.1  # of a bucket of TTFT over the one before: a median is right within 5 %
_FIRST_SECONDS = 1e-3
# Bound once: on Python 3.11 a member of an enum takes forty times as long through its class.
_COMPLETED, _OUTCOMES = Outcome.COMPLETED, tuple(Outcome)
_Row: TypeAlias = tuple[float | None, ...]
"""What is shown of a slice: requests a second by outcome, input and output tokens a second, the most that waited, and
the median TTFT of each length class."""
_NO_ROW: _Row = (None,) * (len(_OUTCOMES) + 3 + len(LENGTH_CLASSES))


def length_class(prompt_tokens: int) -> int:
    """Place in `LENGTH_CLASSES`."""
    return bisect_right(LENGTH_BOUNDS, prompt_tokens)


class _Sums:
    """What is summed in a slice, and in the hour."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.ttft: tuple[Counter[int], ...] = tuple(Counter() for _ in LENGTH_CLASSES)  # streams by bucket
        self.replicas = NamedSums()
        self.tenants = NamedSums()

    def subtract(self, part: _Slice) -> None:
        """Take out what was added of a slice."""
        self.reasons -= part.reasons
        for buckets, other in zip(self.ttft, part.ttft, strict=True):
            buckets -= other  # noqa: PLW2901 - in place
        self.replicas.subtract(part.replicas)
        self.tenants.subtract(part.tenants)


class _Slice(_Sums):
    def __init__(self, number: int, waiting: int = 0) -> None:
        super().__init__()
        self.number = number
        self.outcomes: Counter[Outcome] = Counter()
        self.input_tokens = 0
        self.output_tokens = 0
        self.waiting = waiting  # the most at any look
        self.row: _Row | None = None  # once a later slice has begun


class HourSeries:
    """Observes requests when they end, and how many wait once a second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds and does not go back."""
        self._clock = clock
        self._began_at = clock()
        self._waiting = 0  # at the latest look
        self._slices: deque[_Slice] = deque()
        self._hour = _Sums()

    def look(self, waiting: int) -> None:
        """Note how many requests wait now; the most in a slice is kept."""
        self._waiting = waiting
        now = self._slice(self._clock())
        now.waiting = max(now.waiting, waiting)

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Count the request; TTFT is that of streams that were answered."""
        part, arrived, queued, relayed = self._slice(now), request.arrived, request.queued, request.relayed
        hour, is_answered = self._hour, reason is None
        part.outcomes[outcome] += 1
        if not is_answered:
            part.reasons[str(reason)] += 1
            hour.reasons[str(reason)] += 1
        output_tokens = 0
        if outcome is _COMPLETED:
            output_tokens = relayed.output_tokens
            part.output_tokens += output_tokens
            part.input_tokens += queued.prompt_tokens if relayed.usage is None else relayed.usage.prompt_tokens
            if arrived.streams and relayed.status == 200 and relayed.first_byte_at is not None:
                ttft = max(_FIRST_SECONDS, relayed.first_byte_at - arrived.arrived_at)
                bucket = math.floor(math.log(ttft / _FIRST_SECONDS) / math.log(_GROWTH))
                place = length_class(queued.prompt_tokens)
                part.ttft[place][bucket] += 1
                hour.ttft[place][bucket] += 1
        named = [(part.tenants, hour.tenants, shortened(arrived.tenant))]
        if queued.replica is not None:
            named.append((part.replicas, hour.replicas, queued.replica.name))
        for of_part, of_hour, full_name in named:
            name = of_part.bounded(full_name)
            of_part.add(name, output_tokens, is_answered=is_answered)
            of_hour.add(name, output_tokens, is_answered=is_answered)

    def shown(self) -> dict[str, object]:
        """The hour as JSON: lists begin an hour ago and end now; null is before the gateway began.

        Requests and tokens are a second's (null, too, in a slice that has just begun). Waiting is the most in a slice,
        TTFT is in seconds.
        """
        now = self._clock()
        last = int(now // _SLICE_SECONDS)
        self._forget(last)
        known = {part.number: part for part in self._slices}
        first = int(self._began_at // _SLICE_SECONDS)
        numbers = range(last - _SLICES + 1, last + 1)
        parts = [known.get(number) or _Slice(number) if number >= first else None for number in numbers]
        rows = [_NO_ROW if part is None else part.row or self._row(part, now) for part in parts]
        *rates, waiting = (list(column) for column in zip(*[row[: -len(LENGTH_CLASSES)] for row in rows], strict=True))
        medians = [list(column) for column in zip(*[row[-len(LENGTH_CLASSES) :] for row in rows], strict=True)]
        return {
            "slice_seconds": _SLICE_SECONDS,
            "requests": dict(zip(map(str, _OUTCOMES), rates, strict=False)),
            "tokens": {"input": rates[-2], "output": rates[-1]},
            "waiting": waiting,
            "ttft": [_times_of(*one) for one in zip(LENGTH_CLASSES, self._hour.ttft, medians, strict=True)],
            "reasons": dict(self._hour.reasons),
            "replicas": largest(self._hour.replicas, [None if part is None else part.replicas for part in parts]),
            "tenants": largest(self._hour.tenants, [None if part is None else part.tenants for part in parts]),
        }

    def _row(self, part: _Slice, now: float) -> _Row:
        figures = *(part.outcomes[outcome] for outcome in _OUTCOMES), part.input_tokens, part.output_tokens
        rates = [self._rate(figure, part.number, now) for figure in figures]
        return *rates, part.waiting, *(_quantile(buckets, 0.5) for buckets in part.ttft)

    def _rate(self, figure: float, number: int, now: float) -> float | None:
        """A second's; None in a slice that has just begun."""
        begin, end = number * _SLICE_SECONDS, (number + 1) * _SLICE_SECONDS
        seconds = min(now, end) - max(self._began_at, begin)
        if seconds < _SECONDS_MIN and begin > self._began_at:
            return None
        return round(figure / max(_SECONDS_MIN, seconds), 3)

    def _slice(self, now: float) -> _Slice:
        number = int(now // _SLICE_SECONDS)
        if not self._slices or self._slices[-1].number < number:
            self._forget(number)
            if self._slices:
                self._slices[-1].row = self._row(self._slices[-1], now)
            self._slices.append(_Slice(number, waiting=self._waiting))
        return self._slices[-1]

    def _forget(self, last: int) -> None:
        """Drop the slices of more than an hour ago; `last` is that of now."""
        while self._slices and self._slices[0].number <= last - _SLICES:
            self._hour.subtract(self._slices.popleft())


def _times_of(name: str, hour: Counter[int], medians: list[float | None]) -> dict[str, object]:
    """TTFT of one length class: over the hour, and the median of each slice."""
    quantiles = {"median": _quantile(hour, 0.5), "p99": _quantile(hour, 0.99)}
    return {"class": name, "requests": hour.total(), **quantiles, "medians": medians}


def _quantile(buckets: Counter[int], share: float) -> float | None:
    """Seconds below which this share of the requests lies: the middle of a bucket; None without any."""
    left = share * buckets.total()
    for place, requests in sorted(buckets.items()):
        left -= requests
        if left <= 0:
            return round(_FIRST_SECONDS * math.pow(_GROWTH, place + 0.5), 4)
    return None
