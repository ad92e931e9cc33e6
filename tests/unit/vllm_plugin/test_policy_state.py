"""What an engine's policies learn: kept over restarts, and tuned in a thread while requests are served."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from headway.domain.event import Arrived
from headway.domain.request import Request
from headway.tuning.tuning_settings import TuningSettings
from headway.vllm_plugin.config import PluginConfig
from headway.vllm_plugin.policy_state import PolicyState
from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.vllm_stub import StubEngine, StubRequest


class Engine(PolicyScheduling, StubEngine):
    """A stub whose clock is the test's."""

    seats = 4

    def serve(self, count: int, start: float = 0.0, prefix: str = "r") -> float:
        """So many requests of two sizes, one a second; the time at the end."""
        now = [start]
        self.headway.clock = lambda: now[0]
        for index in range(count):
            self.add_request(StubRequest(f"{prefix}{index}", 900 if index % 5 == 0 else 20 + index % 7, 2))
            output = self.schedule()
            now[0] += 1.0
            self.update_from_output(output)
        while self.requests:
            output = self.schedule()
            now[0] += 1.0
            self.update_from_output(output)
        return now[0]


def learned(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text())["learned"])


def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    config = {"ordering": "ewsjf", "prediction": "histogram", "state_file": str(file)}
    first = Engine(headway=config)
    first.serve(300)
    assert first.headway.learned._writer is not None, "written once a minute"
    first.shutdown()
    before = learned(file)
    assert len(before["ordering"]["state"]["lanes"]) > 1
    second = Engine(headway=config)
    second.shutdown()
    assert learned(file) == before, "taken back, and written again as it was"


@pytest.mark.parametrize(
    ("state", "said"),
    [(lambda: 1 / 0, "ewsjf cannot report its"), (object, "cannot be written")],
)
def test_a_policy_that_fails_to_say_what_it_learned_stops_no_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, state: Any, said: str
) -> None:
    file = tmp_path / "state.json"
    engine = Engine(headway={"ordering": "ewsjf", "state_file": str(file)})
    engine.headway.learned._learned.policies.ordering.state = state  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING):
        engine.serve(150)
        engine.shutdown()
    assert len(engine.admitted) == 150
    assert said in caplog.text
    assert not file.exists()


def test_another_ordering_starts_afresh_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "state.json"
    engine = Engine(headway={"ordering": "ewsjf", "state_file": str(file)})
    engine.serve(300)
    engine.shutdown()
    with caplog.at_level(logging.WARNING):
        Engine(headway={"ordering": "ewsjf-published", "state_file": str(file)}).shutdown()
    assert "its ordering is 'ewsjf', not 'ewsjf-published', which starts afresh" in caplog.text
    file.write_text("{")
    with caplog.at_level(logging.WARNING):
        Engine(headway={"ordering": "ewsjf", "state_file": str(file)}).shutdown()
    assert "it cannot be read" in caplog.text
    assert "starting afresh" in caplog.text
    assert learned(file)["ordering"]["name"] == "ewsjf"


def test_several_engines_have_files_of_their_own(tmp_path: Path) -> None:
    class Ranked(StubEngine):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.vllm_config.parallel_config.data_parallel_index = 1

    class Second(PolicyScheduling, Ranked):
        pass

    names = {"state_file": "state.json", "decision_log": "log.jsonl"}
    Second(headway={"ordering": "ewsjf", **{key: str(tmp_path / name) for key, name in names.items()}}).shutdown()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log-1.jsonl", "state-1.json"]


