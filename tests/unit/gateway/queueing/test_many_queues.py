"""Thousands of queues wait: what is asked of them at one turn of the event loop, and that none is forgotten."""

from __future__ import annotations

from collections import Counter

import pytest

from headway.gateway.queueing import served_queues
from headway.gateway.queueing.request_state import RequestStage
from tests.support.dispatcher_bench import Bench, Client

MODELS = [f"m{number}" for number in range(40)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the head of each model's queue was asked."""
    asked: Counter[str] = Counter()
    serve = served_queues.ServedQueues._serve

    def count(self: served_queues.ServedQueues, queue, *others):  # type: ignore[no-untyped-def]
        asked[queue.key.model] += 1
        return serve(self, queue, *others)

    monkeypatch.setattr(served_queues.ServedQueues, "_serve", count)
    return asked


def fill(bench: Bench) -> list[Client]:
    """All seats are taken, and a request waits for each model."""
    clients = [bench.arrive(model=model) for model in MODELS for _ in range(2)]
    assert sum(client.stage is RequestStage.SENT for client in clients) == len(bench.replicas)
    return clients


def to_the_end(bench: Bench) -> None:
    for _ in range(50):
        if bench.turns:
            bench.turn()
    assert not bench.turns


def test_while_no_replica_has_a_place_no_queue_is_asked(asked: Counter[str]) -> None:
    bench = Bench(models=MODELS)
    fill(bench)
    asked.clear()
    bench.dispatcher.pump()
    bench.arrive(model=MODELS[5])
    assert not asked


def test_only_queues_are_asked_whose_model_has_a_place(asked: Counter[str]) -> None:
    bench = Bench(("r0", "r1"))
    halves = MODELS[::2], MODELS[1::2]
    for replica, models in zip(bench.replicas, halves, strict=True):
        replica.state.models = {model: {} for model in models}
    clients = fill(bench)
    asked.clear()
    bench.answer(next(client for client in clients if client.sent_to == ["r1"]))
    assert sum(asked.values()) == 1
    assert set(asked) <= set(halves[1])


def test_adapters_are_asked_where_only_they_are_listed(asked: Counter[str]) -> None:
    bench = Bench(("r0", "r1"), models=("base", "adapter", "other"))
    for replica in bench.replicas:
        replica.state.adapter_parents = {"adapter": "base"}
    first = [bench.arrive(model=model) for model in ("other", "other")]
    waiting = [bench.arrive(model=model) for model in ("adapter", "other")]
    bench.replicas[0].state.models = {"adapter": {}}
    bench.answer(next(client for client in first if client.sent_to == ["r0"]))
    assert waiting[0].sent_to == ["r0"]


def test_one_head_that_its_last_replica_failed_is_given_up_though_none_has_a_place() -> None:
    bench = Bench(("r0", "r1"), models=MODELS, seats=2)
    clients = [bench.arrive(model=model) for model in MODELS for _ in range(2)]
    failed = next(client for client in clients if client.sent_to == ["r0"])
    bench.replicas[1].is_drained = True
    bench.replicas[0].ledger.requests_max = 0
    bench.dispatcher.first_byte(failed.request)
    bench.dispatcher.take_back(failed.request)
    bench.law()
    assert failed.reason == "no-replica"


def test_a_round_over_many_heads_that_do_not_fit_goes_on_at_later_turns(
    asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_queues, "_ASKED_AT_ONCE", 1)
    bench = Bench(models=MODELS, seats=2, turn_by_turn=True)
    served, (replica,) = bench.dispatcher.served_queues, bench.replicas
    replica.ledger.requests_max = 1
    fill(bench)
    to_the_end(bench)
    fits: set[str] = set()
    monkeypatch.setattr(served, "_has_room", lambda replica, queued: queued.arrived.model in fits)
    replica.ledger.requests_max = 2
    asked.clear()
    bench.dispatcher.pump()
    rounds = [len(asked)]
    assert 0 < rounds[0] < len(MODELS) // 2
    while bench.turns and len(rounds) < 50:
        bench.turn()
        rounds.append(len(asked))
    assert len(rounds) > 3
    assert max(asked.values()) == 1, "none is asked twice in a round"
    assert not bench.turns, "nothing happened meanwhile, so it ends"
    assert set(asked) == set(MODELS), "each was asked"

    bench.dispatcher.pump()  # and now something happens that a queue which was asked already could use
    first = next(model for model, times in asked.items() if times == 2)
    fits.add(first)
    bench.dispatcher.pump()
    to_the_end(bench)
    assert len(bench.heard.dispatched_at) == 2
    bench.law()
