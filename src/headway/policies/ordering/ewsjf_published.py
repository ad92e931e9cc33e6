"""EWSJF as published: learned lanes, the density-weighted score with its queue factor, no guard against starving."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from headway.domain.costs import ServiceCosts
from headway.policies.contracts import Need
from headway.policies.lanes.assembling import Parameters
from headway.policies.lanes.features import Feature
from headway.policies.lanes.learned_ordering import LearnedLanesOrdering
from headway.policies.tunable import Tunable


class EwsjfPublished(LearnedLanesOrdering):
    """Effective-workload shortest job first, as the paper describes it; long prompts may starve.

    Idea: learn lanes from the prompt lengths of past requests, first come inside a lane, and serve the lane with the
        highest density-weighted score q/(b + 1)·(w_base + w_urg·W/C(b) + w_fair·ln(b + 1)) of its head. Go on with that
        lane for the rest of the step, then with the lanes nearest to it.
    Source: EWSJF, arXiv 2601.21758, its body as reported by third parties: Eq. 1 and 4, Algorithms 1 and 2. Our choices
        where the paper is silent or says two things: merging the pair of highest utility, significance 5.5 (the
        authors' code), gaps between distinct lengths of at least 64 tokens, costs in seconds fitted by Theil–Sen,
        defaults of the weights, and lanes relearned by requests seen instead of every ten minutes. Its meta-optimiser
        is `headway tune`.
    Reads: prompt length (uncached tokens or predicted KV volume with `feature`), the arrival time, admissions and
        first tokens.
    Wins when: short prompts are to be served at any price and long ones are few.
    Loses when: load stays high: length counts twice, so a long head needs a wait in proportion to b^(1 + e) to come up,
        and with w_urg 0 it never does. The fairness term does not grow with the wait and cannot prevent it.
    """

    NEEDS = frozenset([Need.CACHED_TOKENS])

    TUNABLE: ClassVar[tuple[Tunable, ...]] = (
        Tunable("a_u", -0.001, 0.01),
        Tunable("b_u", 0.1, 5.0, "log"),
        Tunable("a_f", -0.001, 0.001),
        Tunable("b_f", 0.01, 2.0, "log"),
        Tunable("significance", 2.0, 10.0),
    )

    def __init__(
        self,
        *,
        costs: ServiceCosts,
        feature: Feature = "prompt-tokens",
        lanes_max: int = 30,
        significance: float = 5.5,
        w_base: float = 1.0,
        a_u: float = 0.0,
        b_u: float = 1.0,
        a_f: float = 0.0,
        b_f: float = 0.1,
        fill: Literal["score", "lane-and-neighbours"] = "lane-and-neighbours",
        window_requests: int = 10_000,
        relearn_requests: int = 2_000,
    ) -> None:
        super().__init__(
            Parameters(
                feature=feature,
                lanes_max=lanes_max,
                significance=significance,
                spread_max=math.inf,
                merge="utility",
                w_base=w_base,
                a_u=a_u,
                b_u=b_u,
                a_f=a_f,
                b_f=b_f,
                by_queue=True,
            ),
            costs,
            fill=fill,
            guard=None,
            window_requests=window_requests,
            relearn_requests=relearn_requests,
        )
