"""Which queue a request belongs to: its model's; for a LoRA adapter that of its base model.

Law: whatever heads a queue, each replica that may serve one of its requests may serve all of them, but for those that
failed one. So no request waits behind one that only other replicas can serve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from headway.gateway.openai.stored_objects import StoredObjects
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.queueing.request_state import QueuedRequest, QueueKey
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import Settings


def is_adapter(model: str, replicas: Sequence[UpstreamReplica]) -> bool:
    """Whether some replica, up or not, lists a model of this name as a LoRA adapter."""
    return any(model in replica.state.adapter_parents for replica in replicas)


def shared_model(model: str, replicas: Sequence[UpstreamReplica], settings: Settings) -> str:
    """The model whose queue its requests wait in: of an adapter its base model, unless it has an order of its own.

    An adapter whose base model is not listed beside it has a queue of its own too.
    """
    own = settings.models.get(model)
    if own is not None and own.ordering is not None:
        return model
    for replica in replicas:
        parent = replica.state.adapter_parents.get(model)
        if parent is not None and parent in (replica.state.models or ()):
            return parent
    return model


def home_of(
    queued: QueuedRequest, objects: StoredObjects, replicas: Sequence[UpstreamReplica]
) -> UpstreamReplica | None:
    """The replica that made what the request is about, while it can serve it; None where any may."""
    arrived, failed = queued.arrived, queued.failed_replica
    if arrived.stored_object is None:
        return None
    name = objects.made_by(arrived.stored_object)
    able = (r for r in replicas if r.name == name and r.is_up and r is not failed)
    homes = (r for r in able if r.serves(arrived.model, arrived.endpoints))
    return next(homes, None)


def key_of(
    queued: QueuedRequest, home: UpstreamReplica | None, replicas: Sequence[UpstreamReplica], settings: Settings
) -> QueueKey:
    """The queue of a request. `home` is the replica that alone can serve it; None where any with its model may."""
    model, kind, endpoints = queued.arrived.model, queued.arrived.endpoint.kind, queued.arrived.endpoints
    shared = shared_model(model, replicas, settings)
    if home is not None:  # it must not hold up requests that others can serve
        return QueueKey(shared, kind, home.name, queued.is_over_budget)
    if shared == model and not endpoints:
        return QueueKey(model, kind, "", queued.is_over_budget)
    serving = [replica.name for replica in replicas if replica.serves(model, endpoints)]
    lacks = any(replica.serves(shared) and not replica.serves(model, endpoints) for replica in replicas)
    return QueueKey(shared, kind, "", queued.is_over_budget, tuple(sorted(serving)) if lacks else ())


class KeyedQueues(Protocol):
    """The queues that there are now, and what decides about them."""

    settings: Settings
    replicas: list[UpstreamReplica]
    queues: dict[QueueKey, ModelQueue]

    def key_of(self, queued: QueuedRequest) -> QueueKey:
        """The queue that a request belongs to now."""

    def queue_of(self, queued: QueuedRequest) -> ModelQueue:
        """The queue that a request is in; where it is in none, the one that it belongs to."""


class QueueChanges:
    """Moves requests that wait to the queue that they belong to, after replicas' lists or settings have changed."""

    def __init__(self, served: KeyedQueues) -> None:
        self._served = served
        self._followed: object = None  # what the queues' keys were made of when they were looked at last

    def steps(self, now: float) -> Iterator[None]:
        """Once a second: a request at a step where something changed, else nothing."""
        served = self._served
        lists = [(replica, replica.state.lists_changed) for replica in served.replicas]
        if self._followed == (lists, served.settings.models):
            return
        self._followed = (lists, served.settings.models)
        for key, queue in list(served.queues.items()):
            if key.home:
                continue
            for queued in list(queue.requests):
                if queued in queue:
                    self._follow(queued, queue, now)
                yield

    def _follow(self, queued: QueuedRequest, queue: ModelQueue, now: float) -> None:
        if self._served.key_of(queued) == queue.key:
            return
        queue.cancel(queued, now)
        queued.queue_key = None
        self._served.queue_of(queued).arrive(queued, now)
        # Its wait so far tells nothing of this queue's speed.
        queued.drain_seconds = queued.predicted_wait_seconds = None
