"""LoRA adapters wait in the queue of their base model, and only for replicas that list them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.request_state import QueueKey, RequestStage
from headway.gateway.settings import ModelSettings, PolicySettings
from tests.support.dispatcher_bench import Bench, Client

SHORTEST = PolicySettings(ordering="shortest-prompt-first")


def adapters_bench(listed: Mapping[str, Sequence[str]], policies: PolicySettings = SHORTEST) -> Bench:
    """Replicas with the base model `m` and these adapters of it, a request each."""
    bench = Bench(tuple(listed), policies=policies)
    for replica in bench.replicas:
        lists(bench, replica.name, listed[replica.name])
    return bench


def lists(bench: Bench, name: str, adapters: Sequence[str]) -> None:
    replica = next(replica for replica in bench.replicas if replica.name == name)
    replica.listed({"m": None, **dict.fromkeys(adapters)}, dict.fromkeys(adapters, "m"))


def sweep(bench: Bench) -> None:
    bench.dispatcher.sweep(bench.now)
    bench.law()


def numbers(clients: Sequence[Client]) -> list[int]:
    return [client.request.arrived.number for client in clients]


def sent(bench: Bench) -> list[int]:
    return [number for number, _ in bench.heard.dispatched_at]


def test_adapters_and_their_base_model_share_one_order() -> None:
    bench = adapters_bench({"r0": ["sql", "chat"]})
    running = bench.arrive(model="m")
    clients = [bench.arrive(60 - 10 * place, model=model) for place, model in enumerate(["sql", "m", "chat"] * 2)]
    assert list(bench.dispatcher.queues) == [QueueKey("m", "generation")]
    assert [client.request.queued.adapter for client in clients] == ["sql", None, "chat"] * 2
    for client in [running, *reversed(clients)]:
        bench.answer(client)
    assert sent(bench) == numbers([running, *reversed(clients)]), "shortest first, whatever the adapter"


def test_a_replica_that_does_not_list_the_adapter_never_gets_it_and_holds_up_no_other() -> None:
    bench = adapters_bench({"r0": ["sql"], "r1": []})
    first = bench.arrive(model="sql")
    assert first.sent_to == ["r0"]
    waits = bench.arrive(10, model="sql")
    assert waits.stage is RequestStage.QUEUED
    base = bench.arrive(500, model="m")
    assert base.sent_to == ["r1"], "though a shorter prompt waits for r0"
    assert {key.replicas for key in bench.dispatcher.queues} == {("r0",), ()}
    bench.answer(base)
    assert waits.stage is RequestStage.QUEUED
    bench.answer(first)
    assert waits.sent_to == ["r0"]


def test_requests_follow_the_lists_of_adapters() -> None:
    bench = adapters_bench({"r0": ["sql"], "r1": []})
    running = [bench.arrive(model="sql"), bench.arrive(model="m")]
    waiting = [bench.arrive(tokens, model=model) for tokens, model in ((90, "m"), (30, "sql"), (60, "m"), (10, "sql"))]
    assert len(bench.dispatcher.queues) == 2
    sweep(bench)
    lists(bench, "r1", ["sql"])  # it was loaded there too
    sweep(bench)
    assert {client.request.queued.queue_key for client in waiting} == {QueueKey("m", "generation")}
    bench.answer(running[1])
    assert waiting[3].sent_to == ["r1"], "the shortest goes next, to the replica that has its adapter by now"
    lists(bench, "r0", [])
    lists(bench, "r1", [])
    sweep(bench)
    bench.answer(waiting[3])
    assert waiting[2].sent_to == ["r1"], "what no replica lists any more holds up no other"
    assert waiting[1].stage is RequestStage.QUEUED


def test_what_left_while_its_queue_is_looked_at_is_not_moved() -> None:
    bench = adapters_bench({"r0": ["sql"], "r1": []})
    running = bench.arrive(model="sql")
    first, second = bench.arrive(model="sql"), bench.arrive(model="sql")
    sweep(bench)
    lists(bench, "r1", ["sql"])
    steps = bench.dispatcher.served_queues.changes.steps(bench.now)
    next(steps)
    bench.answer(running)
    assert first.sent_to or second.sent_to
    for _ in steps:
        pass
    bench.law()
    assert bench.dispatcher.errors.by_place == {}


def test_an_adapter_with_an_order_of_its_own_has_a_queue_of_its_own() -> None:
    bench = adapters_bench({"r0": ["sql", "chat"]})
    own = {"sql": ModelSettings(ordering="fcfs"), "chat": ModelSettings(max_requests=2)}
    bench.dispatcher.replace(replace(bench.settings, models=own), bench.replicas, bench.now)
    bench.arrive(model="m")
    for model in ("sql", "chat", "m"):
        bench.arrive(model=model)
    orders = {key.model: queue._ordering for key, queue in bench.dispatcher.queues.items()}
    assert orders == {"sql": "fcfs", "m": "shortest-prompt-first"}
    bench.dispatcher.replace(bench.settings, bench.replicas, bench.now)
    sweep(bench)
    waiting = [queue.key for queue in bench.dispatcher.queues.values() if len(queue)]
    assert waiting == [QueueKey("m", "generation")], "it shares the queue again once it has no order of its own"


@pytest.mark.parametrize(
    ("own", "limit"),
    [
        (ModelSettings(max_requests=1), "1 requests (`models.max_requests`)"),
        (ModelSettings(max_tokens=80), "80 prompt tokens (`models.max_tokens`)"),
        (ModelSettings(max_bytes=50), "50 bytes (`models.max_bytes`)"),
    ],
)
def test_bounds_count_the_requests_of_their_adapter_alone(own: ModelSettings, limit: str) -> None:
    bench = adapters_bench({"r0": ["sql", "chat"]})
    bench.dispatcher.replace(replace(bench.settings, models={"sql": own}), bench.replicas, bench.now)
    running = bench.arrive(model="chat")
    assert bench.arrive(model="sql").stage is RequestStage.QUEUED
    refused = bench.arrive(model="sql")
    assert refused.reason == Reason.QUEUE_FULL
    assert refused.refusal is not None
    assert limit in refused.refusal.message
    for model in ("m", "chat"):
        assert bench.arrive(model=model).stage is RequestStage.QUEUED
    bench.answer(running)  # the one that waits for `sql` is sent
    assert bench.arrive(model="sql").stage is RequestStage.QUEUED


def test_an_adapter_that_no_replica_has_is_refused_with_its_reason() -> None:
    bench = adapters_bench({"r0": ["sql"]})
    refused = bench.arrive(model="sqll").refusal
    assert refused is not None
    assert (refused.status, refused.reason) == (404, Reason.UNKNOWN_MODEL)
    assert refused.message == "no replica serves the model 'sqll'; GET /v1/models lists the models"


def test_an_adapter_whose_base_model_is_not_listed_has_a_queue_of_its_own() -> None:
    bench = Bench()
    bench.replicas[0].listed({"sql": None}, {"sql": "hidden"})
    client = bench.arrive(model="sql")
    assert client.request.queued.queue_key == QueueKey("sql", "generation")
    assert client.request.queued.adapter == "sql"
