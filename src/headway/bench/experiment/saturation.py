"""Saturation throughput: how much traffic of a given kind one replica can serve. It is the unit of `--load`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from headway.bench.experiment.parallel import spread
from headway.bench.metrics.run_metrics import Mask, completed_rows
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.simulator.arrivals import check_clock
from headway.simulator.outcome import DayOutcome
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

OPEN_LOOP = (
    "requests served per second under fcfs with greedy admission when all arrive at once, until the last one is "
    "admitted. A request that still runs then counts by the share of its service that is over. A trace too short to "
    "fill the replica is measured over the whole run"
)
CLOSED_LOOP = (
    "the most requests completed per second under fcfs with greedy admission, between the first and the last tenth of "
    "completions, over four replays. Sessions start a quarter as densely as recorded, as recorded, 4 times as densely, "
    "and all at once. Each waits for its answers and pauses as recorded, so few sessions may not fill the replica"
)

# Of session starts. Sparser ones too: with many sessions at once a prefix cache may lose every block before it is
# asked for again, and the replica then completes less than it does with few.
_DENSITIES = (0.25, 1.0, 4.0, float("inf"))
_FEW = 20  # completions; below that, tenths say nothing and the whole span is taken


@dataclass(frozen=True, slots=True)
class Saturation:
    """The replica's throughput for a trace when requests always wait, in requests/s, and its definition."""

    requests_per_second: float
    definition: str
    closed_loop: bool

    def to_json(self) -> dict[str, float | str | bool]:
        """The three fields by name."""
        return {
            "requests_per_second": self.requests_per_second,
            "definition": self.definition,
            "closed_loop": self.closed_loop,
        }


def measure_saturation(
    trace: Trace, simulate_fcfs: Callable[[Trace], DayOutcome], *, jobs: int | None = None
) -> Saturation:
    """Measure the saturation throughput for this trace, by simulating it under FCFS.

    `OPEN_LOOP` and `CLOSED_LOOP` define it.

    One simulation of the trace, four for one with sessions.

    Raises:
        UserMistake: fewer than two requests complete, so that there is no rate; sessions outlast the simulator's clock.
    """
    closed = is_closed_loop(trace)
    densities = _DENSITIES if closed else _DENSITIES[-1:]
    denser = [_all_at_once(trace) if density == float("inf") else scaled(trace, density) for density in densities]
    with as_mistakes():
        for replayed in denser:
            check_clock(replayed)
    rate = completed_rate if closed else served_rate
    rates = spread(lambda replayed: rate(simulate_fcfs(replayed)), denser, jobs=jobs)
    return Saturation(max(rates), CLOSED_LOOP if closed else OPEN_LOOP, closed)


def served_rate(outcome: DayOutcome) -> float:
    """Requests served per second while requests wait, on a day on which all arrive at its start.

    A request that still runs when the last one is admitted counts by the share of its service time that is over.
    Counting completed requests alone would miss the long ones in service. Counting until the end would include the
    hours in which a few long ones run alone. If the last request is admitted in the first half of the day, the trace
    is too short to keep the replica full. The rate is then that of the whole day, less than the replica could do.

    Raises:
        UserMistake: fewer than two requests complete.
    """
    done = _completed(outcome)
    admitted, ended = outcome.admitted_ps[done] / PS_PER_SECOND, outcome.ended_ps[done] / PS_PER_SECOND
    last = float(admitted.max())
    if last < float(ended.max()) / 2:
        return len(ended) / float(ended.max())
    return float(np.clip((last - admitted) / (ended - admitted), 0.0, 1.0).sum()) / last


def completed_rate(outcome: DayOutcome) -> float:
    """Requests completed per second between the first and the last tenth of completions.

    Raises:
        UserMistake: fewer than two requests complete.
    """
    ended = np.sort(outcome.ended_ps[_completed(outcome)])
    tenth = len(ended) // 10 if len(ended) >= _FEW else 0
    first, last = tenth, len(ended) - 1 - tenth
    seconds = float(ended[last] - ended[first]) / PS_PER_SECOND
    if seconds > 0:
        return (last - first) / seconds
    return len(ended) / (float(ended[-1]) / PS_PER_SECOND)  # all ended in one step


def is_closed_loop(trace: Trace) -> bool:
    """Whether some request waits for an earlier one of its session."""
    return trace.session is not None and trace.turn is not None and not _starts(trace).all()


def open_loop(trace: Trace) -> Trace:
    """The same requests, each at its recorded time, without waiting for the earlier turns of its session."""
    return replace(trace, turn=None, think_seconds=None)


def offered_rate(trace: Trace) -> float:
    """Requests per second that the trace offers; 0 for one that has no span (a single request, or all at once).

    Requests over the span of arrivals. With sessions, all requests over the span of session starts, because follow-up
    turns wait for answers. If sessions last longer than that span, the real rate of requests is lower.
    """
    starts = trace.arrived_seconds[_starts(trace)] if is_closed_loop(trace) else trace.arrived_seconds
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
        raise UserMistake(
            f"saturation cannot be measured: {done.sum()} of the trace's requests complete; leave --load out, or use "
            "more requests"
        )
    return done


def _all_at_once(trace: Trace) -> Trace:
    return replace(trace, arrived_seconds=np.zeros(len(trace)))


def _starts(trace: Trace) -> Mask:
    """Which rows wait for no earlier answer: the first turn of each session, and requests without a session."""
    starts = np.ones(len(trace), np.bool_)
    if trace.session is not None and trace.turn is not None:
        order = np.lexsort((trace.turn, trace.session))
        session = trace.session[order]
        starts[order[1:]] = (session[1:] < 0) | (session[1:] != session[:-1])
    return starts
