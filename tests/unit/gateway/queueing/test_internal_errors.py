"""Internal errors are counted all, and logged with a traceback once a minute for each place."""

from __future__ import annotations

import logging

import pytest

from headway.gateway.queueing.internal_errors import LOGGED_EVERY_SECONDS, InternalErrors
from headway.scheduling.checked_policies import PolicyFault


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_fault_that_repeats_is_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    errors = InternalErrors(clock)
    with caplog.at_level(logging.ERROR, "headway.gateway"):
        for _ in range(100):
            errors.contained("relay", RuntimeError("again"))
        errors.contained("sweep", RuntimeError("elsewhere"))
        clock.now = LOGGED_EVERY_SECONDS
        errors.contained("relay", RuntimeError("again"))
    assert errors.by_place == {"relay": 101, "sweep": 1}
    lines = [(record.getMessage(), record.fields["since_last_line"]) for record in caplog.records]  # type: ignore[attr-defined]
    assert [number for _, number in lines] == [1, 1, 100]
    assert all(record.exc_info for record in caplog.records)


def test_a_policy_fault_is_counted_by_kind_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    errors = InternalErrors(Clock())
    with caplog.at_level(logging.ERROR, "headway.gateway"):
        errors.policy_fault(PolicyFault("routing", "nonsense", "chose a replica that is gone"))
    assert errors.policy_faults == {("routing", "nonsense"): 1}
    assert "the routing policy chose a replica that is gone" in caplog.text


def test_a_guarded_call_passes_its_arguments_on_and_contains_what_it_raises() -> None:
    errors, heard = InternalErrors(Clock()), list[tuple[int, str]]()
    errors.guard("observing", lambda number, name: heard.append((number, name)), 1, name="a")
    errors.guard("observing", lambda: 1 / 0)
    assert heard == [(1, "a")]
    assert errors.by_place == {"observing": 1}
