"""priced-work: work by hand, who is overdue when, the bound on drawn days, and an account that does not swing."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Arrived, Cancelled, Preempted
from headway.domain.request import Request
from headway.policies.contracts import LanedOrdering, LaneId
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.priced_work import PricedWork, work
from headway.scheduling.queue import WaitingQueue
from headway.scheduling.shadow_fcfs import ShadowFcfs
from headway.testing.examples import examples

# As docs/priced-work.md states them; not imported, or a slip in the code would pass.
PATIENCE = 2.0
SPARE_PATIENCE = 50.0
SPARE_SHARE = 0.009
TAIL = 0.99


def request(number: int, at: float, prompt: int, output: int = 1) -> Request:
    made = Request(number, at, prompt)
    made.estimate = PointEstimate(output, "test")
    return made


class Door:
    """A queue under the policy, told every event; `admitted` in order."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.policy = PricedWork(patience=patience)
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

    def cancel(self, number: int, now: float) -> None:
        leaving = self.queue.remove(number)
        assert leaving is not None
        self.policy.observe(Cancelled(leaving, now))
        self.queue.reconsider()


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


@pytest.mark.parametrize("patience", [PATIENCE, 1.5, 10.0])
def test_overdue_goes_first(patience: float) -> None:
    """Its turn by arrival comes once as much work as its own was admitted; so many times that wait is allowed."""
    door = Door(patience)
    door.arrive(request(0, 0.0, 1_000))
    for number in range(1, 4):
        door.arrive(request(number, 0.0, 600))
    assert door.admit(1.0).id == 1
    assert door.admit(2.0).id == 2  # 1,200 tokens' work admitted: by arrival request 0 had begun at 2 s
    due = patience * 2.0
    assert door.queue.stands_until(2.5) == due
    assert door.queue.head(math.nextafter(due, 0)).id == 3  # type: ignore[union-attr]
    assert door.queue.head(due).id == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("patience", [0.99, 50.5, math.nan])
def test_a_patience_out_of_bounds_is_told(patience: float) -> None:
    with pytest.raises(ValueError, match="patience must be from 1 to 50"):
        PricedWork(patience=patience)


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


def test_the_tail_is_what_99_of_100_would_have_waited_in_order_of_arrival() -> None:
    door = Door()
    for number in range(200):
        door.arrive(request(number, 1_000.0 * number, 100))
        door.admit(1_000.0 * number + number)  # alone, so its turn is then too: waits of 0 to 199 s
    assert door.policy._tail == 198.0


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
    st.tuples(
        st.sampled_from([0.0, 0.1, 1.0, 5.0]),
        st.integers(1, 2_000),
        st.integers(1, 50),
        st.none() | st.sampled_from([0.0, 0.05, 0.5, 3.0]),
    ),
    min_size=1,
    max_size=25,
)


@given(drawn_days, st.floats(0.2, 3.0))
@example([(0.0, 600, 1, None), (0.0, 500, 1, None), (0.0, 500, 1, None), (0.1, 2_000, 50, 0.05)] * 3, 1.0)
def test_the_bound(day: list[tuple[float, int, int, float | None]], speed: float) -> None:
    """docs/priced-work.md: once r and all before it in its lane are overdue, no request later than r is admitted first.

    So it waits for those it found, and no longer. One server takes 1/speed seconds for a work of 1,000. Some clients
    leave after a while. Turns by arrival are found by adding up from the start each time.
    """
    door, at = Door(), 0.0
    arrivals, leaves_at = [], {}
    for number, (gap, prompt, output, stays) in enumerate(day):
        at += gap
        arrivals.append(request(number, at, prompt, output))
        if stays is not None:
            leaves_at[number] = at + stays

    def seconds(one: Request) -> float:
        return work(one) / 1_000 / speed

    lanes, left = _serve(door, arrivals, leaves_at, seconds)
    due = _due_by_hand(arrivals, door.admitted, left, lanes)
    taken = {**left, **{one.id: when for when, one in door.admitted}}
    for place, late in enumerate(arrivals):
        before = [one.id for one in arrivals[: place + 1] if lanes[one.id] == lanes[late.id]]
        bound = max([due[number] for number in before if taken[number] >= due[late.id]], default=math.inf)
        for when, one in door.admitted:
            if bound < when < taken[late.id]:
                assert one.arrived_at <= late.arrived_at, f"{one!r} at {when} although {late!r} was due at {bound}"
        found = [one for one in arrivals[: place + 1] if taken[one.id] >= late.arrived_at]
        slack = sum(map(seconds, found)) + max(map(seconds, arrivals))  # what it found, and the one in service
        assert taken[late.id] <= bound + slack * (1 + 1e-9)


