"""TLS at the front: the same answers, and connections that end properly."""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
import ssl
import subprocess
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.shared_limits import ConnectionPlace, SharedLimits
from headway.gateway.wire.tls_listener import TlsListener
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings that name a key and its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return make_pair(tmp_path_factory.mktemp("tls"))


def make_pair(folder: Path) -> dict[str, str]:
    """A new key and its certificate, as the settings name them."""
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*line, *names], check=True, capture_output=True)
    return {"tls_certificate": certificate, "tls_key": key}


class TlsClient(RawClient):
    """A client that speaks TLS and trusts this certificate."""

    def __init__(self, port: int, pair: dict[str, str]) -> None:
        super().__init__(port)
        self._trusts = ssl.create_default_context(cafile=pair["tls_certificate"])

    async def __aenter__(self) -> TlsClient:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self._trusts)
        return self


def test_answers_and_refusals_come_through_tls(run_gateway: RunGateway, pair: dict[str, str]) -> None:
    async def scenario(setup: Setup) -> None:
        assert setup.gateway.urls == [f"https://127.0.0.1:{setup.port}"]
        for data, status in ((post(completion()), 200), (b"nonsense\r\n\r\n", 400)):
            async with TlsClient(setup.port, pair) as client:
                await client.send(data)
                assert (await client.answer()).status == status
                client.writer.close()
                await client.writer.wait_closed()
        (shared,) = setup.gateway._held.values()
        await setup.until(lambda: not shared.connections)
        assert (shared.handshakes, shared.handshakes_failed) == (0, 0)

    run_gateway(scenario, **pair)


def test_a_renewed_certificate_is_used_after_a_reload_and_a_broken_one_is_not(
    run_gateway: RunGateway, pair: dict[str, str], tmp_path: Path
) -> None:
    names = {name: str(shutil.copy(file, tmp_path)) for name, file in pair.items()}

    async def scenario(setup: Setup) -> None:
        async def served() -> bytes:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            _, writer = await asyncio.open_connection("127.0.0.1", setup.port, ssl=context)
            certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.close()
            return bytes(certificate)

        first = await served()
        make_pair(tmp_path)
        assert await served() == first
        setup.gateway.reload(setup.settings)
        second = await served()
        assert second != first
        Path(names["tls_key"]).write_bytes(Path(pair["tls_key"]).read_bytes())
        with pytest.raises(ValueError, match="name two PEM files that match"):
            setup.gateway.reload(setup.settings)
        assert await served() == second

    run_gateway(scenario, **names)


