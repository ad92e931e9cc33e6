"""vLLM's calls of the queue one by one: where a request stands afterwards, who is offered, what policies hear."""

from __future__ import annotations

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

    def step(self) -> None:
        self.update_from_output(self.schedule())

    def come(self, *prompts: int, output: int = 1_000) -> list[StubRequest]:
        some = [StubRequest(f"r{prompt}", prompt, output) for prompt in prompts]
        for request in some:
            self.add_request(request)
        return some

    def names(self) -> list[str]:
        return [request.request_id for request in self.waiting]

    def offered(self) -> list[str]:
        """Who would be admitted now, in turn, if there were room for all."""
        self.headway.before_schedule()
        order = []
        while self.waiting:
            request = self.waiting.peek_request()
            assert self.waiting.pop_request() is request
            request.status = Status.RUNNING
            self.running.append(request)
            order.append(request.request_id)
        self.headway.after_schedule({"some": 1})
        return order


SHORTEST: dict[str, Any] = {"ordering": "shortest-prompt-first"}


def blocked(prompt: int, computed: int = 0) -> StubRequest:
    request = StubRequest(f"r{prompt}", prompt)
    request.status = Status.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    request.structured_output_request = SimpleNamespace(grammar=None)
    request.num_computed_tokens = computed
    return request


def ready(*some: StubRequest) -> None:
    for request in some:
        request.structured_output_request.grammar = object()


# where requests stand


def test_those_who_wait_are_named_by_arrival_wherever_they_stand() -> None:
    engine = Engine(headway=SHORTEST)
    engine.max_num_active_reqs = 1
    parked = blocked(9)
    engine.add_request(parked)
    first, skipped, last = engine.come(30, 10, 20)
    skipped.step_over = True
    engine.schedule()
    assert engine.running == [last]
    assert engine.names() == ["r9", "r30", "r10"]
    assert (len(engine.waiting), engine.headway.queue.parked, engine.headway.queue.queued()) == (3, 2, 1)
    assert [request.request_id for request in engine.headway.queue.parked_requests()] == ["r9", "r10"]
    engine.waiting.remove_requests([last, first, parked])
    assert engine.names() == ["r10"], "a running request is not removed from the queue"
    assert engine.headway.book.batch.size == 1
    engine.waiting.remove_request(first)  # again
    assert (len(engine.waiting), engine.headway.queue.parked) == (1, 1)


def test_a_request_that_was_popped_waits_no_longer_until_it_is_brought_back() -> None:
    engine = Engine(headway=SHORTEST)
    one, two = engine.come(10, 20)
    engine.headway.before_schedule()
    assert engine.waiting.pop_request() is one
    assert len(engine.waiting) == 1
    assert engine.waiting.pop_request() is two
    assert not engine.waiting
    engine.waiting.prepend_requests([two])
    assert engine.names() == ["r20"]
    assert not engine.waiting, "one that vLLM stepped over is not offered again in the same scan"
    engine.headway.after_schedule({"some": 0})
    assert engine.offered() == ["r20"], "in the next it is"
    engine.waiting.add_request(one)
    assert engine.offered() == ["r10"], "vLLM gave it back"


@pytest.mark.parametrize("ordering", ["fcfs", "shortest-prompt-first", "ewsjf", "priced-work"])
def test_equals_of_one_instant_keep_their_order_though_one_could_not_run_for_a_while(ordering: str) -> None:
    engine = Engine(headway={"ordering": ordering})
    parked = blocked(10)
    engine.add_request(parked)
    later = StubRequest("later", 10)
    engine.add_request(later)
    ready(parked)
    assert engine.offered() == ["r10", "later"]
    engine.add_request(blocked(20))
    assert engine.headway.policies._scheduler.queue.online._aside
    engine.finish_requests(["r20"], Status.FINISHED_ABORTED)
    assert not engine.headway.policies._scheduler.queue.online._aside, "nothing is kept of one that ends aside"


