"""Fleets to compare: which replicas, who routes among them, and where requests wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from headway.bench.experiment.bundles import Bundle, chosen_names
from headway.bench.experiment.saturation import Saturation, quarter_bounds
from headway.bench.experiment.unloaded import unloaded_seconds
from headway.bench.metrics.run_metrics import Mask
from headway.bench.user_mistake import UserMistake
from headway.bounds.chains import chains
from headway.domain.costs import ServiceCosts
from headway.domain.event import Listener
from headway.policies.catalog import build
from headway.scheduling.scheduler import Policies
from headway.simulator.fleet import simulate_fleet
from headway.simulator.fleet_members import FleetMember, Outage
from headway.simulator.fleet_outcome import FleetOutcome
from headway.simulator.fleet_rescheduling import KvLink
from headway.simulator.fleet_router import FleetPolicies, Queueing, Routing
from headway.simulator.replica import Replica
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

DEFAULT_ROUTING = "least-work"
DEFAULT_RESCHEDULING = "stay"


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet to compare.

    Attributes:
        replicas: name → what it is, in order; at least one.
        routings: the routing policies to compare, by full name.
        queue: where requests wait.
        signal_seconds: how often a replica reports the figures that routing reads; 0 for figures that are exact.
        outages: name → when a replica fails and serves again.
        reschedulings: the rescheduling policies to compare, by full name; none for requests that stay.
        link: over which running requests go from one replica to another.
    """

    replicas: Mapping[str, Replica]
    routings: Sequence[str] = (DEFAULT_ROUTING,)
    queue: Queueing = "gateway"
    signal_seconds: float = 0.0
    outages: Mapping[str, tuple[Outage, ...]] = field(default_factory=dict)
    reschedulings: Sequence[str] = ()
    link: KvLink = field(default_factory=KvLink)

    def kinds(self) -> list[tuple[Replica, int]]:
        """Each different replica with how many there are of it; one that is made once is one kind."""
        counted = Counter(map(id, self.replicas.values()))
        different = {id(one): one for one in self.replicas.values()}
        return [(one, counted[key]) for key, one in different.items()]

    @property
    def largest(self) -> Replica:
        """The replica that holds the longest requests."""
        return max(self.replicas.values(), key=lambda one: one.rules.context_tokens)

    @property
    def kv_blocks(self) -> int:
        """KV blocks of all replicas together."""
        return sum(one.rules.kv_blocks for one in self.replicas.values())

    def unloaded_seconds(self, trace: Trace) -> npt.NDArray[np.float64]:
        """Per request, its seconds alone on the replica where they are fewest."""
        alone = [unloaded_seconds(trace, one.rules, one.step_time) for one, _ in self.kinds()]
        fewest: npt.NDArray[np.float64] = np.minimum.reduce(alone)
        return fewest


def equal_replicas(replica: Replica, count: int) -> dict[str, Replica]:
    """So many equal replicas, named as `headway serve` names those without a name."""
    return {f"replica-{number}": replica for number in range(count)}


def named_routings(given: Sequence[str]) -> list[str]:
    """Full names of routing policies; `all` stands for every one of the catalogue.

    Raises:
        UserMistake: a name is unknown, or given twice.
    """
    return _named("routing", given)


def named_reschedulings(given: Sequence[str]) -> list[str]:
    """Full names of rescheduling policies; `all` stands for every one of the catalogue.

    Raises:
        UserMistake: a name is unknown, or given twice.
    """
    return _named("rescheduling", given)


def _named(kind: Literal["routing", "rescheduling"], given: Sequence[str]) -> list[str]:
    wanted = chosen_names(kind, f"{kind} policy", given)
    for name in wanted:
        with _blaming(kind):
            build(kind, name, costs=ServiceCosts(1e-4, 1e-2), seed=0)
    return wanted


def check_bundle(bundle: Bundle, queue: Queueing) -> None:
    """Refuse what no gateway can do, for bundles whose policies rule one queue in front of the fleet.

    Raises:
        UserMistake: one sentence with the fix.
    """
    if queue == "replicas":
        return
    stock = Bundle(bundle.label)
    for kind in ("admission", "preemption"):
        name = getattr(bundle, kind)
        if name != getattr(stock, kind):
            raise UserMistake(
                f"{bundle.label}: with one queue in front of the replicas {kind} is decided in the engines, so {name} "
                f"cannot be simulated there; leave it out, or give --queue replicas"
            )
    for what, setting in (("the do-no-harm guard", bundle.plugin.guard), ("displacement", bundle.plugin.displace)):
        if setting is not None:
            raise UserMistake(
                f"{bundle.label}: {what} belongs to the plug-in in an engine; leave it out, or give --queue replicas"
            )


