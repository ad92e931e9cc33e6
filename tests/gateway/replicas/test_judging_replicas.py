"""A replica is judged by its requests and its probes, never by its metrics, and no request takes the last ones away."""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import replace

import pytest

from headway.gateway.settings import ReplicaSettings
from tests.support.gateway_setup import QUICK, RunGateway, Setup, completion
from tests.support.scripted_replica import (
    Call,
    Script,
    answers,
    dies_at_once,
    dies_mid_stream,
    hangs,
    streams,
    waits_for,
)

FIGURES = "vllm:num_requests_waiting 0\nvllm:num_requests_running 0\n"
POISON = completion(prompt="poison", stream=False)
GOOD = completion(prompt="good", stream=False)


async def says_no_http(call: Call) -> None:
    await call.send(b"SSH-2.0-OpenSSH_9.2\r\n")


async def breaks_off(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nvllm:num_req")
    call.writer.transport.abort()


def fails_at_poison(how: Script) -> Script:
    async def script(call: Call) -> None:
        await (how if b"poison" in call.body else answers())(call)

    return script


@pytest.mark.parametrize("how", [dies_at_once, says_no_http, breaks_off, hangs, answers(500, {})])
@pytest.mark.parametrize("figures", ["", FIGURES], ids=["never came", "came before"])
def test_metrics_that_do_not_come_are_stale_figures_and_nothing_else(
    run_gateway: RunGateway, how: Script, figures: str
) -> None:
    async def scenario(setup: Setup) -> None:
        scripted, replica = setup.replicas[0], setup.dispatcher.replicas[0]
        scripted.usual = answers()
        await setup.until(lambda: scripted.scrapes)
        if figures:
            await setup.until(lambda: replica.state.reported_at)
        scripted.instead["/metrics"] = how
        setup.gateway.reload(replace(setup.settings, health=replace(setup.settings.health, stall_seconds=0.5)))
        for _ in range(12):
            assert (await setup.ask(GOOD)).status == 200
            assert replica.is_up
            await asyncio.sleep(0.1)

    run_gateway(scenario, metrics=figures)


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_request_that_every_replica_answers_with_5xx_is_to_blame_itself(run_gateway: RunGateway, status: int) -> None:
    async def scenario(setup: Setup) -> None:
        for scripted in setup.replicas:
            scripted.usual = fails_at_poison(answers(status, {}))
        for _ in range(12):
            assert (await setup.ask(POISON)).status == status
        assert [replica.state.failures for replica in setup.dispatcher.replicas] == [0, 0]
        assert (await setup.ask(GOOD)).status == 200
        assert all(replica.is_up for replica in setup.dispatcher.replicas)

    run_gateway(scenario, replicas=2)


def test_a_replica_that_fails_at_what_another_answers_is_ejected(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        sick, well = setup.replicas
        sick.usual, well.usual = answers(500, {}), answers()
        while setup.dispatcher.replicas[0].is_up:
            assert (await setup.ask(GOOD)).status == 200
        assert len(sick.calls) == 5
        assert setup.dispatcher.replicas[1].state.failures == 0

    run_gateway(scenario, replicas=2, health=replace(QUICK, eject_seconds=60.0, eject_seconds_max=60.0))


def test_poison_that_cuts_connections_takes_one_of_two_at_most(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for scripted in setup.replicas:
            scripted.usual = fails_at_poison(dies_at_once)
        for _ in range(20):
            assert (await setup.ask(POISON)).status == 502
        assert sorted(replica.is_up for replica in setup.dispatcher.replicas) == [False, True]
        assert (await setup.ask(GOOD)).status == 200

    run_gateway(scenario, replicas=2, health=replace(QUICK, eject_seconds=60.0, eject_seconds_max=60.0))


def test_the_only_replica_is_not_ejected_for_what_a_probe_denies(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = fails_at_poison(answers(500, {}))
        for _ in range(9):
            assert (await setup.ask(POISON)).status == 500
        assert (await setup.ask(GOOD)).status == 200
        metrics = (await setup.get("/metrics")).body.decode()
        assert 'headway_replica_ejections_withheld_total{replica="r0"} 5.0' in metrics
        assert 'headway_replica_ejections_total{replica="r0"} 0.0' in metrics

    with caplog.at_level(logging.WARNING, "headway.gateway"):
        run_gateway(scenario)
    assert caplog.text.count("too few others are up to eject it") == 1


def test_what_a_stalled_replica_has_is_moved_to_another_one(run_gateway: RunGateway) -> None:
    """It takes requests and answers its probe, but sends no byte, and its metrics stop: 6 requests, each answered."""

    async def scenario(setup: Setup) -> None:
        stalled, well = setup.replicas
        await setup.until(lambda: all(replica.state.reported_at for replica in setup.dispatcher.replicas))
        stalled.usual = hangs
        stalled.instead["/metrics"] = hangs
        statuses = [answer.status for answer in await asyncio.gather(*(setup.ask() for _ in range(6)))]
        assert statuses == [200] * 6
        assert stalled.calls
        assert len(stalled.calls) == setup.dispatcher.counts.retried
        assert len(well.calls) == 6

    health = replace(QUICK, stall_seconds=0.5, eject_seconds=60.0, eject_seconds_max=60.0)
    run_gateway(scenario, replicas=2, health=health, metrics=FIGURES)


def test_long_answers_that_are_not_streamed_are_no_stall(run_gateway: RunGateway) -> None:
    """No byte comes for a while, and its metrics hang meanwhile, as a busy engine's do."""

    async def scenario(setup: Setup) -> None:
        busy, gate = setup.replicas[0], asyncio.Event()
        replica = setup.dispatcher.replicas[0]
        await setup.until(lambda: replica.state.reported_at)
        busy.usual = waits_for(gate, answers())
        busy.instead["/metrics"] = hangs
        asking = asyncio.ensure_future(setup.ask(GOOD))
        await setup.until(lambda: busy.inside)
        for second in range(1, 15):
            replica.state.silent_since = setup.dispatcher.now()
            setup.dispatcher.sweep(setup.dispatcher.now() + second)
        assert replica.is_up
        setup.dispatcher.sweep(setup.dispatcher.now() + 1_000.0)
        setup.dispatcher.sweep(setup.dispatcher.now() + 1_020.0)
        assert not replica.is_up  # now the answer is overdue
        gate.set()
        assert (await asking).status == 200

    health = replace(QUICK, first_byte_seconds=10_000.0, stall_seconds=5.0)
    run_gateway(scenario, replicas=2, metrics=FIGURES, health=health)


def test_a_replica_that_breaks_every_second_stream_is_ejected(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        sick = setup.replicas[0]
        replicas = setup.dispatcher.replicas
        turns = itertools.cycle([dies_mid_stream, streams()])

        async def every_second(call: Call) -> None:
            await next(turns)(call)

        sick.usual = every_second
        while replicas[0].is_up:
            assert (await setup.ask()).status == 200
        assert replicas[1].is_up
        assert len(sick.calls) < 20
        for _ in range(5):
            assert (await setup.ask()).body.endswith(b"data: [DONE]\n\n")

    run_gateway(scenario, replicas=2, health=replace(QUICK, eject_seconds=60.0, eject_seconds_max=60.0))


def test_a_request_that_can_go_nowhere_else_stays_where_it_is(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate, scripted, replica = asyncio.Event(), setup.replicas[0], setup.dispatcher.replicas[0]

        async def waits(call: Call) -> None:
            await gate.wait()
            await answers()(call)

        scripted.usual = waits
        asking = asyncio.ensure_future(setup.ask(GOOD))
        await setup.until(lambda: scripted.inside)
        scripted._server.close()  # type: ignore[union-attr]
        await setup.until(lambda: not replica.is_up)
        setup.dispatcher.sweep(setup.dispatcher.now())
        gate.set()
        assert (await asking).status == 200
        assert len(scripted.calls) == 1

    run_gateway(scenario, metrics=FIGURES)


def test_ejection_return_and_a_replica_never_reached_are_logged_once_each(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(setup: Setup) -> None:
        (settings,) = setup.settings.replica
        never = ReplicaSettings(url="http://127.0.0.1:1", name="never")
        setup.gateway.reload(replace(setup.settings, replica=(settings, never)))
        flapping, unreached = setup.dispatcher.replicas
        await setup.replicas[0].stop()
        await setup.until(lambda: flapping.state.health == "ejected" and flapping.state.ejections >= 3)
        await setup.until(lambda: unreached.state.ejections >= 3)
        await setup.replicas[0].start()
        await setup.until(lambda: flapping.is_up)

    with caplog.at_level(logging.INFO, "headway.gateway"):
        run_gateway(scenario, metrics=FIGURES)
    assert caplog.text.count("replica r0 is ejected: it cannot be reached: ") == 1
    assert caplog.text.count("replica r0 is up again after ") == 1
    assert caplog.text.count("replica never was not reached: it cannot be reached: ") == 1


def test_figures_are_read_where_an_engine_has_them(run_gateway: RunGateway) -> None:
    """trtllm-serve: JSON at /metrics, which takes entries from its queue and so is not asked again."""

    async def scenario(setup: Setup) -> None:
        scripted, replica, asked = setup.replicas[0], setup.dispatcher.replicas[0], list[Call]()

        async def iterations(call: Call) -> None:
            asked.append(call)
            await answers(200, [])(call)

        scripted.instead["/metrics"] = iterations
        scripted.metrics_path = "/prometheus/metrics"
        scripted.metrics = "trtllm_num_requests_waiting 7\ntrtllm_num_requests_running 3\n"
        (settings,) = setup.settings.replica
        setup.gateway.reload(replace(setup.settings, replica=(replace(settings, name="trtllm"),)))
        replica = setup.dispatcher.replicas[0]
        await setup.until(lambda: replica.state.report.waiting == 7)
        once = len(asked)
        scripted.metrics = "trtllm_num_requests_waiting 8\n"
        await setup.until(lambda: replica.state.report.waiting == 8)
        assert len(asked) == once

    run_gateway(scenario)
