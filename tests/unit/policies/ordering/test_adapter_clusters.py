"""Adapter clusters: adapters in use come first, and no request is served later than the bound allows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.request import Request
from headway.policies import catalog
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import OrderingPolicy
from headway.policies.ordering.adapter_clusters import AdapterClusters
from headway.policies.ordering.highest_response_ratio import HighestResponseRatio
from headway.policies.ordering.shortest_prompt_first import ShortestPromptFirst
from headway.policies.prediction.declared_max import DeclaredMax
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.scheduler import Policies, Scheduler
from headway.testing.examples import examples
from headway.testing.strategies import COSTS


class Desk:
    """A scheduler under one ordering; requests are numbered in order of arrival."""

    def __init__(self, ordering: OrderingPolicy) -> None:
        self.scheduler = Scheduler(Policies(ordering, Greedy(), LatestAdmitted(), DeclaredMax()))
        self.now = 0.0
        self.arrived = self.admitted = 0
        self.cancelled: list[Request] = []
        self.waiting: list[Request] = []
        self.running: list[Request] = []

    def arrive(self, adapter: str | None, prompt_tokens: int = 100) -> Request:
        made = Request(self.arrived, self.now, prompt_tokens, adapter=adapter, max_output_tokens=10)
        made.estimate = PointEstimate(10, "test")
        self.arrived += 1
        self.waiting.append(made)
        self.scheduler.arrive(made, self.now)
        return made

    def admit(self) -> Request:
        request = self.scheduler.admit(self.now)
        self.waiting.remove(request)
        self.running.append(request)
        self.admitted += 1
        return request

    def complete(self, request: Request) -> None:
        self.running.remove(request)
        request.produced_tokens = 10
        self.scheduler.complete(request, self.now)

    def cancel(self, request: Request) -> None:
        self.waiting.remove(request)
        self.cancelled.append(request)
        self.scheduler.cancel(request.id, self.now)

    def order(self, requests: Sequence[str | None]) -> str:
        """The adapters in the order in which their requests are admitted, no request ending."""
        for adapter in requests:
            self.arrive(adapter)
        return "".join(self.admit().adapter or "-" for _ in requests)


def test_adapters_in_use_and_the_base_model_come_first() -> None:
    assert Desk(AdapterClusters(adapters_max=1)).order(["a", "b", "a", None, "b", "a"]) == "aa-abb"


def test_below_the_limit_of_adapters_the_order_is_the_inner_one() -> None:
    assert Desk(AdapterClusters(adapters_max=2)).order(["a", "b", "c", "a", "b", "c"]) == "ababcc"
    assert Desk(AdapterClusters(adapters_max=4)).order(["a", "b", "c", "a", "b", "c"]) == "abcabc"


def test_an_adapter_is_in_use_until_its_last_request_has_ended_or_lost_its_memory() -> None:
    desk = Desk(AdapterClusters(adapters_max=1))
    first, second = desk.arrive("a"), desk.arrive("a")
    desk.arrive("b")
    desk.arrive("a")
    assert [desk.admit(), desk.admit()] == [first, second]
    desk.complete(first)
    head = desk.scheduler.head(0.0)
    assert head is not None
    assert head.adapter == "a", "one of it runs still"
    desk.running.remove(second)
    desk.scheduler.preempted(second, 0.0)
    assert desk.scheduler.admit(0.0) is second, "what was preempted is in front"
    desk.scheduler.left(second, 0.0)
    head = desk.scheduler.head(0.0)
    assert head is not None
    assert head.adapter == "b", "none is in use: in order of arrival"


@pytest.mark.parametrize("places", [0, 1, 3])
def test_the_bound_is_reached_and_not_passed(places: int) -> None:
    desk = Desk(AdapterClusters(adapters_max=1, places_max=places))
    assert desk.order(["a", "b", *"aaaaa"]).index("b") == 1 + places


@settings(deadline=None, max_examples=examples(200))
@given(
    moves=st.lists(st.sampled_from([*"abcdabcd-", "admit", "admit", "complete", "cancel"]), max_size=120),
    picks=st.lists(st.integers(0, 30), min_size=120, max_size=120),
    places=st.integers(0, 6),
    adapters=st.integers(1, 3),
)
def test_over_fcfs_none_is_served_later_than_so_many_places_after_its_turn(
    moves: list[str], picks: list[int], places: int, adapters: int
) -> None:
    desk = Desk(AdapterClusters(adapters_max=adapters, places_max=places))

    def admit() -> None:
        before = desk.admitted
        request = desk.admit()
        assert isinstance(request.id, int)
        turn = request.id - sum(other.id < request.id for other in desk.cancelled)  # in order of arrival
        assert before <= turn + places, f"{request!r} was served {before - turn} places late"

    for move, pick in zip(moves, picks, strict=False):
        desk.now += pick % 3
        if move == "admit" and desk.waiting:
            admit()
        elif move == "complete" and desk.running:
            desk.complete(desk.running[pick % len(desk.running)])
        elif move == "cancel" and desk.waiting:
            desk.cancel(desk.waiting[pick % len(desk.waiting)])
        elif len(move) == 1:
            desk.arrive(None if move == "-" else move)
    while desk.waiting:
        admit()


def test_the_inner_ordering_chooses_among_adapters_that_may_be_served() -> None:
    desk = Desk(AdapterClusters(inner=ShortestPromptFirst(), adapters_max=1))
    for adapter, tokens in (("a", 50), ("b", 60), ("b", 10), ("a", 40), (None, 45), ("a", 30)):
        desk.arrive(adapter, tokens)
    assert [(desk.admit().adapter, desk.running[-1].prompt_tokens) for _ in range(6)] == [
        *(("b", 10), (None, 45), ("b", 60)),
        *(("a", 30), ("a", 40), ("a", 50)),
    ]


def test_an_inner_ordering_with_lanes_sees_one_head_a_lane() -> None:
    desk = Desk(AdapterClusters(inner=HighestResponseRatio(), adapters_max=1))
    plain = Desk(HighestResponseRatio())
    for at, (adapter, tokens) in enumerate((("a", 4_000), ("b", 100), ("a", 90), ("c", 4_000), ("b", 100))):
        desk.now = plain.now = float(at)
        desk.arrive(adapter, tokens)
        plain.arrive(None, tokens)
    desk.now = plain.now = 9.0
    assert desk.scheduler.queue.stands_until(9.0) == plain.scheduler.queue.stands_until(9.0)
    assert desk.admit().id == plain.admit().id, "nothing is in use: the inner ordering chooses among all"


def test_built_by_name_around_another_and_inside_fair_share() -> None:
    for name in ("adapter-clusters/priced-work", "fair-share/adapter-clusters/ewsjf"):
        policy = catalog.build("ordering", name, {"places_max": 5}, costs=COSTS, seed=0)
        desk = Desk(policy)
        assert sorted(desk.order(["a", "b", None])) == ["-", "a", "b"]
