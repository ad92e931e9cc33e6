"""What both orderings by tenant promise: weights, newcomers, the inner ordering, and what is forgotten."""

from __future__ import annotations

import math

import pytest

from headway.domain.event import Admitted, Arrived, Completed, FirstToken, Refused
from headway.policies.contracts import OrderingPolicy
from headway.policies.ordering.fair_share import FairShare
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.highest_response_ratio import HighestResponseRatio
from headway.policies.ordering.smallest_volume_first import SmallestVolumeFirst
from headway.policies.ordering.weighted_fair_queue import WeightedFairQueue
from headway.scheduling.queue import WaitingQueue
from tests.support.tenant_desk import Desk, request

pytestmark = pytest.mark.parametrize("ordering", [FairShare, WeightedFairQueue])
ByTenant = type[FairShare] | type[WeightedFairQueue]


def test_weights_entitle_to_more(ordering: ByTenant) -> None:
    desk = Desk(ordering(tenant_weights={"gold": 3.0}))
    desk.arrive(*(request(t) for t in ("gold", "plain") for _ in range(40)))
    assert [desk.admit().tenant for _ in range(40)].count("gold") == 30


def test_coming_back_from_idling_earns_no_credit(ordering: ByTenant) -> None:
    desk = Desk(ordering())
    desk.arrive(*(request("busy") for _ in range(20)))
    for _ in range(10):
        desk.admit()
    desk.arrive(request("newcomer"), request("newcomer"))
    assert desk.policy.service("newcomer") == desk.policy.service("busy") == 1_200
    desk.arrive(request("third"))
    assert desk.policy.service("third") == 1_200


def test_with_nobody_waiting_a_newcomer_starts_where_the_last_one_was(ordering: ByTenant) -> None:
    """The case the published code of VTC leaves out: it would let the newcomer monopolise for 12,000 tokens."""
    desk = Desk(ordering())
    desk.arrive(*(request("busy", expected=1_000) for _ in range(6)))
    for _ in range(6):
        desk.admit()
    desk.arrive(request("newcomer"))
    assert desk.policy.service("newcomer") == desk.policy.service("busy") == 6 * 2_100


def test_fcfs_stands_inside_a_tenant_unless_another_is_named(ordering: ByTenant) -> None:
    late_small, early_large = request("a", 10, at=1.0), request("a", 1_000, at=0.0)
    inners: list[OrderingPolicy | None] = [None, Fcfs(), SmallestVolumeFirst()]
    for inner, first in zip(inners, (early_large, early_large, late_small), strict=True):
        desk = Desk(ordering(inner=inner))
        desk.arrive(late_small, early_large)
        assert desk.admit(2.0) is first


def test_inside_one_tenant_it_serves_as_the_inner_ordering_would(ordering: ByTenant) -> None:
    alone, desk = WaitingQueue(HighestResponseRatio()), Desk(ordering(inner=HighestResponseRatio()))
    for i in range(30):
        r = request("a", 7 * i % 13 * 100 + 1, at=float(i))
        alone.add(r)
        desk.arrive(r)
    assert [alone.pop(40.0).id for _ in range(30)] == [desk.admit(40.0).id for _ in range(30)]


def test_events_reach_the_inner_ordering(ordering: ByTenant) -> None:
    class Listening(Fcfs):
        def __init__(self) -> None:
            self.heard: list[object] = []

        def observe(self, event: object) -> None:
            self.heard.append(event)

    inner = Listening()
    policy = ordering(inner=inner)
    r = request("a")
    events = [Arrived(r, 0.0), Admitted(r, 0.0), FirstToken(r, 1.0), Completed(r, 2.0, 10), Refused(r, 2.0, "full")]
    for event in events:
        policy.observe(event)
    assert inner.heard == events


def test_choosing_changes_nothing(ordering: ByTenant) -> None:
    desk = Desk(ordering())
    desk.arrive(request("a"), request("b"))
    before = [desk.policy.service(t) for t in "abc"]
    desk.queue.head(0.0)
    desk.queue.head(5.0)
    assert [desk.policy.service(t) for t in "abc"] == before
    assert desk.queue.stands_until(5.0) == math.inf


def test_tenants_who_left_are_forgotten_without_changing_what_they_are_owed(ordering: ByTenant) -> None:
    """3,000 tenants one after another: memory stays bounded, and each comes back at the level of the others."""
    desk = Desk(ordering())
    for i in range(3_000):
        desk.arrive(request(f"tenant {i}"))
        desk.complete(desk.admit(), 10)
    assert len(desk.policy._accounts._accounts) <= 130
    level = desk.policy.service("tenant 2999")
    desk.arrive(request("tenant 0"), request("stranger"))
    assert desk.policy.service("tenant 0") == desk.policy.service("stranger") == level


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt_weight": -1.0}, "prompt_weight and output_weight must be at least 0"),
        ({"prompt_weight": 0.0, "output_weight": 0.0}, "not both 0"),
        ({"output_weight": math.nan}, "must be at least 0"),
        ({"tenant_weights": {"x": 0.0}}, "tenant_weights must be above 0, got 0 for tenant 'x'"),
    ],
)
def test_senseless_weights_are_refused(ordering: ByTenant, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ordering(**options)  # type: ignore[arg-type]
