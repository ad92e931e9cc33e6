"""Nothing holds the event loop: a table of what clients, replicas and operators can do, each at its bound.

The gateway has a thread of its own. Only the CPU time of that thread is judged, so that a busy machine does not matter,
and with a bound that a slow one keeps: without the gateway's precautions most of these took seconds. The tests of each
part count, without any clock, that work is divided.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest
import uvloop

from headway.gateway.gateway import Gateway
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.queueing.request_state import QueueKey
from headway.gateway.settings import (
    PolicySettings,
    QueueSettings,
    ReplicaSettings,
    Settings,
)
from tests.support.gateway_setup import LOOP_HELD_SECONDS_MAX, LOOP_WATCH_SECONDS, QUICK, Answer, RawClient, post
from tests.support.scripted_replica import Call, Script, ScriptedReplica, text

MIB = 1 << 20
SIZE = 24 * MIB
SECONDS = 240


class Bench:
    """A gateway in a thread, in front of one replica in the test's own loop."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self.gateway: Gateway
        self.replica = ScriptedReplica(_answers)

    async def start(self) -> Bench:
        await self.replica.start()
        self._thread = threading.Thread(target=self._live)
        self._thread.start()
        await asyncio.to_thread(self._ready.wait, SECONDS)
        return self

    async def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        await asyncio.to_thread(self._thread.join, SECONDS)
        await self.replica.stop()

    async def inside(self, act: Callable[[Gateway], object]) -> None:
        """Act in the gateway's thread."""

        async def call() -> None:
            act(self.gateway)

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), self._loop))

    async def ask(self, body: bytes, path: str = "/v1/completions", kind: str = "application/json") -> Answer:
        async with RawClient(self.gateway.addresses[0][1]) as client:
            await client.send(post(body, path, f"content-type: {kind}\r\n"))
            return await client.answer()

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self.gateway = Gateway(
            Settings(
                listen="127.0.0.1:0",
                policies=PolicySettings(ordering="fcfs"),
                aliases={"alias": "m"},
                health=replace(QUICK, silent_seconds=SECONDS, first_byte_seconds=SECONDS),
                queue=QueueSettings(max_requests=20_000),
                replica=(ReplicaSettings(url=self.replica.url, name="r0", metrics=False),),
            )
        )
        self.gateway.loop_watch.period_seconds = LOOP_WATCH_SECONDS
        await self.gateway.start()
        while not self.gateway.dispatcher.replicas[0].is_up:
            await asyncio.sleep(0.01)
        self._ready.set()
        await self._over.wait()
        await self.gateway.stop()


async def _answers(call: Call) -> None:
    await call.head()
    await call.event(text("t0 "))
    await call.chunk(b"data: [DONE]\n\n")
    await call.send(b"0\r\n\r\n")