def test_whom_a_scan_admitted_last_is_in_the_batch_when_it_ends() -> None:
    engine = Engine(headway=SHORTEST)
    (one,) = engine.come(10)
    engine.headway.before_schedule()
    engine.waiting.pop_request()
    one.status = Status.RUNNING
    engine.running.append(one)
    engine.headway.after_schedule({"some": 1})
    assert engine.headway.book.batch.size == 1


def test_strangers_that_are_put_back_are_taken_in() -> None:
    engine = Engine(headway=SHORTEST)
    engine.headway.before_schedule()
    engine.waiting.prepend_requests([StubRequest("r5", 5), parked := blocked(6)])
    engine.waiting.prepend_request(StubRequest("r7", 7))
    assert engine.names() == ["r5", "r6", "r7"]
    assert engine.headway.queue.parked == 1
    engine.headway.after_schedule({"some": 0})
    ready(parked)
    assert engine.offered() == ["r7", "r5", "r6"], "r7 as one that was preempted"


def test_a_request_that_vllm_keeps_and_then_runs_has_joined_the_batch() -> None:
    engine = Engine(headway=SHORTEST)
    (one,) = engine.come(10)
    engine.headway.before_schedule()
    engine.waiting.pop_request()
    engine.headway.after_schedule({"some": 0})
    assert (len(engine.waiting), engine.headway.book.batch.size) == (0, 0)
    engine.headway.before_schedule()
    one.status = Status.RUNNING
    engine.running.append(one)
    engine.headway.after_schedule({"some": 0})
    assert (len(engine.waiting), engine.headway.book.batch.size) == (0, 1)
    assert engine.headway.book.entries["r10"].admission == 0
    engine.headway.before_schedule()
    engine.headway.after_schedule({"some": 0})
    assert engine.headway.book.entries["r10"].admission == 0, "once"


def test_a_blocked_request_that_has_memory_goes_in_front_when_it_is_ready() -> None:
    """Behind a head that does not fit it would block the memory that the head waits for."""
    engine = Engine(headway=SHORTEST)
    some = [blocked(50, computed=7), blocked(40)]
    for request in some:
        engine.add_request(request)
    engine.come(10, 45)
    ready(*some)
    assert engine.offered() == ["r50", "r10", "r40", "r45"]


def test_those_stepped_over_are_offered_again_sixty_four_a_scan() -> None:
    engine = Engine(headway=SHORTEST)
    some = engine.come(*range(1, 101))
    for request in some:
        request.step_over = True
    engine.schedule()
    assert engine.headway.queue.parked == 100
    engine.headway.before_schedule()
    assert (engine.headway.queue.parked, engine.headway.queue.queued()) == (36, 64)


def test_when_few_are_blocked_each_is_asked_in_each_scan_and_keeps_its_place() -> None:
    engine = Engine(headway={"ordering": "fcfs"})
    some = [blocked(prompt) for prompt in range(1, 257)]
    for request in some:
        engine.add_request(request)
    engine.headway.before_schedule()
    assert [r.request_id for r in engine.headway.queue.parked_requests()] == [r.request_id for r in some]
    engine.headway.after_schedule({"some": 0})
    ready(*some)
    assert len(engine.offered()) == 256


@pytest.mark.parametrize("change", ["comes", "comes back", "is put back", "is removed", "ends"])
def test_what_changes_within_a_scan_shows_at_the_next_look(change: str) -> None:
    """vLLM asks whether there is one before it looks at it, and much may happen in between."""
    engine = Engine(headway=SHORTEST)
    (runs,) = engine.come(1)
    engine.step()
    first, second = engine.come(20, 30)
    engine.headway.before_schedule()
    assert engine.waiting.peek_request() is first
    match change:
        case "comes":
            (expected,) = engine.come(10)
        case "comes back":
            engine.running.remove(runs)
            engine._preempt_request(runs, 0.0)
            expected = runs
        case "is put back":
            engine.waiting.prepend_requests([expected := StubRequest("r5", 5)])
        case "is removed":
            engine.waiting.remove_requests([first])
            expected = second
        case _:
            engine.finish_requests(["r20"], Status.FINISHED_ABORTED)
            expected = second
    assert engine.waiting.peek_request() is expected
    assert engine.waiting.pop_request() is expected


