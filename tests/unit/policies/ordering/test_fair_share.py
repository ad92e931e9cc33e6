"""Fair share: VTC's accounts by hand, its bound on the gap, and lanes of lanes."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Arrived, Cancelled, Completed, FirstToken, Refused
from headway.domain.request import Request
from headway.policies import tenant_accounts
from headway.policies.ordering.fair_share import FairShare
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.highest_response_ratio import HighestResponseRatio
from headway.policies.ordering.smallest_volume_first import SmallestVolumeFirst
from headway.scheduling.queue import WaitingQueue
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


def test_weights_entitle_to_more() -> None:
    desk = Desk(FairShare(tenant_weights={"gold": 3.0}))
    desk.arrive(*(request(t) for t in ("gold", "plain") for _ in range(40)))
    served = [desk.admit().tenant for _ in range(40)]
    assert served.count("gold") == 30


def test_coming_back_from_idling_earns_no_credit() -> None:
    """VTC's lift: to the least of those who wait."""
    desk = Desk(FairShare())
    desk.arrive(*(request("busy") for _ in range(20)))
    for _ in range(10):
        desk.admit()
    desk.arrive(request("newcomer"), request("newcomer"))
    assert desk.policy.service("newcomer") == desk.policy.service("busy") == 1200
    desk.arrive(request("third"))
    assert desk.policy.service("third") == 1200


def test_with_nobody_waiting_the_lift_is_to_the_last_who_waited() -> None:
    """The case the published code leaves out: it would let the newcomer monopolise for 12,000 tokens."""
    desk = Desk(FairShare())
    desk.arrive(*(request("busy", expected=1000) for _ in range(6)))
    for _ in range(6):
        desk.admit()
    desk.arrive(request("newcomer"))
    assert desk.policy.service("newcomer") == desk.policy.service("busy") == 6 * 2100


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


def test_fcfs_stands_inside_a_tenant_unless_another_is_named() -> None:
    late_small, early_large = request("a", 10, at=1.0), request("a", 1000, at=0.0)
    for inner, first in ((None, early_large), (Fcfs(), early_large), (SmallestVolumeFirst(), late_small)):
        desk = Desk(FairShare(inner=inner))
        desk.arrive(late_small, early_large)
        assert desk.admit(2.0) is first


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


def test_inside_one_tenant_it_serves_as_the_inner_ordering_would() -> None:
    sizes = [(7 * i % 13 * 100 + 1, float(i)) for i in range(30)]
    alone = WaitingQueue(HighestResponseRatio())
    desk = Desk(FairShare(inner=HighestResponseRatio()))
    for prompt_tokens, at in sizes:
        r = request("a", prompt_tokens, at=at)
        alone.add(r)
        desk.arrive(r)
    assert [alone.pop(40.0).id for _ in sizes] == [desk.admit(40.0).id for _ in sizes]


def test_events_reach_the_inner_ordering() -> None:
    class Listening(Fcfs):
        def __init__(self) -> None:
            self.heard: list[object] = []

        def observe(self, event: object) -> None:
            self.heard.append(event)

    inner = Listening()
    policy = FairShare(inner=inner)
    r = request("a")
    events = [Arrived(r, 0.0), Admitted(r, 0.0), FirstToken(r, 1.0), Completed(r, 2.0, 10), Refused(r, 2.0, "full")]
    for event in events:
        policy.observe(event)
    assert inner.heard == events


def test_choosing_changes_nothing() -> None:
    desk = Desk(FairShare())
    desk.arrive(request("a"), request("b"))
    before = [desk.policy.service(t) for t in "ab"]
    desk.queue.head(0.0)
    desk.queue.head(5.0)
    assert [desk.policy.service(t) for t in "abc"] == [*before, 0.0]


def test_tenants_who_left_are_forgotten_without_changing_what_they_are_owed() -> None:
    """10,000 tenants one after another: memory stays bounded, and each comes back at the level of the others."""
    desk = Desk(FairShare())
    for i in range(10_000):
        desk.arrive(request(f"tenant {i}"))
        desk.complete(desk.admit(), 10)
    assert len(desk.policy._accounts._accounts) <= 130
    level = desk.policy.service("tenant 9999")
    desk.arrive(request("tenant 0"), request("stranger"))
    assert desk.policy.service("tenant 0") == desk.policy.service("stranger") == level


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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt_weight": -1.0}, "prompt_weight and output_weight must be at least 0"),
        ({"prompt_weight": 0.0, "output_weight": 0.0}, "not both 0"),
        ({"output_weight": math.nan}, "must be at least 0"),
        ({"tenant_weights": {"x": 0.0}}, "tenant_weights must be above 0, got 0 for tenant 'x'"),
    ],
)
def test_senseless_weights_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FairShare(**options)  # type: ignore[arg-type]
