"""EWSJF as its authors' code has it: fixed lanes of equal width, a score that grows with wait, no cost model."""

from __future__ import annotations

from headway.policies.contracts import Need
from headway.policies.lanes.features import prompt_tokens
from headway.policies.lanes.lane_assignment import LaneAssigner
from headway.policies.lanes.learned_ordering import ScoredLanesOrdering
from headway.policies.lanes.partition import Span
from headway.policies.lanes.scored import ScoredLanes
from headway.policies.lanes.scoring import ScoreLine, authors


class EwsjfAuthors(ScoredLanesOrdering):
    """EWSJF as in its authors' scheduler for vLLM, which is simpler than their paper.

    Idea: lanes of equal width over prompt lengths, first come inside a lane. Serve the lane whose head has the highest
        W·(1 + 0.5·ln(b + 1))·step/(⌊b/step⌋ + 1), and go on with that lane for the rest of the step.
    Source: the authors' code, vllm-project/vllm PR #33392 (RFC #24484): 10 lanes of 100 tokens and step 200 by default;
        30 lanes and step 1500 in their benchmark. Deviations: scores are computed at each choice, not by a thread that
        may be late. When the lane is empty the next best follows in the same step, not in the next one. A preempted
        request waits where the engine puts it. A size below every lane gets a lane that holds it.
    Reads: prompt length and the arrival time.
    Wins when: prompts differ widely and every head shall win in the end: the waits of two lanes that both keep
        requests waiting settle near the inverse ratio of their factors.
    Loses when: most prompts are shorter than `step`: within it, of two that waited equally the longer goes first.
    """

    NEEDS = frozenset([Need.CACHED_TOKENS])

    def __init__(self, *, lanes: int = 10, lane_tokens: int = 100, step: int = 200) -> None:
        if lanes < 1 or lane_tokens < 1:
            raise ValueError(f"lanes and lane_tokens must be at least 1, got {lanes} and {lane_tokens}")
        if step < 0:
            raise ValueError(f"step must be at least 0 (0: no factor), got {step}")
        width = lane_tokens
        spans = [Span(i * width, (i + 1) * width - 1, (i + 0.5) * width, 0) for i in range(lanes)]

        def score(size: int, mean: float, queue_index: int, arrived_at: float) -> ScoreLine:
            return authors(size, step, arrived_at)

        router = LaneAssigner(spans, tolerant=False)
        super().__init__(ScoredLanes(size_of=prompt_tokens, router=router, score_of=score, fill="lane"))
