"""Every error that the gateway gives has the shape of the API whose path was asked."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headway.gateway.settings import QueueSettings, TenantSettings
from headway.gateway.wire.limits import WireLimits
from tests.support.gateway_setup import QUICK, RawClient, RunGateway, Setup, post
from tests.support.scripted_replica import hangs, waits_for

MESSAGES = "/v1/messages"
PATHS = ["/v1/chat/completions", "/v1/responses", MESSAGES, "/v1/messages/count_tokens", "/score"]


def is_of(path: str, body: bytes, status: int) -> bool:
    """Whether a body is an error in the shape of the path's API."""
    content = json.loads(body)
    if not path.startswith(MESSAGES):
        return set(content) == {"error"} and {"message", "type", "param", "code"} == set(content["error"])
    names = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
    names |= {413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}
    expected = names.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return bool(content["type"] == "error" and content["error"]["type"] == expected and content["error"]["message"])


def asked(**fields: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], "input": "hi", "max_tokens": 9, **fields}


@pytest.mark.parametrize("path", PATHS)
def test_refusals_have_the_shape_of_the_path(run_gateway: RunGateway, path: str) -> None:
    async def scenario(setup: Setup) -> None:
        found: dict[int, bytes] = {}
        for body, headers in (
            (b"{" if path != "/score" else b'{"model": "other"}', ""),
            (asked(model="other"), ""),
            (asked(), "content-encoding: br\r\n"),
            (b" " * 3_000, ""),
            (asked(), "content-length: 9\r\n"),
        ):
            answer = await setup.ask(body, path, headers)
            found[answer.status] = answer.body
        async with RawClient(setup.port) as client:  # a method that is not forwarded
            await client.send(post(asked(), path).replace(b"POST", b"PATCH", 1))
            answer = await client.answer()
            found[answer.status] = answer.body
        await setup.replicas[0].stop()
        for _ in range(2):  # the refused connection ejects the replica: the next request finds none
            answer = await setup.ask(asked(), path)
            assert answer.headers["x-request-id"]
            found[answer.status] = answer.body
        assert set(found) == {400, 404, 405, 413, 415, 502, 503}
        for status, body in found.items():
            assert is_of(path, body, status), (status, body)

    run_gateway(scenario, wire=WireLimits(body_bytes=2_000))


@pytest.mark.parametrize("path", PATHS)
def test_a_full_queue_a_late_replica_and_a_wrong_key_have_it_too(
    run_gateway: RunGateway, path: str, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789")

    async def scenario(setup: Setup) -> None:
        bearer = "x-api-key: 0123456789\r\n"
        answer = await setup.ask(asked(), path, "x-api-key: wrong\r\n")
        assert (answer.status, is_of(path, answer.body, 401)) == (401, True)
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, hangs)
        waiting = [asyncio.create_task(setup.ask(asked(), path, bearer)) for _ in range(2)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 2)
        answer = await setup.ask(asked(), path, bearer)
        assert (answer.status, is_of(path, answer.body, 429)) == (429, True)
        assert answer.headers["retry-after"]
        for late in await asyncio.gather(*waiting):
            assert (late.status, is_of(path, late.body, 504)) == (504, True)

    run_gateway(
        scenario, seats=1, queue=QueueSettings(max_requests=1), health=replace(QUICK, first_byte_seconds=0.2),
        tenant=(TenantSettings(name="a", key_file=str(key)),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "event"),
    [
        ("/v1/chat/completions", {"error": {"type": "server_error", "code": "replica_failed"}}),
        ("/v1/responses", {"type": "response.failed", "response": {"status": "failed"}, "sequence_number": 1}),
        (MESSAGES, {"type": "error", "error": {"type": "api_error"}}),
    ],
)
def test_a_cut_stream_ends_with_the_event_of_its_path(
    run_gateway: RunGateway, path: str, event: dict[str, Any]
) -> None:
    async def scenario(setup: Setup) -> None:
        async def stops(call: Any) -> None:
            await call.head()
            await call.event({"type": "message_start"})
            await call.send(b"0\r\n\r\n")

        setup.replicas[0].next.append(stops)
        answer = await setup.ask(asked(stream=True), path)
        told = json.loads(answer.body.rsplit(b"data: ", 1)[1])
        for name, value in event.items():
            assert told[name].items() >= value.items() if isinstance(value, dict) else told[name] == value

    run_gateway(scenario)