HALF = [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"]  # of a ClientHello


def test_a_half_handshake_counts_as_a_connection_and_ends_in_time(
    run_gateway: RunGateway, pair: dict[str, str]
) -> None:
    async def scenario(setup: Setup) -> None:
        (shared,) = setup.gateway._held.values()
        async with AsyncExitStack() as stack:
            halves = [await stack.enter_async_context(RawClient(setup.port)) for _ in HALF]
            for client, sent in zip(halves, HALF, strict=True):
                await client.send(sent)
            await setup.until(lambda: shared.handshakes == 3)
            assert shared.connections == 3
            text = setup.gateway._metrics.text().decode()
            assert 'headway_tls_handshakes{listener="public"} 3' in text
            async with TlsClient(setup.port, pair) as refused:
                answer = await refused.answer()
                assert (answer.status, answer.reason) == (503, "overloaded")
                assert "3 open connections" in answer.json()["error"]["message"]
            for client in halves:
                assert await client.closes()
        await setup.until(lambda: not shared.connections)
        assert (shared.handshakes, shared.handshakes_failed) == (0, 3)
        assert 'headway_tls_handshakes_failed_total{listener="public"} 3' in setup.gateway._metrics.text().decode()
        async with TlsClient(setup.port, pair) as client:
            await client.send(post(completion()))
            assert (await client.answer()).status == 200
            assert (shared.connections, shared.handshakes) == (1, 0)

    for limits in (WireLimits(connections=3, head_seconds=1.0), WireLimits(address_connections=3, head_seconds=1.0)):
        run_gateway(scenario, wire=limits, **pair)


def test_who_breaks_a_handshake_off_frees_its_place(run_gateway: RunGateway, pair: dict[str, str]) -> None:
    async def scenario(setup: Setup) -> None:
        (shared,) = setup.gateway._held.values()
        for sent in (*HALF, b"GET / HTTP/1.1\r\n\r\n"):
            async with RawClient(setup.port) as client:
                await client.send(sent)
                await setup.until(lambda: shared.connections)
                if sent:
                    await setup.until(lambda: not setup.gateway._servers[0]._silent)  # type: ignore[union-attr]
            await setup.until(lambda: not shared.connections)
        assert (shared.handshakes, shared.handshakes_failed) == (0, 4)

    run_gateway(scenario, **pair)


def test_of_a_flood_of_half_handshakes_no_more_are_held_than_allowed(
    run_gateway: RunGateway, pair: dict[str, str]
) -> None:
    async def scenario(setup: Setup) -> None:
        (shared,) = setup.gateway._held.values()
        async with AsyncExitStack() as stack:
            flood = [await stack.enter_async_context(RawClient(setup.port)) for _ in range(60)]
            cut = [asyncio.create_task(client.closes()) for client in flood]
            await setup.until(lambda: sum(task.done() for task in cut) == 60 - 16 - 3)  # of all, 3 could be told why
            assert (shared.connections, shared.handshakes) == (16, 19)
            for task in cut:
                task.cancel()

    run_gateway(scenario, wire=WireLimits(connections=16), **pair)


def test_a_crowd_of_handshakes_leaves_the_others_their_turns(
    run_gateway: RunGateway, pair: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many begin at a turn of the loop, since each costs a signature."""
    turn, begun, accepted = 0, Counter[int](), Counter[int]()
    begin, take = TlsListener._begin, SharedLimits.take

    def counted(listener: TlsListener, one: object) -> None:
        begun[turn] += 1
        begin(listener, one)  # type: ignore[arg-type]

    def taken(shared: SharedLimits, address: str) -> ConnectionPlace:
        accepted[turn] += 1
        return take(shared, address)

    async def turns() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    async def scenario(setup: Setup) -> None:
        counting = asyncio.create_task(turns())
        await setup.until(lambda: turn > 2)
        crowd = [socket.create_connection(("127.0.0.1", setup.port)) for _ in range(100)]  # the loop has no turn
        for one in crowd:
            one.send(HALF[1])
        (shared,) = setup.gateway._held.values()
        await setup.until(lambda: begun.total() == 100)
        counting.cancel()
        assert accepted.total() == shared.connections == 100
        assert max(accepted.values()) == 64
        assert max(begun.values()) == 8
        for one in crowd:
            one.close()
        await setup.until(lambda: not shared.connections)

    monkeypatch.setattr(TlsListener, "_begin", counted)
    monkeypatch.setattr(SharedLimits, "take", taken)
    run_gateway(scenario, **pair)


def test_a_lack_of_descriptors_makes_clients_wait(
    run_gateway: RunGateway, pair: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(setup: Setup) -> None:
        lacks = True
        accept = socket.socket.accept

        def fails(listening: socket.socket) -> object:
            if lacks:
                raise OSError(errno.EMFILE, "Too many open files")
            return accept(listening)

        monkeypatch.setattr(socket.socket, "accept", fails)
        waiting = asyncio.create_task(TlsClient(setup.port, pair).__aenter__())
        await setup.until(lambda: "connections of clients have to wait" in caplog.text)
        lacks = False
        client = await waiting
        await client.send(post(completion()))
        assert (await client.answer()).status == 200
        await client.__aexit__()

    run_gateway(scenario, **pair)
    assert caplog.text.count("connections of clients have to wait") == 1


def speaks_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as one:
        one.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not speaks_ipv6(), reason="this machine has no ::1")
def test_the_address_that_is_told_can_be_opened(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        public, admin = setup.gateway.addresses
        assert setup.gateway.urls == [f"http://[::1]:{public[1]}", f"http://127.0.0.1:{admin[1]}"]

    run_gateway(scenario, listen="[::1]:0", admin_listen="127.0.0.1:0")
