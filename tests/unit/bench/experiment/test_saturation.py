"""The measured saturation, by hand and on simulated replicas, and arrivals scaled to a rate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from headway.bench.experiment import saturation
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import (
    at_rate,
    busy_share,
    completed_rate,
    is_closed_loop,
    measure_saturation,
    offered_rate,
    open_loop,
    scaled,
    served_rate,
    session_seconds,
    whole_day_rate,
)
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.traces.reshaping import head, part, repeated
from headway.bench.user_mistake import UserMistake
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.replica import replica
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.step_time import StepTime
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
    """Two requests fill and end; two are counted from 10 s to 20 s: one whole, one half, and a half of the second."""
    ended = np.array([5.0, 15.0, 20.0, 30.0])
    day = outcome(ended, admitted_seconds=np.array([0.0, 10.0, 10.0, 20.0]))
    assert served_rate(day, requests=2, filling=1) == pytest.approx((1 + 1 + 0) / 10)


def test_refused_requests_are_offered_too() -> None:
    """One of each copy's three is refused: the same work, half as many requests again."""
    seconds = np.array([5.0, 0.0, 15.0, 20.0, 0.0, 30.0])
    day = outcome(seconds, admitted_seconds=np.array([0.0, 0.0, 10.0, 10.0, 0.0, 20.0]))
    day = replace(day, refused={1: "context", 4: "context"}, ended_ps=np.where(seconds > 0, day.ended_ps, NEVER))
    assert served_rate(day, requests=3, filling=1) == pytest.approx(1.5 * 2 / 10)


def test_a_replica_that_is_not_full_yet_has_no_rate() -> None:
    """The longest service is 20 s, and counting would begin at 10 s."""
    day = outcome(np.array([20.0, 15.0, 20.0, 30.0]), admitted_seconds=np.array([0.0, 10.0, 10.0, 20.0]))
    assert served_rate(day, requests=2, filling=1) is None
    assert whole_day_rate(day) == pytest.approx(4 / 30)


def test_the_busy_share_of_a_day_done_by_hand() -> None:
    """From the first end to the last, 10 s to 40 s: idle from 20 to 26."""
    day = outcome(np.array([10.0, 20.0, 40.0]), admitted_seconds=np.array([0.0, 5.0, 26.0]))
    assert busy_share(day) == pytest.approx(1 - 6 / 30)


def test_a_session_lasts_from_its_first_arrival_to_its_last_end() -> None:
    """Two turns over 30 s, one request outside of sessions for 3 s: the mean over requests is 21 s."""
    trace = replace(poisson(3, 1.0), session=np.array([0, -1, 0]), turn=np.array([0, 0, 1]))
    assert session_seconds(trace, outcome(np.array([10.0, 3.0, 30.0]))) == pytest.approx((30 + 3 + 30) / 3)


def test_the_rate_of_completions_of_a_day_done_by_hand() -> None:
    """40 completions, 1 s apart but for the first and the last tenth, which do not count."""
    ended = np.concatenate([np.full(4, 50.0), 50.0 + np.arange(32), np.full(4, 10_000.0)])
    day = outcome(ended)
    assert completed_rate(day) == pytest.approx(1.0)


def test_too_few_completions_for_tenths_take_the_whole_span() -> None:
    assert completed_rate(outcome(np.array([10.0, 11.0, 12.0]))) == pytest.approx(1.0)


def test_one_completion_has_no_rate() -> None:
    day = outcome(np.array([10.0]))
    for rate in (completed_rate, whole_day_rate, busy_share, lambda one: served_rate(one, 1, 0)):
        with pytest.raises(UserMistake, match="saturation cannot be measured: 1 of"):
            rate(day)


