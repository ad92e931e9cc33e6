"""EWSJF, bounded: learned lanes whose heads compete by waited over cost, and a guard against starving."""

from __future__ import annotations

from typing import ClassVar, Literal

from headway.domain.costs import ServiceCosts
from headway.policies.contracts import Need
from headway.policies.lanes.assembling import Parameters
from headway.policies.lanes.features import Feature
from headway.policies.lanes.learned_ordering import LearnedLanesOrdering
from headway.policies.lanes.starvation_guard import StarvationGuard
from headway.policies.tunable import Tunable


class Ewsjf(LearnedLanesOrdering):
    """Effective-workload shortest job first, bounded: our recommended reading of the paper.

    Idea: learn lanes from the sizes of past requests, first come inside a lane, and serve the lane whose head has
        waited longest for what it costs. Lanes come from k-means, cuts at significant gaps, cuts of lanes still wide,
        and merges down to `lanes_max`. Sizes between two lanes get a bubble lane. What a prefill costs is fitted
        online. A step that let one in goes on with that lane, then with the lanes nearest to it. Once a request has
        waited `overdue_seconds` it shares `overdue_share` of all prefill work with the others overdue, in order of
        arrival, so no request starves (docs/ewsjf.md has the bound and its proof).
    Source: EWSJF, arXiv 2601.21758. Deviations, all ours: the score is w_base + w_urg·W/C(b) + w_fair·ln(b + 1)
        without the published factor q/(b + 1), which counts length twice; w_fair 0 unless set, since
        of two that just came the term puts the longer first; the guard; lanes wider than `spread_max`
        are cut although there is no gap; merging by Ward's cost over log sizes; costs are what a prefill adds to a
        step, without the step's overhead; gaps are between distinct sizes and at least 64 tokens; size is uncached
        prompt tokens, not the whole prompt. `ewsjf-published` is without these.
    Reads: prompt length, cached prompt tokens as they were at arrival, the arrival time, admissions and first tokens;
        the length estimate with `feature` "kv-volume", which reads sizes as √(2·KV volume) and costs as proportional to
        it.
    Wins when: prefill is the bottleneck, prompts differ widely, and the mix is not known or moves.
    Loses when: decoding or KV memory is the bottleneck (try `feature` "kv-volume"), or sizes are so alike that there
        is nothing to learn: it is FCFS then.
    """

    NEEDS = frozenset([Need.CACHED_TOKENS])

    TUNABLE: ClassVar[tuple[Tunable, ...]] = (
        Tunable("a_u", -0.001, 0.01),
        Tunable("b_u", 0.1, 5.0, "log"),
        Tunable("a_f", -0.001, 0.001),
        Tunable("b_f", 0.0, 2.0),
        Tunable("significance", 2.0, 10.0),
    )

    def __init__(
        self,
        *,
        costs: ServiceCosts,
        feature: Feature = "uncached-tokens",
        lanes_max: int = 30,
        significance: float = 5.5,
        spread_max: float = 1.5,
        w_base: float = 1.0,
        a_u: float = 0.0,
        b_u: float = 1.0,
        a_f: float = 0.0,
        b_f: float = 0.0,
        fill: Literal["score", "lane-and-neighbours"] = "lane-and-neighbours",
        overdue_seconds: float = 60.0,
        overdue_share: float = 0.25,
        window_requests: int = 10_000,
        relearn_requests: int = 2_000,
    ) -> None:
        super().__init__(
            Parameters(
                feature=feature,
                lanes_max=lanes_max,
                significance=significance,
                spread_max=spread_max,
                merge="ward-log",
                w_base=w_base,
                a_u=a_u,
                b_u=b_u,
                a_f=a_f,
                b_f=b_f,
                by_queue=False,
            ),
            costs,
            fill=fill,
            guard=StarvationGuard(overdue_seconds=overdue_seconds, overdue_share=overdue_share),
            window_requests=window_requests,
            relearn_requests=relearn_requests,
        )
