"""The benchmark of waiting requests reaches into the gateway's parts, so it is run here, small."""

from __future__ import annotations

import gc

import pytest
import uvloop

from benchmarks.cost.waiting_requests import measure


@pytest.mark.slow
def test_all_but_one_request_wait() -> None:
    try:
        figures = uvloop.run(measure(50, "fcfs"))
    finally:
        gc.unfreeze()
    assert figures["waiting"] == 49
    assert figures["arrival_us_each"] > 0
