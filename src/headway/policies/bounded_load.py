"""Bounded load: the replicas that affinity may choose, none of them loaded much above the mean.

Source: V. Mirrokni, M. Thorup, M. Zadimoghaddam, Consistent Hashing with Bounded Loads, SODA 2018, arXiv 1608.01350:
no bin takes more than ⌈c · (balls + 1) / bins⌉.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.domain.replica_view import ReplicaView


def within_bound(replicas: Sequence[ReplicaView], factor: float) -> list[ReplicaView]:
    """Those that may take one more request without holding more than ⌈factor · mean⌉; never empty for factor ≥ 1."""
    total = sum([replica.requests for replica in replicas]) + 1
    most = math.ceil(factor * total / len(replicas))
    return [replica for replica in replicas if replica.requests < most]


def checked_factor(load_factor: float) -> float:
    """The factor itself. Raises ValueError below 1: some replica must always be within the bound."""
    if not 1 <= load_factor < math.inf:
        raise ValueError(f"load_factor must be at least 1, got {load_factor:g}")
    return load_factor


def outstanding_requests(replica: ReplicaView) -> float:
    """Requests it has, as a share of those it may have."""
    return replica.requests / replica.requests_max
