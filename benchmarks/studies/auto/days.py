"""Whole days under a twin, against the same days under each fixed bundle; one JSON file for each day and objective.

A *day* is a trace as it was recorded, on an engine that is slowed until the recorded rate is the wanted load: so that
looks and waits have the day's own length. A *joined day* is the first minutes of three traces, one after the other,
each at that load on one engine. What a folder holds already is not simulated again.

    python benchmarks/studies/auto/days.py FOLDER [DAY …] [--objective NAME]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import measure_saturation, offered_rate
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.metrics.run_metrics import Slo
from headway.bench.recommendation.candidates import candidates
from headway.bench.recommendation.objective import MEASURES, RequestTimes, measured, read_objective
from headway.bench.recommendation.verdict import served
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import head, part
from headway.bench.twin.virtual_day import steered_day
from headway.config.typed_values import read_table
from headway.simulator.replica import Replica, replica, service_costs
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.step_time import FlooredStepTime
from headway.simulator.trace import Trace
from headway.twin.auto_settings import AutoSettings
from headway.twin.chosen_bundle import ChosenBundle

LOAD = 1.1
WHOLE: Mapping[str, int] = {
    "azure_conv_2023": 12_340,
    "azure_code_2023": 6_521,
    "mooncake_conversation": 6_848,
    "servegen_m_large": 12_000,
    "servegen_m_mid": 12_000,
    "servegen_mm_image": 12_000,
    "servegen_deepseek_r1": 10_000,
}
"""First requests of each trace; days of a quarter of an hour to a whole one."""
JOINED: Mapping[str, tuple[str, str, str]] = {
    "joined-1": ("azure_conv_2023", "servegen_m_mid", "mooncake_conversation"),
    "joined-2": ("servegen_mm_image", "azure_code_2023", "servegen_m_large"),
    "joined-3": ("servegen_m_mid", "azure_conv_2023", "servegen_mm_image"),
}
JOINED_SECONDS = 600.0
"""Of each part."""
DEFAULT = ChosenBundle("highest-response-ratio", prediction="histogram")
SEED = 0


def slowed(step_scale: float) -> Replica:
    """Llama 3.1 8B on an H100 whose steps take so many times as long."""
    usual = replica("h100", "llama-3.1-8b")
    assert isinstance(usual.step_time, FlooredStepTime)
    step_time = ScaledStepTime(usual.step_time, Scalars(step_scale=step_scale))
    return replace(usual, step_time=step_time, costs=service_costs(step_time, usual.rules))


def saturation_rate(trace: Trace, server: Replica) -> float:
    """Requests a second that it serves while requests always wait, first come first served."""
    measured_rate = measure_saturation(trace, lambda day: simulate_bundle(day, server, Bundle("fcfs"), SEED))
    return measured_rate.requests_per_second


def read(folder: Path, name: str) -> Trace:
    """The first requests of a trace, open loop: sessions arrive as recorded."""
    trace = head(load_trace(str(folder / f"{name}.jsonl.gz")).trace, WHOLE[name])
    return replace(trace, session=None, turn=None, think_seconds=None)


def whole_day(folder: Path, name: str) -> tuple[Trace, Replica, list[float]]:
    """A recorded day and an engine that it loads; no moments at which the traffic changes."""
    trace = read(folder, name)
    usual = slowed(1.0)
    return trace, slowed(LOAD * saturation_rate(trace, usual) / offered_rate(trace)), []


def joined_day(folder: Path, name: str) -> tuple[Trace, Replica, list[float]]:
    """Three parts on one engine, and when the second and the third begin."""
    traces = [read(folder, one) for one in JOINED[name]]
    usual = slowed(1.0)
    rates = [saturation_rate(one, usual) for one in traces]
    server = slowed(rates[0] / offered_rate(traces[0]))
    parts, begins, at = [], [], 0.0
    for one, rate in zip(traces, rates, strict=True):
        density = LOAD * rate / rates[0] * offered_rate(traces[0]) / offered_rate(one)
        arrived = one.arrived_seconds / density
        taken = part(replace(one, arrived_seconds=arrived), 0, int(np.searchsorted(arrived, JOINED_SECONDS)))
        parts.append(replace(taken, arrived_seconds=taken.arrived_seconds + at))
        begins.append(at)
        at += min(JOINED_SECONDS, float(arrived[-1]) + 1.0)
    return in_a_row(parts, name), server, begins[1:]


def in_a_row(parts: Sequence[Trace], name: str) -> Trace:
    """One trace of several whose arrivals follow each other; equal blocks of different parts are different."""
    prefixes: list[Sequence[int]] = []
    offset = 0
    for one in parts:
        known = one.prefix_ids if one.prefix_ids is not None else [own(one, row) for row in range(len(one))]
        top = max((max(ids) for ids in known if len(ids)), default=-1) + 1
        prefixes += [[block + offset for block in ids] for ids in known]
        offset += top
    return Trace(
        name,
        np.concatenate([one.arrived_seconds for one in parts]),
        np.concatenate([one.prompt_tokens for one in parts]),
        np.concatenate([one.output_tokens for one in parts]),
        prefix_ids=prefixes if any(one.prefix_ids is not None for one in parts) else None,
    )


def own(trace: Trace, row: int) -> list[int]:
    """Ids of the blocks of a prompt that shares none, within its part."""
    before = int((-(-trace.prompt_tokens[:row] // 512)).sum())
    return list(range(before, before - int(-trace.prompt_tokens[row] // 512)))


def figures(objective_name: str, slo: Slo, every: Sequence[RequestTimes]) -> tuple[list[float], list[dict[str, float]]]:
    """How far each is from the best by the objective (1 is best), and its measures."""
    objective = read_objective(objective_name, slo)
    each = [objective.columns(one) for one in every]
    columns = {name: np.array([one[name] for one in each]) for name in MEASURES}
    measures = [{name: float(measured(name, columns[name])[row]) for name in MEASURES} for row in range(len(every))]
    return [float(np.exp(score)) for score in objective.scores(columns)], measures


def lived(folder: Path, name: str, objective: str) -> dict[str, Any]:
    """One day under the twin and under each fixed bundle."""
    began = time.perf_counter()
    trace, server, changes = (joined_day if name in JOINED else whole_day)(folder, name)
    assert isinstance(server.step_time, ScaledStepTime)
    factor = server.costs.decode_seconds_per_token / slowed(1.0).costs.decode_seconds_per_token
    slo = Slo(ttft_seconds=2.0 * factor, tpot_seconds=0.1 * factor)
    settings = read_table(
        AutoSettings,
        {"on": True, "objective": objective, "ttft_seconds": 2.0 * factor, "tpot_seconds": 0.1 * factor},
    )
    day = steered_day(trace, server, settings, DEFAULT, SEED)
    template = Bundle("", "fcfs", prediction=DEFAULT.prediction)
    fixed = candidates(template)
    times = [served(trace, simulate_bundle(trace, server, one, SEED)) for one in fixed]
    auto = served(trace, day.outcome)
    scores, measures = figures(objective, slo, [auto, *times])
    labels = ["auto", *(one.label for one in fixed)]
    usual = times[labels.index(DEFAULT.ordering) - 1]
    later = auto.ttft_seconds - usual.ttft_seconds
    return {
        "day": name,
        "objective": objective,
        "load": LOAD,
        "requests": len(trace),
        "seconds": float(trace.arrived_seconds[-1]),
        "step_scale": factor,
        "rows": [
            {"label": label, "behind": score, **found}
            for label, score, found in zip(labels, scores, measures, strict=True)
        ],
        "changes": changes,
        "switches": day.switches,
        "sentences": day.sentences,
        "worst_harm": {"seconds": float(later.max()), "then_waited": float(auto.ttft_seconds[later.argmax()])},
        "wall_seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Simulate what the folder does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("days", nargs="*", default=[*WHOLE, *JOINED])
    parser.add_argument("--objective", action="append", choices=["mean-ttft", "balanced", "goodput", "e2e", "p99-ttft"])
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"), help="folder of the traces")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for objective in given.objective or ["mean-ttft", "balanced"]:
        for name in given.days:
            file = given.folder / f"{name}.{objective}.json"
            if file.exists():
                continue
            found = lived(given.traces, name, objective)
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            auto, *fixed = found["rows"]
            best = min(fixed, key=lambda row: row["behind"])
            print(
                f"{name} {objective}: auto {auto['behind']:.3f}, best fixed {best['label']} {best['behind']:.3f}, "
                f"{len(found['switches'])} switches, {found['wall_seconds']:.0f} s",
                file=sys.stderr,
                flush=True,
            )


if __name__ == "__main__":
    main()
