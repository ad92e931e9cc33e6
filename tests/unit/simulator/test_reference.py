"""The reference engine's rules, one by one, on days worked out on paper: budget, preemption, time, policies.

How to read the steps: see `paper_days.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestView
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.priority import Priority
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.lowest_priority import LowestPriority
from headway.scheduling.scheduler import Policies
from headway.simulator.outcome import NEVER, TokenGaps
from headway.simulator.reference import simulate_reference
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND
from tests.support.paper_days import ASYNC, ONE_SECOND, RULES, TIGHT_DAY, StepWords, requests, run_day, seconds


class TestBudget:
    def test_a_prompt_longer_than_the_budget_is_computed_in_chunks_and_its_token_comes_with_the_last(self) -> None:
        steps, day = run_day(requests((10, 3)), replace(RULES, kv_blocks=10, max_num_batched_tokens=4))
        assert steps == [
            "prefill 0:4@0; free 8",
            "prefill 0:4@4; free 6",
            "prefill 0:2@8; free 5",
            "decode 1 over 10; free 4",  # token 11 opens the sixth block
            "decode 1 over 11; free 4",  # the third output token needs no KV of its own
        ]
        assert seconds(day.first_token_ps) == [3]
        assert seconds(day.ended_ps) == [5]
        assert day.makespan_ps == 5 * PS_PER_SECOND
        assert day.steps == 5
        assert day.kv_blocks_peak == 6

    def test_running_requests_are_served_before_any_is_admitted(self) -> None:
        steps, _ = run_day(requests((4, 3), (8, 1), (2, 1)), replace(RULES, max_num_batched_tokens=6))
        assert steps == [
            "prefill 0:4@0 1:2@0; free 97",
            "prefill 1:5@2; decode 1 over 4; free 93",  # the half-done prompt takes all that is left
            "prefill 1:1@7 2:2@0; decode 1 over 5; free 92",
        ]

    def test_the_threshold_caps_every_prompt_unless_it_is_alone(self) -> None:
        steps, _ = run_day(requests((9, 1), (3, 1)), replace(RULES, long_prefill_token_threshold=2))
        assert steps == [
            "prefill 0:2@0 1:2@0; free 98",
            "prefill 0:2@2 1:1@2; free 96",
            "prefill 0:5@4; free 95",
        ]

    def test_without_chunks_admission_stops_at_the_first_prompt_larger_than_the_rest_of_the_budget(self) -> None:
        rules = replace(RULES, chunked_prefill=False, max_model_tokens=8, max_num_batched_tokens=8)
        steps, _ = run_day(requests((5, 1), (4, 1), (1, 1)), rules)
        assert steps == ["prefill 0:5@0; free 97", "prefill 1:4@0 2:1@0; free 97"]

    def test_seats_limit_who_runs(self) -> None:
        steps, _ = run_day(requests((2, 1), (2, 1), (2, 1)), replace(RULES, max_num_seqs=2))
        assert steps == ["prefill 0:2@0 1:2@0; free 98", "prefill 2:2@0; free 99"]


class TestPreemption:
    def test_the_newest_gives_way_waits_in_front_and_is_recomputed(self) -> None:
        steps, day = run_day(TIGHT_DAY, replace(RULES, kv_blocks=5))
        assert steps == [
            "prefill 0:4@0 1:4@0; free 1",
            "decode 1 over 4; preempt 1; free 2",  # row 2 would fit, but a step that preempts admits none
            "decode 1 over 5; free 2",  # row 1 needs three blocks and stands in front of row 2
            "decode 1 over 6; free 1",
            "prefill 1:5@0 2:2@0; free 1",  # prompt and the one token it had produced
            "decode 1 over 5; free 2",
            "decode 1 over 6; free 1",
        ]
        assert seconds(day.first_token_ps) == [1, 1, 5]
        assert seconds(day.ended_ps) == [4, 7, 5]
        assert seconds(day.admitted_ps) == [0, 0, 4]
        assert day.preemptions.tolist() == [0, 1, 0]
        assert day.recomputed_tokens.tolist() == [0, 4, 0]
        gaps: Counter[int] = Counter()
        for gap in (TokenGaps(*line) for line in day.gaps.tolist()):
            gaps[gap.first_ps // PS_PER_SECOND] += gap.tokens
        assert gaps == {1: 5, 4: 1}  # row 1 waited four seconds for its second token

    def test_a_victim_that_was_served_in_this_step_gives_its_tokens_back(self) -> None:
        trace = requests((2, 9), (2, 9), (12, 1), priority=[9, 1, 5])
        rules = replace(RULES, kv_blocks=7, max_num_batched_tokens=4, max_num_seqs=3, reserve_full_prompt=False)
        steps, _ = run_day(trace, replace(rules, resumed="by-rank"), by_priority=True)
        assert steps[:4] == [
            "prefill 0:2@0 1:2@0; free 5",
            "prefill 2:2@0; decode 2 over 4; free 2",
            "prefill 2:2@2; decode 2 over 6; free 1",
            # Row 0 takes the last block and a token, row 1 finds none: row 0 goes, row 2 gets three tokens, not two.
            "prefill 2:3@4; decode 1 over 4; preempt 0; free 0",
        ]

    def test_who_gives_way_itself_ends_the_round_of_the_running(self) -> None:
        trace = requests((4, 9), (4, 9), (4, 9), priority=[1, 9, 1])
        steps, _ = run_day(trace, replace(RULES, kv_blocks=7), by_priority=True)
        assert steps[:3] == [
            "prefill 0:4@0 1:4@0 2:4@0; free 1",
            "decode 1 over 4; preempt 1; free 2",  # row 2 is not served any more
            "decode 2 over 9; free 1",
        ]

    def test_a_composition_that_only_preempts_takes_no_time(self) -> None:
        trace = requests((4, 3), (4, 2), priority=[9, 1])
        steps, day = run_day(trace, replace(RULES, kv_blocks=4), by_priority=True)
        assert steps == [
            "prefill 0:4@0 1:4@0; free 0",
            "decode 1 over 4; preempt 0; free 1",
            "prefill 0:5@0; free 1",
            "decode 1 over 5; free 1",
        ]
        assert day.steps == 4
        assert seconds(day.ended_ps) == [4, 2]

    def test_by_rank_a_victim_goes_behind_who_is_more_urgent(self) -> None:
        trace = replace(TIGHT_DAY, priority=np.array([0, 2, 1]))
        policies = Policies(Priority(), Greedy(), LowestPriority(), RunningMean())
        step_words = StepWords()
        rules = replace(RULES, kv_blocks=5, resumed="by-rank")
        simulate_reference(trace, rules, ONE_SECOND, policies, observer=step_words)
        assert step_words.steps[1:3] == ["decode 1 over 4; preempt 1; free 2", "prefill 2:2@0; decode 1 over 5; free 1"]


class TestAsynchronousScheduling:
    def test_an_end_by_stop_token_is_seen_one_step_late(self) -> None:
        steps, day = run_day(requests((2, 3)), ASYNC)
        assert steps == [
            "prefill 0:2@0; free 99",
            "decode 1 over 2; free 98",
            "decode 1 over 3; free 98",
            "decode 1 over 4; free 97",  # the wasted token, and its block
        ]
        assert seconds(day.ended_ps) == [3]

    @pytest.mark.parametrize(
        ("rules", "columns"), [(ASYNC, {"max_output_tokens": [3]}), (replace(ASYNC, max_model_tokens=5), {})]
    )
    def test_an_end_by_count_is_foreseen(self, rules: EngineRules, columns: dict[str, Any]) -> None:
        steps, day = run_day(requests((2, 3), **columns), rules)
        assert steps == ["prefill 0:2@0; free 99", "decode 1 over 2; free 98", "decode 1 over 3; free 98"]
        assert seconds(day.ended_ps) == [3]

    def test_an_arrival_waits_for_the_step_that_is_composed_already(self) -> None:
        trace = requests((2, 9), (2, 1), at=[0, 0.5], max_output_tokens=[9, 1])
        assert seconds(run_day(trace, RULES)[1].first_token_ps) == [1, 2]
        day = run_day(trace, ASYNC)[1]
        assert seconds(day.first_token_ps) == [1, 3]
        assert seconds(day.admitted_ps) == [0, 1]

    def test_freed_blocks_serve_the_step_after_the_next(self) -> None:
        trace = requests((2, 3), (2, 1), (2, 1), max_output_tokens=[3, 1, 1])
        rules = replace(RULES, kv_blocks=3, max_num_seqs=2)
        assert seconds(run_day(trace, rules)[1].ended_ps) == [3, 1, 2]
        steps, day = run_day(trace, replace(rules, async_scheduling=True))
        assert steps == [
            "prefill 0:2@0 1:2@0; free 1",
            "decode 1 over 2; free 0",
            "prefill 2:2@0; decode 1 over 3; free 0",
        ]
        assert seconds(day.ended_ps) == [3, 1, 3]

    def test_a_token_in_flight_reaches_a_victim_and_may_be_its_last(self) -> None:
        trace = requests((2, 5), (2, 1), (2, 1), max_output_tokens=[5, 1, 1])
        steps, day = run_day(trace, replace(ASYNC, kv_blocks=3, max_num_seqs=2))
        assert steps == [
            "prefill 0:2@0 1:2@0; free 1",
            "decode 1 over 2; free 0",
            "prefill 2:2@0; decode 1 over 3; free 0",
            "decode 1 over 4; preempt 2; free 0",  # composed at second 2, while row 2's only token is being computed
            "decode 1 over 5; free 0",
        ]
        assert seconds(day.ended_ps) == [5, 1, 3]
        assert day.preemptions.tolist() == [0, 0, 1]

    def test_one_alone_may_give_way_while_its_last_token_is_in_flight(self) -> None:
        steps, day = run_day(requests((2, 1)), replace(ASYNC, kv_blocks=1))
        assert steps == ["prefill 0:2@0; free 0"]  # the next step wants a block for a token that nobody needs
        assert day.preemptions.tolist() == [1]
        assert seconds(day.ended_ps) == [1]
        assert day.recomputed_tokens.tolist() == [0]


class TestArrivals:
    def test_a_session_is_a_closed_loop(self) -> None:
        trace = requests((2, 1), (2, 1), at=[0, 0], session=[0, 0], turn=[0, 1], think_seconds=[0, 2])
        _, day = run_day(trace, RULES)
        assert seconds(day.arrived_ps) == [0, 3]
        assert seconds(day.ended_ps) == [1, 4]

    def test_a_refused_turn_ends_its_session(self) -> None:
        trace = requests((2, 1), (60, 9), (2, 1), session=[0, 0, 0], turn=[0, 1, 2], think_seconds=[0, 1, 1])
        _, day = run_day(trace, RULES)
        assert list(day.refused) == [1, 2]
        assert "69 tokens" in day.refused[1]
        assert day.refused[1] in day.refused[2]
        assert seconds(day.arrived_ps) == [0, 2, NEVER]
        assert seconds(day.ended_ps) == [1, NEVER, NEVER]

    def test_an_idle_engine_waits_for_the_next_arrival(self) -> None:
        _, day = run_day(requests((2, 1), (2, 1), at=[0, 7.25]), RULES)
        assert seconds(day.admitted_ps) == [0, 7.25]
        assert seconds(day.ended_ps) == [1, 8.25]
        assert day.curve_ps == [0, 1_000_000_000_000, 7_250_000_000_000]
        assert day.curve_running == [1, 0, 1]
        assert day.curve_blocks == [1, 0, 1]

    def test_an_empty_trace_is_an_empty_day(self) -> None:
        steps, day = run_day(requests(), RULES)
        assert steps == []
        assert day.makespan_ps == 0


class OneAtATime:
    """Holds every request back while one runs, and notes what it was shown."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, int, int, int]] = []

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        produced = batch.running()[0].produced_tokens
        self.asked.append((request.id, batch.size, produced, memory.blocks_free))
        return 1


class TestAdmissionPolicy:
    def test_it_is_asked_after_the_engines_gates_and_only_while_a_request_runs(self) -> None:
        policy = OneAtATime()
        steps, _ = run_day(requests((2, 3), (4, 1)), replace(RULES, kv_blocks=3), admission=policy)
        assert steps == [
            "prefill 0:2@0; free 2",
            "decode 1 over 2; free 1",  # memory says no before the policy is asked
            "decode 1 over 3; free 1",
            "prefill 1:4@0; free 1",
        ]
        assert policy.asked == 2 * [(1, 1, 0, 2)]  # once in either engine
