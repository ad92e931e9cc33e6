"""One queue by itself: which policy is asked, what stands in for one that fails, and what is written down of a wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headway.domain.estimate import PointEstimate
from headway.domain.event import Arrived
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request, RequestView
from headway.gateway.queueing.hinted_prediction import HintedPrediction
from headway.gateway.queueing.internal_errors import LOGGED_EVERY_SECONDS, InternalErrors
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.queueing.outages import Outages, OwnShortages
from headway.gateway.queueing.queue_policies import SharedAccounts
from headway.gateway.queueing.queue_turns import PASSES_MAX, Turns
from headway.gateway.queueing.request_routing import RequestRouting
from headway.gateway.queueing.request_state import GatewayRequest, QueuedRequest, QueueKey
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings, PolicySettings, ReplicaSettings
from headway.policies.ordering.fair_share import FairShare
from headway.policies.prediction.running_mean import RunningMean
from headway.scheduling.checked_policies import PolicyFault
from headway.testing.scripted import ScriptedBatch
from tests.support.failing_policies import FailingRank
from tests.support.gateway_requests import gateway_request

KEY = QueueKey("m", "generation")


def request(number: int, prompt_tokens: int = 50, **arrived: object) -> GatewayRequest:
    return gateway_request(number, {"prompt": "x", "max_tokens": 10}, prompt_tokens=prompt_tokens, **arrived)


def queue(**policies: object) -> ModelQueue:
    settings = PolicySettings(**{"ordering": "fcfs", "faults_max": 3} | policies)  # type: ignore[arg-type]
    return ModelQueue(KEY, settings, lambda *_: (), InternalErrors(lambda: 0.0), SharedAccounts())


# predictions


def change(queue: ModelQueue, now: float, **policies: object) -> None:
    """Other policies, and every waiting request goes over to them."""
    settings = PolicySettings(**{"ordering": "fcfs", "faults_max": 3} | policies)  # type: ignore[arg-type]
    queue.change_policies(settings, SharedAccounts())
    while queue.move_one(now):
        pass


# cached tokens of heads


class Caches:
    """What caches hold of each request's prompt, and who was asked about."""

    def __init__(self, **held: int) -> None:
        self.held = {int(number.removeprefix("r")): tokens for number, tokens in held.items()}
        self.asked: list[int] = []

    def __call__(self, queued: QueuedRequest) -> int:
        self.asked.append(queued.arrived.number)
        return self.held.get(queued.arrived.number, 0)


def looking_up(caches: Caches, ordering: str = "shortest-uncached-prefill-first") -> ModelQueue:
    settings = PolicySettings(ordering=ordering)
    return ModelQueue(KEY, settings, lambda *_: (), InternalErrors(lambda: 0.0), SharedAccounts(), caches)


def test_a_head_that_lost_its_cached_prompt_makes_room_for_the_next() -> None:
    caches = Caches()
    waiting = looking_up(caches)
    warm, cold = request(1, 100).queued, request(2, 60).queued
    warm.cached_prompt_tokens = 90
    waiting.arrive(warm, 10.0)
    waiting.arrive(cold, 10.5)
    assert waiting.head(10.999) is warm
    assert caches.asked == [], "the estimate at arrival is fresh for a second"
    assert waiting.head(11.0) is cold
    assert waiting.head(11.4) is cold
    assert caches.asked == [1], "others than the head are not asked about"
    assert waiting.head(11.5) is cold
    assert (caches.asked, warm.cached_prompt_tokens) == ([1, 2], 0)
    assert [waiting.admit(11.5).arrived.number for _ in range(2)] == [2, 1]
    assert waiting.waiting_work == 0.0


def test_a_head_whose_work_is_about_the_same_keeps_its_place() -> None:
    caches = Caches(r1=75)
    waiting = looking_up(caches)
    head, other = request(1, 100).queued, request(2, 22).queued
    head.cached_prompt_tokens = 80
    waiting.arrive(head, 10.0)
    waiting.arrive(other, 10.0)
    assert waiting.head(11.0) is head
    assert (caches.asked, head.cached_prompt_tokens) == ([1], 75)


def test_few_heads_are_asked_about_at_once() -> None:
    caches = Caches()
    waiting = looking_up(caches)
    for number in range(1, 9):
        queued = request(number, 100).queued
        queued.cached_prompt_tokens = 90
        waiting.arrive(queued, 10.0)
    head = waiting.head(11.0)
    assert head is not None
    assert (caches.asked, head.arrived.number) == ([1, 2, 3, 4], 5)


