"""What orderings by tenant have in common: accounts choose the tenant, any ordering stands inside a tenant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Generic, TypeVar, cast

from headway.domain.event import Event
from headway.domain.request import RequestView
from headway.policies.contracts import (
    LanedOrdering,
    LaneId,
    OrderingPolicy,
    Rank,
    RedrawnOrdering,
    follows_what_is_learned,
)
from headway.policies.event_fanout import EventFanout
from headway.policies.tenant_accounts import TenantAccounts

AccountsT = TypeVar("AccountsT", bound=TenantAccounts)


class TenantOrdering(Generic[AccountsT]):
    """A lane for each tenant and each lane of the inner ordering; subclasses choose the tenant."""

    def __init__(self, accounts: AccountsT, inner: OrderingPolicy) -> None:
        self._accounts = accounts
        self._inner = inner
        self._laned = self._inner if isinstance(self._inner, LanedOrdering) else None
        self._redrawn = self._inner if isinstance(self._inner, RedrawnOrdering) else None
        self._inner_listeners = EventFanout(self._inner).listeners

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

    def observe(self, event: Event) -> None:
        """Keep the accounts; pass every event on to the inner ordering."""
        self._accounts.observe(event)
        for listener in self._inner_listeners:
            listener.observe(event)

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

    def _inner_choice(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The lane that the inner ordering serves next, of one tenant's."""
        return None if self._laned is None else self._laned.choose(heads, now)

    def _inner_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """When the inner ordering may choose otherwise among one tenant's lanes."""
        return math.inf if self._laned is None else self._laned.next_change(heads, now)


def by_tenant(heads: Mapping[LaneId, RequestView]) -> dict[str, dict[LaneId, RequestView]]:
    """Each tenant's heads by the lane that the inner ordering gave."""
    tenants: dict[str, dict[LaneId, RequestView]] = {}
    for (tenant, inner), head in cast(Mapping[tuple[str, LaneId], RequestView], heads).items():
        tenants.setdefault(tenant, {})[inner] = head
    return tenants