# preemption


def test_a_preempted_request_is_in_front_with_what_it_has_produced(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(headway=SHORTEST)
    (large,) = engine.come(90)
    engine.step()
    engine.come(10)
    large.num_output_tokens = 7
    engine.now = 3.0
    engine.headway.tick()
    engine.running.remove(large)
    engine._preempt_request(large, 0.0)
    entry = engine.headway.book.entries["r90"]
    assert (entry.resumed, entry.view.produced_tokens, engine.headway.book.batch.size) == (True, 7, 0)
    assert engine.offered() == ["r90", "r10"]
    assert not entry.resumed, "it runs again"
    assert entry.admission == 1


# turns of sessions


def told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    heard: list[str] = []
    for name in ("arrive", "complete"):
        tell = getattr(engine.headway.policies, name)

        def note(view: Any, now: float, name: str = name, tell: Any = tell) -> None:
            heard.append(f"{name} {view.id} at {now:g}")
            tell(view, now)

        monkeypatch.setattr(engine.headway.policies, name, note)
    return heard


def test_a_running_session_that_is_added_again_has_ended_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(headway=SHORTEST)
    heard = told(engine, monkeypatch)
    (session,) = engine.come(20)
    engine.step()
    engine.now = 4.0
    engine.running.remove(session)
    session.status = Status.WAITING
    session.num_computed_tokens = 0
    engine.add_request(session)
    assert heard == ["arrive r20 at 0", "complete r20 at 4", "arrive r20 at 4"]
    assert (engine.names(), engine.headway.book.batch.size) == (["r20"], 0)
    engine.come(10)
    assert engine.offered() == ["r10", "r20"], "in order, as a request of its own"


def test_a_running_session_that_waits_for_its_client_is_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(headway=SHORTEST)
    heard = told(engine, monkeypatch)
    (session,) = engine.come(20)
    engine.step()
    engine.now = 4.0
    engine.running.remove(session)
    session.status = Status.WAITING_FOR_REMOTE_KVS
    engine.add_request(session)
    assert heard == ["arrive r20 at 0", "complete r20 at 4"]
    assert (engine.headway.queue.parked, engine.headway.book.batch.size) == (1, 0)
    engine.now = 9.0
    session.status = Status.WAITING
    engine.add_request(session)
    assert heard[2:] == ["arrive r20 at 9"]
    assert (engine.headway.queue.parked, engine.names()) == (0, ["r20"])


def test_a_turn_goes_on_where_the_session_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parked before, parked after; else vLLM keeps it until it asks for it."""
    for status, parked in ((Status.WAITING_FOR_REMOTE_KVS, 1), (Status.WAITING, 0)):
        engine = Engine(headway=SHORTEST)
        (session,) = engine.come(20)
        engine.step()
        engine.headway.turn_ended(session)  # type: ignore[arg-type]
        engine.running.remove(session)
        session.status = status
        if parked:
            engine.waiting.prepend_requests([session])
            assert engine.headway.queue.parked == 1
        engine.headway.next_turn(session)  # type: ignore[arg-type]
        assert engine.headway.queue.parked == parked
        assert engine.headway.book.entries["r20"].turn_over is False
        assert len(engine.headway.policies) == 0
        session.status = Status.WAITING
        if not parked:
            engine.add_request(session)
        assert engine.offered() == ["r20"]


def test_a_session_that_vllm_runs_again_unasked_is_in_the_batch() -> None:
    engine = Engine(headway=SHORTEST)
    (session,) = engine.come(20)
    engine.step()
    engine.headway.turn_ended(session)  # type: ignore[arg-type]
    assert engine.headway.book.batch.size == 0
    engine.headway.before_schedule()
    engine.headway.after_schedule({"some": 1})  # it is in vLLM's running list
    assert engine.headway.book.batch.size == 1


# admission


class Holding(Engine):
    """An admission policy that may hold, whose answers are the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, admission: str = "reserve-max") -> None:
        super().__init__(headway={**SHORTEST, "admission": admission})
        self.asked: list[str] = []
        self.steps = 3
        monkeypatch.setattr(self.headway.policies, "hold_steps", self._answer)

    def _answer(self, request: Any, batch: Any, memory: Any, now: float) -> int:
        self.asked.append(request.id)
        return self.steps

    def asked_in_a_step(self) -> list[str]:
        self.asked.clear()
        self.step()
        return list(self.asked)


