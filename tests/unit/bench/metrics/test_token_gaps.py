"""Quantiles of inter-token gaps equal those of numpy over the expanded list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.bench.metrics.token_gaps import gap_spread
from headway.simulator.outcome import TokenGaps

SHARES = (0.0, 0.25, 0.5, 0.9, 0.99, 1.0)

runs = st.builds(
    TokenGaps,
    first_ps=st.integers(10**9, 10**9 + 50) | st.integers(10**6, 10**13),
    growth_ps=st.integers(-3, 3) | st.integers(0, 10**9),
    steps=st.integers(0, 30),
    tokens=st.integers(0, 5),
)


@given(st.lists(runs, max_size=8))
def test_equals_numpy_over_the_expanded_list(gaps: list[TokenGaps]) -> None:
    expanded = [g.first_ps + i * g.growth_ps for g in gaps for i in range(g.steps) for _ in range(g.tokens)]
    if not expanded:
        assert gap_spread(gaps, SHARES) == ()
        return
    seconds = np.array(expanded) / 1e12
    mean, *percentiles = gap_spread(gaps, SHARES)
    assert mean == pytest.approx(seconds.mean(), rel=1e-12)
    assert percentiles == pytest.approx(np.percentile(seconds, [100 * s for s in SHARES]), rel=1e-12)


def test_a_billion_gaps_cost_nothing() -> None:
    mean, p50 = gap_spread([TokenGaps(10**10, 0, 10**6, 10**3), TokenGaps(10**12, 0, 1, 1)], (0.5,))
    assert p50 == 0.01
    assert mean == pytest.approx(0.01)