def test_an_ordering_that_fails_as_a_head_is_ranked_again_costs_no_request() -> None:
    waiting = looking_up(Caches(r1=40))
    waiting.scheduler.queue.online._ordering = FailingRank()
    for number in (1, 2):
        waiting.arrive(request(number, arrived_at=float(number)).queued, float(number))
    assert waiting.head(9.0).id == 1  # type: ignore[union-attr]
    assert waiting.is_replaced
    assert [waiting.admit(9.0).arrived.number for _ in range(2)] == [1, 2]


# predictors


class Fails:
    def __init__(self) -> None:
        self.asked = 0
        self.works = False

    def predict(self, request: RequestView) -> PointEstimate:
        self.asked += 1
        if self.works:
            return PointEstimate(7, "works")
        raise PolicyFault("prediction", "raised", "failed")


def test_a_hint_counts_as_it_is_and_no_predictor_is_asked() -> None:
    inner = Fails()
    prediction = HintedPrediction(inner, InternalErrors(lambda: 0.0), 3)
    assert prediction.predict(request(1, hinted_output_tokens=33).queued).remaining_mean(0) == 33
    assert inner.asked == 0
    assert (
        prediction.predict(Request(1, 0.0, 10)).remaining_mean(0)
        == RunningMean().predict(Request(1, 0.0, 10)).mean_tokens
    )


def test_a_predictor_that_fails_three_times_in_a_row_is_asked_no_more() -> None:
    inner, errors = Fails(), InternalErrors(lambda: 0.0)
    prediction = HintedPrediction(inner, errors, 3)
    for _ in range(2):
        assert prediction.predict(Request(1, 0.0, 10)).remaining_mean(0) == 256
    inner.works = True
    assert prediction.predict(Request(1, 0.0, 10)).remaining_mean(0) == 7
    inner.works = False
    for number in range(5):
        assert prediction.is_replaced is (number >= 3)
        prediction.predict(Request(1, 0.0, 10))
    assert inner.asked == 6
    assert errors.policy_faults == {("prediction", "raised"): 5}


# admission


class Holds:
    def __init__(self) -> None:
        self.answer: object = 4
        self.asked = 0

    def hold_steps(self, *_: object) -> object:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def with_admission(policy: Holds) -> ModelQueue:
    held = queue(admission="reserve-max")
    held.scheduler._policies = replace(held.scheduler._policies, admission=policy)  # type: ignore[arg-type]
    return held


def test_an_admission_policy_that_fails_three_times_in_a_row_is_asked_no_more() -> None:
    policy = Holds()
    held = with_admission(policy)
    ask = (request(1).queued, ScriptedBatch([Request("runs", 0.0, 1)]), MemoryView(9, 9, 16), 0.0)
    assert held.asks_admission
    assert held.hold_steps(*ask) == 4
    policy.answer = PolicyFault("admission", "nonsense", "is odd")
    assert [held.hold_steps(*ask) for _ in range(2)] == [0, 0]
    policy.answer = 2
    assert held.hold_steps(*ask) == 2
    policy.answer = PolicyFault("admission", "nonsense", "is odd")
    for _ in range(3):
        assert held.asks_admission
        assert not held.is_replaced
        held.hold_steps(*ask)
    assert not held.asks_admission
    assert held.is_replaced
    assert policy.asked == 7
    change(held, 0.0, admission="reserve-max")
    assert held.asks_admission
    assert not held.is_replaced


def test_greedy_admission_is_not_asked() -> None:
    assert not queue(admission="greedy").asks_admission


# ordering


class LatestFirstThenFails(FailingRank):
    """The latest request first, as long as it works."""

    def rank(self, request: RequestView) -> float:
        return -super().rank(request)


def test_an_ordering_that_fails_leaves_arrival_order_and_every_request() -> None:
    broken = queue()
    broken.scheduler.queue.online._ordering = LatestFirstThenFails()
    for number in (1, 2):
        broken.arrive(request(number, arrived_at=float(number)).queued, float(number))
    assert broken.head(2.0).id == 2  # type: ignore[union-attr]
    broken.arrive(request(3, arrived_at=3.0).queued, 3.0)
    assert broken.is_replaced
    assert broken._errors.policy_faults == {("ordering", "nonsense"): 1}
    assert len(broken) == 3
    order = [broken.admit(4.0) for _ in range(3)]
    assert [queued.id for queued in order] == [1, 2, 3]
    assert order[0].wait_explanation == "did not wait"
    change(broken, 5.0)
    assert not broken.is_replaced


