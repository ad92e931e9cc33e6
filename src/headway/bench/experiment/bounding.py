"""Lower bounds for `headway bound`: how fast, at most, a replica could serve a trace under any policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.comparison import Json, trace_facts
from headway.bench.experiment.parallel import spread
from headway.bench.experiment.saturation import Saturation, measure_saturation
from headway.bench.experiment.simulated_runs import Progress, facts_of_replica, simulate_bundle, traffic_facts
from headway.bench.experiment.small_optimum import SmallOptimum
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.bounds.lower_bounds import LowerBounds, lower_bounds
from headway.simulator.arrivals import check_clock
from headway.simulator.replica import Replica
from headway.simulator.trace import Trace
from headway.version import __version__

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class BoundResult:
    """Bounds of one trace on one replica, at one load or several.

    Attributes:
        trace, replica, command: as in `Comparison`.
        saturation: what a load of 1 is; None when arrivals were kept.
        at_loads: by load, None for the trace's own arrivals.
        optimum: of the trace at its own arrivals, in the papers' model; None where it was not asked for.
    """

    trace: Mapping[str, Json]
    replica: Mapping[str, Json]
    saturation: Saturation | None
    at_loads: Mapping[float | None, LowerBounds]
    command: str
    optimum: SmallOptimum | None = None

    def to_json(self) -> dict[str, object]:
        """The object that `docs/bounds.md` describes."""
        return {
            "schema": SCHEMA,
            "headway": __version__,
            "command": self.command,
            "trace": self.trace,
            "replica": self.replica,
            "saturation": None if self.saturation is None else self.saturation.to_json(),
            "bounds": [{"load": load, **_bounds_json(bounds)} for load, bounds in self.at_loads.items()],
            "optimum": None if self.optimum is None else self.optimum.to_json(),
        }


def bound(
    trace: Trace,
    replica: Replica,
    *,
    loads: Sequence[float | None] = (None,),
    jobs: int | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> BoundResult:
    """Compute lower bounds on the trace's mean end-to-end latency and time to first token, at each load.

    Saturation, the unit of a load, is measured only when one is asked for.

    Raises:
        UserMistake: there is no request, no rate that could be scaled, or more days than the simulator's clock holds.
    """
    if len(trace) == 0:
        raise UserMistake(f"{trace.name}: it has no request to bound")
    report = progress or (lambda what, total: nullcontext(lambda: None))
    saturation = None
    if any(load is not None for load in loads):
        with report("measuring saturation", 1) as on_done:
            saturation = measure_saturation(
                trace, lambda day: simulate_bundle(day, replica, Bundle("fcfs"), seed=0), quarters=True
            )
            on_done()
    traffic = [trace if load is None or saturation is None else saturation.at_load(trace, load) for load in loads]
    with as_mistakes():
        for replayed in traffic:
            check_clock(replayed)
    with report("bounding", len(loads)) as on_done:
        bounds = spread(
            lambda replayed: lower_bounds(replayed, replica.rules, replica.step_time),
            traffic,
            jobs=jobs,
            on_done=on_done,
        )
    return BoundResult(
        trace=trace_facts(trace) | traffic_facts(trace),
        replica=facts_of_replica(replica),
        saturation=saturation,
        at_loads=dict(zip(loads, bounds, strict=True)),
        command=command,
    )


def _bounds_json(bounds: LowerBounds) -> dict[str, object]:
    return {
        "requests": bounds.requests,
        "mean_e2e_seconds": bounds.mean_e2e_seconds,
        "mean_ttft_seconds": bounds.mean_ttft_seconds,
        "parts": [
            {"name": part.name, "mean_e2e_seconds": part.mean_e2e_seconds, "meaning": part.words}
            for part in bounds.parts
        ],
    }
