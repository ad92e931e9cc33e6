"""Names that become replicas, asked of a real name server on the loopback, and of this machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest

from headway.gateway.discovery import dns_source
from headway.gateway.discovery.dns_source import DnsSource, ServerLookup, SrvSource, SystemLookup
from headway.gateway.discovery.replica_source import Findings, LookedAtSource, SourceFault, SourceReport

pytest.importorskip("dns", reason="the extra `dns` is not installed")
import dns.rcode

from tests.support.name_server import NameServer, name_server


def urls(findings: Findings) -> list[str]:
    return sorted(one.url for one in findings.replicas)


async def looked(server: NameServer, name: str = "engines.test:8000") -> list[str]:
    return urls(await DnsSource(name, "http", ServerLookup(server.address)).look())


def test_each_address_is_a_replica_of_one_family() -> None:
    async def scenario() -> None:
        async with name_server() as server:
            server.records[("engines.test", "A")] = ["10.0.0.2", "10.0.0.1"]
            server.records[("engines.test", "AAAA")] = ["2001:db8::1"]
            assert await looked(server) == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
            del server.records[("engines.test", "A")]
            assert await looked(server) == ["http://[2001:db8::1]:8000"]

    asyncio.run(scenario())


@pytest.mark.parametrize("records", [{}, {("engines.test", "TXT"): ['"none"']}])
def test_no_such_name_and_no_such_record_are_answers(records: dict[tuple[str, str], list[str]]) -> None:
    async def scenario() -> None:
        async with name_server() as server:
            server.records |= records
            assert await looked(server) == []

    asyncio.run(scenario())


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, None])
def test_a_failure_and_a_silence_are_no_answers(rcode: dns.rcode.Rcode | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_source, "_SECONDS", 0.5)

    async def scenario() -> None:
        async with name_server() as server:
            server.rcode, server.is_silent = rcode, rcode is None
            with pytest.raises(SourceFault, match=r"A of 'engines\.test' cannot be looked up"):
                await looked(server)

    asyncio.run(scenario())


def test_the_last_list_stays_while_lookups_fail(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="headway.gateway")

    async def scenario() -> None:
        async with name_server() as server:
            server.records[("engines.test", "A")] = ["10.0.0.1"]
            told: list[Findings] = []
            report = SourceReport("dns engines.test:8000")
            source = LookedAtSource(DnsSource("engines.test:8000", "http", ServerLookup(server.address)), 0.02)
            task = asyncio.create_task(source.follow(told.append, report))
            async with asyncio.timeout(20):
                while not told:
                    await asyncio.sleep(0.01)
                server.rcode = dns.rcode.SERVFAIL
                while report.faults < 3:
                    await asyncio.sleep(0.01)
                assert {tuple(urls(one)) for one in told} == {("http://10.0.0.1:8000",)}
                server.rcode = None
                server.records[("engines.test", "A")] = ["10.0.0.9"]
                while urls(told[-1]) != ["http://10.0.0.9:8000"]:
                    await asyncio.sleep(0.01)
            assert not report.fault
            task.cancel()

    asyncio.run(scenario())
    messages = [one.getMessage() for one in caplog.records]
    assert sum("its replicas stay as they are" in one for one in messages) == 1
    assert messages[-1] == "dns engines.test:8000 can be read again"


def test_services_are_found_with_their_ports() -> None:
    async def scenario() -> None:
        async with name_server() as server:
            server.records[("_vllm._tcp.test", "SRV")] = ["0 1 8000 a.test.", "5 0 8001 a.test.", "0 1 8000 b.test."]
            server.records[("a.test", "A")] = ["10.0.0.1"]
            server.records[("b.test", "A")] = ["10.0.0.2", "10.0.0.3"]
            lookup = ServerLookup(server.address)
            found = urls(await SrvSource("_vllm._tcp.test", "http", lookup).look())
            assert found == [
                "http://10.0.0.1:8000",
                "http://10.0.0.1:8001",
                "http://10.0.0.2:8000",
                "http://10.0.0.3:8000",
            ]
            found = urls(await SrvSource("_vllm._tcp.test", "https", lookup).look())
            assert found == ["https://a.test:8000", "https://a.test:8001", "https://b.test:8000"]
            server.records[("_vllm._tcp.test", "SRV")] = ["0 0 0 ."]  # RFC 2782: there is no such service
            assert urls(await SrvSource("_vllm._tcp.test", "http", lookup).look()) == []

    asyncio.run(scenario())


def test_a_target_that_cannot_be_looked_up_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with name_server() as server:
            server.records[("_vllm._tcp.test", "SRV")] = ["0 1 8000 a.test.", "0 1 8000 b.test."]
            server.records[("a.test", "A")] = ["10.0.0.1"]
            lookup = ServerLookup(server.address)
            ask = lookup.addresses

            async def fails_for_b(name: str) -> list[str]:
                if name == "b.test":
                    raise SourceFault("no answer")
                return await ask(name)

            monkeypatch.setattr(lookup, "addresses", fails_for_b)
            with pytest.raises(SourceFault, match="no answer"):
                await SrvSource("_vllm._tcp.test", "http", lookup).look()

    asyncio.run(scenario())


def system_says(monkeypatch: pytest.MonkeyPatch, answer: Sequence[str] | Exception) -> None:
    async def getaddrinfo(*_: object, **__: object) -> list[object]:
        if isinstance(answer, Exception):
            raise answer
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in answer
        ]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)


def test_this_machine_is_asked_as_every_program_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(name: str) -> list[str]:
        return urls(await DnsSource(f"{name}:8000", "http", SystemLookup()).look())

    assert asyncio.run(look("127.0.0.1")) == ["http://127.0.0.1:8000"]
    assert asyncio.run(look("localhost")) == ["http://127.0.0.1:8000"]
    system_says(monkeypatch, ["10.0.0.2", "10.0.0.1", "2001:db8::1", "10.0.0.1"])
    assert asyncio.run(look("engines")) == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
    for code in (socket.EAI_NONAME, socket.EAI_NODATA):
        system_says(monkeypatch, socket.gaierror(code, "no"))
        assert asyncio.run(look("engines")) == []
    for error in (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), OSError(24, "Too many open files")):
        system_says(monkeypatch, error)
        with pytest.raises(SourceFault, match="'engines' cannot be looked up"):
            asyncio.run(look("engines"))


def test_a_lookup_that_hangs_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_source, "_SECONDS", 0.05)
    asked: list[object] = []
    gate = asyncio.Event()

    async def getaddrinfo(*arguments: object, **_: object) -> list[object]:
        asked.append(arguments)
        await gate.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)

    async def scenario() -> None:
        source = DnsSource("engines:8000", "http", SystemLookup())
        for _ in range(3):
            with pytest.raises(SourceFault, match="no answer after"):
                await source.look()
        assert len(asked) == 1, "each would hold a thread"
        gate.set()
        assert urls(await source.look()) == ["http://10.0.0.1:8000"]

    asyncio.run(scenario())
