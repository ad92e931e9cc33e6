"""Displacement in the plug-in: an urgent request joins in the very scan, what gave way waits by its rank."""

from __future__ import annotations

from typing import Any

import pytest

from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.vllm_stub import StubEngine, StubRequest


class Engine(PolicyScheduling, StubEngine):
    """Two seats; steps of 10 ms and 0.1 ms a prompt token, which are known from the start."""

    def __init__(self, *, known: bool = True, **headway: Any) -> None:
        super().__init__(headway={"ordering": "priority", "displace": {"cooldown_seconds": 0.05}, **headway})
        self.now = 0.0
        self.headway.clock = lambda: self.now
        if known:
            assert self.headway.displacing is not None
            self.headway.meter._learned._steps = 10**9
            self.headway.displacing.displacement._step_ps = _step_ps

    def steps(self, number: int) -> list[str]:
        for _ in range(number):
            self.update_from_output(self.schedule())
            self.now += 0.01
        return [request.request_id for request in self.running]

    @property
    def displaced(self) -> float:
        return self.headway.metrics.counters.get(("displaced", ""), 0)


def _step_ps(decodes: int, context: int, prompts: int, tokens: int, before: int) -> int:
    return 10**10 + 10**8 * tokens


def with_two_running(**options: Any) -> Engine:
    engine = Engine(**options)
    for name in ("a", "b"):
        engine.add_request(StubRequest(name, 20, 50, priority=5))
    assert engine.steps(8) == ["a", "b"]
    return engine


def test_an_urgent_request_joins_in_the_scan_it_was_seen_in_and_the_other_comes_back() -> None:
    engine = with_two_running()
    engine.add_request(StubRequest("urgent", 20, 3))
    engine.add_request(StubRequest("late", 20, 3, priority=5))
    assert engine.steps(1) == ["a", "urgent"]
    assert [request.request_id for request in engine.waiting] == ["b", "late"], "by arrival"
    assert len(engine.waiting) == 2
    assert engine.steps(4) == ["a", "b"], "by its rank, which is that of its arrival"
    engine.steps(200)
    assert sorted(engine.ended) == ["a", "b", "late", "urgent"]
    assert engine.displaced == 1
    assert not engine.headway.policies.disabled
    assert (len(engine.waiting), engine.headway.book.batch.size) == (0, 0)


def test_off_it_waits() -> None:
    engine = Engine(known=False, displace="off")
    for name in ("a", "b"):
        engine.add_request(StubRequest(name, 20, 50, priority=5))
    engine.steps(8)
    engine.add_request(StubRequest("urgent", 20, 3))
    assert engine.steps(5) == ["a", "b"]


def test_nobody_is_displaced_before_step_times_are_known_or_while_policies_are_suspended() -> None:
    engine = with_two_running()
    engine.headway.meter._learned._steps = 0
    engine.add_request(StubRequest("urgent", 20, 3))
    assert engine.steps(1) == ["a", "b"]
    engine.headway.meter._learned._steps = 10**9
    engine.headway.policies.suspend()
    assert engine.steps(1) == ["a", "b"]
    engine.headway.policies.reinstate()
    assert engine.steps(1) == ["a", "urgent"]


def test_one_displaced_whose_client_leaves_is_gone() -> None:
    engine = with_two_running()
    engine.add_request(StubRequest("urgent", 20, 3))
    engine.headway.before_schedule()
    (gone,) = [request for request in engine.requests.values() if request not in engine.running and request.priority]
    engine._free_request(gone)
    engine.headway.after_schedule({})
    engine.steps(200)
    assert "urgent" in engine.ended
    assert len(engine.waiting) == 0
    assert gone.request_id not in engine.headway.book.entries


def test_a_vllm_that_cannot_preempt_between_two_steps_is_refused_and_spares_offline_requests() -> None:
    class Asynchronous(StubEngine):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.scheduler_config.async_scheduling = True

    class Old(PolicyScheduling, Asynchronous):
        pass

    with pytest.raises(ValueError, match="this vLLM cannot preempt a request between two steps: leave displace out"):
        Old(headway={"displace": {}})
    engine = Old()
    for name in ("off0", "off1"):
        engine.add_request(StubRequest(name, 20, 50, headway_class="offline"))
    for _ in range(4):
        engine.update_from_output(engine.schedule())
    before = list(engine.running)
    engine.add_request(StubRequest("on", 20, 3))
    engine.update_from_output(engine.schedule())
    assert engine.running[: len(before)] == before
