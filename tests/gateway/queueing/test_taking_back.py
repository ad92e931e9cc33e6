"""Requests that wait in an engine's own queue go to another replica, over real sockets."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from headway.gateway.queueing.engine_queues import EngineQueues
from headway.gateway.queueing.request_state import QueuedRequest
from headway.gateway.settings import PolicySettings, QueueSettings, ReplicaSettings
from headway.policies.rescheduling.take_back import TakeBack
from tests.support.counted_clients import Books
from tests.support.gateway_setup import QUICK, RunGateway, Setup, completion
from tests.support.scripted_replica import Call, Script, dies_at_once, echoes, streams, text, waits_for

TAKES_BACK = PolicySettings(ordering="fcfs", routing="round-robin", rescheduling="take-back")


def counts(waiting: int, running: int) -> str:
    return f"vllm:num_requests_waiting {waiting}\nvllm:num_requests_running {running}\n"


def pauses(seconds: float, then: Script) -> Script:
    async def script(call: Call) -> None:
        await asyncio.sleep(seconds)
        await then(call)

    return script


class Engines:
    """Two engines; the first one runs one request and lets the others wait, as its metrics say."""

    def __init__(self, setup: Setup, *, head_at_once: bool = False) -> None:
        self.setup = setup
        self.full, self.idle = setup.replicas
        self.gate = asyncio.Event()
        self._head_at_once = head_at_once
        self.full.usual = self._waits
        self.idle.usual = streams(2)
        self.idle.metrics = counts(0, 0)

    async def _waits(self, call: Call) -> None:
        if self._head_at_once:
            await call.head()
            await self.gate.wait()
            await call.event(text("late "))
            await call.chunk(b"data: [DONE]\n\n")
            await call.send(b"0\r\n\r\n")
        else:
            await waits_for(self.gate, streams(2))(call)

    async def fill(self, asked: int, **fields: Any) -> list[asyncio.Task[Any]]:
        """Ask so many; all but the first wait at the first engine, while the second one is drained."""
        replicas = self.setup.dispatcher.replicas
        replicas[1].is_drained = True
        asking = []
        for number in range(asked):
            ask = self.setup.ask(completion(prompt=f"p{number}"), **fields)
            asking.append(asyncio.create_task(ask))
            await self.setup.until(lambda number=number: self.full.inside == number + 1)
        replicas[1].is_drained = False
        self.full.metrics = counts(asked - 1, 1)
        return asking


@pytest.mark.parametrize("head_at_once", [False, True])
def test_what_waits_in_an_engine_goes_to_one_that_is_idle(run_gateway: RunGateway, head_at_once: bool) -> None:
    """Also where the engine has sent the head of its stream, as vLLM does before it begins."""

    async def scenario(setup: Setup) -> None:
        engines = Engines(setup, head_at_once=head_at_once)
        asking = await engines.fill(3)
        await setup.until(lambda: setup.dispatcher.counts.moved == 2)
        moved = await asyncio.gather(*asking[1:])
        assert [answer.texts for answer in moved] == ["t0 t1 "] * 2
        assert {call.json()["prompt"] for call in engines.idle.calls} == {"p1", "p2"}, "the first one runs"
        await setup.until(lambda: engines.full.inside == 1)
        assert not asking[0].done()
        engines.gate.set()
        assert (await asking[0]).status == 200
        assert len(engines.full.calls) == 3
        assert setup.dispatcher.counts.retried == 0
        metrics = (await setup.get("/metrics")).body.decode()
        assert "headway_request_moves_total 2" in metrics

    run_gateway(scenario, replicas=2, policies=TAKES_BACK)


def test_nothing_moves_by_default(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        engines = Engines(setup)
        asking = await engines.fill(3)
        await asyncio.sleep(0.3)
        assert setup.dispatcher.counts.moved == 0
        engines.gate.set()
        assert [(await one).status for one in asking] == [200] * 3
        assert not engines.idle.calls

    run_gateway(scenario, replicas=2, policies=replace(TAKES_BACK, rescheduling="stay"))


@pytest.mark.parametrize(
    "replica",
    [{"priority": "lower-first"}, {"hints": "always"}],
    ids=["a priority scheduler", "our plug-in"],
)
def test_an_engine_with_another_order_keeps_what_it_has(run_gateway: RunGateway, replica: dict[str, Any]) -> None:
    """Which of its requests wait is not known."""

    async def scenario(setup: Setup) -> None:
        settings = tuple(ReplicaSettings(url=one.url, **replica) for one in setup.replicas)
        setup.gateway.reload(replace(setup.settings, replica=settings))
        await setup.until(lambda: all(one.is_up for one in setup.dispatcher.replicas))
        engines = Engines(setup)
        asking = await engines.fill(3)
        await asyncio.sleep(0.3)
        assert setup.dispatcher.counts.moved == 0
        engines.gate.set()
        assert [(await one).status for one in asking] == [200] * 3

    run_gateway(scenario, replicas=2, policies=TAKES_BACK)


@pytest.mark.parametrize("metrics", [counts(2, 3), counts(0, 3), "vllm:num_requests_waiting 2\n"])
def test_as_many_as_run_are_left(run_gateway: RunGateway, metrics: str) -> None:
    """Those that wait may be another gateway's, and of an engine that does not say how many run nothing is known."""

    async def scenario(setup: Setup) -> None:
        engines = Engines(setup)
        asking = await engines.fill(3)
        engines.full.metrics = metrics
        await asyncio.sleep(0.3)
        assert setup.dispatcher.counts.moved == 0
        engines.gate.set()
        assert [(await one).status for one in asking] == [200] * 3

    # The counts that `fill` leaves are never read: the first scrape after it comes when these are there.
    run_gateway(scenario, replicas=2, policies=TAKES_BACK, health=replace(QUICK, scrape_seconds=0.15))


