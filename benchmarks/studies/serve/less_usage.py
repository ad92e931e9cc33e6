"""What learning loses where usage is not seen, or is seen late or wrongly: table of docs/results/scale-out.md.

    python -m benchmarks.studies.serve.less_usage [--requests 3000] [--seeds 2] [--loads 1.3] [--json FILE]

Behind Envoy the endpoint picker sees no bodies of answers (`response_body_mode: NONE`). Each way to learn lengths after
all is simulated by what it tells the predictor `histogram` of each completed request:

- all: its true length, at once, as behind `headway serve`;
- nothing: as behind Envoy without more;
- N %: the true length of a drawn share (Envoy shows the bodies of so many);
- bytes: the true length with an error of 20 % (one standard deviation, log-normal), five seconds late, as an access log
  tells the bytes of answers after a flush;
- time: the seconds from first token to end, over the mean inter-token latency of the last ten seconds, which the
  counters of engines give;
- counters: the mean length of the requests that ended in the last ten seconds, for each of them.

One H100 with Llama 3.1 8B, simulated. Figures are of all requests; means over seeds, beside that of `all`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import measure_saturation
from headway.bench.workloads.chat import chat_and_documents
from headway.bench.workloads.client_mixes import reasoning, tenants
from headway.domain.estimate import LengthEstimate
from headway.domain.event import Completed, Event, FirstToken
from headway.domain.request import RequestId, RequestView
from headway.policies.contracts import LengthPredictor
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import replica
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace

WORKLOADS: dict[str, Callable[[int, int], Trace]] = {
    "tenants": tenants,
    "chat-and-documents": chat_and_documents,
    "reasoning": reasoning,
}
ORDERS = {"hrrn": "highest-response-ratio", "svf": "smallest-volume-first", "priced-work": "priced-work"}
WINDOW_SECONDS = 10.0
LATE_SECONDS = 5.0
ERROR = 0.2
WAYS = ("all", "nothing", "10 %", "3 %", "1 %", "bytes", "time", "counters")


class Overheard:
    """A predictor that is told of completions in one of the ways."""

    hears = (FirstToken, Completed)

    def __init__(self, inner: LengthPredictor, way: str, seed: int) -> None:
        self._inner = inner
        self._way = way
        self._draw = Random(seed)
        self._began: dict[RequestId, float] = {}
        self._ended: deque[tuple[float, float, int]] = deque()  # at, seconds after the first token, tokens
        self._late: deque[Completed] = deque()

    def predict(self, request: RequestView) -> LengthEstimate:
        return self._inner.predict(request)

    def observe(self, event: Event) -> None:
        if isinstance(event, FirstToken):
            self._began[event.request.id] = event.at
        elif isinstance(event, Completed):
            seconds = event.at - self._began.pop(event.request.id, event.at)
            self._ended.append((event.at, seconds, event.output_tokens))
            while self._ended[0][0] < event.at - WINDOW_SECONDS:
                self._ended.popleft()
            self._tell(event, seconds)

    def _tell(self, event: Completed, seconds: float) -> None:
        way, told = self._way, event.output_tokens
        if way == "nothing" or (way.endswith("%") and self._draw.random() >= float(way[:-2]) / 100):
            return
        if way == "bytes":
            told = round(told * self._draw.lognormvariate(0.0, ERROR))
            self._late.append(event._replace(output_tokens=max(1, told)))
            while self._late and self._late[0].at <= event.at - LATE_SECONDS:
                self._inner.observe(self._late.popleft())
            return
        if way == "time":
            gaps = sum(tokens - 1 for _, _, tokens in self._ended)
            between = sum(one for _, one, _ in self._ended) / max(1, gaps)
            told = 1 + round(seconds / between) if between else told
        elif way == "counters":
            told = round(sum(tokens for *_, tokens in self._ended) / len(self._ended))
        bound = event.request.max_output_tokens
        self._inner.observe(event._replace(output_tokens=max(1, told if bound is None else min(told, bound))))


def figures(outcome: DayOutcome) -> dict[str, float]:
    ttft = (outcome.first_token_ps - outcome.arrived_ps) / 1e12
    whole = (outcome.ended_ps - outcome.arrived_ps) / 1e12
    return {"ttft mean": ttft.mean(), "ttft p99": float(np.percentile(ttft, 99)), "e2e mean": whole.mean()}


def run(requests: int, seeds: int, loads: Sequence[float]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Figures of each case and way, one for each seed."""
    server = replica("h100", "llama-3.1-8b")
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, workload in WORKLOADS.items():
        for seed in range(seeds):
            trace = workload(requests, seed)
            fcfs = Bundle("fcfs")

            def simulate_fcfs(day: Trace, fcfs: Bundle = fcfs) -> DayOutcome:
                truth = day.output_tokens.tolist().__getitem__
                return simulate(
                    day, server.rules, server.step_time, fcfs.build(costs=server.costs, seed=0, truth=truth)
                )

            saturation = measure_saturation(trace, simulate_fcfs)
            for load in loads:
                day = saturation.at_load(trace, load)
                for short, order in ORDERS.items():
                    case = found.setdefault(f"{name}, load {load:g}, {short}", {})
                    for way in WAYS:
                        bundle = Bundle(short, order, prediction="histogram")
                        built = bundle.build(
                            costs=server.costs, seed=seed, truth=day.output_tokens.tolist().__getitem__
                        )
                        policies = dataclasses.replace(built, prediction=Overheard(built.prediction, way, seed))
                        outcome = simulate(day, server.rules, server.step_time, policies)
                        case.setdefault(way, []).append(figures(outcome))
            print(f"{name}, seed {seed + 1} of {seeds} done", file=sys.stderr)
    return found


def table(found: dict[str, dict[str, list[dict[str, float]]]], figure: str) -> str:
    """That of `all` in seconds, and of each other way over it."""
    lines = [f"| {figure} | all, s | " + " | ".join(WAYS[1:]) + " |", "|---" * (len(WAYS) + 1) + "|"]
    for case, ways in found.items():
        base = mean(ways["all"], figure)
        rest = " | ".join(f"{mean(ways[way], figure) / base:.2f}" for way in WAYS[1:])
        lines.append(f"| {case} | {base:.2f} | {rest} |")
    return "\n".join(lines)


def mean(runs: Sequence[dict[str, float]], figure: str) -> float:
    return sum(one[figure] for one in runs) / len(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--loads", type=float, nargs="+", default=[1.3])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = run(asked.requests, asked.seeds, asked.loads)
    for figure in ("ttft mean", "ttft p99", "e2e mean"):
        print(table(found, figure), end="\n\n")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
