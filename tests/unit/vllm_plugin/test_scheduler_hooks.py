"""What happens around each of vLLM's calls: once a step, once a second, at a request's end, between two turns."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.vllm_stub import Status, StubEngine, StubRequest


class Engine(PolicyScheduling, StubEngine):
    """Two seats, and a clock of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.now = 0.0
        self.headway.clock = lambda: self.now

    def step(self, seconds: float = 0.0) -> None:
        output = self.schedule()
        self.now += seconds
        self.update_from_output(output)

    def come(self, *names: str, prompt: int = 10, output: int = 1_000) -> list[StubRequest]:
        some = [StubRequest(name, prompt, output) for name in names]
        for request in some:
            self.add_request(request)
        return some


def hears(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, float]]:
    """What the policies are told from now on: what, of whom, when."""
    told: list[tuple[str, str, float]] = []
    for name in ("arrive", "first_token", "complete", "cancel", "preempted"):
        tell = getattr(engine.headway.policies, name)

        def heard(view: Any, now: float, name: str = name, tell: Any = tell) -> None:
            told.append((name, view.id, now))
            tell(view, now)

        monkeypatch.setattr(engine.headway.policies, name, heard)
    return told


# metrics


def test_metrics_are_brought_up_to_date_every_so_often_and_at_once_when_nothing_is_left() -> None:
    engine = Engine(headway={"metrics_seconds": 2})
    gauges = engine.headway.metrics.gauges

    def fresh(now: float) -> bool:
        gauges.pop(("lanes", ""), None)
        engine.now = now
        engine.step()
        return ("lanes", "") in gauges

    engine.come("a", output=6)
    assert [fresh(now) for now in (0.0, 1.9, 2.0, 3.9, 4.1)] == [True, False, True, False, True]
    assert not fresh(4.2), "the last has just ended, after the step was counted"
    assert [fresh(now) for now in (4.3, 4.4)] == [True, True], "an idle engine says so at once"


def test_what_is_published() -> None:
    engine = Engine(headway={"ordering": "fcfs"}, caching=True)
    blocked = StubRequest("blocked", 10)
    blocked.status = Status.WAITING_FOR_REMOTE_KVS
    engine.add_request(blocked)
    for request in engine.come("a", "b", "c", "d", "e"):
        request.block_hashes = ["h"]
    engine.cached["h"] = 4
    warm = StubRequest("warm", 10)
    warm.block_hashes = ["h"]
    engine.add_request(warm)
    engine.step()
    engine.headway.publish()
    metrics = engine.headway.metrics
    assert metrics.gauges["waiting", 'state="queued"'] == 4
    assert metrics.gauges["waiting", 'state="parked"'] == 1
    assert metrics.gauges["lanes", ""] == 1
    assert metrics.gauges["stepped_back", ""] == 0
    assert metrics.counters["backfilled", ""] == 0
    assert metrics.counters["steps", ""] == 1
    assert metrics.counters["prefix_hit_tokens", ""] == 4 * metrics.counters["prefix_lookups", ""] > 0
    for kind in ("ordering", "admission", "preemption", "prediction"):
        assert metrics.counters["policy_seconds", f'kind="{kind}"'] == engine.headway.timer.total_seconds[kind]
    engine.headway.policies.suspend()
    engine.headway.publish()
    assert metrics.gauges["stepped_back", ""] == 1
    cold = Engine(headway={"prefix_hits": False}, caching=True)
    cold.headway.publish()
    assert ("prefix_lookups", "") not in cold.headway.metrics.counters


def test_lanes_are_those_of_the_last_choice_while_the_policies_rule() -> None:
    engine = Engine(headway={"ordering": "highest-response-ratio"})
    for name, prompt in (("a", 10), ("b", 1_000), ("c", 100_000)):
        engine.come(name, prompt=prompt)
    engine.max_num_active_reqs = 1
    engine.now = 0.5
    engine.schedule()
    assert engine.headway.policies.lanes == 2, "of three one was emptied, and the scan looked for another"
    engine.headway.policies.suspend()
    assert engine.headway.policies.lanes == 1


