"""Counts of tokens that another program sent, bounded where they enter.

JSON and Prometheus know no largest number: a bound of 400 digits, or a usage with one, would overflow far from here.
"""

from __future__ import annotations

TOKENS_MAX = 100_000_000
"""No request has more tokens: ten times the longest contexts known, and exact in a float."""


def token_count(sent: float) -> int:
    """The count as sent, from 0 to `TOKENS_MAX`; 0 where it is no number."""
    if sent != sent:  # noqa: PLR0124 - NaN; `math.isnan` raises at an int of 400 digits
        return 0
    return int(max(0, min(sent, TOKENS_MAX)))
