"""The result of a comparison: the same traffic on the same replica under several policies, and its JSON.

The JSON is described key by key in `docs/json.md`. It is deterministic but for `wall_seconds`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from headway.bench.experiment.repeats import RepeatFacts
from headway.bench.experiment.request_table import RequestTable
from headway.bench.metrics.agreement import Agreement
from headway.bench.metrics.curves import Curves, Timeline
from headway.bench.metrics.prediction_quality import PredictionCalibration
from headway.bench.metrics.run_metrics import RunMetrics, Slo, Summary
from headway.bench.metrics.samples import Interval, Samples, nested
from headway.simulator.trace import Tokens, Trace

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

SCHEMA = 1
BASELINE = "fcfs"


@dataclass(frozen=True, slots=True)
class Run:
    """One policy over the trace at one load.

    Attributes:
        policy: label of the row, unique per load and seed.
        bundle: `ordering`, `admission`, `prediction`, `preemption`, each `{"name": …, "options": {…}}`.
        load: share of the replica's saturation throughput, None when the trace's own arrivals were kept.
        seed: of the run's random streams.
        metrics: its numbers.
        curves: what to draw; not in the JSON.
        wall_seconds: how long the simulation took here, the one number that is not deterministic.
        prediction_calibration: how well the predictor's estimates were calibrated; None if no request completed.
        recorded: how far this run is from the measured times of the trace, where it has some and the run repeats
            what was recorded: first come first served at the recorded arrivals. Else None.
        routing: the routing policy, of a fleet; else None.
        rescheduling: the rescheduling policy, where one was named; else None.
        moves: of requests from one replica to another.
        queue: where requests waited, "gateway" or "replicas", of a fleet; else None.
        replicas: of a fleet, each replica's `id`, `requests`, `completed`, `busy_share` and more; else empty.
        replica_curves: of a fleet, what to draw of each replica, by id; not in the JSON.
        requests: what happened to each request, where it was asked for; not in the JSON.
        looks: of a run whose bundle a twin chose, a sentence for each of its looks; else empty.
        samples: how far the numbers would move on another day like this one, where the comparison is repeated.
    """

    policy: str
    bundle: Mapping[str, Json]
    load: float | None
    seed: int
    metrics: RunMetrics
    curves: Curves
    wall_seconds: float
    prediction_calibration: PredictionCalibration | None = None
    recorded: Agreement | None = None
    routing: str | None = None
    rescheduling: str | None = None
    moves: int = 0
    queue: str | None = None
    replicas: Sequence[Mapping[str, Json]] = ()
    replica_curves: Mapping[str, Timeline] = field(default_factory=dict)
    requests: RequestTable | None = None
    looks: Sequence[str] = ()
    samples: Samples | None = None

    @property
    def ordering(self) -> str | None:
        """Name of the ordering policy; None for a live run."""
        chosen = self.bundle.get("ordering")
        return str(chosen["name"]) if isinstance(chosen, Mapping) else None

    def to_json(self) -> dict[str, object]:
        """One entry of `runs`."""
        head: dict[str, object] = {
            "policy": self.policy,
            "ordering": self.ordering,
            "routing": self.routing,
            "queue": self.queue,
            "bundle": self.bundle,
            "load": self.load,
            "seed": self.seed,
        }
        if self.looks:
            head |= {"looks": list(self.looks)}
        if self.rescheduling is not None:
            head |= {"rescheduling": self.rescheduling, "moves": self.moves}
        calibration = None if self.prediction_calibration is None else self.prediction_calibration.to_json()
        tail = {
            "prediction_calibration": calibration,
            "recorded": None if self.recorded is None else self.recorded.to_json(),
            "replicas": [dict(replica) for replica in self.replicas],
            "wall_seconds": self.wall_seconds,
        }
        return head | self.metrics.to_json() | tail


@dataclass(frozen=True, slots=True)
class MeanBounds:
    """Seconds that no policy's mean is below on one trace and replica; None where none is known."""

    e2e_seconds: float | None = None
    ttft_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All runs and what they stood on.

    Attributes:
        trace: from `trace_facts`.
        replica: from `replica_facts`; of a fleet, its largest one.
        slo: bounds of goodput.
        saturation: how the load's unit was measured, `requests_per_second` and whatever else is known of it; None
            when arrivals were not scaled.
        runs: in the order they are to be shown.
        command: the command line that repeats it.
        version: of headway.
        fleet: of a fleet, each replica's `id` and facts, in order; else empty.
        signal_seconds: of a fleet, how often replicas report the figures that routing reads; 0 for exact ones.
        bounds: of the means, at each load.
        own_load: the trace's own rate as a share of load 1; None where its arrivals were scaled, or load 1 is unknown.
        repeats: what the error bars rest on; None where there are none. Over seeds, numbers are means and counts sums,
            and curves, requests and what else has no number are those of the first seed.
    """

    trace: Mapping[str, Json]
    replica: Mapping[str, Json]
    slo: Slo
    saturation: Mapping[str, Json] | None
    runs: tuple[Run, ...]
    command: str
    version: str
    fleet: Sequence[Mapping[str, Json]] = ()
    signal_seconds: float = 0.0
    bounds: Mapping[float | None, MeanBounds] = field(default_factory=dict)
    own_load: float | None = None
    repeats: RepeatFacts | None = None

    @property
    def is_live(self) -> bool:
        """Whether a live endpoint was measured and nothing simulated."""
        return bool(self.replica.get("live"))

    def loads(self) -> tuple[float | None, ...]:
        """Each load once, in the order of the runs."""
        return tuple(dict.fromkeys(run.load for run in self.runs))

    def at_load(self, load: float | None) -> tuple[Run, ...]:
        """The runs at one load, in order."""
        return tuple(run for run in self.runs if run.load == load)

    def baseline_label(self) -> str:
        """The run that ratios refer to: `fcfs`, else the first run's label; "" without runs."""
        labels = [run.policy for run in self.runs]
        return BASELINE if BASELINE in labels or not labels else labels[0]

    def baseline_of(self, run: Run) -> Run | None:
        """The baseline at the same load and seed; None where there is none."""
        label = self.baseline_label()
        return next((o for o in self.runs if (o.policy, o.load, o.seed) == (label, run.load, run.seed)), None)

    def interval(self, run: Run, name: str) -> Interval | None:
        """Where a number of a run lies on days like this one; None where it is not known."""
        return None if run.samples is None else run.samples.interval(name)

    def ratio_interval(self, run: Run, name: str) -> Interval | None:
        """Where the ratio of a run's number to that of its baseline lies; None of the baseline itself."""
        baseline = self.baseline_of(run)
        if run.samples is None or baseline is None or baseline is run or baseline.samples is None:
            return None
        return run.samples.ratio(name, baseline.samples)

    def to_json(self) -> dict[str, object]:
        """The documented object; `json_text` writes it."""
        told = {
            "schema": SCHEMA,
            "headway": self.version,
            "command": self.command,
            "trace": self.trace,
            "replica": self.replica,
            "fleet": [dict(replica) for replica in self.fleet],
            "signal_seconds": self.signal_seconds,
            "slo": self.slo.to_json(),
            "saturation": self.saturation,
            "own_load": self.own_load,
            "lower_bounds": [
                {"load": load, "mean_e2e_seconds": bound.e2e_seconds, "mean_ttft_seconds": bound.ttft_seconds}
                for load, bound in self.bounds.items()
            ],
            "runs": [run.to_json() | self._intervals(run) for run in self.runs],
        }
        return told if self.repeats is None else told | {"repeats": self.repeats.to_json()}

    def _intervals(self, run: Run) -> dict[str, object]:
        if run.samples is None:
            return {}
        names = [*run.samples.values]
        return {
            "intervals": nested({name: self.interval(run, name) for name in names}),
            "ratio_intervals": nested({name: self.ratio_interval(run, name) for name in names}),
        }


