"""Budgets of keys at the dispatcher, on a clock of our own: who is debited, who waits behind whom, who is told what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.gateway.budgets.key_budget import KeyBudget
from headway.gateway.openai.error_responses import Reason
from headway.gateway.openai.usage import Usage
from headway.gateway.queueing.budget_accounts import BudgetAccounts
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import GatewayRequest, QueuedRequest, RequestMove, RequestStage
from headway.gateway.replicas.upstream_replica import Health, UpstreamReplica
from headway.gateway.settings import (
    BudgetSettings,
    HealthSettings,
    PolicySettings,
    QueueSettings,
    ReplicaSettings,
    Settings,
    TenantSettings,
)
from headway.gateway.wire.messages import HttpRequest
from headway.testing.examples import examples
from tests.support.gateway_requests import gateway_request

PROMPT_TOKENS, OUTPUT_TOKENS = 50, 10


class Sent:
    """A request on its way; the test ends it."""

    def __init__(self, day: Day, request: GatewayRequest) -> None:
        self.day = day
        self.request = request
        self.refusal: Refusal | None = None

    def dispatch(self, replica: UpstreamReplica) -> None:
        self.request.move(RequestMove.SENT)

    def refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.day.dispatcher.end(self.request, Outcome.REFUSED, refusal.reason)

    def check_silence(self, now: float) -> None: ...

    def cut_off(self, refusal: Refusal) -> None:
        self.refuse(refusal)

    def break_off(self) -> None:
        raise NotImplementedError

    @property
    def is_sent(self) -> bool:
        return self.request.stage is RequestStage.SENT

    @property
    def waits(self) -> bool:
        return self.request.stage is RequestStage.QUEUED

    def end(
        self,
        usage: Usage | None = None,
        outcome: Outcome = Outcome.COMPLETED,
        status: int = 200,
        reason: Reason | None = None,
    ) -> None:
        self.request.relayed.status = status
        self.request.relayed.usage = usage
        self.day.dispatcher.end(self.request, outcome, reason)


class Day:
    """A dispatcher with one replica of some seats and these budgets by tenant."""

    def __init__(self, seats: int = 1, queue: QueueSettings | None = None, **budgets: BudgetSettings) -> None:
        self.now = 1_000.0
        tenants = [TenantSettings(name, key_env="X", budget=budget) for name, budget in budgets.items()]
        self.settings = Settings(
            queue=queue or QueueSettings(), policies=PolicySettings(ordering="fcfs"), tenant=tuple(tenants)
        )
        self.dispatcher = Dispatcher(self.settings, lambda: self.now)
        chosen = ReplicaSettings(url="http://r:1", name="r", max_requests=seats, prefill_tokens=100_000)
        replica = UpstreamReplica(chosen, HealthSettings(), lambda: self.now)
        replica.state.health = Health.UP
        replica.state.models = {"m": {}, "n": {}}
        self.dispatcher.replace(self.settings, [replica], self.now)
        self.number = 0

    def ask(self, tenant: str, *, prompt_tokens: int = PROMPT_TOKENS, model: str = "m", path: str = "") -> Sent:
        self.number += 1
        request = gateway_request(
            self.number,
            {"prompt": "x", "max_tokens": OUTPUT_TOKENS},
            prompt_tokens=prompt_tokens,
            path=path or "/v1/completions",
            payer=tenant,
            tenant=tenant,
            model=model,
            arrived_at=self.now,
        )
        sent = Sent(self, request)
        if self.dispatcher.announce(sent):
            self.dispatcher.arrive(sent)
        return sent

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.dispatcher.sweep(self.now)

    def change(self, **budgets: BudgetSettings) -> None:
        tenants = tuple(TenantSettings(name, key_env="X", budget=budget) for name, budget in budgets.items())
        self.settings = replace(self.settings, tenant=tenants)
        self.dispatcher.replace(self.settings, self.dispatcher.replicas, self.now)

    def left(self, tenant: str) -> tuple[int | None, int | None]:
        """Requests and tokens that the tenant may still use."""
        now_us = int(self.now * 1_000_000)
        requests, tokens = self.dispatcher.budgets.budgets[tenant].tightest(now_us)
        return requests and requests.balance(now_us), tokens and tokens.balance(now_us)

    def unread(self, tenant: str) -> Refusal | None:
        return self.dispatcher.entry_checks.refusal_unread(tenant, HttpRequest(b"POST", b"/v1/completions", []))


def waiting(**limits: int) -> BudgetSettings:
    return BudgetSettings(over_budget="wait", **limits)


# Debits


def test_a_request_is_debited_as_predicted_and_corrected_once_to_what_it_used() -> None:
    day = Day(seats=10, a=BudgetSettings(requests_per_day=10, tokens_per_day=1_000))
    predicted = PROMPT_TOKENS + OUTPUT_TOKENS  # by its own bound
    ends = [
        ("completed", lambda one: one.end(Usage(40, 5, 0)), 45),
        ("with more than predicted", lambda one: one.end(Usage(100, 50, 0)), 150),
        ("its client left", lambda one: one.end(None, Outcome.CANCELLED, 0), PROMPT_TOKENS),
        (
            "its own time was over",
            lambda one: one.end(None, Outcome.FAILED, 504, Reason.REQUEST_TIMEOUT),
            PROMPT_TOKENS,
        ),
        ("it failed without an answer", lambda one: one.end(None, Outcome.FAILED, 502), 0),
        ("an answer without usage, as one in the background", lambda one: one.end(None), predicted),
    ]
    left = 1_000
    for number, (name, end, used) in enumerate(ends, 1):
        one = day.ask("a")
        assert one.is_sent
        assert day.left("a") == (10 - number, left - predicted), name
        end(one)
        left -= used
        assert day.left("a") == (10 - number, left), name
    assert day.dispatcher.budgets.corrected_tokens == {"returned": 15 + 10 + 10 + 60, "added": 90}


def test_of_a_request_that_generates_nothing_the_prompt_alone_is_debited() -> None:
    day = Day(seats=10, a=BudgetSettings(tokens_per_day=1_000))
    for number, path in enumerate(("/v1/embeddings", "/v1/messages/count_tokens", "/v1/rerank"), 1):
        assert day.ask("a", path=path).is_sent
        assert day.left("a") == (None, 1_000 - number * PROMPT_TOKENS), path


def test_a_request_that_no_replica_was_sent_costs_nothing() -> None:
    day = Day(a=BudgetSettings(requests_per_day=10, tokens_per_day=1_000), queue=QueueSettings(timeout_seconds=5.0))
    first, second = day.ask("a"), day.ask("a")
    assert second.waits
    assert day.left("a") == (8, 880)
    day.pass_time(6.0)
    assert second.refusal is not None
    assert second.refusal.reason is Reason.QUEUE_TIMEOUT
    assert day.left("a") == (9, 940)
    first.end(Usage(50, 10, 0))
    assert day.left("a") == (9, 940)


def test_a_request_that_is_tried_twice_is_debited_once() -> None:
    day = Day(a=BudgetSettings(requests_per_day=10, tokens_per_day=1_000, concurrent_requests=1))
    one = day.ask("a")
    other = UpstreamReplica(ReplicaSettings(url="http://s:1", name="s", max_requests=1), HealthSettings(), lambda: 0.0)
    other.state.health = Health.UP
    day.dispatcher.replace(day.settings, [*day.dispatcher.replicas, other], day.now)
    day.dispatcher.take_back(one.request)
    assert (one.is_sent, one.request.queued.tries) == (True, 2)
    one.end(Usage(50, 10, 0))
    assert day.left("a") == (9, 940)
    assert day.dispatcher.budgets.budgets["a"].inside == 0


def test_a_prediction_beyond_the_limit_shuts_no_key_out_and_a_prompt_beyond_it_is_refused() -> None:
    day = Day(seats=9, a=BudgetSettings(tokens_per_minute=55))
    one = day.ask("a")
    assert one.is_sent
    assert day.left("a") == (None, 0)
    one.end(Usage(50, 65, 0))  # a debt of 60, which a minute and some bring back
    day.pass_time(60.0)
    refused = day.ask("a", prompt_tokens=2)
    assert refused.refusal is not None
    assert refused.refusal.reason is Reason.OVER_BUDGET
    day.pass_time(60.0)
    assert day.ask("a", prompt_tokens=2).is_sent
    never = day.ask("a", prompt_tokens=56).refusal
    assert never is not None
    assert (b"x-should-retry", b"false") in never.headers
    assert "more than this API key's budget ever allows: its limit is 55 `tokens_per_minute`" in never.message


# Refusals


def test_who_is_over_budget_is_told_when_it_is_within_and_other_keys_are_not_touched() -> None:
    day = Day(seats=9, a=BudgetSettings(requests_per_minute=2), b=BudgetSettings(requests_per_day=1))
    assert day.ask("a").is_sent
    assert day.unread("a") is None
    assert day.ask("a").is_sent
    refusal, early = day.ask("a").refusal, day.unread("a")
    assert refusal == early
    assert refusal is not None
    assert refusal.message == "this API key has used up its budget: its limit is 2 `requests_per_minute`"
    assert dict(refusal.headers)[b"retry-after"] == b"30"
    assert dict(refusal.headers)[b"retry-after-ms"] == b"30000"
    assert b"x-should-retry" not in dict(refusal.headers)
    assert dict(refusal.headers)[b"x-ratelimit-remaining-requests"] == b"0"
    assert day.ask("b").is_sent
    assert day.ask("no budget").is_sent
    tomorrow = day.ask("b").refusal
    assert tomorrow is not None
    assert dict(tomorrow.headers)[b"retry-after"] == b"86400"
    assert dict(tomorrow.headers)[b"x-should-retry"] == b"false", "no client library is to sleep for a day"
    day.pass_time(29.0)
    assert day.ask("a").refusal is not None
    day.pass_time(1.0)
    assert day.ask("a").is_sent
    assert day.dispatcher.budgets.over_budget == {
        ("requests_per_minute", "refused"): 3,
        ("requests_per_day", "refused"): 1,
    }


def test_requests_at_once_are_bounded_and_a_place_is_free_again_at_each_end() -> None:
    day = Day(seats=1, a=BudgetSettings(concurrent_requests=2))
    first, second = day.ask("a"), day.ask("a")
    refused = day.ask("a").refusal
    assert refused is not None
    assert dict(refused.headers)[b"retry-after"] == b"1"
    second.end(outcome=Outcome.CANCELLED)
    third = day.ask("a")
    assert third.waits
    first.end()
    assert third.is_sent


# Waiting


def test_a_request_over_budget_waits_behind_all_that_are_within_also_of_other_models() -> None:
    day = Day(a=waiting(requests_per_day=1), b=BudgetSettings())
    running = day.ask("a")
    over = [day.ask("a") for _ in range(2)]
    within = [day.ask("b", model=model) for model in "mnm"]
    assert all(one.waits for one in over + within)
    for expected in (*within, *over):
        running.end()
        assert expected.is_sent, day.dispatcher.queues
        running = expected
    running.end()
    assert day.left("a") == (0, None), "room that nobody else waits for is not debited"
    assert day.dispatcher.budgets.budgets["a"].inside == 0


def test_a_smaller_request_over_budget_does_not_pass_a_head_within_it_that_does_not_fit() -> None:
    day = Day(seats=8, a=waiting(requests_per_day=1))
    (replica,) = day.dispatcher.replicas
    replica.ledger.kv_tokens_max = 100
    running = day.ask("a")
    large, small = day.ask("b", prompt_tokens=80), day.ask("a", prompt_tokens=5, model="n")
    assert large.waits
    assert small.waits
    running.end(Usage(50, 10, 0))
    assert large.is_sent
    assert not small.waits or small.request.queued.is_over_budget


def test_once_its_budget_allows_it_a_request_takes_its_place_by_its_arrival() -> None:
    day = Day(a=waiting(requests_per_minute=1), b=BudgetSettings())
    running = day.ask("a")
    over = [day.ask("a") for _ in range(2)]
    day.now += 1.0
    within = day.ask("b")
    day.pass_time(59.0)
    assert [one.request.queued.is_over_budget for one in over] == [False, True]
    running.end()
    assert over[0].is_sent
    over[0].end()
    assert within.is_sent
    later = day.ask("a")
    assert later.request.queued.is_over_budget, "an older one of its tenant waits beyond the budget"
    day.pass_time(120.0)  # what came back is one request, the most there may be
    assert [one.request.queued.is_over_budget for one in (over[1], later)] == [False, True]


def test_a_place_among_requests_at_once_is_given_to_who_waits_for_it() -> None:
    day = Day(seats=1, a=waiting(concurrent_requests=1), b=BudgetSettings())
    first = day.ask("a")
    over = day.ask("a")
    within = day.ask("b")
    first.end()
    assert not over.request.queued.is_over_budget
    assert over.is_sent != within.is_sent


def test_an_end_looks_at_the_budget_of_its_own_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[KeyBudget[QueuedRequest]] = []
    debit_if_within = KeyBudget.debit_if_within

    def noted(budget: KeyBudget[QueuedRequest], tokens: int, now_us: int) -> bool:
        looked_at.append(budget)
        return debit_if_within(budget, tokens, now_us)

    names = [f"t{number}" for number in range(100)]
    day = Day(seats=1, one=waiting(concurrent_requests=1), **dict.fromkeys(names, waiting(requests_per_day=1)))
    running = day.ask("one")
    over = day.ask("one")
    others = [day.ask(name) for name in names for _ in range(2)]
    assert sum(other.request.queued.is_over_budget for other in others) == 100
    monkeypatch.setattr(KeyBudget, "debit_if_within", noted)
    running.end()
    assert looked_at == [day.dispatcher.budgets.budgets["one"]]
    assert not over.request.queued.is_over_budget
    day.pass_time(1.0)
    assert len(looked_at) == 1 + 100, "a sweep looks at all that wait"
    day.dispatcher.end_all()
    day.pass_time(1.0)
    assert not day.dispatcher.budgets._with_waiters


def test_a_wait_for_a_budget_teaches_nothing_of_the_speed_of_the_queue() -> None:
    day = Day(a=waiting(requests_per_minute=1), b=BudgetSettings())
    running = day.ask("a")
    over = day.ask("a")
    day.now += 1.0
    behind = [day.ask("b") for _ in range(20)]
    for one in behind[:10]:  # a seat a second: a forecast is known
        day.pass_time(1.0)
        running.end(Usage(PROMPT_TOKENS, OUTPUT_TOKENS, 0))
        assert one.is_sent
        running = one
    queue = day.dispatcher.served_queues.queue_of(running.request.queued)
    assert queue.drain_seconds() is not None
    day.pass_time(50.0)
    assert not over.request.queued.is_over_budget
    shares = dict(queue.forecast._shares)
    running.end(Usage(PROMPT_TOKENS, OUTPUT_TOKENS, 0))
    assert over.is_sent
    assert queue.forecast._shares == shares
    assert over.request.queued.predicted_wait_seconds is None


def test_requests_over_budget_fill_at_most_half_of_the_queue_and_wait_no_longer_than_others() -> None:
    day = Day(a=waiting(requests_per_day=1), queue=QueueSettings(max_requests=4, timeout_seconds=10.0))
    day.ask("a")
    over = [day.ask("a") for _ in range(3)]
    assert [one.waits for one in over] == [True, True, False]
    assert over[2].refusal is not None
    assert over[2].refusal.reason is Reason.OVER_BUDGET
    assert [day.ask("b").waits for _ in range(3)] == [True, True, False]
    day.pass_time(11.0)
    assert over[0].refusal is not None
    assert over[0].refusal.reason is Reason.QUEUE_TIMEOUT
    assert not day.dispatcher.budgets.budgets["a"].waiters


def test_a_reload_keeps_what_was_used_and_lets_those_in_whose_limits_are_gone() -> None:
    day = Day(a=waiting(requests_per_day=2), b=BudgetSettings(requests_per_day=3))
    day.ask("a")
    day.ask("b")
    used_up, over = day.ask("a"), day.ask("a")
    assert over.request.queued.is_over_budget
    day.change(b=BudgetSettings(requests_per_day=5))
    day.pass_time(1.0)
    assert not over.request.queued.is_over_budget
    assert day.left("b") == (4, None)
    for one in (used_up, over):
        one.end(outcome=Outcome.CANCELLED)


def test_many_budgets_are_changed_in_slices_and_each_before_it_is_needed() -> None:
    turns: list[Callable[[], None]] = []
    names = [f"t{number}" for number in range(1_800)]

    def tenants(of: Sequence[str], **limits: int) -> list[TenantSettings]:
        return [TenantSettings(name, key_env="X", budget=BudgetSettings(**limits)) for name in of]

    day = Day()
    accounts = BudgetAccounts(
        tenants(names, requests_per_day=5), day.dispatcher.served_queues, lambda: 1_000.0, go_on_soon=turns.append
    )
    assert not turns, "all of them at the start"
    accounts.budgets[names[-1]].debit(0, 1)

    def changed(limit: int) -> int:
        return sum(budget.settings.requests_per_day == limit for budget in accounts.budgets.values())

    accounts.change(tenants(names[300:], requests_per_day=7))
    assert (changed(7), len(turns)) == (200, 1)
    assert accounts.refusal_unread(names[-1], "/v1/completions") is None
    assert accounts.budgets[names[-1]].settings.requests_per_day == 7
    assert accounts.budgets[names[-1]].tightest(1)[0].balance(1) == 6, "what was used stays used"
    accounts.change(tenants(names[300:], requests_per_day=9))  # while it goes on
    assert accounts.refusal_unread(names[-2], "/v1/completions") is None
    assert accounts.budgets[names[-2]].settings.requests_per_day == 9
    rounds = 0
    while turns:
        before = changed(9)
        turns.pop()()
        rounds += 1
        assert changed(9) - before <= 500
    assert (rounds, changed(9), len(accounts.budgets)) == (3, 1_500, 1_500)


def test_each_queue_is_looked_at_once_however_many_wait_beyond_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [f"m{number}" for number in range(30)]
    day = Day(a=BudgetSettings(), b=waiting(requests_per_day=1))
    replica, served = day.dispatcher.replicas[0], day.dispatcher.served_queues
    spare = UpstreamReplica(ReplicaSettings(url="http://s:1", name="s"), HealthSettings(), lambda: day.now)
    day.dispatcher.replace(day.settings, [replica, spare], day.now)  # down: so not all replicas are wanted
    replica.state.models = {model: {} for model in models}
    day.ask("b", model=models[0])
    for model in models:
        day.ask("a", model=model)
        assert day.ask("b", model=model).request.queued.is_over_budget
    replica.ledger.requests_max = 2  # it has a place, and no head fits
    monkeypatch.setattr(served, "_has_room", lambda replica, queued: False)
    looks: list[object] = []
    look = served._could_serve
    monkeypatch.setattr(served, "_could_serve", lambda queue, now: looks.append(queue) or look(queue, now))
    served.pump()
    assert 0 < len(looks) <= 2 * len(day.dispatcher.queues)


def test_however_many_are_let_in_at_once_an_end_moves_some_and_a_step_moves_one() -> None:
    day = Day(a=waiting(requests_per_day=1), z=BudgetSettings())
    debited, *over = [day.ask("a") for _ in range(41)]

    def left() -> int:
        return sum(one.request.queued.is_over_budget for one in over)

    assert left() == 40
    day.change(z=BudgetSettings())
    debited.end(outcome=Outcome.CANCELLED)
    assert 10 < left() < 40
    before = left()
    for _ in day.dispatcher.sweep_in_steps(day.now):
        assert left() >= before - 1
        before = left()
    assert not before


@settings(deadline=None, max_examples=examples(40))
@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "ask", "end", "cancel", "pass"]), st.sampled_from("abc"), st.integers(1, 80)),
        max_size=40,
    )
)
def test_no_debit_is_lost_or_made_twice_whatever_happens(acts: Sequence[tuple[str, str, int]]) -> None:
    """With limits per day on a clock that hardly moves, what is left is what was not used."""
    limits = {"requests_per_day": 12, "tokens_per_day": 900, "concurrent_requests": 4}
    day = Day(2, a=BudgetSettings(**limits), b=waiting(**limits), c=BudgetSettings())
    requests: list[Sent] = []
    tokens, number = dict.fromkeys("ab", 0), dict.fromkeys("ab", 0)
    for act, tenant, amount in acts:
        inside = [one for one in requests if one.request.stage is not RequestStage.ENDED]
        if act == "ask":
            requests.append(day.ask(tenant, prompt_tokens=amount))
        elif act == "pass":
            day.pass_time(0.001)
        elif inside:
            one = inside[amount % len(inside)]
            queued, was_sent = one.request.queued, one.is_sent
            usage = Usage(amount, amount, 0) if act == "end" and was_sent else None
            if queued.is_debited and was_sent:
                number[queued.arrived.payer] += 1
                tokens[queued.arrived.payer] += 2 * amount if usage is not None else queued.prompt_tokens
            one.end(usage, Outcome.COMPLETED if usage is not None else Outcome.CANCELLED)
        queues = day.dispatcher.queues
        within = sum(len(queue) for key, queue in queues.items() if not key.is_over_budget)
        assert not within or len(day.dispatcher._sent) == 2, "none within its budget waits while a seat is free"
    for one in requests:
        if one.request.stage is not RequestStage.ENDED and one.request.queued.is_debited and one.is_sent:
            number[one.request.queued.arrived.payer] += 1  # without an answer it costs no tokens
    day.dispatcher.end_all()
    for tenant in "ab":
        budget = day.dispatcher.budgets.budgets[tenant]
        assert budget.inside == 0
        assert not budget.waiters
        left = day.left(tenant)
        assert left[0] == 12 - number[tenant]
        assert left[1] == pytest.approx(max(0, 900 - tokens[tenant]), abs=1)  # a token comes back in 96 s


def test_a_sweep_looks_at_one_tenant_at_a_step_and_an_end_at_its_own_alone() -> None:
    names = [f"t{number}" for number in range(6)]
    day = Day(1, **{name: waiting(requests_per_minute=1) for name in names}, b=BudgetSettings())
    running = [day.ask("b"), *(day.ask(name) for name in names)]
    over = [day.ask(name) for name in names]
    assert all(one.request.queued.is_over_budget for one in over)
    day.now += 60.0
    running[1].end(outcome=Outcome.CANCELLED)  # of the first tenant
    assert [one.request.queued.is_over_budget for one in over] == [False] + 5 * [True]
    left = [
        sum(one.request.queued.is_over_budget for one in over) for _ in day.dispatcher.budgets.change_queues(day.now)
    ]
    assert set(left) == {5, 4, 3, 2, 1, 0}, "a step lets in one at most"
    assert not any(one.request.queued.is_over_budget for one in over)
