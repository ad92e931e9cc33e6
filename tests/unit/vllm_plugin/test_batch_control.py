"""What the plug-in sets before a step: the long-prefill threshold, and which requests stand last in vLLM's list."""

from __future__ import annotations

from typing import Any

import pytest

from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.vllm_stub import StubEngine, StubRequest


class Coarse(StubEngine):
    """Blocks of 16 tokens, and as many of them free as the test says."""

    seats, token_budget, own_threshold = 8, 10_000, 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.free = 1_000_000
        self.cache_config.block_size = 16
        self.max_num_scheduled_tokens = self.token_budget
        self.scheduler_config.long_prefill_token_threshold = self.own_threshold

    def _free_blocks(self) -> int:
        return self.free


class Engine(PolicyScheduling, Coarse):
    """Ours over it, with time standing still."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.headway.clock = lambda: 0.0

    def run(self, *lives: tuple[str, int, int, int]) -> None:
        """Requests that run: name, tokens of prompt, of output so far, and those computed."""
        for name, prompt, _, _ in lives:
            self.add_request(StubRequest(name, prompt, 1_000))
        self.schedule()
        for request, (_, _, output, computed) in zip(self.running, lives, strict=True):
            request.num_output_tokens, request.num_computed_tokens = output, computed

    def prepared(self, free: int | None = None) -> list[str]:
        """Names in vLLM's running list when a step is about to be composed."""
        if free is not None:
            self.free = free
        self.headway.before_schedule()
        return [request.request_id for request in self.running]

    @property
    def threshold(self) -> int:
        return int(self.scheduler_config.long_prefill_token_threshold)


LEAST_SUNK: dict[str, Any] = {"ordering": "fcfs", "preemption": "least-sunk-work"}


def test_victims_stand_last_while_memory_is_short_and_the_order_comes_back() -> None:
    engine = Engine(headway=LEAST_SUNK)
    engine.run(("small", 16, 1, 16), ("large", 160, 1, 160), ("middle", 80, 1, 80))
    assert engine.prepared() == ["small", "large", "middle"]
    assert engine.prepared(free=0) == ["large", "middle", "small"], "the first to go stands last"
    assert engine.prepared(free=1_000_000) == ["small", "large", "middle"], "by admission again"
    engine.running.reverse()
    assert engine.prepared() == ["middle", "large", "small"], "an order that is not ours is left alone"


def test_victims_stand_last_where_many_prompts_each_want_a_further_block() -> None:
    engine = Engine(headway=LEAST_SUNK)
    engine.run(("small", 17, 0, 15), ("large", 161, 0, 159), ("middle", 81, 0, 79))
    assert engine.prepared(free=3) == ["small", "large", "middle"]
    assert engine.prepared(free=2) == ["large", "middle", "small"]


def test_four_victims_are_named_a_step() -> None:
    engine = Engine(headway=LEAST_SUNK)
    engine.run(*[(f"r{size}", 16 * size, 1, 16 * size) for size in (1, 6, 2, 5, 3, 4)])
    assert engine.prepared(free=0) == ["r6", "r5", "r4", "r3", "r2", "r1"]
    assert engine.prepared(free=1_000_000) == ["r1", "r6", "r2", "r5", "r3", "r4"]


def test_victims_are_left_to_vllm_where_its_own_choice_holds() -> None:
    for config in ({"ordering": "fcfs"}, LEAST_SUNK):
        engine = Engine(headway=config)
        engine.run(("small", 16, 1, 16), ("large", 160, 1, 160))
        engine.headway.policies.suspend()
        assert engine.prepared(free=0) == ["small", "large"]