def simulate_routing(
    trace: Trace,
    fleet: Fleet,
    routing: str,
    bundle: Bundle,
    seed: int,
    *,
    rescheduling: str | None = None,
    listeners: Sequence[Listener] = (),
) -> FleetOutcome:
    """Simulate one day of a fleet under one routing policy, one bundle and one rescheduling policy, all new."""
    output_tokens = trace.output_tokens.tolist()
    truth: Callable[[object], int] = output_tokens.__getitem__
    costs = mean_costs([one.costs for one in fleet.replicas.values()])
    in_engines = Bundle(
        "fcfs", prediction=bundle.prediction, options={"prediction": bundle.options.get("prediction", {})}
    )

    def at_replica(own: ServiceCosts) -> Policies:
        ruling = bundle if fleet.queue == "replicas" else in_engines
        return ruling.build(costs=own, seed=seed, truth=truth)

    with _blaming("routing"):
        chosen = build("routing", routing, costs=costs, seed=seed)
    with _blaming("rescheduling"):
        moving = build("rescheduling", rescheduling or DEFAULT_RESCHEDULING, costs=costs, seed=seed)
    return simulate_fleet(
        trace,
        [
            FleetMember(name, one.rules, one.step_time, one.costs, fleet.outages.get(name, ()), one.kv_bytes_per_token)
            for name, one in fleet.replicas.items()
        ],
        Routing(chosen, fleet.queue, fleet.signal_seconds, moving, fleet.link),
        FleetPolicies(bundle.build(costs=costs, seed=seed, truth=truth), at_replica),
        plugin=bundle.plugin,
        listeners=listeners,
    )


def mean_costs(costs: Sequence[ServiceCosts]) -> ServiceCosts:
    """Mean seconds per token over the replicas, for policies that weigh work before a replica is chosen."""
    return ServiceCosts(*(float(mean) for mean in np.mean(np.array(costs), axis=0)))


def servable_rows(trace: Trace, rules: EngineRules) -> Mask:
    """Requests that a replica with these rules serves; of a session it serves none after one that it refuses."""
    servable = np.zeros(len(trace), dtype=np.bool_)
    servable[chains(trace, rules).rows] = True
    return servable


def served_part(measured: Saturation, own: Mask, fleet: Mask) -> Saturation:
    """What a replica of a fleet adds to the fleet's rate of offered requests.

    A rate by itself counts what the replica refuses, and here others serve that.

    Args:
        measured: of one replica by itself.
        own: which requests of the trace it serves.
        fleet: which some replica serves.
    """

    def share(rows: slice) -> float:
        return float(own[rows].sum() / fleet[rows].sum())

    whole = share(slice(None))
    quarters = measured.quarters
    if quarters is not None:
        bounds = quarter_bounds(len(own))
        quarters = tuple(rate * share(slice(*rows)) for rate, rows in zip(quarters, bounds, strict=True))
    return replace(
        measured,
        requests_per_second=measured.requests_per_second * whole,
        quarters=quarters,
        requests_under_way=measured.requests_under_way * whole,
    )


def summed_saturation(measured: Sequence[tuple[Saturation, int]], requests: int) -> Saturation:
    """What a fleet serves: what each of its replicas serves by itself, added up.

    So load 1 does not depend on a routing policy, and N equal replicas have N times the load 1 of one.

    Args:
        measured: that of each kind of replica, and how many there are of it.
        requests: in the trace.
    """
    rate = sum(one.requests_per_second * count for one, count in measured)
    first = measured[0][0]
    quarters = None
    if all(one.quarters is not None for one, _ in measured):
        quarters = tuple(
            sum((one.quarters or ())[place] * count for one, count in measured)
            for place in range(len(first.quarters or ()))
        )
    # As many sessions have to be under way as all replicas need together.
    under_way = sum(one.requests_under_way * count for one, count in measured)
    return Saturation(
        requests_per_second=rate,
        definition=f"the sum over the replicas, each measured by itself. {first.definition}",
        closed_loop=first.closed_loop,
        copies=max(1, -(-int(under_way) // requests)) if first.closed_loop else 1,
        quarters=quarters,
        busy_share=sum(one.busy_share * one.requests_per_second * count for one, count in measured) / rate,
    )


def load_imbalance(outcome: FleetOutcome) -> float | None:
    """Largest over mean of the replicas' prefilled plus decoded tokens; None if no token was computed."""
    tokens = [one.prefill_tokens + one.decode_tokens for one in outcome.replicas]
    return max(tokens) * len(tokens) / sum(tokens) if sum(tokens) else None


def replica_figures(outcome: FleetOutcome) -> list[dict[str, str | int | float]]:
    """Each replica's part in a day, for the JSON: `busy_share` is the share of the makespan in which a step ran."""
    whole = outcome.day.makespan_ps
    return [
        {
            "id": one.id,
            "requests": one.requests,
            "completed": one.completed,
            # The step behind a stop token may outlast the day.
            "busy_share": min(1.0, one.busy_ps / whole) if whole else 0.0,
            "busy_seconds": one.busy_ps / PS_PER_SECOND,
            "prefill_tokens": one.prefill_tokens,
            "decode_tokens": one.decode_tokens,
            "kv_peak_share": one.kv_blocks_peak / one.kv_blocks,
        }
        for one in outcome.replicas
    ]


@contextmanager
def _blaming(kind: str) -> Iterator[None]:
    """Turn a ValueError into a mistake in the option of a kind."""
    try:
        yield
    except ValueError as error:
        raise UserMistake(f"--{kind}: {error}") from error
