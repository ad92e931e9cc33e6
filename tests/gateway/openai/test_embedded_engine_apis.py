"""The embedded engine in each API, as the clients of openai and anthropic read it through the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pytest

from headway.gateway.embedded.embedded_engine import EmbeddedEngine
from headway.gateway.embedded.engine_routes import WORDS
from headway.gateway.settings import EmbeddedSettings
from tests.gateway.openai.test_messages_and_responses import claude, gpt, latest
from tests.support import gateway_setup
from tests.support.gateway_setup import RunGateway, Setup

SAID: Any = [{"role": "user", "content": "tell me of the weather " * 20}]


@pytest.fixture(autouse=True)
def _packages_may_hold_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages build their models at the first use of each, in the loop that the gateway runs in here."""
    monkeypatch.setattr(gateway_setup, "LOOP_HELD_SECONDS_MAX", 20.0)


@pytest.fixture
def run_engine(run_gateway: RunGateway) -> Callable[[Callable[[Setup, str], Awaitable[None]]], None]:
    """Runs a scenario at a gateway before an embedded engine; it gets the name of the engine's model."""

    def run(scenario: Callable[[Setup, str], Awaitable[None]]) -> None:
        async def inside(setup: Setup) -> None:
            engine = EmbeddedEngine(EmbeddedSettings())
            try:
                setup.gateway.reload(replace(setup.settings, replica=(await engine.start(0),)))
                await setup.until(lambda: setup.dispatcher.replicas[0].is_up)
                await scenario(setup, (await setup.get("/v1/models")).json()["data"][0]["id"])
            finally:
                setup.gateway.reload(setup.settings)
                await setup.until(lambda: not setup.gateway._membership.leaving)  # it connects to the engine no more
                await engine.stop()
                await setup.until(lambda: not engine._clients)

        run_gateway(inside)

    return run


def test_messages(run_engine: Callable[..., None]) -> None:
    async def scenario(setup: Setup, model: str) -> None:
        async with claude(setup) as client:
            asked: Any = {"model": model, "max_tokens": 3, "messages": SAID, "system": "be brief"}
            async with client.messages.stream(**asked) as stream:
                texts = [text async for text in stream.text_stream]
                streamed = await stream.get_final_message()
            whole = await client.messages.create(**asked)
            for one in (streamed, whole):
                assert (one.stop_reason, one.usage.output_tokens) == ("max_tokens", 3)
                assert one.content[0].text.split() == list(WORDS[:3])
                assert one.usage.input_tokens + (one.usage.cache_read_input_tokens or 0) > 100
            assert "".join(texts).split() == list(WORDS[:3])
            assert latest(setup)["output_tokens"] == 3
            with pytest.raises(anthropic.BadRequestError, match="max_tokens must be at least 1"):
                await client.messages.create(**{**asked, "max_tokens": 0})

    run_engine(scenario)


def test_responses(run_engine: Callable[..., None]) -> None:
    async def scenario(setup: Setup, model: str) -> None:
        async with gpt(setup) as client:
            asked: Any = {"model": model, "max_output_tokens": 3, "input": SAID, "instructions": "be brief"}
            async with client.responses.stream(**asked) as stream:
                events = [event async for event in stream]
            streamed = events[-1].response
            assert [event.sequence_number for event in events] == list(range(len(events)))
            whole = await client.responses.create(**asked)
            for one in (streamed, whole):
                assert (one.status, one.output_text.split()) == ("incomplete", list(WORDS[:3]))
                assert one.usage.output_tokens == 3
                assert one.usage.input_tokens > 100
            assert latest(setup)["output_tokens"] == 3
            free = await client.responses.create(model=model, input="a short one")
            assert free.status == "completed"
            with pytest.raises(openai.BadRequestError, match="the prompt must not be empty"):
                await client.responses.create(model=model)

    run_engine(scenario)


def test_what_the_engine_does_not_serve_is_said_in_the_shape_of_the_path(run_engine: Callable[..., None]) -> None:
    async def scenario(setup: Setup, model: str) -> None:
        for path, fields in (("/v1/messages/count_tokens", ["error", "type"]), ("/v1/responses/r/cancel", ["error"])):
            missing = await setup.ask({"model": model, "messages": SAID}, path=path)
            assert (missing.status, sorted(missing.json())) == (404, fields)
            assert "the simulated engine answers /v1/chat/completions" in missing.json()["error"]["message"]

    run_engine(scenario)
