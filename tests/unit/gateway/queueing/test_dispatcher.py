"""The dispatcher on a clock of our own, without a socket: what is sent where, what is refused why, who hears of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.event import Cancelled
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestView
from headway.gateway.openai.answer_readers import StreamReader
from headway.gateway.openai.error_responses import Reason
from headway.gateway.openai.usage import COMPLETION_USAGE
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.refusals import RetryDelays
from headway.gateway.queueing.request_state import (
    PromptSize,
    QueueKey,
    RequestStage,
)
from headway.gateway.replicas.load_report import LoadReport
from headway.gateway.replicas.replica_state import Health
from headway.gateway.settings import (
    ModelSettings,
    PolicySettings,
    QueueSettings,
)
from headway.gateway.wire.messages import HttpRequest
from headway.policies.admission.overflow_probability import OverflowProbability
from headway.testing.examples import examples
from tests.support.dispatcher_bench import Bench, Client
from tests.support.gateway_requests import gateway_request


class OneAtATime:
    """An admission policy that lets a request join a batch only when the test says so; outside the catalogue."""

    allowed = False
    asked: tuple[int, int] | None = None

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        OneAtATime.asked = batch.size, memory.blocks_total
        return 0 if OneAtATime.allowed or not batch.size else 1


def with_admission(bench: Bench) -> None:
    queue = bench.queue
    queue.scheduler._policies = replace(queue.scheduler._policies, admission=OneAtATime())
    queue._may_refuse = True


# admission


def test_the_admission_policy_holds_the_head_back_from_a_replica_with_room() -> None:
    bench = Bench(seats=4)
    first = bench.arrive()
    assert first.sent_to == ["r0"]
    OneAtATime.allowed = False
    with_admission(bench)
    second = bench.arrive()
    assert second.stage is RequestStage.QUEUED
    assert OneAtATime.asked == (1, 1 << 40)
    OneAtATime.allowed = True
    bench.dispatcher.pump()
    assert second.sent_to == ["r0"]


def test_an_idle_replica_is_not_asked_for_admission() -> None:
    bench = Bench(("r0", "r1"), seats=4)
    bench.arrive()
    OneAtATime.allowed = False
    with_admission(bench)
    assert bench.arrive().sent_to == ["r1"]
    assert bench.arrive().stage is RequestStage.QUEUED


def test_a_policy_of_the_catalogue_decides_by_the_replicas_memory() -> None:
    """640 tokens of memory: beside a request of 400 and its 10 another one of 400 does not fit, one of 200 does."""
    policies = PolicySettings(ordering="fcfs", admission="reserve-max", prediction="declared-max")
    bench = Bench(seats=8, policies=policies)
    bench.replicas[0].ledger.kv_tokens_max = 640
    bench.arrive(400)
    large = bench.arrive(400)
    assert large.stage is RequestStage.QUEUED
    bench.dispatcher.end(large.request, Outcome.CANCELLED)
    assert bench.arrive(200).sent_to == ["r0"]


# deadlines


def slow(bench: Bench) -> None:
    """The queue's forecast: a tenth of a weighted token leaves a second."""
    bench.queue.forecast._work, bench.queue.forecast._seconds = 1.0, 10.0


def test_a_deadline_that_the_forecast_misses_is_refused_at_once() -> None:
    bench = Bench()
    bench.arrive()
    bench.arrive()
    slow(bench)
    tight = bench.arrive(deadline=bench.now + 5.0)
    assert tight.reason == Reason.DEADLINE_UNMEETABLE
    assert tight.refusal is not None
    assert tight.refusal.status == 429
    assert "is wanted within 5.00 s and is expected after about" in tight.refusal.message
    assert tight.refusal.retry_seconds == pytest.approx(120, rel=0.2)
    patient = bench.arrive(deadline=bench.now + 1e6)
    assert patient.stage is RequestStage.QUEUED


def test_a_request_that_goes_at_once_meets_any_deadline() -> None:
    bench = Bench(seats=2)
    bench.arrive()
    slow(bench)
    bench.queue.waiting_work = 1e6
    assert bench.arrive(deadline=bench.now + 0.1).sent_to == ["r0"]


def test_a_deadline_that_passes_in_the_queue_is_refused_at_the_next_sweep() -> None:
    bench = Bench()
    bench.arrive()
    late = bench.arrive(deadline=bench.now + 5.0)
    bench.now += 4.9
    bench.dispatcher.sweep(bench.now)
    assert late.stage is RequestStage.QUEUED
    bench.now += 0.2
    bench.dispatcher.sweep(bench.now)
    assert late.reason == Reason.DEADLINE_UNMEETABLE
    assert late.refusal is not None
    assert "within 5.00 s, which have passed" in late.refusal.message


# learning


def test_a_whole_answer_teaches_its_length() -> None:
    bench = Bench()
    bench.answer(bench.arrive(), tokens=7)
    assert bench.learned() == [7]


@pytest.mark.parametrize(("status", "whole", "tokens"), [(200, False, 7), (500, True, 7), (200, True, 0)])
def test_an_answer_that_failed_teaches_no_length(status: int, whole: bool, tokens: int) -> None:
    bench = Bench()
    client = bench.arrive()
    bench.answer(client, tokens, status=status, whole=whole)
    assert bench.learned() == []
    assert [type(event) for event in bench.heard.events][-1] is Cancelled
    assert bench.dispatcher.counts.inside == 0


