"""The policies of one queue, made from its settings, and what listens beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headway.domain.event import Event, Listener
from headway.gateway.queueing.internal_errors import InternalErrors
from headway.gateway.settings import PolicySettings
from headway.policies.catalog import KINDS
from headway.policies.tenant_ordering import TenantOrdering
from headway.scheduling.bundle import bundle
from headway.scheduling.scheduler import Policies


class SharedAccounts:
    """Makes an ordering by tenant one policy over all queues: their tenants' accounts are kept together."""

    def __init__(self) -> None:
        self._first: TenantOrdering[Any] | None = None
        self.are_shared = False  # by two queues or more: the events of one move the choices of all

    def join(self, ordering: object) -> None:
        """A queue's fresh ordering."""
        if isinstance(ordering, TenantOrdering):
            if self._first is None:
                self._first = ordering
            else:
                ordering.share_accounts(self._first)
                self.are_shared = True


class ContainedListener:
    """A listener beside the policies, which may retune the ordering; what it raises is contained."""

    def __init__(self, inner: Listener, errors: InternalErrors, heard: Callable[[], None]) -> None:
        self._inner = inner
        self._errors = errors
        self._heard = heard

    def observe(self, event: Event) -> None:
        """Pass an event on."""
        self._errors.guard("tuning", self._inner.observe, event)
        self._heard()


def policies_of(settings: PolicySettings) -> Policies:
    """Fresh policies by the names and options of the settings."""
    options: dict[str, Mapping[str, Any]] = {kind: settings.options[kind] for kind in KINDS if kind in settings.options}
    return bundle(
        ordering=settings.ordering,
        admission=settings.admission,
        preemption=settings.preemption,
        prediction=settings.prediction,
        offline_ordering=settings.offline_ordering,
        options=options,
        costs=settings.costs,
        seed=settings.seed,
    )
