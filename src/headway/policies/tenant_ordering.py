"""What orderings by tenant have in common: accounts choose the tenant, any ordering stands inside a tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar, cast

from headway.domain.event import Event
from headway.domain.request import RequestView
from headway.policies.contracts import LaneId, OrderingPolicy, Rank
from headway.policies.inner_ordering import OrderingWithInner
from headway.policies.tenant_accounts import TenantAccounts

AccountsT = TypeVar("AccountsT", bound=TenantAccounts)


class TenantOrdering(OrderingWithInner, Generic[AccountsT]):
    """A lane for each tenant and each lane of the inner ordering; subclasses choose the tenant."""

    def __init__(self, accounts: AccountsT, inner: OrderingPolicy) -> None:
        super().__init__(inner)
        self._accounts = accounts

    def lane(self, request: RequestView) -> tuple[str, LaneId]:
        """The tenant, and the lane the inner ordering gives."""
        return request.tenant, self._inner_lane(request)

    def rank(self, request: RequestView) -> Rank:
        """The inner ordering's."""
        return self._inner.rank(request)

    def observe(self, event: Event) -> None:
        """Keep the accounts; pass every event on to the inner ordering."""
        self._accounts.observe(event)
        self._tell_inner(event)

    def service(self, tenant: str) -> float:
        """The tenant's counter, weighted tokens over its weight; counts from where it was last lifted to."""
        return self._accounts.service(tenant)

    def standing(self, head: RequestView) -> float:
        """Weighted tokens; of the heads of several queues that keep their accounts together the least goes first."""
        return self.service(head.tenant)

    def share_accounts(self, other: TenantOrdering[AccountsT]) -> None:
        """Keep the accounts together with `other`, of another queue: a tenant's share then holds over both.

        Called before the first request. Request ids must differ over both queues, the ordering may not.
        """
        self._accounts = other._accounts


def by_tenant(heads: Mapping[LaneId, RequestView]) -> dict[str, dict[LaneId, RequestView]]:
    """Each tenant's heads by the lane that the inner ordering gave."""
    tenants: dict[str, dict[LaneId, RequestView]] = {}
    for (tenant, inner), head in cast(Mapping[tuple[str, LaneId], RequestView], heads).items():
        tenants.setdefault(tenant, {})[inner] = head
    return tenants
