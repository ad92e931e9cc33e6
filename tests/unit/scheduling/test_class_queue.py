"""The class queue: online before offline, each class in its own order, against two sorted lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.event import Admitted, Arrived, Completed, Event, Preempted
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import Request, RequestView
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.shortest_prompt_first import ShortestPromptFirst
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.class_queue import ClassQueue
from headway.scheduling.online_views import without_offline
from headway.scheduling.queue import WaitingQueue
from headway.scheduling.scheduler import OfflinePolicies, Policies, Scheduler


def made(number: int, *, is_offline: bool, prompt: int = 10) -> Request:
    return Request(number, float(number), prompt, is_offline=is_offline)


MOVES = st.lists(
    st.tuples(st.sampled_from(["add", "resume", "pop", "remove"]), st.booleans(), st.integers(1, 5)), max_size=60
)


@given(MOVES)
def test_an_offline_request_is_served_only_where_no_online_one_waits(moves: list[tuple[str, bool, int]]) -> None:
    queue = ClassQueue(WaitingQueue(ShortestPromptFirst()), WaitingQueue(Fcfs()))
    front: dict[bool, list[Request]] = {False: [], True: []}  # the last one preempted is served first
    waiting: dict[bool, list[Request]] = {False: [], True: []}

    def expected() -> Request | None:
        for offline in (False, True):
            if front[offline]:
                return front[offline][-1]
            if waiting[offline]:
                return min(waiting[offline], key=lambda one: (0 if offline else one.prompt_tokens, one.arrived_at))
        return None

    for number, (move, offline, prompt) in enumerate(moves):
        request = made(number, is_offline=offline, prompt=prompt)
        if move == "add":
            queue.add(request)
            waiting[offline].append(request)
        elif move == "resume":
            queue.resume(request)
            front[offline].append(request)
        else:
            head = expected()
            assert queue.head(0.0) is head
            if head is None:
                continue
            taken = queue.pop(0.0) if move == "pop" else queue.remove(head.id)
            assert taken is head
            place = front if head in front[head.is_offline] else waiting
            place[head.is_offline].remove(head)
        assert len(queue) == len(set(queue)) == sum(map(len, (*front.values(), *waiting.values())))
        following = queue.following(0.0, 99)
        assert all(one.is_offline == queue.head(0.0).is_offline for one in following)  # type: ignore[union-attr]


def test_one_set_aside_gets_its_place_back_in_its_class() -> None:
    queue = ClassQueue(WaitingQueue(Fcfs()), WaitingQueue(Fcfs()))
    requests = [Request(number, 0.0, 1, is_offline=True) for number in range(3)]
    for request in requests:
        queue.add(request)
    queue.set_aside(0)
    queue.requeue(1)
    assert queue.head(0.0) is requests[1]
    queue.add(requests[0])
    assert queue.head(0.0) is requests[0]
    queue.expect(7)
    queue.forget(7)
    assert queue.remove(99) is None
    with pytest.raises(ValueError, match="is already waiting"):
        queue.add(requests[1])
    for _ in requests:
        queue.pop(0.0)
    with pytest.raises(IndexError):
        queue.pop(0.0)


class Heard:
    """An ordering, a predictor or a listener that notes the requests it hears of."""

    def __init__(self) -> None:
        self.ids: list[object] = []

    def observe(self, event: Event) -> None:
        self.ids.append(event.request.id)


class HearingOrder(Heard, Fcfs):
    pass


class HearingPredictor(Heard):
    def predict(self, request: RequestView) -> object:
        return RunningMean().predict(request)


def test_policies_hear_of_their_own_class_alone() -> None:
    orders, predictors, other = (HearingOrder(), HearingOrder()), (HearingPredictor(), HearingPredictor()), Heard()
    policies = Policies(orders[0], Greedy(), LatestAdmitted(), predictors[0], OfflinePolicies(orders[1], predictors[1]))  # type: ignore[arg-type]
    scheduler = Scheduler(policies, listeners=[other])
    requests = made(1, is_offline=False), made(2, is_offline=True)
    for request in requests:
        scheduler.arrive(request, 0.0)
    for request in requests:
        assert scheduler.admit(0.0) is request
        scheduler.preempted(request, 0.0)
        scheduler.take(request.id, 0.0)
        scheduler.complete(request, 0.0)
    times = len([Arrived, Admitted, Preempted, Admitted, Completed])
    for heard, number in ((orders[0], 1), (predictors[0], 1), (orders[1], 2), (predictors[1], 2)):
        assert heard.ids == [number] * times
    assert sorted(map(str, other.ids)) == ["1"] * times + ["2"] * times


def test_the_latest_offline_request_is_the_victim_before_any_online_one() -> None:
    scheduler = Scheduler(Policies(Fcfs(), Greedy(), LatestAdmitted(), RunningMean()))
    running = [made(1, is_offline=True), made(2, is_offline=True), made(3, is_offline=False)]
    for request in running:
        scheduler.arrive(request, 0.0)
    assert scheduler.victim(running, 0.0) is running[1]
    assert scheduler.victim(running[2:], 0.0) is running[2]


class Batch:
    version, decode_steps = 3, 4

    def __init__(self, *requests: Request) -> None:
        self._requests = requests
        self.size = len(requests)

    def running(self) -> tuple[Request, ...]:
        return self._requests


def test_admission_judges_online_requests_as_if_no_offline_ones_ran() -> None:
    shown: list[tuple[int, int]] = []

    class Nosy:
        def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
            assert (batch.version, batch.decode_steps, len(batch.running())) == (3, 4, batch.size)
            shown.append((batch.size, memory.blocks_free))
            return 5

    scheduler = Scheduler(Policies(Fcfs(), Nosy(), LatestAdmitted(), RunningMean()))
    online, offline = made(1, is_offline=False), made(2, is_offline=True, prompt=33)
    batch, memory = Batch(offline, made(3, is_offline=False)), MemoryView(2, 10, 16)
    scheduler.arrive(online, 0.0)
    assert scheduler.hold_steps(online, batch, memory, 0.0) == 5
    scheduler.arrive(offline, 0.0)
    assert scheduler.hold_steps(online, batch, memory, 0.0) == 5
    assert shown == [(2, 2), (1, 5)]
    assert scheduler.hold_steps(offline, batch, memory, 0.0) == 0  # the shell bounds it itself
    assert without_offline(Batch(offline, offline, offline, offline), memory)[1].blocks_free == 10
    assert without_offline(Batch(online), memory)[1] is memory


def test_the_offline_order_stays_while_the_policies_are_suspended() -> None:
    policies = Policies(
        ShortestPromptFirst(), Greedy(), LatestAdmitted(), RunningMean(), OfflinePolicies(ShortestPromptFirst())
    )
    scheduler = Scheduler(policies)
    for number, (offline, prompt) in enumerate([(True, 9), (True, 2), (False, 9), (False, 2)]):
        scheduler.arrive(made(number, is_offline=offline, prompt=prompt), float(number))
    scheduler.suspend()
    assert [scheduler.admit(9.0).id for _ in range(4)] == [2, 3, 1, 0]
