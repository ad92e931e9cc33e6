"""Requests inside requests: whatever the outer one's framing pretends, no replica ever sees the inner one."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, answers

INNER = b"POST /v1/smuggled HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nx=" + b"y" * 8
HEAD = b"POST /v1/files/outer HTTP/1.1\r\nhost: x\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


def length(number: int) -> bytes:
    return b"content-length: %d\r\n" % number


REFUSED = {
    "CL.TE": HEAD + length(5 + len(INNER)) + CHUNKED + b"\r\n0\r\n\r\n" + INNER,
    "TE.CL": HEAD + CHUNKED + length(4) + b"\r\n%x\r\n" % len(INNER) + INNER + b"\r\n0\r\n\r\n",
    "TE.TE-twice": HEAD + CHUNKED + b"transfer-encoding: x\r\n\r\n0\r\n\r\n" + INNER,
    "TE.TE-list": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n" + INNER,
    "TE.TE-case-and-list": HEAD + b"Transfer-Encoding: Chunked, CHUNKED\r\n\r\n0\r\n\r\n" + INNER,
    "TE-vertical-tab": HEAD + b"transfer-encoding: \x0bchunked\r\n" + length(4) + b"\r\n0\r\n\r\n" + INNER,
    "TE-space-before-colon": HEAD + b"transfer-encoding : chunked\r\n" + length(4) + b"\r\n0\r\n\r\n" + INNER,
    "TE-folded": HEAD + b"transfer-encoding:\r\n chunked\r\n" + length(4) + b"\r\n0\r\n\r\n" + INNER,
    "TE-quoted": HEAD + b'transfer-encoding: "chunked"\r\n\r\n0\r\n\r\n' + INNER,
    "TE-in-HTTP/1.0": b"POST /v1/files/outer HTTP/1.0\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + INNER,
    "CL.CL-differ": HEAD + length(0) + length(len(INNER)) + b"\r\n" + INNER,
    "CL.CL-same": HEAD + length(0) + length(0) + b"\r\n" + INNER,
    "CL-list": HEAD + b"content-length: 0, 0\r\n\r\n" + INNER,
    "CL-signed": HEAD + b"content-length: +0\r\n\r\n" + INNER,
    "CL-hexadecimal": HEAD + b"content-length: 0x0\r\n\r\n" + INNER,
    "CL-with-a-tail": HEAD + b"content-length: 0 abc\r\n\r\n" + INNER,
    "CL-too-large-to-count": HEAD + b"content-length: 18446744073709551616\r\n\r\n" + INNER,
    "folded-header": HEAD + b"a: b\r\n content-length: 0\r\n" + length(0) + b"\r\n" + INNER,
    "bare-line-feeds": b"POST /v1/files/outer HTTP/1.1\nhost: x\ncontent-length: 0\n\n" + INNER,
    "one-bare-line-feed": HEAD + b"a: b\ncontent-length: 0\r\n\r\n" + INNER,
    "bare-carriage-return": HEAD + b"a: b\rcontent-length: 0\r\n\r\n" + INNER,
    "NUL-in-a-header": HEAD + b"a: \x00\r\n" + length(0) + b"\r\n" + INNER,
    "chunk-size-with-a-sign": HEAD + CHUNKED + b"\r\n+0\r\n\r\n" + INNER,
    "chunk-size-hexadecimal": HEAD + CHUNKED + b"\r\n0x0\r\n\r\n" + INNER,
    "chunk-size-too-large": HEAD + CHUNKED + b"\r\n10000000000000000\r\n\r\n" + INNER,
    "chunk-without-its-line-end": HEAD + CHUNKED + b"\r\n1\r\na0\r\n\r\n" + INNER,
    "chunk-line-feed-only": HEAD + CHUNKED + b"\r\n0\n\n" + INNER,
    "target-with-a-space": b"POST /v1/files/outer HTTP/1.1 x HTTP/1.1\r\nhost: x\r\n" + length(0) + b"\r\n" + INNER,
    "length-in-a-trailer": HEAD + CHUNKED + b"\r\n0\r\ncontent-length: 9\r\n\r\n" + INNER,
    "two-hosts": HEAD + b"host: y\r\n" + length(0) + b"\r\n" + INNER,
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_no_replica_sees_what_was_smuggled(run_gateway: RunGateway, data: bytes) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {})
        async with RawClient(setup.port) as attacker:
            await attacker.send(data)
            answer = await attacker.answer()
            assert 400 <= answer.status < 500
            assert answer.headers["connection"] == "close"
            assert await attacker.closes()
        victim = await setup.ask({"model": "m", "prompt": "mine"})
        assert victim.status == 200
        assert [call.path for call in setup.replicas[0].calls if call.path != "/v1/completions"] in (
            [],
            ["/v1/files/outer"],
        )
        assert not [call for call in setup.replicas[0].calls if b"smuggled" in call.body or "smuggled" in call.path]

    run_gateway(scenario)


INSIDE = {
    "by-length": HEAD + length(len(INNER)) + b"\r\n" + INNER,
    "by-chunks": HEAD + CHUNKED + b"\r\n%x\r\n" % len(INNER) + INNER + b"\r\n0\r\n\r\n",
    "with-an-extension": HEAD + CHUNKED + b"\r\n%x;a=b\r\n" % len(INNER) + INNER + b"\r\n0\r\n\r\n",
    "with-a-trailer": HEAD + CHUNKED + b"\r\n%x\r\n" % len(INNER) + INNER + b"\r\n0\r\nx: y\r\n\r\n",
    "with-leading-zeros": HEAD + b"content-length: 000%d\r\n\r\n" % len(INNER) + INNER,
}


@pytest.mark.parametrize("data", INSIDE.values(), ids=INSIDE.keys())
def test_a_request_inside_a_whole_body_stays_body(run_gateway: RunGateway, data: bytes) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {})
        async with RawClient(setup.port) as client:
            await client.send(data)
            assert (await client.answer()).status == 200
            await client.send(post({"model": "m", "prompt": "next"}))
            assert (await client.answer()).status == 200
        outer, following = setup.replicas[0].calls
        assert (outer.path, outer.body, following.path) == ("/v1/files/outer", INNER, "/v1/completions")
        assert outer.headers["content-length"] == str(len(INNER))
        assert "transfer-encoding" not in outer.headers

    run_gateway(scenario)


def test_headers_named_by_connection_do_not_take_away_what_frames_the_request(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {})
        body = b'{"model":"m","prompt":"x"}'
        for named in (b"content-length", b"host", b"x-request-id", b"close, content-length"):
            data = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: %b\r\n" % named
            async with RawClient(setup.port) as client:
                await client.send(data + length(len(body)) + b"\r\n" + body)
                assert (await client.answer()).status == 200
        assert [call.body for call in setup.replicas[0].calls] == [body] * 4
        assert all(call.headers["host"] and call.headers["x-request-id"] for call in setup.replicas[0].calls)

    run_gateway(scenario)


def test_the_answer_of_one_client_never_reaches_another(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async def twice(call: Call) -> None:
            body = b'{"for":"%b"}' % str(call.json()["prompt"]).encode()
            one = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            await call.send(one + one)  # an answer too many, for whoever asks next on this connection

        setup.replicas[0].usual = twice

        async def asks(number: int) -> None:
            answer = await setup.ask({"model": "m", "prompt": f"n{number}"})
            assert answer.json() == {"for": f"n{number}"}

        for turn in range(5):
            await asyncio.gather(*(asks(10 * turn + number) for number in range(10)))

    run_gateway(scenario)


def test_a_pipelined_crowd_gets_each_its_own_answer_in_order(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            await client.send(b"".join(post(completion(prompt=f"p{number}")) for number in range(50)))
            found = [(await client.answer()).texts for _ in range(50)]
        assert found == ["t0 t1 t2 "] * 50
        assert [call.json()["prompt"] for call in setup.replicas[0].calls] == [f"p{number}" for number in range(50)]

    run_gateway(scenario)
