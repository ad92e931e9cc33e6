"""Simulates one trace on a replica, or on a fleet, under several policies at several loads, each run once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_

import numpy as np
import numpy.typing as npt

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.comparison import Comparison, Json, MeanBounds, Run, replica_facts, trace_facts
from headway.bench.experiment.fleets import (
    Fleet,
    check_bundle,
    load_imbalance,
    replica_figures,
    servable_rows,
    served_part,
    simulate_routing,
    summed_saturation,
)
from headway.bench.experiment.parallel import RunFailed, spread
from headway.bench.experiment.repeated_runs import joined_seeds, mean_bounds_of, repeat_facts
from headway.bench.experiment.repeats import Repeats
from headway.bench.experiment.request_table import RequestTable, request_table
from headway.bench.experiment.saturation import Saturation, is_closed_loop, measure_saturation, offered_rate
from headway.bench.experiment.unloaded import unloaded_seconds
from headway.bench.metrics.agreement import Agreement, agreement, in_both, times_of
from headway.bench.metrics.curves import Curves, curves, timeline
from headway.bench.metrics.prediction_quality import CalibrationListener
from headway.bench.metrics.recording import of_trace
from headway.bench.metrics.run_metrics import RunMetrics, Slo, summarise
from headway.bench.metrics.samples import Samples, over_blocks
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.bounds.lower_bounds import lower_bounds
from headway.domain.event import Listener
from headway.simulator.arrivals import check_clock
from headway.simulator.fleet_outcome import FleetOutcome, fullest
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import Replica
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace
from headway.version import __version__

Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Called with the name of a task and its number of parts; gives a function to call after each part."""

_FEWEST = 100  # requests of which a rate is told: of fewer it is that of a moment


@dataclass(frozen=True, slots=True)
class Experiment:
    """What to simulate.

    Attributes:
        trace: the traffic, arrivals as recorded.
        replica: what serves it; of a fleet, its largest replica.
        bundles: the policies, with different labels.
        loads: shares of saturation to scale arrivals to; None replays the trace's own times.
        seed: of everything random in policies.
        slo: what counts for goodput.
        fleet: the replicas and the routing policies to compare; None for the one replica.
        keeps_requests: keep what happened to each request of each run.
        finds_own_load: find which share of load 1 the trace's own rate is, where it is replayed.
        repeats: what to repeat for error bars; None for none. Load 1 is that of the first seed.
    """

    trace: Trace
    replica: Replica
    bundles: Sequence[Bundle]
    loads: Sequence[float | None] = (None,)
    seed: int = 0
    slo: Slo = field(default_factory=Slo)
    fleet: Fleet | None = None
    keeps_requests: bool = False
    finds_own_load: bool = False
    repeats: Repeats | None = None

    def __post_init__(self) -> None:
        if len(self.trace) == 0:
            raise UserMistake(f"{self.trace.name}: it has no request to replay")
        labels = [bundle.label for bundle in self.bundles]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise UserMistake(f"{twice} is named twice; name each policy once")
        if self.fleet is not None:
            for bundle in self.bundles:
                check_bundle(bundle, self.fleet.queue)
                if bundle.twin is not None:
                    raise UserMistake(f"{bundle.label}: a twin is simulated on one replica; leave the fleet or it out")

    @property
    def routings(self) -> Sequence[str | None]:
        """The routing policies to compare; None for one replica."""
        return (None,) if self.fleet is None else self.fleet.routings

    @property
    def reschedulings(self) -> Sequence[str | None]:
        """The rescheduling policies to compare; None where none is named."""
        return (None,) if self.fleet is None or not self.fleet.reschedulings else self.fleet.reschedulings


@dataclass(frozen=True, slots=True)
class _Cell:
    """One run to simulate: its traffic and its policies; `number` counts the seeds from 0."""

    number: int
    load: float | None
    trace: Trace
    bundle: Bundle
    routing: str | None
    rescheduling: str | None
    label: str


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
    scales = any(load is not None for load in experiment.loads)
    saturation = _saturation(experiment, report) if scales else None
    days = [experiment.trace, *(() if experiment.repeats is None else experiment.repeats.further)]
    traffic = {
        (number, load): _at_load(day, load, saturation) for number, day in enumerate(days) for load in experiment.loads
    }
    with as_mistakes():
        for replayed in traffic.values():
            check_clock(replayed)
    cells = [
        _Cell(number, load, traffic[number, load], bundle, routing, moving, _label(experiment, routing, moving, bundle))
        for number in range(len(days))
        for load in experiment.loads
        for routing in experiment.routings
        for moving in experiment.reschedulings
        for bundle in experiment.bundles
    ]
    with report("bounding", len(traffic)) as on_done:
        by_load = spread(_bound_by(experiment), [*traffic.values()], jobs=jobs, on_done=on_done)
        bounds = dict(zip(traffic, by_load, strict=True))
    with report("simulating", len(cells)) as on_done:
        runs = spread(lambda cell: _run(experiment, cell, bounds), cells, jobs=jobs, on_done=on_done)
    runs = joined_seeds(runs, len(days), experiment.seed)
    return Comparison(
        trace=trace_facts(experiment.trace) | traffic_facts(experiment.trace),
        replica=facts_of_replica(experiment.replica),
        slo=experiment.slo,
        saturation=None if saturation is None else saturation.to_json(),
        runs=tuple(runs),
        command=command,
        version=__version__,
        fleet=tuple({"id": name, **facts_of_replica(one)} for name, one in _replicas(experiment).items()),
        signal_seconds=0.0 if experiment.fleet is None else experiment.fleet.signal_seconds,
        bounds=mean_bounds_of(bounds),
        own_load=_own_load(experiment, saturation, report) if experiment.finds_own_load else None,
        repeats=repeat_facts(experiment.repeats, runs, traffic, experiment.seed),
    )


