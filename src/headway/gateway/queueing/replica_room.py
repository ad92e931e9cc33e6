"""Replicas as the queues see them: which have room, how far their requests are, what their engines preempted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Protocol

from headway.domain.request import uncached_prefill_tokens
from headway.gateway.queueing.dispatch_contracts import Relay
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.queueing.offline_bound import OfflineBound
from headway.gateway.queueing.request_state import QueuedRequest, QueueKey
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import Settings
from headway.policies.contracts import Need
from headway.policies.places import needs_of

_TOLD_MAX = 1_000
log = logging.getLogger("headway.gateway")


class WatchedQueues(Protocol):
    """The queues that there are now, and the bound of offline requests."""

    settings: Settings
    queues: dict[QueueKey, ModelQueue]
    offline: OfflineBound


def room_gate(settings: Settings) -> Callable[[UpstreamReplica, QueuedRequest], bool]:
    """Whether a replica has room; an admission policy that weighs memory decides itself what outputs will need."""
    if Need.MEMORY in needs_of("admission", settings.policies.admission):
        return partial(UpstreamReplica.has_room, for_output=False)
    return UpstreamReplica.has_room


def with_a_place(queues: Collection[ModelQueue], replicas: Sequence[UpstreamReplica]) -> list[ModelQueue]:
    """Those of the queues whose model some replica with a place has; of the others no head can be sent.

    Whether a head fits there is not asked: it takes ten times as long, and there may be thousands of queues.
    """
    models: set[str] = set()
    for replica in replicas:
        if replica.is_up and replica.has_place:
            if not replica.state.models:  # it is believed to have any
                return list(queues)
            # An adapter's requests wait in the queue of its base model.
            models.update(replica.state.models, replica.state.adapter_parents.values())
    if not models:
        return []
    return [queue for queue in queues if queue.key.model in models or not queue.key.model]


def still_ending(relays: Iterable[Relay], replicas: Collection[UpstreamReplica]) -> list[UpstreamReplica]:
    """The replicas that left and still have requests, of all requests inside; O(requests)."""
    there, leaving = set(replicas), dict[UpstreamReplica, None]()
    for relay in relays:
        replica = relay.request.queued.replica
        if replica is not None and replica not in there and replica.ledger.requests:
            leaving[replica] = None
    return list(leaving)


def look_at(replica: UpstreamReplica, now: float) -> None:
    """Write down the tokens that came by now for every request there."""
    for request, tokens in replica.ledger.progress(now):
        request.produced_tokens = tokens


def look_after(replica: UpstreamReplica, served: WatchedQueues, now: float) -> None:
    """`look_at`, and pass on what its engine preempted: the mean of all requests there, shared out by queue."""
    look_at(replica, now)
    served.offline.look([replica], served.settings.offline, now)
    queues = served.queues
    preemptions = replica.take_preemptions()
    if not preemptions:
        return
    held: Counter[QueueKey] = Counter()
    for queued in replica.ledger.running():
        if isinstance(queued, QueuedRequest) and queued.queue_key is not None:
            held[queued.queue_key] += uncached_prefill_tokens(queued)
    requests = replica.ledger.requests + replica.state.other_requests
    for key, tokens in held.items():
        if key in queues:
            queues[key].memory_lost(preemptions * tokens // requests)


def warn_of_unknown_memory(replica: UpstreamReplica, told: set[str], admission: str) -> None:
    """Say once that an admission policy has nothing to go by; `told` are the names of replicas that it was said of."""
    if replica.name not in told:
        if len(told) >= _TOLD_MAX:  # of pods that come and go
            told.clear()
        told.add(replica.name)
        message = "replica %s reports no KV memory, so admission %s lets every request go there: set kv_tokens"
        log.warning(message, replica.name, admission)
