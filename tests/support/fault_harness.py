"""Every request exactly once: replicas that misbehave, clients with names, both sides counted, the books compared.

A `Day` sends requests to a gateway in front of faulty replicas and keeps the books. Laws, whatever the replicas do:
nothing is lost, nothing hangs, nothing is answered twice or with another's bytes, and no request is executed more than
twice. What cannot be answered is told so.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from tests.support.replica_faults import FAULTS, carry_out, fitting, good, mark_of
from tests.support.scripted_replica import Call, ScriptedReplica
from tests.support.serve_process import HEADWAY, fetched
from tests.support.strict_client import HANG_SECONDS, Judged, NoAnswer, NotHttp, judge, receive

CONFIG = """
listen = "127.0.0.1:0"
[policies]
ordering = "fcfs"
[health]
scrape_seconds = 0.2
failures_to_eject = 5
eject_seconds = 0.1
eject_seconds_max = 0.2
connect_seconds = 5.0
first_byte_seconds = 2.0
silent_seconds = 2.0
no_replica_seconds = 20.0
"""
"""Of the gateway under test: time limits that keep a day short."""
REPLICAS = 3
SEATS = 8
GOOD = "good"

ODD_BODIES = [
    b'{"model":"m","prompt":"x","stream":true,"stream_options":{"a":"\xff"}}',
    b'{"model":"m","prompt":"\xff","stream":true}',
    b'{"model":"m","prompt":"x","max_tokens":' + b"9" * 400 + b"}",
    b'{"model":"m","prompt":"x","max_tokens":0,"n":' + b"9" * 30 + b"}",
    b'{"model":"m","prompt":"x","priority":-' + b"9" * 30 + b"}",
    b'{"model":"m","prompt":' + b"[" * 50_000,
    b'{"model":"m","prompt":"\\ud800","stop":"\\u0000"}',
    b'{"model":"m","model":"m","prompt":"x","stream":true,"stream":false}',
    b'{"model":["m"],"prompt":"x"}',
    b'{"model":"other","prompt":"x"}',
    b'{"model":"m","prompt":"x","stream":true',
    b"[]",
    b"",
    b"\x00" * 1_000,
]
"""Bodies that a client should not send. Each is answered or refused, and harms no other request."""


@dataclass
class Book:
    """What became of each request, at its client and at the replicas."""

    sent: int = 0
    behind: int = 0  # pipelined behind an answer that was cut off: never begun
    endings: Counter[str] = field(default_factory=Counter)
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    executed: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # request -> faults met
    lag_seconds: float = 0.0  # longest time until the gateway answered the watcher
    own_lag_seconds: float = 0.0  # longest time that this loop itself was late

    @property
    def executions(self) -> Counter[int]:
        """How many requests were executed once, twice, …"""
        return Counter(map(len, self.executed.values()))

    def more_than_twice(self) -> list[str]:
        return [f"{mark}: {faults}" for mark, faults in self.executed.items() if len(faults) > 2]

    def faults(self) -> list[str]:
        """Every broken law, a line each; empty if all is well."""
        return [
            *(f"wrong: {one}" for one in self.wrong),
            *(f"lost: {one}" for one in self.lost),
            *(f"hung: {one}" for one in self.hung),
            *(f"executed more than twice: {one}" for one in self.more_than_twice()),
        ]


class FaultyReplica(ScriptedReplica):
    """Answers by the faults of the day, drawn for each request; a request may name its own fault in its id."""

    def __init__(self, draw: Random) -> None:
        super().__init__(self._answer)
        self._draw = draw
        self.book = Book()
        self.faults: list[str] = []
        self.share = 0.0

    async def _answer(self, call: Call) -> None:
        self.calls.clear()
        names = [name for name in self.faults if fitting(name, call)]
        name = self._draw.choice(names) if names and self._draw.random() < self.share else GOOD
        self.book.executed[mark_of(call)].append(name)
        if name == GOOD:
            with suppress(ConnectionError):
                await good(call)
        else:
            await carry_out(name, call)


class Day:
    """One series of requests against one gateway. `state` gives the gateway's own books, `/headway/state`."""

    def __init__(
        self, port: int, replicas: list[FaultyReplica], state: Callable[[], dict[str, Any]], name: str, seed: int
    ) -> None:
        self.port, self.replicas, self.state, self.name = port, replicas, state, name
        self.draw = Random(f"{name} {seed}")
        self.book = Book()
        for replica in replicas:
            replica.book = self.book

    async def run(
        self,
        faults: list[str],
        *,
        share: float,
        requests: int,
        clients: int = 12,
        odd: float = 0.0,
        leaves: float = 0.0,
    ) -> Book:
        """Send the requests on so many connections at a time, wait until nothing is inside, and compare the books.

        Args:
            faults: names in `FAULTS`, drawn for `share` of the executions.
            share: of the executions that meet a fault.
            requests: how many in all.
            clients: connections at a time.
            odd: share of requests whose body is one of `ODD_BODIES`.
            leaves: share of requests whose client leaves before the end.
        """
        for replica in self.replicas:
            replica.faults, replica.share = faults, share
        await self._until(lambda state: all(one["health"] == "up" for one in state["replicas"]))
        before = await self._counts()
        kinds = {FAULTS[name].of for name in faults}
        self._streams = {"streams": 1.0, "wholes": 0.0}.get(kinds.pop() if len(kinds) == 1 else "", 0.5)
        self._odd, self._leaves = odd, leaves
        self._strange = {name for name in faults if FAULTS[name].adds_events}
        watching = asyncio.create_task(self._watch())
        share_of_each = [requests // clients + (number < requests % clients) for number in range(clients)]
        await asyncio.gather(*(self._client(number, own) for number, own in enumerate(share_of_each) if own))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        state = await self._until(
            lambda state: not state["counts"]["inside"] and not any(one["requests"] for one in state["replicas"])
        )
        after: Counter[str] = Counter(state["counts"])
        after.subtract(before)
        self._compare(after)
        return self.book

    async def _counts(self) -> Counter[str]:
        return Counter((await asyncio.to_thread(self.state))["counts"])

    async def _until(self, fact: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                state = await asyncio.to_thread(self.state)
                if fact(state):
                    return state
                await asyncio.sleep(0.05)

    # Clients

    async def _client(self, number: int, requests: int) -> None:
        """So many requests one after the other, some pipelined, on connections kept as long as they can be."""
        writer: asyncio.StreamWriter | None = None
        sent = 0
        while sent < requests:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
            at_once = min(requests - sent, 3 if self.draw.random() < 0.1 else 1)
            marks = [f"{self.name.replace(' ', '_')}-{number}-{sent + more}" for more in range(at_once)]
            sent += at_once
            self.book.sent += at_once
            if not await self._ask(reader, writer, marks):
                writer.transport.abort()
                writer = None
        if writer is not None:
            await self._last(reader, writer)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, marks: list[str]) -> bool:
        """Send them all, then read the answers; False if the connection is of no more use."""
        asked = [self._request(mark) for mark in marks]
        await self._send(writer, b"".join(request for request, _, _ in asked))
        if self.draw.random() < self._leaves:
            with suppress(TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(self.draw.random() * 0.05):
                    await reader.readexactly(self.draw.randrange(1, 3_000))
            self.book.left += len(marks)
            return False
        for at, (mark, (_, is_stream, asks_usage)) in enumerate(zip(marks, asked, strict=True)):
            judged, keeps = await self._receive(reader, mark, is_stream)
            self._note(mark, judged, asks_usage)
            if not keeps:
                self.book.behind += len(marks) - at - 1
                self.book.endings["behind"] += len(marks) - at - 1
                return False
        return True

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        with suppress(ConnectionError):
            cut = self.draw.randrange(len(data)) if self.draw.random() < 0.2 else 0
            if cut:
                writer.write(data[:cut])
                await asyncio.sleep(0.001)
            writer.write(data[cut:])
            await writer.drain()

    def _request(self, mark: str) -> tuple[bytes, bool, bool]:
        """(bytes, whether it asks for a stream, whether it asks for the usage)."""
        is_stream, asks_usage = self.draw.random() < self._streams, self.draw.random() < 0.3
        if self.draw.random() < self._odd:
            body = self.draw.choice(ODD_BODIES)
            is_stream, asks_usage = b'"stream": true' in body, True
        else:
            options = {"stream_options": {"include_usage": True}} if asks_usage and is_stream else {}
            body = json.dumps({"model": "m", "prompt": mark, "stream": is_stream, **options}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: {mark}\r\n"
        if self.draw.random() < 0.1 and body:
            size = self.draw.choice([1, 7, 100])
            parts = [body[at : at + size] for at in range(0, len(body), size)] if len(body) < 10_000 else [body]
            chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
            return head.encode() + b"transfer-encoding: chunked\r\n\r\n" + chunked, is_stream, asks_usage
        return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body, is_stream, asks_usage

    async def _receive(self, reader: asyncio.StreamReader, mark: str, is_stream: bool) -> tuple[Judged, bool]:
        try:
            async with asyncio.timeout(HANG_SECONDS):
                answer = await receive(reader)
        except TimeoutError:
            return Judged("hung"), False
        except NoAnswer:
            return Judged("lost"), False
        except NotHttp as error:
            return Judged("wrong", str(error)), False
        return judge(answer, mark, is_stream=is_stream), answer.whole and answer.headers.get("connection") != "close"

    def _note(self, mark: str, judged: Judged, asks_usage: bool) -> None:
        self.book.endings[judged.ending] += 1
        met = self.book.executed.get(mark, [])
        story = f"{mark} ({', '.join(met) or 'not executed'}): {judged.why}"
        if judged.ending in ("wrong", "lost", "hung"):
            getattr(self.book, judged.ending).append(story)
            return
        last = met[-1] if met else ""
        is_right = last == GOOD or (last in FAULTS and FAULTS[last].is_legal)
        if is_right and judged.ending != "whole" and judged.why != "replica-timeout":
            self.book.wrong.append(f"a right answer became {judged.ending}: {story}")
        if judged.ending == "whole" and not self._strange.intersection(met):
            if judged.usage_shown and not asks_usage:
                self.book.wrong.append(f"usage shown that was not asked for: {story}")
            if judged.strange_events:
                self.book.wrong.append(f"events that nobody sent: {story}")

    async def _last(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A last request to the gateway itself: all that comes after the answers has to be its answer."""
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        try:
            async with asyncio.timeout(HANG_SECONDS):
                answer = await receive(reader)
                rest = await reader.read()
            if answer.status != 200 or b'"ok"' not in answer.body or rest:
                self.book.wrong.append(f"after the last answer came {answer.body[:80]!r} {rest[:80]!r}")
        except NotHttp as error:
            self.book.wrong.append(f"after the last answer: {error}")
        except (NoAnswer, TimeoutError):
            self.book.lost.append("the last request of a connection")
        writer.transport.abort()

    # Watching and comparing

    async def _watch(self) -> None:
        """Ask for the gateway's health all the time: the longest wait bounds how long its loop stood still."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        book = self.book
        with suppress(asyncio.CancelledError):
            while True:
                before = monotonic()
                writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                await receive(reader)
                after = monotonic()
                book.lag_seconds = max(book.lag_seconds, after - before)
                await asyncio.sleep(0.01)
                book.own_lag_seconds = max(book.own_lag_seconds, monotonic() - after - 0.01)
        writer.transport.abort()

    def _compare(self, gateway: Counter[str]) -> None:
        """The gateway's counts beside the clients': a client that left may have been counted as anything."""
        book, own = self.book, self.book.endings
        left = book.left
        in_queue = book.sent - book.behind
        rejected = own["passed"] + own["told"]  # malformed requests never entered the queue
        if not in_queue - left - rejected <= gateway["arrived"] <= in_queue:
            book.wrong.append(f"{in_queue} sent and {left} left, {gateway['arrived']} arrived")
        if not own["whole"] <= gateway["completed"] <= own["whole"] + own["passed"] + left:
            book.wrong.append(
                f"whole {own['whole']}, passed {own['passed']}, left {left}: {gateway['completed']} completed"
            )
        if gateway["arrived"] != sum(
            gateway[one] for one in ("completed", "refused", "expired", "cancelled", "failed")
        ):
            book.wrong.append(f"the gateway's books do not balance: {dict(gateway)}")
        if gateway["cancelled"] > left:
            book.wrong.append(f"{left} left, {gateway['cancelled']} were counted as cancelled")


# The gateway under test


class Setup:
    """A `headway serve` of its own in front of faulty replicas. `log` is the file of its log lines."""

    def __init__(self, replicas: list[FaultyReplica], url: str, pid: int, log: Path) -> None:
        self.replicas, self.url, self.pid, self.log = replicas, url, pid, log
        self._read = 0

    def state(self) -> dict[str, Any]:
        """The gateway's own books."""
        return dict(json.loads(fetched(self.url + "/headway/state")))

    def day(self, name: str, seed: int = 0) -> Day:
        return Day(int(self.url.rpartition(":")[2]), self.replicas, self.state, name, seed)

    def errors_logged(self) -> list[str]:
        """Error lines since the last call: an exception that the gateway had to catch is a fault of its own."""
        with self.log.open(encoding="utf-8") as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        return [line for line in lines if '"level": "ERROR"' in line or "Traceback" in line]


@asynccontextmanager
async def gateway_under_test(folder: Path, seed: int = 0) -> AsyncIterator[Setup]:
    """Start the replicas in this loop and the gateway in a process; stop both at the end."""
    replicas = [FaultyReplica(Random(seed * REPLICAS + number)) for number in range(REPLICAS)]
    for replica in replicas:
        await replica.start()
    config, log = folder / "gateway.toml", folder / "gateway.jsonl"
    tables = [f'[[replica]]\nurl = "{one.url}"\nmax_requests = {SEATS}\n' for one in replicas]
    config.write_text(CONFIG + "".join(tables))
    with log.open("wb") as err:
        process = await asyncio.create_subprocess_exec(*HEADWAY, "serve", "--config", str(config), stderr=err)
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while not (listens := re.search(r'"url": "(http[^"]+)"', log.read_text(encoding="utf-8"))):
                assert process.returncode is None, log.read_text(encoding="utf-8")
                await asyncio.sleep(0.05)
        yield Setup(replicas, listens[1], process.pid, log)
    finally:
        process.kill()
        await process.wait()
        for replica in replicas:
            await replica.stop()
