"""The two tuners at work: live in a simulated day, offline over a trace; safe, repeatable, restarted by drift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from headway.domain.event import Admitted, Arrived, Completed, FirstToken
from headway.domain.request import Request
from headway.policies import catalog
from headway.policies.ordering.shortest_job_first_aging import ShortestJobFirstAging
from headway.policies.tunable import Tunable
from headway.scheduling.bundle import bundle
from headway.simulator.replica import replica
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace
from headway.tuning.drift import DriftTest
from headway.tuning.live_tuner import LiveTuner
from headway.tuning.offline import Problem, Tuned, tune
from headway.tuning.rewards import Objective
from headway.tuning.search import SearchBox
from headway.tuning.tuning_settings import TuningSettings

pytest.importorskip("optuna", reason="tuning needs the extra 'tune'")

SERVER = replica("l4", "llama-3.1-8b")


def traffic(count: int, rate: float, seed: int = 0, long_share: float = 0.2) -> Trace:
    random = np.random.default_rng(seed)
    long = random.random(count) < long_share
    prompts = np.where(long, random.integers(2_000, 6_000, count), random.integers(20, 200, count))
    return Trace(
        name="mixed",
        arrived_seconds=np.cumsum(random.exponential(1 / rate, count)),
        prompt_tokens=prompts.astype(np.int64),
        output_tokens=random.integers(1, 40, count).astype(np.int64),
    )


def problem(trace: Trace, policy: str = "ewsjf", **changes: object) -> Problem:
    given = Problem(trace, SERVER.rules, SERVER.step_time, SERVER.costs, policy, {}, {}, objective=Objective(1.0, 30.0))
    return replace(given, **changes)  # type: ignore[arg-type]


def search(given: Problem, trials: int = 6) -> Tuned:
    from headway.policies.catalog import find

    return tune(given, SearchBox.of(find("ordering", given.policy), given.policy), trials=trials)


def test_offline_the_best_is_never_worse_than_the_defaults_and_the_search_repeats_itself() -> None:
    given = problem(traffic(400, 5.0))
    first, second = search(given), search(given)
    assert first.tried == second.tried
    assert first.held_out == second.held_out
    assert len(first.tried) == 6
    rewards = [trial.reward for trial in first.tried if not trial.fenced]
    assert max(rewards) >= first.tried[0].reward
    assert first.best == max((t for t in first.tried if not t.fenced), key=lambda trial: trial.reward).values


def test_any_policy_that_declares_options_can_be_tuned_and_the_published_reward_too() -> None:
    tuned = search(problem(traffic(200, 4.0), "ewsjf-published", reward="published"), trials=3)
    assert all(-50 < trial.reward < 3 for trial in tuned.tried)
    aged = search(problem(traffic(200, 4.0), "shortest-job-first-aging"), trials=3)
    assert set(aged.best) == {"service_seconds_per_second_waited"}
    with pytest.raises(ValueError, match="published reward is about learned lanes"):
        search(problem(traffic(200, 4.0), "shortest-job-first-aging", reward="published"), trials=1)


class RanksNan(ShortestJobFirstAging):
    """As of another package, for this module is none of Headway's."""

    def rank(self, request: object) -> float:
        return math.nan


class Raises(RanksNan):
    def rank(self, request: object) -> float:
        raise KeyError("weight")


class OutsideAging(ShortestJobFirstAging):
    """The same code as of another package."""


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (RanksNan, "the ordering policy 'mine' gave request 0 the rank nan; correct the policy"),
        (Raises, r"the ordering policy 'mine' raised KeyError: 'weight' \(line \d+ of .*\); correct the policy"),
    ],
)
def test_an_outside_policy_at_fault_ends_the_search_and_is_named(
    policy: type[RanksNan], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(catalog.ORDERING, "mine", policy)
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        search(problem(traffic(100, 5.0), "mine"), trials=1)


def test_an_outside_policy_is_tuned_as_one_of_ours_of_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.ORDERING, "mine", OutsideAging)
    ours, outside = (search(problem(traffic(100, 5.0), name), 2) for name in ("shortest-job-first-aging", "mine"))
    assert (outside.tried, outside.held_out) == (ours.tried, ours.held_out)
    assert type(outside.policy) is OutsideAging


def test_offline_goes_on_from_known_trials() -> None:
    given = problem(traffic(300, 5.0))
    first = search(given, trials=3)
    box = SearchBox.of(type(first.policy), "ewsjf")
    more = tune(given, box, trials=2, known=first.tried)
    assert more.tried[:3] == first.tried
    assert len(more.tried) == 5


def test_a_trace_too_short_to_check_on_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 72"):
        search(problem(traffic(60, 5.0)), trials=1)