def outcome(
    ended_seconds: npt.NDArray[np.float64], admitted_seconds: npt.NDArray[np.float64] | None = None
) -> DayOutcome:
    n, zeros = len(ended_seconds), np.zeros(len(ended_seconds), np.int64)
    ended = (ended_seconds * 1e12).astype(np.int64)
    admitted = zeros if admitted_seconds is None else (admitted_seconds * 1e12).astype(np.int64)
    return DayOutcome(zeros, admitted, ended, ended, zeros, zeros, zeros, {}, int(ended.max()), n, 0)


def test_below_saturation_the_queue_stays_short_and_above_it_grows() -> None:
    trace = poisson(3000, 5.0)
    saturated = measure_saturation(trace, fcfs).requests_per_second

    def last_waits(load: float) -> float:
        day = fcfs(at_rate(trace, load * saturated))
        return float(np.mean((day.first_token_ps - day.arrived_ps)[-300:])) / 1e12

    assert last_waits(0.85) < 1.0
    assert last_waits(1.2) > 10 * last_waits(0.85)


@pytest.mark.parametrize("requests", [60, 240])
def test_does_not_depend_on_how_many_requests_of_like_traffic_are_taken(requests: int) -> None:
    """Within 6 %, although the smaller part does not even fill the replica."""
    lengths = np.tile(np.random.default_rng(5).integers(1, 600, 60), 20)
    trace = Trace("long", np.arange(1200.0), np.full(1200, 1500), lengths)
    rates = [measure_saturation(head(trace, part), fcfs).requests_per_second for part in (requests, 1200)]
    assert rates[0] == pytest.approx(rates[1], rel=0.06)


def test_a_trace_and_the_same_trace_twice_have_one_load() -> None:
    trace = poisson(150, 5.0)
    rates = [measure_saturation(repeated(trace, copies), fcfs).requests_per_second for copies in (1, 2, 5)]
    assert rates[1:] == pytest.approx([rates[0]] * 2, rel=0.03)


def test_twice_the_speed_is_twice_the_load() -> None:
    trace = poisson(300, 5.0)
    step_time = SERVER.step_time

    def on(server_steps: StepTime) -> float:
        policies = Bundle("fcfs")
        return measure_saturation(
            trace, lambda day: simulate_bundle(day, replace(SERVER, step_time=server_steps), policies, seed=0)
        ).requests_per_second

    slower = on(ScaledStepTime(SERVER.step_time, Scalars(step_scale=2.0)))
    assert on(step_time) == pytest.approx(2 * slower, rel=1e-3)


def test_the_quarters_tell_light_from_heavy() -> None:
    """The last quarter has prompts ten times as long; the rate of the whole lies between."""
    prompts = np.repeat([400, 400, 400, 4_000], 100)
    trace = Trace("drifting", np.arange(400.0), prompts, np.full(400, 20))
    few_seats = replica("h100", "llama-3.1-8b", max_num_seqs=8)

    def simulated(day: Trace) -> DayOutcome:
        return simulate_bundle(day, few_seats, Bundle("fcfs"), seed=0)

    measured = measure_saturation(trace, simulated, quarters=True)
    assert measured.quarters is not None
    assert min(measured.quarters) == measured.quarters[3] < measured.requests_per_second / 2
    assert max(measured.quarters) > measured.requests_per_second
    alone = [measure_saturation(part(trace, 100 * n, 100 * (n + 1)), simulated) for n in range(4)]
    assert measured.quarters == tuple(one.requests_per_second for one in alone)
    assert measure_saturation(trace, simulated) == replace(measured, quarters=None)


def test_long_answers_do_not_blur_the_quarters() -> None:
    """Answers of 400 tokens outlast the admission of a quarter: 25 requests on 16 seats."""
    trace = Trace("long, then short", np.arange(100.0), np.full(100, 100), np.repeat([400, 40], 50))
    seats = replica("h100", "llama-3.1-8b", max_num_seqs=16)
    measured = measure_saturation(trace, lambda day: simulate_bundle(day, seats, Bundle("fcfs"), seed=0), quarters=True)
    assert measured.quarters is not None
    assert measured.quarters[2] > 9 * measured.quarters[1], "the same work a token, a tenth of the tokens"