@pytest.mark.parametrize("metrics", ["vllm:num_requests_running 0\n", counts(1, 0)])
def test_nothing_goes_to_an_engine_that_may_have_a_queue(run_gateway: RunGateway, metrics: str) -> None:
    async def scenario(setup: Setup) -> None:
        engines = Engines(setup)
        engines.idle.metrics = metrics
        await setup.until(lambda: setup.dispatcher.replicas[1].waiting_requests != 0)
        asking = await engines.fill(3)
        await asyncio.sleep(0.3)
        assert setup.dispatcher.counts.moved == 0
        engines.gate.set()
        assert [(await one).status for one in asking] == [200] * 3

    run_gateway(scenario, replicas=2, policies=TAKES_BACK)


def test_what_is_not_to_wait_in_a_queue_is_not_taken_back_into_one(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        engines = Engines(setup)
        asking = await engines.fill(3, headers="x-headway-no-queue: true\r\n")
        await asyncio.sleep(0.3)
        assert setup.dispatcher.counts.moved == 0
        engines.gate.set()
        assert [(await one).status for one in asking] == [200] * 3

    run_gateway(scenario, replicas=2, policies=TAKES_BACK)


def test_what_was_sent_after_an_engine_counted_is_not_among_those_that_wait(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        engines = Engines(setup)
        asking = await engines.fill(3)
        full, queues = setup.dispatcher.replicas[0], EngineQueues(setup.dispatcher)
        await setup.until(lambda: full.waiting_requests == 2)
        _, second, third = full.ledger.running()
        assert queues._waiting(full) == [second, third]
        assert isinstance(third, QueuedRequest)
        assert third.dispatched_at is not None
        full.state.asked_at = third.dispatched_at
        assert queues._waiting(full) == [second]
        engines.gate.set()
        assert [(await one).status for one in asking] == [200] * 3

    run_gateway(scenario, replicas=2, policies=replace(TAKES_BACK, rescheduling="stay"))


def test_a_policy_that_fails_again_and_again_is_asked_no_more(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fails(*given: object) -> None:
        asked.append(given)
        raise ZeroDivisionError

    monkeypatch.setattr(TakeBack, "moves", fails)
    policies = replace(TAKES_BACK, options={"rescheduling": {"period_seconds": 0.001}}, faults_max=3)

    async def scenario(setup: Setup) -> None:
        engines = Engines(setup)
        asking = await engines.fill(3)
        await setup.until(lambda: len(asked) == 3)
        await asyncio.sleep(0.3)
        assert len(asked) == 3
        engines.gate.set()
        assert [(await one).status for one in asking] == [200] * 3

    run_gateway(scenario, replicas=2, policies=policies)


def test_a_moved_request_has_no_further_try(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        engines = Engines(setup)
        engines.idle.usual = dies_at_once
        asking = await engines.fill(2)
        moved = await asking[1]
        assert (moved.status, moved.reason) == (502, "replica-failed")
        assert (setup.dispatcher.counts.moved, setup.dispatcher.counts.retried) == (1, 0)
        assert len(engines.full.calls) == 2
        engines.gate.set()
        assert (await asking[0]).status == 200

    run_gateway(scenario, replicas=2, policies=TAKES_BACK)


def test_what_may_not_be_executed_twice_stays(run_gateway: RunGateway) -> None:
    """Each execution would make a batch."""

    async def scenario(setup: Setup) -> None:
        engines = Engines(setup)
        replicas = setup.dispatcher.replicas
        replicas[1].is_drained = True
        body = {"model": "m", "input_file_id": "f", "endpoint": "/v1/completions"}
        asking = []
        for number in range(3):
            asking.append(asyncio.create_task(setup.ask(body, path="/v1/batches")))
            await setup.until(lambda number=number: engines.full.inside == number + 1)
        replicas[1].is_drained = False
        engines.full.metrics = counts(2, 1)
        await asyncio.sleep(0.3)
        assert setup.dispatcher.counts.moved == 0
        assert not engines.idle.calls
        engines.gate.set()
        for one in asking:
            await one

    run_gateway(scenario, replicas=2, policies=TAKES_BACK)


def test_a_stream_that_was_kept_open_is_moved_too(run_gateway: RunGateway) -> None:
    """Its client has the gateway's own head, and comments: nothing of the engine."""

    async def scenario(setup: Setup) -> None:
        engines = Engines(setup, head_at_once=True)
        replicas = setup.dispatcher.replicas
        asking = await engines.fill(2)
        engines.full.metrics = counts(0, 2)
        await setup.until(lambda: setup.dispatcher.counts.keep_alives >= 2)
        assert replicas[0].ledger.requests == 2
        engines.full.metrics = counts(1, 1)
        moved = await asking[1]
        assert (moved.status, moved.texts, setup.dispatcher.counts.moved) == (200, "t0 t1 ", 1)
        engines.gate.set()
        assert (await asking[0]).texts == "late "

    queue = QueueSettings(keep_alive_seconds=0.5)
    run_gateway(scenario, replicas=2, policies=TAKES_BACK, queue=queue, health=replace(QUICK, scrape_seconds=0.6))


def test_what_waits_at_a_replica_that_is_drained_goes_elsewhere(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        engines = Engines(setup)
        asking = await engines.fill(2)
        setup.dispatcher.replicas[0].is_drained = True
        assert (await asking[1]).texts == "t0 t1 "
        engines.gate.set()
        assert (await asking[0]).status == 200

    run_gateway(scenario, replicas=2, policies=TAKES_BACK)


def test_engines_whose_counts_lie_lose_nothing_and_answer_nothing_twice(run_gateway: RunGateway) -> None:
    """They say at random that requests wait, also of those that run: each answer is whole, its own, and there once."""

    async def scenario(setup: Setup) -> None:
        dice = random.Random(0)

        async def lie() -> None:
            while True:
                for one in setup.replicas:
                    one.metrics = counts(dice.choice([0, 0, 1, 4]), dice.choice([0, 1, 2]))
                await asyncio.sleep(0.01)

        for one in setup.replicas:
            one.usual = echoes(gap=0.01)
            one.next.extend([pauses(dice.choice([0.1, 0.3, 0.5]), echoes()) for _ in range(20)])
        lying = asyncio.create_task(lie())
        books = Books(setup)
        await asyncio.gather(*(books.ask() for _ in range(60)))
        lying.cancel()
        books.agree()
        assert books.ended == {"whole": 60}
        assert setup.dispatcher.counts.moved > 0
        assert setup.dispatcher.counts.retried == 0

    policies = replace(TAKES_BACK, options={"rescheduling": {"least_gain_seconds": 0.0, "period_seconds": 0.01}})
    run_gateway(scenario, replicas=3, seats=30, policies=policies)