def test_live_in_the_simulator_it_runs_a_trial_a_window_and_settles_on_the_best() -> None:
    given = traffic(600, 4.0)
    policies = bundle(ordering="ewsjf", costs=SERVER.costs, seed=0)
    box = SearchBox.of(type(policies.ordering), "ewsjf")
    settings = TuningSettings(window_seconds=15.0, trials=4, ttft_seconds=1.0, starved_seconds=30.0)
    tuner = LiveTuner(policies.ordering, box, {"b_u": 1.0}, seed=0, settings=settings, sampler="tpe")  # type: ignore[arg-type]
    outcome = simulate(given, SERVER.rules, SERVER.step_time, policies, listeners=[tuner])
    assert (outcome.ended_ps >= 0).all()
    assert [trial.ended for trial in tuner.trials] == ["in time"] * 4
    assert tuner.trials[0].values["b_u"] == pytest.approx(1.0)
    best = max(tuner.trials, key=lambda trial: trial.reward)
    assert tuner.best() == pytest.approx(best.values)
    assert policies.ordering._parameters.b_u == pytest.approx(best.values["b_u"])  # type: ignore[union-attr]


class Dial:
    """A policy of one knob, turned by the tuner and read by the test."""

    def __init__(self) -> None:
        self.knob = 0.0

    def retune(self, values: Mapping[str, float]) -> None:
        self.knob = values["knob"]


DIAL = SearchBox((Tunable("knob", 0.0, 1.0),))


def serve(tuner: LiveTuner, dial: Dial, count: int, start: float, mean_tokens: int = 100, base: int = 0) -> None:
    """A day by hand: with the knob above one half every tenth request waits a minute, otherwise none waits."""
    late: list[Request] = []
    for number in range(base, base + count):
        now = start + number - base
        request = Request(number, now, mean_tokens + number % 7)
        tuner.observe(Arrived(request, now))
        if dial.knob > 0.5 and number % 10 == 0:
            late.append(request)
        else:
            tuner.observe(Admitted(request, now + 0.1))
            tuner.observe(FirstToken(request, now + 0.2))
        if late and now - late[0].arrived_at > 60:
            slow = late.pop(0)
            tuner.observe(Admitted(slow, now + 0.3))
            tuner.observe(FirstToken(slow, now + 0.4))


def test_a_trial_that_does_harm_is_cut_short_and_fenced_off() -> None:
    dial = Dial()
    settings = TuningSettings(window_seconds=500.0, trials=12, ttft_seconds=2.0, starved_seconds=60.0)
    tuner = LiveTuner(dial, DIAL, {"knob": 0.1}, seed=2, settings=settings, sampler="tpe")
    serve(tuner, dial, 6_000, 0.0)
    cut = [trial for trial in tuner.trials if trial.ended == "cut short"]
    assert cut
    assert all(trial.values["knob"] > 0.5 for trial in cut)
    for place, trial in enumerate(tuner.trials):
        before = [t.values["knob"] for t in tuner.trials[:place] if t.ended == "cut short"]
        assert all(abs(trial.values["knob"] - knob) >= 0.1 for knob in before)
    for earlier, later in pairwise(tuner.trials):
        assert (later.at - earlier.at < 490) == (later.ended == "cut short")
    assert tuner.best()["knob"] <= 0.5
    assert dial.knob <= 0.5


def test_an_answer_of_one_token_that_is_told_of_as_completed_only_counts_and_is_forgotten() -> None:
    """An engine that ends such a request within the step may not tell of its first token apart."""
    dial = Dial()
    settings = TuningSettings(window_seconds=100.0, trials=3)
    tuner = LiveTuner(dial, DIAL, {"knob": 0.1}, seed=2, settings=settings, sampler="tpe")
    for number in range(400):
        request = Request(number, float(number), 100)
        tuner.observe(Arrived(request, float(number)))
        tuner.observe(Admitted(request, number + 0.1))
        tuner.observe(Completed(request, number + 0.2, 1))
    assert not tuner._waiting
    assert [trial.reward for trial in tuner.trials] == pytest.approx([1.0 + 0.01 / 1.1] * 3)


def test_a_change_of_workload_restarts_the_search_from_the_best_known() -> None:
    dial = Dial()
    settings = TuningSettings(window_seconds=100.0, trials=3)
    drift = DriftTest(sample=200, every=50)
    tuner = LiveTuner(dial, DIAL, {"knob": 0.2}, seed=1, settings=settings, sampler="tpe", drift=drift)
    serve(tuner, dial, 1_000, 0.0)
    assert tuner.notes == []
    known, trials = tuner.best(), len(tuner.trials)
    assert trials == 3
    serve(tuner, dial, 400, 1_000.0, mean_tokens=5_000, base=1_000)
    assert len(tuner.notes) == 1
    assert "prompt lengths have changed" in tuner.notes[0]
    serve(tuner, dial, 500, 1_400.0, mean_tokens=5_000, base=1_400)
    assert len(tuner.trials) > trials
    again = next(trial for trial in tuner.trials[trials:] if trial.ended != "drift")
    assert again.values["knob"] == pytest.approx(known["knob"])
