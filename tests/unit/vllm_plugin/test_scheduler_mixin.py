"""The plug-in over the smallest engine: what vLLM's calls must find, without vLLM."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.vllm_stub import Status, StubEngine, StubRequest


class Engine(PolicyScheduling, StubEngine):
    """Ours over the stub, with a clock of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.now = 0.0
        self.headway.clock = lambda: self.now

    def step(self) -> None:
        output = self.schedule()
        self.now += 0.1
        self.update_from_output(output)

    def serve(self, steps_max: int = 10_000) -> list[str]:
        while self.requests:
            self.step()
            steps_max -= 1
            assert steps_max, "the engine does not end"
        return self.admitted

    def books(self) -> tuple[int, int, int]:
        return len(self.waiting), len(self.headway.book.entries), self.headway.book.batch.size


class Tight(Engine):
    seats, blocks = 8, 60


def requests(*prompts: int, **fields: Any) -> list[StubRequest]:
    return [StubRequest(f"r{prompt}", prompt, **fields) for prompt in prompts]


def fill(engine: StubEngine, some: list[StubRequest]) -> None:
    for request in some:
        engine.add_request(request)


def test_the_order_is_the_policys() -> None:
    engine = Engine(headway={"ordering": "shortest-prompt-first"})
    fill(engine, requests(800, 30, 700, 40, 600, 20, 500, 10))
    assert engine.serve() == ["r10", "r20", "r30", "r40", "r500", "r600", "r700", "r800"]
    assert engine.books() == (0, 0, 0)


def test_without_configuration_the_order_is_safe_and_adaptive() -> None:
    engine = Engine()
    fill(engine, requests(500))
    engine.now = 100.0
    fill(engine, requests(10, 20))
    assert engine.headway.config.ordering == "highest-response-ratio"
    assert engine.serve()[0] == "r500", "500 tokens that waited a hundred seconds go before 10 new ones"


def test_every_waiting_request_is_counted() -> None:
    engine = Engine()
    fill(engine, requests(1, 2, 3, 4, 5))
    assert len(engine.waiting) == 5
    engine.schedule()
    assert len(engine.waiting) == 3
    assert [request.request_id for request in engine.waiting] == ["r3", "r4", "r5"]
    assert [request.request_id for request in reversed(engine.waiting)] == ["r5", "r4", "r3"]


def test_an_empty_queue_is_false_and_says_so() -> None:
    engine = Engine()
    assert not engine.waiting
    with pytest.raises(IndexError):
        engine.waiting.peek_request()
    with pytest.raises(IndexError):
        engine.waiting.pop_request()


def test_strangers_are_ignored() -> None:
    engine = Engine()
    fill(engine, requests(1, 2))
    engine.waiting.remove_requests([StubRequest("stranger", 1)])
    engine.waiting.remove_request(StubRequest("another", 1))
    assert len(engine.waiting) == 2


def test_aborts_at_every_stage() -> None:
    engine = Engine()
    some = requests(1, 2, 3, 4, 5, 6)
    some[4].status = Status.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    fill(engine, some)
    engine.step()
    engine.finish_requests(["r1", "r3", "r5", "unknown"], Status.FINISHED_ABORTED)  # running, waiting, parked
    engine.finish_requests(["r1"], Status.FINISHED_ABORTED)
    engine.serve()
    assert sorted(engine.ended) == ["r1", "r2", "r3", "r4", "r5", "r6"]
    assert engine.books() == (0, 0, 0)


def test_a_request_that_ends_in_its_first_step_had_a_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    told: list[tuple[str, object]] = []
    for name in ("first_token", "complete"):
        tell = getattr(engine.headway.policies, name)

        def heard(view: Any, now: float, name: str = name, tell: Any = tell) -> None:
            told.append((name, view.id))
            tell(view, now)

        monkeypatch.setattr(engine.headway.policies, name, heard)
    fill(engine, [StubRequest("one", 10, output=1), StubRequest("two", 20, output=2)])
    engine.serve()
    assert [name for name, id_ in told if id_ == "one"] == ["first_token", "complete"]
    assert [name for name, id_ in told if id_ == "two"] == ["first_token", "complete"]


def test_a_blocked_request_holds_no_other_up_and_is_not_offered_until_it_may_be_ready() -> None:
    engine = Engine(headway={"ordering": "shortest-prompt-first"})
    blocked = StubRequest("blocked", 1)
    blocked.status = Status.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    blocked.structured_output_request = SimpleNamespace(grammar=None)
    fill(engine, [blocked, *requests(10, 20, 30)])
    engine.schedule()
    assert engine.admitted == ["r10", "r20"]
    assert (engine.headway.queue.parked, len(engine.waiting)) == (1, 2)
    blocked.structured_output_request.grammar = object()
    assert engine.serve()[2] == "blocked", "it keeps its place in the order"


