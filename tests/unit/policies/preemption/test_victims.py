"""Who gives way, by hand."""

from __future__ import annotations

from dataclasses import replace

from headway.domain.request import Request
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.policies.preemption.least_sunk_work import LeastSunkWork
from headway.policies.preemption.lowest_priority import LowestPriority
from headway.scheduling.scheduler import Policies
from headway.simulator.skipping import simulate
from tests.support.paper_days import ONE_SECOND, RULES, requests, seconds


def test_latest_admitted_is_the_last_of_the_list_whatever_its_arrival() -> None:
    assert LatestAdmitted().victim([Request(0, 5.0, 1), Request(1, 0.0, 9)], 9.0).id == 1


def test_least_sunk_work_counts_prompt_and_output_and_takes_the_newest_of_equals() -> None:
    running = [
        Request(0, 0.0, 10, produced_tokens=5),
        Request(1, 1.0, 2, produced_tokens=8),
        Request(2, 2.0, 10),
        Request(3, 3.0, 9, produced_tokens=2),
    ]
    assert LeastSunkWork().victim(running, 9.0).id == 2
    assert LeastSunkWork().victim(running[:2], 9.0).id == 1


def test_lowest_priority_is_vllms_maximum_of_priority_and_arrival() -> None:
    running = [Request(0, 0.0, 1, priority=2), Request(1, 3.0, 1), Request(2, 1.0, 1, priority=2), Request(3, 9.0, 1)]
    assert LowestPriority().victim(running, 9.0).id == 2
    assert LowestPriority().victim([running[1], running[3]], 9.0).id == 3
    twins = [Request(0, 1.0, 1), Request(1, 1.0, 1)]
    assert LowestPriority().victim(twins, 9.0).id == 1


def test_equals_do_not_preempt_each_other_by_turns_for_ever() -> None:
    """Two that arrived together, each of which fills the memory: one has to be left alone until it ends."""
    rules = replace(RULES, kv_blocks=6, max_num_batched_tokens=4, reserve_full_prompt=False)
    trace = requests((10, 3), (10, 3), at=[0, 0])
    policies = Policies(Fcfs(), Greedy(), LowestPriority(), RunningMean())
    day = simulate(trace, replace(rules, long_prefill_token_threshold=2), ONE_SECOND, policies)
    assert seconds(day.ended_ps) == [7, 12]
