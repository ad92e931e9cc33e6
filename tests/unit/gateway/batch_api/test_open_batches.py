"""Open batches over faults of their store: one fault holds up what it is about, and loses no line."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from headway.gateway.batch_api import open_batches, sent_lines
from headway.gateway.batch_api.batch_lines import BatchLines
from headway.gateway.batch_api.batch_rows import ApiBatch, TakenLine
from headway.gateway.batch_api.batch_store import BatchStore
from headway.gateway.batch_api.line_client import LineClient
from headway.gateway.batch_api.open_batches import OpenBatches
from headway.gateway.batch_api.store_thread import StoreThread
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.settings import BatchSettings
from headway.gateway.wire.messages import HttpRequest, Response
from tests.support.batch_files import CHAT_PATH, batch_line, lines_file

FAR = 4_000_000_000
Answer = Callable[[int], int]
"""How often a body came, from 1 -> the status of its answer."""


class OwnLoop:
    """Open batches of one folder, and a gateway that answers each line at the next turn."""

    def __init__(self, folder: Path, answer: Answer) -> None:
        self.store = BatchStore(folder)
        self.thread = StoreThread()
        self.answer = answer
        self.came: dict[bytes, int] = {}
        self.batches = OpenBatches(
            BatchSettings(tries_max=5), cast(Dispatcher, None), self.submit, self.store, self.thread, lambda owner: True
        )

    def submit(self, http: HttpRequest, client: LineClient, owner: str) -> bool:
        number = self.came[http.body] = self.came.get(http.body, 0) + 1
        asyncio.get_running_loop().call_soon(client.respond, Response(self.answer(number), b"{}"))
        return True

    async def made(self, lines: int, name: str) -> ApiBatch:
        def make() -> ApiBatch:
            path = self.store.uploads / name
            path.write_bytes(lines_file(batch_line(f"{name}{n}", f"{name}{n}") for n in range(lines))[1])
            file_id = self.store.add_file(path, name, "batch", "in.jsonl", 0, FAR).id
            columns: dict[str, Any] = {"owner": name, "endpoint": CHAT_PATH, "input_id": file_id, "window": "24h"}
            return self.store.add_batch({**columns, "metadata": "", "created_at": 0, "expires_at": FAR})

        batch = await self.thread.call(make)
        await self.batches.add(batch)
        return batch

    async def ended(self, batch: ApiBatch) -> ApiBatch:
        while (found := await self.thread.call(self.store.batch_of, batch.seq)).is_open:
            await asyncio.sleep(0.01)
        return found


@asynccontextmanager
async def running(folder: Path, answer: Answer) -> AsyncIterator[OwnLoop]:
    loop = OwnLoop(folder, answer)
    await loop.thread.call(loop.store.open)
    await loop.batches.start()
    try:
        async with asyncio.timeout(60):
            yield loop
    finally:
        await loop.batches.stop()
        await loop.thread.call(loop.store.close)
        await loop.thread.close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (open_batches, "_TICK_SECONDS"),
        (open_batches, "_AFTER_FAULT_SECONDS"),
        (sent_lines, "_RETRY_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.01)


def fails_first(answers: int) -> Answer:
    return lambda number: 500 if number <= answers else 200


def test_lines_that_are_tried_again_outlive_a_fault_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [OSError("the disk is away"), sqlite3.OperationalError("disk I/O error"), OSError("still")]
    take_again = BatchLines.take_again

    def taken(lines: BatchLines, batch: ApiBatch, number: int) -> TakenLine | None:
        if faults:
            raise faults.pop()
        return take_again(lines, batch, number)

    async def scenario() -> None:
        async with running(tmp_path, fails_first(1)) as loop:
            batch = await loop.ended(await loop.made(12, "a"))
            assert (batch.status, batch.total, batch.completed) == ("completed", 12, 12)
            assert not faults
            assert set(loop.came.values()) == {2}
            assert loop.batches.sent.waiting == 0

    monkeypatch.setattr(BatchLines, "take_again", taken)
    asyncio.run(scenario())


def test_a_batch_whose_input_file_is_gone_ends_although_its_lines_are_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, lambda number: 500) as loop:
            loop.answer = lambda number: (loop.store.path_of(batch.input_id).unlink(missing_ok=True), 500)[1]
            batch = await loop.made(3, "a")
            gone = await loop.ended(batch)
            assert (gone.status, gone.completed, gone.failed) == ("completed", 0, 3)
            loop.answer = fails_first(0)
            other = await loop.ended(await loop.made(3, "b"))
            assert (other.status, other.completed) == ("completed", 3)

    asyncio.run(scenario())


def test_a_batch_that_cannot_be_ended_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = BatchStore.end
    held: set[int] = set()

    def ended(store: BatchStore, seq: int, *rest: Any) -> ApiBatch:
        if seq in held:
            raise OSError("its result file is gone")
        return end(store, seq, *rest)

    async def scenario() -> None:
        async with running(tmp_path, fails_first(0)) as loop:
            first = await loop.made(1, "a")
            held.add(first.seq)
            while not loop.batches.store_faults:
                await asyncio.sleep(0.01)
            other = await loop.ended(await loop.made(40, "b"))
            assert other.completed == 40
            held.clear()
            assert (await loop.ended(first)).completed == 1

    monkeypatch.setattr(BatchStore, "end", ended)
    asyncio.run(scenario())