def test_an_overdue_request_whose_lane_changes_waits_for_the_due_of_those_before_it_there() -> None:
    """The cache has come to hold half of the overdue one's prompt: it stands behind one that is not due before 40 s."""
    door = Door()
    overdue = request(1, 10.0, 2_000)
    for arriving in (request(0, 0.0, 1_000), overdue, *[request(number, 10.0, 700) for number in range(2, 7)]):
        door.arrive(arriving)
    assert {door.admit(20.0).id for _ in range(5)} == {2, 3, 4, 5, 6}  # both have their turns at 20 s
    door.arrive(request(7, 25.0, 50))
    assert door.queue.head(31.0) is overdue
    overdue.cached_prompt_tokens = 1_000
    door.queue.requeue(overdue.id)
    assert [door.queue.head(at).id for at in (31.0, 39.0, 40.0)] == [7, 7, 0]  # type: ignore[union-attr]


def adverse_life(chance: Random) -> list[tuple[str, int, int, float]]:
    """Rushes of small requests and some large ones, and long pauses: moves with a number, prompt tokens and seconds."""
    kinds, weights = ["arrive", "admit", "cancel", "cache", "pass"], [40, 30, 6, 9, 15]
    return [
        (
            kind,
            chance.randint(0, 300),
            chance.randint(500, 3_000) if chance.random() < 0.2 else chance.randint(1, 100),
            chance.choice([0.1, 0.5, 2.0, 10.0]),
        )
        for kind in chance.choices(kinds, weights, k=chance.randint(10, 90))
    ]


@settings(max_examples=examples(100))
@given(st.integers(0, 2**32).map(lambda seed: adverse_life(Random(seed))))
def test_the_bound_while_the_cache_changes(life: list[tuple[str, int, int, float]]) -> None:
    """The first sentence of the bound, with lanes that change, requests that leave, and several admitted at once."""
    door, now, number = Door(), 0.0, 0
    waiting: dict[object, Request] = {}
    tails: dict[object, float] = {}
    latest: dict[object, float] = {}  # D(r), of those that are due

    def due(one: Request) -> float:
        return max(door.policy._waiting[one.id].due, one.arrived_at + tails[one.id])

    def look() -> None:
        for one in waiting.values():
            tails[one.id] = max(tails.get(one.id, 0.0), door.policy._tail)
        for one in waiting.values():
            if one.id in latest or now >= due(one):
                lane = door.queue._where[one.id][0]
                before = [
                    due(other)
                    for other in waiting.values()
                    if door.queue._where[other.id][0] == lane
                    and (other.arrived_at, other.id) <= (one.arrived_at, one.id)  # type: ignore[operator]
                ]
                latest[one.id] = max(latest.get(one.id, 0.0), *before)

    def admit() -> None:
        look()
        admitted = door.admit(now)
        del waiting[admitted.id]
        for one in waiting.values():
            passed = one.id in latest and now > latest[one.id] and admitted.arrived_at > one.arrived_at
            assert not passed, f"{admitted!r} at {now} although {one!r} was due at {latest[one.id]}"

    for move, which, prompt, seconds in life:
        if move == "arrive":
            for _ in range((1, 1, 3, 6)[which % 4]):
                waiting[number] = request(number, now, prompt, (1, 1, 1 + which)[which % 3])
                door.arrive(waiting[number])
                number += 1
        elif move == "pass":
            now += seconds
        elif waiting and move == "admit":
            for _ in range(min(len(waiting), (1, 1, 3)[which % 3])):
                admit()
        elif waiting:
            chosen = list(waiting.values())[which % len(waiting)]
            if move == "cancel":
                door.cancel(chosen.id, now)  # type: ignore[arg-type]
                del waiting[chosen.id]
            else:
                chosen.cached_prompt_tokens = prompt % chosen.prompt_tokens
                door.queue.requeue(chosen.id)
        look()
    while waiting:
        now += 1.0
        admit()


