"""Fair share: VTC's accounts by hand, its bound on the gap, and lanes of lanes."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Cancelled
from headway.domain.request import Request
from headway.policies import tenant_accounts
from headway.policies.ordering.fair_share import FairShare
from headway.policies.ordering.highest_response_ratio import HighestResponseRatio
from tests.support.tenant_desk import Desk, request


def test_admission_charges_uncached_prompt_and_twice_the_expected_output() -> None:
    desk = Desk(FairShare())
    desk.arrive(request("a", prompt_tokens=100, cached=40, expected=10))
    desk.admit()
    assert desk.policy.service("a") == 60 + 2 * 10


def test_completion_corrects_the_charge_to_what_came() -> None:
    for true_length in (3, 25):
        desk = Desk(FairShare())
        desk.arrive(request("a", prompt_tokens=100, expected=10))
        desk.complete(desk.admit(), true_length)
        assert desk.policy.service("a") == 100 + 2 * true_length


def test_each_of_a_requests_sequences_is_charged() -> None:
    desk = Desk(FairShare())
    several = request("a", prompt_tokens=100, expected=10)
    several.sequences = 16
    desk.arrive(several)
    admitted = desk.admit()
    assert desk.policy.service("a") == 100 + 2 * 10 * 16
    desk.complete(admitted, 3)
    assert desk.policy.service("a") == 100 + 2 * 3 * 16


def test_a_recompute_is_not_charged_to_the_tenant() -> None:
    desk = Desk(FairShare())
    desk.arrive(request("a"))
    r = desk.admit()
    r.produced_tokens = 4
    desk.preempt(r)
    assert desk.admit() is r
    assert desk.policy.service("a") == 120
    desk.complete(r, 10)
    assert desk.policy.service("a") == 120


def test_cancelling_refunds_what_was_not_received() -> None:
    running, waiting, preempted = Desk(FairShare()), Desk(FairShare()), Desk(FairShare())
    for desk in (running, waiting, preempted):
        desk.arrive(request("a"))
    r = running.admit()
    r.produced_tokens = 4
    running.policy.observe(Cancelled(r, 0.0))
    assert running.policy.service("a") == 100 + 2 * 4
    r = preempted.admit()
    r.produced_tokens = 4
    preempted.preempt(r)
    preempted.policy.observe(Cancelled(r, 0.0))
    assert preempted.policy.service("a") == 100 + 2 * 4
    r = next(iter(waiting.queue))
    waiting.queue.remove(r.id)
    waiting.policy.observe(Cancelled(r, 0.0))
    assert waiting.policy.service("a") == 0


def test_after_any_cancellation_the_tenant_is_idle_again() -> None:
    """A tenant still thought to wait would not be lifted when it comes back."""
    for preempt in (False, True):
        desk = Desk(FairShare())
        desk.arrive(request("idle"))
        r = desk.admit()
        if preempt:
            desk.preempt(r)
            desk.queue.remove(r.id)
        desk.policy.observe(Cancelled(r, 0.0))
        desk.arrive(*(request("busy", expected=1000) for _ in range(3)))
        desk.admit()
        desk.arrive(request("idle"))
        assert desk.policy.service("idle") == desk.policy.service("busy") > 2000


def test_the_heavy_tenant_waits_for_the_light_one() -> None:
    desk = Desk(FairShare())
    desk.arrive(*(request("heavy", at=0.0) for _ in range(5)), *(request("light", at=1.0) for _ in range(2)))
    assert [desk.admit(1.0).tenant for _ in range(7)] == ["heavy", "light", "heavy", "light"] + ["heavy"] * 3


def test_a_preempted_tenant_is_lifted_as_a_newcomer_is() -> None:
    desk = Desk(FairShare())
    desk.arrive(request("a"))
    r = desk.admit()
    desk.arrive(*(request("b", expected=500) for _ in range(3)))
    desk.admit()
    desk.preempt(r)
    assert desk.policy.service("a") == desk.policy.service("b") == 120 + 1100


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 500)), min_size=40, max_size=40),
    st.integers(1, 8),
)
def test_two_backlogged_tenants_differ_by_no_more_than_one_charge(sizes: list[tuple[int, int]], seats: int) -> None:
    """With true lengths; VTC's bound is twice the largest charge, and this is half of it."""
    desk = Desk(FairShare())
    for i, (prompt_tokens, output_tokens) in enumerate(sizes):
        desk.arrive(request("ab"[i % 2], prompt_tokens, output_tokens))
    largest = max(p + 2 * o for p, o in sizes)
    given_service = {"a": 0, "b": 0}
    running: list[Request] = []
    while all(any(r.tenant == t for r in desk.queue) for t in "ab"):
        if len(running) == seats:
            done = running.pop(0)
            desk.complete(done, done.estimate.remaining_quantile(0.5, 0))  # type: ignore[union-attr]
        r = desk.admit()
        running.append(r)
        given_service[r.tenant] += r.prompt_tokens + 2 * r.estimate.remaining_quantile(0.5, 0)  # type: ignore[union-attr]
        assert abs(given_service["a"] - given_service["b"]) <= largest


