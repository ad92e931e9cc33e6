"""Fullest that attains: the busiest replica that still keeps the request's times."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.contracts import Need
from headway.policies.predicted_work import TYPICAL_BATCH, first_token_seconds, output_tokens_left
from headway.policies.routing.least_work import LeastWork

_MARGIN = 0.9  # of each bound: the fullest replica fails for all its requests where a prediction is a little too good


class FullestThatAttains:
    """The busiest replica that still keeps the request's times; the least work where none does.

    Idea: fill one replica after the other. What is left idle can be switched off, or takes the next burst whole.
    Source: PolyServe (arXiv 2507.17769, abstract): the server of the highest load that still attains its objectives.
        Ours, since its thresholds are not public: a replica attains if the first token comes in time, its batch decodes
        within `output_seconds` a token and its KV memory holds the request, each with a margin of a tenth. The load is
        the requests there. Its bins of servers by objective are left out. A request's own bound per output token counts
        where it is below `output_seconds`, which protects the others there.
    Reads: the deadline (else `first_token_seconds`), the bound per output token, prompt tokens without a first token,
        requests, KV tokens, costs, and each replica's confirmed prefix of this prompt.
    Wins when: replicas are added and removed by load.
    Loses when: their number is fixed and all want the same times: then the least work is better for each of them.
    """

    NEEDS = frozenset([Need.REPLICAS])

    def __init__(self, *, first_token_seconds: float = 2.0, output_seconds: float = 0.1) -> None:
        for name, seconds in (("first_token_seconds", first_token_seconds), ("output_seconds", output_seconds)):
            if not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {seconds:g}")
        self._first_token_seconds = first_token_seconds
        self._output_seconds = output_seconds
        self._least_work = LeastWork()

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """Of those that attain the one with the most requests; of equals the one with more KV tokens."""
        attaining = [replica for replica in replicas if self.attains(request, prefix, replica, now)]
        if not attaining:
            return self._least_work.choose(request, prefix, replicas, now)
        return max(attaining, key=lambda replica: (replica.requests, replica.kv_tokens))

    def attains(self, request: RequestView, prefix: Sequence[int], replica: ReplicaView, now: float) -> bool:
        """Whether the request would have its times there, and leave the others theirs."""
        left = self._first_token_seconds if request.deadline is None else request.deadline - now
        # A batch above the typical one decodes so much more slowly as it is larger.
        step = replica.costs.decode_seconds_per_token * max(1.0, (replica.requests + 1) / TYPICAL_BATCH)
        named = None if request.later_deadlines is None else request.later_deadlines.tpot_seconds
        bound = self._output_seconds if named is None else min(named, self._output_seconds)
        if first_token_seconds(request, prefix, replica) > _MARGIN * left or step > _MARGIN * bound:
            return False
        if not replica.kv_tokens_max:
            return True
        tokens = request.prompt_tokens + output_tokens_left(request)
        return replica.kv_tokens + tokens <= _MARGIN * replica.kv_tokens_max