def test_a_cancelled_request_leaves_no_trace_in_the_shadow() -> None:
    """One huge request that is queued and cancelled makes none overdue: its work was not admitted."""
    door = Door()
    for number in range(4):
        door.arrive(request(number, 0.0, [1_000, 600, 600, 600][number]))
    door.arrive(request(9, 1.0, 1_000_000))
    door.cancel(9, 1.1)
    assert door.queue.stands_until(1.1) == math.inf  # no turn has come
    assert [door.admit(2.0).id, door.admit(3.0).id] == [1, 2]  # 1,200 tokens' work: the turn of request 0 came at 3 s
    assert door.queue.stands_until(3.5) == PATIENCE * 3.0


def test_a_request_cancelled_before_its_turn_moves_the_later_ones_up() -> None:
    door = Door()
    for number, prompt in enumerate([1_000, 1_000, 600, 600]):
        door.arrive(request(number, 0.0, prompt))
    door.cancel(0, 0.5)
    assert [door.admit(1.0).id, door.admit(2.0).id] == [2, 3]
    assert door.policy.next_change({0: door.queue.head(2.0)}, 2.0) == PATIENCE * 2.0  # type: ignore[dict-item]


def test_what_the_shadow_spent_on_a_request_that_is_cancelled_later_it_gets_back() -> None:
    door = Door()
    for number, prompt in enumerate([1_000, 1_000, 600, 600, 600]):
        door.arrive(request(number, 0.0, prompt))
    assert [door.admit(1.0).id, door.admit(2.0).id] == [2, 3]  # the turn of request 0, at 2 s
    door.cancel(0, 2.5)  # 1,200 tokens' work were admitted and are now spent on request 1
    assert door.policy.next_change({0: door.queue._where[1][1][3]}, 2.5) == PATIENCE * 2.5


def test_a_request_that_makes_way_is_overdue_after_50_times_the_wait() -> None:
    door = Door()
    for number in range(100):  # the account fills up, and sizes become known
        door.arrive(request(number, 0.0, 100 + number))
        door.admit(0.0)
    door.policy._credit = 18.0
    door.arrive(request(200, 10.0, 1_000))
    door.arrive(request(201, 10.0, 50))
    assert door.policy.lane(request(202, 10.0, 1_000))[0], "the largest makes way"
    door.arrive(request(203, 10.0, 2_000))
    assert door.admit(10.5).id == 201
    assert door.admit(11.0).id == 200
    for number in range(300, 330):
        door.arrive(request(number, 11.0, 100))
    for at in range(12, 32):
        door.admit(float(at))
    waited = 31.0 - 10.0  # 20 of 100 tokens' work do: the turn of request 203 came when 2,000 were admitted
    assert door.queue.stands_until(31.0) == 10.0 + SPARE_PATIENCE * waited


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


def spared_and_not(door: Door) -> tuple[Request, Request]:
    """Two that wait in a rush after quiet times: one makes way, one does not."""
    chance = Random(2)
    for number in range(300):
        door.arrive(request(number, float(number), chance.randint(100, 5_000)))
        door.admit(float(number))
    spared, other = request(1_000, 300.0, 6_000), request(1_001, 300.0, 1_000)
    for arriving in (spared, other):
        door.arrive(arriving)
    assert [door.policy.lane(one)[0] for one in (spared, other)] == [True, False]
    return spared, other


def test_who_makes_way_is_settled_at_arrival_whatever_the_cache_holds_later() -> None:
    """Else one that did not pay could wait behind one that is overdue only after 50 times the wait."""
    door = Door()
    spared, other = spared_and_not(door)
    spared.cached_prompt_tokens = 5_900
    other.prompt_tokens = 9_000  # stands for 8,000 tokens that the cache has lost
    for one in (spared, other):
        door.queue.requeue(one.id)
    lanes = [door.queue._where[one.id][0] for one in (spared, other)]
    assert lanes == [(True, 16), (False, 22)], "of works as they are now: √(100·6,001) and √(9,000·9,001)"


