"""The register: whatever sources find, each address and each name is there once, and bounds hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.gateway.discovery import replica_register
from headway.gateway.discovery.replica_register import FollowedSource, ReplicaRegister
from headway.gateway.discovery.replica_source import Findings, FoundReplica, SourceReport
from headway.gateway.settings import ReplicaSettings, ReplicaSourceSettings, Settings
from headway.gateway.settings_file import address_of, replica_name, template_of

FOUND = st.builds(
    FoundReplica,
    st.sampled_from(["10.0.0.1", "10.0.0.2", "engine.test"]),
    st.integers(8000, 8002),
    st.sampled_from(["", "a", "b", "10.0.0.1:8000"]),
)
CONFIGURED = st.lists(
    st.sampled_from([("http://10.0.0.1:8000", "a"), ("http://10.0.0.2:8001", ""), ("http://engine.test:8002", "b")]),
    unique=True,
)


def registered(
    found: Sequence[frozenset[FoundReplica]], configured: Sequence[tuple[str, str]] = (), most: int = 256
) -> ReplicaRegister:
    register = ReplicaRegister(lambda: None)
    register._configured = tuple(ReplicaSettings(url, name=name) for url, name in configured)
    for number, each in enumerate(found):
        chosen = ReplicaSourceSettings(dns=f"e{number}:1", replicas_max=most, each={"max_requests": 7})
        source = FollowedSource(chosen, SourceReport(chosen.label), template_of("x", chosen))
        register.sources.append(source)
        register._take(source, Findings(each))
    return register


@given(st.lists(st.frozensets(FOUND), max_size=3), CONFIGURED, st.integers(1, 4))
@settings(deadline=None)
def test_addresses_and_names_are_there_once_and_bounds_hold(
    found: list[frozenset[FoundReplica]], configured: list[tuple[str, str]], most: int
) -> None:
    register = registered(found, configured, most)
    wanted = register.wanted()
    addresses = [address_of(one.settings.url) for one in wanted]
    names = [replica_name(one.settings) for one in wanted]
    assert len(set(addresses)) == len(addresses)
    assert len(set(names)) == len(names)
    assert [one.settings.url for one in wanted[: len(configured)]] == [url for url, _ in configured]
    assert len(wanted) <= len(configured) + most * len(found)
    if most == 4 and len(found) == 1 and len(found[0]) <= most and not configured:
        assert set(addresses) == {address_of(one.url) for one in found[0]}
    for one in wanted[len(configured) :]:
        assert one.settings.max_requests == 7


def test_what_cannot_be_used_here_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def check(replica: ReplicaSettings) -> None:
        if "test" in replica.url:
            raise ValueError("not here")

    register = registered([])
    register._check_found = check
    chosen = ReplicaSourceSettings(srv="x")
    source = FollowedSource(chosen, SourceReport(chosen.label), template_of("x", chosen))
    register.sources.append(source)
    one, other = FoundReplica("10.0.0.1", 1), FoundReplica("engine.test", 1)
    for port in (1, 2):
        register._take(source, Findings(frozenset([FoundReplica("10.0.0.1", port), other])))
        assert [wanted.settings.url for wanted in register.wanted()] == [f"http://10.0.0.1:{port}"]
    assert caplog.text.count("left out: not here") == 1
    assert one.url == "http://10.0.0.1:1"


def test_a_fault_of_ours_ends_nothing_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replica_register, "_AGAIN_SECONDS", 0.01)
    changes: list[int] = []

    def fails_once() -> None:
        changes.append(len(register.wanted()))
        if len(changes) == 1:
            raise RuntimeError("a fault of ours")

    register = ReplicaRegister(fails_once)

    async def scenario() -> None:
        register.replace(Settings(replica_source=(ReplicaSourceSettings(dns="127.0.0.1:8000"),)))
        async with asyncio.timeout(20):
            while len(changes) < 2:
                await asyncio.sleep(0.01)
        await asyncio.gather(*register.cancel(), return_exceptions=True)

    asyncio.run(scenario())
    assert changes == [1, 1]
    assert "a fault of ours" in caplog.text


def test_an_empty_first_list_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "headway.gateway")
    registered([frozenset()])
    assert "dns e0:1 names no replica as yet" in caplog.text


def test_of_a_very_long_list_only_what_may_be_used_is_looked_at() -> None:
    """To look at a replica takes some 30 us, for which everything else waits."""
    looked_at: list[str] = []

    def check(replica: ReplicaSettings) -> None:
        looked_at.append(replica.url)
        if ":7/" in replica.url + "/":
            raise ValueError("not here")

    chosen = ReplicaSourceSettings(dns="x:1", replicas_max=5)
    source = FollowedSource(chosen, SourceReport(chosen.label), template_of("x", chosen))
    register = ReplicaRegister(lambda: None, check)
    register.sources.append(source)
    many = [FoundReplica(f"10.0.{number >> 8}.{number & 255}", 80) for number in range(9_000)]
    register._take(source, Findings(frozenset(many)))
    assert (len(looked_at), len(register.wanted()), source.left_out) == (5, 5, 8_995)
    register._take(source, Findings(frozenset(many[1:])))
    assert (len(looked_at), len(register.wanted()), source.left_out) == (6, 5, 8_994)
    looked_at.clear()
    register._take(source, Findings(frozenset(FoundReplica(one.host, 7) for one in many)))
    assert (len(looked_at), register.wanted(), source.left_out) == (1_000, [], 8_000)
