"""Requests that come while no replica is up: they wait for one, within bounds of their own, and keep their order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.request_state import RequestStage
from headway.gateway.replicas.replica_state import Health
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import PolicySettings, QueueSettings, ReplicaSettings
from tests.support.dispatcher_bench import HEALTH, Bench, Client

GRACE_SECONDS = HEALTH.no_replica_seconds


def add_replica(bench: Bench, name: str = "new", models: tuple[str, ...] = (), *, seats: int = 1) -> UpstreamReplica:
    chosen = ReplicaSettings(url=f"http://{name}:1", name=name, max_requests=seats, prefill_tokens=100_000)
    replica = UpstreamReplica(chosen, HEALTH, lambda: bench.now)
    bench.dispatcher.replace(bench.settings, [*bench.replicas, replica], bench.now)
    bench.replicas = bench.dispatcher.replicas
    if models:
        replica.listed({model: {} for model in models}, {})
    replica.probed(True)
    bench.dispatcher.sweep(bench.now)
    bench.dispatcher.pump()
    return replica


def refusal_of(client: Client) -> tuple[int, Reason, str]:
    assert client.refusal is not None
    return client.refusal.status, client.refusal.reason, client.refusal.message


def test_an_empty_pool_holds_requests_until_a_replica_comes_and_keeps_their_order() -> None:
    bench = Bench((), policies=PolicySettings(ordering="smallest-volume-first"))
    clients = [bench.arrive(tokens, model="m") for tokens in (900, 100, 500)]
    assert {client.stage for client in clients} == {RequestStage.QUEUED}
    bench.now += GRACE_SECONDS - 1
    bench.dispatcher.sweep(bench.now)
    add_replica(bench, models=("m",))
    order = []
    for _ in clients:
        (running,) = [client for client in clients if client.stage is RequestStage.SENT]
        order.append(running.request.queued.prompt_tokens)
        bench.answer(running)
    assert order == [100, 500, 900]
    assert bench.dispatcher.served_queues.bounds.in_outage.requests == 0


def test_each_newcomer_waits_its_own_time() -> None:
    bench = Bench()
    bench.replicas[0].state.health = Health.EJECTED
    first = bench.arrive()
    bench.dispatcher.sweep(bench.now)
    bench.now += GRACE_SECONDS - 1
    late = bench.arrive()
    bench.now += 1.5
    bench.dispatcher.sweep(bench.now)
    status, reason, message = refusal_of(first)
    assert (status, reason) == (503, Reason.NO_REPLICA)
    assert message == "no replica is healthy; none has been up for 30 s"
    assert first.refusal is not None
    assert first.refusal.retry_seconds
    assert late.stage is RequestStage.QUEUED
    bench.now += GRACE_SECONDS - 1
    bench.dispatcher.sweep(bench.now)
    assert late.reason == Reason.NO_REPLICA
    bench.law()


def test_beyond_the_bounds_a_newcomer_is_refused_at_once_and_those_before_it_stay() -> None:
    bench = Bench((), queue=QueueSettings(no_replica_max_requests=2, no_replica_max_bytes=1_000))
    inside = [bench.arrive(body_bytes=10), bench.arrive(body_bytes=900)]
    status, reason, message = refusal_of(bench.arrive(body_bytes=10))
    assert (status, reason) == (503, Reason.NO_REPLICA)
    assert message == "no replica is healthy; 2 requests wait for one already (`queue.no_replica_max_requests`)"
    add_replica(bench)
    assert [client.stage for client in inside] == [RequestStage.SENT, RequestStage.QUEUED]
    bench.replicas[0].state.health = Health.EJECTED
    _, _, message = refusal_of(bench.arrive(body_bytes=200))
    assert message.endswith("1,000 bytes of requests, at most, wait for one (`queue.no_replica_max_bytes`)")
    assert bench.arrive(body_bytes=100).stage is RequestStage.QUEUED


def test_a_request_larger_than_the_bound_of_bytes_may_wait_alone() -> None:
    bench = Bench((), queue=QueueSettings(no_replica_max_bytes=1_000))
    assert bench.arrive(body_bytes=5_000).stage is RequestStage.QUEUED
    assert bench.arrive(body_bytes=1).reason == Reason.NO_REPLICA


def test_one_that_is_not_to_wait_does_not() -> None:
    refused = Bench(()).arrive(never_waits=True)
    assert refusal_of(refused) == (503, Reason.NO_REPLICA, "no replica is healthy")


def test_a_name_that_the_first_replica_lacks_holds_up_no_other() -> None:
    """With no list of models yet, all names share a queue."""
    bench = Bench(())
    other, wanted = bench.arrive(model="other"), bench.arrive(model="m")
    add_replica(bench, models=("m",))
    bench.dispatcher.sweep(bench.now)
    assert (other.stage, wanted.stage) == (RequestStage.QUEUED, RequestStage.SENT)
    bench.now += GRACE_SECONDS + 1
    bench.dispatcher.sweep(bench.now)
    assert refusal_of(other)[:2] == (404, Reason.UNKNOWN_MODEL)
    assert bench.arrive(model="other").reason == Reason.UNKNOWN_MODEL, "a known pool does not wait for unknown names"


@pytest.mark.parametrize("requests_max", [1, 3])
@given(steps=st.lists(st.sampled_from(["arrive", "up", "down", "answer", "wait"]), max_size=25))
def test_never_more_wait_for_a_first_replica_than_the_bound(requests_max: int, steps: list[str]) -> None:
    bench = Bench(queue=QueueSettings(no_replica_max_requests=requests_max))
    bench.replicas[0].probed(True)
    clients: list[Client] = []
    for step in steps:
        if step == "arrive":
            clients.append(bench.arrive())
        elif step == "up":
            bench.replicas[0].probed(True)
            bench.dispatcher.sweep(bench.now)
        elif step == "down":
            bench.replicas[0].state.health = Health.EJECTED
        elif step == "answer":
            for client in clients:
                if client.stage is RequestStage.SENT:
                    bench.answer(client)
                    break
        else:
            bench.now += 20.0
            bench.dispatcher.sweep(bench.now)
        bench.law()
        assert bench.dispatcher.served_queues.bounds.in_outage.requests <= requests_max
    bench.replicas[0].probed(True)
    while any(client.stage is RequestStage.SENT or client.stage is RequestStage.QUEUED for client in clients):
        bench.dispatcher.sweep(bench.now)
        bench.answer(next(client for client in clients if client.stage is RequestStage.SENT))
    assert all(client.sent_to or client.reason == Reason.NO_REPLICA for client in clients)


def test_no_time_at_all_refuses_at_the_next_sweep() -> None:
    bench = Bench(())
    bench.dispatcher.replace(replace(bench.settings, health=replace(HEALTH, no_replica_seconds=0.0)), [], bench.now)
    client = bench.arrive()
    bench.dispatcher.sweep(bench.now)
    assert client.reason == Reason.NO_REPLICA
