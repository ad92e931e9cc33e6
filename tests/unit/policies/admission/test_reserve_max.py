"""ReserveMax by hand: prompt and bound of all, in whole blocks."""

from __future__ import annotations

import pytest

from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.admission.greedy import Greedy
from headway.policies.admission.reserve_max import ReserveMax
from headway.policies.contracts import UNTIL_THE_BATCH_CHANGES
from headway.testing.scripted import ScriptedBatch


def bounded(id: int, prompt: int, bound: int | None, produced: int = 0) -> Request:
    return Request(id, 0.0, prompt, max_output_tokens=bound, produced_tokens=produced)


def test_worst_cases_fit_or_the_head_waits_for_somebody_to_leave() -> None:
    batch, policy = ScriptedBatch([bounded(0, 10, 6, produced=3)]), ReserveMax()
    assert policy.hold_steps(bounded(1, 1, 15), batch, MemoryView(2, 2, 16), 0.0) == 0
    assert policy.hold_steps(bounded(1, 1, 16), batch, MemoryView(2, 2, 16), 0.0) == UNTIL_THE_BATCH_CHANGES
    batch.join(bounded(1, 1, 15))
    assert policy.hold_steps(bounded(2, 1, 1), batch, MemoryView(2, 2, 16), 0.0) == UNTIL_THE_BATCH_CHANGES
    batch.leave(batch.running()[0])
    assert policy.hold_steps(bounded(2, 1, 1), batch, MemoryView(2, 2, 16), 0.0) == 0


def test_undeclared_bounds_count_as_the_default_and_grow_past_it() -> None:
    batch, policy = ScriptedBatch([bounded(0, 10, None)]), ReserveMax(default_tokens=5)
    memory = MemoryView(0, 30, 1)
    assert policy.hold_steps(bounded(1, 10, None), batch, memory, 0.0) == 0
    batch.decode(4)
    assert policy.hold_steps(bounded(1, 10, None), batch, memory, 0.0) == 0  # 10 + 5 and 10 + 5 of 30
    batch.decode()
    assert policy.hold_steps(bounded(1, 10, None), batch, memory, 0.0) > 0  # the first will have 6 at least


def test_greedy_takes_whoever_comes() -> None:
    batch = ScriptedBatch([bounded(0, 1_000, 1_000)])
    assert Greedy().hold_steps(bounded(1, 1_000, 1_000), batch, MemoryView(0, 1, 16), 0.0) == 0


def test_a_default_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="default_tokens must be at least 1, got 0"):
        ReserveMax(default_tokens=0)


def test_what_is_kept_is_what_a_fresh_policy_says() -> None:
    """Requests with and without a bound, past the default and before it, as tokens come."""
    lives = [bounded(0, 10, None), bounded(1, 7, None, produced=3), bounded(2, 5, 40, produced=1)]
    batch, policy = ScriptedBatch(lives), ReserveMax(default_tokens=6)
    for step in range(14):
        worst = sum(r.prompt_tokens + (r.max_output_tokens or max(6, r.produced_tokens + 1)) for r in lives)
        for total, fits in ((worst + 3, True), (worst + 2, False)):
            answer = policy.hold_steps(bounded(9, 1, 2), batch, MemoryView(0, total, 1), 0.0)
            assert (answer == 0) is fits, f"after {step} steps"
        batch.decode()
    for block in (4, 1, 4):
        fresh = ReserveMax(default_tokens=6)
        for total in range(1, 120):
            memory = MemoryView(0, total, block)
            assert policy.hold_steps(lives[0], batch, memory, 0.0) == fresh.hold_steps(lives[0], batch, memory, 0.0)
    other = ScriptedBatch([bounded(0, 500, 1)])
    assert policy.hold_steps(bounded(9, 1, 2), other, MemoryView(0, 300, 1), 0.0) > 0, "another replica's"
    assert policy.hold_steps(bounded(9, 9_999, 2), ScriptedBatch(), MemoryView(0, 1, 1), 0.0) == 0, "nothing runs"


def test_a_request_that_has_reached_its_bound_reserves_no_more_than_that() -> None:
    batch = ScriptedBatch([bounded(0, 10, 6, produced=6)])
    assert ReserveMax().hold_steps(bounded(1, 1, 3), batch, MemoryView(0, 20, 1), 0.0) == 0
    assert ReserveMax().hold_steps(bounded(1, 1, 4), batch, MemoryView(0, 20, 1), 0.0) > 0
