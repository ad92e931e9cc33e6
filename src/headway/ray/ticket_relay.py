"""Relay of a request whose bytes Ray carries: it tells the router where the request goes, and hears of its end.

Laws: a request gets one verdict each time it waits; it ends once; once Ray has sent it, nothing here cuts it short.
"""

from __future__ import annotations

from collections.abc import Callable

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import GatewayRequest, RequestMove, RequestStage
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.ray.queue_messages import RefusedRequest, RouteVerdict

BROKE = "the queue failed at this request; its log says why"


class TicketRelay:
    """A `Relay` for the dispatcher. `tell` hands a verdict to the request's router."""

    __slots__ = ("_dispatcher", "_number", "_tell", "request")

    def __init__(
        self, request: GatewayRequest, number: int, dispatcher: Dispatcher, tell: Callable[[RouteVerdict], None]
    ) -> None:
        self.request = request
        self._number = number
        self._dispatcher = dispatcher
        self._tell = tell

    def __repr__(self) -> str:
        return f"<ticket {self._number} of {self.request!r}>"

    # From the dispatcher

    def dispatch(self, replica: UpstreamReplica) -> None:
        """Name the replica to the router."""
        self.request.move(RequestMove.SENT)
        self._tell(RouteVerdict(self._number, replica.name))

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error; nothing was sent to a replica before."""
        self._answer(refusal, Outcome.REFUSED)

    def withdraw(self, destination: UpstreamReplica) -> bool:
        """False: Ray has sent it to its replica already."""
        return False

    def check_silence(self, now: float) -> None:
        """Nothing: Ray's own time-outs and health checks judge a replica that is silent."""

    def cut_off(self, refusal: Refusal) -> None:
        """End the request now, if it waits; one that runs is left to Ray, which has a time-out of its own."""
        if self.request.stage not in (RequestStage.SENT, RequestStage.ENDED):
            self._answer(refusal, Outcome.REFUSED)

    def break_off(self) -> None:
        """End the request after an internal error."""
        if self.request.stage is not RequestStage.ENDED:
            was_sent = self.request.stage is RequestStage.SENT
            self._answer(Refusal(500, BROKE, Reason.INTERNAL_ERROR), Outcome.FAILED, is_told=not was_sent)

    def _answer(self, refusal: Refusal, outcome: Outcome, *, is_told: bool = True) -> None:
        self.request.relayed.status = refusal.status
        if is_told:  # before its end, whose room another request takes
            why = RefusedRequest(refusal.status, refusal.message, str(refusal.reason), refusal.retry_seconds)
            self._tell(RouteVerdict(self._number, refusal=why))
        self._dispatcher.end(self.request, outcome, refusal.reason)

    # From the router

    def rejected(self) -> None:
        """Its replica did not take it: it waits again, in front of its queue, and goes to any that has room."""
        if self.request.stage is RequestStage.SENT:
            # Back to the same replica if that is the first to have room: it is busy, and has not failed.
            self._dispatcher.take_back(self.request, destination=self.request.queued.replica)

    def ended(self, outcome: Outcome) -> None:
        """Ray is done with it, or its client left."""
        replica = self.request.queued.replica
        if outcome is Outcome.COMPLETED and replica is not None:
            self.request.relayed.status = 200
            replica.completed(is_generation=False)  # not how well for its size: no one counted its tokens
        if self.request.stage is not RequestStage.ENDED:
            self._dispatcher.end(self.request, outcome)