def _filled(begin: bytes, unit: bytes, end: bytes, size: int = SIZE) -> bytes:
    return begin + unit * ((size - len(begin) - len(end)) // len(unit)) + end


def _keys(number: int) -> bytes:
    return b",".join(b'"%d":1' % key for key in range(number))


STREAMS = b'{"model":"m","stream":true,"stream_options":{},'
ALIASED = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nalias'
FORM = "multipart/form-data; boundary=x"
BODIES: dict[str, tuple[Callable[[], bytes], str, str, int]] = {
    "small keys": (lambda: _filled(STREAMS, b'"a":1,', b'"prompt":"x"}'), "/v1/completions", "", 413),
    "different keys": (lambda: STREAMS + _keys(2_000_000) + b',"prompt":"x"}', "/v1/completions", "", 413),
    "as many keys as may be": (
        lambda: _filled(STREAMS + _keys(45_000) + b',"prompt":"', b"x", b'"}'),
        "/v1/completions",
        "",
        200,
    ),
    "letters of several bytes": (lambda: _filled(STREAMS + b'"prompt":"', "é😀".encode(), b'"}'), "", "", 200),
    "escapes": (lambda: _filled(STREAMS + b'"prompt":"', b"\\u00e9", b'"}'), "", "", 200),
    "token ids": (lambda: STREAMS + b'"prompt":[' + b"1," * 1_900_000 + b"1]}", "", "", 200),
    "many prompts": (lambda: STREAMS + b'"prompt":[' + b'"",' * 1_900_000 + b'""]}', "", "", 200),
    "many messages": (
        lambda: STREAMS + b'"messages":[' + b'{"content":[{"type":"x"}]},' * 300_000 + b"{}]}",
        "/v1/chat/completions",
        "",
        200,
    ),
    "an image": (
        lambda: _filled(STREAMS + b'"messages":[{"content":[{"type":"image_url","image_url":"data:', b"A", b'"}]}]}'),
        "/v1/chat/completions",
        "",
        200,
    ),
    "many small messages": (
        lambda: _filled(STREAMS + b'"messages":[', b'{"content":[{"type":"x"}]},', b"{}]}", 120_000),
        "/v1/chat/completions",
        "",
        200,
    ),
    "many small keys": (lambda: _filled(STREAMS, b'"a":1,', b'"prompt":"x"}', 130_000), "", "", 200),
    "a form of long headers": (
        lambda: (b"--x\r\n" + b"content-disposition:" * 190 + b"\r\n\r\n\r\n") * 1_000 + b"--x--\r\n",
        "/v1/audio/transcriptions",
        FORM,
        200,
    ),
    "a form with an alias": (
        lambda: _filled(ALIASED + b"\r\n--x\r\n\r\n", b"\r\n--", b"\r\n--x--\r\n"),
        "/v1/audio/transcriptions",
        FORM,
        200,
    ),
    "an alias between two long fields": (
        lambda: _filled(STREAMS + b'"prompt":"', b"x", b'","model":"alias","y":"' + b"y" * (SIZE // 2) + b'"}'),
        "",
        "",
        200,
    ),
    "keys behind bytes that are no text": (
        lambda: b'{"\xff":"' + b"x" * 2 * MIB + b'",' + _keys(2_000_000) + b"}",
        "/v1/rerank",
        "",
        413,
    ),
    "a long name": (lambda: _filled(b'{"model":"', b"x", b'"}'), "", "", 413),
    "a form of many parts": (lambda: b"--x\r\n\r\n\r\n" * 500_000, "/v1/audio/transcriptions", FORM, 200),
    "a form in one line": (
        lambda: b"a=" + b"%41" * 5_000_000,
        "/v1/audio/transcriptions",
        "application/x-www-form-urlencoded",
        200,
    ),
    "blanks": (lambda: b" " * SIZE, "", "", 413),
    "brackets": (lambda: b"[" * SIZE, "", "", 400),
}


def _sends(*pieces: bytes, kind: str = "text/event-stream") -> Script:
    async def script(call: Call) -> None:
        await call.head(kind=kind)
        for piece in pieces:
            await call.chunk(piece)
        await call.send(b"0\r\n\r\n")

    return script


DONE = b"data: [DONE]\n\n"
MANY_ENDS = "ends of 16,000 sequences"
ANSWERS: dict[str, Script] = {
    "small events": _sends(*[b"data:\n\n" * 30_000] * 8, DONE),
    "small events that end with CR": _sends(*[b"data:\r\r" * 30_000] * 8, DONE),
    "small events with a usage": _sends(*[b'data: {"usage":1}\n\n' * 12_000] * 8, DONE),
    "small events with an error": _sends(*[b'data: {"error":1}\n\n' * 12_000] * 8, DONE),
    MANY_ENDS: _sends(*[b'data: {"finish_reason":"x"}\n\n' * 8_000] * 2, DONE),
    "events of 1.2 MB": _sends(*[b"data: " + b"x" * 1_200_000 + b"\n\n"] * 8, DONE),
    "an event of 1 MB, all of it usage": _sends(b'data: {"usage":{' + _keys(90_000) + b"}}\n\n", DONE),
    "line ends": _sends(*[b"\r\n" * 120_000] * 4, DONE),
    "an answer that is all usage": _sends(b'{"usage":{' + _keys(350_000) + b"}}", kind="application/json"),
    "an answer that is all error": _sends(b'{"error":[' + b"{}," * 1_000_000 + b"1]}", kind="application/json"),
}


async def _many_series(bench: Bench) -> None:
    def count(gateway: Gateway) -> None:
        for number in range(1_000):
            gateway._metrics._series.of("m", f"tenant {number}").requests["completed", ""] += 1

    await bench.inside(count)
    async with RawClient(bench.gateway.addresses[0][1]) as client:
        await client.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.answer()).body.count(b"tenant ") >= 1_000


async def _many_queues(bench: Bench) -> None:
    def add(gateway: Gateway) -> None:
        dispatcher, policies = gateway.dispatcher, gateway.settings.policies
        for number in range(3_000):
            key = QueueKey(f"model {number}", "generation")
            prepare = gateway._learned.prepare if number < 10 else lambda *_: ()
            queue = ModelQueue(key, policies, prepare, dispatcher.errors, dispatcher.served_queues.accounts)
            queue.used_at = dispatcher.now()
            dispatcher.queues[key] = queue

    await bench.inside(add)
    await bench.inside(lambda gateway: setattr(gateway.loop_watch, "longest_held_seconds", 0.0))
    async with RawClient(bench.gateway.addresses[0][1]) as client:
        await client.send(b"GET /headway/state HTTP/1.1\r\nhost: x\r\n\r\nGET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        assert len((await client.answer()).json()["lines"]) == 200
        assert (await client.answer()).status == 200
    await bench.inside(lambda gateway: gateway.dispatcher.queues.clear())


async def _many_pipelined(bench: Bench) -> None:
    async with RawClient(bench.gateway.addresses[0][1]) as client:
        await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 7_000)
        assert (await client.answer()).status == 200


async def _a_crowd_in_many_shares(bench: Bench) -> None:
    """Requests of as many fairness ids wait, then other policies are chosen, and then all of them have room."""
    go = asyncio.Event()

    async def waits(call: Call) -> None:
        await go.wait()
        await _answers(call)

    bench.replica.usual = waits
    clients = [await RawClient(bench.gateway.addresses[0][1]).__aenter__() for _ in range(800)]
    for number, client in enumerate(clients):
        hint = f"x-llm-d-inference-fairness-id: {number}\r\n"
        await client.send(post(json.dumps({"model": "m", "prompt": "x", "stream": True}).encode(), headers=hint))
    while bench.gateway.dispatcher.counts.inside < len(clients):
        await asyncio.sleep(0.05)
    shares = replace(bench.gateway.settings, policies=PolicySettings(ordering="fair-share"))
    await bench.inside(lambda gateway: gateway.reload(shares))

    def make_room(gateway: Gateway) -> None:
        (replica,) = gateway.dispatcher.replicas
        replica.ledger.requests_max = 10_000
        gateway.dispatcher.pump()

    await bench.inside(make_room)
    go.set()
    for client in clients:
        assert (await client.answer()).status == 200
        await client.__aexit__()
    bench.replica.usual = _answers


ACTS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "a scrape of 1,000 series": _many_series,
    "a state page and a scrape of 3,000 queues": _many_queues,
    "7,000 pipelined requests": _many_pipelined,
    "a crowd in many shares, and a reload": _a_crowd_in_many_shares,
}


def _members() -> Iterator[tuple[str, Callable[[Bench], Awaitable[None]]]]:
    for name, (body, path, kind, status) in BODIES.items():

        async def send(
            bench: Bench, body: Callable[[], bytes] = body, path: str = path, kind: str = kind, status: int = status
        ) -> None:
            answer = await bench.ask(body(), path or "/v1/completions", kind or "application/json")
            assert answer.status == status, answer.body[:300]

        yield f"a body: {name}", send
    for name, script in ANSWERS.items():

        async def receive(bench: Bench, script: Script = script, n: int = 16_000 if name == MANY_ENDS else 1) -> None:
            bench.replica.next.append(script)
            asked = b'{"model":"m","prompt":"x","stream":true,"n":%d}' % n
            assert (await bench.ask(asked)).status == 200

        yield f"an answer: {name}", receive
    yield from ACTS.items()


def test_nothing_holds_the_loop() -> None:
    """Each member in turn, at one gateway; the message of a failure lists the figures of all."""
    figures: dict[str, float] = {}

    async def scenario() -> None:
        bench = await Bench().start()
        watch = bench.gateway.loop_watch
        try:
            for name, act in _members():
                await bench.inside(lambda gateway: setattr(gateway.loop_watch, "longest_held_seconds", 0.0))
                await act(bench)
                bench.replica.calls.clear()
                await asyncio.sleep(3 * LOOP_WATCH_SECONDS)  # the watch has its turn
                figures[name] = watch.longest_held_seconds
        finally:
            await bench.stop()

    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await scenario()

    asyncio.run(bounded())
    assert len(figures) == len(BODIES) + len(ANSWERS) + len(ACTS)
    print({name: round(1_000 * seconds) for name, seconds in figures.items()})
    too_long = {name: seconds for name, seconds in figures.items() if seconds > LOOP_HELD_SECONDS_MAX / 2}
    assert too_long == {}


pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
