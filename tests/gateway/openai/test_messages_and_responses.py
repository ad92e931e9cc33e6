"""The Messages and the Responses API, by the packages `anthropic` and `openai`: read, learnt, ordered as chats are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from headway.gateway.queueing.counts import Outcome
from headway.gateway.settings import QueueSettings, TenantSettings
from tests.support import gateway_setup
from tests.support.gateway_setup import RunGateway, Setup
from tests.support.scripted_replica import answers, hangs
from tests.support.vendor_streams import message_events, response_events, sends_events

anthropic = pytest.importorskip("anthropic", reason="the package anthropic is not installed")

SAID: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"name": "look", "description": "looks up", "input_schema": {"type": "object", "properties": {}}}]


@pytest.fixture(autouse=True)
def _packages_may_hold_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages build their models at the first use of each, in the loop that the gateway runs in here."""
    monkeypatch.setattr(gateway_setup, "LOOP_HELD_SECONDS_MAX", 20.0)


ON = QueueSettings(keep_alive_seconds=0.3)


def claude(setup: Setup, **more: Any) -> Any:
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{setup.port}", api_key="any", max_retries=0, **more)


def gpt(setup: Setup, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{setup.port}/v1", api_key="any", max_retries=0, **more)


def latest(setup: Setup) -> dict[str, Any]:
    return dict(setup.gateway.site.history.requests[-1])


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_messages_stream_with_text_and_tools_after_any_wait(run_gateway: RunGateway, seconds: float) -> None:
    async def scenario(setup: Setup) -> None:
        wait = 0.8 if seconds else 0.0
        setup.replicas[0].next += [
            sends_events(message_events("hello"), wait), sends_events(message_events("", {"word": "x"}), wait),
        ]  # fmt: skip
        async with claude(setup) as client:
            asked: Any = {"model": "m", "max_tokens": 64, "messages": SAID, "system": "be brief", "tools": TOOLS}
            async with client.messages.stream(**asked) as stream:
                assert [text async for text in stream.text_stream] == ["hello"]
                whole = await stream.get_final_message()
            assert (whole.stop_reason, whole.usage.output_tokens, whole.usage.cache_read_input_tokens) == (
                "end_turn", 5, 16,
            )  # fmt: skip
            call = (await client.messages.create(**asked, stream=True)).__aiter__()
            kinds = [one.type async for one in call]
            assert kinds[0] == "message_start"
            assert kinds[-1] == "message_stop"
        assert (setup.gateway.dispatcher.counts.keep_alives > 0) is (seconds > 0)
        story = latest(setup)
        assert (story["output_tokens"], story["outcome"]) == (5, "completed")
        seen = setup.replicas[0].calls[-1]
        assert seen.headers["anthropic-version"]
        assert seen.json()["max_tokens"] == 64

    run_gateway(scenario, queue=QueueSettings(keep_alive_seconds=seconds))


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_responses_stream_after_any_wait(run_gateway: RunGateway, seconds: float) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].next.append(sends_events(response_events("hello"), 0.8 if seconds else 0.0))
        async with (
            gpt(setup) as client,
            client.responses.stream(model="m", input="hi", instructions="be brief") as stream,
        ):
            async for _ in stream:
                pass
            whole = await stream.get_final_response()
        assert (whole.output_text, whole.status) == ("hello", "completed")
        story = latest(setup)
        assert (story["output_tokens"], story["outcome"]) == (5, "completed")

    run_gateway(scenario, queue=QueueSettings(keep_alive_seconds=seconds))