def test_the_seconds_of_a_step_are_those_spent_in_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand-made timer: a lookup takes 1 s, judging the waits 2 s, saving 4 s, and vLLM's own work does not count."""
    timer = SimpleNamespace(now=100.0)

    def spend(seconds: float, answer: Any = None) -> Any:
        timer.now += seconds
        return answer

    monkeypatch.setattr(time, "perf_counter", lambda: timer.now)

    class Slow(StubEngine):
        def schedule(self) -> SimpleNamespace:
            spend(64.0)
            return super().schedule()

    class Timed(PolicyScheduling, Slow):
        pass

    engine = Timed(headway={"ordering": "fcfs"}, caching=True)
    engine.headway.clock = lambda: 0.0
    request = StubRequest("a", 10)
    request.block_hashes = ["h"]
    engine.cached["h"] = 1
    engine.add_request(request)
    engine.kv_cache_manager.coordinator.find_longest_cache_hit = lambda hashes, most: spend(1.0, (((),), 1))
    engine.headway.clock = lambda: 5.0  # what was looked up at arrival is old
    monkeypatch.setattr(engine.headway.harm, "check", lambda now: spend(2.0))
    monkeypatch.setattr(engine.headway.learned, "stepped", lambda now: spend(4.0))
    engine.schedule()
    decisions = engine.headway.metrics.decisions
    assert (decisions.count, decisions.sum) == (1, 7.0)
    engine.schedule()  # nothing waits, and the second is not over
    assert (decisions.count, decisions.sum) == (2, 11.0)


def test_waits_are_judged_once_a_second() -> None:
    engine = Engine()
    gauges = engine.headway.metrics.gauges
    judged = []
    for now in (10.0, 10.9, 11.0, 11.5, 12.5, 13.4):
        gauges.pop(("p99_wait_seconds", 'of="ours"'), None)
        engine.now = now
        engine.step()
        judged.append(("p99_wait_seconds", 'of="ours"') in gauges)
    assert judged == [True, False, True, False, True, False]


