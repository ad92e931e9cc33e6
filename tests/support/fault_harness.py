"""Fault harness: replicas that misbehave, clients with names, both sides counted, and the books compared.

A `Day` sends requests to a gateway in front of faulty replicas. Laws, whatever the replicas do: no request is lost,
hangs, is answered twice or with the bytes of another, or is executed more than twice. What cannot be answered is told
so, and what was answered rightly arrives.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from tests.support.replica_faults import BESIDE, FAULTS, fitting, good, mark_of
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
SCRAPES_SECONDS = 3.0
GOOD = "good"
FLAPS = "flaps"
REFUSALS = {"answers 429", "answers 503"}
"""Faults that say of a request that it was not executed."""

KINDS = ("large", "HTTP/1.0", "h2c", "expects", "old and keeps", "half", "slow")
"""Clients that do what HTTP allows and few do: a body that is read in steps, an old protocol, an offer of another one,
100 Continue, half a request on a connection that breaks, an answer that is read late."""
ODD_BODIES = [
    b'{"model":"m","prompt":"x","stream":true,"stream_options":{"a":"\xff"}}',
    b'{"model":"m","prompt":"\xff","stream":true}',
    b'{"model":"m","prompt":"x","nvext":{"a":"\xff"},"vllm_xargs":{"b":1e4000}}',
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


@dataclass(frozen=True)
class Plan:
    """What happens on a day.

    Attributes:
        name: of the day, and the beginning of its requests' ids.
        faults: names in `FAULTS`.
        share: of the executions that meet one of them.
        requests: how many in all.
        clients: connections at a time.
        odd: share of the requests whose body is one of `ODD_BODIES`.
        leaves: share of the requests whose client leaves before the end.
        kinds: share of the requests that are of one of `KINDS`.
        flaps: one replica after the other cuts its connections and is gone for a moment.
        beside: names in `BESIDE`, one for each replica: how it misbehaves beside its API.
        scrapes: of each replica's metrics that a client awaits before its next request.
    """

    name: str
    faults: Sequence[str] = ()
    share: float = 0.0
    requests: int = 30
    clients: int = 10
    odd: float = 0.0
    leaves: float = 0.0
    kinds: float = 0.0
    flaps: bool = False
    beside: Sequence[str] = ()
    scrapes: int = 0

    @property
    def is_legal(self) -> bool:
        """Whether no replica does anything for which it may be ejected."""
        return not self.flaps and all(FAULTS[name].is_legal for name in self.faults)


def one_fault(name: str) -> Plan:
    """A day with one fault, for all requests where it is legal."""
    return Plan(name, [name], 1.0 if FAULTS[name].is_legal else 0.4)


ALL_FAULTS = Plan("all faults", list(FAULTS), 0.4, requests=400, clients=24, leaves=0.05)
ODD_CLIENTS = Plan("odd clients", requests=200, odd=0.3, leaves=0.1)
_BESIDE = list(BESIDE)
BESIDE_DAYS = [
    Plan(f"beside {at}", beside=_BESIDE[at : at + REPLICAS], requests=3, clients=1, scrapes=7)
    for at in range(0, len(_BESIDE), REPLICAS)
]
"""Few requests and many scrapes: no success between two failures."""
MANY_CLIENTS = Plan("many clients", ["slowly", "all in one packet"], 0.3, requests=250, leaves=0.05, kinds=0.7)
FLAPPING = Plan("flapping", ["slowly"], 1.0, requests=300, flaps=True, leaves=0.05)


@dataclass
class Book:
    """What became of each request, at its client and at the replicas."""

    sent: int = 0
    behind: int = 0  # pipelined behind an answer that was cut off: never begun
    left: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    executed: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # request -> faults met
    lag_seconds: float = 0.0  # longest time until the gateway answered the watcher
    own_lag_seconds: float = 0.0  # longest time that this loop itself was late

    @property
    def executions(self) -> Counter[int]:
        """How many requests were executed once, twice, …; a refusal is no execution."""
        return Counter(sum(name not in REFUSALS for name in met) for met in self.executed.values())

    def more_than_twice(self) -> list[str]:
        return [
            f"{mark}: {met}" for mark, met in self.executed.items() if sum(name not in REFUSALS for name in met) > 2
        ]

    def broken_laws(self) -> list[str]:
        """A line for each broken law; empty if all is well."""
        return [
            *(f"wrong: {one}" for one in self.wrong),
            *(f"lost: {one}" for one in self.lost),
            *(f"hung: {one}" for one in self.hung),
            *(f"executed more than twice: {one}" for one in self.more_than_twice()),
        ]


_MORE = {
    "h2c": "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
    "expects": "expect: 100-continue\r\n",
    "old and keeps": "connection: keep-alive\r\n",
}


class FaultyReplica(ScriptedReplica):
    """Answers by the faults of the day's plan, drawn for each request, and notes what it executed."""

    def __init__(self, draw: Random) -> None:
        super().__init__(self._answer)
        self.metrics = "vllm:num_requests_waiting 0\nvllm:num_requests_running 0\n"  # figures are scraped again
        self._draw = draw
        self._answering: dict[str, int] = {}  # request -> which of its executions this is
        self._is_gone = False
        self.plan, self.book = Plan(""), Book()

    def begin(self, plan: Plan, book: Book, number: int) -> None:
        """A new day for this replica, one of `REPLICAS`."""
        self.plan, self.book = plan, book
        self.instead = dict(BESIDE[plan.beside[number]]) if plan.beside else {}

    async def _answer(self, call: Call) -> None:
        self.calls.clear()
        names = [name for name in self.plan.faults if fitting(name, call)]
        name = self._draw.choice(names) if names and self._draw.random() < self.plan.share else GOOD
        mark, executed = mark_of(call), self.book.executed[mark_of(call)]
        if self._is_gone:  # it was read after its connection was cut, or accepted just before
            executed.append(FLAPS)
            call.writer.transport.abort()
            return
        self._answering[mark] = len(executed)
        executed.append(name)
        try:
            await (good(call) if name == GOOD else FAULTS[name].script(call))
        except ConnectionError:
            pass  # the gateway hung up, as it may
        finally:
            self._answering.pop(mark, None)

    async def flap(self, seconds: float) -> None:
        """Cut every connection, and listen again after some time."""
        for mark, execution in self._answering.items():
            self.book.executed[mark][execution] = FLAPS
        self._answering.clear()
        self._is_gone = True
        self.cut()
        with socket.socket() as keeps_port:  # else a connection that begins somewhere on this machine may take it
            keeps_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            keeps_port.bind(("127.0.0.1", self.port))
            try:
                await asyncio.sleep(seconds)
            finally:
                await self.start()
                self._is_gone = False


