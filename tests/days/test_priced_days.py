"""priced-work on whole days: both engines live the same one, and a rush costs the mean and the tail less than HRRN."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings

from headway.domain.costs import ServiceCosts
from headway.scheduling.bundle import bundle
from headway.simulator.outcome import DayOutcome
from headway.simulator.reference import simulate_reference
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace
from headway.testing.day_laws import Day, StepRecords, check_day, same_day
from headway.testing.examples import examples
from headway.testing.strategies import PolicyNames, bundles, engine_rules, step_times, traces

RULES = EngineRules(kv_blocks=2_000, max_num_seqs=64, max_num_batched_tokens=2_048, max_model_tokens=8_192)
STEP_TIME = LinearStepTime(8 * 10**9, 10**8, 10**3, 10**6)


def rush(requests: int) -> Trace:
    """Calm, then a rush above what can be served, then calm; one prompt in ten is twenty times as long."""
    lots = np.random.default_rng(3)
    rates = np.where(np.abs(np.arange(requests) / requests - 0.5) < 0.25, 18.0, 6.0)
    long = lots.random(requests) < 0.1
    return Trace(
        name="rush",
        arrived_seconds=np.cumsum(lots.exponential(1 / rates)),
        prompt_tokens=np.where(long, 4_000, 200) + lots.integers(0, 100, requests),
        output_tokens=lots.geometric(1 / 40, requests),
    )


def live(engine: Callable[..., DayOutcome], trace: Trace, ordering: str) -> Day:
    log = StepRecords()
    truth = trace.output_tokens.tolist().__getitem__
    policies = bundle(ordering=ordering, prediction="histogram", costs=ServiceCosts(1e-4, 1e-2), seed=0, truth=truth)
    outcome = engine(trace, RULES, STEP_TIME, policies, observer=log)
    return Day(trace, RULES, outcome, log.steps, greedy=True)


def test_both_engines_live_the_same_rush() -> None:
    """Long enough for requests to be overdue and for others to make way."""
    trace = rush(400)
    fast = live(simulate, trace, "priced-work")
    check_day(fast)
    same_day(fast, live(simulate_reference, trace, "priced-work"))


@settings(max_examples=examples(60))
@given(trace=traces(), rules=engine_rules(), step_time=step_times(), bundle=bundles(ordering="priced-work"))
def test_both_engines_live_the_same_day(
    trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames
) -> None:
    days = []
    for engine in (simulate, simulate_reference):
        log = StepRecords()
        days.append(Day(trace, rules, engine(trace, rules, step_time, bundle.make(trace), observer=log), log.steps))
    same_day(*days)


def test_a_rush_costs_the_mean_and_the_tail_less_than_under_a_response_ratio() -> None:
    trace = rush(2_000)
    waits = {}
    for ordering in ("priced-work", "highest-response-ratio"):
        outcome = live(simulate, trace, ordering).outcome
        waits[ordering] = (outcome.first_token_ps - outcome.arrived_ps) * 1e-12
    ours, ratio = waits["priced-work"], waits["highest-response-ratio"]
    assert ours.mean() < ratio.mean()
    assert np.percentile(ours, 99) < np.percentile(ratio, 99)
