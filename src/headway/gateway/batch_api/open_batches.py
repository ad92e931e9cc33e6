"""Open batches: validates them, sends their lines into the gateway's queue in turn, records answers, and ends them.

Laws: a bounded number of lines wait in the queue at once, the others in their files; tenants have their turns, and the
oldest batch of a tenant goes first; while nothing can be written no line is sent. An exception in one round ends no
batch. One task carries all of it out, one short step after the other.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from headway.gateway.batch_api import result_lines
from headway.gateway.batch_api.batch_lines import BatchLines, InputReader
from headway.gateway.batch_api.batch_objects import faults_text
from headway.gateway.batch_api.batch_rows import ApiBatch, BatchStatus
from headway.gateway.batch_api.batch_store import BatchStore
from headway.gateway.batch_api.sent_lines import OpenBatch, SentLines, Submit
from headway.gateway.batch_api.store_thread import StoreThread
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.settings import BatchSettings

_TICK_SECONDS = 0.5
_AFTER_FAULT_SECONDS = 2.0  # a full disk is looked at again
_STOP_SECONDS = 10.0
_CLOSED_AT_ONCE = 500
_TAKEN_AT_ONCE = 16  # of one batch, then the next tenant has its turn
_CANCEL_SECONDS = 600.0
"""How long answers that replicas have begun may still come after a cancellation; OpenAI's ten minutes."""
log = logging.getLogger("headway.gateway")