def test_a_request_is_in_the_queue_with_all_its_figures_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise RuntimeError("no work")

    empty = queue()
    monkeypatch.setattr("headway.gateway.queueing.model_queue.work_of", fail)
    with pytest.raises(RuntimeError, match="no work"):
        empty.arrive(request(1).queued, 0.0)
    assert len(empty) == len(empty.scheduler.queue) == 0


# what is written down


def test_the_standing_of_a_wait() -> None:
    one = queue()
    queued = [request(number, arrived_at=100.0).queued for number in (1, 2, 3)]
    one.arrive(queued[0], 100.0)
    assert one.admit(100.0) is queued[0]
    for place, late in enumerate(queued[1:]):
        late.has_waited = True
        one.arrive(late, 101.0)
        assert (late.waiting_at_arrival, late.dispatches_at_arrival, late.queue_key) == (place, 1, KEY)
    assert one.admit(102.0).wait_explanation == "waited 2.00 s for room at a replica"
    assert one.admit(103.0).wait_explanation == "waited 3.00 s for 1 that came before it"
    assert [late.rank for late in queued] == [1, 2, 3]
    assert one.used_at == 103.0


def test_a_request_taken_back_goes_first_and_its_old_scheduler_hears_of_it() -> None:
    one = queue(ordering="shortest-prompt-first")
    long, short = request(1, 900).queued, request(2, 10).queued
    one.arrive(long, 0.0)
    one.admit(0.0)
    one.arrive(short, 1.0)
    one.take_back(long, 2.0)
    assert len(one) == 2
    assert one.head(2.0) is long
    change(one, 3.0, ordering="shortest-prompt-first")
    sent = one.admit(3.0)
    change(one, 4.0)
    one.take_back(sent, 5.0)
    assert sorted(queued.id for queued in one._requests.values()) == [1, 2]


def test_the_least_served_tenants_share_stands_for_its_queue() -> None:
    accounts, errors = SharedAccounts(), InternalErrors(lambda: 0.0)
    settings = PolicySettings(ordering="fair-share")
    first, second = (
        ModelQueue(QueueKey(model, "generation"), settings, lambda *_: (), errors, accounts) for model in "ab"
    )
    assert accounts.are_shared
    assert first.standing(0.0) == 0.0
    first.arrive(request(1, tenant="t", payer="t").queued, 0.0)
    first.admit(0.0)
    second.arrive(request(2, tenant="t", payer="t").queued, 1.0)
    ordering = second.scheduler.queue.online._ordering
    assert second.standing(1.0) > 0
    assert isinstance(first._fair, FairShare)
    assert second.standing(1.0) == first._fair.service("t")
    assert ordering is not None
    assert queue().standing(0.0) == 0.0
    lonely = SharedAccounts()
    ModelQueue(KEY, settings, lambda *_: (), errors, lonely)
    assert not lonely.are_shared


# around the queues


def test_a_head_that_others_passed_eight_times_is_owed_until_it_goes() -> None:
    turns: Turns[ModelQueue] = Turns()
    waits, goes = queue(), queue()
    goes.key = QueueKey("n", "generation")
    for passes in range(PASSES_MAX):
        assert not turns.is_owed(waits), passes
        turns.served(goes, [waits])
    assert turns.is_owed(waits)
    turns.served(waits, [], is_head=False)
    assert turns.is_owed(waits), "its head still waits"
    turns.served(waits, [])
    assert not turns.is_owed(waits)
    turns.served(goes, [waits])
    turns.forget(waits)
    assert waits.key not in turns._served
    assert waits.key not in turns._passed


def replicas(count: int) -> list[UpstreamReplica]:
    made = []
    for number in range(count):
        settings = ReplicaSettings(url=f"http://r{number}:1", name=f"r{number}", max_requests=8)
        made.append(UpstreamReplica(settings, HealthSettings(), lambda: 0.0))
    return made


