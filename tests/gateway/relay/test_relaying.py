"""What passes through: every byte that matters, nothing that does not, and what is learnt on the way."""

from __future__ import annotations

import asyncio
import json

import pytest

from headway.gateway.wire import upstream_pool
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, answers, streams, text, usage


def test_a_stream_arrives_whole_and_the_usage_nobody_asked_for_is_hidden(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        answer = await setup.ask()
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.texts == "t0 t1 t2 "
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert b"usage" not in answer.body
        call = setup.replicas[0].calls[0]
        assert call.json()["stream_options"] == {"include_usage": True}
        story = setup.gateway.site.history.requests[-1]
        assert (story["output_tokens"], story["outcome"]) == (3, "completed")

    run_gateway(scenario)


def test_usage_that_was_asked_for_stays_and_the_body_is_byte_for_byte(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        body = b'{ "model":"m",  "prompt":"x","stream":true ,"stream_options":{"include_usage":true},"odd":[1.50]}'
        answer = await setup.ask(body)
        assert b'"completion_tokens": 3' in answer.body
        assert setup.replicas[0].calls[0].body == body

    run_gateway(scenario)


def test_unknown_fields_keep_their_bytes_when_a_field_is_added(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        body = b'{"model":"m","vllm_xargs":{"a" : 1.50},"prompt":"x","stream":true,"stream_options":{"x":1},"n":1}'
        await setup.ask(body)
        sent = setup.replicas[0].calls[0].body
        assert b'"vllm_xargs":{"a" : 1.50}' in sent
        assert json.loads(sent)["stream_options"] == {"x": 1, "include_usage": True}

    run_gateway(scenario)


def test_json_answers_pass_and_teach(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].next += [answers(), answers(400, {"error": {"message": "too long"}})]
        first = await setup.ask({"model": "m", "prompt": "x"})
        assert first.json()["usage"]["completion_tokens"] == 2
        assert setup.gateway.site.history.requests[-1]["output_tokens"] == 2
        second = await setup.ask({"model": "m", "prompt": "x"})
        assert (second.status, second.json()["error"]["message"]) == (400, "too long")

    run_gateway(scenario)


def test_headers_pass_but_for_those_of_one_connection(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        headers = "x-request-id: mine\r\nx-odd: 1\r\nconnection: x-secret\r\nx-secret: 2\r\nte: trailers\r\n"
        answer = await setup.ask(headers=headers)
        call = setup.replicas[0].calls[0]
        assert answer.headers["x-request-id"] == call.headers["x-request-id"] == "mine"
        assert answer.headers["x-headway-replica"] == "r0"
        assert call.headers["x-odd"] == "1"
        assert not {"x-secret", "te", "connection"} & set(call.headers)
        other = await setup.ask()
        assert other.headers["x-request-id"].startswith("hw-")

    run_gateway(scenario)


def test_unknown_paths_under_v1_pass_and_others_do_not(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {"ok": True})
        assert (await setup.ask(b"\x00\x01binary", "/v1/audio/transcriptions?x=1")).json() == {"ok": True}
        assert (await setup.get("/v1/files")).json() == {"ok": True}
        assert [call.path for call in setup.replicas[0].calls] == ["/v1/audio/transcriptions?x=1", "/v1/files"]
        assert setup.replicas[0].calls[0].body == b"\x00\x01binary"
        unknown = await setup.get("/secret")
        assert (unknown.status, unknown.reason, unknown.json()["error"]["code"]) == (404, "not-found", "not_found")
        sentence = "unknown path /secret; the API is under /v1/, the live page at /headway/"
        assert unknown.json()["error"]["message"] == sentence
        unlisted = await setup.ask({}, "/v1/load_lora_adapter")
        assert (unlisted.status, unlisted.reason) == (404, "not-found")
        assert (await setup.ask(b"{not json", "/v1/chat/completions")).status == 400

    run_gateway(scenario)


def test_events_split_anywhere_lose_nothing(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        events = b"".join(b"data: " + json.dumps(text(f"t{n} ")).encode() + b"\n\n" for n in range(4))
        tail = b"data: " + json.dumps(usage(7, 4)).encode() + b"\n\ndata: [DONE]\n\n"

        async def in_bits(call: Call) -> None:
            await call.head()
            data = events + tail
            for at in range(0, len(data), 7):
                await call.chunk(data[at : at + 7])
            await call.send(b"0\r\n\r\n")

        setup.replicas[0].next.append(in_bits)
        answer = await setup.ask()
        assert answer.body == events + b"data: [DONE]\n\n"
        assert setup.gateway.site.history.requests[-1]["output_tokens"] == 4

    run_gateway(scenario)


def test_a_comment_is_no_first_token(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async def keeps_alive(call: Call) -> None:
            await call.head()
            await call.chunk(b": keep-alive\n\n")
            await asyncio.sleep(0.05)
            assert setup.dispatcher.replicas[0].ledger.prefill_tokens > 0
            await call.event(text("t0 "))
            await asyncio.sleep(0.05)
            assert setup.dispatcher.replicas[0].ledger.prefill_tokens == 0
            await call.send(b"0\r\n\r\n")

        setup.replicas[0].next.append(keeps_alive)
        answer = await setup.ask()
        assert answer.whole
        assert answer.body.startswith(b": keep-alive\n\n")

    run_gateway(scenario)


def test_requests_on_one_connection_are_answered_in_order(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            await client.send(
                post(completion(max_tokens=1)) + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" + post(completion())
            )
            first, second, third = await client.answer(), await client.answer(), await client.answer()
        assert (first.texts, second.json(), third.texts) == ("t0 t1 t2 ", {"status": "ok"}, "t0 t1 t2 ")

    run_gateway(scenario)


def test_upstream_connections_are_used_again_even_when_stale(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_pool, "SETTLE_SECONDS", 0.0)

    async def scenario(setup: Setup) -> None:
        for _ in range(3):
            assert (await setup.ask()).status == 200
        assert setup.replicas[0].connections == 1
        # the replica closes what is kept just as the next request comes: that is nobody's failure
        for writer in list(setup.replicas[0]._writers):
            writer.close()
        answer = await setup.ask()
        assert (answer.status, answer.texts) == (200, "t0 t1 t2 ")
        assert setup.dispatcher.counts.retried == 0
        assert setup.dispatcher.replicas[0].state.failures == 0

    run_gateway(scenario)


def test_http_1_0_gets_a_body_that_ends_with_the_connection(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            body = json.dumps(completion()).encode()
            await client.send(b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            answer = await client.answer()
            assert "transfer-encoding" not in answer.headers
            assert answer.texts == "t0 t1 t2 "

    run_gateway(scenario)


def test_a_lagging_first_byte_is_sent_on_without_delay(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()

        async def two_parts(call: Call) -> None:
            await call.head()
            await call.event(text("first "))
            await gate.wait()
            await call.event(text("second "))
            await call.send(b"0\r\n\r\n")

        setup.replicas[0].next.append(two_parts)
        async with RawClient(setup.port) as client:
            await client.send(post(completion()))
            await client.head()
            await client.reader.readuntil(b"first ")
            gate.set()
            await client.reader.readuntil(b"second ")

    run_gateway(scenario)


def test_models_health_ready_version_metrics_and_page(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[1].models = ("m", "other")
        await setup.until(lambda: len(setup.dispatcher.replicas) == 2)
        models = (await setup.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == ["m"]
        assert (await setup.get("/health")).status == 200
        assert (await setup.get("/ready")).json()["replicas_up"] == 2
        assert "version" in (await setup.get("/version")).json()
        await setup.ask()
        metrics = (await setup.get("/metrics")).body.decode()
        assert (
            'headway_flow_control_requests_total{model_name="m",fairness_id="",outcome="completed",reason=""} 1.0'
            in metrics
        )
        assert 'headway_replica_up{replica="r1"} 1.0' in metrics
        for path in ("/headway/", "/headway/live.js", "/headway/live.css"):
            assert (await setup.get(path)).status == 200
        state = (await setup.get("/headway/state")).json()
        ended = {"completed": 1, "refused": 0, "cancelled": 0, "failed": 0}
        assert state["counts"] == {"arrived": 1, "inside": 0, "retried": 0, **ended}
        request_id = state["stories"][0]["id"]
        assert (await setup.get(f"/headway/why?id={request_id}")).json()["outcome"] == "completed"
        assert (await setup.get("/headway/why?id=nobody")).status == 404

    run_gateway(scenario, replicas=2)


def test_streams_with_crlf_lines_pass(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        told = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":9}}'
        data = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\r\n\r\ndata: ' + told + b"\r\n\r\n"

        async def crlf(call: Call) -> None:
            await call.head()
            await call.chunk(data)
            await call.send(b"0\r\n\r\n")

        setup.replicas[0].next.append(crlf)
        answer = await setup.ask()
        assert answer.body == data[: data.index(b'data: {"choices":[],')]
        assert setup.gateway.site.history.requests[-1]["output_tokens"] == 9

    run_gateway(scenario)


def test_many_at_once(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for replica in setup.replicas:
            replica.usual = streams(5, gap=0.001)
        answers_ = await asyncio.gather(*(setup.ask() for _ in range(200)))
        assert {(answer.status, answer.texts) for answer in answers_} == {(200, "t0 t1 t2 t3 t4 ")}
        assert max(replica.most_inside for replica in setup.replicas) <= 8
        assert sum(len(replica.calls) for replica in setup.replicas) == 200

    run_gateway(scenario, replicas=2, seats=8)
