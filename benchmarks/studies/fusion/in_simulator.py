"""What a measured share of alike prompt blocks is worth in the simulator, and to which order of requests.

    python -m benchmarks.studies.fusion.in_simulator [--shares 0 0.54 0.77]

Prompts of a few templates (tenants), behind different beginnings, on one H100 with little KV memory, all requests of a
day in a queue that is seldom short. Orders: `fcfs`; `fair-share`, which goes around the templates; and `together`,
which prefers the template of which most requests run, unless another has waited too long.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from headway.domain.event import Admitted, Completed, Event, Preempted
from headway.domain.request import RequestView
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import LaneId, OrderingPolicy
from headway.policies.ordering.fair_share import FairShare
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.scheduler import Policies
from headway.simulator.replica import replica
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace
from headway.testing.day_laws import StepRecords


class Together:
    """The template of which most requests run; of the waiting ones the oldest, once it is late."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._running: Counter[str] = Counter()

    def lane(self, request: RequestView) -> str:
        return request.tenant

    def rank(self, request: RequestView) -> float:
        return request.arrived_at

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        oldest = min(heads, key=lambda lane: (heads[lane].arrived_at, str(lane)))
        if now - heads[oldest].arrived_at > self._patience_seconds:
            return oldest
        return max(heads, key=lambda lane: (self._running[str(lane)], -heads[lane].arrived_at, str(lane)))

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        late_at = min(head.arrived_at for head in heads.values()) + self._patience_seconds
        return late_at if late_at >= now else math.inf

    def observe(self, event: Event) -> None:
        if isinstance(event, Admitted):
            self._running[event.request.tenant] += 1
        elif isinstance(event, Completed | Preempted):
            self._running[event.request.tenant] -= 1


def day(requests: int, templates: int, rate: float, seed: int) -> Trace:
    """Prompts of some 1,500 tokens, answers of some 300; each request has a template at random."""
    drawn = np.random.default_rng(seed)
    return Trace(
        "templates",
        arrived_seconds=np.cumsum(drawn.exponential(1 / rate, requests)),
        prompt_tokens=drawn.integers(1_200, 1_800, requests),
        output_tokens=drawn.geometric(1 / 300, requests),
        tenant=drawn.integers(templates, size=requests),
        tenants=tuple(f"template-{number}" for number in range(templates)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.54])
    parser.add_argument("--templates", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--rate", type=float, default=14.0, help="requests a second")
    parser.add_argument("--kv-tokens", type=int, default=60_000)
    parser.add_argument("--patience", type=float, nargs="+", default=[20.0, 120.0], help="seconds of `together`")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    server = replica(kv_tokens=asked.kv_tokens, async_scheduling=False, prefix_caching=False)
    orders: dict[str, Callable[[], OrderingPolicy]] = {
        "fcfs": Fcfs,
        "fair-share": FairShare,
        **{f"together within {seconds:g} s": partial(Together, seconds) for seconds in asked.patience},
    }
    print("templates, share, order: tokens/s (median of seeds), running, preemptions, mean TTFT s, p99 TTFT s")
    for templates in asked.templates:
        for share in asked.shares:
            for name, make in orders.items():
                found = []
                for seed in range(asked.seeds):
                    trace = day(asked.requests, templates, asked.rate, seed)
                    log = StepRecords()
                    policies = Policies(make(), Greedy(), LatestAdmitted(), RunningMean())
                    rules = replace(server.rules, fused_share=share)
                    outcome = simulate(trace, rules, server.step_time, policies, observer=log)
                    span = outcome.makespan_ps / 1e12
                    ttft = (outcome.first_token_ps - outcome.arrived_ps) / 1e12
                    busy = sum(step.duration_ps for step in log.steps)
                    running = sum((step.decodes + len(step.chunks)) * step.duration_ps for step in log.steps) / busy
                    tokens = float(trace.output_tokens.sum()) / span
                    preempted = float(outcome.preemptions.sum())
                    found.append((tokens, running, preempted, float(ttft.mean()), float(np.quantile(ttft, 0.99))))
                tokens, running, preempted, mean, p99 = (float(column) for column in np.median(np.array(found), axis=0))
                numbers = f"{tokens:.0f}, {running:.1f}, {preempted:.0f}, {mean:.1f}, {p99:.1f}"
                print(f"{templates}, {share:g}, {name}: {numbers}", flush=True)


if __name__ == "__main__":
    main()