def test_tokens_are_those_of_one_sequence() -> None:
    bench = Bench()
    bench.answer(bench.arrive(body={"n": 4}), tokens=10)
    assert bench.learned() == [3]  # rounded up


# the way in and out


def test_a_full_replica_lets_the_others_wait_and_the_next_goes_when_it_answers() -> None:
    bench = Bench()
    first, second, third = bench.arrive(), bench.arrive(), bench.arrive()
    assert [client.stage for client in (first, second, third)] == [
        RequestStage.SENT,
        RequestStage.QUEUED,
        RequestStage.QUEUED,
    ]
    assert (first.request.queued.has_waited, second.request.queued.has_waited) == (False, True)
    bench.now += 3.0
    bench.answer(first)
    assert (second.sent_to, third.sent_to) == (["r0"], [])
    assert second.request.queued.wait_explanation.startswith("waited 3.00 s")
    assert bench.heard.dispatched_at == [(1, 100.0), (2, 103.0)]
    assert bench.heard.ends == [(1, Outcome.COMPLETED, None)]
    assert [second.request.queued.rank, second.request.queued.tries] == [2, 1]


def test_a_client_that_leaves_the_queue_is_gone() -> None:
    bench = Bench()
    first, second, third = bench.arrive(), bench.arrive(), bench.arrive()
    bench.dispatcher.end(second.request, Outcome.CANCELLED)
    assert len(bench.queue) == 1
    bench.answer(first)
    assert (second.sent_to, third.sent_to) == ([], ["r0"])
    assert bench.dispatcher.counts.is_conserved()
    with pytest.raises(ValueError, match="ended"):
        bench.dispatcher.end(second.request, Outcome.CANCELLED)


def test_an_unknown_model_is_refused_and_looked_for() -> None:
    bench = Bench(models=("a",))
    unknown = bench.arrive(model="b")
    assert unknown.refusal is not None
    assert (unknown.refusal.status, unknown.reason) == (404, Reason.UNKNOWN_MODEL)
    assert bench.asked_for_models == 1
    assert bench.arrive(model="a").sent_to == ["r0"]


def test_without_a_healthy_replica_a_request_is_refused() -> None:
    bench = Bench(queue=QueueSettings(no_replica_max_requests=0))
    bench.replicas[0].state.health = Health.EJECTED
    bench.replicas[0].state.probe_at = bench.now + 2.0
    refused = bench.arrive()
    assert refused.refusal is not None
    assert (refused.refusal.status, refused.reason) == (503, Reason.NO_REPLICA)
    assert refused.refusal.retry_seconds == pytest.approx(2.0, rel=0.5)
    assert "0 requests wait for one already (`queue.no_replica_max_requests`)" in refused.refusal.message
    bench.replicas[0].state.health = Health.UNKNOWN
    assert bench.arrive().stage is RequestStage.QUEUED, "not probed yet: believed healthy, but not sent to"


def test_requests_that_no_replica_serves_any_more_wait_for_the_grace() -> None:
    bench = Bench()
    bench.arrive()
    waiting = bench.arrive()
    bench.replicas[0].state.health = Health.EJECTED
    bench.dispatcher.sweep(bench.now)
    bench.now += 29.0
    bench.dispatcher.sweep(bench.now)
    assert waiting.stage is RequestStage.QUEUED
    bench.now += 1.5
    bench.dispatcher.sweep(bench.now)
    assert waiting.reason == Reason.NO_REPLICA
    assert waiting.refusal is not None
    assert "for 30 s" in waiting.refusal.message


def test_offline_requests_that_may_wait_for_hours_are_looked_at_one_at_a_step() -> None:
    bench = Bench(queue=QueueSettings(timeout_seconds=60.0))
    bench.arrive()
    waiting = [bench.arrive(request_class="offline") for _ in range(20)]
    bench.now += 61.0
    steps = sum(1 for _ in bench.dispatcher.time_limits.refuse_overdue(bench.now))
    assert steps >= len(waiting), "between two of them all else has its turn"
    assert {one.stage for one in waiting} == {RequestStage.QUEUED}


def test_a_request_that_waits_too_long_is_refused() -> None:
    bench = Bench(queue=QueueSettings(timeout_seconds=60.0))
    sent = bench.arrive()
    waiting = bench.arrive()
    bench.now += 59.9
    later = bench.arrive()
    bench.dispatcher.sweep(bench.now)
    assert waiting.stage is RequestStage.QUEUED
    bench.now += 0.2
    bench.dispatcher.sweep(bench.now)
    assert waiting.reason == Reason.QUEUE_TIMEOUT
    assert waiting.refusal is not None
    assert waiting.refusal.message == "the request waited in the queue for 60 s, the limit `queue.timeout_seconds`"
    assert sent.stage is RequestStage.SENT
    assert later.stage is RequestStage.QUEUED


