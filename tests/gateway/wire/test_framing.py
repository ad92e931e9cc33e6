"""Requests as an attacker or a broken client sends them: answered with an error or read right, never guessed at."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headway.gateway.openai.error_responses import bad_request
from headway.gateway.settings import TenantSettings
from headway.gateway.wire.client_connection import ClientConnection, PendingAnswer
from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.messages import Headers, HttpRequest, Response, header_lines
from headway.testing.examples import examples
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
AMBIGUOUS = [
    HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    HEAD + b"content-length: +3\r\n\r\nabc",
    HEAD + b"content-length: 3, 3\r\n\r\nabc",
    HEAD + b"content-length: -1\r\n\r\n",
    HEAD + b"content-length: 0x3\r\n\r\nabc",
    HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding: identity\r\n\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    HEAD + b" folded: 1\r\ncontent-length: 0\r\n\r\n",
    HEAD + b"a: b\r\n c\r\ncontent-length: 0\r\n\r\n",
    HEAD + b"a: b\x00c\r\ncontent-length: 0\r\n\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    b"POST /v1/completions HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
    HEAD + b"host: y\r\ncontent-length: 0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\nhost: x\ncontent-length: 0\n\n",
    b"CONNECT elsewhere:80 HTTP/1.1\r\nhost: elsewhere:80\r\n\r\n",
    b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@pytest.mark.parametrize("data", AMBIGUOUS, ids=range(len(AMBIGUOUS)))
def test_what_is_ambiguous_is_refused_and_the_connection_ends(run_gateway: RunGateway, data: bytes) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            await client.send(data + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = await client.answer()
            assert 400 <= answer.status < 600
            assert answer.reason == "malformed"
            assert await client.closes()
        assert setup.replicas[0].calls == []

    run_gateway(scenario)


DOTS = ["/v1/../sleep", "/v1/%2e%2E/sleep?level=2", "/v1/..%2fsleep", "/v1/chat/./x", "/v1/chat/.."]
DOTS += ["/v1/chat/..;a/sleep", "/v1/%252e%252e/sleep", "/v1/chat\\..\\sleep", "/v1/chat%5c..%5csleep"]


@pytest.mark.parametrize("target", DOTS)
def test_dot_segments_are_refused_before_any_rule_about_paths(run_gateway: RunGateway, target: str) -> None:
    async def scenario(setup: Setup) -> None:
        answer = await setup.ask(completion(), target)
        assert answer.status == 400
        assert "segment" in answer.json()["error"]["message"]
        assert (await setup.get("/v1/models/..a%2Fb.c?x=/../")).status == 404  # dots in names are no segments
        assert setup.replicas[0].calls == []

    run_gateway(scenario)


def test_limits_of_head_and_body(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        many = "".join(f"h{n}: 1\r\n" for n in range(30))
        assert (await setup.get("/health", many)).status == 431
        assert (await setup.get("/health", "long: " + "x" * 3_000 + "\r\n")).status == 431
        assert (await setup.get("/" + "x" * 3_000)).status == 431
        assert (await setup.ask(completion(prompt="x" * 6_000))).status == 413
        async with RawClient(setup.port) as client:
            chunk = b"%x\r\n%b\r\n" % (4_000, b"x" * 4_000)
            await client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk * 2)
            assert (await client.answer()).status == 413
        async with RawClient(setup.port) as client:
            await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\nendless: " + b"x" * 5_000)
            assert (await client.answer()).status == 431

    run_gateway(scenario, wire=WireLimits(head_bytes=2_000, headers=20, body_bytes=5_000))


def test_slow_clients_are_shown_the_door(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        clock = setup.stop_the_clock()
        async with RawClient(setup.port) as head, RawClient(setup.port) as body, RawClient(setup.port) as idle:
            await head.send(b"GET /health HTTP/1.1\r\nho")
            await body.send(HEAD + b"content-length: 10\r\n\r\nabc")
            await idle.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await idle.answer()).status == 200
            await setup.until(lambda: sum(client._begun for client in setup.clients) == 2)
            clock.now += 0.4
            assert (await head.answer()).status == 408
            assert (await body.answer()).status == 408
            assert await idle.closes()

    limits = WireLimits(head_seconds=0.3, body_seconds=0.3, idle_seconds=0.3, linger_seconds=0.2)
    run_gateway(scenario, wire=limits)


def test_a_client_that_does_not_read_is_cut_off(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async def floods(call) -> None:  # type: ignore[no-untyped-def]
            await call.head()
            while not call.left.is_set():
                await call.chunk(b"data: " + b"x" * 100_000 + b"\n\n")

        setup.replicas[0].usual = floods
        async with RawClient(setup.port) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(post(completion()))
            await setup.until(lambda: setup.replicas[0].inside == 1)
            await setup.until(lambda: setup.replicas[0].inside == 0)

    run_gateway(scenario, wire=WireLimits(stalled_seconds=0.3))


def test_expect_continue_and_upgrade(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        body = json.dumps(completion()).encode()
        async with RawClient(setup.port) as client:
            await client.send(HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body))
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            await client.send(body)
            assert (await client.answer()).texts == "t0 t1 t2 "
        async with RawClient(setup.port) as client:
            await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nwhatever")
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await client.closes()
        async with RawClient(setup.port) as client:
            await client.send(b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.head())[0] == 200
            assert (await client.answer()).json() == {"status": "ok"}

    run_gateway(scenario)


OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"


@pytest.mark.parametrize("cut", [0, 20, 200, 280, 300])
def test_an_offer_of_another_protocol_takes_nothing_from_the_request(run_gateway: RunGateway, cut: int) -> None:
    async def scenario(setup: Setup) -> None:
        body = json.dumps(completion()).encode()
        framings = [
            b"content-length: %d\r\n\r\n%b" % (len(body), body),
            b"transfer-encoding: chunked\r\n\r\n" + chunked(body, [3]),
        ]
        for framed in framings:
            sent = HEAD + OFFER + framed
            async with RawClient(setup.port) as client:
                await client.send(sent[:cut])
                await asyncio.sleep(0.01)
                await client.send(sent[cut:])
                assert (await client.answer()).texts == "t0 t1 t2 "
                assert await client.closes()
        for call in setup.replicas[0].calls:
            assert call.json()["prompt"] == "hello there"
            assert not {"upgrade", "http2-settings", "connection"} & set(call.headers)
        assert len(setup.replicas[0].calls) == 2

    run_gateway(scenario)


def test_blank_lines_before_a_request_are_none_of_it(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        clock = setup.stop_the_clock()
        async with RawClient(setup.port) as client:
            for _ in range(2):
                await client.send(b"\r\n\r\n")
                await asyncio.sleep(0.3)  # it is read, and looked at
                clock.now += 0.3  # longer than a request's head may take
                await asyncio.sleep(0.3)
                await client.send(b"\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n\r\n")
                assert (await client.answer()).status == 200

    run_gateway(scenario, wire=WireLimits(head_seconds=0.1, idle_seconds=60.0))


def test_trailers_and_extensions_are_bounded_as_headers_are(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for endless in (b"0\r\nx: ", b"0\r\n" + b"x: y\r\n" * 10, b"1;"):
            async with RawClient(setup.port) as client:
                await client.send(b"POST /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + endless)
                for _ in range(10):
                    await asyncio.sleep(0.01)
                    await client.send(b"a" * 500)
                assert (await client.answer()).status == 431
                assert await client.closes()
        chunk = b"1\r\nx\r\n" * 5_000  # much framing, but never for long
        async with RawClient(setup.port) as client:
            await client.send(b"POST /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            await client.send(chunk + b"0\r\nx: y\r\n\r\n")
            assert (await client.answer()).status == 200

    run_gateway(scenario, wire=WireLimits(head_bytes=2_000))


def test_bodies_are_kept_only_where_they_are_needed_and_within_a_bound_over_all(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()

        async def waits(call) -> None:  # type: ignore[no-untyped-def]
            await gate.wait()
            await call.whole(200, {})

        setup.replicas[0].usual = waits
        async with RawClient(setup.port) as health, RawClient(setup.port) as first, RawClient(setup.port) as second:
            await health.send(post(b"x" * 20_000, "/health")[:-1])
            await first.send(post(completion(prompt="x" * 6_000)))
            await setup.until(lambda: setup.replicas[0].inside == 1)
            shared = next(iter(setup.clients))._shared
            assert 6_000 < shared.body_bytes < 7_000
            await second.send(post(completion(prompt="x" * 6_000)))
            answer = await second.answer()
            assert (answer.status, answer.reason) == (503, "overloaded")
            assert int(answer.headers["retry-after"]) == 1
            gate.set()
            assert (await first.answer()).status == 200
        await setup.until(lambda: not setup.clients)
        assert (shared.body_bytes, shared.connections) == (0, 0)
        assert (await setup.ask(completion(prompt="x" * 6_000))).status == 200

    run_gateway(scenario, wire=WireLimits(bodies_bytes=10_000))


def test_connections_are_bounded_in_all_per_address_and_per_key(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_A", "secret-of-a")
    monkeypatch.setenv("KEY_B", "secret-of-b")
    a, b = "authorization: Bearer secret-of-a\r\n", "authorization: Bearer secret-of-b\r\n"

    async def of_all(setup: Setup) -> None:
        async with RawClient(setup.port) as first, RawClient(setup.port) as second:
            for client in (first, second):
                await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await client.answer()).status == 200
            refused = await setup.get("/health")
            assert (refused.status, refused.reason) == (503, "overloaded")
            assert "2 open connections" in refused.json()["error"]["message"]
        await setup.until(lambda: not setup.clients)
        assert (await setup.get("/health")).status == 200

    async def of_a_key(setup: Setup) -> None:
        async with RawClient(setup.port) as first:
            await first.send(post(completion(), headers=a))
            assert (await first.answer()).status == 200
            refused = await setup.ask(headers=a)
            assert (refused.status, refused.reason) == (429, "overloaded")
            assert (await setup.ask(headers=b)).status == 200
            await setup.until(lambda: len(setup.clients) == 1)
            await first.send(post(completion(), headers=b))  # the connection is b's from now on
            assert (await first.answer()).status == 200
            assert (await setup.ask(headers=a)).status == 200

    tenants = tuple(TenantSettings(name=name, key_env=f"KEY_{name.upper()}") for name in "ab")
    run_gateway(of_all, wire=WireLimits(connections=2))
    run_gateway(of_all, wire=WireLimits(address_connections=2))
    run_gateway(of_a_key, wire=WireLimits(key_connections=1), tenant=tenants)


def test_pipelined_bytes_are_bounded(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()

        async def waits(call) -> None:  # type: ignore[no-untyped-def]
            await gate.wait()
            await call.whole(200, {})

        setup.replicas[0].usual = waits
        async with RawClient(setup.port) as client:
            request = post({"model": "m", "prompt": "x"})
            await client.send(request)
            await setup.until(lambda: setup.replicas[0].inside == 1)
            for _ in range(200):
                client.writer.write(request)
            await asyncio.sleep(0.1)
            (connection,) = setup.clients
            assert len(connection._ahead) < 1_000
            assert setup.dispatcher.counts.arrived == 1
            gate.set()
            assert (await client.answer()).status == 200
            refused = await client.answer()
            assert refused.status == 413
            assert "one request after the other" in refused.json()["error"]["message"]
            assert await client.closes()
        async with RawClient(setup.port) as client:
            gate.clear()
            await client.send(request)
            await setup.until(lambda: setup.replicas[0].inside == 1)
            client.writer.write(b"x" * 500_000)
        await setup.until(lambda: setup.replicas[0].inside == 0)  # that it left is noticed behind all these bytes

    run_gateway(scenario, wire=WireLimits(ahead_bytes=1_000))


# Without sockets: any split of the bytes gives the same requests


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_over = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_over = True

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self.is_over = True

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Echo:
    """Answers every request with what was understood of it."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes, bytes]] = []

    def bad_request(self, status: int, message: str, headers: Headers) -> Response:
        return bad_request(status, message)

    def refuse_head(self, request: HttpRequest) -> Response | None:
        return None

    def shaped(self, response: Response, path: str) -> Response:
        return response

    def takes_body(self, request: HttpRequest) -> bool:
        return True

    def refused(self, response: Response, address: str) -> None:
        pass

    def answer(self, request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        self.seen.append((request.method, request.target, request.body))
        client.respond(Response(200, request.body))
        return None


def fed(pieces: list[bytes]) -> tuple[Echo, Transport]:
    echo, transport = Echo(), Transport()
    connection = ClientConnection(echo, replace(WireLimits(), body_bytes=100_000), set(), lambda: 0.0)
    connection.connection_made(transport)
    for piece in pieces:
        connection.data_received(piece)
    return echo, transport


def chunked(body: bytes, sizes: list[int]) -> bytes:
    framed = b""
    for size in sizes:
        piece, body = body[:size], body[size:]
        if piece:
            framed += b"%x\r\n%b\r\n" % (len(piece), piece)
    return framed + (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"


BODIES = st.binary(max_size=200)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, tuple[bytes, bytes, bytes]]:
    body = draw(BODIES)
    target = b"/t" + draw(st.from_regex(rb"[a-z0-9?=&%._-]{0,20}", fullmatch=True))
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n" % target
    if draw(st.booleans()):
        framed = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    else:
        framed = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body, draw(st.lists(st.integers(1, 60))))
    return framed, (b"POST", target, body)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


