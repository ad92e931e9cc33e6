"""Times between tokens as they pass: the gaps of each replica (ITL), and the mean of each stream (TPOT)."""

from __future__ import annotations

import asyncio
import json

from prometheus_client.parser import text_string_to_metric_families as parsed

from tests.support.gateway_setup import Answer, Clock, RunGateway, Setup, completion
from tests.support.scripted_replica import Call, answers, text, usage

ITL, TPOT = "headway_replica_inter_token_seconds", "headway_request_tpot_seconds"
DONE = b"data: [DONE]\n\n"


class SteppedStream:
    """A stream whose pieces come when the test says so, on the test's clock."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.clock = setup.dispatcher.now = Clock(setup.dispatcher.now())
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.asked = asyncio.Event()
        setup.replicas[0].usual = self

    async def __call__(self, call: Call) -> None:
        await call.head()
        self.asked.set()
        while piece := await self.pieces.get():
            await call.chunk(piece)
        await call.send(b"0\r\n\r\n")

    def asks(self, **fields: object) -> asyncio.Task[Answer]:
        """A client that reads it to its end."""
        return asyncio.create_task(self.setup.ask(completion(**fields)))

    async def sends(self, after_seconds: float, *events: object) -> None:
        """These events come in one piece, and the gateway has read it."""
        await self.asked.wait()
        self.clock.now += after_seconds
        before = self._pieces_read()
        data = (one if isinstance(one, bytes) else b"data: " + json.dumps(one).encode() + b"\n\n" for one in events)
        self.pieces.put_nowait(b"".join(data))
        await self.setup.until(lambda: self._pieces_read() > before)

    def ends(self) -> None:
        self.pieces.put_nowait(b"")

    def _pieces_read(self) -> int:
        return sum(relay.request.relayed.pieces_mark for relay in self.setup.dispatcher.relays.values())


async def observed(setup: Setup, name: str) -> dict[str, float]:
    """Of a histogram with one series: its sum, its count, and the observations of each bucket that has some."""
    found, below = {}, 0.0
    for family in parsed((await setup.get("/metrics")).body.decode()):
        for sample in family.samples if family.name == name else []:
            if sample.name.endswith("_bucket"):
                found[sample.labels["le"]], below = sample.value - below, sample.value
            else:
                found[sample.name.rpartition("_")[2]] = round(sample.value, 9)
    return {key: value for key, value in found.items() if value}


def test_gaps_count_as_they_come_and_their_mean_when_the_stream_ends(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        stream = SteppedStream(setup)
        asks = stream.asks()
        await stream.sends(5.0, text("t0"))
        assert await observed(setup, ITL) == {}
        await stream.sends(0.022, text("t1"))
        await stream.sends(0.022, text("t2"), text("t3"))  # together: one gap
        await stream.sends(0.3, text("t4"))
        assert await observed(setup, ITL) == {"0.03": 2, "0.5": 1, "count": 3, "sum": 0.344}
        assert await observed(setup, TPOT) == {}
        # Neither what the client does not get nor the mark of the end is a token.
        await stream.sends(9.0, usage(7, 5))
        await stream.sends(9.0, DONE)
        stream.ends()
        assert (await asks).whole
        assert await observed(setup, ITL) == {"0.03": 2, "0.5": 1, "count": 3, "sum": 0.344}
        assert await observed(setup, TPOT) == {"0.1": 1, "count": 1, "sum": 0.344 / 4}

    run_gateway(scenario)


def test_a_last_token_may_come_with_the_end(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        clock = setup.dispatcher.now = Clock(setup.dispatcher.now())
        goes_on = asyncio.Event()

        async def script(call: Call) -> None:
            await call.head()
            await call.event(text("t0"))
            await goes_on.wait()
            last = b"data: " + json.dumps(text("t1")).encode() + b"\n\n" + DONE
            await call.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))

        setup.replicas[0].usual = script
        asks = asyncio.create_task(setup.ask())
        await setup.until(lambda: any(one.request.relayed.first_byte_at for one in setup.dispatcher.relays.values()))
        clock.now += 2.0
        goes_on.set()
        assert (await asks).texts == "t0t1"
        assert await observed(setup, ITL) == {"2.5": 1, "count": 1, "sum": 2.0}
        assert await observed(setup, TPOT) == {"2.5": 1, "count": 1, "sum": 2.0}

    run_gateway(scenario)


def test_sequences_of_one_stream_decode_side_by_side(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        stream = SteppedStream(setup)
        asks = stream.asks(n=2)
        for after in (1.0, 0.25, 0.25):
            await stream.sends(after, text("a"), text("b"))
        await stream.sends(0.0, usage(7, 6), DONE)
        stream.ends()
        await asks
        assert await observed(setup, TPOT) == {"0.25": 1, "count": 1, "sum": 0.25}

    run_gateway(scenario)


def test_answers_without_a_second_token_have_neither(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].next.append(answers())
        await setup.ask(completion(stream=False))
        stream = SteppedStream(setup)
        for tokens in (1, 3):  # of several at once the times between them are not seen
            asks = stream.asks()
            await stream.sends(1.0, *(text("t") for _ in range(tokens)), DONE)
            stream.ends()
            await asks
            stream.asked.clear()
        assert await observed(setup, ITL) == await observed(setup, TPOT) == {}

    run_gateway(scenario)
