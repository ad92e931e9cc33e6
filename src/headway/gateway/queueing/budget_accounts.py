"""Accounts of the budgets of keys: which requests are within, which wait beyond theirs, and what each used in the end.

Laws: a request is debited at most once, when it comes in or when its turn within the budget has come, and corrected
once, at its end; one that runs beyond its budget is not debited; of one tenant no request passes an older one that
waits beyond the budget. A refused client that comes back after its `Retry-After` is within, unless others used its keys
meanwhile or a request has to end first.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from headway.gateway.budgets.key_budget import KeyBudget, Shortage
from headway.gateway.budgets.rate_limit_headers import RateLimitHeaders, anthropic_headers, rate_limit_headers
from headway.gateway.budgets.saved_budgets import restore, saved_in_steps
from headway.gateway.openai.endpoints import MESSAGES, Endpoint, endpoint_of
from headway.gateway.openai.error_responses import RETRY_SECONDS_MAX, Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import GatewayRequest, QueuedRequest
from headway.gateway.queueing.served_queues import ServedQueues
from headway.gateway.settings import BudgetSettings, TenantSettings

Budget: TypeAlias = KeyBudget[QueuedRequest]
_EARLIER = Shortage("earlier_requests", None)  # of the same tenant wait beyond its budget
_NO_LIMITS = BudgetSettings()
_SHARE = 2  # requests over budget may fill one part in so many of the queue's bounds
_UNKNOWN_SECONDS = 1.0  # until a request ends, which nothing forecasts
_CHANGED_A_TURN = 500  # each takes some 8 us
_CHANGED_AT_AN_END = 20  # each takes some 40 us; the others follow within a second
_MICROSECONDS = 1_000_000
# Bound once: on Python 3.11 a member of an enum takes forty times as long through its class.
_CANCELLED, _COMPLETED, _TIMEOUT = Outcome.CANCELLED, Outcome.COMPLETED, Reason.REQUEST_TIMEOUT


class BudgetAccounts:
    """One per process, beside the queues. `clock` gives seconds, `wall_clock` those of the calendar.

    `over_budget` counts requests by the key of `[tenant.budget]` that they were beyond, and what followed: "refused" or
    "waits". `corrected_tokens` are those given back ("returned") and those debited beyond the prediction ("added").
    """

    def __init__(
        self,
        tenants: Sequence[TenantSettings],
        served: ServedQueues,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
        go_on_soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`go_on_soon`: see `QueueHooks`."""
        self.budgets: dict[str, Budget] = {}
        self.over_budget: Counter[tuple[str, str]] = Counter()
        self.corrected_tokens: Counter[str] = Counter()
        self._served = served
        self._clock = clock
        self._wall_clock = wall_clock
        self._with_waiters: dict[int, Budget] = {}  # by identity
        self._to_change: dict[str, BudgetSettings] = {}  # by tenant: that of the latest reload, where it may be another
        self._go_on_soon: Callable[[Callable[[], None]], object] | None = None
        self.change(tenants)  # whole: nothing is served yet
        self._go_on_soon = go_on_soon

    def change(self, tenants: Sequence[TenantSettings]) -> None:
        """Other budgets from now on; what was used stays used, by the tenants' names.

        Each is changed before its tenant's next request is judged, or some turns of the event loop later.
        """
        is_changing = bool(self._to_change)
        self._to_change = dict.fromkeys(self.budgets, _NO_LIMITS)  # those that wait for one that goes are within
        self._to_change |= {tenant.name: tenant.budget for tenant in tenants}
        if not is_changing:
            self._change_some()

    def _change_some(self) -> None:
        for number, name in enumerate(list(self._to_change), 1):
            self._change_one(name)
            if self._go_on_soon is not None and number >= _CHANGED_A_TURN and self._to_change:
                self._go_on_soon(self._change_some)
                return

    def _change_one(self, name: str) -> None:
        settings, budget = self._to_change.pop(name), self.budgets.get(name)
        if settings == _NO_LIMITS:
            if budget is not None:
                del self.budgets[name]
                budget.change(settings, self._now_us())
        elif budget is None:
            self.budgets[name] = KeyBudget(settings)
        elif budget.settings != settings:
            budget.change(settings, self._now_us())

    def _budget_of(self, name: str) -> Budget | None:
        """As the latest reload has it; None where the tenant has none."""
        if name in self._to_change:
            self._change_one(name)
        return self.budgets.get(name)

    # The way in

    def enter(self, queued: QueuedRequest) -> Refusal | None:
        """Debit a request that may wait otherwise, or let it wait beyond its budget; or why neither can be."""
        arrived = queued.arrived
        budget = self._budget_of(arrived.payer)
        if budget is None:
            return None
        now_us = self._now_us()
        output_tokens = 0.0
        if budget.counts_tokens and arrived.endpoint.is_generation:  # else its answer is no tokens
            queue = self._served.queue_of(queued)
            output_tokens = queue.expected_output_tokens(queued)
            queued.queue_key = queue.key
        charged = budget.charge(queued.prompt_tokens, output_tokens)
        if charged is None:
            return self._refusal_of_size(budget, queued, now_us)
        waits = budget.settings.over_budget == "wait"
        if not (waits and budget.waiters) and budget.debit_if_within(charged, now_us):  # older ones come first
            queued.is_debited = True
        else:
            shortage = budget.shortage(charged, now_us) or _EARLIER
            refusal = None if waits else self._refusal(shortage, budget, arrived.endpoint, now_us)
            if waits and self._is_full(queued):
                bound = "requests over budget fill half of the queue (a limit of `queue.max_…`)"
                refusal = self._refusal(shortage, budget, arrived.endpoint, now_us, bound)
            if refusal is not None:
                return refusal
            self.over_budget[shortage.key, "waits"] += 1
            queued.queue_key, queued.is_over_budget = None, True
            budget.waiters[arrived.number] = queued
            self._with_waiters[id(budget)] = budget
        queued.budget, queued.charged_tokens = budget, charged
        arrived.http.reply_headers += self._headers(budget, arrived.endpoint, now_us)
        return None

    def refusal_unread(self, tenant: str, path: str) -> Refusal | None:
        """Why any request of this tenant is over budget and refused, whatever its body says; else None.

        It is told to wait as long as the largest of the tenant's requests so far would have to.
        """
        budget = self._budget_of(tenant)
        if budget is None or budget.settings.over_budget != "refuse":
            return None
        now_us = self._now_us()
        shortage = budget.shortage_of_any(now_us)
        return None if shortage is None else self._refusal(shortage, budget, endpoint_of(path), now_us)

    def _is_full(self, queued: QueuedRequest) -> bool:
        """Whether requests over budget fill their part of the queue."""
        bounds = self._served.settings.queue
        waiting = [queue.waiting for key, queue in self._served.queues.items() if key.is_over_budget]
        if not waiting:
            return False
        return (
            sum(sums.requests for sums in waiting) + 1 > max(1, bounds.max_requests // _SHARE)
            or sum(sums.tokens for sums in waiting) + queued.prompt_tokens > bounds.max_tokens // _SHARE
            or sum(sums.bytes for sums in waiting) + queued.arrived.body_bytes > bounds.max_bytes // _SHARE
        )

    def _refusal(
        self, shortage: Shortage, budget: Budget, endpoint: Endpoint, now_us: int, bound: str | None = None
    ) -> Refusal:
        self.over_budget[shortage.key, "refused"] += 1
        limit = getattr(budget.settings, shortage.key, None)
        message = bound or f"this API key has used up its budget: its limit is {limit:,} `{shortage.key}`"
        seconds = _UNKNOWN_SECONDS if shortage.wait_us is None else shortage.wait_us / _MICROSECONDS
        # Not bounded as other delays are: a client that came back sooner would only be refused again.
        retry = (
            (b"retry-after", b"%d" % math.ceil(seconds)),
            (b"retry-after-ms", b"%d" % math.ceil(seconds * 1_000)),
        )
        # Longer than a call should sleep: anthropic-python would, for a day if told to.
        final = ((b"x-should-retry", b"false"),) if seconds > RETRY_SECONDS_MAX else ()
        headers = (*retry, *final, *self._headers(budget, endpoint, now_us))
        return Refusal(429, message, Reason.OVER_BUDGET, headers=headers)

    def _refusal_of_size(self, budget: Budget, queued: QueuedRequest, now_us: int) -> Refusal:
        settings = budget.settings
        key = min(
            (key for key in ("tokens_per_minute", "tokens_per_day") if getattr(settings, key) is not None),
            key=lambda key: getattr(settings, key),
        )
        self.over_budget[key, "refused"] += 1
        message = (
            f"the prompt has about {queued.prompt_tokens:,} tokens, more than this API key's budget ever allows: its "
            f"limit is {getattr(settings, key):,} `{key}`"
        )
        headers = ((b"x-should-retry", b"false"), *self._headers(budget, queued.arrived.endpoint, now_us))
        return Refusal(429, message, Reason.OVER_BUDGET, headers=headers)

    def _headers(self, budget: Budget, endpoint: Endpoint, now_us: int) -> RateLimitHeaders:
        ours = rate_limit_headers(budget, now_us)
        return ours if endpoint is not MESSAGES else (*ours, *anthropic_headers(budget, now_us, self._wall_clock))

    # The way on

    def sent(self, queued: QueuedRequest) -> None:
        """A request leaves its queue for a replica; one that is still over budget takes a place and no tokens."""
        budget = queued.budget
        if budget is not None and budget.waiters.pop(queued.arrived.number, None) is not None:
            budget.inside += 1

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """A request has ended: replace what was predicted by what it used. It may let others of its tenant come in."""
        queued = request.queued
        budget = queued.budget
        if budget is None:
            return
        if queued.is_debited:
            now_us = self._now_us()
            if queued.replica is None:
                budget.refund(queued.charged_tokens, now_us)
            elif not budget.counts_tokens:
                budget.correct(0, 0, now_us)
            else:
                used = _used_tokens(request, outcome, reason)
                more = used - queued.charged_tokens
                self.corrected_tokens["added" if more > 0 else "returned"] += abs(more)
                budget.correct(queued.charged_tokens, used, now_us)
        elif budget.waiters.pop(queued.arrived.number, None) is None and queued.replica is not None:
            budget.inside -= 1
        for _ in range(_CHANGED_AT_AN_END if budget.waiters else 0):
            if not self._changes_queues(budget, now):
                break

    def change_queues(self, now: float) -> Iterator[None]:
        """Debit the waiting requests that are within their budgets by now: they go over to the others' queues.

        One at a step, since a budget that is lifted lets in thousands. Once a second; at the end of a request some of
        its own tenant's besides.
        """
        for identity, budget in list(self._with_waiters.items()):
            while self._changes_queues(budget, now):
                yield
            if not budget.waiters:
                del self._with_waiters[identity]
            yield

    def _changes_queues(self, budget: Budget, now: float) -> bool:
        """Debit the oldest request that waits beyond a budget; False if it is not within by now, or there is none."""
        queued = next(iter(budget.waiters.values()), None)
        if queued is None:
            return False
        queued.charged_tokens = budget.bounded(queued.charged_tokens)
        if not budget.debit_if_within(queued.charged_tokens, self._now_us()):
            return False
        del budget.waiters[queued.arrived.number]
        queued.is_debited = True
        self._served.queue_of(queued).cancel(queued, now)
        queued.queue_key, queued.is_over_budget = None, False
        self._served.queue_of(queued).arrive(queued, now)
        # Its wait so far was for its budget, and tells nothing of this queue's speed.
        queued.drain_seconds = queued.predicted_wait_seconds = None
        return True

    # Over a restart

    def saved_in_steps(self) -> Iterator[dict[str, dict[str, object]]]:
        """Their part of the state file."""
        return saved_in_steps(self.budgets, lambda: (self._now_us(), self._unix_us()))

    def restore(self, saved: object) -> None:
        """Take it back. Raises ValueError, one sentence, if it cannot be read."""
        restore(self.budgets, saved, self._now_us(), self._unix_us())

    def _now_us(self) -> int:
        return int(self._clock() * _MICROSECONDS)

    def _unix_us(self) -> int:
        return int(self._wall_clock() * _MICROSECONDS)


def _used_tokens(request: GatewayRequest, outcome: Outcome, reason: Reason | None) -> int:
    """Tokens that a request used at its replica: as counted there, else as far as it is known to have come."""
    relayed, queued = request.relayed, request.queued
    if relayed.usage is not None:
        return relayed.usage.prompt_tokens + relayed.usage.output_tokens
    if (
        outcome is _COMPLETED
        and relayed.status == 200
        and not relayed.events
        and request.arrived.endpoint.is_generation
    ):
        return queued.charged_tokens  # an answer in the background, say, whose tokens are not computed yet
    # Its client left, or named a time that was too short, while the replica computed; or it got some of an answer.
    if outcome is _CANCELLED or reason is _TIMEOUT or relayed.events or relayed.status == 200:
        return queued.prompt_tokens + relayed.events
    return 0
