"""Boost: arrival order, in which small requests move ahead by a time that depends on their size and on the load."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from headway.domain.costs import ServiceCosts
from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, Preempted
from headway.domain.request import RequestId, RequestView, uncached_prefill_tokens
from headway.policies.contracts import Need
from headway.policies.predicted_work import added_seconds, output_tokens_left
from headway.policies.tunable import Tunable

_PROBABILITIES = tuple((number + 0.5) / 9 for number in range(9))
_LEAST_SECONDS = 1e-3  # a size below it counts as it: the boost of nothing would be without bound
_REMEMBERED = 10_000  # sizes and times between arrivals that the decay rate is found from
_LEAST_KNOWN = 20  # of each, before anything moves ahead
_LOOK_SECONDS = 60.0  # between two estimates of the decay rate
_LOAD = 0.98  # that the decay rate is found at: where an order matters requests wait, and at 1 there is no rate
_MEDIAN_BOOST_SECONDS_MAX = 60.0
_BINS_PER_E = 1 / math.log(1.1)  # values of one bin differ by less than a tenth
_ROUNDS = 60  # of a bisection
_BACKLOG_REQUESTS = 4  # that wait, where the replica surely has all that it can do
_BACKLOG_SECONDS_MIN, _BACKLOG_SECONDS_MAX = 5.0, 600.0


class Boost:
    """Least arrival time less a boost that is large for small requests (γ-Boost).

    Idea: a wait longer than t has a chance of about C·e^(-γt). Every order that lets a request pass another only within
        a bounded time has the same decay rate γ. Boosting by (1/γ)·ln(1/(1 - e^(-γs))) for a size s has the least C. So
        the tail is as short as it can be, and small requests wait little all the same. A request of size s passes only
        those that came at most its boost earlier.
    Source: γ-Boost, arXiv 2404.08826 (one server, Poisson arrivals, light-tailed sizes; for uncertain sizes
        (1/γ)·ln(m/(m - 1)) with m = E[e^(γS)]); for LLM serving arXiv 2606.18431. The size is what a request adds to
        the work of the whole replica: its uncached prompt, and its share of the decode steps. It goes by the costs of a
        token, corrected by how long such work took while four or more requests waited. The rate γ is the root of
        E[e^(γS)]·E[e^(-γA)] = 1 over the last 10,000 completed sizes S and times A between arrivals. These times are
        stretched or squeezed to a load of 0.98. The root is found once a minute. It is raised where the median request
        would be boosted by more than 60 s. Then `decay_factor` multiplies it: above 1 nearer to FCFS, below 1 nearer to
        shortest first. Deviations: the load is not the measured one, since that swings for minutes and γ with it, by a
        factor of 100. Ranks of one rate would then stand beside those of another (docs/results/frontier.md). And from
        2606.18431, no rank changes while a request waits or runs. Until 20 requests have ended it is FCFS.
    Reads: the arrival time, prompt length, cached prompt tokens, the length estimate's quantiles, seconds per token,
        arrivals, admissions and ends.
    Wins when: the tail counts, and rushes come and go.
    Loses when: the mean alone counts, or sizes are so heavy-tailed that the largest decide the rate (it is near FCFS
        then); where the replica is limited by KV memory, which the size does not see.
    """

    follows_what_is_learned = True
    hears = (Arrived, Admitted, Preempted, Completed, Cancelled)
    NEEDS = frozenset([Need.CACHED_TOKENS])

    TUNABLE: ClassVar[tuple[Tunable, ...]] = (Tunable("decay_factor", 0.03, 30.0, "log"),)

    def __init__(self, *, costs: ServiceCosts, decay_factor: float = 1.0) -> None:
        if not 0 < decay_factor < math.inf:
            raise ValueError(f"decay_factor must be above 0 and finite, got {decay_factor:g}")
        self._costs = costs
        self._decay_factor = decay_factor
        self._sizes = _BinnedValues()
        self._gaps = _BinnedValues()
        self._pace = _Pace()
        self._last_arrival: float | None = None
        self._look_at = -math.inf
        self._known = 0  # sizes when the rate was found last
        self.decay_rate = math.inf
        """γ in use, 1/s; infinite while nothing moves ahead."""

    def rank(self, request: RequestView) -> float:
        """The arrival time less the boost, seconds."""
        if self.decay_rate == math.inf:
            return request.arrived_at
        return request.arrived_at - boost_seconds(self._sizes_of(request), self.decay_rate)

    def observe(self, event: Event) -> None:
        """Remember sizes and times between arrivals; find the decay rate when it is time."""
        self._pace.observe(event, self._mean_size)
        match event:
            case Arrived(request=request):
                if self._last_arrival is not None:
                    self._gaps.add(max(0.0, request.arrived_at - self._last_arrival))
                self._last_arrival = request.arrived_at
            case Completed(request=request, at=at, output_tokens=output_tokens):
                uncached = max(0, request.prompt_tokens - request.cached_prompt_tokens)
                self._sizes.add(self._size(uncached, output_tokens * request.sequences))
                is_new = len(self._sizes) >= max(_LEAST_KNOWN, 2 * self._known)  # soon at the start
                if is_new or (at >= self._look_at and self._known):
                    self._known = len(self._sizes)
                    self._look_at = at + _LOOK_SECONDS
                    self._find_rate()
            case _:
                pass

    def _size(self, uncached_tokens: int, output_tokens: float) -> float:
        return max(_LEAST_SECONDS, added_seconds(uncached_tokens, output_tokens, self._costs))

    def _mean_size(self, request: RequestView) -> float:
        return self._size(uncached_prefill_tokens(request), output_tokens_left(request))

    def _sizes_of(self, request: RequestView) -> list[float]:
        """Sizes that it may have, each as likely as the others, seconds."""
        uncached, estimate, pace = uncached_prefill_tokens(request), request.estimate, self._pace.seconds
        if estimate is None:
            return [pace * self._size(uncached, 0.0)]
        produced = request.produced_tokens
        return [
            pace * self._size(uncached, estimate.remaining_quantile(probability, produced) * request.sequences)
            for probability in _PROBABILITIES
        ]

    def _find_rate(self) -> None:
        pace = self._pace.seconds
        sizes, gaps = [(pace * size, count) for size, count in self._sizes.weighted()], self._gaps.weighted()
        if len(self._gaps) < _LEAST_KNOWN or not any(gap for gap, _ in gaps):
            return
        stretch = _mean(sizes) / _mean(gaps) / _LOAD
        rate = decay_rate(sizes, [(stretch * gap, count) for gap, count in gaps])
        median = pace * self._sizes.median()
        if boost_seconds([median], rate) > _MEDIAN_BOOST_SECONDS_MAX:
            rate = _crossing(lambda g: _MEDIAN_BOOST_SECONDS_MAX - boost_seconds([median], g), rate)
        self.decay_rate = self._decay_factor * rate


def boost_seconds(sizes: Sequence[float], rate: float) -> float:
    """(1/γ)·ln(m/(m - 1)), m the mean of e^(γs): how much earlier a request of one of these sizes counts as come."""
    log_mean = _log_mean_exp([(rate * size, 1) for size in sizes])
    return (-math.log1p(-math.exp(-log_mean)) if log_mean > 1 else -math.log(-math.expm1(-log_mean))) / rate


def decay_rate(sizes: Sequence[tuple[float, int]], gaps: Sequence[tuple[float, int]]) -> float:
    """The positive root of E[e^(γS)]·E[e^(-γA)] = 1, in 1/s; above a load of 0.98 with longer gaps, at 0.98.

    Args:
        sizes: (seconds, how often), each above 0.
        gaps: (seconds between two arrivals, how often), not all 0.
    """
    load = _mean(sizes) / _mean(gaps)
    stretch = max(1.0, load / _LOAD)

    def excess(rate: float) -> float:
        return _log_mean_exp([(rate * size, count) for size, count in sizes]) + _log_mean_exp(
            [(-rate * stretch * gap, count) for gap, count in gaps]
        )

    return _crossing(excess, 1e-3 / max(size for size, _ in sizes))


def _crossing(value: Callable[[float], float], start: float) -> float:
    """Where a function that is negative just above 0 and then rises through 0 does so, for an argument above 0."""
    low, high = 0.0, start
    for _ in range(_ROUNDS):
        if value(high) > 0:
            break
        low, high = high, 2 * high
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if value(middle) > 0:
            high = middle
        else:
            low = middle
    return high


def _log_mean_exp(weighted: Iterable[tuple[float, int]]) -> float:
    """ln of the mean of e^x, each x so often; exact for small x, without overflow for large ones of either sign."""
    pairs = list(weighted)
    count = sum(times for _, times in pairs)
    top = max(value for value, _ in pairs)
    if -1 < top < 1:
        return math.log1p(sum(times * math.expm1(value) for value, times in pairs) / count)
    return top + math.log(sum(times * math.exp(value - top) for value, times in pairs) / count)


def _mean(weighted: Sequence[tuple[float, int]]) -> float:
    return sum(value * times for value, times in weighted) / sum(times for _, times in weighted)


class _Pace:
    """Seconds that a second of priced work takes when the replica has all that it can do: while several wait."""

    def __init__(self) -> None:
        self._waiting: set[RequestId] = set()
        self._admitted_at: float | None = None  # the last one, if enough waited behind it
        self._backlog_seconds = 0.0
        self._work = 0.0  # admitted meanwhile

    @property
    def seconds(self) -> float:
        """1 until it is known."""
        is_known = self._backlog_seconds >= _BACKLOG_SECONDS_MIN and self._work > 0
        return self._backlog_seconds / self._work if is_known else 1.0

    def observe(self, event: Event, size: Callable[[RequestView], float]) -> None:
        """Count the time between admissions in a backlog, and the work let in."""
        if isinstance(event, Arrived | Preempted):
            self._waiting.add(event.request.id)
            return
        self._waiting.discard(event.request.id)
        if isinstance(event, Admitted):
            if self._admitted_at is not None:
                self._backlog_seconds += max(0.0, event.at - self._admitted_at)
                self._work += size(event.request)
            if self._backlog_seconds > _BACKLOG_SECONDS_MAX:  # what was long ago counts less and less
                self._backlog_seconds /= 2
                self._work /= 2
            self._admitted_at = event.at if len(self._waiting) >= _BACKLOG_REQUESTS else None


class _BinnedValues:
    """The last values of something, counted in bins: what is found from them costs as much as there are bins."""

    def __init__(self) -> None:
        self._by_age: deque[int | None] = deque()
        self._counts: Counter[int | None] = Counter()

    def __len__(self) -> int:
        return len(self._by_age)

    def add(self, value: float) -> None:
        """Take one in, at least 0; the oldest goes when there are too many."""
        place = round(math.log(value) * _BINS_PER_E) if value > 0 else None
        self._by_age.append(place)
        self._counts[place] += 1
        if len(self._by_age) > _REMEMBERED:
            gone = self._by_age.popleft()
            self._counts[gone] -= 1
            if not self._counts[gone]:
                del self._counts[gone]

    def weighted(self) -> list[tuple[float, int]]:
        """Each bin's value, and how often it came; ascending."""
        return sorted((_value(place), count) for place, count in self._counts.items())

    def median(self) -> float:
        """The value that half of them are at most."""
        left = len(self) / 2
        for value, count in self.weighted():
            left -= count
            if left <= 0:
                return value
        raise ValueError("there is no median of nothing")


def _value(place: int | None) -> float:
    return 0.0 if place is None else math.exp(place / _BINS_PER_E)
