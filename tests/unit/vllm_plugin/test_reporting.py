"""What operators see: waits by length class, long waits in the log but not a flood of them, one line a decision."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.vllm_stub import StubEngine, StubRequest


class Engine(PolicyScheduling, StubEngine):
    """Seats for all, and a clock."""

    seats = 100

    def wait(self, seconds: float, *prompts: int) -> None:
        """Requests come at 0 and are admitted so many seconds later."""
        self.headway.clock = lambda: 0.0
        for number, prompt in enumerate(prompts):
            self.add_request(StubRequest(f"r{number}", prompt))
        self.headway.clock = lambda: seconds
        self.schedule()


def test_waits_are_counted_by_prompt_length() -> None:
    engine = Engine()
    engine.wait(3.0, 1, 512, 513, 4_096, 4_097)
    counts = {name: (waits.count, waits.sum) for name, waits in engine.headway.metrics.waits.items()}
    assert counts == {"short": (2, 6.0), "medium": (2, 6.0), "long": (1, 3.0)}


@pytest.mark.parametrize(("seconds", "logged"), [(9.99, 0), (10.0, 1)])
def test_a_long_wait_is_explained_in_the_log(seconds: float, logged: int, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(headway={"ordering": "fcfs"})
    with caplog.at_level(logging.INFO, "vllm.headway"):
        engine.wait(seconds, 700)
    explained = [message for message in caplog.messages if "waited" in message]
    assert explained == [
        "headway: request r0 (700 prompt tokens, 0 cached; order fcfs) waited 10.00 s (no scan meanwhile); "
        "no later arrival was admitted before it"
    ] * (logged)


def test_ten_waits_a_second_are_explained_and_all_are_counted(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    engine = Engine(headway={"ordering": "fcfs", "decision_log": str(log)})
    with caplog.at_level(logging.INFO, "vllm.headway"):
        engine.wait(20.0, *[5] * 14)
        engine.headway.clock = lambda: 20.9
        engine.add_request(late := StubRequest("late", 5))
        engine.headway.book.entries["late"].view.arrived_at = 0.0
        engine.schedule()
        assert late in engine.running
        explained = [message for message in caplog.messages if "waited" in message]
        assert len(explained) == 10
        engine.headway.clock = lambda: 21.0  # another second
        engine.add_request(StubRequest("later", 5))
        engine.headway.book.entries["later"].view.arrived_at = 0.0
        engine.schedule()
    explained = [message for message in caplog.messages if "waited" in message]
    assert len(explained) == 11
    assert "request later" in explained[-1]
    engine.shutdown()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["request"] for line in lines] == [*(f"r{number}" for number in range(14)), "late", "later"]
    assert lines[0] == {
        "request": "r0",
        "state": "admitted",
        "admitted_at": 20.0,
        "waited_seconds": 20.0,
        "by_reason_seconds": {},
        "overtaken_by": 0,
        "order": "fcfs",
        "prompt_tokens": 5,
        "cached_prompt_tokens": 0,
        "why": "(5 prompt tokens, 0 cached; order fcfs) waited 20.00 s (no scan meanwhile); "
        "no later arrival was admitted before it",
    }


def test_the_order_in_force_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    engine = Engine(headway={"ordering": "shortest-prompt-first", "decision_log": str(log)})
    assert engine.headway.report.order == "shortest-prompt-first"
    engine.headway.policies.suspend()
    assert engine.headway.report.order == "fcfs"
    engine.wait(1.0, 5)
    engine.shutdown()
    assert json.loads(log.read_text())["order"] == "fcfs"


def test_malformed_hints_are_counted_by_name() -> None:
    engine = Engine()
    engine.headway.report.hints_ignored(["headway_rank", "headway_tenant", "headway_rank"])
    counters = engine.headway.metrics.counters
    assert counters["hints_ignored", 'hint="headway_rank"'] == 2
    assert counters["hints_ignored", 'hint="headway_tenant"'] == 1
