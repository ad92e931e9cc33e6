"""Where a policy works follows from what it needs, and a policy reads nothing that it does not declare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.event import Admitted, Arrived, Completed, FirstToken, Preempted
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.catalog import ALL_KINDS, ROOMS, Kind, build
from headway.policies.contracts import BackfillingAdmission, LanedOrdering, LossListener, Need
from headway.policies.event_fanout import EventFanout
from headway.policies.places import GIVEN, DecisionPlace, Grade, check_place, grade, needs_of
from headway.policies.prediction.running_mean import RunningMean
from headway.testing.scripted import ScriptedBatch

EVERY: list[tuple[Kind, str]] = [(kind, name) for kind in ALL_KINDS for name in ROOMS[kind]]
COSTS = ServiceCosts(1e-4, 2e-2)


class Watched(Request):
    """Notes when a policy reads how much of its prompt is cached."""

    read: set[Need] = set()  # noqa: RUF012 - shared on purpose

    @property
    def cached_prompt_tokens(self) -> int:  # type: ignore[override]
        Watched.read.add(Need.CACHED_TOKENS)
        return 16

    @cached_prompt_tokens.setter
    def cached_prompt_tokens(self, tokens: int) -> None:
        pass


class WatchedBatch(ScriptedBatch):
    """Notes when a policy reads steps, or the tokens of those that run, which age with them."""

    @property
    def decode_steps(self) -> int:  # type: ignore[override]
        Watched.read.add(Need.STEPS)
        return 40

    @decode_steps.setter
    def decode_steps(self, steps: int) -> None:
        pass

    def running(self) -> Sequence[Request]:
        Watched.read.add(Need.STEPS)
        return super().running()


class WatchedMemory(MemoryView):
    """Notes when a policy reads the whole memory, or what is free of it."""

    @property
    def blocks_free(self) -> int:  # type: ignore[override]
        Watched.read.add(Need.MEMORY_IN_USE)
        return 20

    @property
    def blocks_total(self) -> int:  # type: ignore[override]
        Watched.read.add(Need.MEMORY)
        return 30


def request(number: int, prompt_tokens: int) -> Watched:
    made = Watched(number, float(number), prompt_tokens, max_output_tokens=200, deadline=500.0 + number)
    made.estimate = RunningMean().predict(made)
    return made


def live(kind: Kind, policy: Any) -> None:
    """Ask a policy everything that its kind is asked, and let it hear a life of each kind."""
    waiting, running = [request(number, 60 + 90 * number) for number in range(3)], request(9, 300)
    running.produced_tokens = 30
    heard = EventFanout(policy)
    for one in (*waiting, running):
        heard.observe(Arrived(one, one.arrived_at))
    if kind == "ordering":
        lanes: dict[Any, Request] = {}
        for one in waiting:
            lanes.setdefault(policy.lane(one) if isinstance(policy, LanedOrdering) else None, one)
            policy.rank(one)
        if isinstance(policy, LanedOrdering):
            policy.choose(lanes, 600.0)
            policy.next_change(lanes, 600.0)
    if kind == "admission":
        batch, memory = WatchedBatch([running]), WatchedMemory(20, 30, 16)
        for one in waiting:
            policy.hold_steps(one, batch, memory, 10.0)
        if isinstance(policy, BackfillingAdmission):
            policy.may_pass(waiting[0], waiting[2], batch, memory, 10.0)
    if kind == "preemption":
        policy.victim([running, waiting[0]], 10.0)
    if kind == "prediction":
        policy.predict(waiting[0])
    heard.observe(Admitted(running, 10.0))
    heard.observe(FirstToken(running, 11.0))
    heard.observe(Preempted(running, 12.0))
    heard.observe(Admitted(running, 13.0))
    heard.observe(Completed(running, 14.0, 30))


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, name in EVERY if kind not in ("routing", "rescheduling")]
)
def test_a_policy_declares_what_it_reads(kind: Kind, name: str) -> None:
    policy = build(kind, name, costs=COSTS, seed=0, truth=lambda _: 50)
    Watched.read.clear()
    live(kind, policy)
    declared = needs_of(kind, name)
    assert Watched.read == declared & {Need.CACHED_TOKENS, Need.STEPS, Need.MEMORY, Need.MEMORY_IN_USE}
    assert isinstance(policy, BackfillingAdmission) == (Need.BEHIND_HEAD in declared)
    if kind == "admission" and name != "backfill":
        assert isinstance(policy, LossListener) == (Need.PREEMPTIONS in declared)
    if kind == "preemption":
        assert (name != "latest-admitted") == (Need.VICTIMS in declared)


def test_the_power_to_place_and_the_truth_are_needed_by_those_that_have_them() -> None:
    need_replicas = {name for kind, name in EVERY if Need.REPLICAS in needs_of(kind, name)}
    assert need_replicas == set(ROOMS["routing"])
    assert {name for kind, name in EVERY if Need.MOVES_OF_WAITING in needs_of(kind, name)} == {"take-back"}
    assert {name for kind, name in EVERY if Need.MOVES_OF_RUNNING in needs_of(kind, name)} == {"migrate"}
    assert {name for kind, name in EVERY if Need.TRUE_LENGTHS in needs_of(kind, name)} == {"oracle", "oracle-noisy"}


def test_a_policy_inside_another_brings_its_needs() -> None:
    assert needs_of("ordering", "fair-share/longest-prefix-match") == {Need.CACHED_TOKENS}
    assert Need.PREEMPTIONS in needs_of("admission", "backfill/overflow-probability")
    assert Need.PREEMPTIONS not in needs_of("admission", "backfill")


def test_every_place_says_what_it_gives_of_every_need() -> None:
    for place in DecisionPlace:
        assert list(GIVEN[place]) == list(Need)
        for given in GIVEN[place].values():
            assert bool(given.fix) == (given.grade is Grade.MISSING)


def test_a_grade_is_that_of_the_worst_need() -> None:
    assert grade("ordering", "fcfs", DecisionPlace.GATEWAY) is Grade.EXACT
    assert grade("admission", "backfill", DecisionPlace.GATEWAY) is Grade.ESTIMATED
    assert grade("preemption", "smallest-remaining-benefit", DecisionPlace.GATEWAY) is Grade.MISSING
    assert grade("routing", "least-work", DecisionPlace.SIMULATOR) is Grade.EXACT
    assert grade("routing", "least-work", DecisionPlace.PLUGIN) is Grade.MISSING


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_what_is_missing_is_refused_in_one_sentence(kind: Kind, name: str) -> None:
    for place in DecisionPlace:
        if grade(kind, name, place) is Grade.MISSING:
            with pytest.raises(ValueError, match=rf"^here: {name} needs [^.]*, but [^.]*: [^.]*$"):
                check_place(kind, name, place, "here")
        else:
            check_place(kind, name, place, "here")
