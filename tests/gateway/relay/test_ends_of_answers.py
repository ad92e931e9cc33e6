"""Status 200 and an end are no success: answers that stop, or hold the engine's error, are failures for everybody."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.gateway_setup import QUICK, RunGateway, Setup
from tests.support.scripted_replica import Call, Script, answers, dies_mid_stream, text, usage

PLAIN = b"HTTP/1.0 200 OK\r\ncontent-type: "
ERROR = {"error": {"message": "the engine died", "type": "InternalServerError", "param": None, "code": 500}}


def sends(*events: object, done: bool = False) -> Script:
    async def script(call: Call) -> None:
        await call.head()
        for one in events:
            await call.event(one)
        if done:
            await call.chunk(b"data: [DONE]\n\n")
        await call.send(b"0\r\n\r\n")

    return script


async def stops_by_closing(call: Call) -> None:
    await call.send(PLAIN + b"text/event-stream\r\n\r\ndata: " + json.dumps(text("a")).encode() + b"\n\ndata: {")
    call.writer.close()


async def stops_within_json(call: Call) -> None:
    await call.send(PLAIN + b'application/json\r\n\r\n{"choices": [{"text": "hal')
    call.writer.close()


CUT = {
    "chunked": sends(text("a"), text("b")),
    "chunked, usage": sends(text("a"), usage(5, 1)),
    "closed": stops_by_closing,
}
ERRORS = {
    "error": sends(text("a"), ERROR),
    "error, [DONE]": sends(text("a"), ERROR, done=True),
    "error alone": sends(ERROR, done=True),
    "error, usage, [DONE]": sends(text("a"), ERROR, usage(5, 1), done=True),
}


def check_failed(setup: Setup, record: Path) -> None:
    entry = setup.gateway.site.history.requests[-1]
    assert (entry["outcome"], entry["reason"]) == ("failed", "replica-failed")
    assert setup.replicas[0].calls
    assert setup.dispatcher.replicas[0].state.last_failure
    setup.gateway._recorder.flush()  # type: ignore[union-attr]
    line = json.loads(record.read_text())
    assert line["outcome"] == "failed"
    assert not line.keys() & {"output_length", "e2e_ms"}
    assert "headway_tokens_total{" not in setup.gateway.site.metrics.text().decode()


@pytest.mark.parametrize("script", CUT.values(), ids=CUT.keys())
def test_a_stream_that_stops_ends_with_an_error_event(run_gateway: RunGateway, script: Script, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].next.append(script)
        answer = await setup.ask()
        assert answer.texts.startswith("a")
        assert answer.body.count(b'"finish_reason": "error"') == 1
        assert b"[DONE]" not in answer.body
        check_failed(setup, tmp_path / "r.jsonl")

    run_gateway(scenario, record=str(tmp_path / "r.jsonl"))


@pytest.mark.parametrize("script", ERRORS.values(), ids=ERRORS.keys())
def test_an_engines_error_passes_as_it_came(run_gateway: RunGateway, script: Script, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].next.append(script)
        answer = await setup.ask()
        assert answer.whole
        assert answer.body.count(b'"error"') == 1
        assert b'"finish_reason": "error"' not in answer.body
        check_failed(setup, tmp_path / "r.jsonl")

    run_gateway(scenario, record=str(tmp_path / "r.jsonl"))


def test_a_json_answer_without_length_that_stops_is_cut_at_the_client_too(
    run_gateway: RunGateway, tmp_path: Path
) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].next.append(stops_within_json)
        assert not (await setup.ask({"model": "m", "prompt": "x"})).whole
        check_failed(setup, tmp_path / "r.jsonl")

    run_gateway(scenario, record=str(tmp_path / "r.jsonl"))


def test_an_error_with_status_200_is_a_failure(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].next.append(answers(200, ERROR))
        answer = await setup.ask({"model": "m", "prompt": "x"})
        assert (answer.status, answer.json()) == (200, ERROR)
        check_failed(setup, tmp_path / "r.jsonl")

    run_gateway(scenario, record=str(tmp_path / "r.jsonl"))


def test_a_request_that_is_at_fault_does_not_count_against_its_replica(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = sends({"error": {"message": "too long", "code": 400}}, done=True)
        for _ in range(5):
            await setup.ask()
        assert setup.gateway.site.history.requests[-1]["outcome"] == "failed"
        assert setup.dispatcher.replicas[0].is_up

    run_gateway(scenario)


def test_an_engine_is_asked_not_to_compress_what_is_read(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async def compresses(call: Call) -> None:
            packed = "gzip" in call.headers.get("accept-encoding", "")
            await call.head(extra="content-encoding: gzip\r\n" if packed else "")
            data = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in (text("a"), usage(7, 1)))
            data += b"data: [DONE]\n\n"
            await call.chunk(gzip.compress(data) if packed else data)
            await call.send(b"0\r\n\r\n")

        setup.replicas[0].usual = compresses
        answer = await setup.ask(headers="accept-encoding: gzip, deflate\r\n")
        assert answer.texts == "a"
        assert b"usage" not in answer.body
        assert setup.replicas[0].calls[-1].headers["accept-encoding"] == "identity"
        assert setup.gateway.site.history.requests[-1]["output_tokens"] == 1
        await setup.ask({"model": "m", "input": "x"}, "/v1/embeddings", headers="accept-encoding: gzip\r\n")
        assert setup.replicas[0].calls[-1].headers["accept-encoding"] == "gzip"

    run_gateway(scenario)


@pytest.mark.parametrize("script", [sends(text("a"), ERROR, done=True), sends(text("a")), dies_mid_stream])
def test_a_replica_whose_answers_begin_well_and_break_is_ejected(run_gateway: RunGateway, script: Script) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = script
        for _ in range(12):
            await setup.ask()
            if setup.replicas[1].calls:
                break
        assert len(setup.replicas[0].calls) == setup.settings.health.failures_to_eject

    run_gateway(scenario, replicas=2, health=replace(QUICK, eject_seconds=60.0, eject_seconds_max=60.0))
