"""The request router of Ray Serve that asks our queue when and where each request goes.

Ray lets a router rank replicas. When a request goes is decided in a method that Ray does not publish; where this Ray
lacks it, or while the queue cannot be reached, replicas are ranked, and the log says so.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
import random
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ray.serve.request_router import (
    LocalityMixin,
    MultiplexMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from headway.gateway.queueing.counts import Outcome
from headway.policies.rendezvous_hashing import rendezvous_score
from headway.ray.described_request import Describe, describing, facts_of
from headway.ray.queue_actor import queue_name, reach_queue
from headway.ray.queue_client import QueueClient, QueueLost, RequestRefused, Ticket
from headway.ray.queue_messages import LostKind, RequestFacts, ServeReplica
from headway.ray.queue_refusal import refusal_of
from headway.ray.queue_settings import read_queue_settings

_METHOD = "_choose_replica_for_request"
_AGAIN_SECONDS = 0.001  # before a rejected request asks again, doubled each time: mostly the last answer is just over
_UNACCEPTED_SECONDS = 1.0  # after which a call that ended, and was neither accepted nor rejected, gives up its place
_UNKNOWN_REPLICA_SECONDS = 1.0  # after which a replica that this router was not told of is given up
log = logging.getLogger("ray.serve.headway")


class _Placed:
    """A request that was given a replica, until Ray is done with this try."""

    __slots__ = ("facts", "has_ended", "is_accepted", "is_over", "ticket")

    def __init__(self, ticket: Ticket, facts: RequestFacts, *, is_accepted: bool = False) -> None:
        self.ticket = ticket
        self.facts = facts
        self.is_accepted = is_accepted  # by its replica
        self.has_ended = False  # the call to its replica; a rejected one ends before its router reads the rejection
        self.is_over = False  # the replica did not take it, and it waits again


def holds_order(router: type) -> bool:
    """Whether Ray's own router has the method that decides when a request goes, as we know it."""
    method = getattr(router, _METHOD, None)
    if method is None or not inspect.iscoroutinefunction(method):
        return False
    return list(inspect.signature(method).parameters) == ["self", "pending_request", "is_retry"]


HOLDS_ORDER = holds_order(RequestRouter)
"""Whether order holds with this version of Ray; else replicas are ranked."""


