"""The last hour of traffic in slices of 20 s: what the charts of the live page show.

Law: memory is bounded, whatever comes: 180 slices, each with at most 100 tenants and 100 replicas by name; requests of
further ones count as "others".
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from headway.gateway.observing.request_history import shortened
from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest

LENGTH_BOUNDS = (256, 2_048, 16_384)  # prompt tokens
LENGTH_CLASSES = ("below 256", "256 to 2,047", "2,048 to 16,383", "16,384 and more")
OTHERS = "others"
_SLICE_SECONDS = 20.0
_SLICES = 180
_NAMES_MAX = 100  # in a slice; who sends most is nearly always among the first of them
_NAMES_SHOWN = 10
_SECONDS_MIN = 5.0  # that a rate is taken over, else the first request of a slice would be a flood
_GROWTH = 1.1  # of a bucket of TTFT over the one before: a median is right within 5 %
_FIRST_SECONDS = 1e-3
# Bound once: on Python 3.11 a member of an enum takes forty times as long through its class.
_COMPLETED, _OUTCOMES = Outcome.COMPLETED, tuple(Outcome)


def length_class(prompt_tokens: int) -> int:
    """Place in `LENGTH_CLASSES`."""
    return bisect_right(LENGTH_BOUNDS, prompt_tokens)


@dataclass(slots=True)
class _NamedSums:
    requests: int = 0
    not_answered: int = 0  # of these, refused or failed
    output_tokens: int = 0


@dataclass(slots=True)
class _Slice:
    number: int
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    waiting: int = 0  # the most at any look
    ttft: tuple[Counter[int], ...] = field(default_factory=lambda: tuple(Counter() for _ in LENGTH_CLASSES))
    replicas: dict[str, _NamedSums] = field(default_factory=dict)
    tenants: dict[str, _NamedSums] = field(default_factory=dict)


class HourSeries:
    """Observes requests when they end, and how many wait once a second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds and does not go back."""
        self._clock = clock
        self._began_at = clock()
        self._waiting = 0  # at the latest look
        self._slices: deque[_Slice] = deque(maxlen=_SLICES)

    def look(self, waiting: int) -> None:
        """Note how many requests wait now; the most in a slice is kept."""
        self._waiting = waiting
        now = self._slice(self._clock())
        now.waiting = max(now.waiting, waiting)

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Count the request; TTFT is that of streams that were answered."""
        part, arrived, queued, relayed = self._slice(now), request.arrived, request.queued, request.relayed
        part.outcomes[outcome] += 1
        if reason is not None:
            part.reasons[str(reason)] += 1
        output_tokens = 0
        if outcome is _COMPLETED:
            output_tokens = relayed.output_tokens
            part.output_tokens += output_tokens
            part.input_tokens += queued.prompt_tokens if relayed.usage is None else relayed.usage.prompt_tokens
            if arrived.streams and relayed.status == 200 and relayed.first_byte_at is not None:
                ttft = max(_FIRST_SECONDS, relayed.first_byte_at - arrived.arrived_at)
                place = math.floor(math.log(ttft / _FIRST_SECONDS) / math.log(_GROWTH))
                part.ttft[length_class(queued.prompt_tokens)][place] += 1
        replica = [] if queued.replica is None else [(part.replicas, queued.replica.name)]
        for sums_by_name, name in [(part.tenants, shortened(arrived.tenant)), *replica]:
            sums = _named(sums_by_name, name)
            sums.requests += 1
            sums.not_answered += reason is not None
            sums.output_tokens += output_tokens

    def shown(self) -> dict[str, object]:
        """The hour as JSON: lists begin an hour ago and end now; null is before the gateway began.

        Requests and tokens are a second's (null, too, in a slice that has just begun). Waiting is the most in a slice,
        TTFT is in seconds.
        """
        now = self._clock()
        last = int(now // _SLICE_SECONDS)
        known = {part.number: part for part in self._slices if part.number > last - _SLICES}
        numbers = range(last - _SLICES + 1, last + 1)
        first = int(self._began_at // _SLICE_SECONDS)
        parts = [known.get(number) or _Slice(number) if number >= first else None for number in numbers]

        def rates(figure: Callable[[_Slice], float]) -> list[float | None]:
            return [None if part is None else self._rate(figure(part), part.number, now) for part in parts]

        def of_outcome(outcome: Outcome) -> list[float | None]:
            return rates(lambda part: part.outcomes[outcome])

        reasons: Counter[str] = Counter()
        for part in known.values():
            reasons.update(part.reasons)
        return {
            "slice_seconds": _SLICE_SECONDS,
            "requests": {str(outcome): of_outcome(outcome) for outcome in _OUTCOMES},
            "tokens": {
                "input": rates(lambda part: part.input_tokens),
                "output": rates(lambda part: part.output_tokens),
            },
            "waiting": [None if part is None else part.waiting for part in parts],
            "ttft": [_times_of(place, name, parts) for place, name in enumerate(LENGTH_CLASSES)],
            "reasons": dict(reasons),
            "replicas": _largest([None if part is None else part.replicas for part in parts]),
            "tenants": _largest([None if part is None else part.tenants for part in parts]),
        }

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
            self._slices.append(_Slice(number, waiting=self._waiting))
        return self._slices[-1]


def _named(sums_by_name: dict[str, _NamedSums], name: str) -> _NamedSums:
    if name not in sums_by_name and len(sums_by_name) >= _NAMES_MAX:
        name = OTHERS
    sums = sums_by_name.get(name)
    if sums is None:
        sums = sums_by_name[name] = _NamedSums()
    return sums


def _times_of(place: int, name: str, parts: Iterable[_Slice | None]) -> dict[str, object]:
    """TTFT of one length class: over the hour, and the median of each slice."""
    whole: Counter[int] = Counter()
    medians = []
    for part in parts:
        medians.append(None if part is None else _quantile(part.ttft[place], 0.5))
        if part is not None:
            whole.update(part.ttft[place])
    quantiles = {"median": _quantile(whole, 0.5), "p99": _quantile(whole, 0.99)}
    return {"class": name, "requests": whole.total(), **quantiles, "medians": medians}


def _quantile(buckets: Counter[int], share: float) -> float | None:
    """Seconds below which this share of the requests lies: the middle of a bucket; None without any."""
    left = share * buckets.total()
    for place, requests in sorted(buckets.items()):
        left -= requests
        if left <= 0:
            return round(_FIRST_SECONDS * math.pow(_GROWTH, place + 0.5), 4)
    return None


def _largest(parts: list[dict[str, _NamedSums] | None]) -> list[dict[str, object]]:
    """The names with most requests in the hour, the others added up as the last one; requests are those of a slice."""
    totals: Counter[str] = Counter()
    for part in parts:
        totals.update({name: sums.requests for name, sums in (part or {}).items() if name != OTHERS})
    shown = [name for name, _ in totals.most_common(_NAMES_SHOWN)]
    place_of = {name: place for place, name in enumerate(shown)}
    rows = [_NamedSums() for _ in range(len(shown) + 1)]
    lists: list[list[int | None]] = [[] for _ in rows]
    for part in parts:
        for requests in lists:
            requests.append(None if part is None else 0)
        for name, sums in (part or {}).items():
            place = place_of.get(name, len(shown))
            rows[place].requests += sums.requests
            rows[place].not_answered += sums.not_answered
            rows[place].output_tokens += sums.output_tokens
            lists[place][-1] = (lists[place][-1] or 0) + sums.requests
    entries: list[dict[str, object]] = [
        {
            "name": name,
            "requests": row.requests,
            "not_answered": row.not_answered,
            "output_tokens": row.output_tokens,
            "by_slice": requests,
        }
        for name, row, requests in zip([*shown, OTHERS], rows, lists, strict=True)
    ]
    return entries if rows[-1].requests else entries[:-1]
