"""KV events in the whole gateway: found, subscribed to, and what they say decides routing and is told."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

pytest.importorskip("zmq", reason="pyzmq is not installed (extra kv-events)")

from headway.gateway.settings import PolicySettings, ReplicaSettings
from tests.support.gateway_setup import RunGateway, Setup
from tests.support.scripted_publisher import ScriptedPublisher, removed, stored
from tests.support.scripted_replica import ScriptedReplica, answers, usage

SIZE = 16
ROUTING = PolicySettings(ordering="fcfs", routing="cached-prefix")


def told(prompt_tokens: int, cached: int = 0) -> dict[str, object]:
    said: dict[str, Any] = {"choices": [], **usage(prompt_tokens, 2)}
    said["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}
    return said


def sources(publisher: ScriptedPublisher, *, enabled: bool = True, ranks: int = 1) -> dict[str, object]:
    """What vLLM's `/kv_event_sources` says."""
    port, replay = publisher.port, publisher.replay.rpartition(":")[2]
    one = {
        "enable_kv_cache_events": enabled, "publisher": "zmq" if enabled else "null", "endpoint": f"tcp://*:{port}",
        "replay_endpoint": f"tcp://*:{replay}", "buffer_steps": 10_000, "topic": "",
    }  # fmt: skip
    return {str(rank): one for rank in range(ranks)}


def settings(setup: Setup, replica: ScriptedReplica, number: int, **more: object) -> ReplicaSettings:
    return ReplicaSettings(url=replica.url, name=f"r{number}", kv_events=True, **more)  # type: ignore[arg-type]


def take(setup: Setup, *replicas: ReplicaSettings) -> None:
    """Give the gateway these replicas, as a reload does."""
    setup.gateway.reload(type(setup.settings)(**{**vars_of(setup.settings), "replica": replicas}))


def vars_of(value: Any) -> dict[str, object]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


async def connected(setup: Setup, *publishers: ScriptedPublisher) -> None:
    await asyncio.gather(*(publisher.subscribed() for publisher in publishers))
    await setup.until(lambda: all(one.is_up and one.kv_events.is_connected for one in setup.dispatcher.replicas))
    await setup.until(lambda: all(one.kv_events.index.is_whole for one in setup.dispatcher.replicas))


async def story(setup: Setup, name: str) -> dict[str, Any]:
    state = (await setup.get("/headway/state")).json()
    (found,) = [one for one in state["stories"] if one["id"] == name]
    known: dict[str, Any] = found
    return known


