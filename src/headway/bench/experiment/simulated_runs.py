"""Simulates one trace on one replica under several bundles of policies at several loads, each run once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field

from headway import __version__
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.comparison import Comparison, Json, Run, replica_facts, trace_facts
from headway.bench.experiment.parallel import RunFailed, spread
from headway.bench.experiment.saturation import Saturation, is_closed_loop, measure_saturation, offered_rate
from headway.bench.experiment.unloaded import unloaded_seconds
from headway.bench.metrics.agreement import Agreement, agreement, in_both, times_of
from headway.bench.metrics.curves import curves
from headway.bench.metrics.prediction_quality import CalibrationListener
from headway.bench.metrics.recording import of_trace
from headway.bench.metrics.run_metrics import Slo, summarise
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.bounds.lower_bounds import lower_bounds
from headway.domain.event import Listener
from headway.simulator.arrivals import check_clock
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import Replica
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace

Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Called with the name of a task and its number of parts; gives a function to call after each part."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """What to simulate.

    Attributes:
        trace: the traffic, arrivals as recorded.
        replica: what serves it.
        bundles: the policies, with different labels.
        loads: shares of saturation to scale arrivals to; None replays the trace's own times.
        seed: of everything random in policies.
        slo: what counts for goodput.
    """

    trace: Trace
    replica: Replica
    bundles: Sequence[Bundle]
    loads: Sequence[float | None] = (None,)
    seed: int = 0
    slo: Slo = field(default_factory=Slo)

    def __post_init__(self) -> None:
        if len(self.trace) == 0:
            raise UserMistake(f"{self.trace.name}: it has no request to replay")
        labels = [bundle.label for bundle in self.bundles]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise UserMistake(f"{twice} is named twice; name each policy once")


@dataclass(frozen=True, slots=True)
class _Cell:
    """One run to simulate: its traffic and its policies."""

    load: float | None
    trace: Trace
    bundle: Bundle


def compare(
    experiment: Experiment, *, jobs: int | None = None, progress: Progress | None = None, command: str = ""
) -> Comparison:
    """Simulate every bundle at every load, over `jobs` processes (None: all cores), and compare the numbers.

    The result does not depend on `jobs`, but for `wall_seconds`. Saturation is measured only when a load is asked for.

    Raises:
        UserMistake: the trace has no rate that could be scaled, or lasts longer than the simulator's clock.
        RunFailed: a run failed; the message names policy and load and says why.
    """
    report = progress or (lambda what, total: nullcontext(lambda: None))
    saturation = _saturation(experiment, jobs, report)
    traffic = {load: _at_load(experiment.trace, load, saturation) for load in experiment.loads}
    with as_mistakes():
        for replayed in traffic.values():
            check_clock(replayed)
    cells = [_Cell(load, traffic[load], bundle) for load in experiment.loads for bundle in experiment.bundles]
    with report("bounding", len(traffic)) as on_done:
        by_load = spread(_bound_by(experiment.replica), [*traffic.values()], jobs=jobs, on_done=on_done)
        bounds = dict(zip(traffic, by_load, strict=True))
    with report("simulating", len(cells)) as on_done:
        runs = spread(lambda cell: _run(experiment, cell, bounds[cell.load]), cells, jobs=jobs, on_done=on_done)
    return Comparison(
        trace=trace_facts(experiment.trace) | traffic_facts(experiment.trace),
        replica=facts_of_replica(experiment.replica),
        slo=experiment.slo,
        saturation=None if saturation is None else saturation.to_json(),
        runs=tuple(runs),
        command=command,
        version=__version__,
    )


def simulate_bundle(
    trace: Trace, replica: Replica, bundle: Bundle, seed: int, *, listeners: Sequence[Listener] = ()
) -> DayOutcome:
    """Simulate one day under one bundle, with new policies; `listeners` receive every event."""
    truth = trace.output_tokens.tolist()
    policies = bundle.build(costs=replica.costs, seed=seed, truth=truth.__getitem__)
    return simulate(trace, replica.rules, replica.step_time, policies, plugin=bundle.plugin, listeners=listeners)


def _saturation(experiment: Experiment, jobs: int | None, report: Progress) -> Saturation | None:
    if all(load is None for load in experiment.loads):
        return None

    def fcfs(trace: Trace) -> DayOutcome:
        return simulate_bundle(trace, experiment.replica, Bundle("fcfs"), experiment.seed)

    with report("measuring saturation", 1) as on_done:
        measured = measure_saturation(experiment.trace, fcfs, quarters=True)
        on_done()
    return measured


def _at_load(trace: Trace, load: float | None, saturation: Saturation | None) -> Trace:
    if load is None or saturation is None:
        return trace
    return saturation.at_load(trace, load)


def _bound_by(replica: Replica) -> Callable[[Trace], float | None]:
    """A function that bounds a trace's mean end-to-end seconds on this replica from below."""
    return lambda trace: lower_bounds(trace, replica.rules, replica.step_time).mean_e2e_seconds


