"""Cells of the fleet study: what is simulated in each, and the folder that keeps it.

A *cell* is one day of a fleet: a trace at a load under one routing policy and one order, with requests that wait in one
queue in front or at the replicas, and with figures of some age. A folder holds one JSON file for each trace and fleet.
What a file holds already is not simulated again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.fleets import Fleet, equal_replicas, load_imbalance, simulate_routing, summed_saturation
from headway.bench.experiment.saturation import Saturation, measure_saturation
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.metrics.run_metrics import Slo, summarise
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import head
from headway.bench.user_mistake import UserMistake
from headway.simulator.fleet_outcome import fullest
from headway.simulator.fleet_router import Queueing
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.replica import Replica, replica
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

REQUESTS: Mapping[str, int] = {
    "mooncake_conversation": 6_848,
    "agentic_coding_weka": 250,
    "servegen_m_large": 6_000,
    "servegen_m_mid": 10_000,
}
"""First requests of each trace; of the sessions of the last one so many copies are taken as load 1 needs."""
MODEL = "llama-3.1-8b"
EQUAL = "8 × h100"
FLEETS: Mapping[str, Mapping[str, int]] = {EQUAL: {"h100": 8}, "4 × a100 + 4 × l40s": {"a100": 4, "l40s": 4}}
"""Cards of a fleet and how many replicas there are on each; a replica has one card."""
SLO = Slo(ttft_seconds=2.0, tpot_seconds=0.1)  # what `headway compare` asks for by default
TTFT_BOUNDS = (1.0, 2.0, 5.0, 10.0)
SEED = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """One day of a fleet."""

    load: float
    queue: Queueing
    routing: str
    ordering: str = "fcfs"
    signal_seconds: float = 0.0


class Setting:
    """A trace on a fleet, and what was measured of it."""

    def __init__(self, folder: Path, trace: str, fleet: str = EQUAL, requests: int | None = None) -> None:
        """Read what is there; nothing is simulated yet.

        Raises:
            UserMistake: the folder was made with another number of requests.
        """
        self.trace = trace
        self.fleet = fleet
        asked = REQUESTS[trace] if requests is None else requests
        self._path = folder / f"{trace}, {fleet}.json"
        self._kept: dict[str, Any] = {"trace": trace, "fleet": fleet, "asked_requests": asked, "rows": []}
        if self._path.exists():
            self._kept = json.loads(self._path.read_text(encoding="utf-8"))
        if self._kept["asked_requests"] != asked:
            raise UserMistake(
                f"--out {folder}: it holds days of {self._kept['asked_requests']:,} requests of {trace} and {asked:,} "
                "are asked for; name another folder"
            )

    def measure(self, cells: Iterable[Cell]) -> None:
        """Simulate the cells that are not there, and keep each as soon as it is measured."""
        missing = [cell for cell in cells if self.row(cell) is None]
        if not missing:
            return
        trace = head(load_trace(self.trace).trace, self._kept["asked_requests"])
        replicas = _replicas(self.fleet)
        saturation = _saturation(trace, replicas)
        self._kept["saturation"] = saturation.requests_per_second
        self._kept["copies"] = saturation.copies
        days: dict[float, Trace] = {}
        for cell in missing:
            day = days.setdefault(cell.load, saturation.at_load(trace, cell.load))
            self._kept["requests"] = len(day)
            self._kept["rows"].append(asdict(cell) | _numbers(day, replicas, cell))
            self._write()

    def row(self, cell: Cell) -> Mapping[str, Any] | None:
        """The numbers of a cell; None before it is measured."""
        wanted = asdict(cell)
        for row in self._kept["rows"]:
            if all(row[key] == value for key, value in wanted.items()):
                return dict(row)
        return None

    def rows(self, cells: Sequence[Cell]) -> list[Mapping[str, Any]]:
        """Those of the cells that were measured."""
        return [row for row in map(self.row, cells) if row is not None]

    @property
    def facts(self) -> Mapping[str, Any]:
        """`requests` of a day, `copies` of the sessions, and `saturation`: requests/s of the fleet at load 1."""
        return self._kept

    def _write(self) -> None:
        """All of it or nothing: a command that is stopped leaves no half file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".part")
        draft.write_text(json.dumps(self._kept, indent=1) + "\n", encoding="utf-8")
        draft.replace(self._path)


def _replicas(fleet: str) -> dict[str, Replica]:
    counts = FLEETS[fleet]
    if len(counts) == 1:
        (card, count), *_ = counts.items()
        return equal_replicas(replica(card, MODEL, tp=1), count)
    made: dict[str, Replica] = {}
    for card, count in counts.items():
        made |= dict.fromkeys([f"{card}-{number}" for number in range(count)], replica(card, MODEL, tp=1))
    return made


def _saturation(trace: Trace, replicas: Mapping[str, Replica]) -> Saturation:
    measured = []
    for one, count in Fleet(replicas).kinds():

        def fcfs(day: Trace, one: Replica = one) -> DayOutcome:
            return simulate_bundle(day, one, Bundle("fcfs"), SEED)

        measured.append((measure_saturation(trace, fcfs), count))
    return summed_saturation(measured, len(trace))


def _numbers(day: Trace, replicas: Mapping[str, Replica], cell: Cell) -> dict[str, Any]:
    fleet = Fleet(replicas, (cell.routing,), cell.queue, cell.signal_seconds)
    outcome = simulate_routing(day, fleet, cell.routing, Bundle(cell.ordering, cell.ordering), SEED)
    told = summarise(day, outcome.day, SLO, None, kv_blocks=fullest(outcome.replicas).kv_blocks)
    came = outcome.day.first_token_ps != NEVER
    ttft = (outcome.day.first_token_ps - outcome.day.arrived_ps)[came] / PS_PER_SECOND
    return {
        "ttft_mean": told.ttft_seconds.mean,
        "ttft_p50": told.ttft_seconds.p50,
        "ttft_p90": told.ttft_seconds.p90,
        "ttft_p99": told.ttft_seconds.p99,
        "tpot_mean": told.tpot_seconds.mean,
        "e2e_mean": told.e2e_seconds.mean,
        "e2e_p99": told.e2e_seconds.p99,
        "goodput": told.goodput,
        "hit_share": told.prefix_hit_share,
        "imbalance": load_imbalance(outcome),
        "completed": told.completed,
        "refused": told.refused,
        "preemptions": told.preemptions,
        "recomputed_tokens": told.recomputed_tokens,
        "computed_tokens": sum(one.prefill_tokens for one in outcome.replicas),
        "makespan_seconds": told.makespan_seconds,
        "ttft_within": {f"{bound:g}": float((ttft <= bound).mean()) for bound in TTFT_BOUNDS},
        "requests_of": [one.requests for one in outcome.replicas],
    }