def _label(experiment: Experiment, routing: str | None, rescheduling: str | None, bundle: Bundle) -> str:
    """Label of a row: the bundle's, and before it what else differs between rows."""
    chosen = ((routing, experiment.routings), (rescheduling, experiment.reschedulings))
    return ", ".join([*[name for name, of in chosen if name is not None and len(of) > 1], bundle.label])


def simulate_bundle(
    trace: Trace, replica: Replica, bundle: Bundle, seed: int, *, listeners: Sequence[Listener] = ()
) -> DayOutcome:
    """Simulate one day under one bundle, with new policies; `listeners` receive every event."""
    truth = trace.output_tokens.tolist()
    policies = bundle.build(costs=replica.costs, seed=seed, truth=truth.__getitem__)
    return simulate(trace, replica.rules, replica.step_time, policies, plugin=bundle.plugin, listeners=listeners)


def _own_load(experiment: Experiment, saturation: Saturation | None, report: Progress) -> float | None:
    """The trace's own rate as a share of load 1; None without a rate, and for sessions, which come as answers do."""
    rate = offered_rate(experiment.trace)
    if None not in experiment.loads or is_closed_loop(experiment.trace) or len(experiment.trace) < _FEWEST or rate == 0:
        return None
    measured = _saturation(experiment, report, quarters=False) if saturation is None else saturation
    return rate / measured.requests_per_second


def _saturation(experiment: Experiment, report: Progress, *, quarters: bool = True) -> Saturation:
    fleet = experiment.fleet
    kinds = [(experiment.replica, 1)] if fleet is None else fleet.kinds()
    servable = [servable_rows(experiment.trace, one.rules) for one, _ in kinds] if len(kinds) > 1 else []
    by_some = reduce(or_, servable) if servable else None
    measured = []
    with report("measuring saturation", len(kinds)) as on_done:
        for number, (replica, count) in enumerate(kinds):
            if by_some is not None and by_some.sum() >= 2 > servable[number].sum():
                on_done()  # it serves none of this trace, others do
                continue

            def fcfs(trace: Trace, replica: Replica = replica) -> DayOutcome:
                return simulate_bundle(trace, replica, Bundle("fcfs"), experiment.seed)

            one = measure_saturation(experiment.trace, fcfs, quarters=quarters)
            if by_some is not None:
                one = served_part(one, servable[number], by_some)
            measured.append((one, count))
            on_done()
    return measured[0][0] if fleet is None else summed_saturation(measured, len(experiment.trace))


def _at_load(trace: Trace, load: float | None, saturation: Saturation | None) -> Trace:
    if load is None or saturation is None:
        return trace
    return saturation.at_load(trace, load)


def _bound_by(experiment: Experiment) -> Callable[[Trace], MeanBounds]:
    """A function that bounds a trace's means from below.

    Of a fleet of several only what each request takes alone is known, and that only if its replicas are equal. Where
    replicas fail, nothing is: requests that end unserved are in no mean.
    """
    rules, step_time, fleet = experiment.replica.rules, experiment.replica.step_time, experiment.fleet
    if fleet is not None and (fleet.outages or len(fleet.kinds()) > 1):
        return lambda trace: MeanBounds()
    if fleet is None or len(fleet.replicas) == 1:
        return lambda trace: mean_bounds(trace, experiment.replica)
    return lambda trace: MeanBounds(
        next(
            (part.mean_e2e_seconds for part in lower_bounds(trace, rules, step_time).parts if part.name == "alone"),
            None,
        )
    )


def mean_bounds(trace: Trace, replica: Replica) -> MeanBounds:
    """What no policy's means are below on one replica."""
    found = lower_bounds(trace, replica.rules, replica.step_time)
    return MeanBounds(found.mean_e2e_seconds, found.mean_ttft_seconds)


