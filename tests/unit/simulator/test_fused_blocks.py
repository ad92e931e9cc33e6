"""KV-block fusion in the simulator: blocks are free once prompts are computed, and not a step before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.scheduler import Policies
from headway.simulator.blocks import FusedBlocks
from headway.simulator.replica import replica
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace
from headway.simulator.tracked import TrackedRequest
from headway.testing.day_laws import StepRecords

RULES = EngineRules(
    kv_blocks=24,
    block_tokens=10,
    max_num_batched_tokens=100,
    max_num_seqs=8,
    async_scheduling=False,
    prefix_caching=False,
)


def tracked(row: int, prompt_tokens: int, tenant: str = "a") -> TrackedRequest:
    return TrackedRequest(row, 0.0, prompt_tokens, tenant, None, None, None, 0, False)


def test_what_is_shared_is_kept_once_and_goes_with_the_last() -> None:
    memory = FusedBlocks(100, 10, 0.5)
    long, short, other = tracked(0, 80), tracked(1, 45), tracked(2, 80, "b")
    for request, blocks in ((long, 8), (short, 5), (other, 8)):
        memory.admit(request, request.prompt_tokens, 0)
        assert request.blocks == blocks
    memory.fuse(long)
    assert memory.free == 100 - 21, "alone it shares with none"
    memory.fuse(other)
    assert memory.free == 100 - 21, "another tenant's is not alike"
    memory.fuse(short)
    assert memory.free == 100 - 21 + 2, "half of its four full blocks are kept by the other"
    memory.release(long, 80, 8, keep=False)
    assert memory.free == 100 - 13, "the first two of its eight blocks stay for the other"
    memory.release(short, 45, 5, keep=False)
    memory.release(other, 80, 8, keep=True)
    assert memory.free == 100


def test_prompts_under_other_adapters_are_not_alike() -> None:
    memory = FusedBlocks(100, 10, 1.0)
    requests = [tracked(row, 50) for row in range(3)]
    requests[1].adapter = "french"
    for request in requests:
        memory.admit(request, 50, 0)
        memory.fuse(request)
    assert memory.free == 100 - 10
    for request in requests:
        memory.release(request, 50, 5, keep=False)
    assert memory.free == 100


def test_one_that_leaves_before_it_shares_takes_nothing_along() -> None:
    memory = FusedBlocks(100, 10, 1.0)
    first, second = tracked(0, 50), tracked(1, 50)
    memory.admit(first, 50, 0)
    memory.fuse(first)
    memory.admit(second, 20, 0)
    memory.release(second, 20, 2, keep=True)  # preempted within its prompt
    assert memory.free == 95


def day(fused_share: float) -> tuple[list[int], list[int]]:
    """Free blocks step by step, and how many run; three prompts of ten blocks of one tenant."""
    trace = Trace(
        "three",
        arrived_seconds=np.zeros(3),
        prompt_tokens=np.full(3, 100),
        output_tokens=np.full(3, 5),
    )
    log = StepRecords()
    rules = replace(RULES, fused_share=fused_share)
    policies = Policies(Fcfs(), Greedy(), LatestAdmitted(), RunningMean())
    simulate(trace, rules, LinearStepTime(10**9, 0, 0, 0), policies, observer=log)
    return [step.blocks_free for step in log.steps], [step.decodes + len(step.chunks) for step in log.steps]


def test_admission_knows_of_it_only_after_it_has_happened() -> None:
    """24 blocks hold two prompts, exact. Once they share, a third fits; it is computed in blocks of its own."""
    exact, most_running = day(0.0)
    assert exact[:4] == [14, 3, 3, 2]
    assert max(most_running) == 2
    free, running = day(0.8)
    assert free[:3] == exact[:3], "the second prompt needs all its blocks until its last token is computed"
    assert running[:4] == [1, 2, 2, 3]
    assert free[3] == 2 + 8 - 10, "eight of its blocks are the first one's now, and the third has ten of its own"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fused_share": 1.1}, r"fused_share must be in \[0, 1\], got 1.1"),
        ({"fused_share": -0.1}, r"fused_share must be in \[0, 1\], got -0.1"),
        ({"fused_share": 0.5, "prefix_caching": True}, "set both to false"),
        ({"fused_share": 0.5, "async_scheduling": True}, "set both to false"),
    ],
)
def test_rules_that_are_refused(changed: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(RULES, **changed)  # type: ignore[arg-type]


def test_a_replica_takes_it() -> None:
    assert replica(fused_share=0.4, async_scheduling=False, prefix_caching=False).rules.fused_share == 0.4
    assert replica().rules.fused_share == 0
