"""Gittins: the best chance of finishing per unit of work comes first."""

from __future__ import annotations

import math
from typing import ClassVar

from headway.domain.event import Arrived, Event
from headway.domain.request import RequestView, uncached_prefill_tokens
from headway.policies.contracts import Need
from headway.policies.ordering.smallest_volume_first import volume
from headway.policies.tunable import Tunable

_POINTS = 20
_PROBABILITIES = tuple((number + 0.5) / _POINTS for number in range(_POINTS))
_IN_TAIL = 2  # of the points: the worst tenth
_REMEMBERED = 1_000  # requests over which the means are taken


class Gittins:
    """Least Gittins index of the cost first, the cost being prefill and KV volume.

    Idea: where lengths are uncertain the mean misleads: of two requests with the same mean the one that may end soon is
        worth a try. The index is the least expected work per chance of finishing, over all amounts of work that might
        be invested: min over Δ of E[min(S, Δ)] / P(S ≤ Δ). For a known cost it is that cost. With `tail_weight` the
        mean of the worst tenth is added, so that a request that may turn out huge stands back.
    Source: SageSched, arXiv 2603.07917 (index of a cost of compute and memory); the tail as in TIE, arXiv 2604.00499 (β
        between 0.1 and 0.5 by load; CVaR at 0.9). Deviations: the cost is the prefill plus the KV volume, each in units
        of the latest requests' mean, so that neither needs a price. SageSched's own formula and its refreshing of the
        index were not read. The estimate is taken at 20 quantiles. β is fixed.
    Reads: prompt length, cached prompt tokens, tokens produced, the length estimate's quantiles, arrivals.
    Wins when: estimates tell requests that are likely short from those that are not, and the mean counts.
    Loses when: requests run to their end once they began, as engines mostly have it: a try that fails holds its place,
        and the mean of the cost is the better guide then (shortest-job-first, smallest-volume-first). Waits have no
        bound.
    """

    follows_what_is_learned = True
    hears = (Arrived,)
    NEEDS = frozenset([Need.CACHED_TOKENS])

    TUNABLE: ClassVar[tuple[Tunable, ...]] = (Tunable("tail_weight", 0.0, 2.0),)

    def __init__(self, *, tail_weight: float = 0.0) -> None:
        if not 0 <= tail_weight < math.inf:
            raise ValueError(f"tail_weight must be at least 0 and finite, got {tail_weight:g}")
        self._tail_weight = tail_weight
        self._seen = 0
        self._prefill_mean = 0.0  # tokens
        self._volume_mean = 0.0  # token·steps

    def observe(self, event: Event) -> None:
        """Keep the means."""
        if isinstance(event, Arrived):
            self._seen += 1
            share = 1 / min(self._seen, _REMEMBERED)
            volumes = _volumes(event.request)
            self._prefill_mean += share * (uncached_prefill_tokens(event.request) - self._prefill_mean)
            self._volume_mean += share * (sum(volumes) / len(volumes) - self._volume_mean)

    def rank(self, request: RequestView) -> float:
        """The index of the cost still ahead, in mean requests; a mean request costs 2."""
        prefill = uncached_prefill_tokens(request) / self._prefill_mean if self._prefill_mean else 0.0
        unit = self._volume_mean or 1.0
        costs = [prefill + one / unit for one in _volumes(request)]
        return gittins_index(costs) + self._tail_weight * sum(costs[-_IN_TAIL:]) / _IN_TAIL


def gittins_index(costs: list[float]) -> float:
    """Least E[min(S, Δ)] / P(S ≤ Δ) over Δ, for a cost S that is each of these with the same probability; ascending.

    The least is reached at one of them: between two of them more is invested and no more likely to finish.
    """
    count, below = len(costs), 0.0
    least = math.inf
    for number, cost in enumerate(costs):
        below += cost
        finished = number + 1
        least = min(least, (below + (count - finished) * cost) / finished)
    return least


def _volumes(request: RequestView) -> list[float]:
    """KV volume still ahead at each quantile of the length, token·steps, ascending."""
    estimate = request.estimate
    if estimate is None:
        raise ValueError(
            f"request {request.id!r} has no length estimate, which gittins needs: name a predictor with "
            "--prediction (for example histogram)"
        )
    held = request.prompt_tokens + request.produced_tokens
    produced = request.produced_tokens
    return [volume(held, estimate.remaining_quantile(probability, produced)) for probability in _PROBABILITIES]
