"""How far a simulated day is from the recorded one, request by request and in the figures that people quote."""

from __future__ import annotations

import numpy as np

from headway.bench.calibration.measured_figures import Agreement, Figure
from headway.bench.calibration.recording import Recording, Seconds, seconds_per_token, tokens_per_second
from headway.bench.experiment.bundles import Bundle
from headway.domain.costs import ServiceCosts
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.replica import service_costs
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import SECONDS_PER_PS, StepTime
from headway.simulator.trace import Trace


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


def times_of(outcome: DayOutcome) -> tuple[Seconds, Seconds]:
    """(TTFT, end to end) seconds of every row, NaN where it did not happen."""
    first, last = (
        np.where(until == NEVER, np.nan, (until - outcome.arrived_ps) * SECONDS_PER_PS)
        for until in (outcome.first_token_ps, outcome.ended_ps)
    )
    return first, last


def in_both(recording: Recording, e2e: Seconds) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which requests were measured (a latency of nothing is none) and simulated to their ends."""
    return (recording.e2e_seconds > 0) & np.isfinite(e2e)


def agreement(recording: Recording, ttft: Seconds, e2e: Seconds, preemptions: int = 0) -> Agreement:
    """Put simulated times (as `times_of`) beside the measured ones.

    Raises:
        ValueError: no request has both.
    """
    both = in_both(recording, e2e)
    if not both.any():
        raise ValueError(f"{recording.label}: no request was both measured and simulated to its end")
    figures = {}
    trace = recording.trace
    tpot = seconds_per_token(trace, ttft, e2e)
    for name, measured, predicted in (
        ("ttft", recording.ttft_seconds, ttft),
        ("tpot", recording.tpot_seconds, tpot),
        ("e2e", recording.e2e_seconds, e2e),
    ):
        known = both & np.isfinite(measured) & np.isfinite(predicted)
        real, said = measured[known], predicted[known]
        means = (float(real.mean()), float(said.mean())) if known.any() else (float("nan"), float("nan"))
        tails = [float(np.percentile(one, 99)) if known.any() else float("nan") for one in (real, said)]
        figures[f"{name} mean"], figures[f"{name} p99"] = Figure(*means), Figure(*tails)
    figures["throughput"] = Figure(_throughput(trace, recording.e2e_seconds, both), _throughput(trace, e2e, both))
    mape = float(np.mean(np.abs(e2e[both] / recording.e2e_seconds[both] - 1)))
    return Agreement(int(both.sum()), figures, mape, preemptions)


def compare_with(
    recording: Recording, rules: EngineRules, step_time: StepTime, bundle: Bundle | None = None
) -> Agreement:
    """Replay and compare."""
    ttft, e2e, outcome = replay(recording, rules, step_time, bundle)
    return agreement(recording, ttft, e2e, int(outcome.preemptions.sum()))


def _throughput(trace: Trace, e2e: Seconds, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    return tokens_per_second(trace, np.where(rows, e2e, np.nan))
