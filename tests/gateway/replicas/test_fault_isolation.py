"""What must not end the gateway's own watch: a full disk, a replica that talks nonsense, a fault in one round."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from headway.gateway.wire.limits import WireLimits
from tests.support.gateway_setup import RawClient, RunGateway, Setup, post
from tests.support.scripted_replica import answers, dies_at_once, waits_for

ASKED = {"model": "m", "prompt": "x"}
FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="this machine has no /dev/full")
def test_a_full_disk_ends_the_recording_and_nothing_else(
    run_gateway: RunGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers()
        recorder = setup.gateway._recorder
        assert recorder is not None
        recorder._file.close()  # type: ignore[union-attr]
        recorder._file = FULL.open("w", encoding="utf-8")
        for _ in range(200):  # more than is buffered
            assert (await setup.ask(ASKED)).status == 200
        await setup.until(lambda: "cannot be written" in caplog.text)
        assert (await setup.ask(ASKED)).status == 200
        async with RawClient(setup.port) as slow:  # deadlines are still kept
            await slow.send(b"GET /health HTTP/1.1\r\n")
            assert (await slow.answer()).status == 408

    with caplog.at_level(logging.ERROR, "headway.gateway"):
        run_gateway(scenario, record=str(tmp_path / "night.jsonl"), wire=WireLimits(head_seconds=0.3))
    assert caplog.text.count("cannot be written: No space left on device") == 1


def test_a_fault_in_one_round_is_told_and_the_next_round_comes(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(setup: Setup) -> None:
        rounds = 0

        def fails(now: float) -> None:
            nonlocal rounds
            rounds += 1
            raise RuntimeError("a fault of ours")

        setup.dispatcher.sweep_in_steps = fails
        await setup.until(lambda: rounds == 2)

    run_gateway(scenario)
    assert "a fault of ours" in caplog.text


def test_a_replica_that_cannot_do_what_is_asked_is_not_ill(run_gateway: RunGateway) -> None:
    """vLLM answers 501 to what a model cannot do, embeddings of a chat model for one."""

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(501, {"error": {"message": "no embeddings here"}})
        for _ in range(5):
            answer = await setup.ask({"model": "m", "input": "x"}, "/v1/embeddings")
            assert (answer.status, answer.json()["error"]["message"]) == (501, "no embeddings here")
        assert setup.dispatcher.replicas[0].is_up
        assert setup.dispatcher.replicas[0].state.failures == 0

    run_gateway(scenario)


def test_failures_with_whole_answers_between_are_not_in_a_row(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {"data": []})
        for _ in range(4):
            setup.replicas[0].next.append(answers(500, {}))
            for status in (500, 200):
                assert (await setup.ask({"model": "m", "input": "x"}, "/v1/embeddings")).status == status
        assert setup.dispatcher.replicas[0].is_up

    run_gateway(scenario)


def test_a_replica_whose_figures_have_no_bound_is_watched_on(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        scrapes = setup.replicas[0].scrapes
        await setup.until(lambda: setup.replicas[0].scrapes >= scrapes + 3)
        setup.replicas[0].metrics = "vllm:num_requests_waiting 3\n"
        await setup.until(lambda: setup.dispatcher.replicas[0].state.report.waiting == 3)

    run_gateway(scenario, metrics="vllm:num_requests_waiting +Inf\nvllm:num_requests_running 0\n")


def test_a_request_that_no_kept_connection_survives_is_not_sent_on_each_of_them(run_gateway: RunGateway) -> None:
    """That a replica had closed a kept connection says nothing of the request, but only once."""

    async def scenario(setup: Setup) -> None:
        gate, replica = asyncio.Event(), setup.replicas[0]
        replica.usual = waits_for(gate, answers())
        asking = [asyncio.ensure_future(setup.ask(ASKED)) for _ in range(6)]
        await setup.until(lambda: replica.inside == 6)
        gate.set()
        await asyncio.gather(*asking)
        replica.usual = dies_at_once
        assert (await setup.ask(ASKED)).status == 502
        assert len(replica.calls) <= 6 + 2  # once more at most, and only if it closed at once

    run_gateway(scenario)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_replica_is_not_blamed_for_our_own_lack_of_descriptors(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    """Neither when it connects, nor when it looks up a name: the request waits until there are some."""

    async def scenario(setup: Setup) -> None:
        (settings,) = setup.settings.replica
        setup.replicas[0].usual = answers()
        named = replace(settings, url=settings.url.replace("127.0.0.1", host), name="named")
        setup.gateway.reload(replace(setup.settings, replica=(named,)))
        replica = setup.dispatcher.replicas[0]
        await setup.until(lambda: replica.is_up)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken: list[int] = []
        async with RawClient(setup.port) as client:
            await setup.until(lambda: setup.clients)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 256), before[1]))
                with suppress(OSError):
                    while True:
                        taken.append(os.open(os.devnull, os.O_RDONLY))
                await client.send(post(ASKED))
                await setup.until(lambda: setup.dispatcher.shortages.delayed >= 2)
            finally:
                for one in taken:
                    os.close(one)
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert (await client.answer()).status == 200
        assert replica.is_up
        assert (replica.state.failures, replica.state.last_failure) == (0, "")
        assert "headway_connections_delayed_total 0.0" not in (await setup.get("/metrics")).body.decode()

    with caplog.at_level(logging.ERROR, "headway.gateway"):
        run_gateway(scenario, metrics="vllm:num_requests_waiting 0\n")
    assert caplog.text.count("raise this process's limit of file descriptors") == 1
