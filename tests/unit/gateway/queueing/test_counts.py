"""Counts of requests: each request ends once."""

from __future__ import annotations

import pytest

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Counts, Outcome


def test_counts_end_everybody_once() -> None:
    counts = Counts()
    counts.arrive()
    counts.end(Outcome.REFUSED, Reason.QUEUE_FULL)
    assert counts.is_conserved()
    with pytest.raises(AssertionError, match="ended twice"):
        counts.end(Outcome.COMPLETED)