class OpenBatches:
    """One per process: `start` it, `wake` it when there is something new, then `leave_queue` and `stop`."""

    def __init__(
        self,
        settings: BatchSettings,
        dispatcher: Dispatcher,
        submit: Submit,
        store: BatchStore,
        thread: StoreThread,
        may_grow: Callable[[str], bool],
    ) -> None:
        """`may_grow`: whether there is room for more results of a tenant."""
        self._settings = settings
        self._dispatcher = dispatcher
        self._store = store
        self._thread = thread
        self._may_grow = may_grow
        self._lines = BatchLines(store)
        self.sent = SentLines(settings, dispatcher, submit, self._lines, thread, self._changed)
        self._open: dict[int, OpenBatch] = {}
        self._turns: OrderedDict[str, dict[int, OpenBatch]] = OrderedDict()  # by tenant; the last served is at the end
        self._reading: OrderedDict[int, OpenBatch] = OrderedDict()
        self._to_look_at: dict[int, OpenBatch] = {}
        self._looked_at = 0.0
        self._awake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.store_faults = 0
        self.statuses: dict[str, int] = {}

    # From outside

    async def start(self) -> None:
        """Take up the batches that have not ended."""
        for row in await self._thread.call(self._store.open_batches):
            await self.add(row)
        if self._open:
            fields = {"batches": len(self._open), "requests_sent_again": self._store.sent_again}
            log.info("batches go on; requests that were under way are sent again", extra={"fields": fields})
        await self._count()
        self._task = asyncio.create_task(self._carry_on())

    def wake(self) -> None:
        """There is something to do."""
        self._awake.set()

    async def add(self, row: ApiBatch) -> None:
        """Carry on a batch."""
        batch = self._open[row.seq] = OpenBatch(row)
        self._turns.setdefault(row.owner, {})[row.seq] = batch
        if row.total is None:
            batch.input_reader = InputReader(self._store, row, self._settings)
            self._reading[row.seq] = batch
        else:
            batch.untaken = await self._thread.call(self._lines.waiting, row.seq)
        self._changed(batch)

    async def cancel(self, row: ApiBatch) -> ApiBatch:
        """Send no more of a batch's lines; those that a replica has begun may finish."""
        changed = await self._thread.call(self._store.cancel, row.seq, int(time.time()))
        batch = self._open.get(row.seq)
        if batch is not None:
            batch.row = changed
            self._changed(batch)
        await self._count()
        return changed

    async def _count(self) -> None:
        self.statuses = await self._thread.call(self._store.statuses)

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self._open)

    @property
    def sent_again(self) -> int:
        """Lines that were under way when the process before this one ended."""
        return self._store.sent_again

    @property
    def lines_waiting(self) -> int:
        """Lines that wait, in their files or in the queue."""
        return sum(batch.untaken for batch in self._open.values()) + self.sent.waiting

    @property
    def lines_sent(self) -> int:
        """Lines that replicas have."""
        return sum(len(batch.active) for batch in self._open.values()) - self.sent.waiting

    def leave_queue(self) -> None:
        """The gateway drains: lines that no replica has wait in their files again, and no more are sent."""
        self.sent.is_leaving = True
        for batch in self._open.values():
            self.sent.leave_queue(batch)
        self.wake()

    async def stop(self) -> None:
        """Record what came, and end; lines that are still under way are sent again after the next start."""
        self.sent.is_leaving = self._is_stopping = True
        self.wake()
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait([task], timeout=_STOP_SECONDS)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        try:
            await self.sent.record()
        except (OSError, sqlite3.Error) as error:
            log.error("answers of batches cannot be written, and will be asked for again: %s", error)

    def _changed(self, batch: OpenBatch) -> None:
        self._to_look_at[batch.row.seq] = batch
        self.wake()

    # The one task

    async def _carry_on(self) -> None:
        while not self._is_stopping:
            self._awake.clear()
            try:
                await self._round()
            except (OSError, sqlite3.Error) as error:
                self.store_faults += 1
                log.error("the folder of batches cannot be read or written, and they wait: %s", error)
                await self._pause()
            except Exception as error:  # no fault of ours may end all batches
                self._dispatcher.errors.contained("batches", error)
                await self._pause()
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._awake.wait()

    async def _pause(self) -> None:
        until = time.monotonic() + _AFTER_FAULT_SECONDS
        while time.monotonic() < until and not self._is_stopping:
            await asyncio.sleep(0.1)

    async def _round(self) -> None:
        await self.sent.record()
        if self._reading:
            seq, batch = self._reading.popitem(last=False)
            self._reading[seq] = batch  # the next one has its turn in the next round
            await self._read(batch)
        now = time.monotonic()
        if now - self._looked_at >= _TICK_SECONDS:
            self._looked_at = now
            self._to_look_at = dict(self._open)
        fault = await self._look_at_changed()
        if not self.sent.is_leaving:
            await self.sent.send_delayed()
            await self._fill()
        if fault is not None:
            raise fault

    async def _look_at_changed(self) -> OSError | sqlite3.Error | None:
        """Look at each batch once; what goes on at once is looked at in the next round.

        Returns a fault of the store: one batch that cannot be ended must not hold up the lines of others.
        """
        changed, self._to_look_at = self._to_look_at, {}
        fault: OSError | sqlite3.Error | None = None
        for seq, batch in changed.items():
            if seq in self._open and batch.input_reader is None:
                try:
                    await self._look_at(batch)
                except (OSError, sqlite3.Error) as error:
                    fault = error
        return fault

    async def _read(self, batch: OpenBatch) -> None:
        """Validate some lines of an input file."""
        reader, seq = batch.input_reader, batch.row.seq
        assert reader is not None, "it is among those that are read"
        try:
            is_read = await self._thread.call(reader.step)
        except FileNotFoundError:
            reader.lose()
            is_read = True
        self.wake()
        if not is_read:
            return
        if reader.faults:
            await self._thread.call(partial(self._store.change, seq, errors=faults_text(reader.faults)))
            await self._end(batch, BatchStatus.FAILED)
            return
        now = int(time.time())
        batch.row = await self._thread.call(self._store.validated, seq, reader.lines, reader.model, now)
        del self._reading[seq]
        batch.input_reader, batch.untaken = None, reader.lines
        self._to_look_at[seq] = batch
        await self._count()

    async def _look_at(self, batch: OpenBatch) -> None:
        """Begin to close a batch that was cancelled or has expired, and end one that is done."""
        now = time.time()
        if now >= batch.row.expires_at and batch.closing is None and (batch.untaken or batch.active):
            batch.closing = BatchStatus.EXPIRED, result_lines.EXPIRED
        if batch.row.status == BatchStatus.CANCELLING and batch.closing is None:
            batch.closing, batch.cut_at = (BatchStatus.CANCELLED, result_lines.CANCELLED), now + _CANCEL_SECONDS
        if batch.closing is not None:
            self.sent.cut(batch, only_waiting=now < batch.cut_at)
        if not batch.active and (batch.closing is not None or not batch.untaken):
            await self._close(batch)

    async def _close(self, batch: OpenBatch) -> None:
        """Tell the lines that are left, some at a call; then end the batch."""
        await self.sent.record()
        if batch.closing is None:
            if not batch.untaken:  # else one was given back
                await self._end(batch, BatchStatus.COMPLETED)
            return
        status, told = batch.closing
        closed = await self._thread.call(self._lines.close_rest, batch.row.seq, partial(_failed, told), _CLOSED_AT_ONCE)
        self.sent.ended["failed"] += closed
        batch.untaken = max(0, batch.untaken - closed)
        if closed == _CLOSED_AT_ONCE:
            self._changed_later(batch)
        else:
            await self._end(batch, status)

    def _changed_later(self, batch: OpenBatch) -> None:
        """Go on with it in the next round, after the turns of others."""
        asyncio.get_running_loop().call_soon(self._changed, batch)

    async def _end(self, batch: OpenBatch, status: BatchStatus) -> None:
        keep_seconds = int(self._settings.keep_seconds)
        row = await self._thread.call(self._store.end, batch.row.seq, status, int(time.time()), keep_seconds)
        del self._open[row.seq]
        self._reading.pop(row.seq, None)
        others = self._turns[row.owner]
        del others[row.seq]
        if not others:
            del self._turns[row.owner]
            self.sent.owner_rests_until.pop(row.owner, None)
        await self._count()
        fields = {"batch": row.id, "status": row.status, "completed": row.completed, "failed": row.failed}
        log.info("batch ended", extra={"fields": fields})

    # Sending

    async def _fill(self) -> None:
        """Take lines while the queue may hold more of them."""
        settings, sent = self._settings, self.sent
        while sent.waiting < settings.waiting_max and not sent.is_leaving:
            bytes_left = settings.waiting_bytes_max - sent.waiting_bytes
            if bytes_left <= 0 and sent.waiting:
                return
            batch = self._next()  # last, since it takes the tenant's turn
            if batch is None:
                return
            most = min(_TAKEN_AT_ONCE, settings.waiting_max - sent.waiting)
            try:
                taken = await self._thread.call(self._lines.take, batch.row, most, max(0, bytes_left))
            except FileNotFoundError:
                batch.lose_input()
                self._changed(batch)
                continue
            batch.untaken = batch.untaken - len(taken) if taken else 0
            for line in taken:
                sent.begin(batch, line)

    def _next(self) -> OpenBatch | None:
        """The oldest batch of the next tenant that has a line to send."""
        now = time.monotonic()
        for owner, batches in self._turns.items():
            if self.sent.owner_rests_until.get(owner, 0.0) > now or not self._may_grow(owner):
                continue
            found = next((batch for batch in batches.values() if batch.may_send(now)), None)
            if found is not None:
                self._turns.move_to_end(owner)
                return found
        return None


def _failed(told: tuple[str, str], custom_id: bytes) -> bytes:
    return result_lines.failed_line(custom_id, *told)
