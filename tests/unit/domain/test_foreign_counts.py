"""A count of tokens from outside is a whole number within bounds, whatever was sent."""

from __future__ import annotations

import math

import pytest

from headway.domain.foreign_counts import TOKENS_MAX, token_count


@pytest.mark.parametrize(
    ("sent", "count"),
    [
        (0, 0),
        (7, 7),
        (7.9, 7),
        (-3, 0),
        (TOKENS_MAX + 1, TOKENS_MAX),
        (10**400, TOKENS_MAX),
        (-(10**400), 0),
        (1e308, TOKENS_MAX),
        (math.inf, TOKENS_MAX),
        (-math.inf, 0),
        (math.nan, 0),
    ],
)
def test_every_number_is_bounded(sent: float, count: int) -> None:
    assert token_count(sent) == count