def test_a_refusal_stands_for_its_steps_its_head_and_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Holding(monkeypatch)
    engine.come(1)
    assert engine.asked_in_a_step() == [], "nothing runs, so nothing is held"
    engine.step()
    engine.come(50)
    assert [engine.asked_in_a_step() for _ in range(7)] == [["r50"], [], [], ["r50"], [], [], ["r50"]]
    assert engine.headway.metrics.counters["admissions_held", ""] == 7
    engine.come(40)
    assert engine.asked_in_a_step() == ["r40"], "another head"
    assert engine.asked_in_a_step() == []
    engine.steps = 0
    engine.max_num_active_reqs = 3
    engine.come(5)
    assert engine.asked_in_a_step() == ["r5", "r40", "r50"]
    engine.steps = 3
    assert [engine.asked_in_a_step() for _ in range(2)] == [["r50"], []], "once its first tokens are out"
    engine.finish_requests(["r5"], Status.FINISHED_ABORTED)
    assert engine.asked_in_a_step() == ["r50"], "another batch"


def test_no_one_is_held_where_nothing_runs_or_policies_are_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Holding(monkeypatch)
    engine.come(1, 50)
    engine.step()
    assert engine.asked == ["r50"]
    assert engine.headway.queue.held
    engine.headway.policies.suspend()
    engine.step()
    assert [request.request_id for request in engine.running] == ["r1", "r50"]
    assert engine.asked == ["r50"]
    assert not engine.headway.queue.held
    engine.headway.policies.reinstate()
    engine.come(60)
    engine.running.clear()  # vLLM's list is empty, whatever ours says
    assert engine.waiting
    assert engine.asked == ["r50"]


def test_a_refusal_stands_for_one_step_where_others_may_pass_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Holding(monkeypatch, "backfill")
    engine.come(1)
    engine.step()
    engine.step()
    engine.come(50)
    assert [engine.asked_in_a_step() for _ in range(4)] == [["r50"], [], [], ["r50"]], "nobody is there to pass it"
    engine.come(60)
    assert all({"r50", "r60"} == set(engine.asked_in_a_step()) for _ in range(4))
    assert engine.headway.metrics.counters["admissions_held", ""] == 8


def test_where_one_passes_the_head_the_scan_was_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Holding(monkeypatch, "backfill")
    monkeypatch.setattr(engine.headway.policies, "hold_steps", lambda request, *more: 3 * (request.id == "r50"))
    engine.come(1)
    engine.step()
    engine.step()
    engine.come(50, 60)
    engine.headway.before_schedule()
    assert engine.waiting
    assert engine.waiting.peek_request().request_id == "r60"
    assert not engine.headway.queue.held
    assert engine.waiting.pop_request().request_id == "r60"


# the time it takes


def test_the_time_that_vllm_waits_for_the_queue_is_added_up() -> None:
    engine = Engine(headway={"ordering": "fcfs"}, caching=True)
    timer = SimpleNamespace(now=0.0)

    def lookup(hashes: Any, most: int) -> Any:
        timer.now += 1.0
        return ((),), 0

    engine.kv_cache_manager.coordinator.find_longest_cache_hit = lookup
    (request,) = engine.come(10)
    request.block_hashes = ["h"]
    queue = engine.headway.queue
    queue._timer = lambda: timer.now
    for seconds, ask in enumerate((bool, lambda queue: queue.peek_request(), lambda queue: queue.pop_request()), 1):
        engine.now = 10.0 * seconds  # the answer of the cache is old by then
        engine.headway.before_schedule()
        assert queue.seconds == 0.0
        ask(queue)  # type: ignore[operator]
        assert queue.seconds == 1.0
