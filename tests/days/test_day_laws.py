"""Days drawn to be nasty, under every policy the catalogue has, on both engines: every law of a day holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headway.scheduling import harm_judge
from headway.simulator.outcome import DayOutcome
from headway.simulator.reference import simulate_reference
from headway.simulator.rules import NO_PLUGIN, EngineRules, PluginRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace
from headway.testing.day_laws import Day, StepRecords, check_day, same_day, same_until_a_request_ends
from headway.testing.examples import examples
from headway.testing.lifecycle_checker import LifecycleChecker
from headway.testing.strategies import PolicyNames, bundles, engine_rules, plugin_rules, step_times, traces

Simulate = Callable[..., DayOutcome]
ENGINES = pytest.mark.parametrize("engine", [simulate, simulate_reference])
FCFS = PolicyNames("fcfs", "greedy", "latest-admitted", "running-mean")


def live(
    engine: Simulate,
    trace: Trace,
    rules: EngineRules,
    step_time: LinearStepTime,
    bundle: PolicyNames,
    plugin: PluginRules = NO_PLUGIN,
) -> Day:
    log, life = StepRecords(), LifecycleChecker()
    outcome = engine(trace, rules, step_time, bundle.make(trace), plugin=plugin, observer=log, listeners=[life])
    life.finish()
    return Day(trace, rules, outcome, log.steps, greedy=bundle.admission == "greedy")


@ENGINES
@settings(max_examples=examples(250))
@given(trace=traces(), rules=engine_rules(), step_time=step_times(), bundle=bundles())
def test_laws_of_a_day(
    engine: Simulate, trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames
) -> None:
    check_day(live(engine, trace, rules, step_time, bundle))


@ENGINES
@settings(max_examples=examples(60))
@given(trace=traces(), rules=engine_rules(), step_time=step_times(), bundle=bundles())
def test_same_policies_same_day(
    engine: Simulate, trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames
) -> None:
    same_day(live(engine, trace, rules, step_time, bundle), live(engine, trace, rules, step_time, bundle))


@settings(max_examples=examples(250))
@given(trace=traces(), rules=engine_rules(), step_time=step_times(), bundle=bundles())
def test_both_engines_live_the_same_day(
    trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames
) -> None:
    same_day(live(simulate, trace, rules, step_time, bundle), live(simulate_reference, trace, rules, step_time, bundle))


@settings(max_examples=examples(250))
@given(trace=traces(), rules=engine_rules(), step_time=step_times(), bundle=bundles(), plugin=plugin_rules())
def test_with_the_plugin_laws_hold_and_both_engines_live_the_same_day(
    trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames, plugin: PluginRules
) -> None:
    if plugin.tuning == "prefill-budget" and not rules.chunked_prefill:
        plugin = replace(plugin, tuning="off")
    if bundle.admission != "greedy":
        plugin = replace(plugin, displace=None)
    with patch.object(harm_judge, "_LEAST_REQUESTS", 1):
        days = [live(engine, trace, rules, step_time, bundle, plugin) for engine in (simulate, simulate_reference)]
    check_day(days[0]._replace(greedy=days[0].greedy and plugin.tuning == "off"))
    same_day(days[0], days[1])


@settings(max_examples=examples(150))
@given(
    trace=traces(min_size=2, sessions=False, max_prompt_tokens=20),
    rules=engine_rules(asynchronous=False),
    step_time=step_times(),
    bundle=st.one_of([bundles(prediction=name) for name in ("running-mean", "declared-max")]),
    data=st.data(),
)
def test_without_an_oracle_lengths_show_only_at_the_end(
    trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames, data: st.DataObject
) -> None:
    outputs = np.array(data.draw(st.permutations(trace.output_tokens.tolist())), dtype=np.int64)
    rules = replace(rules, kv_blocks=max(rules.kv_blocks, -(-100 // rules.block_tokens)))  # no request is refused
    bounds = None if trace.max_output_tokens is None else np.maximum(trace.output_tokens.max() + 1, outputs)
    if bounds is not None:
        bounds = np.full(len(trace), int(np.max(bounds)), dtype=np.int64)
    one, other = (replace(trace, output_tokens=o, max_output_tokens=bounds) for o in (trace.output_tokens, outputs))
    same_until_a_request_ends(
        live(simulate, one, rules, step_time, bundle), live(simulate, other, rules, step_time, bundle)
    )


@settings(max_examples=examples(200))
@given(
    trace=traces(sessions=False, prefixes=False),
    rules=engine_rules(asynchronous=False, prefix_caching=False),
    step_time=step_times(),
    bundle=bundles(admission="peak-check", prediction="oracle"),
)
def test_peak_check_with_an_oracle_never_preempts(
    trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames
) -> None:
    """As long as a prompt takes one step, as the forecast has it, and no adapter takes KV blocks."""
    wide = replace(rules, max_num_batched_tokens=100_000, long_prefill_token_threshold=0, adapters=None)
    day = live(simulate, trace, wide, step_time, bundle)
    assert not day.outcome.preemptions.any(), f"{day.outcome.preemptions} preemptions"


@settings(max_examples=examples(100))
@given(
    trace=traces(), rules=engine_rules(), step_time=step_times(), bundle=bundles(ordering="fcfs", admission="greedy")
)
def test_fcfs_admits_in_order_of_arrival(
    trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames
) -> None:
    day = live(simulate, trace, rules, step_time, bundle)
    assume(not day.outcome.preemptions.any())
    admitted = [row for step in day.steps for row in step.admitted]
    assert admitted == sorted(admitted, key=lambda row: (day.outcome.arrived_ps[row], row))


def test_both_engines_live_the_same_day_two_months_after_the_first_request() -> None:
    """A request arrives while another one decodes, 60 days in: a run of steps has to stop for that."""
    rules = EngineRules(kv_blocks=1_000, max_num_seqs=4)
    arrived = np.array([0.0, 60 * 86_400.0, 60 * 86_400.0 + 0.5])
    trace = Trace("late", arrived, np.full(3, 100), np.full(3, 100))
    days = [live(engine, trace, rules, LinearStepTime(10**10, 0, 0), FCFS) for engine in (simulate, simulate_reference)]
    same_day(days[0], days[1])
    assert days[0].outcome.admitted_ps[2] - days[0].outcome.arrived_ps[2] <= 2 * 10**10


def test_a_day_longer_than_the_clock_is_refused() -> None:
    rules = EngineRules(kv_blocks=1_000)
    day = Trace("long", np.array([0.0, 116 * 86_400.0]), np.full(2, 100), np.full(2, 10))
    with pytest.raises(ValueError, match=r"long: lasts 116\.0 days; the simulator's clock holds 100"):
        live(simulate, day, rules, LinearStepTime(10**10, 0, 0), FCFS)
    pauses = replace(
        day,
        arrived_seconds=np.zeros(2),
        session=np.zeros(2, np.int64),
        turn=np.array([0, 1]),
        think_seconds=np.array([0.0, 101 * 86_400.0]),
    )
    with pytest.raises(ValueError, match=r"long: lasts 101\.0 days, pauses included"):
        live(simulate, pauses, rules, LinearStepTime(10**10, 0, 0), FCFS)