@pytest.mark.parametrize(
    ("budget", "lives", "wanted"),
    [
        # Decodes: those that stand at the end of a block.
        (10_000, [("b", 16, 1, 16), ("a", 20, 1, 20)], 1),
        (10_000, [("b", 16, 1, 16), ("a", 32, 1, 32)], 2),
        # 90 tokens of prompt are left, of which a step of 32 computes two blocks; 33 may reach into a third.
        (32, [("b", 100, 0, 10), ("a", 200, 1, 200)], 2),
        (33, [("b", 100, 0, 10), ("a", 200, 1, 200)], 3),
        # Both stand at the end of a block, and 32 tokens of prompt are computed.
        (32, [("b", 160, 0, 16), ("a", 320, 1, 320)], 3),
        # 5 are left and fit into their block; the decode begins one.
        (32, [("b", 15, 0, 10), ("a", 32, 1, 32)], 1),
    ],
)
def test_memory_is_short_when_the_step_may_want_more_blocks_than_are_free(
    budget: int, lives: list[tuple[str, int, int, int]], wanted: int
) -> None:
    class Budgeted(Engine):
        token_budget = budget

    engine = Budgeted(headway=LEAST_SUNK)
    engine.run(*lives)
    assert engine.prepared(free=wanted) == ["b", "a"]
    assert engine.prepared(free=wanted - 1) == ["a", "b"]


def test_preemptions_are_counted_with_the_tokens_they_cost() -> None:
    engine = Engine(headway=LEAST_SUNK)
    engine.run(("one", 16, 1, 17), ("two", 20, 3, 5))
    for request in list(engine.running):
        engine.headway.before_preempt(request)  # type: ignore[arg-type]
    counters = engine.headway.metrics.counters
    assert (counters["preemptions", ""], counters["preempted_tokens", ""]) == (2, 22)
    assert engine.headway.control.preempted == 2
    engine.prepared()
    assert engine.headway.control.preempted == 0, "they are those of one step"


def test_the_threshold_leaves_the_head_its_tokens() -> None:
    """A step of 10,000: one decodes, one has 40,000 tokens of prompt left, and 100 tokens wait."""
    engine = Engine(headway={"tuning": "self-tuned"})
    engine.run(("long", 50_000, 0, 10_000), ("decodes", 20, 1, 21))
    engine.prepared()
    assert engine.threshold == 0, "nobody waits"
    engine.add_request(StubRequest("short", 100))
    engine.prepared()
    gauges = engine.headway.metrics.gauges
    assert engine.threshold == gauges["long_prefill_threshold", ""] == 9_999 - 100
    engine.max_num_active_reqs = 2
    engine.prepared()
    assert engine.threshold == 0, "there is no seat for it"
    engine.max_num_active_reqs = 3
    engine.prepared()
    assert engine.threshold == 9_899
    engine.prepared(free=6)
    assert engine.threshold == 0, "100 tokens want seven blocks"
    engine.prepared(free=7)
    assert engine.threshold == 9_899


def test_a_prompt_that_is_done_leaves_no_threshold() -> None:
    engine = Engine(headway={"tuning": "self-tuned"})
    engine.run(("done", 50_000, 0, 50_000))
    engine.add_request(StubRequest("short", 100))
    engine.prepared()
    assert engine.threshold == 0


def test_the_operators_threshold_holds_where_ours_does_not() -> None:
    class Limited(Engine):
        own_threshold = 2_048

    engine = Limited(headway={"tuning": "self-tuned"})
    engine.run(("long", 50_000, 0, 10_000), ("other", 30_000, 0, 9_000), ("third", 90_000, 0, 9_000))
    engine.prepared()
    assert engine.threshold == 2_048
    engine.add_request(StubRequest("short", 4_900))
    engine.prepared()
    assert engine.threshold == (10_000 - 4_900) // 3, "three share what the head leaves"
    engine.headway.policies.suspend()
    engine.prepared()
    assert engine.threshold == 2_048
    plain = Limited()
    plain.run(("long", 50_000, 0, 10_000))
    plain.scheduler_config.long_prefill_token_threshold = 77
    plain.prepared()
    assert plain.threshold == 77, "without tuning nothing is set"
    assert ("long_prefill_threshold", "") not in plain.headway.metrics.gauges
