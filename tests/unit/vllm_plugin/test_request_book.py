"""What is known of a request from its arrival to its end, and what the comparison with FCFS makes of it."""

from __future__ import annotations

from typing import Any

from headway.domain.later_deadlines import LaterDeadlines
from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.vllm_stub import Status, StubEngine, StubRequest


class Engine(PolicyScheduling, StubEngine):
    """One seat; a step takes a second."""

    seats = 1

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.now = 0.0
        self.headway.clock = lambda: self.now

    def step(self) -> None:
        output = self.schedule()
        self.now += 1.0
        self.update_from_output(output)

    def serve(self) -> None:
        while self.requests:
            self.step()


def test_waits_are_compared_with_those_under_fcfs() -> None:
    """One runs at a time for two seconds: under FCFS they wait 0, 2, 4 and 6 s, and so they do the other way round."""
    for ordering in ("fcfs", "shortest-prompt-first"):
        engine = Engine(headway={"ordering": ordering})
        for prompt in (40, 10, 20, 30):
            engine.add_request(StubRequest(f"r{prompt}", prompt, output=2))
        engine.serve()
        waits = engine.headway.harm.comparison.waits(engine.now)
        assert (waits.ours, waits.fcfs, waits.requests) == (6.0, 6.0, 4)


def test_one_that_is_overtaken_again_and_again_is_seen_while_it_waits() -> None:
    engine = Engine(headway={"ordering": "shortest-prompt-first"})
    engine.add_request(StubRequest("long", 40, output=1))
    for second in range(20):
        engine.add_request(StubRequest(f"short{second}", 39 - second, output=1))
        engine.step()
    waits = engine.headway.harm.comparison.waits(engine.now)
    assert waits.ours == 20.0
    assert waits.fcfs <= 1.0


def test_those_who_left_are_compared_no_more() -> None:
    engine = Engine(headway={"ordering": "fcfs"})
    for name in "abcd":
        engine.add_request(StubRequest(name, 10, output=3))
    engine.step()
    engine.finish_requests(["b", "c"], Status.FINISHED_ABORTED)
    assert engine.headway.harm.comparison.waits(engine.now).requests == 1
    engine.serve()
    waits = engine.headway.harm.comparison.waits(engine.now)
    assert (waits.ours, waits.fcfs, waits.requests) == (3.0, 3.0, 2)
    assert engine.headway.book.entries == {}


def test_one_that_is_admitted_again_is_compared_and_reported_once() -> None:
    class Tight(Engine):
        seats, blocks = 2, 50

    for preemption, twice in (("latest-admitted", "b"), ("least-sunk-work", "a")):
        engine = Tight(headway={"ordering": "fcfs", "preemption": preemption})
        for name, prompt in (("a", 19), ("b", 21)):
            engine.add_request(StubRequest(name, prompt, output=10))
        engine.serve()
        assert engine.headway.metrics.counters["preemptions", ""] == 1
        assert engine.admitted == ["a", "b", twice]
        assert engine.headway.harm.comparison.waits(engine.now).requests == 2
        assert engine.headway.metrics.waits["short"].count == 2


def test_an_entry_by_hand() -> None:
    engine = Engine(headway={"ordering": "fcfs"}, caching=True)
    engine.cached["h"] = 30
    engine.add_request(StubRequest("first", 10))
    engine.now = 4.0
    request = StubRequest(
        "second",
        100,
        priority=3,
        headway_tenant="t",
        headway_session="s",
        headway_deadline_ms=500,
        headway_rank=9,
        headway_end_deadline_ms=2_000,
    )
    request.block_hashes = ["h"]
    request.max_tokens = 77
    request.num_output_tokens = 5  # it was preempted elsewhere
    engine.add_request(request)
    first, second = engine.headway.book.entries.values()
    assert (first.arrival, second.arrival) == (0, 1)
    assert (first.work, second.work) == (10, 75), "what it had produced is computed again"
    view = second.view
    assert (view.id, view.arrived_at, view.prompt_tokens, view.produced_tokens) == ("second", 4.0, 100, 5)
    assert (view.cached_prompt_tokens, view.max_output_tokens, view.priority) == (30, 77, 3)
    assert (view.tenant, view.session, view.deadline) == ("t", "s", 4.5)
    assert view.later_deadlines == LaterDeadlines(end=6.0)
    assert engine.headway.book.get(request) is second  # type: ignore[arg-type]
    assert (second.admission, second.resumed, second.turn_over, second.first_token_came) == (-1, False, False, False)
    assert second.wait_began.at == 4.0


def test_no_work_is_less_than_none() -> None:
    engine = Engine(headway={"ordering": "fcfs"}, caching=True)
    engine.kv_cache_manager.coordinator.find_longest_cache_hit = lambda hashes, most: (((),), 1_000)
    request = StubRequest("a", 10)
    request.block_hashes = ["h"]
    engine.add_request(request)
    assert engine.headway.book.entries["a"].work == 1, "the last token is always computed"


def test_a_hinted_length_is_what_the_policies_expect() -> None:
    for hints, expected in ((True, 300), (False, None)):
        engine = Engine(headway={"ordering": "fcfs", "hints": hints})
        engine.add_request(StubRequest("a", 10, headway_expected_tokens=300))
        estimate = engine.headway.book.entries["a"].view.estimate
        assert estimate is not None
        assert (estimate.made_by == "hint") is hints
        if expected is not None:
            assert abs(estimate.remaining_mean(0) - expected) < 15
