"""Table d of docs/results/ewsjf.md: a day of chat, a night of batches, and how soon the lanes follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.studies.ewsjf.situations import ewsjf, lanes_of, saturation, seconds, table
from headway.bench.experiment.bundles import Bundle
from headway.policies.lanes.partition import refine_and_prune
from headway.scheduling.scheduler import Policies
from headway.simulator.replica import Replica, replica
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace
from headway.tuning.drift import DriftTest

HALF = 2_500


def drift_trace(server: Replica) -> Trace:
    """Chat by day (median 300 tokens), batch by night (20 % of it as by day, the rest around 6,000), each at 1.05."""
    random = np.random.default_rng(5)
    chat = np.exp(random.normal(np.log(300), 0.9, HALF)).clip(8, 4_000)
    batch = np.where(random.random(HALF) < 0.2, np.exp(random.normal(np.log(300), 0.9, HALF)),
                     random.normal(6_000, 2_000, HALF)).clip(8, 16_000)  # fmt: skip
    outputs = random.integers(20, 200, HALF).astype(np.int64)
    halves = []
    for prompts in (chat, batch):
        gaps = np.random.default_rng(6).exponential(1.0, HALF)
        half = Trace("half", np.cumsum(gaps), prompts.astype(np.int64), outputs)
        halves.append(saturation(server, half).at_load(half, 1.05))
    night = halves[1].arrived_seconds + halves[0].arrived_seconds[-1]
    return replace(
        halves[0], name="day and night", arrived_seconds=np.concatenate([halves[0].arrived_seconds, night]),
        prompt_tokens=np.concatenate([half.prompt_tokens for half in halves]),
        output_tokens=np.concatenate([outputs, outputs]),
    )  # fmt: skip


class Spread:
    """A listener that looks at the lanes every 50 arrivals: how widely do night's sizes spread inside them?"""

    def __init__(self, policies: Policies, night: np.ndarray[Any, Any]) -> None:
        self.seen: list[tuple[int, float, int]] = []
        self._policies, self._night, self._arrived = policies, np.log(night + 1.0), 0

    def observe(self, event: object) -> None:
        if type(event).__name__ != "Arrived":
            return
        self._arrived += 1
        if self._arrived % 50 == 0:
            lanes = lanes_of(self._policies).router.lanes
            edges = np.log(np.array([lane.low for lane in lanes]) + 1.0)
            self.seen.append((self._arrived, within(edges, self._night), len(lanes)))


def within(edges: np.ndarray[Any, Any], logs: np.ndarray[Any, Any]) -> float:
    """Standard deviation of log sizes inside the lanes that begin at these edges."""
    place = np.searchsorted(edges, logs, side="right")
    spreads = [logs[place == p].var() * (place == p).sum() for p in np.unique(place)]
    return float(np.sqrt(sum(spreads) / len(logs)))


def drift_table() -> str:
    server = replica("h100", "llama-3.1-8b")
    trace = drift_trace(server)
    night = trace.prompt_tokens[HALF:]
    oracle = refine_and_prune(night.tolist(), spread_max=1.5, merge="ward-log")
    target = within(np.log(np.array([lane.low for lane in oracle]) + 1.0), np.log(night + 1.0))
    truth = trace.output_tokens.tolist().__getitem__
    rows = []
    variants: list[tuple[str, Bundle]] = [
        ("fcfs", ewsjf("fcfs", "fcfs")),
        ("highest-response-ratio (nothing to learn)", ewsjf("h", "highest-response-ratio")),
        ("ewsjf, learned once, frozen", ewsjf("f", relearn_requests=0)),
        ("ewsjf, every 2,000 of 10,000 (default)", ewsjf("d")),
        ("ewsjf, every 500 of 2,000", ewsjf("q", relearn_requests=500, window_requests=2_000)),
        ("ewsjf, every 250 of 1,000", ewsjf("r", relearn_requests=250, window_requests=1_000)),
        ("published, learned once, frozen", ewsjf("pf", "ewsjf-published", relearn_requests=0)),
        ("published, every 500 of 2,000", ewsjf("pq", "ewsjf-published", relearn_requests=500, window_requests=2_000)),
    ]
    for label, bundle in variants:
        policies = bundle.build(costs=server.costs, seed=0, truth=truth)
        watch = Spread(policies, night)
        listeners = [watch] if bundle.ordering.startswith("ewsjf") else []
        outcome = simulate(trace, server.rules, server.step_time, policies, listeners=listeners)
        ttft = (outcome.first_token_ps - outcome.arrived_ps) / 1e12
        late = slice(HALF + 1_000, None)
        after = [(n - HALF, spread) for n, spread, _ in watch.seen if n > HALF]
        learned = next((n for n, s in after if s <= 1.5 * target), None) if after else None
        at_switch = next((spread for n, spread, _ in watch.seen if n >= HALF), None)
        rows.append([label, seconds(ttft[:HALF].mean()), seconds(ttft[HALF : HALF + 1_000].mean()),
                     seconds(ttft[late].mean()), seconds(ttft[late][night[1_000:] <= 1_000].mean()),
                     "" if at_switch is None else f"{at_switch:.2f}", f"{after[-1][1]:.2f}" if after else "",
                     f"{learned:,}" if learned else "never" if after else ""])  # fmt: skip
    drift, told = DriftTest(), []
    for number, (at, size) in enumerate(zip(trace.arrived_seconds.tolist(), trace.prompt_tokens.tolist(), strict=True)):
        if drift.arrived(at, size) is not None:
            told.append(number)
    header = ["order", "TTFT by day, s", "first 1,000 of the night", "rest of the night", "of it, short prompts",
              "spread in lanes at dusk", "at dawn", "requests until re-learned"]  # fmt: skip
    spread_said = (
        "Re-learned: the spread of log sizes within lanes is at most 1.5 times that of lanes made from the night"
    )
    alarm = (
        f"The drift test of the tuner raises its alarm {told[0] - HALF:,} requests after dusk, and "
        f"{sum(n < HALF for n in told)} times before."
        if told
        else "The drift test raises no alarm."
    )
    return f"{table(header, rows)}\n\n{spread_said} itself, {target:.2f}. {alarm}"