@pytest.mark.parametrize(
    ("bounds", "reason", "words"),
    [
        ({"max_requests": 2}, Reason.QUEUE_FULL, "2 requests"),
        ({"max_tokens": 150}, Reason.QUEUE_FULL, "150 prompt tokens"),
        ({"max_bytes": 80}, Reason.QUEUE_FULL, "80 bytes"),
        ({"tenant_max_requests": 2}, Reason.TENANT_QUEUE_FULL, "2 requests"),
        ({"tenant_max_tokens": 150}, Reason.TENANT_QUEUE_FULL, "150 prompt tokens"),
        ({"tenant_max_bytes": 80}, Reason.TENANT_QUEUE_FULL, "80 bytes"),
    ],
)
def test_each_bound_of_the_queue(bounds: dict[str, int], reason: Reason, words: str) -> None:
    """One is sent; two of 50 and 60 tokens wait; a third of 50 is one too many by whichever bound."""
    bench = Bench(queue=QueueSettings(**bounds))  # type: ignore[arg-type]
    bench.arrive()
    waiting = [bench.arrive(50), bench.arrive(60)]
    assert [client.stage for client in waiting] == [RequestStage.QUEUED] * 2
    refused = bench.arrive(50)
    assert refused.refusal is not None
    assert (refused.refusal.status, refused.reason) == (429, reason)
    assert words in refused.refusal.message
    other = bench.arrive(50, payer="other")
    assert (other.reason == "") is (reason is Reason.TENANT_QUEUE_FULL)
    bench.dispatcher.end(waiting[0].request, Outcome.CANCELLED)
    assert (bench.arrive(40).reason == "") or reason is Reason.QUEUE_FULL


def test_the_same_amount_as_the_bound_fits() -> None:
    bench = Bench(queue=QueueSettings(max_tokens=100, max_requests=2, tenant_max_tokens=100, tenant_max_requests=2))
    bench.arrive()
    assert [bench.arrive(50).stage for _ in range(2)] == [RequestStage.QUEUED] * 2


def test_a_size_counted_meanwhile_replaces_the_estimate() -> None:
    bench = Bench()
    bench.arrive()
    client = Client(bench, gateway_request(9, {"prompt": "x"}, prompt_tokens=50))
    assert bench.dispatcher.announce(client)
    bench.dispatcher.arrive(client, PromptSize(70, 20, None))
    assert bench.queue.waiting.tokens == 70
    assert client.request.queued.cached_prompt_tokens == 20


def test_a_client_that_left_before_it_was_queued_is_let_be() -> None:
    bench = Bench()
    client = Client(bench, gateway_request(1, {"prompt": "x"}))
    bench.dispatcher.announce(client)
    bench.dispatcher.end(client.request, Outcome.CANCELLED)
    bench.dispatcher.arrive(client)
    assert client.sent_to == []
    assert not bench.dispatcher.queues


# retries


def test_a_request_taken_back_goes_first_and_avoids_the_replica_that_failed() -> None:
    bench = Bench(("r0", "r1"))
    first, second = bench.arrive(), bench.arrive()
    third = bench.arrive()
    assert (first.sent_to, second.sent_to, third.sent_to) == (["r0"], ["r1"], [])
    assert bench.dispatcher.may_try_again(first.request, answered=True)
    bench.dispatcher.take_back(first.request)
    assert third.sent_to == [], "the one taken back goes first, and waits for the other replica"
    assert bench.dispatcher.counts.retried == 1
    bench.answer(second)
    assert first.sent_to == ["r0", "r1"]
    assert first.request.queued.tries == 2
    assert third.sent_to == ["r0"]


def test_a_request_that_only_the_failed_replica_could_serve_is_refused() -> None:
    bench = Bench(("r0", "r1"))
    first = bench.arrive()
    bench.replicas[1].state.health = Health.EJECTED
    assert not bench.dispatcher.may_try_again(first.request, answered=True)
    bench.dispatcher.take_back(first.request)
    assert first.reason == Reason.NO_REPLICA
    assert first.refusal is not None
    assert "replica r0 failed, and no other is up" in first.refusal.message
    assert bench.arrive().sent_to == ["r0"]


def test_what_breaks_at_a_dispatch_ends_that_request_alone() -> None:
    bench = Bench(("breaks",))
    client = bench.arrive()
    assert client.broken
    assert client.stage is RequestStage.ENDED
    assert bench.heard.ends == [(1, Outcome.FAILED, Reason.INTERNAL_ERROR)]
    assert bench.replicas[0].ledger.requests == 0


# as time passes


def test_a_sweep_looks_at_every_request_sent_and_books_what_it_produced() -> None:
    bench = Bench(seats=2)
    first = bench.arrive(body={"stream": True})
    waiting = [bench.arrive(), bench.arrive()][1]
    bench.dispatcher.sweep(bench.now)
    assert first.looked_at == [bench.now]
    assert waiting.looked_at == []


def test_a_prompt_counts_as_computed_after_a_second_without_a_stream() -> None:
    bench = Bench(seats=2)
    bench.arrive(body={"stream": False})
    bench.arrive(70, body={"stream": True})
    ledger = bench.replicas[0].ledger
    assert ledger.prefill_tokens == 120
    bench.now += 0.9
    bench.dispatcher.sweep(bench.now)
    assert ledger.prefill_tokens == 120
    bench.now += 0.2
    bench.dispatcher.sweep(bench.now)
    assert ledger.prefill_tokens == 70


