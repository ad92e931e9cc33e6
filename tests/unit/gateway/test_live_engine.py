"""The embedded engine: the simulator's rules on a clock that the test turns."""

from __future__ import annotations

import asyncio
import time

from headway.gateway.embedded.live_engine import LiveEngine
from headway.simulator.replica import replica


def test_tokens_come_to_everybody_and_memory_is_free_in_the_end() -> None:
    async def day() -> None:
        engine = LiveEngine(replica("h100", "llama-3.1-8b", kv_tokens=1_600), time.monotonic)
        running = asyncio.create_task(engine.live())
        came: dict[int, list[bool]] = {number: [] for number in range(6)}
        for number, tokens in came.items():
            engine.submit(300, 5 + number, None, tokens.append)
        left: list[bool] = []
        gone = engine.submit(300, 1_000, 1_000, left.append)
        waiting = engine.submit(1_500, 10, 10, left.append)
        async with asyncio.timeout(30):
            while not came[5] or not came[5][-1]:
                await asyncio.sleep(0.005)
        engine.abort(gone)
        engine.abort(waiting)
        engine.abort(12_345)
        await asyncio.sleep(0.1)
        assert [len(tokens) for tokens in came.values()] == [5, 6, 7, 8, 9, 10]
        assert all(tokens[-1] and not any(tokens[:-1]) for tokens in came.values())
        assert (engine.size, engine.waiting, engine.kv_share) == (0, 0, 0.0)
        again: list[bool] = []
        engine.submit(1_500, 1, 1, again.append)
        async with asyncio.timeout(30):
            while not again:
                await asyncio.sleep(0.005)
        assert again == [True]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(day())


def test_what_can_never_fit_is_said() -> None:
    async def ask() -> None:
        engine = LiveEngine(replica("h100", "llama-3.1-8b", kv_tokens=1_600), time.monotonic)
        assert engine.why_never(1_000, 100) is None
        assert "KV memory of 1600 tokens" in str(engine.why_never(1_600, 100))

    asyncio.run(ask())