def json_text(comparison: Comparison) -> str:
    """The JSON file's text: keys in a fixed order, numbers in full precision, a newline at the end."""
    return json.dumps(comparison.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def trace_facts(trace: Trace) -> dict[str, Json]:
    """What a reader has to know of a trace as it was replayed."""
    span = float(trace.arrived_seconds[-1] - trace.arrived_seconds[0]) if len(trace) else 0.0
    return {
        "name": trace.name,
        "requests": len(trace),
        "span_seconds": span,
        "prompt_tokens": _token_facts(trace.prompt_tokens),
        "output_tokens": _token_facts(trace.output_tokens),
        "tenants": len(trace.tenants),
        "sessions": 0 if trace.session is None else len(np.unique(trace.session[trace.session >= 0])),
        "has_prefix_ids": trace.prefix_ids is not None,
    }


def replica_facts(
    *,
    hardware: str,
    model: str,
    tensor_parallel: int,
    kv_blocks: int,
    block_tokens: int,
    rules: Mapping[str, Json],
    profile: Mapping[str, Json],
) -> dict[str, Json]:
    """What a reader has to know of the modelled replica.

    Args:
        hardware: name of the accelerator.
        model: name of the model.
        tensor_parallel: accelerators the model is spread over.
        kv_blocks: usable KV blocks.
        block_tokens: tokens in one.
        rules: the engine's limits and switches, by their names in `EngineRules`.
        profile: where the step times come from: `source` (words, with a version), `error` (words: what was compared
            with what, and the error found), and anything else worth printing.
    """
    return {
        "hardware": hardware,
        "model": model,
        "tensor_parallel": tensor_parallel,
        "kv_blocks": kv_blocks,
        "kv_tokens": kv_blocks * block_tokens,
        "rules": dict(rules),
        "profile": dict(profile),
    }


def _token_facts(tokens: Tokens) -> dict[str, Json]:
    spread = Summary.of(tokens.astype(np.float64))
    return {**spread.to_json(), "max": int(tokens.max()) if len(tokens) else None}
