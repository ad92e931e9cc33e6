"""Real vLLM runs, replayed: how far the simulator is from them by its profiles alone, and after one scalar.

    HEADWAY_GROUNDTRUTH=FOLDER python -m benchmarks.studies.step_times.recorded_runs

FOLDER is described in docs/results/truth.md. A scalar is fitted on one run and judged on the others; every kind of
scalar is shown, so that none was picked by looking at the held-out runs. Deterministic.
"""

from __future__ import annotations

import csv
import gzip
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.studies.step_times.lockstep_experts import replay_in_lockstep
from headway.bench.calibration.fitting import calibrate_linear
from headway.bench.calibration.recording_files import read_recording
from headway.bench.calibration.replay import compare_with, replay
from headway.bench.calibration.scalars import SCALARS, ScalarName, fit_scalars, replaying
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.metrics.agreement import Agreement, agreement, percent, times_of
from headway.bench.metrics.recording import Recording, Seconds
from headway.bench.traces.reshaping import Rows
from headway.simulator.replica import Replica, replica
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.trace import Trace

NEUTRAL = Scalars()
MOE = "RTXPRO6000_Qwen3-30B-A3B-Instruct-2507"
KV_BLOCKS = {"RTX4090_Llama-3.1-8B": 2_588 - 1}  # recorded; one is the null block. Elsewhere what memory leaves
SETTINGS = {  # folder -> card, model, seats: `run.json` of each
    "RTX4090_Llama-3.1-8B": ("rtx-4090", "llama-3.1-8b", 256),
    "RTXPRO6000_Llama-3.1-8B": ("rtx-pro-6000", "llama-3.1-8b", 128),
    MOE: ("rtx-pro-6000", "qwen3-30b-a3b", 128),
}
COLUMNS = ("ttft mean", "ttft p99", "tpot mean", "tpot p99", "e2e mean", "e2e p99")


@dataclass(frozen=True)
class Run:
    """A recorded run and the replica that it is replayed on; `ranks` of them in lock step."""

    name: str
    recording: Recording
    replica: Replica
    ranks: int = 1

    def replay(self, scalars: Scalars, split: Sequence[int] | None = None) -> Agreement:
        if self.ranks == 1:
            step_time = ScaledStepTime(self.replica.step_time, scalars)
            return compare_with(self.recording, self.replica.rules, step_time)
        return agreement(self.recording, *self.lockstep(scalars, split))

    def lockstep(self, scalars: Scalars, split: Sequence[int] | None = None) -> tuple[Seconds, Seconds]:
        return replay_in_lockstep(self.recording.trace, self.replica, scalars, split or self.round_robin())

    def fit(self, name: ScalarName) -> Scalars:
        dense = replaying(self.recording, self.replica.rules, self.replica.step_time)
        return fit_scalars(self.recording, dense if self.ranks == 1 else self.lockstep, [name])

    def round_robin(self) -> list[int]:
        return [row % self.ranks for row in range(len(self.recording.trace))]


def recorded_runs(root: Path) -> list[Run]:
    found = []
    for name, (card, model, seats) in SETTINGS.items():
        recording = read_recording(str(root / "runs" / name / "requests.csv.gz"))
        server = replica(card, model, tp=1, max_num_seqs=seats, max_num_batched_tokens=2_048, prefix_caching=True)
        if name in KV_BLOCKS:
            server = replace(server, rules=replace(server.rules, kv_blocks=KV_BLOCKS[name]))
        if name == MOE:  # an upper bound of the source: half of the experts lies on each GPU, and nobody comes near
            server = replace(server, rules=replace(server.rules, kv_blocks=38_590))
        found.append(Run(name, recording, server, ranks=2 if name == MOE else 1))
    return found


def row(name: str, told: Agreement) -> str:
    cells = [percent(told.figures[column].error) for column in COLUMNS]
    return f"| {name} | " + " | ".join(cells) + f" | {100 * told.e2e_mape:.1f} % | {told.preemptions} |"


def profile_alone(runs: Sequence[Run]) -> Iterator[str]:
    yield "| run | TTFT mean | p99 | TPOT mean | p99 | latency mean | p99 | per request | preemptions |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for run in runs:
        yield row(run.name, run.replay(NEUTRAL))


def one_scalar(runs: Sequence[Run]) -> Iterator[str]:
    """Every kind of scalar, fitted on each run, judged on all of them."""
    yield "| fitted on | scalar | value | judged on | TTFT mean | p99 | TPOT mean | p99 | latency | p99 | request |"
    yield "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|"
    for source in runs:
        for name in SCALARS:
            scalars = source.fit(name)
            for target in runs:
                told = target.replay(scalars)
                cells = " | ".join(percent(told.figures[column].error) for column in COLUMNS)
                held = target.name if target is not source else f"{target.name} (in sample)"
                yield (
                    f"| {source.name} | {name} | {getattr(scalars, name):.4g} | {held} | {cells} "
                    f"| {100 * told.e2e_mape:.1f} % |"
                )


def linear(runs: Sequence[Run]) -> Iterator[str]:
    """No profile at all: five coefficients fitted to the first 70 % of the requests, judged on the rest."""
    yield "| run | TTFT mean | p99 | TPOT mean | p99 | latency mean | p99 | per request | preemptions |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for run in (run for run in runs if run.ranks == 1):
        yield row(run.name, calibrate_linear(run.recording, run.replica.rules, run.name).held_out)