@settings(max_examples=examples(200))
@given(st.lists(requests(), min_size=1, max_size=5), st.lists(st.integers(0, 5_000), max_size=12))
def test_any_split_of_any_requests_is_read_alike(sent: list, cuts: list[int]) -> None:  # type: ignore[type-arg]
    echo, transport = fed(split(b"".join(framed for framed, _ in sent), cuts))
    assert echo.seen == [understood for _, understood in sent]
    assert transport.written.count(b"HTTP/1.1 200 OK\r\n") >= len(sent)
    assert not transport.is_over


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
@given(requests(), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), min_size=1, max_size=4))
def test_damaged_requests_never_raise_and_never_grow(sent, damage: list[tuple[int, bytes]]) -> None:  # type: ignore[no-untyped-def]
    data = sent[0]
    for place, noise in damage:
        at = place % (len(data) + 1)
        data = data[:at] + noise + data[at + len(noise) :]
    echo, transport = fed([data])
    assert len(echo.seen) <= 1 + data.count(b"HTTP/1.")
    for _, target, body in echo.seen:
        assert target in data
        assert len(body) <= len(data)
    if not echo.seen and transport.written:
        assert transport.written.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_headers_that_would_end_early_are_not_written(name: bytes, value: bytes) -> None:
    if any(byte in name + value for byte in b"\r\n\0"):
        with pytest.raises(ValueError, match="line break"):
            header_lines([(name, value)])
    else:
        assert header_lines([(name, value)]) == name + b": " + value + b"\r\n"