def _run(experiment: Experiment, cell: _Cell, bound: float | None) -> Run:
    rules = experiment.replica.rules
    alone = unloaded_seconds(cell.trace, rules, experiment.replica.step_time)
    began = time.perf_counter()
    calibration = CalibrationListener(len(cell.trace))
    try:
        outcome = simulate_bundle(cell.trace, experiment.replica, cell.bundle, experiment.seed, listeners=[calibration])
        wall_seconds = time.perf_counter() - began
        metrics = summarise(
            cell.trace, outcome, experiment.slo, alone, kv_blocks=rules.kv_blocks, lower_bound_seconds=bound
        )
        drawn = curves(cell.trace, outcome, kv_blocks=rules.kv_blocks)
    except Exception as failure:
        at = "" if cell.load is None else f" at load {cell.load:g}"
        blamed = cell.bundle.blamed(failure)
        if blamed is not None:
            raise UserMistake(f"{cell.bundle.label}{at}: {blamed}") from failure
        raise RunFailed(f"{cell.bundle.label}{at} failed: {failure or type(failure).__name__}") from failure
    return Run(
        policy=cell.bundle.label,
        bundle=cell.bundle.to_json(),
        load=cell.load,
        seed=experiment.seed,
        metrics=metrics,
        curves=drawn,
        wall_seconds=wall_seconds,
        prediction_calibration=calibration.result(),
        recorded=_against_recording(cell, outcome),
    )


def _against_recording(cell: _Cell, outcome: DayOutcome) -> Agreement | None:
    """How far the run is from the measured times, if it repeats the recorded day: FCFS at the recorded arrivals."""
    bundle = cell.bundle
    stock = (bundle.ordering, bundle.admission, bundle.plugin.tuning) == ("fcfs", "greedy", "off")
    repeats = cell.load is None and stock
    recording = of_trace(cell.trace, cell.trace.name) if repeats else None
    ttft, e2e = times_of(outcome)
    if recording is None or not in_both(recording, e2e).any():  # nothing was measured, or the replica serves no request
        return None
    return agreement(recording, ttft, e2e, int(outcome.preemptions.sum()))


def traffic_facts(trace: Trace) -> dict[str, Json]:
    """The offered rate, and whether sessions wait for their answers; a part of `Comparison.trace`."""
    return {"requests_per_second": offered_rate(trace), "closed_loop": is_closed_loop(trace)}


def facts_of_replica(replica: Replica) -> dict[str, Json]:
    """`Comparison.replica` for this replica."""
    described = replica.describe()
    profile: Mapping[str, Json] = {
        "source": described["hardware_source"],
        "error": described["step_time_error"],
        "hardware_version": described["hardware_profile_version"],
        "model_source": described["model_source"],
        "model_version": described["model_profile_version"],
        "precision": described["precision"],
        "kv_precision": described["kv_precision"],
    }
    return replica_facts(
        hardware=described["hardware"],
        model=described["model"],
        tensor_parallel=described["tp"],
        kv_blocks=replica.rules.kv_blocks,
        block_tokens=replica.rules.block_tokens,
        rules=asdict(replica.rules),
        profile=profile,
    )
