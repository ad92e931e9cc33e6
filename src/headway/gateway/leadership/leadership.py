"""Leadership of one gateway: the lease that its settings ask for, kept while it runs; without one it always serves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from headway.gateway.discovery.kubernetes_api import KubernetesApi
from headway.gateway.leadership.lease import Lease
from headway.gateway.leadership.lease_file import FileLeaseStore
from headway.gateway.leadership.lease_object import ApiLeaseStore
from headway.gateway.settings import LeaseSettings


def chosen_lease(settings: LeaseSettings) -> Lease | None:
    """A fresh one; None where no other gateway is to be reckoned with."""
    if settings.file is not None:
        return Lease(FileLeaseStore(settings.file, settings.seconds), settings.seconds)
    if settings.kubernetes is not None:
        return Lease(ApiLeaseStore(settings.kubernetes, settings.seconds, KubernetesApi()), settings.seconds)
    return None


class Leadership:
    """One per process."""

    def __init__(self, settings: LeaseSettings) -> None:
        self._lease = chosen_lease(settings)
        self._keeping: asyncio.Task[None] | None = None

    def may_serve(self) -> bool:
        """Whether this gateway is the one that serves, or finishes what it has."""
        return self._lease is None or self._lease.may_serve

    def stands_by(self) -> bool | None:
        """Whether another gateway is active; None without a lease."""
        return None if self._lease is None else not self._lease.is_held

    async def start(self) -> None:
        """Take the lease if it is free, and keep it or wait for it."""
        if self._lease is not None:
            await self._lease.look()
            self._keeping = asyncio.create_task(self._lease.keep())

    async def leave(self) -> None:
        """Let another gateway take over, while this one finishes what it has."""
        if self._lease is not None:
            if self._keeping is not None:
                self._keeping.cancel()
                await asyncio.gather(self._keeping, return_exceptions=True)
            await self._lease.leave()

    async def close(self) -> None:
        """After `leave`: let go of what the lease holds open."""
        if self._lease is not None:
            await self._lease.close()

    def metrics(self) -> Iterator[str]:
        """In Prometheus's text format; none without a lease."""
        if self._lease is not None:
            yield from self._lease.metrics()