def inside(root: Path, runs: Sequence[Run]) -> Iterator[str]:
    """What went on in the engine: who ran, who waited, whom memory threw out."""
    yield "| run | | measured | simulated |"
    yield "|---|---|---:|---:|"
    for run in (run for run in runs if run.ranks == 1):
        ttft, e2e, outcome = replay(run.recording, run.replica.rules, run.replica.step_time)
        with gzip.open(root / "runs" / run.name / "timeseries.csv.gz", "rt") as file:
            seconds = list(csv.DictReader(file))
        for name, curve in (("running", outcome.curve_running), ("waiting", outcome.curve_waiting)):
            counted = [int(second[name]) for second in seconds]
            yield f"| {run.name} | {name}, at most | {max(counted)} | {max(curve)} |"
        recorded = overtaken(run.recording.trace, run.recording.ttft_seconds, run.recording.e2e_seconds)
        simulated = overtaken(run.recording.trace, ttft, e2e)
        yield f"| {run.name} | preempted, as the order of completion implies | {recorded} | {simulated} |"


def overtaken(trace: Trace, ttft: Seconds, e2e: Seconds) -> int:
    """Requests that ended after one whose first token came no sooner and whose output is no shorter.

    All who decode get a token a step, so nothing but a preemption does that: a lower bound on the preempted.
    """
    first, last, output = trace.arrived_seconds + ttft, trace.arrived_seconds + e2e, trace.output_tokens
    later = (first[None, :] >= first[:, None]) & (output[None, :] >= output[:, None])
    return int((later & (last[None, :] < last[:, None] - 1e-3)).any(axis=1).sum())


def unknowns(runs: Sequence[Run]) -> Iterator[str]:
    """What the recordings do not say, and what it could change."""
    yield "| run | TTFT mean | p99 | TPOT mean | p99 | latency mean | p99 | per request | preemptions |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for run in runs:
        if run.ranks == 1:
            rules = run.replica.rules
            for label, other in (
                ("as vLLM 0.19 ran", rules),
                ("no prefix caching", replace(rules, prefix_caching=False)),
                ("synchronous scheduling", replace(rules, async_scheduling=False)),
                ("KV blocks - 10 %", replace(rules, kv_blocks=int(0.9 * rules.kv_blocks))),
            ):
                told = compare_with(run.recording, other, run.replica.step_time)
                yield row(f"{run.name}, {label}", told)
            continue
        yield row(f"{run.name}, round robin", run.replay(NEUTRAL))
        yield row(f"{run.name}, fewest running by the recorded ends", run.replay(NEUTRAL, fewest_running(run)))
        for seed in range(3):
            drawn = np.random.default_rng(seed).integers(0, run.ranks, len(run.recording.trace)).tolist()
            yield row(f"{run.name}, random {seed}", run.replay(NEUTRAL, drawn))
        yield row(f"{run.name}, two replicas on their own, all experts on each", apart(run))


def fewest_running(run: Run) -> list[int]:
    """Each request to the rank with the fewest that have not ended, by the recorded times."""
    ends: list[list[float]] = [[] for _ in range(run.ranks)]
    split = []
    arrived = run.recording.trace.arrived_seconds.tolist()
    for at, last in zip(arrived, run.recording.e2e_seconds.tolist(), strict=True):
        chosen = min(range(run.ranks), key=lambda rank: sum(end > at for end in ends[rank]))
        ends[chosen].append(at + last)
        split.append(chosen)
    return split


def apart(run: Run) -> Agreement:
    """The same requests on independent replicas that hold every expert each: what data parallelism is not."""
    trace, split = run.recording.trace, np.array(run.round_robin())
    ttft, e2e = np.full(len(trace), np.nan), np.full(len(trace), np.nan)
    for rank in range(run.ranks):
        rows = np.flatnonzero(split == rank)
        ttft[rows], e2e[rows] = times_of(simulate_bundle(taken(trace, rows), run.replica, Bundle("fcfs"), 0))
    return agreement(run.recording, ttft, e2e)


def taken(trace: Trace, rows: Rows) -> Trace:
    assert trace.prefix_ids is not None
    assert trace.max_output_tokens is not None
    return replace(
        trace,
        arrived_seconds=trace.arrived_seconds[rows],
        prompt_tokens=trace.prompt_tokens[rows],
        output_tokens=trace.output_tokens[rows],
        max_output_tokens=trace.max_output_tokens[rows],
        prefix_ids=[trace.prefix_ids[one] for one in rows],
    )


def main() -> int:
    folder = os.environ.get("HEADWAY_GROUNDTRUTH")
    if not folder:
        print("set HEADWAY_GROUNDTRUTH to the folder that docs/results/truth.md describes", file=sys.stderr)
        return 2
    runs = recorded_runs(Path(folder))
    for title, lines in (
        ("The profile alone", profile_alone(runs)),
        ("One scalar", one_scalar(runs)),
        ("A linear model, held out", linear(runs)),
        ("Inside the engine", inside(Path(folder), runs)),
        ("What the recordings do not say", unknowns(runs)),
    ):
        print(f"## {title}\n")
        for line in lines:
            print(line, flush=True)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
