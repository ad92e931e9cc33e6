"""priced-work: work by hand, who is overdue when, the bound on drawn days, and an account that does not swing."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Arrived, Preempted
from headway.domain.request import Request
from headway.policies.contracts import LanedOrdering, LaneId
from headway.policies.ordering.priced_work import (
    PATIENCE,
    SPARE_PATIENCE,
    SPARE_SHARE,
    TAIL,
    PricedWork,
    work,
)
from headway.scheduling.queue import WaitingQueue
from headway.scheduling.shadow_fcfs import ShadowFcfs


def request(number: int, at: float, prompt: int, output: int = 1) -> Request:
    made = Request(number, at, prompt)
    made.estimate = PointEstimate(output, "test")
    return made


class Door:
    """A queue under the policy, told every event; `admitted` in order."""

    def __init__(self) -> None:
        self.policy = PricedWork()
        self.queue = WaitingQueue(self.policy)
        self.admitted: list[tuple[float, Request]] = []

    def arrive(self, arriving: Request) -> None:
        self.queue.add(arriving)
        self.policy.observe(Arrived(arriving, arriving.arrived_at))
        self.queue.reconsider()

    def admit(self, now: float) -> Request:
        head = self.queue.head(now)
        popped = self.queue.pop(now)
        assert popped is head
        self.policy.observe(Admitted(popped, now))
        self.queue.reconsider()
        self.admitted.append((now, popped))
        return popped


def test_a_turn_comes_later_than_an_admission_by_shadow_fcfs() -> None:
    """They are two quantities: FCFS starts a request once all before it are paid for, a turn needs its own work too."""
    door, shadow = Door(), ShadowFcfs(seats=False)
    long = request(0, 0.0, 1_000)
    short = [request(number, 0.0, 100) for number in range(1, 12)]
    for arriving in (long, *short):
        door.arrive(arriving)
        shadow.arrived(arriving.id, 0.0, arriving.prompt_tokens)
    lane = door.policy.lane(long)
    admitted_at, turn_at = [], []
    for second in range(1, 11):
        assert door.admit(float(second)) in short
        admitted_at += [float(second) for one in shadow.admitted(100) if one.request_id == long.id]
        if door.policy.next_change({lane: long}, float(second)) < math.inf:
            turn_at.append(float(second))
    assert admitted_at == [1.0]
    assert turn_at[0] > 1.0


def test_it_is_a_laned_ordering() -> None:
    assert isinstance(PricedWork(), LanedOrdering)


def test_work_is_the_geometric_mean_of_prefill_and_volume() -> None:
    """50 tokens behind a prompt of 100 hold 6,275 token·steps (arXiv 2606.22327v2)."""
    assert work(request(0, 0.0, 100, 50)) == pytest.approx(math.sqrt(100 * 6_275))


def test_volume_is_expected_over_the_distribution() -> None:
    """Of two requests that expect as many tokens the one whose length is uncertain has more work."""

    class TwoPoints:
        made_by = "test"

        def remaining_mean(self, produced_tokens: int) -> float:
            return 50.0

        def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
            return 1 if probability < 0.4 else 50 if probability < 0.6 else 99

    uncertain = Request(1, 0.0, 100)
    uncertain.estimate = TwoPoints()
    assert work(uncertain) > work(request(0, 0.0, 100, 50))


def test_the_cache_and_a_preemption_change_the_work() -> None:
    cached, back = request(0, 0.0, 10_000), request(1, 0.0, 100, 50)
    cached.cached_prompt_tokens = 9_900
    assert work(cached) == pytest.approx(math.sqrt(100 * 10_001))
    back.produced_tokens = 49
    assert work(back) == pytest.approx(math.sqrt(149 * 150))


def test_no_estimate_is_told_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"request 'x' has no length estimate.*--prediction"):
        PricedWork().lane(Request("x", 0.0, 10))


def test_least_work_first_and_first_come_among_equals() -> None:
    door = Door()
    for number, prompt in enumerate([5_000, 50, 500, 500]):
        door.arrive(request(number, float(number), prompt))
    assert [door.admit(4.0).id for _ in range(4)] == [1, 2, 3, 0]


def test_overdue_goes_first() -> None:
    """Its turn by arrival comes once as much work as its own was admitted; twice that wait is allowed."""
    door = Door()
    door.arrive(request(0, 0.0, 1_000))
    for number in range(1, 4):
        door.arrive(request(number, 0.0, 600))
    assert door.admit(1.0).id == 1
    assert door.admit(2.0).id == 2  # 1,200 tokens' work admitted: by arrival request 0 had begun at 2 s
    due = PATIENCE * 2.0
    assert door.queue.stands_until(2.5) == due
    assert door.queue.head(math.nextafter(due, 0)).id == 3  # type: ignore[union-attr]
    assert door.queue.head(due).id == 0  # type: ignore[union-attr]


def test_nobody_is_overdue_while_the_tail_is_not_at_stake() -> None:
    """Behind one that waited 100 s even by arrival, a request may wait 100 s, though its own turn came after 2 s."""
    door = Door()
    door.arrive(request(0, 0.0, 1_000))
    assert door.admit(100.0).id == 0
    door.arrive(request(1, 200.0, 1_000))
    for number in range(2, 5):
        door.arrive(request(number, 200.0, 600))
    assert [door.admit(201.0).id, door.admit(202.0).id] == [2, 3]
    assert door.queue.stands_until(203.0) == 300.0


def test_a_preempted_request_that_waits_by_rank_is_overdue_at_once() -> None:
    queue = WaitingQueue(PricedWork(), "by-rank")
    policy = queue._ordering
    assert isinstance(policy, PricedWork)
    for number, prompt in enumerate([5_000, 10]):
        arriving = request(number, 0.0, prompt)
        queue.add(arriving)
        policy.observe(Arrived(arriving, 0.0))
    victim = request(2, 1.0, 9_000)
    queue.resume(victim)
    policy.observe(Preempted(victim, 2.0))
    queue.reconsider()
    assert queue.head(2.0) is victim


drawn_days = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 1.0, 5.0]), st.integers(1, 2_000), st.integers(1, 50)), min_size=1, max_size=25
)


@given(drawn_days, st.floats(0.2, 3.0))
def test_the_bound(day: list[tuple[float, int, int]], speed: float) -> None:
    """docs/priced-work.md: once r and all before it in its lane are overdue, nobody later than r is admitted first.

    So it waits for those it found, and no longer. One server takes 1/speed seconds for a work of
    1,000. Turns by arrival are found by adding up, anew each time.
    """
    door, at = Door(), 0.0
    arrivals = []
    for number, (gap, prompt, output) in enumerate(day):
        at += gap
        arrivals.append(request(number, at, prompt, output))

    def seconds(one: Request) -> float:
        return work(one) / 1_000 / speed

    lanes = _serve(door, arrivals, seconds)
    due = _due_by_hand(arrivals, door.admitted, lanes)
    taken = {one.id: when for when, one in door.admitted}
    for place, late in enumerate(arrivals):
        before = [one.id for one in arrivals[: place + 1] if lanes[one.id] == lanes[late.id]]
        bound = max([due[number] for number in before if taken[number] >= due[late.id]], default=math.inf)
        for when, one in door.admitted:
            if bound < when < taken[late.id]:
                assert one.arrived_at <= late.arrived_at, f"{one!r} at {when} although {late!r} was due at {bound}"
        found = [one for one in arrivals[: place + 1] if taken[one.id] >= late.arrived_at]
        slack = sum(map(seconds, found)) + max(map(seconds, arrivals))  # what it found, and whoever is being served
        assert taken[late.id] <= bound + slack * (1 + 1e-9)


def test_at_most_nine_in_a_thousand_pay_and_the_account_does_not_swing() -> None:
    """The engine stands still and everybody waits: who makes way is not given back, and the share stands still too."""
    chance, door = Random(1), Door()
    makes_way = []
    for number in range(6_000):
        arriving = request(number, number / 10, int(chance.lognormvariate(6, 1.5)) + 1, chance.randint(1, 500))
        makes_way.append(door.policy.lane(arriving)[0])
        door.arrive(arriving)
        assert sum(makes_way) <= SPARE_SHARE * (number + 1) + 1
    for start in range(0, 6_000, 1_000):
        assert 0.7 * SPARE_SHARE < sum(makes_way[start : start + 1_000]) / 1_000 < 1.3 * SPARE_SHARE


def test_calm_saves_up_for_a_rush() -> None:
    """Where everybody is admitted at once nobody has paid: then 18 requests may in short order, and no more."""
    chance, door = Random(1), Door()
    for number in range(3_000):
        door.arrive(request(number, float(number), chance.randint(1, 5_000)))
        door.admit(float(number))
    makes_way = 0
    for number in range(3_000, 3_400):
        arriving = request(number, float(number), chance.randint(1, 5_000))
        makes_way += door.policy.lane(arriving)[0]
        door.arrive(arriving)
    assert 12 <= makes_way <= 18 + SPARE_SHARE * 400 + 1


def _serve(door: Door, arrivals: list[Request], seconds: Callable[[Request], float]) -> dict[object, LaneId]:
    """One server, never idle while somebody waits; gives everybody's lane."""
    lanes: dict[object, LaneId] = {}
    now, coming = 0.0, list(arrivals)
    while coming or len(door.queue):
        if not len(door.queue):
            now = max(now, coming[0].arrived_at)
        while coming and coming[0].arrived_at <= now:
            lanes[coming[0].id] = door.policy.lane(coming[0])
            door.arrive(coming.pop(0))
        now += seconds(door.admit(now))
    return lanes


def _due_by_hand(
    arrivals: list[Request], admitted: list[tuple[float, Request]], lanes: dict[object, LaneId]
) -> dict[object, float]:
    """When each is overdue at the latest; its turn is when all work up to its own was admitted, or nobody waited."""
    due: dict[object, float] = {}
    waits: list[float] = []
    longest_tail, needed = 0.0, 0.0
    for place, one in enumerate(arrivals):
        needed += work(one)
        done, out = 0.0, set()
        for when, other in admitted:
            done += work(other)
            out.add(other.id)
            emptied = when >= one.arrived_at and out >= {other.id for other in arrivals if other.arrived_at <= when}
            if done >= needed * (1 - 1e-9) or emptied:
                break
        waits.append(when - one.arrived_at)
        longest_tail = max(longest_tail, sorted(waits)[min(len(waits) - 1, int(TAIL * len(waits)))])
        patience = SPARE_PATIENCE if lanes[one.id][0] else PATIENCE  # type: ignore[index]
        due[one.id] = one.arrived_at + patience * waits[place]
    for one in arrivals:
        due[one.id] = max(due[one.id], one.arrived_at + longest_tail)
    return due