def test_an_idle_queue_is_forgotten_and_one_with_a_request_at_a_replica_is_not() -> None:
    bench = Bench(queue=QueueSettings(idle_seconds=10.0), models=("a", "b"))
    sent, done = bench.arrive(model="a"), bench.arrive(model="b")
    bench.dispatcher.end(done.request, Outcome.CANCELLED)
    bench.now += 9.9
    bench.dispatcher.sweep(bench.now)
    assert len(bench.dispatcher.queues) == 2
    bench.now += 0.2
    bench.dispatcher.sweep(bench.now)
    assert [key.model for key in bench.dispatcher.queues] == ["a"]
    assert bench.forgotten == [QueueKey("b", "generation")]
    bench.answer(sent)
    bench.dispatcher.sweep(bench.now)
    assert not bench.dispatcher.queues


def test_at_the_end_all_are_cut_off_and_none_is_taken_any_more() -> None:
    bench = Bench()
    sent, waiting = bench.arrive(), bench.arrive()
    bench.dispatcher.end_all()
    assert [client.reason for client in (sent, waiting)] == [Reason.DRAINING] * 2
    refused = bench.arrive()
    assert refused.refusal is not None
    assert (refused.refusal.status, refused.reason) == (503, Reason.DRAINING)
    assert bench.dispatcher.counts.is_conserved()


def test_other_policies_take_over_the_waiting_requests() -> None:
    bench = Bench()
    first = bench.arrive()
    long, short = bench.arrive(900), bench.arrive(10)
    settings = replace(bench.settings, policies=PolicySettings(ordering="shortest-prompt-first"))
    bench.dispatcher.replace(settings, bench.replicas, bench.now)
    bench.answer(first)
    assert (long.sent_to, short.sent_to) == ([], ["r0"])


def test_two_queues_take_turns_at_one_seat() -> None:
    bench = Bench(models=("a", "b"))
    sent = bench.arrive(model="a")
    waiting = [bench.arrive(model="a"), bench.arrive(model="a"), bench.arrive(model="b"), bench.arrive(model="b")]
    order = []
    for _ in range(4):
        bench.answer(sent)
        sent = next(client for client in waiting if client.stage is RequestStage.SENT)
        order.append(sent.request.arrived.model)
    assert order in (["a", "b", "a", "b"], ["b", "a", "b", "a"])


def test_a_stored_object_goes_to_the_replica_that_made_it() -> None:
    bench = Bench(("r0", "r1"), seats=4)
    maker = bench.arrive()
    home = maker.sent_to[0]
    bench.dispatcher.object_made(maker.request, b'{"id":"resp_1","object":"response"')
    others = [bench.arrive(stored_object="resp_1") for _ in range(3)]
    assert [client.sent_to for client in others] == [[home]] * 3


def test_the_wait_is_forecast_from_the_work_that_leaves() -> None:
    bench = Bench()
    sent = bench.arrive()
    bench.arrive()
    for _ in range(8):
        bench.now += 1.0
        bench.arrive()
        bench.answer(sent)
        sent = next(relay for relay in bench.dispatcher.relays.values() if relay.request.stage is RequestStage.SENT)  # type: ignore[assignment]
    last = bench.arrive()
    work = last.request.queued.work
    assert last.request.queued.drain_seconds == pytest.approx(len(bench.queue) - 1, rel=0.3), "one a second leaves"
    assert work > 50
    assert bench.queue.waiting_work == pytest.approx(work * len(bench.queue), rel=0.3)
    assert math.isfinite(last.request.queued.predicted_wait_seconds or math.nan)


# what policies need of a gateway


def streams(bench: Bench, client: Client, tokens: int) -> None:
    """The replica has sent so many events of the answer."""
    if client.request.relayed.reader is None:
        client.request.relayed.reader = StreamReader(hide_usage=False, fields=COMPLETION_USAGE)
        client.request.relayed.status = 200
        bench.dispatcher.first_byte(client.request)
    client.request.relayed.reader.events = tokens


def test_greedy_is_not_asked() -> None:
    bench = Bench(seats=4)
    bench.arrive()
    bench.queue.hold_steps = None  # type: ignore[method-assign,assignment]
    assert bench.arrive().sent_to == ["r0"]


def test_a_refusal_is_passed_on_and_ends_with_the_first_token_or_an_end() -> None:
    policies = PolicySettings(ordering="fcfs", admission="peak-check", prediction="declared-max")
    bench = Bench(seats=8, policies=policies)
    held = bench.held
    bench.replicas[0].ledger.kv_tokens_max = 640
    first = bench.arrive(300, body={"max_tokens": 100})
    second = bench.arrive(200, body={"max_tokens": 100})
    assert second.stage is RequestStage.QUEUED
    assert held[-1] == ("r0", 60)  # at the first's end, 40 steps on, they hold 25 and 15 of the 40 blocks
    streams(bench, first, 1)
    streams(bench, first, 59)
    bench.dispatcher.pump()
    assert second.sent_to == []
    streams(bench, first, 60)
    bench.dispatcher.pump()
    assert second.sent_to == ["r0"]
    assert first.request.queued.produced_tokens == 60


