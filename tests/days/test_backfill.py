"""Backfilling: both engines live the same day, the laws of a day hold, and the head is not kept waiting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.policies.admission.backfill import Backfill
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.oracle import Oracle
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.scheduler import Policies
from headway.simulator.outcome import DayOutcome
from headway.simulator.reference import simulate_reference
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace
from headway.testing.day_laws import Day, StepRecords, check_day, same_day
from headway.testing.examples import examples
from headway.testing.lifecycle_checker import LifecycleChecker
from headway.testing.strategies import PolicyNames, bundles, engine_rules, step_times, traces

Simulate = Callable[..., DayOutcome]
ADMISSIONS = ["backfill/greedy", "backfill/peak-check", "backfill/overflow-probability", "backfill/past-future"]
COSTS = ServiceCosts(1e-4, 1e-2)


def live(engine: Simulate, trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames) -> Day:
    log, life = StepRecords(), LifecycleChecker()
    outcome = engine(trace, rules, step_time, bundle.make(trace), observer=log, listeners=[life])
    life.finish()
    return Day(trace, rules, outcome, log.steps, greedy=False)


@settings(max_examples=examples(150))
@given(
    trace=traces(max_size=16),
    rules=engine_rules(),
    step_time=step_times(),
    bundle=st.sampled_from(ADMISSIONS).flatmap(lambda admission: bundles(admission=admission)),
)
def test_both_engines_live_the_same_day_with_backfilling(
    trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames
) -> None:
    fast = live(simulate, trace, rules, step_time, bundle)
    check_day(fast)
    same_day(fast, live(simulate_reference, trace, rules, step_time, bundle))


def mixed_day(seed: int) -> Trace:
    """Long and short prompts in a burst, so that the head often does not fit while the next would."""
    lots = np.random.default_rng(seed)
    count = 200
    return Trace(
        name="mixed",
        arrived_seconds=np.sort(lots.uniform(0, 10, count)),
        prompt_tokens=np.where(
            lots.random(count) < 0.2, lots.integers(800, 1_500, count), lots.integers(10, 100, count)
        ),
        output_tokens=lots.geometric(1 / 100, count),
    )


RULES = EngineRules(kv_blocks=150, max_num_seqs=64, max_num_batched_tokens=2_048, max_model_tokens=2_400)
STEP_TIME = LinearStepTime(8 * 10**9, 10**6, 10**3, 10**6)


def day_of(trace: Trace, admission: Greedy | Backfill) -> DayOutcome:
    policies = Policies(Fcfs(), admission, LatestAdmitted(), Oracle(truth=trace.output_tokens.tolist().__getitem__))
    return simulate(trace, RULES, STEP_TIME, policies)


def mean_seconds(trace: Trace, outcome: DayOutcome, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    waits = outcome.first_token_ps[rows] * 1e-12 - trace.arrived_seconds[rows]
    return float(waits.mean())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_small_ones_gain_and_large_ones_do_not_pay(seed: int) -> None:
    trace = mixed_day(seed)
    plain, filled = day_of(trace, Greedy()), day_of(trace, Backfill())
    large = trace.prompt_tokens >= 800
    assert (filled.ended_ps >= 0).all()
    assert mean_seconds(trace, filled, ~large) < 0.8 * mean_seconds(trace, plain, ~large)
    assert mean_seconds(trace, filled, large) < 1.05 * mean_seconds(trace, plain, large)


def test_no_request_is_passed_more_often_than_allowed() -> None:
    class Counted(Backfill):
        most = 0

        def passed(self, head: object) -> None:
            super().passed(head)  # type: ignore[arg-type]
            self.most = max(self.most, *self._skips.values())

    trace = mixed_day(1)
    counted = Counted(skips_max=3)
    day_of(trace, counted)
    assert counted.most == 3


def test_the_first_large_one_starts_no_later_than_without(  # its reservation, with lengths known
) -> None:
    """One large request waits for memory behind a running one; many small ones come that could pass it."""
    trace = Trace(
        name="one large",
        arrived_seconds=np.array([0.0, 0.01, *np.linspace(0.02, 1.0, 60)]),
        prompt_tokens=np.array([1_200, 1_500, *[40] * 60]),
        output_tokens=np.array([200, 50, *[10, 400] * 30]),
    )
    plain, filled = day_of(trace, Greedy()), day_of(trace, Backfill())
    # In steps it is never later; a step with a small prompt in it takes a little longer.
    assert filled.admitted_ps[1] <= 1.02 * plain.admitted_ps[1]
    assert (filled.first_token_ps[2::2] < plain.first_token_ps[2::2]).sum() >= 10