REFUSED = {
    "nothing learns": (
        {"ordering": "fcfs", "prediction": "declared-max", "state_file": "x.json"},
        "headway: state_file: neither fcfs nor declared-max learns anything to keep: leave state_file out",
    ),
    "no folder": (
        {"ordering": "ewsjf", "state_file": "/not/there/x.json"},
        "headway: state_file: there is no folder '/not/there'; make it first",
    ),
    "not tunable": (
        {"ordering": "priority", "live_tuning": {}},
        "headway: live_tuning: priority has no options that can be tuned while requests wait; or leave live_tuning out",
    ),
    "inside another": (
        {"ordering": "fair-share/smallest-volume-first", "live_tuning": {}},
        "fair-share/smallest-volume-first has no options that can be tuned while requests wait",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_cannot_learn_is_refused_in_one_sentence(mistake: str) -> None:
    config, sentence = REFUSED[mistake]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Engine(headway=config)


def until(reached: Any, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.01)


def test_the_tuner_tries_values_and_the_engines_thread_sets_them(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    file = tmp_path / "state.json"
    config = {
        "ordering": "ewsjf",
        "live_tuning": {"window_seconds": 20, "trials": 3, "ttft_seconds": 30},
        "state_file": str(file),
    }
    engine = Engine(headway=config)
    thread = engine.headway.learned._tuner
    assert thread is not None
    set_values: list[dict[str, float]] = []
    plain = engine.headway.policies.retune
    engine.headway.policies.retune = lambda values: (set_values.append(dict(values)), plain(values))[1]  # type: ignore
    now = 0.0
    for turn in range(6):
        now = engine.serve(25, now, prefix=f"t{turn}-")
        until(thread._events.empty)  # what a busy machine may do late
    until(lambda: len(thread._tuner.trials) >= 3)
    assert len({tuple(sorted(values.items())) for values in set_values}) >= 2, "several sets were tried"
    assert not engine.headway.policies.disabled
    engine.shutdown()
    assert not thread._thread.is_alive()
    best = learned(file)["tuned"]
    assert best == pytest.approx(dict(thread.best()))
    again = Engine(headway=config)
    again.shutdown()
    assert learned(file)["tuned"] == pytest.approx(best), "the search begins with what was best"


def test_a_tuner_that_fails_stops_and_the_engine_does_not_wait_for_it(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("optuna")
    engine = Engine(headway={"ordering": "ewsjf", "live_tuning": {}})
    thread = engine.headway.learned._tuner
    assert thread is not None
    with caplog.at_level(logging.ERROR):
        thread.observe(Arrived(Request("a", 0.0, 5), "now"))  # type: ignore[arg-type]
        until(lambda: not thread._thread.is_alive())
    assert "the live tuner failed; the ordering keeps the values it has" in caplog.text
    engine.serve(20)
    assert not engine.headway.policies.disabled
    engine.shutdown()


def state(file: Path | None, **settings: Any) -> PolicyState:
    config = PluginConfig(**{"ordering": "ewsjf", **settings})
    return PolicyState(config, config.policies(), file)


def test_the_file_is_written_once_a_minute_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    kept = state(file)
    times: list[float] = []

    def at(now: float) -> int:
        """So many writes there have been after a step at this time."""
        kept.stepped(now)
        if kept._writer is not None:
            kept._writer.join()
        return len(times)

    plain = kept._write
    monkeypatch.setattr(kept, "_write", lambda *where: (times.append(1), plain(*where)))
    assert [at(now) for now in (1_000.0, 1_059.9, 1_060.0, 1_119.9, 1_120.1)] == [0, 0, 1, 1, 2]
    assert file.exists()
    kept.close()
    assert len(times) == 3


def test_a_slow_disk_gets_one_write_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = state(tmp_path / "state.json")
    go_on = threading.Event()
    begun: list[float] = []
    monkeypatch.setattr(kept, "_write", lambda *where: (begun.append(1), go_on.wait(60)))
    for now in (0.0, 60.0, 120.0, 180.0):
        kept.stepped(now)
    until(lambda: bool(begun))
    assert len(begun) == 1
    go_on.set()
    assert kept._writer is not None
    kept._writer.join()
    kept.stepped(180.5)
    until(lambda: len(begun) == 2)
    kept.close()


def test_the_end_waits_for_a_write_that_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = state(tmp_path / "state.json")
    go_on, order = threading.Event(), list[str]()

    def write(*where: object) -> None:
        by_the_writer = threading.current_thread() is kept._writer
        if by_the_writer:
            go_on.wait(60)
        order.append("writer" if by_the_writer else "end")

    monkeypatch.setattr(kept, "_write", write)
    kept.stepped(0.0)
    kept.stepped(60.0)
    threading.Timer(0.05, go_on.set).start()
    kept.close()
    assert order == ["writer", "end"], "or the older state would be the last to be written"


def test_without_a_file_or_a_tuner_nothing_is_done() -> None:
    kept = state(None)
    assert kept.listeners == ()
    assert kept.wanted() is None
    for now in (0.0, 100.0):
        kept.stepped(now)
    assert kept._writer is None
    kept.close()


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "folder").mkdir()
    kept = state(tmp_path / "folder" / "state.json")
    (tmp_path / "folder").rmdir()
    with caplog.at_level(logging.WARNING, "vllm.headway"):
        kept.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("headway: ")


def test_values_offered_are_taken_once_and_the_latest_counts() -> None:
    pytest.importorskip("optuna")
    kept = state(None, live_tuning=TuningSettings(on=True))
    (thread,) = kept.listeners
    assert kept.wanted() is None
    for value in (1.0, 2.0):
        thread.retune({"b_u": value})
    assert kept.wanted() == {"b_u": 2.0}
    assert kept.wanted() is None
    kept.close()
    assert not thread._thread.is_alive()


def test_each_trial_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("optuna")
    kept = state(None, live_tuning=TuningSettings(on=True))
    (thread,) = kept.listeners

    class Tuner:
        """One trial with every event."""

        def __init__(self) -> None:
            self.trials: list[str] = []

        def observe(self, event: object) -> None:
            self.trials.append(f"trial {len(self.trials)}")

        def best(self) -> dict[str, float]:
            return {"b_u": float(len(self.trials))}

    thread._tuner = Tuner()  # type: ignore[assignment]
    with caplog.at_level(logging.INFO, "vllm.headway"):
        for _ in range(3):
            thread.observe(Arrived(Request("a", 0.0, 5), 0.0))
        kept.close()
    assert caplog.messages == [f"headway: tuning: trial {number}" for number in range(3)]
    assert thread.best() == {"b_u": 3.0}
