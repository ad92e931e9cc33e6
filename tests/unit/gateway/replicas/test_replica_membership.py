"""Membership: what is remembered of a replica that left, for how long, and of how many."""

from __future__ import annotations

import asyncio

import pytest

from headway.gateway.replicas import replica_membership
from headway.gateway.replicas.replica_membership import ReplicaMembership, WantedReplica
from headway.gateway.replicas.replica_state import Health
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings, ReplicaSettings
from tests.support.estimated_request import estimated_request

HEALTH = HealthSettings()


class Seconds:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def wanted(*ports: int) -> list[WantedReplica]:
    return [WantedReplica(ReplicaSettings(f"http://127.0.0.1:{port}"), "a file") for port in ports]


def members(clock: Seconds) -> ReplicaMembership:
    return ReplicaMembership(lambda one: UpstreamReplica(one, HEALTH, clock), lambda: None, clock)


def test_one_that_returns_in_time_is_the_same_and_its_health_is_not_known() -> None:
    async def scenario() -> None:
        clock = Seconds()
        membership = members(clock)
        assert membership.take(wanted(1, 2), HEALTH)
        assert not membership.take(wanted(2, 1), HEALTH), "none came or went"
        first = membership.replicas[1]
        first.state.health, first.state.failures, first.state.ejections = Health.UP, 3, 4
        first.ledger.confirmed.answered([1], [100], 50, 0, clock())
        assert membership.take(wanted(2), HEALTH)
        assert first.state.health is Health.LEAVING
        membership.sweep()
        clock.now += 59
        membership.sweep()
        membership.take(wanted(1, 2), HEALTH)
        assert membership.replicas[0] is first
        assert (first.state.health, first.state.failures, first.state.ejections) == (Health.UNKNOWN, 0, 0)
        assert len(first.ledger.confirmed) == 1, "its cache is believed to hold what it held a minute ago"
        membership.take(wanted(2), HEALTH)
        clock.now += 61
        membership.sweep()
        assert len(first.ledger.confirmed) == 0
        membership.take(wanted(1, 2), HEALTH)
        assert membership.replicas[0] is first
        membership.take(wanted(2), HEALTH)
        clock.now += 601
        membership.sweep()
        membership.take(wanted(1, 2), HEALTH)
        assert membership.replicas[0] is not first
        await asyncio.gather(*membership.cancel(), return_exceptions=True)

    asyncio.run(scenario())


def test_what_left_is_remembered_within_a_bound_but_never_forgotten_with_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_membership, "_REMEMBERED_MAX", 3)

    async def scenario() -> None:
        clock = Seconds()
        membership = members(clock)
        membership.take(wanted(*range(1, 11)), HEALTH)
        busy = membership.replicas[0]
        request = estimated_request(1)
        busy.ledger.enter(request)
        membership.take([], HEALTH)
        membership.sweep()
        assert len(membership._gone) == 4
        assert membership.leaving == [busy]
        clock.now += 10_000
        membership.sweep()
        assert list(membership._gone) == [busy.settings]
        busy.ledger.leave(request)
        membership.sweep()
        assert not membership._gone
        await asyncio.gather(*membership.cancel(), return_exceptions=True)

    asyncio.run(scenario())


def test_a_drained_replica_is_still_drained_when_it_returns() -> None:
    async def scenario() -> None:
        membership = members(Seconds())
        membership.take(wanted(1, 2), HEALTH)
        membership.replicas[0].is_drained = True
        membership.take(wanted(1), HEALTH)
        assert membership.replicas[0].is_drained
        membership.take(wanted(2), HEALTH)
        membership.take(wanted(1, 2), HEALTH)
        assert [one.is_drained for one in membership.replicas] == [True, False]
        membership.replicas[0].is_drained = False
        membership.take(wanted(1, 2, 3), HEALTH)
        assert [one.is_drained for one in membership.replicas] == [False, False, False]
        await asyncio.gather(*membership.cancel(), return_exceptions=True)

    asyncio.run(scenario())