class QueuedRouter(LocalityMixin, MultiplexMixin, RequestRouter):  # type: ignore[misc]
    """One per handle and proxy. Its arguments come from `RequestRouterConfig.request_router_kwargs`."""

    def initialize_state(self, settings: str | Mapping[str, Any] | None = None, describe: str | None = None) -> None:
        """Called by Ray with the arguments of the configuration.

        Args:
            settings: of the queue: a TOML file that every node has, or a mapping of the same form.
            describe: `module:function` that says what is known of a call; see `described_request`.

        Raises:
            ValueError: one sentence that names the key and the fix.
        """
        given = {} if settings is None else settings
        read = read_queue_settings(given)
        self._describe: Describe | None = describing(describe)
        application, deployment = self._deployment_id.app_name, self._deployment_id.name
        reach = partial(reach_queue, queue_name(application, deployment), given)
        name = f"{deployment}-{uuid.uuid4().hex[:8]}"
        self.queue = QueueClient(name, reach, read.ray.answer_seconds, read.ray.start_seconds)
        self._placed: dict[tuple[str, str], deque[_Placed]] = defaultdict(deque)
        self._ongoing: dict[str, int] = {}  # replica -> its requests, as it told when it took or rejected one
        self._own: Counter[str] = Counter()  # replica -> requests that this router sent and that have not ended
        self._by_name: dict[str, ReplicaID] = {}
        if not HOLDS_ORDER:
            log.warning(
                "headway: this version of Ray has no RequestRouter.%s as headway knows it: replicas are ranked, and "
                "order, fairness, deadlines and refusal do not hold; use ray 2.60 or 2.61",
                _METHOD,
            )

    # When and where: the queue's answer

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        while not self._replicas:  # as Ray's own router does; its autoscaler sees the request wait
            self._replicas_updated_event.clear()
            await self._replicas_updated_event.wait()
        try:
            return await self._choose_by_queue(pending_request, is_retry=is_retry)
        except RequestRefused as refused:
            raise refusal_of(refused.refusal) from None
        except QueueLost:
            return await self._choose_by_rank(pending_request, is_retry=is_retry)

    async def _choose_by_queue(self, pending: PendingRequest, *, is_retry: bool) -> RunningReplica:
        metadata = pending.metadata
        before: _Placed | None = getattr(pending, "headway_placed", None) if is_retry else None
        if before is None:
            facts = facts_of(_arguments(pending), pending.kwargs, metadata, self._describe)
            ticket = await self.queue.choose(facts)
        else:
            facts = before.facts
            ticket = await self._choose_again(pending, before)
        while True:
            replica = await self._replica_named(ticket)
            if replica is not None:
                placed = _Placed(ticket, facts, is_accepted=not self._use_replica_queue_len_cache)
                pending.headway_placed = placed
                self._place(placed, metadata.internal_request_id)
                return replica
            ticket = await self.queue.choose_again(ticket, facts, None)

    async def _choose_again(self, pending: PendingRequest, before: _Placed) -> Ticket:
        """Its replica had no room, or died. It keeps its place there for a while: so the replica counts as busy."""
        before.is_over = True
        attempt = getattr(pending, "headway_attempts", 0)
        pending.headway_attempts = attempt + 1
        try:
            await asyncio.sleep(min(_AGAIN_SECONDS * 2.0 ** min(attempt, 30), self.max_backoff_s))
        except asyncio.CancelledError:
            self.queue.ended(before.ticket, Outcome.CANCELLED)
            raise
        ongoing = self._ongoing.get(before.ticket.replica)
        return await self.queue.choose_again(before.ticket, before.facts, ongoing)

    async def _replica_named(self, ticket: Ticket) -> RunningReplica | None:
        """The replica of a ticket; the queue may have heard of one a moment before this router."""
        until = asyncio.get_running_loop().time() + _UNKNOWN_REPLICA_SECONDS
        try:
            while (replica := self._replicas.get(self._by_name.get(ticket.replica))) is None:
                seconds = until - asyncio.get_running_loop().time()
                if seconds <= 0:
                    return None
                self._replicas_updated_event.clear()
                try:
                    async with asyncio.timeout(seconds):
                        await self._replicas_updated_event.wait()
                except TimeoutError:
                    return None
        except asyncio.CancelledError:
            self.queue.ended(ticket, Outcome.CANCELLED)
            raise
        return replica

    async def _choose_by_rank(self, pending: PendingRequest, *, is_retry: bool) -> RunningReplica:
        """Ray's own way, by `choose_replicas`. The queue is told of the request when it is back."""
        pending.headway_placed = None
        replica: RunningReplica = await super()._choose_replica_for_request(pending, is_retry=is_retry)
        ticket = self.queue.begun_elsewhere(replica.replica_id.unique_id)
        self._place(_Placed(ticket, RequestFacts(), is_accepted=True), pending.metadata.internal_request_id)
        return replica

    def _place(self, placed: _Placed, internal_request_id: str) -> None:
        self._placed[placed.ticket.replica, internal_request_id].append(placed)
        self._own[placed.ticket.replica] += 1

    # What Ray tells

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """The deployment's replicas changed."""
        super().update_replicas(replicas)
        self._by_name = {one.unique_id: one for one in self._replicas}
        for name in self._ongoing.keys() - self._by_name.keys():
            del self._ongoing[name]
        self._tell_replicas()

    def _tell_replicas(self) -> None:
        if not HOLDS_ORDER:  # then no queue is started
            return
        told = [
            ServeReplica(one.replica_id.unique_id, one.max_ongoing_requests, tuple(sorted(one.multiplexed_model_ids)))
            for one in self._replicas.values()
        ]
        self.queue.list_replicas(sorted(told))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A replica died before the controller has noticed."""
        super().on_replica_actor_died(replica_id)
        self.queue.lose(replica_id.unique_id, LostKind.DIED)
        self._tell_replicas()

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """A replica could not be reached."""
        super().on_replica_actor_unavailable(replica_id)
        self.queue.lose(replica_id.unique_id, LostKind.UNAVAILABLE)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """A replica told how many requests it has."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._ongoing[replica_id.unique_id] = num_ongoing_requests

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Ray is done with a request at a replica, whatever became of it. A rejected try ends here, too."""
        key = replica_id.unique_id, internal_request_id
        placed = self._placed.get(key)
        if not placed:
            return
        one = placed.popleft()
        if not placed:
            del self._placed[key]
        name = one.ticket.replica
        self._own[name] -= 1
        if self._own[name] <= 0:
            del self._own[name]
        one.has_ended = True
        if one.is_accepted:
            self._give_back(one)
        elif not one.is_over:
            asyncio.get_running_loop().call_later(_UNACCEPTED_SECONDS, self._give_back, one)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """A replica accepted a request."""
        super().on_request_routed(pending_request, replica_id, result)
        placed: _Placed | None = getattr(pending_request, "headway_placed", None)
        if placed is not None:
            placed.is_accepted = True
            if placed.has_ended:
                self._give_back(placed)

    def _give_back(self, placed: _Placed) -> None:
        if not placed.is_over:
            placed.is_over = True
            self.queue.ended(placed.ticket)

    # Where alone: without the queue

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas: of a session its own one, else the two with fewest requests of this router; then all."""
        if not candidate_replicas:
            return []
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        session = getattr(pending_request.metadata, "session_id", "") if pending_request is not None else ""
        order = rank(candidate_replicas, session, self._own)
        first = order[:1] if session else order[:2]
        return [first, order[len(first) :]]


if not HOLDS_ORDER:  # Ray may call it in another way, so its own is left alone
    delattr(QueuedRouter, _METHOD)


def rank(
    replicas: list[RunningReplica],
    session: str,
    own: Mapping[str, int],
    chance: Callable[[], float] = random.random,
) -> list[RunningReplica]:
    """Replicas, the best first: by rendezvous hashing of a session, else by requests sent there and not ended."""
    if session:
        return sorted(replicas, key=lambda one: rendezvous_score(session, one.replica_id.unique_id), reverse=True)
    return sorted(replicas, key=lambda one: (own.get(one.replica_id.unique_id, 0), chance()))


def _arguments(pending: PendingRequest) -> list[Any]:
    """The positional arguments of a call; a proxy pickles the HTTP request, as its replica unpickles it."""
    args: list[Any] = pending.args
    if pending.metadata.is_http_request and args and isinstance(args[0], bytes):
        return [pickle.loads(args[0]), *args[1:]]
    return args
