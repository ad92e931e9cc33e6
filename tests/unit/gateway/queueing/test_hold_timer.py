"""The hold timer asks once, at the earliest end of a refusal, and not at all for those that are looked at anyway."""

from __future__ import annotations

import asyncio

import pytest

from headway.gateway.queueing.hold_timer import HoldTimer
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings, ReplicaSettings
from headway.policies.contracts import UNTIL_THE_BATCH_CHANGES


def test_it_asks_at_the_earliest_end() -> None:
    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        replica = UpstreamReplica(ReplicaSettings(url="http://r:1"), HealthSettings(), loop.time)
        replica.ledger.clock.step_seconds = 0.02
        asked: list[float] = []
        timer = HoldTimer(loop.time, lambda: asked.append(loop.time() - began))
        timer.held(replica, UNTIL_THE_BATCH_CHANGES)
        assert timer._timer is None
        timer.held(replica, 20)
        timer.held(replica, 5)
        timer.held(replica, 10)
        await asyncio.sleep(0.3)
        timer.held(replica, 1)
        timer.close()
        await asyncio.sleep(0.1)
        return asked

    (asked,) = asyncio.run(scenario())
    assert asked == pytest.approx(0.1, abs=0.08)
