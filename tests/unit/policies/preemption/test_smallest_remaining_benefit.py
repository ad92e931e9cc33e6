"""Who is worth least: by hand, and on a crowded day without ping-pong."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.event import Event, Preempted
from headway.domain.request import Request, RequestView
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.histogram import Histogram
from headway.policies.preemption.smallest_remaining_benefit import SmallestRemainingBenefit, steps_to_peak
from headway.scheduling.scheduler import Policies
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace

COSTS = ServiceCosts(1e-4, 1e-2)


def known(number: int, prompt_tokens: int, produced_tokens: int, length: int) -> Request:
    request = Request(number, 0.0, prompt_tokens, produced_tokens=produced_tokens)
    request.estimate = PointEstimate(length, "test")
    return request


def test_the_peak_is_at_somebodys_end() -> None:
    assert steps_to_peak([known(0, 100, 0, 10), known(1, 10, 0, 50)]) == 10  # 110 + 2·10 against 10 + 50
    assert steps_to_peak([known(0, 10, 0, 10), known(1, 10, 0, 50)]) == 50


def test_who_is_about_to_end_stays_and_who_will_long_hold_memory_goes() -> None:
    first, ending, long = known(0, 100, 0, 400), known(1, 100, 90, 100), known(2, 100, 90, 400)
    assert SmallestRemainingBenefit().victim([first, long, ending], 0.0) is long
    assert SmallestRemainingBenefit().victim([first, ending, long], 0.0) is long


def test_what_the_prefix_cache_keeps_is_not_lost() -> None:
    first, plain, cached = known(0, 100, 0, 400), known(1, 500, 10, 400), known(2, 500, 10, 400)
    plain.cached_prompt_tokens, cached.cached_prompt_tokens = 0, 400
    assert SmallestRemainingBenefit().victim([first, cached, plain], 0.0) is cached


def test_the_one_that_has_run_longest_is_spared_and_so_is_who_gave_way_lately() -> None:
    policy = SmallestRemainingBenefit()
    oldest, other, last = known(0, 1, 0, 4_000), known(1, 100, 40, 200), known(2, 300, 0, 50)
    assert policy.victim([oldest], 0.0) is oldest
    assert policy.victim([oldest, other, last], 0.0) is other
    policy.observe(Preempted(other, 0.0))
    assert policy.victim([oldest, other, last], 0.0) is last
    other.produced_tokens = 40 + 20 + 16
    assert policy.victim([oldest, other, last], 0.0) is other
    policy.observe(Preempted(other, 0.0))
    policy.observe(Preempted(last, 0.0))
    assert policy.victim([oldest, other, last], 0.0) is last  # all are spared: the last in


class Watched(SmallestRemainingBenefit):
    """Notes who gave way and with how many tokens, and whether the rules were kept."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens_at: dict[object, list[int]] = {}
        self.exceptions = 0

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        chosen = super().victim(running, now)
        assert chosen is not running[0] or len(running) == 1
        spared = [request for request in running[1:] if self._is_spared(request)]
        if self._is_spared(chosen):
            assert len(spared) == len(running) - 1, "somebody else could have given way"
            self.exceptions += 1
        return chosen

    def observe(self, event: Event) -> None:
        super().observe(event)
        if isinstance(event, Preempted):
            self.tokens_at.setdefault(event.request.id, []).append(event.request.produced_tokens)

    def _is_spared(self, request: RequestView) -> bool:
        times = self.tokens_at.get(request.id)
        return bool(times) and request.produced_tokens < times[-1] + times[-1] // 2 + 16


def test_no_ping_pong_on_a_crowded_day() -> None:
    """Memory for a tenth of what is wanted: all end, and nobody gives way again before it has grown by half."""
    lots = np.random.default_rng(5)
    count = 400
    trace = Trace(
        name="crowded",
        arrived_seconds=np.sort(lots.uniform(0, 20, count)),
        prompt_tokens=lots.integers(10, 200, count),
        output_tokens=lots.geometric(1 / 300, count),
    )
    victim = Watched()
    policies = Policies(Fcfs(), Greedy(), victim, Histogram())
    rules = EngineRules(kv_blocks=400, max_num_seqs=64, max_num_batched_tokens=2_048, max_model_tokens=6_400)
    outcome = simulate(trace, rules, LinearStepTime(8 * 10**9, 10**7, 10**4, 10**7), policies)
    assert (outcome.ended_ps >= 0).all()
    preemptions = outcome.preemptions
    assert preemptions.sum() > 100, "the day was not crowded"
    for row, times in victim.tokens_at.items():
        grown = sum(later >= earlier + earlier // 2 + 16 for earlier, later in pairwise(times))
        # Each growth is by half and 16 tokens, so there are few of them; the rest are exceptions, all of them counted.
        assert grown <= 1 + np.log(1 + trace.output_tokens[row]) / np.log(1.5)
    again = sum(len(times) - 1 for times in victim.tokens_at.values())
    assert victim.exceptions < preemptions.sum() / 2
    assert again < preemptions.sum()