def test_thousands_of_blocked_requests_are_asked_a_bounded_number_a_scan() -> None:
    engine = Engine()
    asked: list[str] = []

    class Grammar:
        def __init__(self, name: str) -> None:
            self.name = name

        @property
        def grammar(self) -> object:
            asked.append(self.name)
            return object() if len(asked) > 3_000 else None

    for index in range(1_000):
        request = StubRequest(f"b{index}", 1, output=1)
        request.status, request.structured_output_request = (
            Status.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR,
            Grammar(request.request_id),
        )
        engine.add_request(request)
    for _ in range(8):
        engine.schedule()
    assert len(asked) <= 8 * 256
    assert len(set(asked)) == 1_000, "every blocked request is checked in turn"
    engine.serve()
    assert len(engine.ended) == 1_000


def test_whom_the_engine_steps_over_is_offered_again() -> None:
    engine = Engine(headway={"ordering": "shortest-prompt-first"})
    some = requests(1, 2, 3)
    some[0].step_over = True  # a LoRA limit, a connector that is not sure yet
    fill(engine, some)
    engine.step()
    assert engine.admitted == ["r2", "r3"]
    assert len(engine.waiting) == 1
    some[0].step_over = False
    engine.serve()
    assert engine.admitted[2] == "r1"
    assert engine.books() == (0, 0, 0)


def test_a_preempted_request_comes_back_in_front() -> None:
    engine = Tight(headway={"ordering": "shortest-prompt-first"})
    fill(engine, requests(20, 25, output=20))
    engine.step()
    fill(engine, requests(1, 2, output=2))
    engine.serve()
    metrics = engine.headway.metrics.counters
    assert metrics["preemptions", ""] >= 1
    assert metrics["preempted_tokens", ""] >= 20
    back = engine.admitted.index("r25", engine.admitted.index("r25") + 1)
    assert engine.admitted[back - 1] != "r25"
    assert sorted(engine.ended) == ["r1", "r2", "r20", "r25"]


def test_the_victim_is_the_policys() -> None:
    """Memory runs out while a small and, admitted later, a large request run."""
    admitted_again = {}
    for policy in ("latest-admitted", "least-sunk-work"):
        engine = Tight(headway={"ordering": "fcfs", "preemption": policy})
        fill(engine, [StubRequest("small", 5, output=30), StubRequest("large", 40, output=15)])
        engine.serve()
        admitted_again[policy] = engine.admitted[2:]
        assert engine.books() == (0, 0, 0)
    assert admitted_again["latest-admitted"][0] == "large"
    assert admitted_again["least-sunk-work"][0] == "small"


def test_admission_holds_only_while_something_runs() -> None:
    engine = Tight(headway={"ordering": "fcfs", "admission": "reserve-max"})
    fill(engine, requests(10, 11, 12))  # each may ask for 1,000 tokens of 60: two never fit together
    engine.schedule()
    assert engine.admitted == ["r10"]
    assert (bool(engine.waiting), len(engine.waiting)) == (False, 2)
    engine.serve()
    assert engine.admitted == ["r10", "r11", "r12"]
    assert engine.headway.metrics.counters["admissions_held", ""] > 0


def test_cached_prompts_are_known_before_they_are_ordered() -> None:
    engine = Engine(headway={"ordering": "shortest-uncached-prefill-first"}, caching=True)
    engine.seats = 1
    cold, warm = StubRequest("cold", 400), StubRequest("warm", 5_000)
    cold.block_hashes, warm.block_hashes = ["c"], ["w"]
    engine.cached = {"c": 0, "w": 4_900}
    fill(engine, [cold, warm])
    assert engine.serve() == ["warm", "cold"]


def test_a_head_whose_prefix_was_evicted_is_ordered_again() -> None:
    engine = Engine(headway={"ordering": "shortest-uncached-prefill-first"}, caching=True)
    engine.max_num_active_reqs = 0
    cold, warm = StubRequest("cold", 400), StubRequest("warm", 5_000)
    cold.block_hashes, warm.block_hashes = ["c"], ["w"]
    engine.cached = {"c": 0, "w": 4_900}
    fill(engine, [cold, warm])
    engine.cached["w"] = 0
    engine.now, engine.max_num_active_reqs = 5.0, 2
    assert engine.serve() == ["cold", "warm"]


def test_prefix_hits_can_be_switched_off() -> None:
    engine = Engine(headway={"ordering": "shortest-uncached-prefill-first", "prefix_hits": False}, caching=True)
    cold, warm = StubRequest("cold", 400), StubRequest("warm", 5_000)
    cold.block_hashes, warm.block_hashes = ["c"], ["w"]
    engine.cached = {"c": 0, "w": 4_900}
    fill(engine, [warm, cold])
    assert engine.serve() == ["cold", "warm"]


