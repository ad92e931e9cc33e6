"""KV events over ZeroMQ: what a scripted publisher says is what the index holds, whatever is lost, late or broken."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("zmq", reason="pyzmq is not installed (extra kv-events)")

from headway.gateway.replicas.kv_block_index import KvBlockIndex
from headway.gateway.replicas.kv_event_subscription import KvEventSource, KvEventSubscription
from headway.gateway.token_blocks import keys_in_steps, packed
from tests.support.scripted_publisher import BLOCK_TOKENS, CLEARED, ScriptedPublisher, payload, removed, stored

FIRST, SECOND, THIRD = list(range(1, 5)), list(range(5, 9)), list(range(9, 13))


class Reading:
    """A subscription that runs."""

    def __init__(self, subscription: KvEventSubscription) -> None:
        self.subscription, self.index, self.counts = subscription, subscription.index, subscription.counts

    def tokens(self, *tokens: list[int]) -> int:
        """Tokens held of a prompt."""
        prompt = [token for part in tokens for token in part]
        *_, keys = keys_in_steps(packed([*prompt, 999]), BLOCK_TOKENS)
        return self.index.tokens_of_keys(keys)

    async def until(self, fact: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not fact():
            assert time.monotonic() < end, (self.counts, len(self.index))
            await asyncio.sleep(0.01)

    async def batches(self, number: int) -> None:
        await self.until(lambda: self.counts.batches >= number)


@asynccontextmanager
async def reading(publisher: ScriptedPublisher, blocks_max: int = 10_000) -> Any:
    async def find() -> KvEventSource:
        return KvEventSource(publisher.events, publisher.replay)

    subscription = KvEventSubscription("r", KvBlockIndex(blocks_max), find, time.monotonic)
    task = asyncio.create_task(subscription.run())
    known = Reading(subscription)
    try:
        await known.until(lambda: subscription.is_connected and (known.index.is_whole or not publisher.replay))
        await publisher.subscribed()
        yield known
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 60))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_array", [False, True])
def test_blocks_are_held_from_their_storing_to_their_removal(is_array: bool) -> None:
    async def scene() -> None:
        async with ScriptedPublisher(has_topic=not is_array) as engine, reading(engine) as known:
            assert known.index.is_whole, "an engine that has published nothing holds nothing"
            await engine.publish(stored([1, 2], FIRST + SECOND, is_array=is_array))
            await engine.publish(stored([3], THIRD, 2, is_array=is_array))
            await known.batches(2)
            assert known.tokens(FIRST, SECOND, THIRD) == 12
            assert known.tokens(FIRST, THIRD) == 4
            assert known.tokens(SECOND) == 0, "a block is one with all that is before it"
            await engine.publish(removed([3], is_array=is_array), removed([2], is_array=is_array))
            await known.batches(3)
            assert known.tokens(FIRST, SECOND, THIRD) == 4
            await engine.publish(["AllBlocksCleared"] if is_array else CLEARED)
            await known.batches(4)
            assert known.tokens(FIRST) == 0
            assert known.index.is_whole
            assert known.counts.lag_seconds is not None

    run(scene)


def test_a_late_subscriber_gets_what_was_published_before_it_came() -> None:
    async def scene() -> None:
        async with ScriptedPublisher() as engine:
            await engine.publish(stored([1], FIRST))
            await engine.publish(stored([2], SECOND, 1))
            async with reading(engine) as known:
                await known.batches(2)
                assert known.tokens(FIRST, SECOND) == 8
                assert known.index.is_whole
                assert known.counts.replayed == 2

    run(scene)


def test_what_an_engine_has_published_long_ago_is_not_known() -> None:
    async def scene() -> None:
        async with ScriptedPublisher() as engine:
            engine.next = 50  # its buffer begins here
            await engine.publish(stored([1], FIRST))
            await engine.publish(stored([9], THIRD, 8))  # behind a block that is not known
            subscription = KvEventSubscription("r", KvBlockIndex(100), lambda: _source(engine), time.monotonic)
            task = asyncio.create_task(subscription.run())
            known = Reading(subscription)
            await known.batches(2)
            assert known.tokens(FIRST) == 4
            assert not known.index.is_whole
            assert known.index.left_out == 1
            await engine.publish(CLEARED)
            await known.batches(3)
            assert known.index.is_whole
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(scene)


async def _source(engine: ScriptedPublisher) -> KvEventSource:
    return KvEventSource(engine.events, engine.replay)


def test_lost_batches_are_asked_for_again() -> None:
    async def scene() -> None:
        async with ScriptedPublisher() as engine, reading(engine) as known:
            await engine.publish(stored([1], FIRST))
            await engine.publish(stored([2], SECOND, 1), is_lost=True)
            await engine.publish(removed([2]), stored([3], THIRD, 1), is_lost=True)
            await engine.publish(stored([4], SECOND, 3))
            await known.batches(4)
            assert known.tokens(FIRST, THIRD, SECOND) == 12
            assert known.tokens(FIRST, SECOND) == 4
            assert (known.counts.gaps, engine.replays_asked) == (1, [0, 1])
            assert known.index.is_whole

    run(scene)


def test_without_a_replay_a_gap_empties_the_index() -> None:
    async def scene() -> None:
        async with ScriptedPublisher(replay=False) as engine, reading(engine) as known:
            assert not known.index.is_whole
            await engine.publish(stored([1], FIRST))
            await known.batches(1)
            assert known.index.is_whole, "it is the engine's first batch"
            await engine.publish(stored([2], SECOND, 1), is_lost=True)
            await engine.publish(stored([3], THIRD))
            await known.batches(2)
            assert known.tokens(FIRST) == 0
            assert known.tokens(THIRD) == 4
            assert not known.index.is_whole
            assert known.counts.gaps == 1

    run(scene)


def test_a_gap_that_the_replay_cannot_close_empties_the_index() -> None:
    async def scene() -> None:
        async with ScriptedPublisher() as engine, reading(engine) as known:
            await engine.publish(stored([1], FIRST))
            await known.batches(1)
            await engine.publish(stored([2], SECOND, 1), number=5)
            await known.batches(2)
            assert known.tokens(FIRST) == 0
            assert not known.index.is_whole

    run(scene)


def test_a_gap_whose_batches_the_engine_has_dropped_empties_the_index() -> None:
    async def scenario() -> None:
        async with ScriptedPublisher() as engine, reading(engine) as known:
            await engine.publish(stored([1], FIRST))
            await known.batches(1)
            await engine.send(5, payload(stored([3], THIRD)))  # and it is not in the buffer, nor are those before it
            await known.batches(2)
            assert known.tokens(FIRST) == 0
            assert known.tokens(THIRD) == 4
            assert not known.index.is_whole

    run(scenario)


def test_a_replay_that_is_not_answered_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.gateway.replicas import kv_event_sockets, kv_event_subscription

    monkeypatch.setattr(kv_event_sockets, "_REPLY_SECONDS", 1.0)
    monkeypatch.setattr(kv_event_subscription, "_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(kv_event_subscription, "_PATIENCE_SECONDS", 0.2)

    async def scene() -> None:
        async with ScriptedPublisher() as engine:
            await engine.publish(stored([1], FIRST))
            engine.is_silent = True
            subscription = KvEventSubscription("r", KvBlockIndex(100), lambda: _source(engine), time.monotonic)
            task = asyncio.create_task(subscription.run())
            known = Reading(subscription)
            await known.until(lambda: len(engine.replays_asked) == 2)
            assert not known.index.is_whole
            engine.is_silent = False
            await known.until(lambda: known.index.is_whole and not known.index.has_gap)
            assert known.tokens(FIRST) == 4
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(scene)


def test_a_replay_that_is_never_answered_leaves_what_came_since(monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.gateway.replicas import kv_event_sockets, kv_event_subscription

    monkeypatch.setattr(kv_event_sockets, "_REPLY_SECONDS", 0.2)
    monkeypatch.setattr(kv_event_subscription, "_AGAIN_SECONDS", 0.5)
    monkeypatch.setattr(kv_event_subscription, "_PATIENCE_SECONDS", 0.2)

    async def scene() -> None:
        async with ScriptedPublisher() as engine:
            engine.is_silent = True
            subscription = KvEventSubscription("r", KvBlockIndex(100), lambda: _source(engine), time.monotonic)
            task = asyncio.create_task(subscription.run())
            known = Reading(subscription)
            await engine.subscribed()
            await engine.publish(stored([1], FIRST))
            await known.batches(1)
            await known.until(lambda: len(engine.replays_asked) == 2)
            await known.until(lambda: not known.index.has_gap)
            assert known.tokens(FIRST) == 4
            await engine.publish(stored([2], SECOND, 1))
            await known.batches(2)
            assert known.tokens(FIRST, SECOND) == 8
            assert known.counts.gaps == 0
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(scene)


def test_a_malformed_batch_in_a_replay_is_passed_over() -> None:
    async def scene() -> None:
        async with ScriptedPublisher() as engine:
            await engine.publish(stored([1], FIRST))
            await engine.publish(content=b"\xc1")
            await engine.publish(stored([2], SECOND))
            subscription = KvEventSubscription("r", KvBlockIndex(100), lambda: _source(engine), time.monotonic)
            task = asyncio.create_task(subscription.run())
            known = Reading(subscription)
            await known.batches(2)
            await known.until(lambda: not known.index.has_gap)
            assert (known.counts.malformed, engine.replays_asked) == (1, [0])
            assert known.tokens(FIRST) == 0, "the batch that was not read may have removed it"
            assert known.tokens(SECOND) == 4
            assert not known.index.is_whole
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(scene)


def test_batches_that_come_late_or_twice_change_nothing() -> None:
    async def scene() -> None:
        async with ScriptedPublisher() as engine, reading(engine) as known:
            first, second = payload(stored([1], FIRST), at=5.0), payload(removed([1]), at=6.0)
            await engine.publish(content=first)
            await engine.publish(content=second)
            await engine.send(0, first)
            await engine.send(1, second)
            await engine.publish(stored([1], FIRST), stored([2], SECOND, 1))
            await known.batches(3)
            assert known.tokens(FIRST, SECOND) == 8
            assert known.counts.restarts == known.counts.gaps == 0
            await engine.publish(removed([2]), is_lost=True)  # the next two change their places
            late = engine.buffer[3]
            await engine.publish(stored([3], THIRD, 1))
            await engine.send(3, late)
            await known.batches(5)
            await engine.publish()
            await known.batches(6)
            assert known.tokens(FIRST, THIRD) == 8
            assert known.tokens(FIRST, SECOND) == 4
            assert known.index.is_whole

    run(scene)


@pytest.mark.parametrize("sees_the_first", [True, False])
def test_an_engine_that_begins_again_holds_nothing_of_what_it_held(sees_the_first: bool) -> None:
    async def scene() -> None:
        async with ScriptedPublisher() as engine, reading(engine) as known:
            for _ in range(5):
                await engine.publish(stored([1], FIRST))
            await known.batches(5)
            engine.buffer.clear()
            await engine.publish(stored([2], SECOND), number=0, is_lost=not sees_the_first)
            await engine.publish(stored([3], THIRD, 2))
            await known.batches(7)
            assert known.tokens(SECOND, THIRD) == 8
            assert known.tokens(FIRST) == 0
            assert known.index.is_whole
            assert known.counts.restarts == 1

    run(scene)


def test_a_lost_connection_empties_the_index_and_another_engine_fills_it() -> None:
    async def scene() -> None:
        async with ScriptedPublisher() as engine, reading(engine) as known:
            await engine.publish(stored([1], FIRST))
            await known.batches(1)
            await engine.close()
            await known.until(lambda: not known.subscription.is_connected)
            assert known.tokens(FIRST) == 0
            assert not known.index.is_whole
            async with ScriptedPublisher(replay=False, port=engine.port) as other:
                await known.until(lambda: known.subscription.is_connected)
                while known.counts.batches < 2:  # the replay of the engine before does not answer for a while
                    await other.publish(stored([2], SECOND), number=0)
                    await asyncio.sleep(0.1)
                assert known.tokens(SECOND) == 4
                assert known.counts.gaps == 1

    run(scene)


def test_malformed_messages_are_counted_and_empty_the_index(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with ScriptedPublisher() as engine, reading(engine) as known:
            bad: list[bytes] = [
                b"", b"\xc1", b"\x93\xcb", payload(stored([1, 2, 3], FIRST)), payload(stored(["x"], FIRST)),
                payload(["BlockStored"]), payload(stored([1], [-1] * 4)), payload(7), payload({"type": 3}),
                payload(stored([7], FIRST, block_size=0)),
            ]  # fmt: skip
            for number, content in enumerate(bad, 1):
                known.index.clear(is_whole=True)
                await engine.send(engine.next, content)
                engine.next += 1
                await known.until(lambda number=number: known.counts.malformed == number)  # type: ignore[misc]
                assert not known.index.is_whole
            await engine.send_frames(b"", b"short", payload())
            await known.until(lambda: known.counts.malformed == len(bad) + 1)
            await engine.publish(
                stored([1], FIRST), {"type": "SomethingNew"}, stored([9], FIRST, group_idx=3), number=99
            )
            await known.batches(1)
            assert known.tokens(FIRST) == 4
            assert known.index.ignored == 2

    with caplog.at_level(logging.WARNING, "headway.gateway"):
        run(scene)
    assert caplog.text.count("gives no KV events") == 1, "a publisher of nothing else does not fill the log"
    assert "Traceback" not in caplog.text


def test_nothing_is_said_to_be_held_once_a_subscription_broke_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is begun again after a pause, in which nothing is seen of what the engine does."""

    async def scene() -> None:
        async with ScriptedPublisher() as engine, reading(engine) as known:
            await engine.publish(stored([1], FIRST))
            await known.batches(1)

            def fail(*_: object) -> None:
                raise RuntimeError("a fault")

            with monkeypatch.context() as patched:
                patched.setattr(known.index, "take", fail, raising=False)
                await engine.publish(stored([2], SECOND))
                await known.until(lambda: not known.subscription.is_connected)
            assert not known.index.is_whole
            assert known.tokens(FIRST) == 0

    run(scene)


