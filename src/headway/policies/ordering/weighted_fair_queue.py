"""Weighted fair queue: the tenant whose next request would be done first, had each tenant a machine of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headway.domain.request import RequestView
from headway.policies.contracts import LaneId, Need, OrderingPolicy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.tenant_accounts import TenantAccount, TenantAccounts
from headway.policies.tenant_ordering import TenantOrdering, by_tenant


class WeightedFairQueue(TenantOrdering["VirtualTimeAccounts"]):
    """The tenant whose next request has the least virtual finish time; any ordering inside a tenant.

    Idea: a tenant's virtual finish time is what it was given, plus what its next request will take, over its weight.
        Serving the least of them shares by weight as `fair-share` does, and lets a small request of one tenant pass a
        large one of another. A tenant that comes back from idling starts at the virtual time, which is the greatest
        finish time served so far: absence earns no credit. Fairness picks the tenant, the inner ordering picks the
        request (`weighted-fair-queue/priced-work`; FCFS if none is named).
    Source: UWFQ, arXiv 2510.15485, a scheduler of Spark jobs by users' virtual finish times, with the virtual time of
        self-clocked fair queueing (Golestani, 1994, "A self-clocked fair queueing scheme for broadband applications").
        That needs no rate of service. Deviations: UWFQ takes true run times and splits jobs, an engine's chunked
        prefill does that. Sizes are weighted tokens, 1 per prompt token that is not cached and 2 per expected output
        token, corrected at the end as in `fair-share`. A finish time is worked out when the tenant's turn is, so that
        the inner ordering may put another request first. Shares may be weighted (`tenant_weights`, 1 unless given).
    Reads: the tenant, prompt length, cached prompt tokens, the length estimate, every admission and end, and what the
        inner ordering reads.
    Wins when: one tenant floods the queue, and tenants differ in the size of their requests. Take any time in which two
        tenants both keep requests waiting. Their service over their weights differs by at most the sum of the largest
        charge of each, plus the errors of the estimates of all requests that ended meanwhile.
    Loses when: there is one tenant (it is the inner ordering then), or one person poses as many tenants. Also while
        lengths are overestimated: a tenant that comes back is lifted to charges of which a part is given back.
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
        super().__init__(VirtualTimeAccounts(prompt_weight, output_weight, tenant_weights or {}), inner or Fcfs())

    def standing(self, head: RequestView) -> float:
        """The virtual finish time of the request if its tenant is served next, weighted tokens over its weight."""
        return self.service(head.tenant) + self._accounts.charge_of(head)

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The tenant's lane with the least virtual finish time; of equals the one whose request came first."""
        nexts = []
        for tenant, lanes in by_tenant(heads).items():
            inner = self._inner_choice(lanes, now)
            nexts.append((self.standing(lanes[inner]), lanes[inner].arrived_at, tenant, inner))
        _, _, tenant, inner = min(nexts, key=lambda entry: entry[:3])
        return tenant, inner

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """The earliest at which the inner ordering may choose otherwise in any tenant: that moves finish times."""
        if self._laned is None:
            return math.inf
        return min(self._inner_change(lanes, now) for lanes in by_tenant(heads).values())


class VirtualTimeAccounts(TenantAccounts):
    """Tenants' accounts in which a newcomer starts at the virtual time."""

    def __init__(self, prompt_weight: float, output_weight: float, tenant_weights: Mapping[str, float]) -> None:
        super().__init__(prompt_weight, output_weight, tenant_weights)
        self._virtual_time = 0.0  # greatest finish time served
        self._foremost: TenantAccount | None = None  # the tenant that was served then

    def level(self) -> float:
        """The virtual time, less what was given back since of the charge that set it."""
        return self._virtual_time if self._foremost is None else min(self._virtual_time, self._foremost.service)

    def _charge(self, account: TenantAccount, request: RequestView) -> None:
        super()._charge(account, request)
        if account.service >= self.level():
            self._virtual_time, self._foremost = account.service, account