def test_where_routing_fails_the_replica_with_the_most_room_is_chosen() -> None:
    errors = InternalErrors(lambda: 0.0)
    routing = RequestRouting(PolicySettings(ordering="fcfs", routing="round-robin", faults_max=2), errors)
    one, other = replicas(2)
    one.ledger.requests, other.ledger.requests = 4, 3
    other.ledger.requests_max = 4

    def fail(*_: object) -> None:
        raise PolicyFault("routing", "raised", "is lost")

    works = routing._policy.choose
    routing._policy.choose = fail  # type: ignore[method-assign,assignment]
    assert routing.choose(request(1).queued, [one, other], 0.0) is one
    assert not routing.is_replaced
    routing._policy.choose = works  # type: ignore[method-assign]
    assert routing.choose(request(1).queued, [one, other], 0.0) in (one, other)
    routing._policy.choose = fail  # type: ignore[method-assign,assignment]
    for _ in range(2):
        assert not routing.is_replaced
        routing.choose(request(1).queued, [one, other], 0.0)
    assert routing.is_replaced
    assert routing.choose(request(1).queued, [one, other], 0.0) is one
    assert errors.policy_faults == {("routing", "raised"): 3}


def test_a_routing_policy_hears_where_a_request_went() -> None:
    routing = RequestRouting(PolicySettings(ordering="fcfs", routing="round-robin"), InternalErrors(lambda: 0.0))
    one, other = replicas(2)
    assert routing.choose(request(1).queued, [one, other], 0.0) is one
    routing.routed(request(1).queued, one)
    assert routing.choose(request(2).queued, [one, other], 0.0) is other


def test_an_outage_is_over_with_one_look_that_finds_a_replica() -> None:
    outages = Outages()
    demand = ("m", None, ())
    (replica,) = replicas(1)
    assert outages.lasting([demand], [], 0.0, 30.0) == set()
    assert outages.lasting([demand], [], 29.9, 30.0) == set()
    assert outages.lasting([demand], [], 30.0, 30.0) == {demand}
    assert outages.lasting([demand], [replica], 31.0, 30.0) == set(), "not probed yet: believed healthy"
    assert outages.lasting([demand], [], 40.0, 30.0) == set()
    assert outages.lasting([], [], 50.0, 30.0) == set()
    assert outages.lasting([demand], [], 71.0, 30.0) == set()


def test_shortages_are_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    shortages = OwnShortages()
    for now in (0.0, 59.0, 60.0):
        shortages.note(OSError("too many open files"), now)
    assert shortages.delayed == 3
    assert len(caplog.records) == 2
    assert "too many open files" in caplog.messages[0]


def test_internal_errors_are_counted_by_place_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    errors = InternalErrors(lambda: now)
    errors.guard("sweep", lambda: None)
    assert not errors.by_place
    for moment in (0.0, 1.0, LOGGED_EVERY_SECONDS):
        now = moment
        errors.contained("sweep", RuntimeError("odd"))
    errors.contained("pump", RuntimeError("odd"))
    assert errors.by_place == {"sweep": 3, "pump": 1}
    assert [record.__dict__["fields"]["since_last_line"] for record in caplog.records] == [1, 2, 1]
    cause = RuntimeError("the cause")
    fault = PolicyFault("ordering", "raised", "failed")
    errors.policy_fault(fault)
    assert caplog.records[-1].exc_info[1] is fault  # type: ignore[index]
    caused = PolicyFault("admission", "raised", "failed")
    caused.__cause__ = cause
    errors.policy_fault(caused)
    assert caplog.records[-1].exc_info[1] is cause  # type: ignore[index]


def test_events_reach_the_ordering_and_the_choice_is_made_again() -> None:
    shared = queue(ordering="fair-share")
    one, other = request(1, tenant="a", payer="a").queued, request(2, tenant="b", payer="b").queued
    shared.arrive(one, 0.0)
    shared.arrive(other, 1.0)
    assert shared.head(1.0) is one
    assert isinstance(shared._fair, FairShare)
    shared._fair._accounts._account("a").service += 1_000.0
    assert shared.head(1.0) is one, "the choice stands until an event"
    for listener in shared._listeners:
        listener.observe(Arrived(request(3, tenant="c").queued, 2.0))
    assert shared.head(2.0) is other


def test_why_a_request_waited_names_those_that_came_later() -> None:
    one = queue(ordering="shortest-prompt-first")
    sent_before, long, before, later = (request(number, tokens).queued for number, tokens in enumerate((5, 90, 9, 7)))
    one.arrive(sent_before, 0.0)
    one.admit(0.0)
    for queued in (before, long, later):
        queued.has_waited = True
        one.arrive(queued, 1.0)
    assert [one.admit(4.0) for _ in range(3)] == [later, before, long]
    assert long.wait_explanation.endswith(
        "for 1 that came before it and 1 that came later but rank sooner by shortest-prompt-first"
    )
    assert before.wait_explanation.endswith("for 1 that came later but rank sooner by shortest-prompt-first")
    assert later.wait_explanation.endswith("for room at a replica")
