"""Checks at the entry: whether a request may wait, and after how many seconds a refused client may come back.

Law: what is refused by its head would be refused with its body too, while nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.budget_accounts import BudgetAccounts
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.queueing.outages import can_be_served, demand_of, drained_part
from headway.gateway.queueing.refusals import NO_REPLICA_SECONDS, STANDBY_SECONDS, Refusal, RetryDelays
from headway.gateway.queueing.request_state import QueuedRequest
from headway.gateway.queueing.served_queues import ServedQueues
from headway.gateway.wire.messages import HttpRequest

_ENDPOINTS_SHOWN, _CHARACTERS_SHOWN = 3, 60


class EntryChecks:
    """One per process, beside the queues. `clock` gives seconds; `seed` is of the jitter of `Retry-After`."""

    def __init__(self, served: ServedQueues, budgets: BudgetAccounts, clock: Callable[[], float], seed: int) -> None:
        self._served = served
        self._budgets = budgets
        self._now = clock
        self.retry_delays = RetryDelays(seed)

    def refusal(self, queued: QueuedRequest) -> Refusal | None:
        """Why a request may not enter a queue; None if it may."""
        served, replicas = self._served, self._served.replicas
        if not served.may_serve():
            return self.standby()
        if not can_be_served(demand_of(queued), replicas):
            refusal = self._refusal_in_outage(queued)
            if refusal is not None:
                return refusal
            queued.came_in_outage = True
        if not served.waiting:
            return None
        arrived = queued.arrived
        bounds = served.settings.queue
        broken = served.bounds.broken(arrived.payer, queued.prompt_tokens, arrived.body_bytes, bounds)
        broken = broken or served.ceilings.broken(queued) or served.model_bounds.broken(queued)
        if broken is None:
            return None
        return self.too_many(*broken, served.queue_of(queued).drain_seconds())

    def _refusal_in_outage(self, queued: QueuedRequest) -> Refusal | None:
        """Why a request that no healthy replica can serve may not wait for one; None if it may."""
        arrived, served = queued.arrived, self._served
        elsewhere = (arrived.model, queued.failed_replica, ())
        if self._is_unknown(arrived.model) or (arrived.endpoints and can_be_served(elsewhere, served.replicas)):
            return self.outage(queued)
        if arrived.never_waits:
            return self.outage(queued)
        full = served.bounds.broken_in_outage(arrived.body_bytes, served.settings.queue)
        return None if full is None else self.outage(queued, f"; {full}")

    def _is_unknown(self, model: str) -> bool:
        replicas = self._served.replicas
        return bool(replicas) and not any(replica.serves(model) for replica in replicas)

    def outage(self, queued: QueuedRequest, more: str = "") -> Refusal:
        """The refusal of a request that no healthy replica can serve; `more` ends its sentence."""
        arrived, replicas = queued.arrived, self._served.replicas
        model = arrived.model
        meant = f", asked for as {arrived.asked_model[:100]!r}" if arrived.is_renamed else ""
        if self._is_unknown(model):
            message = f"no replica serves the model {model[:100]!r}{meant}; GET /v1/models lists the models"
            return Refusal(404, message, Reason.UNKNOWN_MODEL)
        if arrived.endpoints and can_be_served((model, queued.failed_replica, ()), replicas):
            allowed = _shown(arrived.endpoints)
            return self.unserved(f"the proxy allows this request only {allowed}, where no replica is healthy{more}")
        return self.unserved(f"{self.why_unserved(model, meant)}{more}")

    def refusal_unread(self, tenant: str, http: HttpRequest) -> Refusal | None:
        """Why a request may enter no queue whatever its body says; None if it may, or if its body must be read first.

        The prompt is in the body, and counts as none. `tenant` is of its API key; "" where there are no keys: then
        the bounds of a fairness id are judged later.
        """
        served = self._served
        if not served.may_serve():
            return self.standby()
        body_bytes = int(http.named.get(b"content-length", b"0"))
        broken = served.bounds.broken(tenant, 0, body_bytes, served.settings.queue)
        if broken is None:
            return self._budgets.refusal_unread(tenant, http.path)
        drains = [queue.drain_seconds() for queue in served.queues.values() if queue.waiting.requests]
        return self.too_many(*broken, max([seconds for seconds in drains if seconds is not None], default=None))

    def missed_deadline(self, queued: QueuedRequest, queue: ModelQueue, now: float) -> Refusal | None:
        """The refusal of a request in its queue whose first token is forecast after its deadline; None if it is not."""
        deadline, wait = queued.deadline, queued.predicted_wait_seconds
        if deadline is None or wait is None:
            return None
        goes_at_once = len(queue) <= 1 and bool(self._served.candidates(queued))
        if goes_at_once or now + wait <= deadline:
            return None
        bound = deadline - now
        message = f"the first token is wanted within {bound:.2f} s and is expected after about {wait:.2f} s"
        return self.too_many(message, Reason.DEADLINE_UNMEETABLE, wait - bound)

    def too_many(self, message: str, reason: Reason, retry_seconds: float | None) -> Refusal:
        """A 429; `retry_seconds` is None where no forecast is known."""
        return Refusal(429, message, reason, self.retry_delays.after(retry_seconds))

    def unserved(self, message: str) -> Refusal:
        """A 503, because no healthy replica serves the model."""
        return Refusal(503, message, Reason.NO_REPLICA, self.until_probe())

    def why_unserved(self, model: str, meant: str = "") -> str:
        """Why no replica can serve a model now, one sentence: an operator drained them, or none is healthy.

        `meant` follows the name of the model.
        """
        drained, serving = drained_part(model, self._served.replicas)
        named = f" of the model {model[:100]!r}{meant}" if model else ""
        if serving and drained == serving:
            return f"every replica{named} is drained (`/admin/replicas`)"
        healthy = f"no healthy replica serves the model {model[:100]!r}{meant}" if model else "no replica is healthy"
        return f"{healthy}, and {drained} of {serving} are drained" if drained else healthy

    def standby(self) -> Refusal:
        """A 503, because another gateway is active."""
        message = "this gateway stands by, and another one is active (`[lease]`); try again"
        return Refusal(503, message, Reason.STANDBY, self.retry_delays.after(STANDBY_SECONDS))

    def draining(self) -> Refusal:
        """A 503, because the process ends."""
        retry = self.retry_delays.after(NO_REPLICA_SECONDS)
        return Refusal(503, "this gateway is shutting down", Reason.DRAINING, retry)

    def until_probe(self) -> float:
        """Seconds after which a client may come back while no replica is healthy."""
        return self.retry_delays.after_probe(self._served.replicas, self._now())


def _shown(endpoints: tuple[str, ...]) -> str:
    few = endpoints[:_ENDPOINTS_SHOWN]
    more = f" and {len(endpoints) - len(few)} more" if len(endpoints) > len(few) else ""
    return f"{', '.join(endpoint[:_CHARACTERS_SHOWN] for endpoint in few)}{more}"
