"""Refusals of requests, and after how many seconds a client may retry."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from headway.gateway.openai.error_responses import RETRY_SECONDS_MAX, Reason
from headway.gateway.replicas.upstream_replica import UpstreamReplica

_JITTER = 0.2  # a retry delay is drawn within ± this share, so that clients refused together do not return together
_UNKNOWN_SECONDS = 1.0
NO_REPLICA_SECONDS = 5.0
STANDBY_SECONDS = 1.0  # a balancer leads to the active gateway then


class Refusal(NamedTuple):
    """What a client gets instead of an answer. `retry_seconds` is None where no retry helps, or `headers` say it."""

    status: int
    message: str
    reason: Reason
    retry_seconds: float | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


class RetryDelays:
    """After how many seconds a refused client may come back, jittered."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def after(self, seconds: float | None) -> float:
        """About `seconds`; about a second where no forecast is known. Never above what clients obey."""
        wanted = max(0.05, _UNKNOWN_SECONDS if seconds is None else seconds)
        return min(RETRY_SECONDS_MAX, wanted * self._chance.uniform(1 - _JITTER, 1 + _JITTER))

    def after_probe(self, replicas: Sequence[UpstreamReplica], now: float) -> float:
        """When the next replica is probed, at most 5 s from now."""
        probes = [replica.state.probe_at - now for replica in replicas]
        return self.after(max(1.0, min([NO_REPLICA_SECONDS, *probes])))
