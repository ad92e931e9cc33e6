"""The reference engine's KV memory, rule by rule, on days worked out on paper: gates, and prefix caching.

How to read the steps: see `paper_days.py`.
"""

from __future__ import annotations

from dataclasses import replace

from headway.domain.event import Arrived
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestView
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.scheduler import Policies
from headway.simulator.outcome import NEVER
from headway.simulator.reference import simulate_reference
from tests.support.paper_days import ONE_SECOND, RULES, TIGHT_DAY, StepWords, requests, run_day, seconds


class TestMemory:
    def test_a_request_that_fills_the_memory_to_the_last_slot_runs(self) -> None:
        steps, day = run_day(requests((4, 3)), replace(RULES, kv_blocks=3))
        assert steps == ["prefill 0:4@0; free 1", "decode 1 over 4; free 0", "decode 1 over 5; free 0"]
        assert not day.refused

    def test_a_request_that_needs_one_slot_more_is_refused_at_arrival(self) -> None:
        steps, day = run_day(requests((4, 4), (2, 1)), replace(RULES, kv_blocks=3))
        assert steps == ["prefill 1:2@0; free 2"]
        assert list(day.refused) == [0]
        assert "8 tokens" in day.refused[0]
        assert seconds(day.arrived_ps) == [0, 0]
        assert seconds(day.ended_ps) == [NEVER, 1]

    def test_the_whole_prompt_must_fit_although_only_a_chunk_is_taken(self) -> None:
        trace, rules = requests((4, 8), (10, 1)), replace(RULES, kv_blocks=6, max_num_batched_tokens=6)
        steps, _ = run_day(trace, rules)
        assert steps[:2] == ["prefill 0:4@0; free 4", "decode 1 over 4; free 3"]
        steps, _ = run_day(trace, replace(rules, reserve_full_prompt=False))
        assert steps[:3] == [
            "prefill 0:4@0 1:2@0; free 3",
            "decode 1 over 4; preempt 1; free 3",  # its second chunk found no room
            "prefill 1:5@0; decode 1 over 5; free 0",
        ]

    def test_the_watermark_is_kept_free_only_while_a_request_runs(self) -> None:
        # A quarter of 20 blocks, vLLM's null block included, is 5.
        steps, _ = run_day(
            requests((4, 2), (26, 1)), replace(RULES, kv_blocks=19, watermark=0.25, max_num_batched_tokens=32)
        )
        assert steps == ["prefill 0:4@0; free 17", "decode 1 over 4; free 16", "prefill 1:26@0; free 6"]

    def test_the_first_that_does_not_fit_blocks_those_behind_it(self) -> None:
        steps, _ = run_day(requests((6, 3), (8, 1), (2, 1)), replace(RULES, kv_blocks=6))
        assert steps == [
            "prefill 0:6@0; free 3",  # four blocks for row 1 are not there; row 2 would fit
            "decode 1 over 6; free 2",
            "decode 1 over 7; free 2",
            "prefill 1:8@0 2:2@0; free 1",
        ]


class TestPrefixCaching:
    RULES = replace(RULES, prefix_caching=True)

    def test_a_later_request_of_the_same_step_hits_all_blocks_but_the_last(self) -> None:
        trace = requests((6, 1), (6, 1), prefix_ids=[[1, 2, 3], [1, 2, 3]])
        steps, day = run_day(trace, self.RULES)
        assert steps == ["prefill 0:6@0 1:2@4; free 96"]  # three blocks, and one for the copy of the third
        assert day.cached_tokens.tolist() == [0, 4]

    def test_a_view_tells_what_the_cache_held_at_arrival(self) -> None:
        step_words = StepWords()
        trace = requests((6, 1), (7, 1), prefix_ids=[[1, 2, 3], [1, 2, 3, 4]], at=[0, 5])
        policies = Policies(Fcfs(), Greedy(), LatestAdmitted(), RunningMean())
        simulate_reference(trace, self.RULES, ONE_SECOND, policies, listeners=[step_words])
        held = [event.request.cached_prompt_tokens for event in step_words.events if isinstance(event, Arrived)]
        assert held == [0, 6]

    def test_the_deepest_blocks_of_a_freed_prefix_are_lost_first(self) -> None:
        trace = requests((8, 1), (6, 1), (8, 1), prefix_ids=[[1, 2, 3, 4], [7, 8, 9], [1, 2, 3, 4]], at=[0, 1, 2])
        steps, day = run_day(trace, replace(self.RULES, kv_blocks=5))
        assert steps == [
            "prefill 0:8@0; free 1",
            "prefill 1:6@0; free 2",  # takes the blank block, then those of ids 4 and 3
            "prefill 2:4@4; free 1",
        ]
        assert day.cached_tokens.tolist() == [0, 0, 4]

    def test_reviving_a_cached_block_takes_a_free_one(self) -> None:
        trace = requests((6, 1), (2, 3), (6, 1), prefix_ids=[[1, 2, 3], [9], [1, 2, 3]], at=[0, 1, 1.5])
        steps, day = run_day(trace, replace(self.RULES, kv_blocks=4))
        assert steps == [
            "prefill 0:6@0; free 1",
            "prefill 1:2@0; free 3",
            "decode 1 over 2; free 2",  # row 2 would need one new block and two revived ones
            "decode 1 over 3; free 2",
            "prefill 2:2@4; free 1",
        ]
        assert day.cached_tokens.tolist() == [0, 0, 4]

    def test_a_victim_finds_what_is_left_of_its_own_blocks(self) -> None:
        steps, day = run_day(TIGHT_DAY, replace(self.RULES, kv_blocks=5))
        assert steps[3:5] == [
            "decode 1 over 6; free 1",  # takes the victim's second block
            "prefill 1:3@2 2:2@0; free 1",
        ]
        assert day.recomputed_tokens.tolist() == [0, 2, 0]
        assert day.cached_tokens.tolist() == [0, 0, 0]  # counted at the first admission only

    def test_outputs_are_found_again_by_their_own_request(self) -> None:
        steps, day = run_day(requests((4, 5), (4, 9)), replace(self.RULES, kv_blocks=7))
        assert steps[:6] == [
            "prefill 0:4@0 1:4@0; free 3",
            "decode 2 over 8; free 1",
            "decode 2 over 10; free 1",
            "decode 1 over 6; preempt 1; free 3",  # of four tokens of prompt and three of output, six are computed
            "decode 1 over 7; free 3",  # row 1 would need a new block and its own three
            "prefill 1:1@6; free 3",
        ]
        assert day.recomputed_tokens.tolist() == [0, 0]

    def test_a_block_that_is_lost_may_be_found_in_another_copy(self) -> None:
        class FromSecondThree(Greedy):
            def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
                return int(request.id == 3 and now < 3)

        document = [1, 2, 3, 4]
        trace = requests(
            (6, 1), (6, 5), (2, 1), (8, 1), at=[0, 0, 1, 2], prefix_ids=[document[:3], document[:3], [7], document]
        )
        steps, _ = run_day(trace, replace(self.RULES, kv_blocks=6), admission=FromSecondThree())
        assert steps[:4] == [
            "prefill 0:6@0 1:2@4; free 2",  # row 1 has a copy of block 3
            "prefill 2:2@0; decode 1 over 6; free 1",
            "decode 1 over 7; free 2",  # row 3 would find row 0's copy, which is free, and needs one block more
            "prefill 3:2@6; decode 1 over 8; free 0",  # the free copy is lost, and row 1's is found: one will do
        ]
