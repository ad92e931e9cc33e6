"""Who passes a head that does not fit, inside an engine whose scan ends at the first such one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.vllm_stub import StubEngine, StubRequest


class Tight(PolicyScheduling, StubEngine):
    """Eight seats, and memory for one large request."""

    seats, blocks = 8, 60

    def step(self) -> None:
        self.update_from_output(self.schedule())

    def serve(self) -> list[str]:
        for _ in range(1_000):
            if not self.requests:
                return self.admitted
            self.step()
        raise AssertionError("the engine does not end")

    def books(self) -> tuple[int, int, int]:
        return len(self.waiting), len(self.headway.book.entries), self.headway.book.batch.size


def test_a_small_one_passes_a_head_that_does_not_fit_if_it_is_gone_in_time() -> None:
    def admitted(admission: str, small_output: int) -> list[str]:
        engine = Tight(headway={"ordering": "fcfs", "admission": admission})
        sizes = (("runs", 30, 12), ("large", 50, 5), ("small", 5, small_output))
        for name, prompt, output in sizes:
            engine.add_request(StubRequest(name, prompt, output, headway_expected_tokens=output))
            engine.step()
        order = engine.serve()[:3]
        assert engine.books() == (0, 0, 0)
        assert not engine.headway.policies.disabled
        assert engine.headway.queue.passed == (order == ["runs", "small", "large"])
        return order

    assert admitted("greedy", 2) == ["runs", "large", "small"]
    assert admitted("backfill", 2) == ["runs", "small", "large"]
    assert admitted("backfill", 40) == ["runs", "large", "small"], "it would keep the large one waiting"


def test_backfilling_goes_when_policies_are_put_aside() -> None:
    engine = Tight(headway={"ordering": "fcfs", "admission": "backfill"})
    for request in (StubRequest("runs", 30, 12), StubRequest("large", 50, 5)):
        engine.add_request(request)
    engine.step()
    engine.headway.policies._guarded.admission._backfilling._inner = None  # type: ignore[attr-defined]
    engine.add_request(StubRequest("small", 5))
    assert engine.serve()[:2] == ["runs", "large"]
    assert engine.headway.policies.disabled
    assert engine.books() == (0, 0, 0)


class FullAttentionSpec:
    """Named as vLLM's."""


class SlidingWindowSpec:
    """Named as vLLM's."""


@pytest.mark.parametrize("kinds", [[SlidingWindowSpec], [FullAttentionSpec, SlidingWindowSpec]])
def test_backfilling_is_refused_where_one_cannot_know_what_fits(kinds: list[type]) -> None:
    class Hybrid(Tight):
        kv_cache_config = SimpleNamespace(
            num_blocks=100, kv_cache_groups=[SimpleNamespace(kv_cache_spec=kind()) for kind in kinds]
        )

    assert Hybrid(headway={"admission": "peak-check"})
    with pytest.raises(ValueError, match=r"headway: admission backfill has to know .*: choose another"):
        Hybrid(headway={"admission": "backfill"})
