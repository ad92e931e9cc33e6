"""Believed costs of replicas: each one's own where its answers have shown them, else the mean of those like it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from headway.domain.costs import ServiceCosts
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.policies.predicted_work import TYPICAL_BATCH


def share_costs(replicas: Sequence[UpstreamReplica], configured: ServiceCosts) -> Iterator[None]:
    """Write the costs that are believed of each replica into its ledger, a replica at a step.

    Those like it serve one of its models. Where none of them has shown a cost, it is the `configured` one.
    """
    unknown: list[UpstreamReplica] = []
    prefills, decodes = _Shown(), _Shown()
    for replica in replicas:
        learned, ledger = replica.learned_costs, replica.ledger
        prefill, decode = learned.prefill_seconds_per_token, learned.decode_seconds_per_token
        prefills.add(replica, prefill)
        decodes.add(replica, decode)
        if prefill is not None and decode is not None:
            ledger.costs, ledger.costs_as_of = ServiceCosts(prefill, decode), learned.as_of
        else:
            unknown.append(replica)
        yield
    for replica in unknown:
        replica.ledger.costs = ServiceCosts(
            prefills.believed(replica, configured.prefill_seconds_per_token),
            decodes.believed(replica, configured.decode_seconds_per_token),
        )
        replica.ledger.costs_as_of = -math.inf
        yield


class _Shown:
    """One kind of cost, of the replicas that have shown it."""

    def __init__(self) -> None:
        self._by_name: dict[str, float] = {}
        self._by_model: dict[str, set[str]] = {}  # the names of those that serve it; "" of those that serve any
        self._means: dict[frozenset[str], float] = {}  # of replicas like one with these models

    def add(self, replica: UpstreamReplica, cost: float | None) -> None:
        """What a replica has shown."""
        if cost is not None:
            self._by_name[replica.name] = cost
            for model in replica.state.models or ("",):
                self._by_model.setdefault(model, set()).add(replica.name)

    def believed(self, replica: UpstreamReplica, otherwise: float) -> float:
        """A replica's own cost; else the mean of those like it, each of them once."""
        own = self._by_name.get(replica.name)
        if own is not None or not self._by_name:
            return otherwise if own is None else own
        models = frozenset(replica.state.models or self._by_model)
        if models not in self._means:
            like = set().union(*[self._by_model.get(model, ()) for model in ("", *models)])
            self._means[models] = fmean([self._by_name[name] for name in like]) if like else otherwise
        return self._means[models]


def share_of_speed_up(replicas: Sequence[UpstreamReplica]) -> float:
    """The share of their speed that is up, from 0 to 1; 1 without replicas."""
    speeds = [_speed(replica.ledger.costs) for replica in replicas]
    up = sum([speed for replica, speed in zip(replicas, speeds, strict=True) if replica.is_up])
    return up / sum(speeds) if speeds else 1.0


def _speed(costs: ServiceCosts) -> float:
    """Tokens a second of one replica, where prompts have ten times as many as outputs, as most traffic has."""
    return 11 / (10 * costs.prefill_seconds_per_token + costs.decode_seconds_per_token / TYPICAL_BATCH)