def test_a_prompt_of_token_ids_goes_where_its_blocks_are(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with ScriptedPublisher() as first, ScriptedPublisher() as second:
            for replica, publisher in zip(setup.replicas, (first, second), strict=True):
                replica.instead["/kv_event_sources"] = answers(200, sources(publisher))
                replica.usual = answers(200, told(400))
            take(setup, *(settings(setup, replica, number) for number, replica in enumerate(setup.replicas)))
            await connected(setup, first, second)
            ids = [1_000 + number for number in range(400)]
            await first.publish(stored([1], [5] * SIZE, block_size=SIZE))  # so that both say how large a block is
            await second.publish(stored(range(1, 11), ids[: 10 * SIZE], block_size=SIZE))
            await setup.until(lambda: all(len(one.kv_events.index) for one in setup.dispatcher.replicas))
            for name, there in (("a", 160), ("b", 96)):
                asked = {"model": "m", "prompt": ids, "max_tokens": 2}
                answer = await setup.ask(asked, headers=f"x-request-id: {name}\r\n")
                assert answer.headers["x-headway-replica"] == "r1"
                assert (await story(setup, name))["confirmed_tokens"] == there
                await second.publish(*(removed([block]) for block in (10, 9, 8, 7)))
                await setup.until(lambda: len(setup.dispatcher.replicas[1].kv_events.index) == 6)
            await setup.until(lambda: setup.dispatcher.replicas[1].kv_events.counts.batches == 3)
            page = (await setup.get("/headway/state")).json()["replicas"][1]["kv_events"]
            assert (page["blocks"], page["block_tokens"], page["whole"], page["gaps"]) == (6, SIZE, True, 0)
            metrics = (await setup.get("/metrics")).body.decode()
            assert 'headway_replica_kv_blocks{replica="r1"} 6' in metrics
            assert 'headway_replica_kv_event_batches_total{replica="r1"} 3' in metrics

    run_gateway(scenario, replicas=2, policies=ROUTING)


def test_the_blocks_of_an_adapter_and_of_a_salt_are_its_own(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with ScriptedPublisher() as engine:
            (replica,) = setup.replicas
            replica.usual = answers(200, told(400))
            models = {"data": [{"id": "m", "parent": None}, {"id": "sql", "parent": "m"}]}
            replica.instead["/v1/models"] = answers(200, models)
            take(setup, settings(setup, replica, 0, kv_events_endpoint=engine.events, kv_events_replay=engine.replay))
            await connected(setup, engine)
            ids = [1_000 + number for number in range(400)]
            extra: list[object] = [["sql", "salt"], *([["sql"]] * 9)]
            await engine.publish(stored(range(10), ids[:160], block_size=SIZE, extra_keys=extra, lora_name="sql"))
            await setup.until(lambda: len(setup.dispatcher.replicas[0].kv_events.index))
            for name, model, salt, there in (
                ("a", "sql", "salt", 160), ("b", "sql", "other", 0), ("c", "m", "salt", 0), ("d", "sql", None, 0)
            ):  # fmt: skip
                asked = {"model": model, "prompt": ids, "max_tokens": 2, "cache_salt": salt}
                await setup.ask(asked, headers=f"x-request-id: {name}\r\n")
                assert (await story(setup, name))["confirmed_tokens"] == there, name

    run_gateway(scenario, policies=ROUTING)


def test_the_blocks_of_a_text_are_learned_from_its_events(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with ScriptedPublisher() as engine:
            (replica,) = setup.replicas
            replica.usual = answers(200, told(512, 0))
            take(setup, settings(setup, replica, 0, kv_events_endpoint=engine.events, kv_events_replay=engine.replay))
            await connected(setup, engine)
            chat = {"model": "m", "messages": [{"role": "user", "content": "word " * 1_000}], "max_tokens": 2}

            async def asks(name: str) -> int:
                headers = f"x-request-id: {name}\r\n"
                assert (await setup.ask(chat, "/v1/chat/completions", headers)).status == 200
                confirmed: int = (await story(setup, name))["confirmed_tokens"]
                return confirmed

            assert await asks("first") == 0
            session = replica.calls[-1].headers["x-session-id"]
            assert session.startswith("headway-request-hw-")
            await engine.publish(stored(range(32), range(512), block_size=SIZE, session_id=session))
            index = setup.dispatcher.replicas[0].kv_events.index
            await setup.until(lambda: len(index) == 32)
            held = await asks("second")
            assert 512 * 3 // 4 < held < 512
            assert held % SIZE == 0
            assert replica.calls[-1].headers["x-session-id"] != session
            await engine.publish(*(removed([block]) for block in range(31, 9, -1)))
            await setup.until(lambda: len(index) == 10)
            assert 0 < await asks("third") <= 160
            headers = "x-session-id: own\r\n"
            await setup.ask(chat, "/v1/chat/completions", headers)
            assert replica.calls[-1].headers["x-session-id"] == "own"

    run_gateway(scenario, policies=ROUTING)


def test_nothing_is_learned_from_a_session_that_several_requests_may_have(run_gateway: RunGateway) -> None:
    """Its events do not say which of them stored what."""

    async def scenario(setup: Setup) -> None:
        async with ScriptedPublisher() as engine:
            (replica,) = setup.replicas
            replica.usual = answers(200, told(512))
            take(setup, settings(setup, replica, 0, kv_events_endpoint=engine.events, kv_events_replay=engine.replay))
            await connected(setup, engine)
            chat = {"model": "m", "messages": [{"role": "user", "content": "word " * 1_000}], "max_tokens": 2}
            index = setup.dispatcher.replicas[0].kv_events.index
            for number, headers in enumerate(("x-session-id: own\r\n", ""), 1):
                await setup.ask(chat, "/v1/chat/completions", headers)
                session = replica.calls[-1].headers["x-session-id"]
                await engine.publish(stored(range(32), range(512), block_size=SIZE, session_id=session))
                await setup.until(lambda number=number: batches_of(setup) == number)
                assert bool(index._learned) == (session != "own")

    run_gateway(scenario, policies=ROUTING)


def batches_of(setup: Setup) -> int:
    batches: int = setup.dispatcher.replicas[0].kv_events.counts.batches
    return batches


def test_without_kv_events_nothing_is_asked_and_no_header_is_added(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        await setup.ask()
        assert "x-session-id" not in setup.replicas[0].calls[-1].headers
        assert all(call.path != "/kv_event_sources" for call in setup.replicas[0].calls)
        assert (await setup.get("/headway/state")).json()["replicas"][0]["kv_events"] is None
        assert "headway_replica_kv_blocks{" not in (await setup.get("/metrics")).body.decode()

    run_gateway(scenario)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"enabled": False}, "they are off in its engine; start vLLM with --kv-events-config"),
        ({"ranks": 2}, "it has 2 data-parallel ranks with a cache each, and nothing says which one gets a request;"),
    ],
)
def test_an_engine_whose_events_cannot_be_read_is_told_of_once(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture, said: dict[str, Any], sentence: str
) -> None:
    async def scenario(setup: Setup) -> None:
        async with ScriptedPublisher() as engine:
            setup.replicas[0].instead["/kv_event_sources"] = answers(200, sources(engine, **said))
            take(setup, settings(setup, setup.replicas[0], 0))
            await setup.until(lambda: any("KV events" in record.getMessage() for record in caplog.records))
            (line,) = [record.getMessage() for record in caplog.records if "KV events" in record.getMessage()]
            assert line.startswith(f"replica r0 gives no KV events: {sentence}")
            assert (await setup.ask()).status == 200, "it serves all the same"

    with caplog.at_level(logging.WARNING, "headway.gateway"):
        run_gateway(scenario)


def test_a_replica_that_goes_is_read_no_more(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with ScriptedPublisher() as engine:
            (replica,) = setup.replicas
            take(setup, settings(setup, replica, 0, kv_events_endpoint=engine.events))
            (known,) = setup.dispatcher.replicas
            await setup.until(lambda: known.kv_events.is_connected)
            take(setup, ReplicaSettings(url=replica.url, name="r0"))
            await setup.until(lambda: not known.kv_events.is_connected)
            await setup.until(lambda: setup.dispatcher.replicas[0].is_up)
            assert setup.dispatcher.replicas[0].kv_events is None

    run_gateway(scenario)
