"""What all clients hold together: who counts with whom, and what becomes of those beyond a limit."""

from __future__ import annotations

import resource

import pytest

from headway.gateway.wire.limits import WireLimits, within_descriptors
from headway.gateway.wire.shared_limits import SharedLimits


@pytest.mark.parametrize(
    ("address", "neighbour", "is_other"),
    [
        ("10.0.0.1", "10.0.0.2", True),
        ("2001:db8::1", "2001:db8::ffff:2", False),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", True),
        ("fe80::1%eth0", "fe80::2%eth1", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", True),
    ],
)
def test_a_client_of_ipv6_counts_with_its_network(address: str, neighbour: str, is_other: bool) -> None:
    shared = SharedLimits(WireLimits(address_connections=1))
    first = shared.take(address)
    assert first.fault is None
    assert (shared.take(neighbour).fault is None) == is_other
    for _ in range(2):  # it leaves once
        first.leave()
    assert [shared.take(address).fault is None for _ in range(2)] == [True, False]


def test_only_so_many_refused_connections_are_told_why() -> None:
    shared = SharedLimits(WireLimits(connections=16, address_connections=0))
    refused = [shared.take("10.0.0.1") for _ in range(5)]
    assert all("0 open connections" in str(place.fault) for place in refused)
    assert [place.may_be_told for place in refused] == [True, True, True, False, False]
    for place in refused[:3]:
        place.leave()
    assert shared.take("10.0.0.1").may_be_told
    assert shared.connections == 0


@pytest.mark.parametrize(
    ("descriptors", "most"), [(100, 75), (1, 1), (1 << 20, 1_000), (resource.RLIM_INFINITY, 1_000)]
)
def test_connections_leave_descriptors_for_the_replicas(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert within_descriptors(WireLimits(connections=1_000), 0.75).connections == most
