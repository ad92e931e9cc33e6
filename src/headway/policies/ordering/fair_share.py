"""Fair share: tenants take turns by the service they were given; any ordering stands inside a tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from headway.domain.request import RequestView
from headway.policies.contracts import LaneId, Need, OrderingPolicy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.tenant_accounts import TenantAccounts
from headway.policies.tenant_ordering import TenantOrdering


class FairShare(TenantOrdering[TenantAccounts]):
    """The tenant with the least service first; any ordering inside a tenant.

    Idea: count the service each tenant was given, in weighted tokens, and serve the waiting tenant with the least. A
        tenant that comes back from idling starts at the level of the others: absence earns no credit. Fairness picks
        the tenant, the inner ordering picks the request (`fair-share/smallest-volume-first`; FCFS if none is named).
    Source: the predicted variant of VTC, arXiv 2401.00588: w_p = 1 per prompt token and w_q = 2 per expected output
        token at admission, corrected when the true length is known. Deviations: cached prompt tokens are free. An
        overrun is charged at completion, not token by token. The length comes from the predictor in use, not from a
        moving average per client. Recomputing after a preemption is the operator's fault and is not charged. A
        cancelled request gets back what it did not receive. Idle tenants are forgotten once the others have caught up
        with them, and of more than 20,000 those least ahead. Shares may be weighted (`tenant_weights`, 1 unless given;
        2 is entitled to twice the service).
    Reads: the tenant, prompt length, cached prompt tokens, the length estimate, every admission and end, and what the
        inner ordering reads.
    Wins when: one tenant floods the queue and others should not pay for it. Two tenants that both keep requests waiting
        differ in service by at most the largest single charge, plus the errors of the estimates of all requests that
        ended meanwhile. Where a client leaves, what was expected of it and did not come is such an error.
    Loses when: there is one tenant (it is the inner ordering then), or one person poses as many tenants. Also while
        lengths are overestimated: a tenant that comes back is lifted to charges of which those running get a part back
        at their end. It waits until they have used it up.
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
        super().__init__(TenantAccounts(prompt_weight, output_weight, tenant_weights or {}), inner or Fcfs())

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The waiting tenant with the least service; of equals the one whose head came first."""
        tenant = self._least_served(heads)
        return tenant, self._inner_choice(_inner_heads(heads, tenant), now)

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """The inner ordering's for the tenant chosen: counters move with events only, not with time."""
        return self._inner_change(_inner_heads(heads, self._least_served(heads)), now)

    def _least_served(self, heads: Mapping[LaneId, RequestView]) -> str:
        lanes = cast(Mapping[tuple[str, LaneId], RequestView], heads)
        service = self._accounts.service
        given = {tenant: service(tenant) for tenant in dict.fromkeys([tenant for tenant, _ in lanes])}
        _, _, least_served = min([(given[tenant], head.arrived_at, tenant) for (tenant, _), head in lanes.items()])
        return least_served


def _inner_heads(heads: Mapping[LaneId, RequestView], tenant: str) -> dict[LaneId, RequestView]:
    lanes = cast(Mapping[tuple[str, LaneId], RequestView], heads)
    return {inner: head for (owner, inner), head in lanes.items() if owner == tenant}