def test_hints_reach_the_policy_and_nonsense_is_counted() -> None:
    engine = Engine(headway={"ordering": "earliest-deadline-first"})
    fill(
        engine,
        [
            StubRequest("late", 5, headway_deadline_ms=9_000),
            StubRequest("never", 5, headway_deadline_ms="soon"),
            StubRequest("early", 5, headway_deadline_ms=10, headway_tenant=7),
        ],
    )
    assert engine.serve() == ["early", "late", "never"]
    counters = engine.headway.metrics.counters
    assert counters["hints_ignored", 'hint="headway_deadline_ms"'] == 1
    assert counters["hints_ignored", 'hint="headway_tenant"'] == 1


def test_a_gateways_rank_stands_in_for_the_priority() -> None:
    engine = Engine(headway={"ordering": "priority"})
    fill(engine, [StubRequest("second", 5, headway_rank=2), StubRequest("first", 5, headway_rank=1)])
    fill(engine, [StubRequest("own", 5, priority=-1, headway_rank=9)])
    assert engine.serve() == ["own", "first", "second"]


def test_hints_can_be_switched_off() -> None:
    engine = Engine(headway={"ordering": "priority", "hints": False})
    fill(engine, [StubRequest("second", 5, headway_rank=2), StubRequest("first", 5, headway_rank=1)])
    assert engine.serve() == ["second", "first"]


def test_why_a_request_waited_is_written_down(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    engine = Engine(headway={"ordering": "shortest-prompt-first", "decision_log": str(log)})
    engine.max_num_active_reqs = 1
    fill(engine, requests(50, 60))
    engine.step()
    fill(engine, requests(10))
    engine.serve()
    engine.shutdown()
    lines = {line["request"]: line for line in map(json.loads, log.read_text().splitlines())}
    assert lines["r60"]["overtaken_by"] == 1
    assert lines["r60"]["order"] == "shortest-prompt-first"
    assert lines["r60"]["by_reason_seconds"] == {"seats": pytest.approx(lines["r60"]["waited_seconds"])}


def test_metrics_are_written_and_taken_away(tmp_path: Path) -> None:
    engine = Engine(headway={"metrics_dir": str(tmp_path / "m")})
    fill(engine, requests(5, 6))
    engine.serve()
    engine.step()
    file = tmp_path / "m" / "engine-0.prom"
    for _ in range(200):
        if file.exists():
            break
        engine._publisher._thread.join(0.01)
    text = file.read_text()
    assert 'headway_wait_seconds_count{engine="0",ordering="highest-response-ratio",length="short"} 2' in text
    engine.shutdown()
    assert not file.exists(), "a dead engine's numbers must not be scraped"


def test_self_tuning_leaves_room_for_the_short_and_restores_the_threshold() -> None:
    engine = Engine(headway={"tuning": "self-tuned"})
    engine.max_num_active_reqs = 4
    long = StubRequest("long", 50_000, output=3)
    fill(engine, [long])
    engine.schedule()
    long.num_computed_tokens = 10_000  # a chunk of it
    fill(engine, requests(100, 200))
    engine.headway.before_schedule()
    assert engine.scheduler_config.long_prefill_token_threshold == 10_000 - 100
    engine.headway.policies.suspend()
    engine.headway.before_schedule()
    assert engine.scheduler_config.long_prefill_token_threshold == 0


def test_what_does_not_go_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"--scheduling-policy priority orders and preempts by itself: leave it at"):
        Engine(policy="priority")


@pytest.mark.parametrize("seed", range(12))
def test_chaos_loses_no_request(seed: int) -> None:
    chance = random.Random(seed)
    config = {
        "ordering": chance.choice(["fcfs", "highest-response-ratio", "fair-share", "smallest-volume-first"]),
        "admission": chance.choice(["greedy", "peak-check", "reserve-max"]),
        "preemption": chance.choice(["latest-admitted", "least-sunk-work", "lowest-priority"]),
        "tuning": chance.choice(["off", "self-tuned"]),
    }
    engine, names = Tight(headway=config), []
    for index in range(200):
        request = StubRequest(f"r{index}", chance.randint(1, 20), chance.randint(1, 20), chance.randint(-1, 1))
        if chance.random() < 0.2:
            request.status = Status.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            request.structured_output_request = SimpleNamespace(grammar=None)
        request.step_over = chance.random() < 0.2
        names.append(request.request_id)
        engine.add_request(request)
        if chance.random() < 0.3 and engine.requests:
            engine.finish_requests([chance.choice(sorted(engine.requests))], Status.FINISHED_ABORTED)
        for waiting in engine.requests.values():
            waiting.step_over = waiting.step_over and chance.random() < 0.5
            if waiting.structured_output_request is not None and chance.random() < 0.3:
                waiting.structured_output_request.grammar = object()
        if chance.random() < 0.7:
            engine.step()
    for waiting in engine.requests.values():
        waiting.step_over = False
        if waiting.structured_output_request is not None:
            waiting.structured_output_request.grammar = object()
    engine.serve()
    assert sorted(engine.ended) == sorted(names)
    assert engine.books() == (0, 0, 0)
    assert not engine.headway.policies.disabled
