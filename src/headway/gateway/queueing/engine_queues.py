"""Engines' own queues: requests that wait there are taken back and sent elsewhere, where a rescheduling policy says so.

An engine tells how many requests wait in its queue, not which. Under first come, first served it is the last of those
sent before it counted. Where it does not serve so, or its counts are old, nothing is taken back. A wrong guess costs a
prompt that is computed twice, never more: what may not be executed twice is not moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.domain.replica_view import OccupiedReplica, SentRequest
from headway.domain.request import RequestView
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.request_state import QueuedRequest, RequestStage
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import PolicySettings
from headway.policies.catalog import build
from headway.policies.contracts import Move, ReschedulingPolicy
from headway.policies.rescheduling.stay import Stay
from headway.scheduling.checked_policies import PolicyFault

STAY = "stay"
"""The policy under which nothing is taken back."""
_UNANSWERED = (RequestStage.CONNECTING, RequestStage.SENT)
_LOOKED_AT_MAX = 256
"""Waiting requests of one replica that a policy sees, the latest sent: so a look takes no longer, however many wait."""


class EngineQueues:
    """Asks the rescheduling policy of one process; `look` is called when a replica's counts may be new."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._settings: PolicySettings | None = None
        self._policy: ReschedulingPolicy = Stay()
        self._asked_at = -math.inf
        self._faults = 0  # in a row

    def look(self) -> None:
        """Take back what the policy says, then send what there is room for."""
        dispatcher = self._dispatcher
        dispatcher.errors.guard("rescheduling", self._share_out)
        dispatcher.pump()

    def _share_out(self) -> None:
        dispatcher = self._dispatcher
        chosen, now = dispatcher.settings.policies, dispatcher.now()
        if chosen is not self._settings:
            self._settings, self._faults = chosen, 0
            options = chosen.options.get("rescheduling")
            self._policy = build("rescheduling", chosen.rescheduling, options, costs=chosen.costs, seed=chosen.seed)
        if now - self._asked_at < self._policy.period_seconds or self._faults >= chosen.faults_max:
            return
        replicas = [replica for replica in dispatcher.replicas if replica.is_healthy]
        if len(replicas) < 2 or not any(replica.waiting_requests for replica in replicas):
            return
        self._asked_at = now
        by_id = {replica.ledger.id: replica for replica in replicas}
        for move in self._answer([self._shown(replica) for replica in replicas], now):
            relay = dispatcher.relays.get(move.request.id) if isinstance(move.request.id, int) else None
            if relay is not None:
                try:
                    relay.withdraw(by_id[move.destination.replica.id])
                except Exception as error:
                    dispatcher.contain(relay, "rescheduling", error)

    def _answer(self, shown: list[OccupiedReplica], now: float) -> Sequence[Move]:
        """What the policy says; nothing where it fails."""
        try:
            moves = self._checked(self._policy.moves(shown, now), shown)
        except PolicyFault as fault:
            self._fault(fault)
        except Exception as error:
            self._fault(PolicyFault("rescheduling", "raised", f"raised {error!r}"))
        else:
            self._faults = 0
            return moves
        return ()

    def _fault(self, fault: PolicyFault) -> None:
        self._faults += 1
        self._dispatcher.errors.policy_fault(fault)

    def _checked(self, moves: Sequence[Move], shown: Sequence[OccupiedReplica]) -> Sequence[Move]:
        """The moves, if the policy kept its contract. Raises PolicyFault."""
        if len(moves) > self._policy.moves_max:
            raise PolicyFault("rescheduling", "nonsense", f"made {len(moves)} moves, more than its own bound")
        seen: set[object] = set()
        for move in moves:
            mobile = [sent.request for sent in move.source.waiting if sent.may_move]
            ends = [one for one in shown if one is move.source or one is move.destination]
            if len(ends) < 2 or move.request.id in seen or not any(move.request is request for request in mobile):
                raise PolicyFault(
                    "rescheduling", "nonsense", f"moved request {move.request.id!r}, which may not move so"
                )
            seen.add(move.request.id)
        return moves

    def _shown(self, replica: UpstreamReplica) -> OccupiedReplica:
        return OccupiedReplica(
            replica=replica.ledger,
            waiting=[
                SentRequest(queued, queued.arrived.prompt.hashes, 0, self._may_move(queued))
                for queued in self._waiting(replica)
            ],
            running=(),
            waiting_requests=replica.waiting_requests or 0,
            is_draining=replica.is_drained,
            contents_as_of=replica.ledger.as_of,
            could_take=lambda request: self._could_take(replica, request),
        )

    def _may_move(self, queued: QueuedRequest) -> bool:
        """Whether nothing came of a request, once more does no harm, and it has a try left and time to wait."""
        relay, arrived = self._dispatcher.relays.get(queued.arrived.number), queued.arrived
        is_unanswered = relay is not None and relay.request.stage in _UNANSWERED
        return is_unanswered and queued.tries <= 1 and arrived.may_be_repeated and not arrived.never_waits

    def _waiting(self, replica: UpstreamReplica) -> list[QueuedRequest]:
        """The requests of this gateway that wait in an engine's queue, as far as its latest counts show.

        Of those sent before it counted at least so many wait as are not running, even if others send there too.
        """
        state, waiting, running = replica.state, replica.waiting_requests, replica.state.report.running
        if not waiting or running is None or state.reported_at["waiting"] != state.reported_at.get("running"):
            return []  # nothing waits, or the two were not counted together
        if replica.settings.priority != "none" or replica.reads_hints:
            return []  # it does not serve first come, first served
        before = [
            queued
            for queued in replica.ledger.running()
            if isinstance(queued, QueuedRequest) and (queued.dispatched_at or 0.0) < state.asked_at
        ]
        waits = max(0, min(waiting, len(before) - running, _LOOKED_AT_MAX))
        return before[len(before) - waits :]

    def _could_take(self, replica: UpstreamReplica, request: RequestView) -> bool:
        """Whether the request would be sent there now: only where it is known that nothing waits."""
        assert isinstance(request, QueuedRequest)
        return replica.waiting_requests == 0 and replica in self._dispatcher.served_queues.candidates(request)
