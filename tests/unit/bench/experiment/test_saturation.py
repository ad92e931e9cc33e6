"""The measured saturation, by hand and on simulated replicas, and arrivals scaled to a rate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import (
    at_rate,
    completed_rate,
    is_closed_loop,
    measure_saturation,
    offered_rate,
    open_loop,
    scaled,
    served_rate,
)
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.user_mistake import UserMistake
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import replica
from headway.simulator.trace import Trace

SERVER = replica("h100", "llama-3.1-8b")


def poisson(requests: int, per_second: float, seed: int = 0) -> Trace:
    chance = np.random.default_rng(seed)
    return Trace(
        "poisson",
        np.cumsum(chance.exponential(1 / per_second, requests)),
        chance.integers(1, 4000, requests),
        chance.integers(1, 300, requests),
    )


def conversations(sessions: int, turns: int, think_seconds: float, spacing_seconds: float) -> Trace:
    session, turn = np.repeat(np.arange(sessions), turns), np.tile(np.arange(turns), sessions)
    arrived = session * spacing_seconds + turn * 1e-3
    order = np.argsort(arrived, kind="stable")
    return Trace(
        "conversations",
        arrived[order],
        np.full(sessions * turns, 500),
        np.full(sessions * turns, 50),
        session=session[order],
        turn=turn[order],
        think_seconds=np.where(turn > 0, think_seconds, 0.0)[order],
    )


def fcfs(trace: Trace) -> DayOutcome:
    return simulate_bundle(trace, SERVER, Bundle("fcfs"), seed=0)


def test_the_served_rate_of_a_day_done_by_hand() -> None:
    """The last is admitted at 10 s. By then one has ended, one is half done, and one has a fifth of its 10 s."""
    day = outcome(np.array([4.0, 20.0, 18.0, 15.0]), admitted_seconds=np.array([0.0, 0.0, 8.0, 10.0]))
    assert served_rate(day) == pytest.approx((1 + 0.5 + 0.2 + 0) / 10)


def test_a_day_too_short_to_fill_the_replica_is_taken_whole() -> None:
    day = outcome(np.array([10.0, 2.0, 10.0]), admitted_seconds=np.array([0.0, 0.0, 4.9]))
    assert served_rate(day) == pytest.approx(0.3)


def test_the_rate_of_completions_of_a_day_done_by_hand() -> None:
    """40 completions, 1 s apart but for the first and the last tenth, which do not count."""
    ended = np.concatenate([np.full(4, 50.0), 50.0 + np.arange(32), np.full(4, 10_000.0)])
    day = outcome(ended)
    assert completed_rate(day) == pytest.approx(1.0)


def test_too_few_completions_for_tenths_take_the_whole_span() -> None:
    assert completed_rate(outcome(np.array([10.0, 11.0, 12.0]))) == pytest.approx(1.0)


def test_one_completion_has_no_rate() -> None:
    for rate in (completed_rate, served_rate):
        with pytest.raises(UserMistake, match="saturation cannot be measured: 1 of"):
            rate(outcome(np.array([10.0])))


def outcome(
    ended_seconds: npt.NDArray[np.float64], admitted_seconds: npt.NDArray[np.float64] | None = None
) -> DayOutcome:
    n, zeros = len(ended_seconds), np.zeros(len(ended_seconds), np.int64)
    ended = (ended_seconds * 1e12).astype(np.int64)
    admitted = zeros if admitted_seconds is None else (admitted_seconds * 1e12).astype(np.int64)
    return DayOutcome(zeros, admitted, ended, ended, zeros, zeros, zeros, {}, int(ended.max()), n, 0)


def test_below_saturation_the_queue_stays_short_and_above_it_grows() -> None:
    trace = poisson(3000, 5.0)
    saturation = measure_saturation(trace, fcfs).requests_per_second

    def last_waits(load: float) -> float:
        day = fcfs(at_rate(trace, load * saturation))
        return float(np.mean((day.first_token_ps - day.arrived_ps)[-300:])) / 1e12

    assert last_waits(0.85) < 1.0
    assert last_waits(1.2) > 10 * last_waits(0.85)


@pytest.mark.slow
def test_hardly_depends_on_how_much_of_the_traffic_is_taken() -> None:
    """Long outputs, so that filling and draining are a large part of the shorter day."""
    chance = np.random.default_rng(5)
    trace = Trace("long", np.zeros(5000), np.full(5000, 1500), chance.integers(1, 3000, 5000))
    short = replace(
        trace, **{k: getattr(trace, k)[:2500] for k in ("arrived_seconds", "prompt_tokens", "output_tokens")}
    )
    rates = [measure_saturation(one, fcfs).requests_per_second for one in (trace, short)]
    assert rates[1] == pytest.approx(rates[0], rel=0.08)


def test_does_not_depend_on_how_densely_the_trace_was_recorded() -> None:
    trace = poisson(1000, 5.0)
    rates = {measure_saturation(scaled(trace, density), fcfs).requests_per_second for density in (0.01, 1.0, 100.0)}
    assert len(rates) == 1


def test_a_closed_loop_takes_the_best_of_several_densities() -> None:
    trace = conversations(sessions=40, turns=4, think_seconds=0.5, spacing_seconds=30.0)
    measured = measure_saturation(trace, fcfs)
    assert measured.closed_loop
    assert measured.requests_per_second >= completed_rate(fcfs(trace))
    assert measured.requests_per_second == measure_saturation(trace, fcfs, jobs=1).requests_per_second
    assert "pauses as recorded" in str(measured.to_json()["definition"])


@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_at_rate_offers_that_rate(rate: float) -> None:
    trace = at_rate(poisson(500, 5.0), rate)
    assert offered_rate(trace) == pytest.approx(rate)
    assert np.mean(np.diff(trace.arrived_seconds)) == pytest.approx(1 / rate)
    assert np.all(np.diff(trace.arrived_seconds) >= 0)


def test_at_rate_keeps_the_shape_of_arrivals() -> None:
    trace = poisson(500, 5.0)
    before, after = np.diff(trace.arrived_seconds), np.diff(at_rate(trace, 50.0).arrived_seconds)
    assert after == pytest.approx(before * (after.sum() / before.sum()))


def test_sessions_are_scaled_by_their_starts_and_think_as_before() -> None:
    trace = conversations(sessions=11, turns=3, think_seconds=2.0, spacing_seconds=10.0)
    assert offered_rate(trace) == pytest.approx(0.3)  # 30 requests of ten sessions in the 100 s until the last starts
    denser = at_rate(trace, 3.0)
    starts = denser.arrived_seconds[denser.turn == 0]
    assert np.diff(starts) == pytest.approx(np.full(10, 1.0))
    assert denser.think_seconds is trace.think_seconds


def test_one_moment_has_no_rate_to_scale() -> None:
    with pytest.raises(UserMistake, match="all requests arrive at one moment"):
        at_rate(replace(poisson(10, 1.0), arrived_seconds=np.zeros(10)), 1.0)


def test_a_loop_is_closed_by_a_second_turn_only() -> None:
    trace = conversations(sessions=3, turns=1, think_seconds=0.0, spacing_seconds=1.0)
    assert not is_closed_loop(trace)
    closed = conversations(sessions=3, turns=2, think_seconds=0.0, spacing_seconds=1.0)
    assert is_closed_loop(closed)
    assert not is_closed_loop(open_loop(closed))
    assert not is_closed_loop(replace(closed, session=np.full(6, -1)))
