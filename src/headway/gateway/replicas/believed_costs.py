"""Believed costs of replicas: each one's own where its answers have shown them, else the mean of those like it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from headway.domain.costs import ServiceCosts
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.policies.predicted_work import TYPICAL_BATCH


def share_costs(replicas: Sequence[UpstreamReplica], configured: ServiceCosts) -> None:
    """Write the costs that are believed of each replica into its ledger.

    Those like it serve one of its models. Where none of them has shown a cost, it is the `configured` one.
    """
    learned = [replica.learned_costs for replica in replicas]
    prefills = [costs.prefill_seconds_per_token for costs in learned]
    decodes = [costs.decode_seconds_per_token for costs in learned]
    for number, replica in enumerate(replicas):
        prefill, decode, ledger = prefills[number], decodes[number], replica.ledger
        if prefill is not None and decode is not None:
            ledger.costs, ledger.costs_as_of = ServiceCosts(prefill, decode), learned[number].as_of
            continue
        models = replica.state.models or ("",)
        like = [at for at, other in enumerate(replicas) if any(other.serves(model) for model in models)]
        ledger.costs = ServiceCosts(
            _believed(prefill, [prefills[at] for at in like], configured.prefill_seconds_per_token),
            _believed(decode, [decodes[at] for at in like], configured.decode_seconds_per_token),
        )
        ledger.costs_as_of = -math.inf


def _believed(own: float | None, like: Sequence[float | None], otherwise: float) -> float:
    if own is not None:
        return own
    shown = [cost for cost in like if cost is not None]
    return fmean(shown) if shown else otherwise


def share_of_speed_up(replicas: Sequence[UpstreamReplica]) -> float:
    """The share of their speed that is up, from 0 to 1; 1 without replicas."""
    speeds = [_speed(replica.ledger.costs) for replica in replicas]
    up = sum([speed for replica, speed in zip(replicas, speeds, strict=True) if replica.is_up])
    return up / sum(speeds) if speeds else 1.0


def _speed(costs: ServiceCosts) -> float:
    """Tokens a second of one replica, where prompts have ten times as many as outputs, as most traffic has."""
    return 11 / (10 * costs.prefill_seconds_per_token + costs.decode_seconds_per_token / TYPICAL_BATCH)
