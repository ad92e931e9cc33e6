"""Fair share: tenants take turns by the service they were given; any ordering stands inside a tenant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, Preempted
from headway.domain.request import RequestId, RequestView, expected_output_tokens
from headway.policies.contracts import (
    LanedOrdering,
    LaneId,
    Need,
    OrderingPolicy,
    Rank,
    RedrawnOrdering,
    follows_what_is_learned,
)
from headway.policies.event_fanout import EventFanout
from headway.policies.ordering.fcfs import Fcfs

_SWEEP_ABOVE = 64  # tenants remembered before the first sweep for those that can be forgotten
_LONGEST_TOKENS = 2.0**24  # of an output: a larger charge would leave a float no room for the small ones
_IDLE_MAX = 20_000  # tenants that neither wait nor run but are ahead of the others, remembered after a sweep


class FairShare:
    """The tenant with the least service first; any ordering inside a tenant.

    Idea: count the service each tenant was given, in weighted tokens, and serve the waiting tenant with the least. A
        tenant that comes back from idling starts at the level of the others: absence earns no credit. Fairness picks
        the tenant, the inner ordering picks the request (`fair-share/smallest-volume-first`; FCFS if none is named).
    Source: the predicted variant of VTC, arXiv 2401.00588: w_p = 1 per prompt token and w_q = 2 per expected output
        token at admission, corrected when the true length is known. Deviations: cached prompt tokens are free; an
        overrun is charged at completion, not token by token; the length comes from the predictor in use, not from a
        moving average per client; recomputing after a preemption is the operator's fault and is not charged; a
        cancelled request gets back what it did not receive; idle tenants are forgotten once the others have caught up
        with them, and of more than 20,000 those least ahead; shares may be weighted (`tenant_weights`, 1 unless given;
        2 is entitled to twice the service).
    Reads: the tenant, prompt length, cached prompt tokens, the length estimate, every admission and end, and what the
        inner ordering reads.
    Wins when: one tenant floods the queue and others should not pay for it: two tenants that both keep requests
        waiting differ in service by at most the largest single charge, plus the errors of the estimates of all
        requests that ended meanwhile; where a client leaves, what was expected of it and did not come is such an error.
    Loses when: there is one tenant (it is the inner ordering then), or one person poses as many tenants; and while
        lengths are overestimated: a tenant that comes back is lifted to charges of which those running get a part back
        at their end, and waits until they have used it up.
    """

    NEEDS = frozenset([Need.CACHED_TOKENS])

    def __init__(
        self,
        *,
        inner: OrderingPolicy | None = None,
        prompt_weight: float = 1.0,
        output_weight: float = 2.0,
        tenant_weights: Mapping[str, float] | None = None,
    ) -> None:
        if not (0 <= prompt_weight < math.inf and 0 <= output_weight < math.inf and prompt_weight + output_weight > 0):
            raise ValueError(
                "prompt_weight and output_weight must be at least 0 and not both 0, "
                f"got {prompt_weight:g} and {output_weight:g}"
            )
        for tenant, weight in (tenant_weights or {}).items():
            if not 0 < weight < math.inf:
                raise ValueError(f"tenant_weights must be above 0, got {weight:g} for tenant {tenant!r}")
        self._inner: OrderingPolicy = Fcfs() if inner is None else inner
        self._laned = self._inner if isinstance(self._inner, LanedOrdering) else None
        self._redrawn = self._inner if isinstance(self._inner, RedrawnOrdering) else None
        self._inner_listeners = EventFanout(self._inner).listeners
        self._ledger = _Ledger(prompt_weight, output_weight, dict(tenant_weights or {}))

    @property
    def follows_what_is_learned(self) -> bool:
        """Whether the inner ordering does."""
        return follows_what_is_learned(self._inner)

    @property
    def redrawn(self) -> int:
        """How often the inner ordering redrew its lanes; 0 for one that never does."""
        return 0 if self._redrawn is None else self._redrawn.redrawn

    def lane(self, request: RequestView) -> tuple[str, LaneId]:
        """The tenant, and the lane the inner ordering gives."""
        return request.tenant, None if self._laned is None else self._laned.lane(request)

    def rank(self, request: RequestView) -> Rank:
        """The inner ordering's."""
        return self._inner.rank(request)

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The waiting tenant with the least service; of equals the one whose head came first."""
        tenant = self._least_served(heads)
        if self._laned is None:
            return tenant, None
        return tenant, self._laned.choose(_inner_heads(heads, tenant), now)

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """The inner ordering's for the tenant chosen: counters move with events only, not with time."""
        if self._laned is None:
            return math.inf
        return self._laned.next_change(_inner_heads(heads, self._least_served(heads)), now)

    def observe(self, event: Event) -> None:
        """Keep the accounts; pass every event on to the inner ordering."""
        self._ledger.observe(event)
        for listener in self._inner_listeners:
            listener.observe(event)

    def service(self, tenant: str) -> float:
        """The tenant's counter, weighted tokens over its weight; counts from where it was last lifted to."""
        return self._ledger.service(tenant)

    def share_accounts(self, other: FairShare) -> None:
        """Keep the accounts together with `other`, of another queue: a tenant's share then holds over both.

        Called before the first request. Request ids must differ over both queues.
        """
        self._ledger = other._ledger

    def _least_served(self, heads: Mapping[LaneId, RequestView]) -> str:
        lanes = cast(Mapping[tuple[str, LaneId], RequestView], heads)
        service = self._ledger.service
        given = {tenant: service(tenant) for tenant in dict.fromkeys([tenant for tenant, _ in lanes])}
        _, _, least_served = min([(given[tenant], head.arrived_at, tenant) for (tenant, _), head in lanes.items()])
        return least_served


