"""Numbers that options may hold, whatever their policy."""

from __future__ import annotations

import pytest

from headway.domain.costs import ServiceCosts
from headway.policies import catalog

COSTS = ServiceCosts(prefill_seconds_per_token=1e-4, decode_seconds_per_token=0.02)


def test_the_largest_whole_number_of_an_option() -> None:
    most = 10**15
    for value in (most, -most):
        catalog.build("ordering", "ewsjf", {"b_u": value}, costs=COSTS, seed=0, truth=lambda request_id: 1)
    for value in (most + 1, -most - 1):
        with pytest.raises(ValueError, match=r"b_u must be a number of at most 1,000,000,000,000,000, got one of more"):
            catalog.build("ordering", "ewsjf", {"b_u": value}, costs=COSTS, seed=0, truth=lambda request_id: 1)
    weights = {"tenant_weights": {"a": 1, "b": most + 1}}
    with pytest.raises(ValueError, match=r"tenant_weights must be .* of at most"):
        catalog.build("ordering", "fair-share", weights, costs=COSTS, seed=0, truth=lambda request_id: 1)
