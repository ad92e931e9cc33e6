"""The running batch knows which requests got a first token; unknown moves between places are logged."""

from __future__ import annotations

from typing import Any

import pytest

from headway.domain.request import Request
from headway.vllm_plugin.request_entries import EngineBatch, Entry, Place
from headway.vllm_plugin.xargs_hints import NO_HINTS
from tests.support.vllm_stub import StubRequest


def entry() -> Entry:
    request: Any = StubRequest("r", 100)
    return Entry(request, Request("r", 0.0, 100), NO_HINTS, 0)


def test_the_batch_changes_when_a_request_joins_or_leaves() -> None:
    batch, one = EngineBatch(), entry()
    batch.join(one)
    assert batch.end_step() == [], "no token came"
    one.request.num_output_tokens = 3  # type: ignore[misc]
    assert [view.produced_tokens for view in batch.running()] == [3]
    assert (batch.end_step(), batch.end_step(), batch.decode_steps) == ([one], [], 3)
    version = batch.version
    batch.leave("stranger")
    assert (batch.version, batch.size) == (version, 1)
    batch.leave("r")
    assert (batch.version, batch.size) == (version + 1, 0)


def test_an_unknown_move_is_logged_and_made(caplog: pytest.LogCaptureFixture) -> None:
    one = entry()
    one.move(Place.RUNNING)
    one.move(Place.FINISHED)
    assert not caplog.records
    one.move(Place.WAITING)
    assert one.place is Place.WAITING
    assert [record.getMessage() for record in caplog.records] == [
        "headway: request r moved from finished to waiting; please report this"
    ]
    caplog.clear()