def test_what_goes_wrong_reaches_each_client_as_its_own_error(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with claude(setup) as client, gpt(setup) as other:
            asked: Any = {"max_tokens": 9, "messages": SAID}
            with pytest.raises(anthropic.NotFoundError) as missing:
                await client.messages.create(model="other", **asked)
            assert missing.value.type == "not_found_error"
            setup.replicas[0].next += [
                sends_events(message_events("hello")[:3]),
                sends_events(response_events("x")[:5]),
            ]
            with pytest.raises(anthropic.APIStatusError) as cut:
                async with client.messages.stream(model="m", **asked) as stream:
                    await stream.get_final_message()
            assert cut.value.type == "api_error"
            kinds = [one.type async for one in await other.responses.create(model="m", input="hi", stream=True)]
            assert kinds[-1] == "response.failed"
            # the queue's limit of time, after keep-alives
            setup.replicas[0].usual = hangs
            for path, error in (("messages", anthropic.APIStatusError), ("chat", openai.APIError)):
                first = asyncio.create_task(setup.ask())
                await setup.until(lambda: setup.dispatcher.counts.inside)
                create = client.messages.create if path == "messages" else other.chat.completions.create
                waiting = await create(model="m", stream=True, **asked)
                with pytest.raises(error, match="waited in the queue"):
                    async for _ in waiting:
                        pass
                first.cancel()
                await setup.until(lambda: not setup.dispatcher.counts.inside)

    run_gateway(scenario, seats=1, queue=QueueSettings(keep_alive_seconds=0.3, timeout_seconds=1.0))


def test_a_client_that_leaves_a_stream_of_either_frees_the_replica(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].next += [
            sends_events(message_events("hello"), keep=3), sends_events(response_events("hello"), keep=3), hangs, hangs,
        ]  # fmt: skip
        async with claude(setup) as client, gpt(setup) as other:
            async with client.messages.stream(model="m", max_tokens=9, messages=SAID) as messages:
                async for one in messages:
                    if one.type == "content_block_delta":
                        break
            responses = await other.responses.create(model="m", input="hi", stream=True)
            async for _ in responses:
                break
            await responses.close()
            await setup.until(lambda: setup.dispatcher.counts.ended[Outcome.CANCELLED] == 2)
            # The first keep-alive brings the head, long before any answer.
            early = await client.messages.create(model="m", max_tokens=9, messages=SAID, stream=True)
            await early.close()
            silent = await other.responses.create(model="m", input="hi", stream=True)
            await silent.close()
            await setup.until(lambda: setup.dispatcher.counts.ended[Outcome.CANCELLED] == 4)
        assert not setup.replicas[0].inside

    run_gateway(scenario, queue=ON)


def test_chats_messages_and_responses_share_a_queue(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        first = asyncio.create_task(setup.ask())
        await setup.until(lambda: setup.replicas[0].calls)
        bodies = {
            "/v1/chat/completions": {"model": "m", "messages": SAID, "max_tokens": 9},
            "/v1/messages": {"model": "m", "messages": SAID, "max_tokens": 9},
            "/v1/responses": {"model": "m", "input": "hi", "max_output_tokens": 9},
        }
        asking = [asyncio.create_task(setup.ask(body, path)) for path, body in bodies.items()]
        await setup.until(lambda: setup.dispatcher.counts.inside == 4)
        waiting = [queue for queue in setup.dispatcher.queues.values() if len(queue)]
        assert [len(queue) for queue in waiting] == [3]
        assert {relay.request.queued.max_output_tokens for relay in setup.dispatcher.relays.values()} == {None, 9}
        for one in (first, *asking):
            one.cancel()

    run_gateway(scenario, seats=1)


def test_a_response_goes_to_the_replica_that_keeps_the_one_before(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for number, one in enumerate(setup.replicas):
            one.next.append(sends_events(response_events("hello", f"resp_{number}"), 0.3))
            one.usual = sends_events(response_events("hello", f"resp_{number}_more"))
        body = {"model": "m", "input": "hi", "stream": True}
        await asyncio.gather(*[setup.ask(body, "/v1/responses") for _ in setup.replicas])
        for number in (0, 1, 1, 0, 1, 0):
            before = len(setup.replicas[number].calls)
            await setup.ask({**body, "previous_response_id": f"resp_{number}"}, "/v1/responses")
            assert len(setup.replicas[number].calls) == before + 1

    run_gateway(scenario, replicas=2, seats=1)


def test_keys_of_anthropics_clients_and_paths_beside_v1(run_gateway: RunGateway, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789")

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {"input_tokens": 3})
        with pytest.raises(anthropic.AuthenticationError):
            async with claude(setup) as client:
                await client.messages.count_tokens(model="m", messages=SAID)
        async with anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{setup.port}", api_key="0123456789") as client:
            assert (await client.messages.count_tokens(model="m", messages=SAID, system="x")).input_tokens == 3
        seen = setup.replicas[0].calls[-1]
        assert (seen.path.partition("?")[0], "authorization" in seen.headers) == ("/v1/messages/count_tokens", False)
        for path in (
            "/tokenize",
            "/detokenize",
            "/score",
            "/v1/score",
            "/rerank",
            "/v1/rerank",
            "/v2/rerank",
            "/pooling",
        ):
            answer = await setup.ask({"model": "m"}, path, "x-api-key: 0123456789\r\n")
            assert (answer.status, setup.replicas[0].calls[-1].path) == (200, path)
            assert (await setup.ask({"model": "m"}, path)).status == 401
        assert (await setup.get("/score", "x-api-key: 0123456789\r\n")).status == 405

    run_gateway(scenario, tenant=(TenantSettings(name="a", key_file=str(key)),))