def test_a_request_that_ends_in_time_passes_a_head_that_does_not_fit() -> None:
    policies = PolicySettings(ordering="fcfs", admission="backfill", prediction="declared-max")
    bench = Bench(seats=8, policies=policies)
    bench.replicas[0].ledger.kv_tokens_max = 640
    first = bench.arrive(300, body={"max_tokens": 100})
    head = bench.arrive(400, body={"max_tokens": 50})
    long, short = bench.arrive(100, body={"max_tokens": 200}), bench.arrive(100, body={"max_tokens": 20})
    assert [one.sent_to for one in (first, head, long, short)] == [["r0"], [], [], ["r0"]]
    bench.answer(first)
    bench.answer(short)
    assert head.sent_to == ["r0"]


def test_a_head_is_passed_a_bounded_number_of_times() -> None:
    options = {"admission": {"skips_max": 2}}
    policies = PolicySettings(ordering="fcfs", admission="backfill", prediction="declared-max", options=options)
    bench = Bench(seats=8, policies=policies)
    bench.replicas[0].ledger.kv_tokens_max = 640
    bench.arrive(300, body={"max_tokens": 100})
    head = bench.arrive(400, body={"max_tokens": 50})
    passing = [bench.arrive(30, body={"max_tokens": 10}) for _ in range(4)]
    assert [one.sent_to for one in passing] == [["r0"], ["r0"], [], []]
    assert head.sent_to == []


def test_the_engines_preemptions_teach_and_retries_do_not() -> None:
    policies = PolicySettings(ordering="fcfs", admission="overflow-probability", prediction="declared-max")
    bench = Bench(("r0", "r1"), seats=8, policies=policies)
    first = bench.arrive(300)
    learned = bench.policies.admission if bench.policies is not None else None
    assert isinstance(learned, OverflowProbability)
    before = learned.z
    bench.dispatcher.take_back(first.request)
    assert (first.sent_to, learned.z) == (["r0", "r1"], before)
    replica = first.request.queued.replica
    assert replica is not None
    for counted in (7, 9):
        replica.reported(LoadReport(0, 1, 0.5, 100_000, preemptions=counted))
    bench.dispatcher.sweep(bench.now)
    assert learned.z == before + 0.5  # learning rate × what was lost; nothing else is known of sizes yet
    bench.dispatcher.sweep(bench.now)
    assert learned.z == before + 0.5


def test_a_replica_that_reports_no_memory_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    policies = PolicySettings(ordering="fcfs", admission="reserve-max", prediction="declared-max")
    bench = Bench(seats=8, policies=policies)
    for _ in range(3):
        assert bench.arrive(300).sent_to == ["r0"]
    sentence = "replica r0 reports no KV memory, so admission reserve-max lets every request go there: set kv_tokens"
    assert caplog.messages == [sentence]


# turns of the event loop


@pytest.mark.parametrize("models", [[], ["a", "b"]])
def test_a_crowd_is_dispatched_over_several_turns(models: list[str]) -> None:
    bench = Bench(seats=1, turn_by_turn=True, models=models)
    bench.arrive(model="a" if models else "")
    clients = [bench.arrive(model=models[number % 2] if models else "") for number in range(100)]
    bench.replicas[0].ledger.requests_max = 200
    bench.dispatcher.pump()
    dispatched = [len(bench.heard.dispatched_at) - 1]
    while bench.turns:
        bench.dispatcher.pump()  # what happens meanwhile adds nothing to a turn
        assert len(bench.turns) == 1
        dispatched.append(bench.turn())
    assert sum(dispatched) == len([client for client in clients if client.sent_to]) == 100
    assert max(dispatched) <= 11, "a turn is 10 ms"


def test_a_crowd_goes_over_to_other_policies_in_several_turns_and_none_is_lost() -> None:
    bench = Bench(seats=1, turn_by_turn=True)
    bench.arrive()
    clients = [bench.arrive(priority=-number) for number in range(100)]
    bench.dispatcher.replace(
        replace(bench.settings, policies=PolicySettings(ordering="priority")), bench.replicas, bench.now
    )
    assert len(bench.queue) == 100
    assert len(bench.queue._unmoved) > 80
    late = bench.arrive(priority=-1_000)
    left = [clients[99], clients[0]]
    for client in left:  # known to the new policies or not
        bench.dispatcher.end(client.request, Outcome.CANCELLED)
    turns = 0
    while bench.turns:
        bench.turns.pop(0)()
        turns += 1
    assert turns > 5
    assert not bench.queue._unmoved
    bench.replicas[0].ledger.requests_max = 200
    bench.dispatcher.pump()
    while bench.turns:
        bench.turns.pop(0)()
    assert len(bench.queue) == 0
    order = [number for number, _ in bench.heard.dispatched_at]
    assert order[1:4] == [late.request.arrived.number, 100, 99], "the most urgent first"
    assert len(order) == len(set(order)) == 100