@pytest.mark.parametrize(("requests", "refused"), [(99, 0), (100, 25)])
def test_quarters_that_say_nothing_are_not_told(requests: int, refused: int) -> None:
    """Too few requests, or a quarter that is refused as a whole."""
    trace = poisson(requests, 5.0)
    over_context = np.where(np.arange(requests) < refused, 200_000, trace.prompt_tokens)
    assert measure_saturation(replace(trace, prompt_tokens=over_context), fcfs, quarters=True).quarters is None


def test_does_not_depend_on_how_densely_the_trace_was_recorded() -> None:
    trace = poisson(1000, 5.0)
    rates = {measure_saturation(scaled(trace, density), fcfs).requests_per_second for density in (0.01, 1.0, 100.0)}
    assert len(rates) == 1


def test_a_closed_loop_is_repeated_until_the_replica_is_busy() -> None:
    """Six sessions that mostly pause cannot fill a replica; their copies do, and the load is that of more sessions."""
    few, more = (conversations(sessions, turns=4, think_seconds=20.0, spacing_seconds=5.0) for sessions in (6, 60))
    slow = replica("h100", "llama-3.1-8b", max_num_seqs=2)

    def simulated(day: Trace) -> DayOutcome:
        return simulate_bundle(day, slow, Bundle("fcfs"), seed=0)

    measured, of_more = measure_saturation(few, simulated), measure_saturation(more, simulated)
    assert measured.closed_loop
    assert measured.copies > of_more.copies
    assert measured.busy_share > 0.95
    assert measured.requests_per_second == pytest.approx(of_more.requests_per_second, rel=0.05)
    assert "pauses as recorded" in str(measured.to_json()["definition"])


def test_more_load_means_longer_waits_in_a_closed_loop() -> None:
    trace = conversations(sessions=20, turns=3, think_seconds=5.0, spacing_seconds=5.0)
    slow = replica("h100", "llama-3.1-8b", max_num_seqs=2)
    measured = measure_saturation(trace, lambda day: simulate_bundle(day, slow, Bundle("fcfs"), seed=0))

    def mean_wait(load: float) -> float:
        day = simulate_bundle(measured.at_load(trace, load), slow, Bundle("fcfs"), seed=0)
        return float(np.mean(day.first_token_ps - day.arrived_ps))

    waits = [mean_wait(load) for load in (0.5, 0.9, 1.1, 1.5)]
    assert waits == sorted(waits)
    assert waits[3] > 5 * waits[0]


def test_sessions_that_cannot_fill_the_replica_have_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saturation, "MOST_REQUESTS", 500)
    trace = conversations(sessions=2, turns=2, think_seconds=100_000.0, spacing_seconds=1.0)
    with pytest.raises(UserMistake, match="its sessions are too few to fill the replica, so no load can be measured"):
        measure_saturation(trace, fcfs)


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


def test_one_request_or_session_has_no_rate_to_scale() -> None:
    """Under a load that the user did not give, as that of a built-in workload, leaving it out would not help."""
    session = conversations(sessions=1, turns=2, think_seconds=1.0, spacing_seconds=1.0)
    for trace, one in [(poisson(1, 1.0), "request"), (session, "session")]:
        with pytest.raises(UserMistake, match=f"one {one} has no rate that a load could scale; take more --requests"):
            at_rate(trace, 1.0)


def test_a_loop_is_closed_by_a_second_turn_only() -> None:
    trace = conversations(sessions=3, turns=1, think_seconds=0.0, spacing_seconds=1.0)
    assert not is_closed_loop(trace)
    closed = conversations(sessions=3, turns=2, think_seconds=0.0, spacing_seconds=1.0)
    assert is_closed_loop(closed)
    assert not is_closed_loop(open_loop(closed))
    assert not is_closed_loop(replace(closed, session=np.full(6, -1)))