def _run(experiment: Experiment, cell: _Cell, bounds: Mapping[tuple[int, float | None], MeanBounds]) -> Run:
    began, bound = time.perf_counter(), bounds[cell.number, cell.load].e2e_seconds
    calibration = CalibrationListener(len(cell.trace))
    try:
        outcome, fleet_outcome, looks = _lived(experiment, cell, calibration)
        wall_seconds = time.perf_counter() - began
        metrics, drawn = _figures(experiment, cell, outcome, fleet_outcome, bound)
        samples = _block_samples(experiment, cell, outcome)
    except Exception as failure:
        at = "" if cell.load is None else f" at load {cell.load:g}"
        raise run_failure(f"{cell.label}{at}", cell.bundle, failure) from failure
    run = Run(
        policy=cell.label,
        bundle=cell.bundle.to_json(),
        load=cell.load,
        seed=experiment.seed + cell.number,
        metrics=metrics,
        curves=drawn,
        wall_seconds=wall_seconds,
        prediction_calibration=calibration.result(),
        recorded=None if experiment.fleet is not None else _against_recording(cell, outcome),
        requests=_requests(experiment, cell, outcome, fleet_outcome) if experiment.keeps_requests else None,
        looks=looks,
        samples=samples,
    )
    if experiment.fleet is None or fleet_outcome is None:
        return run
    return replace(
        run,
        routing=cell.routing,
        rescheduling=cell.rescheduling,
        moves=fleet_outcome.moves,
        queue=experiment.fleet.queue,
        replicas=replica_figures(fleet_outcome),
        replica_curves={one.id: timeline(one.load, outcome.makespan_ps) for one in fleet_outcome.replicas},
    )


def _block_samples(experiment: Experiment, cell: _Cell, outcome: DayOutcome) -> Samples | None:
    if experiment.repeats is None or experiment.repeats.kind != "blocks":
        return None
    trace, alone, count = cell.trace, _unloaded(experiment, cell.trace), experiment.repeats.count
    return over_blocks(trace, outcome, experiment.slo, alone, blocks=count, seed=experiment.seed)


def _unloaded(experiment: Experiment, trace: Trace) -> npt.NDArray[np.float64]:
    if experiment.fleet is not None:
        return experiment.fleet.unloaded_seconds(trace)
    return unloaded_seconds(trace, experiment.replica.rules, experiment.replica.step_time)


def _replicas(experiment: Experiment) -> Mapping[str, Replica]:
    """Of a fleet, its replicas by name."""
    return {} if experiment.fleet is None else experiment.fleet.replicas


def _requests(experiment: Experiment, cell: _Cell, outcome: DayOutcome, of_fleet: FleetOutcome | None) -> RequestTable:
    ids = [*_replicas(experiment)] or ["replica-0"]
    return request_table(cell.label, cell.load, cell.trace, outcome, of_fleet, ids)


def run_failure(what: str, bundle: Bundle, failure: Exception) -> UserMistake | RunFailed:
    """What to raise for a run that failed: a mistake where a policy of another package is to blame, else a fault."""
    blamed = bundle.blamed(failure)
    if blamed is not None:
        return UserMistake(f"{what}: {blamed}")
    return RunFailed(f"{what} failed: {failure or type(failure).__name__}")


def _lived(
    experiment: Experiment, cell: _Cell, calibration: CalibrationListener
) -> tuple[DayOutcome, FleetOutcome | None, list[str]]:
    """The day of a cell: its requests', and where there is a fleet its replicas'; and what its twin said."""
    if experiment.fleet is None or cell.routing is None:
        trace, server, seed = cell.trace, experiment.replica, experiment.seed + cell.number
        if cell.bundle.twin is not None:
            outcome, looks = cell.bundle.twin(trace, server, cell.bundle, seed, [calibration])
            return outcome, None, looks
        return simulate_bundle(trace, server, cell.bundle, seed, listeners=[calibration]), None, []
    of_fleet = simulate_routing(
        cell.trace,
        experiment.fleet,
        cell.routing,
        cell.bundle,
        experiment.seed + cell.number,
        rescheduling=cell.rescheduling,
        listeners=[calibration],
    )
    return of_fleet.day, of_fleet, []


def _figures(
    experiment: Experiment, cell: _Cell, outcome: DayOutcome, of_fleet: FleetOutcome | None, bound: float | None
) -> tuple[RunMetrics, Curves]:
    trace, fleet = cell.trace, experiment.fleet
    if fleet is None or of_fleet is None:
        rules = experiment.replica.rules
        alone = _unloaded(experiment, trace)
        metrics = summarise(trace, outcome, experiment.slo, alone, kv_blocks=rules.kv_blocks, lower_bound_seconds=bound)
        return metrics, curves(trace, outcome, kv_blocks=rules.kv_blocks)
    metrics = summarise(
        trace,
        outcome,
        experiment.slo,
        _unloaded(experiment, trace),
        kv_blocks=fullest(of_fleet.replicas).kv_blocks,
        lower_bound_seconds=bound,
        load_imbalance=load_imbalance(of_fleet),
    )
    return metrics, curves(trace, outcome, kv_blocks=fleet.kv_blocks)


def _against_recording(cell: _Cell, outcome: DayOutcome) -> Agreement | None:
    """How far the run is from the measured times, if it repeats the recorded day: FCFS at the recorded arrivals."""
    bundle = cell.bundle
    stock = (bundle.ordering, bundle.admission, bundle.plugin.tuning) == ("fcfs", "greedy", "off")
    repeats = cell.load is None and stock and bundle.plugin.displace is None
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
        rules=replica.rules.facts(),
        profile=profile,
    )