def test_queues_go_over_to_other_policies_in_several_turns() -> None:
    """What each has learned is handed over, which takes time."""
    models = [f"m{number}" for number in range(40)]
    bench = Bench(seats=1, turn_by_turn=True, models=models)
    clients = [bench.arrive(model=model) for model in models]
    queues = list(bench.dispatcher.queues.values())
    shortest = replace(bench.settings, policies=PolicySettings(ordering="shortest-prompt-first"))
    bench.dispatcher.replace(shortest, bench.replicas, bench.now)
    changed = [queue._ordering == "shortest-prompt-first" for queue in queues]
    assert 1 <= sum(changed) <= 10
    assert changed[0], "the first comes first"
    gone = queues[-1]
    bench.dispatcher.end(clients[-1].request, Outcome.CANCELLED)
    del bench.dispatcher.queues[gone.key]
    bench.dispatcher.replace(replace(shortest, policies=PolicySettings(ordering="priority")), bench.replicas, bench.now)
    while bench.turns:
        bench.turns.pop(0)()
    assert [queue._ordering for queue in queues] == ["priority"] * 39 + ["fcfs"]
    bench.replicas[0].ledger.requests_max = 200
    bench.dispatcher.pump()
    while bench.turns:
        bench.turns.pop(0)()
    assert sum(client.sent_to == ["r0"] for client in clients) == 39


def test_an_ordering_that_fails_while_requests_go_over_to_it_loses_none() -> None:
    bench = Bench(seats=1, turn_by_turn=True)
    bench.arrive()
    clients = [bench.arrive() for _ in range(50)]
    bench.dispatcher.replace(
        replace(bench.settings, policies=PolicySettings(ordering="priority")), bench.replicas, bench.now
    )

    def fails(request: RequestView, now: float) -> None:
        raise RuntimeError("a fault of ours")

    bench.queue.scheduler.arrive = fails  # type: ignore[method-assign,assignment]
    while bench.turns:
        bench.turns.pop(0)()
    bench.replicas[0].ledger.requests_max = 200
    bench.dispatcher.pump()
    while bench.turns:
        bench.turns.pop(0)()
    assert all(client.sent_to == ["r0"] for client in clients)


def test_a_sweep_refuses_a_request_at_a_step_and_looks_again_before_each() -> None:
    bench = Bench(seats=1, queue=QueueSettings(timeout_seconds=50.0))
    bench.arrive()
    clients = [bench.arrive() for _ in range(10)]
    steps = bench.dispatcher.sweep_in_steps(bench.now + 60.0)
    next(steps)
    assert [client.reason for client in clients] == ["queue-timeout"] + [""] * 9
    bench.replicas[0].ledger.requests_max = 2
    bench.dispatcher.pump()  # between two steps
    assert clients[1].sent_to == ["r0"]
    assert sum(1 for _ in steps) >= 8
    assert [client.reason for client in clients[1:]] == [""] + ["queue-timeout"] * 8


def test_retries_are_asked_for_about_when_there_is_room() -> None:
    delays = RetryDelays(seed=0)
    for wanted, about in [(10.0, 10.0), (None, 1.0), (0.0, 0.05), (1e9, 120.0)]:
        given = [delays.after(wanted) for _ in range(200)]
        assert max(given) <= 120.0
        assert sum(given) / len(given) == pytest.approx(about, rel=0.15)
        assert max(given) > min(given) or about == 120.0


def test_the_retry_after_an_outage_is_the_next_probe_at_most_five_seconds_on() -> None:
    bench = Bench(("r0", "r1"))
    delays = RetryDelays(seed=0)

    def after(*probes: float) -> float:
        for replica, probe in zip(bench.replicas, probes, strict=True):
            replica.state.probe_at = bench.now + probe
        return sum(delays.after_probe(bench.replicas, bench.now) for _ in range(200)) / 200

    assert after(4.0, 2.0) == pytest.approx(2.0, rel=0.1)
    assert after(0.1, 3.0) == pytest.approx(1.0, rel=0.1)
    assert after(90.0, 80.0) == pytest.approx(5.0, rel=0.1)


def test_a_first_byte_frees_the_room_for_prompts_and_is_measured() -> None:
    bench = Bench(seats=2)
    client = bench.arrive(70, streams=True)
    ledger = bench.replicas[0].ledger
    assert ledger.prefill_tokens == 70
    bench.now += 0.5
    client.request.relayed.status = 200
    seen: list[tuple[float, float]] = []
    bench.replicas[0].first_byte = lambda took, expected: seen.append((took, expected))  # type: ignore[method-assign]
    bench.dispatcher.first_byte(client.request)
    assert ledger.prefill_tokens == 0
    costs = bench.settings.policies.costs
    assert seen == [(0.5, pytest.approx(0.02 + 70 * costs.prefill_seconds_per_token))]
    assert [type(event).__name__ for event in bench.heard.events] == ["Arrived", "Admitted", "FirstToken"]


def test_an_error_has_no_first_token_and_says_nothing_of_speed() -> None:
    bench = Bench()
    client = bench.arrive(streams=True)
    client.request.relayed.status = 500
    seen: list[float] = []
    bench.replicas[0].first_byte = lambda took, expected: seen.append(took)  # type: ignore[method-assign]
    bench.dispatcher.first_byte(client.request)
    assert not seen
    assert [type(event).__name__ for event in bench.heard.events] == ["Arrived", "Admitted"]


def test_a_whole_answer_is_measured_by_its_tokens() -> None:
    bench = Bench()
    client = bench.arrive(60, streams=False)
    bench.now += 2.0
    seen: list[tuple[float, float]] = []
    bench.replicas[0].first_byte = lambda took, expected: seen.append((took, expected))  # type: ignore[method-assign]
    bench.answer(client, tokens=30)
    costs = bench.settings.policies.costs
    expected = 0.02 + 60 * costs.prefill_seconds_per_token + 30 * costs.decode_seconds_per_token
    assert seen == [(2.0, pytest.approx(expected))]


