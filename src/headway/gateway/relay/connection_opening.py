"""Connecting: opens a connection to a replica, and tells a replica that cannot be reached from a lack of our own."""

from __future__ import annotations

import asyncio

from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.wire.name_lookup import is_ours
from headway.gateway.wire.upstream_connection import UpstreamConnection

_SHORTAGE_SECONDS = 0.25  # between two tries to connect while descriptors or ports are lacking here


async def opened(
    request: GatewayRequest, replica: UpstreamReplica, dispatcher: Dispatcher
) -> UpstreamConnection | None:
    """A new connection; None if the replica cannot be reached. Waits while it is our own lack that prevents it."""
    while True:
        try:
            return await replica.pool.open()
        except OSError as error:
            if not is_ours(error):
                replica.unreachable(error)
            elif _may_wait(request, dispatcher, error):
                await asyncio.sleep(_SHORTAGE_SECONDS)
                continue
            return None


def _may_wait(request: GatewayRequest, dispatcher: Dispatcher, error: OSError) -> bool:
    """Whether to try again to connect, for which something is lacking here: descriptors, memory or ports."""
    now = dispatcher.now()
    dispatcher.shortages.note(error, now)
    return now - request.arrived.arrived_at < dispatcher.settings.queue.timeout_seconds
