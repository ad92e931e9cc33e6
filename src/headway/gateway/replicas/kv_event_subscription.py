"""One replica's KV events: subscribed to, in order, and taken into the index of the blocks that it holds.

Laws: whatever was missed is asked for again where the engine offers a replay. While a gap is open the index says
nothing, and if it cannot be closed the index is emptied. A lost connection is a gap. A batch is taken in over as many
turns of the event loop as it needs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, fields
from typing import NamedTuple

from headway.gateway.replicas.kv_block_index import KvBlockIndex
from headway.gateway.replicas.kv_event_messages import EventBatch, MalformedEvents, Message, read_batch, read_event
from headway.gateway.replicas.kv_event_order import BatchPlace, EventOrder
from headway.gateway.replicas.kv_event_sockets import EventSocket, Link, replayed

_EVENTS_A_TURN = 64  # each has one block or a few
_PATIENCE_SECONDS = 5.0  # until it is said that no publisher answers
_AGAIN_SECONDS = 5.0  # until the source is asked for again
_NOT_UP_SECONDS = 0.25
_RETRY_SECONDS_MAX = 600.0  # while a replay is waited for, nothing is believed
_REPLAYS_MAX = 100  # in a row: the engine drops replies to a slow reader
log = logging.getLogger("headway.gateway")


class KvEventSource(NamedTuple):
    """Where an engine's events are. `replay` is "" where it offers none."""

    events: str
    replay: str


class NoKvEvents(Exception):
    """Why a replica has none, as the end of a sentence about it."""


@dataclass(slots=True)
class KvEventCounts:
    """What was seen of one replica's events.

    Attributes:
        batches: taken in.
        gaps: times that batches were missing, lost connections among them.
        replayed: those of them that came from replays.
        malformed: messages that were no KV events.
        restarts: times that the engine began again.
        lag_seconds: from the writing of the latest batch to its taking in; by the clocks of two machines.
    """

    batches: int = 0
    gaps: int = 0
    replayed: int = 0
    malformed: int = 0
    restarts: int = 0
    lag_seconds: float | None = None


COUNT_NAMES = tuple(one.name for one in fields(KvEventCounts))