def test_a_queue_that_fails_is_contained_and_the_others_are_served() -> None:
    bench = Bench(models=("a", "b"))
    first = bench.arrive(model="a")
    bench.arrive(model="a")
    other = bench.arrive(model="b")
    broken = bench.dispatcher.queues[QueueKey("a", "generation")]

    def fail(now: float) -> None:
        raise RuntimeError("no head")

    broken.head = fail  # type: ignore[method-assign,assignment]
    broken.standing = lambda now: 0.0  # type: ignore[method-assign]
    bench.answer(first)
    assert other.sent_to == ["r0"]
    assert bench.dispatcher.errors.by_place["queue"] > 0


def test_routing_may_let_the_head_wait_and_is_built_again_once_it_failed_for_good() -> None:
    bench = Bench(("r0", "r1"), seats=2)
    bench.dispatcher.served_queues.routing._policy.choose = lambda *_: None  # type: ignore[method-assign]
    waiting = bench.arrive()
    assert waiting.stage is RequestStage.QUEUED
    routing = bench.dispatcher.served_queues.routing
    bench.dispatcher.replace(bench.settings, bench.replicas, bench.now)
    assert bench.dispatcher.served_queues.routing is routing, "nothing changed"
    routing.is_replaced = True
    bench.dispatcher.replace(bench.settings, bench.replicas, bench.now)
    assert bench.dispatcher.served_queues.routing is not routing
    assert waiting.sent_to


def test_one_queue_whose_policy_failed_for_good_is_enough_to_build_them_again() -> None:
    bench = Bench(models=("a", "b"))
    bench.arrive(model="a")
    bench.arrive(model="b")
    queues = list(bench.dispatcher.queues.values())
    schedulers = [queue.scheduler for queue in queues]
    bench.dispatcher.replace(bench.settings, bench.replicas, bench.now)
    assert [queue.scheduler for queue in queues] == schedulers
    queues[0]._arrival_order = True
    assert queues[0].is_replaced
    bench.dispatcher.replace(bench.settings, bench.replicas, bench.now)
    assert all(queue.scheduler not in schedulers for queue in queues)
    assert not queues[0].is_replaced


def test_a_body_that_is_exactly_as_large_as_the_bound_fits() -> None:
    bench = Bench()
    bench.arrive()
    first = bench.arrive()
    size = first.request.arrived.body_bytes
    settings = replace(bench.settings, queue=QueueSettings(max_bytes=2 * size, tenant_max_bytes=2 * size))
    bench.dispatcher.replace(settings, bench.replicas, bench.now)
    assert bench.arrive().stage is RequestStage.QUEUED
    assert bench.arrive().reason == Reason.QUEUE_FULL


BOUNDS = st.integers(1, 4)


@settings(deadline=None, max_examples=examples(60))
@given(
    st.builds(
        QueueSettings,
        max_requests=BOUNDS,
        max_tokens=BOUNDS.map(lambda size: 50 * size),
        max_bytes=BOUNDS.map(lambda size: 40 * size),
        tenant_max_requests=st.none() | BOUNDS,
        tenant_max_bytes=st.none() | BOUNDS.map(lambda size: 40 * size),
    ),
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("mn"), st.integers(1, 90)), max_size=8),
    st.tuples(st.sampled_from("ab"), st.sampled_from("mnx"), st.integers(1, 90)),
)
def test_what_is_refused_by_its_head_would_be_refused_with_its_body(
    bounds: QueueSettings, before: list[tuple[str, str, int]], then: tuple[str, str, int]
) -> None:
    bench = Bench(models=("m", "n"), queue=bounds)
    for payer, model, tokens in before:
        bench.arrive(tokens, payer=payer, model=model)
    payer, model, tokens = then
    body: dict[str, object] = {"prompt": "x" * tokens}
    size = len(json.dumps({"prompt": "x", "max_tokens": 10} | body))
    early = bench.dispatcher.entry_checks.refusal_unread(
        payer, HttpRequest(b"POST", b"/v1/completions", [(b"content-length", b"%d" % size)])
    )
    late = bench.arrive(tokens, body=body, payer=payer, model=model).refusal
    if early is not None:
        assert late is not None
        # The bound of prompt tokens, which the head does not tell, may be looked at before the one that it tells of.
        assert late.reason in (early.reason, Reason.UNKNOWN_MODEL) or "prompt tokens" in late.message
    elif late is not None and late.reason is not Reason.UNKNOWN_MODEL:
        assert "prompt tokens" in late.message, "all else is told by the head"


def test_waiting_is_explained_by_those_before_and_those_that_rank_sooner() -> None:
    bench = Bench(policies=PolicySettings(ordering="shortest-prompt-first"))
    sent = bench.arrive()
    before = bench.arrive(40)
    bench.now += 1.0
    long = bench.arrive(900)
    bench.now += 1.0
    later = bench.arrive(10)
    for client in (sent, later, before):
        assert client.stage is RequestStage.SENT
        bench.now += 1.0
        bench.answer(client)
    assert sent.request.queued.wait_explanation == "did not wait"
    words = "waited 4.00 s for 1 that came before it and 1 that came later but rank sooner by shortest-prompt-first"
    assert long.request.queued.wait_explanation == words


