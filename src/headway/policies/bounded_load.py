"""Bounded load: the replicas that affinity may choose, none of them loaded much above the mean.

Source: V. Mirrokni, M. Thorup, M. Zadimoghaddam, Consistent Hashing with Bounded Loads, SODA 2018, arXiv 1608.01350:
no bin takes more than ⌈c · (balls + 1) / bins⌉. Ours: of unequal replicas each has a share by its speed, not one of n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.domain.replica_view import ReplicaView

_ROUNDING = 1e-9


def within_bound(replicas: Sequence[ReplicaView], factor: float) -> list[ReplicaView]:
    """Those that may take one more request without holding more than ⌈factor · mean⌉; never empty for factor ≥ 1.

    The mean is the one for a replica's speed: the requests that it would hold if each held as many as it is fast.
    """
    total = sum([replica.requests for replica in replicas]) + 1
    speeds = [1 / replica.costs.decode_seconds_per_token for replica in replicas]
    each = factor * total / sum(speeds)
    # Equal speeds have to give the very bound of the paper, whichever way their sum was rounded.
    mosts = [math.ceil(each * speed - _ROUNDING) for speed in speeds]
    return [replica for replica, most in zip(replicas, mosts, strict=True) if replica.requests < most]


def checked_factor(load_factor: float) -> float:
    """The factor itself. Raises ValueError below 1: some replica must always be within the bound."""
    if not 1 <= load_factor < math.inf:
        raise ValueError(f"load_factor must be at least 1, got {load_factor:g}")
    return load_factor


def outstanding_requests(replica: ReplicaView) -> float:
    """Requests it has, as a share of those it may have."""
    return replica.requests / replica.requests_max