def test_who_makes_way_stays_so_over_a_suspension() -> None:
    door = Door()
    spared, other = spared_and_not(door)
    door.policy._credit = 0.0  # by now nobody more may
    again = door.queue.under(Fcfs()).under(door.policy)
    assert [again._where[one.id][0][0] for one in (spared, other)] == [True, False]  # type: ignore[index]


def test_a_preempted_request_does_not_make_way() -> None:
    door = Door()
    spared_and_not(door)
    back = request(2_000, 300.0, 50_000)
    assert door.policy.lane(back)[0]
    back.produced_tokens = 1
    assert not door.policy.lane(back)[0]


def _serve(
    door: Door, arrivals: list[Request], leaves_at: dict[int, float], seconds: Callable[[Request], float]
) -> tuple[dict[object, LaneId], dict[object, float]]:
    """One server, never idle while a request waits; gives all lanes, and when clients left."""
    lanes: dict[object, LaneId] = {}
    left: dict[object, float] = {}
    now = 0.0
    moments = sorted(
        [(one.arrived_at, 0, one.id) for one in arrivals] + [(at, 1, number) for number, at in leaves_at.items()]
    )
    while moments or len(door.queue):
        if not len(door.queue):
            now = max(now, moments[0][0])
        while moments and moments[0][0] <= now:
            at, leaves, number = moments.pop(0)
            if not leaves:
                lanes[number] = door.policy.lane(arrivals[number])
                door.arrive(arrivals[number])
            elif any(one.id == number for one in door.queue):
                door.cancel(number, at)
                left[number] = at
        if len(door.queue):
            now += seconds(door.admit(now))
    return lanes, left


def _due_by_hand(
    arrivals: list[Request],
    admitted: list[tuple[float, Request]],
    left: dict[object, float],
    lanes: dict[object, LaneId],
) -> dict[object, float]:
    """When each is overdue at the latest: its turn is when all work up to its own was admitted.

    Of the requests that leave, those that have left by then do not count.
    """
    due: dict[object, float] = {}
    waits: list[float] = []
    longest_tail = 0.0
    moments = sorted({when for when, _ in admitted} | set(left.values()))
    for place, one in enumerate(arrivals):
        turn = math.inf
        for when in moments:
            done = sum(work(other) for at, other in admitted if at <= when)
            needed = sum(work(other) for other in arrivals[: place + 1] if left.get(other.id, math.inf) > when)
            if when >= one.arrived_at and done >= needed * (1 - 1e-9):
                turn = when
                break
        waited = turn - one.arrived_at
        if left.get(one.id, math.inf) >= turn:
            waits.append(waited)
            longest_tail = max(longest_tail, sorted(waits)[min(len(waits) - 1, int(TAIL * len(waits)))])
        patience = SPARE_PATIENCE if lanes[one.id][0] else PATIENCE  # type: ignore[index]
        due[one.id] = one.arrived_at + patience * waited
    for one in arrivals:
        due[one.id] = max(due[one.id], one.arrived_at + longest_tail)
    return due


@pytest.mark.parametrize(("admitted_at", "given_back"), [(300.0, True), (300.5, False), (201.5, True)])
def test_a_share_is_given_back_where_the_wait_was_no_longer_than_the_tail(admitted_at: float, given_back: bool) -> None:
    """The tail is 100 s; one that makes way has waited a second in the shadow, and would be overdue after a hundred."""
    policy = PricedWork()

    def come(number: int, at: float, prompt: int) -> Request:
        one = request(number, at, prompt)
        policy.lane(one)
        policy.observe(Arrived(one, at))
        return one

    first = come(0, 0.0, 10)
    policy.observe(Admitted(first, 100.0))
    for number in range(1, 60):
        policy.observe(Admitted(come(number, 100.0 + number, 10), 100.0 + number))
    large = come(60, 200.0, 1_000)
    assert not policy.lane(request(-1, 200.0, 9_000))[0], "the account is spent: it makes way"
    others = [come(61 + number, 200.5, 2_000) for number in range(3)]
    policy.observe(Admitted(others[0], 201.0))  # pays for the large one in the shadow
    policy.observe(Admitted(large, admitted_at))
    assert policy.lane(request(-1, admitted_at, 9_000))[0] is given_back