def test_with_nothing_waiting_no_bound_refuses_a_request() -> None:
    """A request larger than the whole queue may be would otherwise never get in."""
    bench = Bench(queue=QueueSettings(max_tokens=100, tenant_max_tokens=80))
    bench.arrive()
    assert bench.arrive(500).stage is RequestStage.QUEUED
    assert bench.arrive(10).reason == Reason.QUEUE_FULL
    other = Bench(queue=QueueSettings(tenant_max_tokens=80))
    other.arrive()
    assert other.arrive(60, payer="a").stage is RequestStage.QUEUED
    assert other.arrive(500, payer="b").stage is RequestStage.QUEUED, "of this payer none waits"


def test_a_forecast_that_just_meets_the_deadline_is_let_in() -> None:
    bench = Bench()
    bench.arrive()
    bench.arrive()
    slow(bench)
    bench.queue.forecast.wait_seconds = lambda *_: 5.0  # type: ignore[method-assign]
    assert bench.arrive(deadline=bench.now + 5.0).stage is RequestStage.QUEUED
    assert bench.arrive(deadline=bench.now + 4.999).reason == Reason.DEADLINE_UNMEETABLE


def test_a_stored_object_whose_replica_is_down_may_go_anywhere() -> None:
    bench = Bench(("r0", "r1"), seats=4)
    maker = bench.arrive()
    (home,) = maker.sent_to
    bench.dispatcher.object_made(maker.request, b'{"id":"resp_1","object":"response"')
    next(replica for replica in bench.replicas if replica.name == home).state.health = Health.EJECTED
    assert bench.arrive(stored_object="resp_1").sent_to == [name for name in ("r0", "r1") if name != home]
    assert bench.arrive(stored_object="unknown").sent_to


def test_what_a_policy_raises_at_a_first_token_is_contained() -> None:
    bench = Bench()
    client = bench.arrive(streams=True)
    client.request.relayed.status = 200

    def fail(*_: object) -> None:
        raise RuntimeError("deaf")

    assert client.request.queued.admitted_by is not None
    client.request.queued.admitted_by.first_token = fail  # type: ignore[method-assign]
    bench.dispatcher.first_byte(client.request)
    assert bench.dispatcher.errors.by_place == {"policies": 1}


def test_the_less_urgent_are_refused_first_and_a_reload_counts_those_that_wait() -> None:
    bench = Bench(queue=QueueSettings(max_requests=4, class_ceilings={"flex": 0.5}))
    bench.arrive(priority=10)  # at the replica
    for _ in range(2):
        assert bench.arrive(priority=10).stage is RequestStage.QUEUED
    assert bench.arrive(priority=10).reason == Reason.CLASS_FULL
    assert bench.arrive().stage is RequestStage.QUEUED
    tighter = replace(bench.settings, queue=QueueSettings(max_requests=4, class_ceilings={"0": 0.75}))
    bench.dispatcher.replace(tighter, bench.replicas, bench.now)
    bench.law()
    assert bench.arrive().reason == Reason.CLASS_FULL
    assert bench.arrive(priority=-1).stage is RequestStage.QUEUED
    assert bench.arrive(priority=-1).reason == Reason.QUEUE_FULL


@pytest.mark.parametrize("turn_by_turn", [False, True])
def test_a_request_that_never_waits_is_in_no_queue_when_its_arrival_is_over(turn_by_turn: bool) -> None:
    bench = Bench(seats=2, turn_by_turn=turn_by_turn)
    stages = [bench.arrive(never_waits=True).stage for _ in range(4)]
    assert stages == [RequestStage.SENT, RequestStage.SENT, RequestStage.ENDED, RequestStage.ENDED]
    assert bench.heard.ends == [(number, Outcome.REFUSED, Reason.NO_QUEUE) for number in (3, 4)]


def test_a_reload_may_give_one_model_an_order_of_its_own() -> None:
    bench = Bench(models=("m", "n"))
    for model in "mmnn":
        bench.arrive(model=model)
    learned = {key.model: queue.scheduler for key, queue in bench.dispatcher.queues.items()}
    own = {"n": ModelSettings(ordering="shortest-prompt-first"), "m": ModelSettings(max_requests=1)}
    bench.dispatcher.replace(replace(bench.settings, models=own), bench.replicas, bench.now)
    bench.law()
    orders = {key.model: queue._ordering for key, queue in bench.dispatcher.queues.items()}
    assert orders == {"m": "fcfs", "n": "shortest-prompt-first"}
    assert bench.arrive(model="m").reason == Reason.QUEUE_FULL
    assert bench.arrive(model="n").stage is RequestStage.QUEUED
    bench.dispatcher.replace(replace(bench.settings, models={"m": own["m"]}), bench.replicas, bench.now)
    assert {queue._ordering for queue in bench.dispatcher.queues.values()} == {"fcfs"}
    kept = {key.model: queue.scheduler for key, queue in bench.dispatcher.queues.items()}
    bench.dispatcher.replace(bench.settings, bench.replicas, bench.now)
    assert kept == {key.model: queue.scheduler for key, queue in bench.dispatcher.queues.items()}, "bounds move nothing"
    assert learned.keys() == kept.keys()
