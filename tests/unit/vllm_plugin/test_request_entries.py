"""The running batch knows which requests got a first token; unknown moves between places are logged."""

from __future__ import annotations

from typing import Any

import pytest

from headway.domain.request import Request
from headway.vllm_plugin.request_entries import EngineBatch, Entry, Place
from headway.vllm_plugin.xargs_hints import NO_HINTS
from tests.support.vllm_stub import StubRequest


def entry(name: str = "r") -> Entry:
    request: Any = StubRequest(name, 100)
    return Entry(request, Request(name, 0.0, 100), NO_HINTS, 0)


def test_each_change_of_the_batch_has_a_version_of_its_own() -> None:
    """Of a joining, a prompt all of which is in a step, a first token and a leaving; what changes nothing has none."""
    batch, one, other = EngineBatch(), entry("one"), entry("other")
    versions = [batch.version]

    def changed() -> bool:
        versions.append(batch.version)
        return versions[-1] > versions[-2]

    batch.join(one)
    assert changed()
    batch.join(other)
    assert changed()
    assert list(batch.prefilling) == ["one", "other"]
    batch.composed()
    assert not changed(), "both prompts have tokens left"
    one.request.num_computed_tokens = 99
    batch.composed()
    assert not changed()
    one.request.num_computed_tokens = 100
    batch.composed()
    assert changed()
    batch.composed()
    assert not changed(), "it is counted once"
    one.request.num_output_tokens = 1  # type: ignore[misc]
    assert batch.end_step() == [one]
    assert changed()
    assert list(batch.prefilling) == ["other"]
    assert batch.end_step(had_tokens=False) == []
    assert not changed()
    assert batch.decode_steps == 1
    batch.leave("other")
    assert changed()
    assert (batch.size, batch.prefilling) == (1, {})
    other.request.num_computed_tokens = 100
    batch.composed()
    assert not changed(), "one that left has no prompt to complete"
    assert versions == sorted(versions)


def test_a_first_token_is_one_since_the_latest_admission() -> None:
    batch, one = EngineBatch(), entry()
    one.request.num_output_tokens = 5  # type: ignore[misc] - it was preempted after five
    batch.join(one)
    assert batch.end_step() == []
    one.request.num_output_tokens = 6  # type: ignore[misc]
    assert batch.end_step() == [one]


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