@given(st.randoms(use_true_random=False))
def test_clients_that_leave_and_wrong_estimates_add_their_errors_to_the_gap_and_no_more(chance: Random) -> None:
    """Huge requests too, at random admitted, preempted, left and ended; both tenants always wait."""
    desk, running = Desk(FairShare()), list[Request]()
    largest, errors = 0, 0

    def expected(r: Request) -> int:
        assert isinstance(r.estimate, PointEstimate)
        return int(r.estimate.remaining_mean(0))

    for step in range(60):
        for tenant in ("a", "b"):
            while sum(r.tenant == tenant for r in desk.queue) < 2:
                sizes = chance.choice([1, 10_000, 2_000_000]), chance.choice([1, 100, 100_000])
                desk.arrive(request(tenant, *sizes, at=float(step)))
        what = chance.choice(["admit", "admit", "complete", "leave", "preempt"])
        if what == "admit":
            r = desk.admit(float(step))
            running.append(r)
            largest = max(largest, r.prompt_tokens + 2 * expected(r))
        elif running:
            r = running.pop(chance.randrange(len(running)))
            if what == "preempt":
                desk.preempt(r, float(step))
                continue
            came = chance.choice([0, 1, expected(r), 3 * expected(r)])
            errors += 2 * abs(came - expected(r))
            if what == "complete":
                desk.complete(r, came, float(step))
            else:
                r.produced_tokens = came
                desk.policy.observe(Cancelled(r, float(step)))
        gap = abs(desk.policy.service("a") - desk.policy.service("b"))
        assert gap <= largest + errors


def test_the_gap_after_a_client_left_is_what_did_not_come() -> None:
    """So the errors of ended requests belong to the bound, and not only those of requests still running."""
    desk = Desk(FairShare())
    desk.arrive(*[request("a", 10, 100_000) for _ in range(4)], *[request("b", 10, 100) for _ in range(4_000)])
    inside = [desk.admit() for _ in range(2_000)]
    large = [r for r in inside if r.tenant == "a"]
    assert len(large) == 3
    for r in large:
        desk.policy.observe(Cancelled(r, 1.0))
    assert desk.policy.service("a") == 30
    assert 2 * 200_010 < desk.policy.service("b") <= 3 * 200_010


def test_a_laned_ordering_stands_inside_too() -> None:
    """Each tenant's lanes are its own; the choice stands as long as the inner one does."""
    desk = Desk(FairShare(inner=HighestResponseRatio()))
    long, short, other = request("a", 10_000, at=0.0), request("a", 1_000, at=9.0), request("b", 1, at=0.5)
    desk.arrive(long, short, other)
    desk.policy.observe(Admitted(other, 9.0))  # b has had its turn, and waits with another
    desk.arrive(request("b", 1, at=9.0))
    assert desk.queue.head(9.5) is long
    assert desk.queue.stands_until(9.5) == pytest.approx(10.0, abs=1e-6)
    assert desk.queue.head(10.5) is short
    assert desk.queue.stands_until(10.5) == math.inf
    assert desk.policy.lane(short) == ("a", HighestResponseRatio().lane(short))


def test_a_bound_beyond_reason_taken_at_its_word_does_not_drown_all_later_charges() -> None:
    """A float that holds 2^62 tokens tells no two requests apart any more; and whoever comes is lifted to it."""
    desk = Desk(FairShare())
    desk.arrive(request("absurd", expected=2**62))
    absurd = desk.admit()
    desk.arrive(request("a"), request("b"))
    desk.admit()
    desk.complete(absurd, 10)
    before = desk.policy.service("b")
    desk.admit()
    assert desk.policy.service("b") - before == 100 + 2 * 10


def test_among_many_with_equal_service_each_is_looked_at_once() -> None:
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    desk = Desk(FairShare())
    for i in range(400):
        desk.arrive(request(Name(f"tenant {i:03d}"), at=1.0 - i / 1_000))
    compared = 0
    assert desk.admit(2.0).tenant == "tenant 399"
    assert compared < 4_000


def test_a_stream_of_new_tenants_behind_a_backlog_is_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newcomers keep the level where it is, so that nobody served is ever at it again."""
    monkeypatch.setattr(tenant_accounts, "_IDLE_MAX", 300)
    desk = Desk(FairShare())
    desk.arrive(*[request(f"first {i}") for i in range(20)])
    for i in range(3_000):
        desk.arrive(request(f"tenant {i}", prompt_tokens=100 + i % 7))
        desk.complete(desk.admit(), 10)
    assert len(desk.policy._accounts._accounts) <= 2 * (300 + 20) + 1
    greedy = request("greedy", prompt_tokens=90_000)
    desk.arrive(greedy)
    while desk.admit() is not greedy:
        pass
    for i in range(3_000, 5_000):
        desk.arrive(request(f"tenant {i}"))
        desk.complete(desk.admit(), 10)
    assert desk.policy.service("greedy") > desk.policy._accounts.level() + 80_000, "who took most is remembered longest"