def test_a_giant_batch_leaves_turns_to_others() -> None:
    blocks = 60_000

    async def scene() -> None:
        async with ScriptedPublisher() as engine, reading(engine, 10 * blocks) as known:
            turns, longest = 0, 0.0

            async def other() -> None:
                nonlocal turns, longest
                while True:
                    began = time.thread_time()
                    await asyncio.sleep(0)
                    turns, longest = turns + 1, max(longest, time.thread_time() - began)

            await engine.publish(
                stored(range(1, blocks + 1), range(blocks * BLOCK_TOKENS)),
                *(removed([name]) for name in range(blocks, blocks // 2, -1)),
            )
            watch = asyncio.create_task(other())
            await known.batches(1)
            watch.cancel()
            assert len(known.index) == blocks // 2
            assert turns > blocks // 300
            assert longest < 0.1, "of processor time of the event loop's thread"

    run(scene)


def test_more_blocks_than_the_limit_are_left_out() -> None:
    async def scene() -> None:
        async with ScriptedPublisher() as engine, reading(engine, blocks_max=2) as known:
            await engine.publish(stored([1, 2, 3], FIRST + SECOND + THIRD))
            await known.batches(1)
            assert (len(known.index), known.index.left_out) == (2, 1)
            assert known.tokens(FIRST, SECOND, THIRD) == 8
            assert not known.index.is_whole

    run(scene)


@pytest.mark.parametrize("what", ["nothing", "replay socket", "no ZeroMQ"])
def test_what_is_no_publisher_is_told_of_in_one_sentence(
    what: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headway.gateway.replicas import kv_event_subscription

    monkeypatch.setattr(kv_event_subscription, "_PATIENCE_SECONDS", 2.0)

    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
        await reader.read(100)
        writer.close()

    async def scene() -> None:
        async with ScriptedPublisher() as engine:
            server = await asyncio.start_server(hello, "127.0.0.1", 0)
            ports = {"nothing": "tcp://127.0.0.1:9", "replay socket": engine.replay}
            endpoint = ports.get(what) or f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"

            async def find() -> KvEventSource:
                return KvEventSource(endpoint, "")

            subscription = KvEventSubscription("r", KvBlockIndex(10), find, time.monotonic)
            task = asyncio.create_task(subscription.run())
            await Reading(subscription).until(lambda: bool(caplog.records))
            await asyncio.sleep(3.0)  # it is tried again
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            server.close()
            await server.wait_closed()

    with caplog.at_level(logging.WARNING, "headway.gateway"):
        run(scene)
    said = {record.getMessage() for record in caplog.records}
    assert all(line.startswith("replica r gives no KV events: ") for line in said)
    assert len(said) == len(caplog.records) == 1, said
