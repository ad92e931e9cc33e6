"""Replays a recorded day in the simulator, and compares it with what was measured."""

from __future__ import annotations

from headway.bench.experiment.bundles import Bundle
from headway.bench.metrics.agreement import Agreement, agreement, times_of
from headway.bench.metrics.recording import Recording, Seconds
from headway.domain.costs import ServiceCosts
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import service_costs
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import StepTime


def replay(
    recording: Recording, rules: EngineRules, step_time: StepTime, bundle: Bundle | None = None
) -> tuple[Seconds, Seconds, DayOutcome]:
    """(TTFT, end to end, outcome) of the recorded day simulated; FCFS unless a bundle is given."""
    trace = recording.trace
    truth = trace.output_tokens.tolist()
    costs: ServiceCosts = service_costs(step_time, rules)
    policies = (bundle or Bundle("fcfs")).build(costs=costs, seed=0, truth=truth.__getitem__)
    outcome = simulate(trace, rules, step_time, policies)
    ttft, e2e = times_of(outcome)
    return ttft, e2e, outcome


def compare_with(
    recording: Recording, rules: EngineRules, step_time: StepTime, bundle: Bundle | None = None
) -> Agreement:
    """Replay and compare."""
    ttft, e2e, outcome = replay(recording, rules, step_time, bundle)
    return agreement(recording, ttft, e2e, int(outcome.preemptions.sum()))
