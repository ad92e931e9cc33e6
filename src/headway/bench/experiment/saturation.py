"""Saturation throughput: how much traffic of a given kind one replica can serve. It is the unit of `--load`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from headway.bench.metrics.run_metrics import Mask, completed_rows
from headway.bench.traces.reshaping import part, repeated, session_starts
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.simulator.arrivals import check_clock
from headway.simulator.outcome import DayOutcome
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

OPEN_LOOP = (
    "requests served per second under fcfs with greedy admission while requests always wait. The trace is repeated, "
    "all requests arrive at once, and the copies that fill the replica are not counted. A request counts by the share "
    "of its service that lies in the copies counted"
)
CLOSED_LOOP = (
    "the most requests completed per second under fcfs with greedy admission, however densely sessions start. The "
    "trace is repeated until sessions start for three times as long as one lasts. Each waits for its answers and "
    "pauses as recorded. Completions between the first and the last tenth count"
)

SPANS = 3
"""How many times as long as a session lasts, sessions go on starting at saturation."""
MOST_REQUESTS = 30_000
"""No more are simulated to measure a saturation, unless the trace itself is longer."""
_DENSE, _LESS_DENSE = 2.5, 1.25  # offered rates, as multiples of the completed rate known so far
_SETTLED = 1.1  # a rate that grows by less from one round to the next is the knee's
_LIGHT = 0.1  # share of the rate at which sessions hardly wait for each other
_FEW = 20  # completions; below that, tenths say nothing and the whole span is taken
_QUARTERS_FROM = 100  # requests; a quarter of fewer says nothing


@dataclass(frozen=True, slots=True)
class Saturation:
    """The replica's throughput for a trace when requests always wait: the unit of a load.

    Attributes:
        requests_per_second: offered requests, those that the replica refuses included.
        definition: in words.
        closed_loop: whether sessions wait for their answers.
        copies: how often a closed loop's sessions are repeated in the traffic of a load; 1 in an open loop.
        quarters: the rate of each quarter of an open trace, measured as if it were all. None where not asked for,
            for sessions, for fewer than 100 requests, and where none of a quarter completes.
        busy_share: share of the time counted in which the replica runs a request.
        requests_under_way: in a closed loop, as many as come while sessions start for `SPANS` times as long as one
            lasts; copies are made until there are so many. 0 in an open loop.
    """

    requests_per_second: float
    definition: str
    closed_loop: bool
    copies: int = 1
    quarters: tuple[float, ...] | None = None
    busy_share: float = 1.0
    requests_under_way: float = 0.0

    def at_load(self, trace: Trace, load: float) -> Trace:
        """The traffic that offers this share of saturation.

        Raises:
            UserMistake: the trace has no span to scale.
        """
        return at_rate(repeated(trace, self.copies), load * self.requests_per_second)

    def to_json(self) -> dict[str, float | str | bool | list[float] | None]:
        """The fields by name, those that only the measurement needs left out."""
        fields = asdict(self) | {"quarters": None if self.quarters is None else list(self.quarters)}
        del fields["requests_under_way"]
        return fields


def measure_saturation(
    trace: Trace, simulate_fcfs: Callable[[Trace], DayOutcome], *, quarters: bool = False
) -> Saturation:
    """Measure the saturation throughput for this trace, by simulating it under FCFS, and that of its `quarters`.

    `OPEN_LOOP` and `CLOSED_LOOP` define it.

    Raises:
        UserMistake: fewer than two requests complete, or sessions all start at one moment, so that there is no rate;
            sessions outlast the simulator's clock, or are too few to fill the replica.
    """
    if is_closed_loop(trace):
        return _of_sessions(trace, simulate_fcfs)
    rate = _of_requests(trace, simulate_fcfs)
    return Saturation(rate, OPEN_LOOP, False, quarters=_of_quarters(trace, simulate_fcfs) if quarters else None)


def _of_requests(trace: Trace, simulate_fcfs: Callable[[Trace], DayOutcome]) -> float:
    """Copies all at once, more and more, until the replica is full when the first half of them is admitted."""
    copies = 1
    while True:
        outcome = simulate_fcfs(_all_at_once(repeated(trace, 2 * copies)))
        rate = served_rate(outcome, len(trace), copies)
        if rate is not None:
            return rate
        if 4 * copies * len(trace) > MOST_REQUESTS:
            return whole_day_rate(outcome)
        copies *= 2


def _of_quarters(trace: Trace, simulate_fcfs: Callable[[Trace], DayOutcome]) -> tuple[float, ...] | None:
    """Each by itself: within the whole trace, long services would spread the work of one quarter over the next."""
    if len(trace) < _QUARTERS_FROM:
        return None
    try:
        return tuple(_of_requests(part(trace, *bounds), simulate_fcfs) for bounds in quarter_bounds(len(trace)))
    except UserMistake:  # of one quarter none completes, of the trace as a whole some do
        return None


def quarter_bounds(requests: int) -> list[tuple[int, int]]:
    """First row of each quarter of so many requests, and the row after its last one."""
    return list(pairwise(requests * quarter // 4 for quarter in range(5)))


def served_rate(outcome: DayOutcome, requests: int, filling: int) -> float | None:
    """Requests served per second while the later copies of a trace are admitted.

    All arrive at the day's start. A request counts by the share of its service, admission to end, that lies in the
    time counted. Counting completed requests alone would miss the long ones in service. Refused requests raise the
    rate in proportion: it is one of offered requests.

    Args:
        outcome: of a trace repeated.
        requests: in one copy.
        filling: copies that are not counted.

    Returns:
        The rate; None where the replica is not full yet when the time counted begins: some request's service is longer.

    Raises:
        UserMistake: fewer than two requests complete.
    """
    done = _completed(outcome)
    rows = np.flatnonzero(done)
    admitted, ended = outcome.admitted_ps[done] / PS_PER_SECOND, outcome.ended_ps[done] / PS_PER_SECOND
    last_admission = np.maximum.accumulate(admitted)

    def served_until(seconds: float) -> float:
        return float(np.clip((seconds - admitted) / (ended - admitted), 0.0, 1.0).sum()) * len(done) / len(rows)

    before = int(np.searchsorted(rows, filling * requests))
    begin, end = float(last_admission[before - 1]) if before else 0.0, float(last_admission[-1])
    if begin < float((ended - admitted).max()) or begin >= end:
        return None
    return (served_until(end) - served_until(begin)) / (end - begin)


def whole_day_rate(outcome: DayOutcome) -> float:
    """Offered requests over the time to the last end: of a replica that so many requests do not fill.

    Raises:
        UserMistake: fewer than two requests complete.
    """
    return len(outcome.ended_ps) / (float(outcome.ended_ps[_completed(outcome)].max()) / PS_PER_SECOND)


def completed_rate(outcome: DayOutcome) -> float:
    """Requests completed per second between the first and the last tenth of completions.

    Refused requests raise it in proportion: it is a rate of offered requests.

    Raises:
        UserMistake: fewer than two requests complete.
    """
    done = _completed(outcome)
    ended = np.sort(outcome.ended_ps[done])
    first, last = _middle(len(ended))
    offered = len(done) / len(ended)
    seconds = float(ended[last] - ended[first]) / PS_PER_SECOND
    if seconds > 0:
        return (last - first) / seconds * offered
    return len(ended) / (float(ended[-1]) / PS_PER_SECOND) * offered  # all ended in one step


def busy_share(outcome: DayOutcome) -> float:
    """Share of the time between the first and the last tenth of completions in which some request runs.

    Raises:
        UserMistake: fewer than two requests complete.
    """
    done = _completed(outcome)
    order = np.argsort(outcome.admitted_ps[done], kind="stable")
    admitted, ended = outcome.admitted_ps[done][order], outcome.ended_ps[done][order]
    first, last = _middle(len(ended))
    begin, end = np.sort(ended)[[first, last]]
    if begin == end:
        return 1.0
    busy_until = np.maximum.accumulate(ended)
    idle_until = np.maximum(admitted[1:], busy_until[:-1])
    idle = np.clip(idle_until, begin, end) - np.clip(busy_until[:-1], begin, end)
    return 1.0 - float(idle.sum()) / float(end - begin)


def _of_sessions(trace: Trace, simulate_fcfs: Callable[[Trace], DayOutcome]) -> Saturation:
    """More and more copies, more and more densely, until the completed rate does not grow."""
    rate = completed_rate(_simulated(_all_at_once(trace), simulate_fcfs))
    lasts = session_seconds(trace, _simulated(at_rate(trace, _LIGHT * rate), simulate_fcfs))
    while True:
        under_way = SPANS * lasts * rate
        copies = max(1, math.ceil(under_way / len(trace)))
        if copies > 1 and copies * len(trace) > MOST_REQUESTS:
            raise UserMistake(
                f"{trace.name}: its sessions are too few to fill the replica, so no load can be measured "
                f"({copies:,} copies would be needed); leave --load out, give more --requests, or use --open-loop"
            )
        whole = repeated(trace, copies)
        dense = _simulated(at_rate(whole, _DENSE * rate), simulate_fcfs)
        if completed_rate(dense) <= _SETTLED * rate:
            break
        rate = completed_rate(dense)
    # Sessions that start more densely push each other's prefixes out of the cache: the best rate may be at fewer.
    outcomes = [dense, _simulated(at_rate(whole, _LESS_DENSE * rate), simulate_fcfs)]
    best = max(outcomes, key=completed_rate)
    return Saturation(
        completed_rate(best),
        CLOSED_LOOP,
        True,
        copies,
        busy_share=busy_share(best),
        requests_under_way=under_way,
    )


def session_seconds(trace: Trace, outcome: DayOutcome) -> float:
    """How long a session lasts, from its first arrival to its last end: the mean over requests of their session's.

    Raises:
        UserMistake: fewer than two requests complete.
    """
    assert trace.session is not None  # it is a closed loop
    done = _completed(outcome)
    rows = np.arange(len(trace))
    session = np.where(trace.session >= 0, trace.session, trace.session.max() + 1 + rows)[done]
    arrived, ended = outcome.arrived_ps[done] / PS_PER_SECOND, outcome.ended_ps[done] / PS_PER_SECOND
    begun, over = np.full(int(session.max()) + 1, np.inf), np.zeros(int(session.max()) + 1)
    np.minimum.at(begun, session, arrived)
    np.maximum.at(over, session, ended)
    return float((over[session] - begun[session]).mean())


def _simulated(day: Trace, simulate_fcfs: Callable[[Trace], DayOutcome]) -> DayOutcome:
    with as_mistakes():
        check_clock(day)
    return simulate_fcfs(day)


def _middle(completions: int) -> tuple[int, int]:
    """Places of the completions that end the first tenth and begin the last one."""
    tenth = completions // 10 if completions >= _FEW else 0
    return tenth, completions - 1 - tenth


def is_closed_loop(trace: Trace) -> bool:
    """Whether some request waits for an earlier one of its session."""
    return trace.session is not None and trace.turn is not None and not session_starts(trace).all()


def open_loop(trace: Trace) -> Trace:
    """The same requests, each at its recorded time, without waiting for the earlier turns of its session."""
    return replace(trace, turn=None, think_seconds=None)


def offered_rate(trace: Trace) -> float:
    """Requests per second that the trace offers; 0 for one that has no span (a single request, or all at once).

    Requests over the span of arrivals. With sessions, all requests over the span of session starts, because follow-up
    turns wait for answers. If sessions last longer than that span, the real rate of requests is lower.
    """
    starts = trace.arrived_seconds[session_starts(trace)] if is_closed_loop(trace) else trace.arrived_seconds
    span = float(starts[-1] - starts[0]) if len(starts) else 0.0
    return len(trace) * (1 - 1 / len(starts)) / span if span > 0 else 0.0


def at_rate(trace: Trace, requests_per_second: float) -> Trace:
    """Stretch or squeeze the arrivals of a trace so that `offered_rate` is this.

    Think times stay as they are: people do not think faster when there are more of them.

    Raises:
        UserMistake: the trace has no span to scale.
    """
    recorded = offered_rate(trace)
    if recorded <= 0:
        closed = is_closed_loop(trace)
        if (np.count_nonzero(session_starts(trace)) if closed else len(trace)) == 1:
            one = "session" if closed else "request"
            raise UserMistake(f"{trace.name}: one {one} has no rate that a load could scale; take more --requests")
        raise UserMistake(
            f"{trace.name}: all requests arrive at one moment, so there is no rate to scale; leave --load out"
        )
    return scaled(trace, requests_per_second / recorded)


def scaled(trace: Trace, density: float) -> Trace:
    """The trace with arrivals `density` times as dense, from the same first one; every row keeps its place."""
    first = trace.arrived_seconds[0]
    arrived = first + (trace.arrived_seconds - first) / density
    return replace(trace, arrived_seconds=arrived, measured_ttft_seconds=None, measured_e2e_seconds=None)


def _completed(outcome: DayOutcome) -> Mask:
    done = completed_rows(outcome)
    if done.sum() < 2:
        few = f"saturation cannot be measured: {done.sum()} of the trace's requests complete; "
        if outcome.refused:
            ((reason, count),) = Counter(outcome.refused.values()).most_common(1)
            raise UserMistake(f"{few}{count:,} are refused because {reason}")
        raise UserMistake(f"{few}leave --load out, or use more requests")
    return done


def _all_at_once(trace: Trace) -> Trace:
    return replace(trace, arrived_seconds=np.zeros(len(trace)))
