"""Limits of time: which requests end because it has passed, in their queue or anywhere.

Each round is an iterator that ends one request at a step, so that thousands that end together hold up no other client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.deadlines import Deadlines
from headway.gateway.queueing.dispatch_contracts import Relay
from headway.gateway.queueing.entry_checks import EntryChecks
from headway.gateway.queueing.outages import Outages, can_be_served, demand_of
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import GatewayRequest, RequestStage
from headway.gateway.queueing.retries import Retries
from headway.gateway.queueing.served_queues import ServedQueues

_QUEUED, _ENDED = RequestStage.QUEUED, RequestStage.ENDED


class TimeLimits:
    """One per process, beside the queues."""

    def __init__(
        self,
        served: ServedQueues,
        entry_checks: EntryChecks,
        retries: Retries,
        relays: Mapping[int, Relay],
        contain: Callable[[Relay, str, Exception], None],
    ) -> None:
        """`relays` are those of requests that have not ended, by number, in order of arrival; `contain` ends one."""
        self._served = served
        self._entry_checks = entry_checks
        self._retries = retries
        self._relays = relays
        self._contain = contain
        self._outages = Outages()
        self._first_tokens = Deadlines(lambda request: request.arrived.deadline, self._waiting)
        self._ends = Deadlines(lambda request: request.arrived.ends_by, self._inside)

    def arrived(self, request: GatewayRequest) -> None:
        """A request is inside from now on."""
        if request.arrived.ends_by is not None:
            self._ends.add(request)

    def queued(self, request: GatewayRequest) -> None:
        """A request waits from now on."""
        if request.arrived.deadline is not None:
            self._first_tokens.add(request)

    def end_overtime(self, now: float) -> Iterator[None]:
        """End requests that took longer than they may, wherever they stand. Some times a second."""
        for request in self._ends.passed(now):
            if request.stage is _ENDED:  # between two steps
                continue
            seconds = (request.arrived.ends_by or now) - request.arrived.arrived_at
            message = (
                f"the request was not answered within {seconds:g} s (`requests.timeout_seconds`, or its own bound)"
            )
            relay = self._relays[request.arrived.number]
            try:
                relay.cut_off(Refusal(504, message, Reason.REQUEST_TIMEOUT))
            except Exception as error:
                self._contain(relay, "sweep", error)
            yield

    def end_untried(self, now: float) -> Iterator[None]:
        """End requests whose second try waited too long for those of others."""
        grace = self._served.settings.health.no_replica_seconds
        for number in self._retries.overdue(now - grace):
            relay = self._relays.get(number)
            if relay is not None:
                message = f"a replica failed at the request, and for {grace:g} s too many others were tried again"
                relay.cut_off(Refusal(502, message, Reason.REPLICA_FAILED))
                yield

    def refuse_overdue(self, now: float) -> Iterator[None]:
        """Refuse requests that waited in the queue for too long."""
        settings = self._served.settings
        least = min(settings.queue.timeout_seconds, settings.offline.timeout_seconds)
        # Only the oldest are looked at: with 100,000 waiting a look at all would hold up every stream.
        overdue = takewhile(lambda relay: now - relay.request.arrived.arrived_at >= least, self._relays.values())
        for relay in list(overdue):
            arrived = relay.request.arrived
            if relay.request.stage is not _QUEUED:
                continue
            table = "offline" if arrived.request_class == "offline" else "queue"
            limit = getattr(settings, table).timeout_seconds
            if now - arrived.arrived_at >= limit:
                message = f"the request waited in the queue for {limit:g} s, the limit `{table}.timeout_seconds`"
                drain_seconds = self._served.queue_of(relay.request.queued).drain_seconds()
                relay.refuse(self._entry_checks.too_many(message, Reason.QUEUE_TIMEOUT, drain_seconds))
            yield  # also after one that may wait on: one limit may be hours, and many wait beyond the other

    def refuse_late(self, now: float) -> Iterator[None]:
        """Refuse requests whose deadline for the first token has passed in the queue."""
        for request in self._first_tokens.passed(now):
            if request.stage is not _QUEUED:  # sent when the one before it was refused
                continue
            bound = (request.arrived.deadline or now) - request.arrived.arrived_at
            message = f"the first token was wanted within {bound:.2f} s, which have passed in the queue"
            drain_seconds = self._served.queue_of(request.queued).drain_seconds()
            relay = self._relays[request.arrived.number]
            relay.refuse(self._entry_checks.too_many(message, Reason.DEADLINE_UNMEETABLE, drain_seconds))
            yield

    def refuse_unserved(self, now: float) -> Iterator[None]:
        """Refuse requests that no healthy replica could serve for too long; all, while another gateway is active."""
        served = self._served
        if not served.may_serve():
            yield from self._refuse_in_standby()
            return
        grace = served.settings.health.no_replica_seconds
        demands = self._outages.lasting(served.waiting, served.replicas, now, grace)
        if not demands:
            return
        # Those that came later wait for as long as those that were here.
        older = takewhile(lambda relay: now - relay.request.arrived.arrived_at >= grace, self._relays.values())
        for relay in list(older):
            request = relay.request
            demand = demand_of(request.queued)
            if request.stage is not _QUEUED or demand not in demands:
                continue
            if not can_be_served(demand, served.replicas):  # none came back between two steps
                relay.refuse(self._entry_checks.outage(request.queued, f"; none has been up for {grace:g} s"))
            yield

    def _refuse_in_standby(self) -> Iterator[None]:
        for relay in list(self._relays.values()):
            if relay.request.stage is _QUEUED:
                relay.refuse(self._entry_checks.standby())
                yield

    def _inside(self, number: int) -> GatewayRequest | None:
        relay = self._relays.get(number)
        return None if relay is None else relay.request

    def _waiting(self, number: int) -> GatewayRequest | None:
        request = self._inside(number)
        return request if request is not None and request.stage is _QUEUED else None
