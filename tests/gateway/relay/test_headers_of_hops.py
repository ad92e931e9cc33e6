"""Headers of one hop end there, and no answer says where its replica is."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from headway.gateway.gateway import Gateway
from headway.gateway.settings import ReplicaSettings
from headway.gateway.wire.messages import connection_names
from headway.gateway.wire.upstream_pool import UpstreamPool
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, Script

BODY = b'{"choices":[]}'


def sends(head: str, body: bytes = BODY) -> Script:
    async def script(call: Call) -> None:
        await call.send(f"HTTP/1.1 {head}\r\n\r\n".encode("latin-1") + body)
        call.writer.close()

    return script


def test_each_connection_header_names_headers_of_that_hop() -> None:
    headers = [(b"connection", b"keep-alive, X-A"), (b"x-a", b"1"), (b"connection", b"x-b"), (b"x-c", b"1")]
    assert connection_names(headers) == {b"keep-alive", b"x-a", b"x-b"}
    assert connection_names([(b"x-c", b"1")]) == set()


def test_they_go_no_further_in_either_direction(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        hop = "connection: x-a\r\nconnection: X-B , keep-alive\r\nx-a: 1\r\nx-b: 1\r\nkeep-alive: timeout=5\r\n"
        setup.replicas[0].usual = sends(f"200 OK\r\n{hop}x-c: 1\r\ncontent-length: {len(BODY)}")
        answer = await setup.ask(completion(stream=False), headers=hop + "x-c: 1\r\n")
        for headers in (answer.headers, setup.replicas[0].calls[0].headers):
            assert headers["x-c"] == "1"
            assert headers.keys().isdisjoint(["x-a", "x-b", "keep-alive"])

    run_gateway(scenario)


def test_a_replica_speaks_for_no_gateway(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        claims = "x-headway-replica: other\r\nx-headway-queue-ms: 7\r\nx-headway-reason: overloaded\r\nx-request-id: b"
        setup.replicas[0].usual = sends(f"200 OK\r\n{claims}\r\ncontent-length: {len(BODY)}")
        async with RawClient(setup.port) as client:
            await client.send(post(completion(stream=False), headers="x-request-id: a\r\n"))
            head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
        assert head.count("x-headway-replica: r0\r\n") == head.count("x-headway-replica") == 1
        assert head.count("x-request-id: a\r\n") == head.count("x-request-id") == 1
        assert head.count("x-headway-queue-ms") == 1
        assert "x-headway-reason" not in head

    run_gateway(scenario)


def test_a_redirect_to_the_replica_itself_leads_back_through_the_gateway(run_gateway: RunGateway) -> None:
    """FastAPI answers `/v1/completions/` with a redirect to the address that it was called by."""

    async def scenario(setup: Setup) -> None:
        replica = setup.replicas[0]
        replica.usual = sends(
            f"307 Temporary Redirect\r\nlocation: {replica.url}/v1/completions?a=b\r\ncontent-length: 0", b""
        )
        answer = await setup.ask(completion(stream=False))
        assert answer.headers["location"] == "/v1/completions?a=b"

    run_gateway(scenario)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (b"http://engine:8000/v1/x?y=1", b"/v1/x?y=1"),
        (b"http://ENGINE:8000/pre/v1/x", b"/v1/x"),
        (b"https://engine:8000", b"/"),
        (b"//engine:8000/v1", b"/v1"),
        (b"/v1/x", b"/v1/x"),
        (b"https://storage.example/x", b"https://storage.example/x"),
        (b"http://engine:8001/v1", b"http://engine:8001/v1"),
        (b"http://[engine/", b"http://[engine/"),
        (b"http://engine:port/", b"http://engine:port/"),
    ],
)
def test_only_urls_of_the_replica_become_paths(location: bytes, shown: bytes) -> None:
    pool = UpstreamPool("http://engine:8000/pre", connect_seconds=1.0, head_bytes=1_000, clock=lambda: 0.0)
    assert pool.without_address(location) == shown


@pytest.mark.parametrize("coding", ["identity", "gzip", "Identity "])
def test_a_body_that_is_not_in_chunks_ends_with_its_connection(run_gateway: RunGateway, coding: str) -> None:
    async def scenario(setup: Setup) -> None:
        head = f"200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: {coding}"
        setup.replicas[0].usual = sends(head, BODY)
        answer = await setup.ask(completion(stream=False))
        assert (answer.body, answer.whole) == (BODY, True)
        assert setup.dispatcher.replicas[0].state.failures == 0

    run_gateway(scenario)


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_says_no_length(run_gateway: RunGateway, status: int) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = sends(f"{status} X\r\ncontent-type: text/event-stream\r\ncontent-length: 14")
        async with RawClient(setup.port) as client:
            for _ in range(2):  # and its connection is kept
                await client.send(post(completion()))
                got, headers = await client.head()
                assert got == status
                assert headers.keys().isdisjoint(["content-length", "transfer-encoding"])

    run_gateway(scenario)


@pytest.mark.parametrize("target", ["/v1/unheard-of", "/v1/../x"])
def test_a_head_request_that_is_refused_gets_no_body(run_gateway: RunGateway, target: str) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            await client.send(f"HEAD {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            _, headers = await client.head()
            assert int(headers["content-length"]) > 0
            assert await client.closes()

    run_gateway(scenario)


def test_a_gateway_in_front_of_itself_is_no_replica(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        itself = ReplicaSettings(url=f"http://127.0.0.1:{setup.port}", name="itself")
        setup.gateway.reload(replace(setup.settings, replica=(itself,)))
        (replica,) = setup.dispatcher.replicas
        await setup.until(lambda: replica.state.health == "ejected")
        assert replica.state.last_failure == "its url leads back to this gateway"
        assert (await setup.ask()).status == 503

    run_gateway(scenario)


def test_two_gateways_in_front_of_each_other_answer_at_once(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        there = ReplicaSettings(url=f"http://127.0.0.1:{setup.port}")
        second = Gateway(replace(setup.settings, replica=(there,)))
        await second.start()
        try:
            back = ReplicaSettings(url=f"http://127.0.0.1:{second.addresses[0][1]}", name="back")
            setup.gateway.reload(replace(setup.settings, replica=(back,)))
            await setup.until(lambda: setup.dispatcher.replicas[0].is_up)
            async with asyncio.timeout(60):
                answer = await setup.ask(completion(stream=False))
            assert answer.status == 508
            assert "the url of a replica leads back to it" in answer.json()["error"]["message"]
        finally:
            await second.stop()

    run_gateway(scenario)