def _inner_heads(heads: Mapping[LaneId, RequestView], tenant: str) -> dict[LaneId, RequestView]:
    lanes = cast(Mapping[tuple[str, LaneId], RequestView], heads)
    return {inner: head for (owner, inner), head in lanes.items() if owner == tenant}


class _Account:
    """One tenant: what it was given, and how many of its requests wait and run."""

    __slots__ = ("running", "service", "waiting", "weight")

    def __init__(self, service: float, weight: float) -> None:
        self.service = service
        self.weight = weight
        self.waiting = 0
        self.running = 0


class _Ledger:
    """The tenants' accounts, kept by events."""

    def __init__(self, prompt_weight: float, output_weight: float, tenant_weights: dict[str, float]) -> None:
        self._prompt_weight = prompt_weight
        self._output_weight = output_weight
        self._tenant_weights = tenant_weights
        self._accounts: dict[str, _Account] = {}
        self._backlogged: dict[str, _Account] = {}  # tenants with waiting requests
        self._last_departed: _Account | None = None  # the last tenant to have no waiting request any more
        self._expected: dict[RequestId, float] = {}  # output tokens charged, of every request admitted and not ended
        self._preempted: set[RequestId] = set()  # of those, the ones that wait again
        self._sweep_above = _SWEEP_ABOVE

    def service(self, tenant: str) -> float:
        account = self._accounts.get(tenant)
        return self._level() if account is None else account.service

    def observe(self, event: Event) -> None:
        match event:
            case Arrived(request=request):
                self._wait(self._account(request.tenant), request.tenant)
            case Admitted(request=request):
                account = self._account(request.tenant)
                self._stop_waiting(account, request.tenant)
                account.running += 1
                if request.id in self._preempted:
                    self._preempted.remove(request.id)  # paid for already
                else:
                    self._charge(account, request)
            case Preempted(request=request):
                account = self._account(request.tenant)
                account.running -= 1
                self._preempted.add(request.id)
                self._wait(account, request.tenant)
            case Completed(request=request, output_tokens=output_tokens):
                account = self._account(request.tenant)
                if request.id in self._preempted:  # its last token was on its way when it was preempted
                    self._stop_waiting(account, request.tenant)
                else:
                    account.running -= 1
                self._settle(account, request, output_tokens)
            case Cancelled(request=request):
                self._cancel(request)
            case _:
                pass  # a refused request never waited, and first tokens are not what is counted

    def _account(self, tenant: str) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            if len(self._accounts) >= self._sweep_above:
                self._forget_idle()
            account = _Account(0.0, self._tenant_weights.get(tenant, 1.0))
            self._accounts[tenant] = account
        return account

    def _wait(self, account: _Account, tenant: str) -> None:
        """One more waits. A tenant that had no waiting request is lifted to the level of those that had."""
        if account.waiting == 0:
            account.service = max(account.service, self._level())
            self._backlogged[tenant] = account
        account.waiting += 1

    def _stop_waiting(self, account: _Account, tenant: str) -> None:
        account.waiting -= 1
        if account.waiting == 0:
            del self._backlogged[tenant]
            self._last_departed = account

    def _level(self) -> float:
        """Where a newcomer starts: the least served of those waiting, else the last that waited (VTC, Algorithm 2)."""
        if self._backlogged:
            return min([account.service for account in self._backlogged.values()])
        return 0.0 if self._last_departed is None else self._last_departed.service

    def _charge(self, account: _Account, request: RequestView) -> None:
        expected = min(_LONGEST_TOKENS, expected_output_tokens(request)) * request.sequences
        self._expected[request.id] = expected
        prompt = max(0, request.prompt_tokens - request.cached_prompt_tokens)
        account.service += (self._prompt_weight * prompt + self._output_weight * expected) / account.weight

    def _settle(self, account: _Account, request: RequestView, output_tokens: int) -> None:
        """Replace the expected output by the true one."""
        self._preempted.discard(request.id)
        expected = self._expected.pop(request.id, None)
        if expected is not None:
            account.service += self._output_weight * (output_tokens * request.sequences - expected) / account.weight

    def _cancel(self, request: RequestView) -> None:
        account = self._account(request.tenant)
        if request.id in self._expected and request.id not in self._preempted:
            account.running -= 1
        else:
            self._stop_waiting(account, request.tenant)
        self._settle(account, request, request.produced_tokens)

    def _forget_idle(self) -> None:
        """Drop idle tenants whose counter a newcomer's would equal or pass: coming back, they would be lifted to it."""
        level = self._level()
        for tenant, account in list(self._accounts.items()):
            idle = account.waiting == 0 and account.running == 0
            if idle and account.service <= level and account is not self._last_departed:
                del self._accounts[tenant]
        self._forget_the_least_ahead()
        self._sweep_above = max(_SWEEP_ABOVE, 2 * len(self._accounts))

    def _forget_the_least_ahead(self) -> None:
        """Of idle tenants still ahead, keep at most `_IDLE_MAX`: tenants that would gain least by coming back go."""
        ahead = [
            (account.service, tenant)
            for tenant, account in self._accounts.items()
            if account.waiting == 0 and account.running == 0 and account is not self._last_departed
        ]
        for _, tenant in sorted(ahead)[: max(0, len(ahead) - _IDLE_MAX)]:
            del self._accounts[tenant]