class Day:
    """One plan carried out against one gateway. `state` gives the gateway's own books, `/headway/state`."""

    def __init__(
        self, port: int, replicas: list[FaultyReplica], state: Callable[[], dict[str, Any]], plan: Plan, seed: int
    ) -> None:
        self._port, self._replicas, self._state, self._plan = port, replicas, state, plan
        self._draw = Random(f"{plan.name} {seed}")
        kinds = {FAULTS[name].of for name in plan.faults}
        self._streams = {"streams": 1.0, "wholes": 0.0}[kinds.pop()] if kinds in ({"streams"}, {"wholes"}) else 0.5
        self._adds_events = {name for name in plan.faults if FAULTS[name].adds_events}
        self.book = Book()

    async def run(self) -> Book:
        """Send the requests, wait until nothing is inside, and compare the books."""
        plan = self._plan
        for number, replica in enumerate(self._replicas):
            replica.begin(plan, self.book, number)
        before = await self._until(lambda state: all(one["health"] == "up" for one in state["replicas"]))
        beside = [asyncio.create_task(self._watch()), asyncio.create_task(self._watch_replicas())]
        if plan.flaps:
            beside.append(asyncio.create_task(self._flap()))
        shares = [plan.requests // plan.clients + (n < plan.requests % plan.clients) for n in range(plan.clients)]
        try:
            await asyncio.gather(*(self._client(number, share) for number, share in enumerate(shares) if share))
        finally:
            for task in beside:
                task.cancel()
            ended = await asyncio.gather(*beside, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError | None) for end in ended), ended
        after = await self._until(
            lambda state: not state["counts"]["inside"] and not any(one["requests"] for one in state["replicas"])
        )
        counts = Counter(after["counts"])
        counts.subtract(before["counts"])
        self._compare(counts)
        return self.book

    async def _until(self, fact: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                state = await asyncio.to_thread(self._state)
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
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
            at_once = min(requests - sent, 3 if self._draw.random() < 0.1 else 1)
            marks = [f"{self._plan.name.replace(' ', '_')}-{number}-{sent + more}" for more in range(at_once)]
            sent += at_once
            self.book.sent += at_once
            if not await self._ask(reader, writer, marks):
                writer.transport.abort()
                writer = None
            await self._scraped(self._plan.scrapes)
        if writer is not None:
            await self._last(reader, writer)

    async def _scraped(self, times: int) -> None:
        """Wait for so many scrapes; metrics without figures are asked for so seldom that it would take too long."""
        until = [replica.scrapes + times for replica in self._replicas]
        with suppress(TimeoutError):
            async with asyncio.timeout(SCRAPES_SECONDS):
                while any(replica.scrapes < last for replica, last in zip(self._replicas, until, strict=True)):
                    await asyncio.sleep(0.02)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, marks: list[str]) -> bool:
        """Send them all, then read the answers; False if the connection is of no more use."""
        kind = self._draw.choice(KINDS) if self._draw.random() < self._plan.kinds else ""
        self.book.kinds.update([kind] if kind else [])
        if kind == "half":
            await self._half_a_request()
        asked = [self._request(mark, kind) for mark in marks]
        if kind == "slow":
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        await self._send(writer, b"".join(request for request, _, _ in asked))
        if kind == "slow":
            await asyncio.sleep(0.1)
            writer.transport.resume_reading()  # type: ignore[attr-defined]
        if self._draw.random() < self._plan.leaves:
            with suppress(TimeoutError, asyncio.IncompleteReadError, ConnectionError):
                async with asyncio.timeout(self._draw.random() * 0.05):
                    await reader.readexactly(self._draw.randrange(1, 3_000))
            self.book.left += len(marks)
            return False
        for at, (mark, (_, is_stream, asks_usage)) in enumerate(zip(marks, asked, strict=True)):
            judged, keeps = await self._receive(reader, mark, is_stream)
            self._note(mark, judged, asks_usage)
            if not keeps:
                self.book.behind += len(marks) - at - 1
                return False
        return True

    async def _half_a_request(self) -> None:
        """A request that never becomes whole, on a connection that breaks."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        request, _, _ = self._request("half", "large")
        writer.write(request[: self._draw.randrange(1, len(request) - 1)])
        await asyncio.sleep(0.01)
        writer.transport.abort()

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        with suppress(ConnectionError):
            cut = self._draw.randrange(len(data)) if self._draw.random() < 0.2 else 0
            if cut:
                writer.write(data[:cut])
                await asyncio.sleep(0.001)
            writer.write(data[cut:])
            await writer.drain()

    def _request(self, mark: str, kind: str = "") -> tuple[bytes, bool, bool]:
        """(bytes, whether it asks for a stream, whether it asks for the usage)."""
        is_stream, asks_usage = self._draw.random() < self._streams, self._draw.random() < 0.3
        if self._draw.random() < self._plan.odd:
            body, is_stream, asks_usage = self._draw.choice(ODD_BODIES), False, True
        else:
            options = {"stream_options": {"include_usage": True}} if asks_usage and is_stream else {}
            padding = {"suffix": "é, " * 100_000} if kind == "large" else {}
            body = json.dumps({"model": "m", "prompt": mark, "stream": is_stream, **options, **padding}).encode()
        version = "1.0" if kind in ("HTTP/1.0", "old and keeps") else "1.1"
        line = f"POST /v1/completions HTTP/{version}\r\nhost: x\r\nx-request-id: {mark}\r\n"
        head = (line + _MORE.get(kind, "")).encode()
        if version == "1.0":
            return head + b"content-length: %d\r\n\r\n" % len(body) + body, is_stream, asks_usage
        if body and len(body) < 10_000 and self._draw.random() < 0.1:
            size = self._draw.choice([1, 7, 100])
            parts = [body[at : at + size] for at in range(0, len(body), size)]
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
            return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", is_stream, asks_usage
        return head + b"content-length: %d\r\n\r\n" % len(body) + body, is_stream, asks_usage

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
        """Enter an ending, and check it against what the replicas did."""
        book = self.book
        book.endings[judged.ending] += 1
        met = book.executed.get(mark, [])
        story = f"{mark} ({', '.join(met) or 'not executed'}): {judged.why}"
        if judged.ending in ("wrong", "lost", "hung"):
            getattr(book, judged.ending).append(story)
            return
        last = met[-1] if met else ""
        was_answered = last == GOOD or (last in FAULTS and FAULTS[last].is_legal)
        if was_answered and judged.ending != "whole" and judged.why != "replica-timeout":  # a slow machine's fault
            book.wrong.append(f"a right answer became {judged.ending}: {story}")
        if judged.ending == "whole" and not self._adds_events.intersection(met):
            if judged.usage_shown and not asks_usage:
                book.wrong.append(f"usage shown that was not asked for: {story}")
            if judged.strange_events:
                book.wrong.append(f"events that no replica sent: {story}")

    async def _last(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A last request, to the gateway itself: all that comes after the other answers has to be its answer."""
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

    # Beside the clients

    async def _watch(self) -> None:
        """Ask for the gateway's health all the time: the longest wait bounds how long its loop stood still."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            while True:
                before = monotonic()
                writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                await receive(reader)
                after = monotonic()
                self.book.lag_seconds = max(self.book.lag_seconds, after - before)
                await asyncio.sleep(0.01)
                self.book.own_lag_seconds = max(self.book.own_lag_seconds, monotonic() - after - 0.01)
        finally:
            writer.transport.abort()

    async def _watch_replicas(self) -> None:
        """Note replicas that were ejected although they did nothing that allows it."""
        ejected: set[str] = set()
        while self._plan.is_legal:
            for one in (await asyncio.to_thread(self._state))["replicas"]:
                if one["health"] != "up" and one["name"] not in ejected:
                    ejected.add(one["name"])
                    self.book.wrong.append(f"{one['name']} was ejected: {one['last_failure']}")
            await asyncio.sleep(0.05)

    async def _flap(self) -> None:
        while True:
            for replica in self._replicas:
                await asyncio.sleep(0.1)
                await replica.flap(0.1)

    def _compare(self, gateway: Counter[str]) -> None:
        """The gateway's counts beside the clients': a client that left may have been counted as anything."""
        book, own = self.book, self.book.endings
        sent, left, passed = book.sent - book.behind, book.left, own["passed"]
        rejected = passed + own["told"]  # malformed requests never enter the queue
        if not sent - left - rejected <= gateway["arrived"] <= sent:
            book.wrong.append(f"{sent} sent, {left} left, {rejected} rejected: {gateway['arrived']} arrived")
        if not own["whole"] <= gateway["completed"] <= own["whole"] + passed + left:
            whole = f"{own['whole']} whole, {passed} passed, {left} left"
            book.wrong.append(f"{whole}: {gateway['completed']} completed")
        if gateway["arrived"] != sum(gateway[one] for one in ("completed", "refused", "cancelled", "failed")):
            book.wrong.append(f"the gateway's books do not balance: {dict(gateway)}")
        if gateway["cancelled"] > left:
            book.wrong.append(f"{left} left, {gateway['cancelled']} were counted as cancelled")


class Setup:
    """A `headway serve` of its own in front of faulty replicas. `log` is the file of its log lines."""

    def __init__(self, replicas: list[FaultyReplica], url: str, pid: int, log: Path) -> None:
        self.replicas, self.url, self.pid, self.log = replicas, url, pid, log
        self._read = 0

    def state(self) -> dict[str, Any]:
        """The gateway's own books."""
        return dict(json.loads(fetched(self.url + "/headway/state")))

    async def day(self, plan: Plan, seed: int = 0) -> Book:
        """Carry out a plan."""
        return await Day(int(self.url.rpartition(":")[2]), self.replicas, self.state, plan, seed).run()

    def loop_pause_seconds(self) -> tuple[float, float]:
        """The gateway's longest time without a turn within the last minute, and how long it computed in one."""
        page = fetched(self.url + "/metrics")
        found = [
            re.search(rf"^headway_event_loop_{name}_seconds (\S+)$", page, re.MULTILINE) for name in ("pause", "held")
        ]
        pause, held = (0.0 if one is None else float(one[1]) for one in found)
        return pause, held

    def errors_logged(self) -> list[str]:
        """Error lines since the last call: an exception that the gateway had to catch is a fault of its own."""
        with self.log.open(encoding="utf-8") as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        return [line for line in lines if '"level": "ERROR"' in line or "Traceback" in line]


@asynccontextmanager
async def gateway_under_test(folder: Path, seed: int = 0, command: Sequence[str] = HEADWAY) -> AsyncIterator[Setup]:
    """Start the replicas in this loop and the gateway (`command`) in a process; stop both at the end."""
    replicas = [FaultyReplica(Random(seed * REPLICAS + number)) for number in range(REPLICAS)]
    for replica in replicas:
        await replica.start()
    config, log = folder / "gateway.toml", folder / "gateway.jsonl"
    tables = [f'[[replica]]\nurl = "{one.url}"\nmax_requests = {SEATS}\n' for one in replicas]
    config.write_text(CONFIG + "".join(tables))
    with log.open("wb") as err:
        process = await asyncio.create_subprocess_exec(*command, "serve", "--config", str(config), stderr=err)
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
