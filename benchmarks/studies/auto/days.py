"""Days of the study of `ordering = "auto"`: what is replayed, on what, and every fixed bundle on it.

A *day* is a trace as it was recorded, on an engine that is slowed until the recorded rate is the wanted load: so that
looks and waits have the day's own length. A *joined day* is the first minutes of three traces, one after the other,
each at that load on one engine. Halves are those of `regret_cells`: what the twin expects of an order was fitted on
days of the training half, and days of the test half are made of traces of the test half only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import measure_saturation, offered_rate
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.metrics.run_metrics import Slo
from headway.bench.recommendation.candidates import candidates
from headway.bench.recommendation.objective import RequestTimes
from headway.bench.recommendation.verdict import served
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import head, part
from headway.simulator.replica import Replica, replica, service_costs
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.step_time import FlooredStepTime
from headway.simulator.trace import Trace
from headway.twin.chosen_bundle import ChosenBundle

LOAD = 1.0
"""Share of saturation: requests wait, and not nearly all of them miss any bound, so that goodput tells something."""
REQUESTS: Mapping[str, Mapping[str, int]] = {
    "training": {
        "azure_conv_2023": 3_000,
        "lengths_arxiv_summarization": 1_500,
        "mooncake_conversation": 2_000,
        "servegen_deepseek_r1": 1_500,
        "servegen_m_mid": 3_000,
        "servegen_mm_image": 3_000,
    },
    "test": {
        "azure_code_2023": 2_000,
        "lengths_apex_mix": 1_000,
        "lengths_sharegpt_8k": 1_500,
        "mooncake_synthetic": 1_500,
        "servegen_m_large": 2_500,
        "servegen_m_small": 2_500,
    },
}
"""First requests of each trace. Without the two of coding agents: most of their requests follow an answer."""
JOINED: Mapping[str, Mapping[str, tuple[str, str, str]]] = {
    "training": {"joined-a": ("azure_conv_2023", "servegen_mm_image", "mooncake_conversation")},
    "test": {
        "joined-1": ("servegen_m_large", "mooncake_synthetic", "lengths_sharegpt_8k"),
        "joined-2": ("lengths_sharegpt_8k", "azure_code_2023", "mooncake_synthetic"),
    },
}
JOINED_SECONDS = 300.0
"""Of each part."""
DEFAULT = ChosenBundle("highest-response-ratio", prediction="histogram")
SEED = 0
_FIELDS = [one.name for one in fields(RequestTimes)]


@dataclass(frozen=True, slots=True)
class StudyDay:
    """Traffic and the engine that it loads.

    Attributes:
        trace: the requests.
        server: the engine.
        slowed: how many times as long its steps take as those of an H100.
        changes: seconds at which the second part and the third begin; none of a whole day.
    """

    trace: Trace
    server: Replica
    slowed: float
    changes: tuple[float, ...] = ()

    @property
    def slo(self) -> Slo:
        """2 s of TTFT and 0.1 s per output token on an H100, slowed like it."""
        return Slo(ttft_seconds=2.0 * self.slowed, tpot_seconds=0.1 * self.slowed)


def names_of(half: str) -> list[str]:
    """Whole days and joined days of a half."""
    return [*REQUESTS[half], *JOINED[half]]


def make_day(folder: Path, name: str, load: float = LOAD) -> StudyDay:
    """The day of this name, from a folder of traces."""
    for half in JOINED.values():
        if name in half:
            return _joined_day(folder, name, half[name], load)
    trace = _read(folder, name)
    factor = load * _saturation_rate(trace, slowed(1.0)) / offered_rate(trace)
    return StudyDay(trace, slowed(factor), factor)


def fixed_times(day: StudyDay, file: Path) -> dict[str, RequestTimes]:
    """What became of each request under each candidate of `headway recommend`; kept in the file."""
    if not file.exists():
        template = Bundle("", "fcfs", prediction=DEFAULT.prediction)
        found = {}
        for one in candidates(template):
            lived = served(day.trace, simulate_bundle(day.trace, day.server, one, SEED))
            found[one.label] = np.array([getattr(lived, name) for name in _FIELDS])
        np.savez_compressed(file, **found)
    with np.load(file) as kept:
        return {label: RequestTimes(*kept[label]) for label in kept.files}


def slowed(step_scale: float) -> Replica:
    """Llama 3.1 8B on an H100 whose steps take so many times as long."""
    usual = replica("h100", "llama-3.1-8b")
    assert isinstance(usual.step_time, FlooredStepTime)
    step_time = ScaledStepTime(usual.step_time, Scalars(step_scale=step_scale))
    return replace(usual, step_time=step_time, costs=service_costs(step_time, usual.rules))


def _saturation_rate(trace: Trace, server: Replica) -> float:
    """Requests a second that it serves while requests always wait, first come first served."""
    measured_rate = measure_saturation(trace, lambda day: simulate_bundle(day, server, Bundle("fcfs"), SEED))
    return measured_rate.requests_per_second


def _read(folder: Path, name: str) -> Trace:
    """The first requests of a trace, open loop: sessions arrive as recorded."""
    requests = next(half[name] for half in REQUESTS.values() if name in half)
    trace = head(load_trace(str(folder / f"{name}.jsonl.gz")).trace, requests)
    return replace(trace, session=None, turn=None, think_seconds=None)


def _joined_day(folder: Path, name: str, of: Sequence[str], load: float) -> StudyDay:
    traces = [_read(folder, one) for one in of]
    usual = slowed(1.0)
    rates = [_saturation_rate(one, usual) for one in traces]
    factor = rates[0] / offered_rate(traces[0])
    parts, begins, at = [], [], 0.0
    for one, rate in zip(traces, rates, strict=True):
        density = load * rate / rates[0] * offered_rate(traces[0]) / offered_rate(one)
        arrived = one.arrived_seconds / density
        taken = part(replace(one, arrived_seconds=arrived), 0, int(np.searchsorted(arrived, JOINED_SECONDS)))
        parts.append(replace(taken, arrived_seconds=taken.arrived_seconds + at))
        begins.append(at)
        at += min(JOINED_SECONDS, float(arrived[-1]) + 1.0)
    return StudyDay(_in_a_row(parts, name), slowed(factor), factor, tuple(begins[1:]))


def _in_a_row(parts: Sequence[Trace], name: str) -> Trace:
    """One trace of several whose arrivals follow each other; equal blocks of different parts are different."""
    prefixes: list[Sequence[int]] = []
    offset = 0
    for one in parts:
        known = one.prefix_ids if one.prefix_ids is not None else [_own(one, row) for row in range(len(one))]
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


def _own(trace: Trace, row: int) -> list[int]:
    """Ids of the blocks of a prompt that shares none, within its part."""
    before = int((-(-trace.prompt_tokens[:row] // 512)).sum())
    return list(range(before, before - int(-trace.prompt_tokens[row] // 512)))
