"""Choice of a replica for a request: the routing policy's, or the replica with the most room where the policy fails."""

from __future__ import annotations

from collections.abc import Sequence

from headway.gateway.queueing.internal_errors import InternalErrors
from headway.gateway.queueing.request_state import GatewayRequest, QueuedRequest
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import PolicySettings
from headway.policies.catalog import build
from headway.policies.contracts import DispatchListener, RoutingPolicy
from headway.scheduling.checked_policies import CheckedRouting, PlainAsker, PolicyFault


def reroute(request: GatewayRequest, replica: UpstreamReplica) -> None:
    """A proxy sent the request on to another replica than the one that was chosen: its place is there now."""
    queued = request.queued
    if queued.replica is not None:
        queued.replica.ledger.leave(queued)
    replica.ledger.enter(queued, request.relayed)
    queued.replica = replica


class RequestRouting:
    """The routing policy; where it fails, the replica with the most room is chosen."""

    def __init__(self, settings: PolicySettings, errors: InternalErrors) -> None:
        chosen = settings.options.get("routing")
        policy: RoutingPolicy = build("routing", settings.routing, chosen, costs=settings.costs, seed=settings.seed)
        self._policy = CheckedRouting(policy, PlainAsker())
        self._listener = policy if isinstance(policy, DispatchListener) else None
        self._errors = errors
        self._faults_max = settings.faults_max
        self._faults = 0  # in a row
        self.is_replaced = False  # the policy is asked no more

    def choose(self, head: QueuedRequest, candidates: Sequence[UpstreamReplica], now: float) -> UpstreamReplica | None:
        """One of the candidates; None if the policy lets the request wait."""
        if not self.is_replaced:
            views = [replica.ledger for replica in candidates]
            try:
                chosen = self._policy.choose(head, head.arrived.prompt.hashes, views, now)
            except PolicyFault as fault:
                self._faults += 1
                self.is_replaced = self._faults >= self._faults_max
                self._errors.policy_fault(fault)
            else:
                self._faults = 0
                for replica in candidates:
                    if replica.ledger is chosen:
                        return replica
                return None
        return min(candidates, key=lambda replica: replica.ledger.requests / replica.ledger.requests_max)

    def routed(self, queued: QueuedRequest, replica: UpstreamReplica) -> None:
        """A request is sent to a replica."""
        if self._listener is not None:
            try:
                self._listener.routed(queued, queued.arrived.prompt.hashes, replica.ledger)
            except Exception as error:
                self._errors.policy_fault(PolicyFault("routing", "raised", f"raised {error!r} at a dispatch"))
