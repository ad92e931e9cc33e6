"""A scripted publisher of KV events: ZeroMQ sockets as vLLM has them, and batches as a test wants them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio

END = b"\xff" * 8
BLOCK_TOKENS = 4


def stored(
    names: Sequence[object], tokens: Sequence[int], parent: object = None, *, is_array: bool = False, **fields: object
) -> object:
    """A `BlockStored` event, as a map or, as older releases write it, an array."""
    size = fields.pop("block_size", BLOCK_TOKENS)
    if is_array:
        return ["BlockStored", list(names), parent, list(tokens), size, None, "GPU", None]
    event = {"type": "BlockStored", "block_hashes": list(names), "parent_block_hash": parent, "token_ids": list(tokens)}
    return event | {"block_size": size, "medium": "GPU", **fields}


def removed(names: Sequence[object], *, is_array: bool = False, **fields: object) -> object:
    if is_array:
        return ["BlockRemoved", list(names), "GPU"]
    return {"type": "BlockRemoved", "block_hashes": list(names), "medium": "GPU", **fields}


CLEARED = {"type": "AllBlocksCleared"}


def payload(*events: object, at: float | None = None) -> bytes:
    return msgspec.msgpack.encode([time.time() if at is None else at, list(events), 0])


class ScriptedPublisher:
    """On the running event loop; `async with` it.

    Attributes:
        buffer: number -> payload of what a replay gives.
        replays_asked: numbers that replays were asked from.
    """

    def __init__(self, *, replay: bool = True, port: int = 0, has_topic: bool = True) -> None:
        self.buffer: dict[int, bytes] = {}
        self.replays_asked: list[int] = []
        self.next = 0
        self.is_silent = False  # when it is asked for a replay
        self._has_topic = has_topic
        self._context = zmq.asyncio.Context()
        self._events: Any = self._context.socket(zmq.XPUB)  # as PUB, and it tells of subscribers
        self._events.setsockopt(zmq.LINGER, 0)
        self.port = port or self._events.bind_to_random_port("tcp://127.0.0.1")
        if port:
            self._events.bind(f"tcp://127.0.0.1:{port}")
        self.events = f"tcp://127.0.0.1:{self.port}"
        self.replay = ""
        self._replay: Any = None
        self._task: asyncio.Task[None] | None = None
        if replay:
            self._replay = self._context.socket(zmq.ROUTER)
            self.replay = f"tcp://127.0.0.1:{self._replay.bind_to_random_port('tcp://127.0.0.1')}"

    async def __aenter__(self) -> ScriptedPublisher:
        if self._replay is not None:
            self._task = asyncio.create_task(self._answer())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """The engine is gone; it may be closed again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._replay.close(0)
        self._events.close(0)
        self._context.destroy(0)

    async def subscribed(self) -> None:
        """Wait for the next subscriber; what is published before it is lost to it."""
        async with asyncio.timeout(60):
            while (await self._events.recv())[:1] != b"\1":
                pass

    async def publish(
        self, *events: object, number: int | None = None, content: bytes | None = None, is_lost: bool = False
    ) -> None:
        """One batch. `is_lost`: it is only in the buffer, as if its message was dropped."""
        number = self.next if number is None else number
        self.next = number + 1
        self.buffer[number] = payload(*events) if content is None else content
        if not is_lost:
            await self.send(number, self.buffer[number])

    async def send(self, number: int, content: bytes) -> None:
        await self._events.send_multipart([b"", number.to_bytes(8, "big"), content])

    async def send_frames(self, *frames: bytes) -> None:
        await self._events.send_multipart(list(frames))

    async def _answer(self) -> None:
        while True:
            client, empty, start = await self._replay.recv_multipart()
            self.replays_asked.append(int.from_bytes(start, "big"))
            if self.is_silent:
                continue
            topic = [b""] if self._has_topic else []
            for number, content in sorted(self.buffer.items()):
                if number >= self.replays_asked[-1]:
                    await self._replay.send_multipart([client, empty, *topic, number.to_bytes(8, "big"), content])
            await self._replay.send_multipart([client, empty, *topic, END, b""])
