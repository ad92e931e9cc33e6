"""A law that cannot fail proves nothing: each is given a policy, or a day, that breaks it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings

from headway.domain.estimate import PointEstimate
from headway.domain.replica_view import BatchView, MemoryView, ReplicaView
from headway.domain.request import Request, RequestView, expected_output_tokens
from headway.policies.contracts import UNTIL_THE_BATCH_CHANGES, LaneId
from headway.policies.ordering.fcfs import Fcfs
from headway.simulator.reference import simulate_reference
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace
from headway.testing import day_laws, laws
from headway.testing.strategies import PolicyNames


class NotANumber:
    def rank(self, request: RequestView) -> float:
        return math.nan if request.prompt_tokens > 3 else 1.0


class Tenants:
    """Lawful: a lane a tenant, served by name."""

    def lane(self, request: RequestView) -> LaneId:
        return request.tenant

    def rank(self, request: RequestView) -> float:
        return 0.0

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        return min(heads, key=str)

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        return math.inf


class FirstLaneOfTheMapping(Tenants):
    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        return next(iter(heads))


class Turns(Tenants):
    """Choosing changes it."""

    def __init__(self) -> None:
        self._turn = count()

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        return sorted(heads, key=str)[next(self._turn) % len(heads)]


class ChangesUnannounced(Tenants):
    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        return min(heads, key=str) if int(now) % 2 else max(heads, key=str)


_INSTANCES = count()


class LatestEstimate:
    """Ranks by estimates stamped at different times, without saying that it follows what is learned."""

    def rank(self, request: RequestView) -> float:
        return expected_output_tokens(request)


class SharesState:
    """Every instance orders otherwise."""

    def __init__(self) -> None:
        self._sign = 1 if next(_INSTANCES) % 2 else -1

    def rank(self, request: RequestView) -> float:
        return self._sign * request.prompt_tokens


class RefusesAlways:
    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        return UNTIL_THE_BATCH_CHANGES


class Overstates:
    """Refuses until the tenth step and promises a hundred."""

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        return 100 if batch.size and batch.decode_steps < 10 else 0


class Forgets:
    """Keeps the first answer for ever."""

    def __init__(self) -> None:
        self._answer: int | None = None

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        if self._answer is None:
            self._answer = 1 if batch.size else 0
        return self._answer


class InventsAVictim:
    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        return Request(running[0].id, 0.0, 1)


class RoundRobin:
    def __init__(self) -> None:
        self._turn = count()

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        return running[next(self._turn) % len(running)]


class NothingLeft:
    made_by = "nothing-left"

    def remaining_mean(self, produced_tokens: int) -> float:
        return max(0.0, 10.0 - produced_tokens)

    def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
        return max(1, 10 - produced_tokens)


class RoutesToACopy:
    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        return copy(replicas[0])


class RoutesInTurns:
    """Choosing changes it, where `routed` should."""

    def __init__(self) -> None:
        self._turn = count()

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        return replicas[next(self._turn) % len(replicas)]


class SaysNothingIsLeft:
    def predict(self, request: RequestView) -> NothingLeft:
        return NothingLeft()


class CountsQuestions:
    def __init__(self) -> None:
        self._asked = count(1)

    def predict(self, request: RequestView) -> PointEstimate:
        return PointEstimate(next(self._asked), "counts")


@pytest.fixture
def only_find() -> Iterator[None]:
    """The same examples every time, and no search for the smallest one that fails."""
    settings.register_profile("only-find", phases=[Phase.generate], derandomize=True, database=None)
    before = settings.get_current_profile_name()
    settings.load_profile("only-find")
    yield
    settings.load_profile(before)


@pytest.mark.usefixtures("only_find")
@pytest.mark.parametrize(
    ("law", "make"),
    [
        (laws.ranks_are_total, NotANumber),
        (laws.choose_names_a_lane_that_waits, FirstLaneOfTheMapping),
        (laws.choose_names_a_lane_that_waits, Turns),
        (laws.next_change_is_never_late, ChangesUnannounced),
        (laws.the_fast_queue_equals_the_naive_one, FirstLaneOfTheMapping),
        (laws.same_events_same_order, SharesState),
        (laws.equals_keep_the_order_of_arrival, LatestEstimate),
        (laws.an_empty_batch_is_answered_with_0, RefusesAlways),
        (laws.hold_steps_never_overstates, Overstates),
        (laws.admission_repeats_itself, Forgets),
        (laws.the_victim_runs, InventsAVictim),
        (laws.victims_repeat_themselves, RoundRobin),
        (laws.estimates_are_distributions, SaysNothingIsLeft),
        (laws.predictions_repeat_themselves, CountsQuestions),
        (laws.the_choice_was_offered, RoutesToACopy),
        (laws.choosing_changes_nothing, RoutesInTurns),
    ],
)
def test_a_broken_policy_is_found(law: Callable[[Any], None], make: Callable[[], Any]) -> None:
    with pytest.raises((AssertionError, ExceptionGroup)):
        law(make)


def test_every_law_is_shown_to_bite() -> None:
    marks = [mark for mark in test_a_broken_policy_is_found.pytestmark if mark.name == "parametrize"]
    shown = {case[0] for case in marks[0].args[1]}
    assert shown == {*laws.LANED, *laws.ADMISSION, *laws.PREEMPTION, *laws.PREDICTION, *laws.ROUTING}


@pytest.mark.slow
@pytest.mark.parametrize("law", [law for law in laws.LANED if law not in laws.RANKED])
def test_laws_of_lanes_do_not_pass_an_ordering_without_lanes(law: Callable[[Any], None]) -> None:
    with pytest.raises(AssertionError, match=r"Fcfs has no lanes: hold it to laws\.RANKED"):
        law(Fcfs)


def a_day(**rules: Any) -> day_laws.Day:
    """Three requests over two seats, with memory for both; the last has to wait."""
    trace = Trace("three", np.array([0.0, 0.0, 0.5]), np.array([20, 5, 9]), np.array([4, 3, 2]))
    limits = EngineRules(**{"kv_blocks": 4, "max_num_seqs": 2, "async_scheduling": False, **rules})
    log = day_laws.StepRecords()
    policies = PolicyNames("fcfs", "greedy", "latest-admitted", "running-mean").make(trace)
    outcome = simulate_reference(trace, limits, LinearStepTime(10**12, 0, 0), policies, observer=log)
    return day_laws.Day(trace, limits, outcome, log.steps, greedy=True)


def altered(day: day_laws.Day, column: str, row: int, by: int) -> day_laws.Day:
    values = getattr(day.outcome, column).copy()
    values[row] += by
    return day._replace(outcome=replace(day.outcome, **{column: values}))


def with_step(day: day_laws.Day, number: int, **changes: Any) -> day_laws.Day:
    steps = list(day.steps)
    steps[number] = steps[number]._replace(**changes)
    return day._replace(steps=steps)


def test_the_day_itself_is_lawful() -> None:
    day_laws.check_day(a_day())
    day_laws.same_day(a_day(), a_day())


@pytest.mark.parametrize(
    ("law", "spoil"),
    [
        (day_laws.every_request_ends_once, lambda day: day._replace(outcome=replace(day.outcome, refused={1: "no"}))),
        (day_laws.every_request_ends_once, lambda day: altered(day, "preemptions", 0, 2)),
        (day_laws.causes_precede_effects, lambda day: altered(day, "admitted_ps", 0, -1)),
        (day_laws.causes_precede_effects, lambda day: altered(day, "arrived_ps", 2, -1)),
        (day_laws.every_token_comes, lambda day: day._replace(outcome=replace(day.outcome, gaps=day.outcome.gaps[1:]))),
        (day_laws.every_token_comes, lambda day: altered(day, "ended_ps", 0, 1)),
        (day_laws.prompts_are_computed_once, lambda day: with_step(day, 0, chunks=((0, 20, 0), (1, 4, 0)))),
        (day_laws.a_request_finds_its_own_blocks, lambda day: with_step(day, 0, chunks=((0, 4, 16), (1, 5, 0)))),
        (day_laws.memory_is_finite, lambda day: with_step(day, 0, blocks_free=-1)),
        (day_laws.memory_is_finite, lambda day: with_step(day, 0, blocks_free=3)),
        (day_laws.memory_is_given_back, lambda day: with_step(day, -1, blocks_free=2)),
        (day_laws.limits_are_kept, lambda day: day._replace(rules=replace(day.rules, max_num_seqs=1))),
        (day_laws.limits_are_kept, lambda day: with_step(day, 1, admitted=(0,))),
        (day_laws.steps_follow_each_other, lambda day: with_step(day, 1, started_ps=1)),
        (day_laws.no_request_waits_for_an_idle_replica, lambda day: with_step(day, 0, started_ps=1)),
        (day_laws.greedy_wastes_no_room, lambda day: day._replace(rules=replace(day.rules, max_num_seqs=3))),
    ],
)
def test_a_spoilt_day_is_found(
    law: Callable[[day_laws.Day], None], spoil: Callable[[day_laws.Day], day_laws.Day]
) -> None:
    day = a_day()
    law(day)
    with pytest.raises(AssertionError):
        law(spoil(day))


def test_every_day_law_is_shown_to_bite() -> None:
    marks = [mark for mark in test_a_spoilt_day_is_found.pytestmark if mark.name == "parametrize"]
    assert {case[0] for case in marks[0].args[1]} == set(day_laws.DAY_LAWS)


def test_days_that_differ_are_told_apart() -> None:
    day = a_day()
    with pytest.raises(AssertionError, match="ended_ps differs"):
        day_laws.same_day(day, altered(day, "ended_ps", 0, 1))
    with pytest.raises(AssertionError, match="one day has"):
        day_laws.same_day(day, with_step(day, 1, decodes=1))
    with pytest.raises(AssertionError, match="before any length could show"):
        day_laws.same_until_a_request_ends(day, with_step(day, 0, decodes=1))
