"""Days of the frontier study: windows of public traces under every order, and the folder that keeps them.

A *cell* is a trace on a replica with ample or squeezed KV memory at a load. Each trace has *windows*, cut one after the
other. Both windows of a pair are brought to the same load, each by its own saturation. The replica's memory is that of
the first window. An *arm* is an order with one value of its dial, and a predictor.

The folder holds one file for each arm of each window of a cell: what became of every request. What is there is not
simulated again, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.priced_work.regret_cells import (
    HALVES,
    LARGEST_MARGIN,
    LONG,
    MEMORIES,
    READS_NO_LENGTHS,
    REPLICAS,
    SEED,
    SERVED_SHARE,
    SQUEEZE,
    held_blocks,
    orders_for,
)
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.parallel import spread
from headway.bench.experiment.saturation import Saturation, measure_saturation
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.recommendation.objective import RequestTimes
from headway.bench.recommendation.verdict import rows_of, served, served_by_some
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import part
from headway.bench.user_mistake import UserMistake
from headway.bounds.lower_bounds import lower_bounds
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import Replica, replica
from headway.simulator.trace import Trace

REQUESTS = 3_000
FEWER = 2_000  # of traces with the longest prompts or answers
DIALS: Mapping[str, tuple[str, Sequence[float]]] = {
    "boost": ("decay_factor", (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
    "priced-work": ("patience", (1.05, 1.25, 2.0, 5.0, 20.0)),
    "shortest-job-first-aging": ("service_seconds_per_second_waited", (0.03, 0.3)),
    "deadline-plus-work": ("work_weight", ()),
}
LEFT_OUT = ("adapter-clusters", "deadline-plus-work")  # what they read is in no trace
PREDICTION = "histogram"


@dataclass(frozen=True)
class Cell:
    """A trace, a replica, its memory, a load."""

    trace: str
    replica: str
    memory: str
    load: float

    @property
    def name(self) -> str:
        return f"{self.trace}, {self.replica}, {self.memory}, load {self.load:g}"

    @property
    def half(self) -> str:
        return "training" if self.trace in HALVES["train"] else "test"

    def folder(self, days: Path) -> Path:
        return days / f"{self.trace}-{self.replica}-{self.memory}"


@dataclass(frozen=True)
class Day:
    """One window of a cell under some arms: what became of each request, in the order of arrival.

    Attributes:
        arrived_seconds: of each request.
        prompt_tokens: of each request.
        bound: seconds of mean TTFT that no order goes below; None where it was not measured.
        arms: by label.
    """

    arrived_seconds: np.ndarray[Any, np.dtype[np.float64]]
    prompt_tokens: np.ndarray[Any, np.dtype[np.int64]]
    bound: float | None
    arms: Mapping[str, RequestTimes]


def cells_of(traces: Sequence[str], replicas: Sequence[str], loads: Sequence[float]) -> list[Cell]:
    return [
        Cell(trace, name, memory, load)
        for trace in traces
        for name in replicas
        for memory in MEMORIES
        for load in loads
    ]


def window(trace: str, number: int) -> Trace:
    """The window of this number, from 0; of a short trace they are as long as leaves two."""
    whole = _whole(trace)
    length = min(FEWER if trace in LONG else REQUESTS, len(whole) // 2)
    return part(whole, number * length, (number + 1) * length)


def has_window(trace: str, number: int) -> bool:
    whole = _whole(trace)
    return (number + 1) * min(FEWER if trace in LONG else REQUESTS, len(whole) // 2) <= len(whole)


def arms_of(trace: Trace) -> list[Bundle]:
    """Every order that finds in the trace what it reads, with the values of its dial. No true lengths."""
    found = [arm for arm in orders_for(trace) if arm.ordering not in LEFT_OUT]
    for ordering, (dial, values) in DIALS.items():
        prediction = "running-mean" if ordering in READS_NO_LENGTHS else PREDICTION
        for value in values:
            options = {"ordering": {dial: value}}
            label = f"{ordering}({dial}={value:g})"
            found.append(Bundle(label, ordering, prediction=prediction, options=options))
    dialled = {ordering for ordering, (_, values) in DIALS.items() if values}
    return [arm for arm in found if arm.label not in dialled or arm.ordering == "shortest-job-first-aging"]


def measure(
    days: Path,
    cells: Sequence[Cell],
    numbers: Sequence[int],
    arms: Callable[[Trace], Sequence[Bundle]] = arms_of,
    *,
    jobs: int | None,
    on_done: Callable[[], None],
) -> None:
    """Simulate what is missing: the windows `numbers` of the cells, under the arms."""
    days.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, str, str, int], list[Cell]] = {}
    for cell in cells:
        for number in numbers:
            if has_window(cell.trace, number):
                groups.setdefault((cell.trace, cell.replica, cell.memory, number), []).append(cell)

    days_of = [(cell, key[3]) for key, group in groups.items() for cell in group]
    spread(lambda one: _fill(days, one[0], one[1], arms), days_of, jobs=jobs, on_done=on_done)


def read(days: Path, cell: Cell, number: int) -> Day | None:
    """A window as it was simulated; None where it was not, or was left out."""
    folder = _place(days, cell, number)
    head = folder / "traffic.npz"
    if not head.exists():
        return None
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    with np.load(head) as traffic:
        arrived, prompts = traffic["arrived"], traffic["prompts"]
    arms = {}
    for path in sorted(folder.glob("*.arm.npz")):
        with np.load(path) as told:
            arms[str(told["label"])] = RequestTimes(
                *(told[name].astype(np.float64) for name in ("ttft", "e2e", "normalised", "tpot"))
            )
    kept = served_by_some([*arms.values()])
    arms = {label: rows_of(told, kept) for label, told in arms.items()}
    return Day(arrived[kept], prompts[kept], facts["bound"], arms)


def _fill(days: Path, cell: Cell, number: int, arms: Callable[[Trace], Sequence[Bundle]]) -> None:
    trace = window(cell.trace, number)
    folder = _place(days, cell, number)
    missing = [arm for arm in arms(trace) if not _file(folder, arm).exists()]
    if not missing:
        return
    server = _server(cell.trace, cell.replica, cell.memory)
    if server is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    facts = _facts(folder, trace, server)
    day = Saturation(facts["saturation"], "", facts["copies"] > 1, facts["copies"]).at_load(trace, cell.load)
    for arm in missing:
        told = served(day, simulate_bundle(day, server, arm, SEED))
        _write(_file(folder, arm), label=np.array(arm.label), **_columns(told))
    if not (folder / "traffic.npz").exists():
        bounds = lower_bounds(day, server.rules, server.step_time)
        facts["bound"] = bounds.mean_ttft_seconds
        (folder / "facts.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        _write(folder / "traffic.npz", arrived=day.arrived_seconds, prompts=day.prompt_tokens)


def _columns(told: RequestTimes) -> dict[str, Any]:
    return {
        "ttft": told.ttft_seconds.astype(np.float32),
        "e2e": told.e2e_seconds.astype(np.float32),
        "normalised": told.normalised_seconds.astype(np.float32),
        "tpot": told.tpot_seconds.astype(np.float32),
    }


def _facts(folder: Path, trace: Trace, server: Replica) -> dict[str, Any]:
    """The saturation of the window, measured once for all loads."""
    path = folder.parent / f"{folder.name.partition('-')[0]}.json"
    if not path.exists():
        found = measure_saturation(trace, lambda day: _fcfs(day, server))
        draft = folder / "saturation.part"
        draft.write_text(json.dumps({"saturation": found.requests_per_second, "copies": found.copies}) + "\n")
        draft.replace(path)
    return {"bound": None} | json.loads(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=4)
def _server(trace_name: str, replica_name: str, memory: str) -> Replica | None:
    """The replica, its memory squeezed by what the first window holds at saturation; None where it is left out."""
    trace = window(trace_name, 0)
    card, model, gpus = REPLICAS[replica_name]
    ample = replica(card, model, tp=gpus)
    fits = trace.prompt_tokens + trace.output_tokens <= ample.rules.context_tokens
    if fits.mean() < SERVED_SHARE:
        return None
    if memory == "ample":
        return ample
    held: list[float] = []

    def fcfs(day: Trace) -> DayOutcome:
        outcome = _fcfs(day, ample)
        held.append(held_blocks(outcome) * ample.rules.block_tokens)
        return outcome

    try:
        measure_saturation(trace, fcfs)
    except UserMistake:
        return None
    largest = int((trace.prompt_tokens + trace.output_tokens)[fits].max())
    kv_tokens = max(int(SQUEEZE * max(held)), int(LARGEST_MARGIN * largest))
    squeezed = replica(card, model, tp=gpus, kv_tokens=kv_tokens)
    return None if squeezed.rules.kv_blocks >= ample.rules.kv_blocks else squeezed


def _fcfs(day: Trace, server: Replica) -> DayOutcome:
    return simulate_bundle(day, server, Bundle("fcfs"), SEED)


@lru_cache(maxsize=2)
def _whole(trace: str) -> Trace:
    return load_trace(trace).trace


def _place(days: Path, cell: Cell, number: int) -> Path:
    return cell.folder(days) / f"window{number}-load{cell.load:g}"


def _file(folder: Path, arm: Bundle) -> Path:
    return folder / f"{arm.label}.arm.npz"


def _write(path: Path, **columns: Any) -> None:
    """All of it or nothing."""
    draft = path.with_suffix(".part")
    with draft.open("wb") as file:
        np.savez(file, **columns)
    draft.replace(path)


def with_prediction(arm: Bundle, prediction: str) -> Bundle:
    return replace(arm, label=f"{arm.label}, {prediction}", prediction=prediction)
