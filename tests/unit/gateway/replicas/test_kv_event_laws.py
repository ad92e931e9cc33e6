"""Laws of the index: under any loss, delay, repetition and restart, nothing is said to be held that is not held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.replicas import kv_event_subscription
from headway.gateway.replicas.kv_block_index import KvBlockIndex
from headway.gateway.replicas.kv_event_messages import Message
from headway.gateway.replicas.kv_event_subscription import KvEventSource, KvEventSubscription
from headway.gateway.token_blocks import keys_in_steps, packed

SIZE = 2
BUFFER = 4


class Engine:
    """The cache of an engine, as vLLM keeps it: blocks behind others, held once or more often, evicted at the ends."""

    def __init__(self) -> None:
        self.number = -1
        self.seconds = 0.0
        self.copies: dict[tuple[int, ...], int] = {}  # all tokens up to a block's end -> how often it is held
        self.buffer: dict[int, bytes] = {}
        self.starts = 0

    def name(self, tokens: tuple[int, ...]) -> int:
        return hash((self.starts, tokens)) & (2**64 - 1)

    def act(self, what: int, choice: int, token: int) -> None:
        """Store a block, evict one, clear all, or start again; one batch."""
        held, events = sorted(self.copies), []
        self.seconds += 1.0
        if what < 6:
            parent = ([(), *held])[choice % (len(held) + 1)]
            tokens = (*parent, token, token)
            self.copies[tokens] = self.copies.get(tokens, 0) + 1
            event = {"type": "BlockStored", "block_hashes": [self.name(tokens)], "token_ids": [token] * SIZE}
            events = [event | {"parent_block_hash": self.name(parent) if parent else None, "block_size": SIZE}]
        elif what < 9 and held:
            ends = [one for one in held if not any(o != one and o[: len(one)] == one for o in held)]
            end = ends[choice % len(ends)]
            self.copies[end] -= 1
            if not self.copies[end]:
                del self.copies[end]
            events = [{"type": "BlockRemoved", "block_hashes": [self.name(end)]}]
        elif what == 9 and token == 0:
            self.copies.clear()
            events = [{"type": "AllBlocksCleared"}]
        elif what == 9 and token == 1:
            self.starts += 1
            self.number = -1
            self.copies.clear()
            self.buffer.clear()
        self.number += 1
        self.buffer[self.number] = msgspec.msgpack.encode([self.seconds, events])
        self.buffer = dict(list(self.buffer.items())[-BUFFER:])

    def message(self) -> Message:
        return Message(self.number, self.buffer[self.number])

    def tokens(self, prompt: tuple[int, ...]) -> int:
        return max((len(one) for one in self.copies if prompt[: len(one)] == one), default=0)


PROMPTS = [(a, a, b, b, c, c) for a in range(3) for b in range(3) for c in range(3)]
ACTS = st.tuples(st.integers(0, 9), st.integers(0, 50), st.integers(0, 2))


def check(index: KvBlockIndex, engine: Engine) -> None:
    assert not index.has_gap
    for prompt in PROMPTS:
        *_, keys = keys_in_steps(packed([*prompt, 99]), SIZE)
        said, held = index.tokens_of_keys(keys), engine.tokens(prompt)
        assert said <= held
        if index.is_whole:
            assert said == held


@pytest.mark.parametrize("has_replay", [True, False])
@given(
    st.lists(st.tuples(ACTS, st.sampled_from(["comes", "lost", "late", "twice", "broken", "reconnects"])), max_size=40)
)
def test_whatever_happens_on_the_way_the_index_says_nothing_wrong(has_replay: bool, acts: list[Any]) -> None:
    engine = Engine()

    index = KvBlockIndex(1_000)

    async def replayed(endpoint: str, start: int) -> AsyncIterator[Message | None]:
        assert index.has_gap, "what it says may be wrong until the gap is closed"
        for number, payload in engine.buffer.items():
            if number >= start:
                yield Message(number, payload)
        yield None

    async def scene() -> None:
        subscription = KvEventSubscription("r", index, _nowhere, lambda: 0.0)
        subscription._source = KvEventSource("tcp://x:1", "tcp://x:2" if has_replay else "")
        await subscription._catch_up(0)
        late: list[Message] = []
        is_away = False
        for act, way in acts:
            starts = engine.starts
            engine.act(*act)
            message = engine.message()
            if engine.starts != starts:  # the connection ended with the process
                late.clear()
                subscription._lose()
                is_away = True
            if way == "lost":
                continue
            if way == "late":
                late.append(message)
                continue
            if way == "broken" and not is_away:
                await subscription._take(Message(message.sequence, message.payload[:-2]))
                assert not subscription.index.is_whole
                continue
            if way == "reconnects":
                subscription._lose()
            if way == "reconnects" or is_away:
                await subscription._catch_up(0)
                is_away = False
            await subscription._take(message)
            if way == "twice":
                await subscription._take(message)
            check(subscription.index, engine)
            for one in late:
                await subscription._take(one)
            late.clear()
            check(subscription.index, engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_event_subscription, "replayed", replayed)
        asyncio.run(scene())


async def _nowhere() -> None:
    return None
