"""Offline requests in the gateway: behind online ones, within their bound, visible, and ended in time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from headway.gateway.queueing.offline_bound import StepWatch
from headway.gateway.settings import OfflineSettings, QueueSettings
from tests.support.gateway_setup import Answer, RunGateway, Setup, completion
from tests.support.scripted_replica import streams, waits_for

OFFLINE = "x-headway-class: offline\r\n"
HALF = OfflineSettings(use_max=0.5)


async def asked(setup: Setup, name: str, inside: int, headers: str = "") -> asyncio.Task[Answer]:
    task = asyncio.ensure_future(setup.ask(completion(prompt=name), headers=headers))
    await setup.until(lambda: setup.dispatcher.counts.inside == inside)
    return task


def test_an_offline_request_lets_later_online_ones_go_first(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        (replica,) = setup.replicas
        gate = asyncio.Event()
        replica.usual = waits_for(gate, streams())
        asking = [await asked(setup, "first", 1)]
        await setup.until(lambda: len(replica.calls) == 1)
        asking.append(await asked(setup, "offline", 2, OFFLINE))
        asking += [await asked(setup, f"online {number}", 3 + number) for number in range(3)]
        metrics = (await setup.get("/metrics")).body.decode()
        assert 'headway_class_queue_size{class="offline"} 1' in metrics
        assert 'headway_class_queue_size{class="online"} 3' in metrics
        gate.set()
        answers = [await task for task in asking]
        assert [call.json()["prompt"] for call in replica.calls] == [
            "first",
            *[f"online {n}" for n in range(3)],
            "offline",
        ]
        assert [answer.headers.get("x-headway-class") for answer in answers][:3] == [None, "offline", None]
        metrics = (await setup.get("/metrics")).body.decode()
        assert 'headway_class_requests_total{class="offline",outcome="completed"} 1' in metrics
        assert 'headway_class_queue_duration_seconds_count{class="offline"} 1' in metrics
        assert setup.dispatcher.served_queues.waiting == {}

    run_gateway(scenario, seats=1)


def test_offline_requests_leave_half_of_the_places_free(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        (replica,) = setup.replicas
        gate = asyncio.Event()
        replica.usual = waits_for(gate, streams())
        asking = [await asked(setup, f"offline {number}", number + 1, OFFLINE) for number in range(6)]
        await asyncio.sleep(0.05)
        assert len(replica.calls) == 2
        asking += [await asked(setup, f"online {number}", number + 7) for number in range(3)]
        await setup.until(lambda: len(replica.calls) == 4)
        held = setup.dispatcher.served_queues.offline.held
        assert held.keys() <= {"prompt", "requests", "online-waits", "no-room"}
        assert held["requests"] > 0
        gate.set()
        await asyncio.gather(*asking)
        assert len(replica.calls) == 9

    run_gateway(scenario, seats=4, offline=HALF)


def test_none_is_sent_beside_an_online_prompt(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        (replica,) = setup.replicas
        gate = asyncio.Event()
        replica.usual = waits_for(gate, streams())
        asking = [await asked(setup, "online", 1)]
        await setup.until(lambda: len(replica.calls) == 1)
        asking.append(await asked(setup, "offline", 2, OFFLINE))
        await asyncio.sleep(0.05)
        assert len(replica.calls) == 1
        assert setup.dispatcher.served_queues.offline.held.keys() == {"prompt"}
        gate.set()
        await asyncio.gather(*asking)
        assert len(replica.calls) == 2

    run_gateway(scenario, seats=8, offline=HALF)


def test_an_offline_request_has_a_time_limit_of_its_own(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        (replica,) = setup.replicas
        gate = asyncio.Event()
        replica.usual = waits_for(gate, streams())
        first = await asked(setup, "first", 1)
        await setup.until(lambda: len(replica.calls) == 1)
        tasks = [await asked(setup, "online", 2), await asked(setup, "offline", 3, OFFLINE)]
        now = setup.dispatcher.now()
        setup.dispatcher.sweep(now + 20)
        online = await tasks[0]
        assert (online.status, online.reason) == (429, "queue-timeout")
        assert setup.dispatcher.counts.inside == 2
        setup.dispatcher.sweep(now + 60)
        offline = await tasks[1]
        assert "offline.timeout_seconds" in offline.body.decode()
        gate.set()
        await first

    run_gateway(
        scenario,
        seats=1,
        queue=QueueSettings(timeout_seconds=10.0),
        offline=replace(HALF, timeout_seconds=50.0),
    )


def watched(*seconds: float, online: int = 4, offline: int = 0, watch: StepWatch | None = None) -> StepWatch:
    made = StepWatch() if watch is None else watch
    for one in seconds:
        made._learn(one, (online.bit_length(), offline > 0), offline, 0.1)
    return made


def test_the_limit_follows_what_a_step_takes() -> None:
    watch = watched(0.010, 0.010)
    assert watch.seconds_alone == {3: 0.010}
    watched(0.0105, 0.0105, offline=1, watch=watch)
    assert watch.offline_max == 2.0  # within a tenth: it rises
    watched(0.0105, offline=0, watch=watch)
    grown = watched(*[0.0105] * 8, offline=2, watch=watch).offline_max
    assert grown == 3.0 - 0.5 + 0.5  # only while it is used
    watched(0.02, offline=2, watch=watch)
    assert watch.offline_max == 1.5
    watched(0.02, 0.02, 0.02, offline=2, watch=watch)
    assert watch.offline_max == 0.0
    watched(0.01, offline=0, watch=watch)
    assert watch.offline_max == 1.0  # the next is a try


def test_where_no_step_was_seen_alone_the_other_bounds_hold() -> None:
    watch = watched(9.0, offline=1, online=7)
    assert watch.offline_max == 1.5
    assert watched(9.0, offline=3, online=0, watch=watched(0.001)).offline_max > 1.0  # none online to be slowed
