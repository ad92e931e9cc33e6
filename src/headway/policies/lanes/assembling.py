"""Assembly of learned lanes: from a policy's options to its parts; retuned, saved and restored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from headway.domain.costs import ServiceCosts
from headway.domain.request import uncached_prefill_tokens
from headway.policies.lanes.cost_fit import CostFit, PowerLaw, fit_beyond_overhead, fit_power_law
from headway.policies.lanes.features import SIZE_OF, Feature, prompt_tokens
from headway.policies.lanes.lane_assignment import LaneAssigner
from headway.policies.lanes.lane_learner import LaneLearner
from headway.policies.lanes.partition import Merge, Span, refine_and_prune
from headway.policies.lanes.scored import Fill, ScoredLanes
from headway.policies.lanes.scoring import ScoreLine, density_weighted
from headway.policies.lanes.starvation_guard import StarvationGuard

_VOLUME_TOKENS = 1_024  # a request of this size costs, by volume, as much as prefilling as many tokens

_LARGEST = 2**53  # of sizes taken back: a float holds it exactly


@dataclass(slots=True)
class Parameters:
    """What shapes lanes and scores; `change` moves some of it while requests wait.

    `by_queue` puts the published factor q/(b + 1) into the score.
    """

    feature: Feature
    lanes_max: int
    significance: float
    spread_max: float
    merge: Merge
    w_base: float
    a_u: float
    b_u: float
    a_f: float
    b_f: float
    by_queue: bool

    def __post_init__(self) -> None:
        if self.lanes_max < 1:
            raise ValueError(f"lanes_max must be at least 1, got {self.lanes_max}")
        if not 1 < self.significance < math.inf:
            raise ValueError(f"significance must be above 1 (5.5 is the authors'), got {self.significance:g}")
        if not self.spread_max > 1:
            raise ValueError(
                f"spread_max must be above 1 (2: none is twice as long as another), got {self.spread_max:g}"
            )
        for name in ("w_base", "a_u", "b_u", "a_f", "b_f"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name):g}")

    def change(self, values: Mapping[str, float], lanes: ScoredLanes) -> None:
        """Take new values; scores follow at once, lanes at the next partition. Raises ValueError for a wrong one."""
        own = {field.name for field in fields(self)}
        for name in values:
            if name not in own:
                raise ValueError(f"{name!r} cannot be changed while requests wait")
        before = {name: getattr(self, name) for name in values}
        for name, value in values.items():
            setattr(self, name, value)
        try:
            self.__post_init__()
        except ValueError:
            for name, old in before.items():
                setattr(self, name, old)
            raise
        lanes.forget_scores()

    def partition(self, sizes: Sequence[int]) -> tuple[Span, ...]:
        """Refine-and-Prune with these parameters."""
        return refine_and_prune(
            sizes,
            significance=self.significance,
            spread_max=self.spread_max,
            lanes_max=self.lanes_max,
            merge=self.merge,
        )


def learned_lanes(
    parameters: Parameters,
    costs: ServiceCosts,
    *,
    fill: Fill,
    guard: StarvationGuard | None,
    window_requests: int,
    relearn_requests: int,
) -> ScoredLanes:
    """Lanes that are learned, with costs that are fitted; before there are any, bubbles serve."""
    per_token = costs.prefill_seconds_per_token
    fit = CostFit(
        PowerLaw(per_token),
        fit_power_law if parameters.by_queue else fit_beyond_overhead,
        prompt_tokens if parameters.feature == "prompt-tokens" else uncached_prefill_tokens,
    )
    by_volume = PowerLaw(per_token / _VOLUME_TOKENS, 2.0)

    def score(size: int, mean: float, queue_index: int, arrived_at: float) -> ScoreLine:
        law = by_volume if parameters.feature == "kv-volume" else fit.law
        factor = queue_index / (size + 1) if parameters.by_queue else 1.0
        return density_weighted(parameters, size, mean, law.seconds(size), arrived_at, queue_factor=factor)

    learner = LaneLearner(parameters.partition, window_requests=window_requests, relearn_requests=relearn_requests)
    return ScoredLanes(
        size_of=SIZE_OF[parameters.feature],
        router=LaneAssigner(),
        score_of=score,
        fill=fill,
        learner=learner,
        costs=fit,
        guard=guard,
        index_matters=parameters.by_queue,
        means_matter=lambda: bool(parameters.a_u or parameters.a_f),
    )


def saved_lanes(parameters: Parameters, lanes: ScoredLanes) -> dict[str, object]:
    """Lanes, cost fit and window as plain values; bubbles are not worth keeping."""
    assert lanes.learner is not None, "only learned lanes are saved"
    assert lanes.costs is not None, "only learned lanes are saved"
    return {
        "feature": parameters.feature,
        "lanes": [list(lane.span) for lane in lanes.router.lanes if not lane.bubble],
        "costs": lanes.costs.state(),
        "window": lanes.learner.window(),
        "seen": lanes.learner.seen,
    }


def restore_lanes(parameters: Parameters, lanes: ScoredLanes, state: Mapping[str, object]) -> None:
    """Take back what `saved_lanes` gave, all of it or nothing.

    Raises:
        ValueError: it is not such a state, or was learned from another feature; one sentence.
    """
    assert lanes.learner is not None, "only learned lanes are restored"
    assert lanes.costs is not None, "only learned lanes are restored"
    if state.get("feature") != parameters.feature:
        raise ValueError(f"it was learned from {state.get('feature')!r}, not from {parameters.feature!r}")
    try:
        spans = _spans(state["lanes"])
        window, seen = state["window"], state["seen"]
        if not (isinstance(window, list) and all(isinstance(size, int) and 0 <= size <= _LARGEST for size in window)):
            raise ValueError("the window must be a list of sizes")
        if not (isinstance(seen, int) and seen >= 0):
            raise ValueError("the count of requests seen must be a whole number")
        costs = state["costs"]
        if not isinstance(costs, Mapping):
            raise ValueError("the cost fit must be a table")
        lanes.costs.restore(costs)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"it lacks a part or has one of another kind: {error}") from error
    lanes.learner.resume(window, seen)
    lanes.adopt(spans)


def _spans(listed: object) -> tuple[Span, ...]:
    if not isinstance(listed, list):
        raise ValueError("the lanes must be a list")
    spans = tuple(Span(int(low), int(high), float(mean), int(n)) for low, high, mean, n in listed)
    for span, following in pairwise(spans):
        if span.high >= following.low:
            raise ValueError(f"the lanes {span.low}–{span.high} and {following.low}–{following.high} overlap")
    if not all(0 <= span.low <= span.mean <= span.high <= _LARGEST and span.requests >= 0 for span in spans):
        raise ValueError("a lane's mean must lie in its range")
    return spans