class KvEventSubscription:
    """That of one replica. `run` it as a task."""

    def __init__(
        self,
        name: str,
        index: KvBlockIndex,
        find: Callable[[], Awaitable[KvEventSource | None]],
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """A subscription that is not running yet.

        Args:
            name: of the replica.
            index: where its blocks are noted.
            find: says where the events are, None as long as the replica is not up, or raises NoKvEvents.
            clock: gives seconds.
            wall_clock: gives seconds since 1970.
        """
        self.name = name
        self.index = index
        self.counts = KvEventCounts()
        self.is_connected = False
        self._find = find
        self._clock = clock
        self._wall_clock = wall_clock
        self._order = EventOrder()
        self._source = KvEventSource("", "")
        self._said = ""
        self._retry_at = math.inf  # of a replay that was not answered
        self._retry_seconds = _AGAIN_SECONDS

    async def run(self) -> None:
        """Read the events until it is cancelled."""
        while True:
            socket = None
            try:
                source = await self._find()
                if source is None:
                    await asyncio.sleep(_NOT_UP_SECONDS)
                    continue
                self._source = source
                socket = EventSocket(source.events)
                await self._read(socket)
                continue
            except (NoKvEvents, ValueError) as error:
                self._say(str(error))
            except Exception:  # a fault over one message must not end the subscription
                log.exception("cannot read the KV events of replica %s", self.name)
            finally:
                if socket is not None:  # before the pause: what happens in it is not seen
                    socket.close()
                    self._lose()
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _read(self, socket: EventSocket) -> None:
        """Read from one connection; return when the source should be asked for again."""
        what = "nothing publishes"
        while True:
            try:
                news = await socket.next(_PATIENCE_SECONDS)
            except MalformedEvents as error:
                self._malformed(error)
                continue
            self.index.free_some()
            if self.is_connected and self._clock() >= self._retry_at:
                await self._catch_up(0)
            if isinstance(news, Message):
                await self._take(news)
            elif news is Link.UP:
                self.is_connected, self._said = True, ""
                log.info("replica %s: its KV events come from %s", self.name, self._source.events, extra=self._fields)
                await self._catch_up(0)
            elif news is Link.DOWN and self.is_connected:
                self.counts.gaps += 1
                self._lose()
            elif not self.is_connected:
                if news is not None:  # the connection ended before both knew each other
                    what = "what answers is no publisher of"
                self._say(f"{what} KV events at {self._source.events}; {_HINT}")
                if news is None:
                    return

    @property
    def _fields(self) -> dict[str, object]:
        return {"fields": {"replica": self.name}}

    def _say(self, why: str, kind: str = "") -> None:
        """A warning, once for each reason, or each `kind` of reasons, in a row."""
        if (kind or why) != self._said:
            self._said = kind or why
            log.warning("replica %s gives no KV events: %s", self.name, why, extra=self._fields)

    def _malformed(self, error: MalformedEvents) -> None:
        self.counts.malformed += 1
        self._say(f"{error}; its index is empty until they can be read", "malformed")
        self._lose_track()

    def _lose(self) -> None:
        """The connection is gone: what the engine does is not seen, and it may be another one that comes back."""
        self.is_connected, self._retry_at = False, math.inf
        self._lose_track()

    def _lose_track(self) -> None:
        self._order.forget()
        self.index.clear(is_whole=False)

    # Batches

    async def _take(self, message: Message) -> None:
        """A batch came from the publisher."""
        try:
            batch = read_batch(message.payload)
        except MalformedEvents as error:
            self._malformed(error)
            return
        number, written_at = message.sequence, batch.written_at
        place = self._order.place(number, written_at)
        if place is BatchPlace.AFTER_GAP:
            assert self._order.next_sequence is not None, "else it would be the first"
            self.counts.gaps += 1
            await self._catch_up(self._order.next_sequence)
        elif place is BatchPlace.AFTER_RESTART:
            self.counts.restarts += 1
            self._lose_track()
            if number:
                await self._catch_up(0)
        if place is not BatchPlace.NEXT:
            place = self._order.place(number, written_at)  # most often it was in the replay
            if place is BatchPlace.AFTER_GAP:
                self._lose_track()
        if place is not BatchPlace.OLD:
            await self._take_in(number, batch)
            self.counts.lag_seconds = max(0.0, self._wall_clock() - written_at)

    async def _catch_up(self, start: int) -> None:
        """Ask for all batches from number `start` on, and take them in."""
        if not self._source.replay:
            self._lose_track()
            return
        self.index.has_gap = True
        replayed_before = self.counts.replayed
        try:
            end = await self._replay(start)
        finally:
            self.index.has_gap = False
        if end is None:
            self._retry_at = self._clock() + self._retry_seconds
            self._retry_seconds = min(2 * self._retry_seconds, _RETRY_SECONDS_MAX)
            self._say(f"its replay at {self._source.replay} does not answer; its index holds what comes from now on")
            if start or self.counts.replayed > replayed_before:  # else it knows what came since it was emptied
                self._lose_track()
            return
        self._retry_at, self._retry_seconds = math.inf, _AGAIN_SECONDS
        if end == 0:  # it has published nothing yet
            self._order.forget(0)
            self.index.clear(is_whole=True)

    async def _replay(self, start: int) -> int | None:
        """Take in all batches from number `start` on; the number after the last one, None if the engine broke off."""
        for _ in range(_REPLAYS_MAX):
            asked = start
            async with aclosing(replayed(self._source.replay, start)) as replies:
                async for message in replies:
                    if message is None:
                        return start
                    if message.sequence > start and start != asked:  # it dropped replies: they are asked for again
                        break
                    if message.sequence < start:
                        continue
                    if message.sequence > start:  # it has them no more
                        self._lose_track()
                    await self._take_replayed(message)
                    start = message.sequence + 1
            if start == asked:
                break
        return None

    async def _take_replayed(self, message: Message) -> None:
        """One batch of a replay; one that cannot be read would come again in each."""
        try:
            batch = read_batch(message.payload)
        except MalformedEvents as error:
            self._malformed(error)
            return
        await self._take_in(message.sequence, batch)
        self.counts.replayed += 1

    async def _take_in(self, number: int, batch: EventBatch) -> None:
        """Take in one batch; some events, or some of their blocks, at a turn of the event loop."""
        if number == 0:  # its cache was empty before
            self.index.clear(is_whole=True)
        try:
            for count, written in enumerate(batch.events, 1):
                event = read_event(written)
                if event is None:
                    self.index.ignored += 1
                    continue
                for _ in self.index.take(event, self._clock()):
                    await asyncio.sleep(0)
                if not count % _EVENTS_A_TURN:
                    await asyncio.sleep(0)
        except MalformedEvents as error:
            self._malformed(error)
            return
        self._order.took(number, batch.written_at)
        self.counts.batches += 1
        self.index.as_of = self._clock()


_HINT = "start vLLM with --kv-events-config '{\"enable_kv_cache_events\": true}', or set kv_events_endpoint"
