"""A replica's name: all its addresses are tried, and neither failed lookups nor a lack here takes them away."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from headway.gateway.wire.name_lookup import NameLookup, OwnShortage, first_to_connect, is_ours
from headway.gateway.wire.upstream_pool import UpstreamPool

PATIENT = 120.0


@asynccontextmanager
async def listening(host: str, port: int = 0) -> AsyncIterator[int]:
    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(waits, host, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0.05)


class Deaf:
    """An address that takes no connection: its backlog is full, so the kernel drops what comes."""

    def __init__(self, host: str, port: int) -> None:
        self._server = socket.socket()
        self._server.bind((host, port))
        self._server.listen(0)
        self._sockets = [self._server]
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex((host, port))
            self._sockets.append(client)

    def close(self) -> None:
        for one in self._sockets:
            one.close()


def resolves(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], list[str]]) -> list[str]:
    """Every lookup of the running loop has this answer; the names that were looked up."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **more: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer()]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENT):
            await work

    asyncio.run(bounded())


def pool_of(port: int, clock: Callable[[], float] = lambda: 0.0) -> UpstreamPool:
    return UpstreamPool(f"http://engines.test:{port}", connect_seconds=PATIENT, head_bytes=65_536, clock=clock)


@pytest.mark.parametrize("how", ["deaf", "refuses"])
def test_an_address_that_is_gone_hides_no_other(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async def scenario() -> None:
        async with listening("127.0.0.2") as port:
            deaf = Deaf("127.0.0.1", port) if how == "deaf" else None
            resolves(monkeypatch, lambda: ["127.0.0.1", "127.0.0.2"])
            pool = pool_of(port)
            for _ in range(2):
                connection = await pool.open()
                assert connection._transport.get_extra_info("peername")[0] == "127.0.0.2"
            assert (await pool._lookup.addresses())[0] == "127.0.0.2"  # from now on it is asked first
            pool.close()
            if deaf is not None:
                deaf.close()

    run(scenario())


def test_with_every_address_refusing_the_connection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with listening("127.0.0.3") as port:  # a port that is free at the others
            resolves(monkeypatch, lambda: ["127.0.0.1", "127.0.0.2"])
            with pytest.raises(ConnectionRefusedError):
                await pool_of(port).open()

    run(scenario())


def test_connections_made_too_late_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        resolves(monkeypatch, lambda: ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
        closed, begun, gate = list[str](), list[str](), asyncio.Event()

        async def connect(address: str) -> str:
            if address == "10.0.0.1":
                raise TimeoutError
            begun.append(address)
            if len(begun) == 2:  # both that are left wait for it, and come together
                asyncio.get_running_loop().call_soon(gate.set)
            await gate.wait()
            return address

        lookup = NameLookup("engines.test", 1, lambda: 0.0)
        won = await first_to_connect(lookup, connect, closed.append)
        await asyncio.sleep(0)
        assert sorted([won, *closed]) == ["10.0.0.2", "10.0.0.3"]

    run(scenario())


def test_a_lookup_that_fails_or_hangs_takes_no_known_address_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        now, answer = [0.0], ["10.0.0.1"]
        asked = resolves(monkeypatch, lambda: answer)
        lookup = NameLookup("engines.test", 1, lambda: now[0])
        assert [await lookup.addresses() for _ in range(3)] == [["10.0.0.1"]] * 3
        assert len(asked) == 1
        now[0], answer[:] = 6.0, ["10.0.0.2"]  # the name moved
        assert await lookup.addresses() == ["10.0.0.2"]

        async def fails(*_: object, **more: object) -> None:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")

        async def hangs(*_: object, **more: object) -> None:
            await asyncio.Event().wait()

        for number, trouble in enumerate((fails, hangs), 2):
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", trouble)
            now[0] = 6.0 * number
            assert await lookup.addresses() == ["10.0.0.2"]
        assert lookup._lookup is not None
        lookup._lookup.cancel()

    run(scenario())


def test_an_unknown_name_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async def fails(*_: object, **more: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fails)
        for _ in range(2):
            with pytest.raises(OSError, match=r"engines\.test") as caught:
                await NameLookup("engines.test", 1, lambda: 0.0).addresses()
            assert not is_ours(caught.value)

    run(scenario())


def test_a_lookup_without_descriptors_is_a_lack_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver then says that the name is unknown, or to try again."""

    async def scenario() -> None:
        async def fails(*_: object, **more: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fails)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 256), before[1]))
            with suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            with pytest.raises(OwnShortage):
                await NameLookup("engines.test", 1, lambda: 0.0).addresses()
        finally:
            for one in taken:
                os.close(one)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    run(scenario())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL])
def test_a_lack_here_is_told_from_the_replicas_faults(number: int) -> None:
    assert is_ours(OSError(number, "x"))
    assert not any(is_ours(error) for error in (OSError(errno.ECONNREFUSED, "x"), TimeoutError(), ValueError()))