def test_policies_that_are_slow_in_every_step_are_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step a policy is asked twice, and takes three quarters of its budget each time."""
    spent = SimpleNamespace(seconds=0.0)
    for name in ("perf_counter", "thread_time"):
        monkeypatch.setattr(time, name, lambda: spent.seconds)
    engine = Engine(headway={"ordering": "fcfs", "admission": "reserve-max", "guard": {"budget_ms": 1000}})
    engine.come("runs")
    engine.step()
    steps = 0
    while not engine.headway.policies.disabled:
        for _ in range(2):
            engine.headway.timer.ask("admission", True, lambda: setattr(spent, "seconds", spent.seconds + 0.75))
        engine.step()
        steps += 1
        assert steps < 10
    assert steps == 4, "a suspicion and three strikes"


# why a scan ended


def reason(engine: Engine, name: str, tokens: int = 1) -> dict[str, float]:
    """Why a request waits during the second after a scan that gave out so many tokens."""
    engine.headway.before_schedule()
    engine.headway.after_schedule({"some": tokens})
    engine.now += 1.0
    facts = engine.headway.explain(name)
    assert facts is not None
    return facts["by_reason_seconds"]  # type: ignore[return-value]


def test_each_reason_for_which_a_scan_ends() -> None:
    engine = Engine(headway={"ordering": "fcfs"})
    engine.max_num_scheduled_tokens = 50
    engine.max_num_active_reqs = 3
    runs = engine.come("runs")
    engine.schedule()
    engine.come("waits")
    expected: dict[str, float] = {}

    def then(why: str, tokens: int = 1) -> None:
        expected[why] = expected.get(why, 0.0) + 1.0
        assert reason(engine, "waits", tokens) == pytest.approx(expected)

    engine.now += 1.0  # it came while the step ran
    expected["idle"] = 1.0
    then("blocks", tokens=49)
    then("tokens", tokens=50)
    engine.max_num_active_reqs = 1
    then("seats", tokens=50)
    engine.headway.before_schedule()
    engine.headway.before_preempt(runs[0])  # type: ignore[arg-type]
    engine.headway.after_schedule({"some": 1})
    engine.now += 1.0
    expected["preempting"] = 1.0
    then("seats")
    engine._pause_state = SimpleNamespace(name="PAUSED_ALL")  # type: ignore[attr-defined]
    then("paused")


def test_a_scan_that_admission_ended_is_counted_and_named() -> None:
    class Tight(Engine):
        seats, blocks = 8, 60

    engine = Tight(headway={"ordering": "fcfs", "admission": "reserve-max"})
    engine.come("runs")
    engine.schedule()
    engine.come("waits")
    for held in (1, 2):
        engine.schedule()
        assert engine.headway.metrics.counters["admissions_held", ""] == held
    engine.now += 2.0
    facts = engine.headway.explain("waits")
    assert facts is not None
    assert facts["by_reason_seconds"] == {"held": 2.0}
    engine.finish_requests(["runs"], Status.FINISHED_ABORTED)
    engine.schedule()
    assert engine.headway.metrics.counters["admissions_held", ""] == 2


# the ends of requests


def test_how_a_request_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(headway={"ordering": "fcfs"})
    told = hears(engine, monkeypatch)
    engine.come("done", output=2)
    engine.come("aborted", "waits")
    engine.now = 1.0
    engine.step(0.5)
    engine.step(0.5)
    engine.finish_requests(["aborted", "waits"], Status.FINISHED_ABORTED)
    assert told == [
        ("arrive", "done", 0.0),
        ("arrive", "aborted", 0.0),
        ("arrive", "waits", 0.0),
        ("first_token", "done", 1.5),
        ("first_token", "aborted", 1.5),
        ("complete", "done", 2.0),
        ("cancel", "aborted", 2.0),
        ("cancel", "waits", 2.0),
    ]
    engine.headway.finished(StubRequest("stranger", 1))  # type: ignore[arg-type]
    assert len(told) == 8


def test_a_step_without_tokens_is_no_step_of_decoding() -> None:
    engine = Engine()
    engine.come("a")
    engine.step()
    for tokens, steps in ((1, 2), (0, 2), (5, 3)):
        engine.headway.after_update(tokens)
        assert engine.headway.book.batch.decode_steps == steps


def test_a_request_that_ends_between_being_popped_and_the_end_of_the_scan_is_gone() -> None:
    """vLLM may fail a request that it has just taken out of the queue."""
    engine = Engine()
    (request,) = engine.come("fails")
    engine.headway.before_schedule()
    assert engine.waiting.pop_request() is request
    request.status = Status.FINISHED_ABORTED
    engine._free_request(request)
    engine.headway.after_schedule({"some": 0})
    assert (len(engine.waiting), len(engine.headway.book.entries), list(engine.waiting)) == (0, 0, [])
    (again,) = engine.come("fails")
    engine.step()
    assert engine.running == [again], "its id is free"


# sessions, whose next input comes while their blocks stay


def test_a_session_whose_input_comes_late_waits_as_a_request_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(headway={"ordering": "fcfs"})
    told = hears(engine, monkeypatch)
    (session,) = engine.come("s", prompt=20)
    engine.step(1.0)
    engine.now = 2.0
    engine.headway.turn_ended(session)  # type: ignore[arg-type]
    assert told[1:] == [("first_token", "s", 1.0), ("complete", "s", 2.0)]
    assert engine.headway.book.batch.size == 0
    engine.headway.turn_ended(session)  # type: ignore[arg-type] - it runs no longer
    engine.running.remove(session)
    session.status = Status.WAITING
    assert len(engine.waiting) == 0, "it waits for its client, not for a seat"
    session.num_prompt_tokens, session.num_computed_tokens = 50, 21
    engine.now = 7.0
    engine.headway.next_turn(session)  # type: ignore[arg-type]
    assert told[3:] == [("arrive", "s", 7.0)]
    entry = engine.headway.book.entries["s"]
    assert (entry.view.arrived_at, entry.view.cached_prompt_tokens) == (7.0, 21)
    engine.headway.next_turn(session)  # type: ignore[arg-type]
    assert told[4:] == [], "its turn is not over"


def test_a_session_that_ends_between_two_turns_is_not_told_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(headway={"ordering": "fcfs"})
    told = hears(engine, monkeypatch)
    (session,) = engine.come("s", prompt=20)
    engine.step(1.0)
    engine.headway.turn_ended(session)  # type: ignore[arg-type]
    engine.running.remove(session)
    session.status = Status.FINISHED_ABORTED
    engine._free_request(session)
    assert [name for name, _, _ in told] == ["arrive", "first_token", "complete"]
    assert (len(engine.waiting), len(engine.headway.book.entries)) == (0, 0)


def test_strangers_have_no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    told = hears(engine, monkeypatch)
    (waits,) = engine.come("waits")
    for request in (StubRequest("stranger", 1), waits):
        engine.headway.turn_ended(request)  # type: ignore[arg-type]
        engine.headway.next_turn(request)  # type: ignore[arg-type]
    assert told == [("arrive", "waits", 0.0)]
