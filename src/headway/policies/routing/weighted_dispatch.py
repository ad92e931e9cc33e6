"""Weighted dispatch: speed for this request against work outstanding, over unequal replicas."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.contracts import Need
from headway.policies.predicted_work import outstanding_seconds, service_seconds


class WeightedDispatch:
    """The replica with the best weighted sum of its speed for this request and of the work that waits there.

    Idea: a fast replica is worth some queue. Speed counts `speed_weight`, work outstanding the rest, both relative to
        the mean of the replicas.
    Source: HexGen-Text2SQL (arXiv 2505.05286, workload-balanced dispatching): the largest α · t_base / t_e − (1 − α) ·
        W_e / W_base, t_e being the time of this request on replica e, W_e the work assigned there. Its α is found by
        simulation between 0 and 0.5. Ours: work that is done counts no more, and the base is the mean, so that no
        replica is special.
    Reads: costs, confirmed prefix, expected output tokens, and the work outstanding at each replica.
    Wins when: replicas are of different speeds, and requests of different lengths.
    Loses when: replicas are equal: then it is the least work without regard to memory.
    """

    NEEDS = frozenset([Need.REPLICAS])

    def __init__(self, *, speed_weight: float = 0.25) -> None:
        if not 0 <= speed_weight <= 1:
            raise ValueError(f"speed_weight must be from 0 to 1, got {speed_weight:g}")
        self._speed_weight = speed_weight

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """The one with the largest score; of equals the one with fewer requests, then the first."""
        times = [service_seconds(request, prefix, replica) for replica in replicas]
        works = [outstanding_seconds(replica) for replica in replicas]
        mean_time, mean_work = fmean(times), fmean(works)
        alpha = self._speed_weight

        def penalty(number: int) -> tuple[float, int]:
            speed = mean_time / times[number] if times[number] > 0 else 1.0
            work = works[number] / mean_work if mean_work > 0 else 0.0
            return (1 - alpha) * work - alpha * speed, replicas[number].requests

        return replicas[min(range(len(replicas)), key=penalty)]
