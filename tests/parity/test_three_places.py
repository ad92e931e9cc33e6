"""One set of policies in three places: the simulator, the gateway and the plug-in take the same decisions.

One trace and bundle is played three times in virtual time: by the simulator's readable engine, by the gateway's
dispatcher before that engine (`tests/support/virtual_gateway.py`), and by vLLM's own scheduler with our plug-in
(`tests/parity/vllm_driver.py`). The same decisions are the same days, step by step: which request is admitted when, and
which is preempted.

The gateway hears of arrivals and ends one by one, so its days are compared twice. Heard at step ends, as an engine
hears of them, they are the simulator's up to the first preemption. Heard each at its own time, they are so as long as
requests wait, except where `DIFFERENT` names the reason, which docs/policies/places.md tells. With shared prefixes it
knows less of memory than an engine (`SHARED_DIFFERENT`); told what it lacks, it decides as the simulator.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from headway.policies.catalog import ADMISSION, ORDERING, PREEMPTION
from headway.policies.contracts import Need
from headway.policies.places import DIFFERENCES, DecisionPlace, needs_of
from headway.simulator.outcome import StepRecord
from headway.simulator.reference import simulate_reference
from tests.parity.parity_days import STEP_TIME
from tests.parity.place_days import PLAIN, SESSIONS, SHARED, PlaceDay, admission_days, order_days, preemption_days
from tests.parity.test_vllm_parity import Recorder, as_record, ask_vllm, first_difference
from tests.support.virtual_gateway import MemoryToldGateway, VirtualGateway

Steps = list[StepRecord]
PLUGIN = DecisionPlace.PLUGIN

DIFFERENT = {
    "fair-share": "one end at a time",
    "weighted-fair-queue": "one end at a time",
    "ewsjf": "taken in at arrival",
    "boost": "taken in at arrival",
    "peak-check": "one end at a time",
    "backfill": "one end at a time",
    "backfill/reserve-max": "one end at a time",
}
"""Policies that may choose otherwise where ends and arrivals are heard each at its own time: name → reason."""
SHARED_DIFFERENT = dict.fromkeys(
    ("past-future", "past-future-common-draws", "overflow-probability", "nested-wait", "backfill"), "shared blocks"
)
"""Policies that may choose otherwise where requests share blocks through a prefix cache: name → reason."""

LEAST_STEPS = {"backfill": 30, "nested-wait": 300}
"""Steps to the first preemption, where it comes before the 500th."""


def only(days: Any, *, asynchronous: bool) -> list[PlaceDay]:
    return [day for day in days if day.rules.async_scheduling is asynchronous]


ORDER_DAYS = [*only(order_days(SESSIONS), asynchronous=False), *only(order_days(PLAIN), asynchronous=True)]
ADMISSION_DAYS = [
    day
    for day in [*only(admission_days(SESSIONS), asynchronous=False), *only(admission_days(PLAIN), asynchronous=True)]
    if day.admission != "greedy"
]
GATEWAY_DAYS = {day.name: day for day in [*ORDER_DAYS, *ADMISSION_DAYS]}
SHARED_DAYS = {day.name: day for day in only(order_days(SHARED), asynchronous=True)}
SHARED_ADMISSION_DAYS = {
    day.name: day for day in only(admission_days(SHARED), asynchronous=False) if day.admission != "greedy"
}
PLUGIN_DAYS = {
    day.name: day
    for day in [
        *only(order_days(SESSIONS), asynchronous=False),
        *only(order_days(SHARED), asynchronous=True),
        *only(admission_days(SHARED), asynchronous=False),
        *only(admission_days(PLAIN), asynchronous=True),
        *only(admission_days(SESSIONS, "priced-work"), asynchronous=True),
        *only(preemption_days(SHARED), asynchronous=False),
    ]
}


def simulated(day: PlaceDay) -> Steps:
    recorder = Recorder()
    simulate_reference(day.trace, day.rules, STEP_TIME, day.policies(), observer=recorder)
    return recorder.steps


def through_gateway(day: PlaceDay, *, at_step_ends: bool = False) -> VirtualGateway:
    return VirtualGateway(day.trace, day.rules, STEP_TIME, day.gateway_policies(), at_step_ends=at_step_ends).run()


def to_first_preemption(*days: Steps) -> int:
    return min(next((number for number, step in enumerate(day) if step.preempted), len(day)) for day in days)


def chosen(day: PlaceDay) -> str:
    return day.ordering if day.admission == "greedy" else day.admission


@cache
def gateway_difference(name: str) -> str:
    """Between the simulator and the gateway that hears each event at its own time, as long as requests wait there."""
    day = GATEWAY_DAYS[name]
    expected, got = simulated(day), through_gateway(day)
    compared = min(to_first_preemption(expected, got.steps), got.full_steps)
    assert compared >= LEAST_STEPS.get(chosen(day), 500), "a comparison of the beginning proves little"
    return first_difference(expected[:compared], got.steps[:compared])


@pytest.mark.slow
@pytest.mark.parametrize("name", GATEWAY_DAYS)
def test_the_gateway_decides_as_the_simulator(name: str) -> None:
    day = GATEWAY_DAYS[name]
    expected, got = simulated(day), through_gateway(day, at_step_ends=True).steps
    compared = to_first_preemption(expected, got)
    if chosen(day) == "backfill" and day.rules.async_scheduling:
        compared -= 2  # "blocks taken ahead", which show as memory runs out
    assert first_difference(expected[:compared], got[:compared]) == ""
    if chosen(day) not in DIFFERENT:
        assert gateway_difference(name) == ""


@pytest.mark.slow
@pytest.mark.parametrize("policy", DIFFERENT)
def test_a_reason_is_named_only_where_a_day_shows_it(policy: str) -> None:
    assert DIFFERENT[policy] in DIFFERENCES
    assert any(gateway_difference(name) for name, day in GATEWAY_DAYS.items() if chosen(day) == policy)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED_DAYS)
def test_with_shared_prefixes_an_order_is_the_same_in_the_gateway(name: str) -> None:
    """Given the cached tokens of a head again each second, as an engine looks them up."""
    day = SHARED_DAYS[name]
    assert first_difference(simulated(day), through_gateway(day, at_step_ends=True).steps) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED_ADMISSION_DAYS)
def test_with_shared_prefixes_only_what_goes_by_blocks_in_use_is_decided_otherwise(name: str) -> None:
    day = SHARED_ADMISSION_DAYS[name]
    expected, got = simulated(day), through_gateway(day, at_step_ends=True).steps
    compared = to_first_preemption(expected, got)
    is_same = first_difference(expected[:compared], got[:compared]) == ""
    assert is_same is (chosen(day) not in SHARED_DIFFERENT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "day", [day for day in SHARED_ADMISSION_DAYS.values() if chosen(day) in SHARED_DIFFERENT], ids=chosen
)
def test_told_of_the_engines_blocks_the_gateway_decides_as_the_simulator(day: PlaceDay) -> None:
    """So nothing but "shared blocks" makes the difference."""
    told = MemoryToldGateway(day.trace, day.rules, STEP_TIME, day.gateway_policies(), at_step_ends=True).run()
    expected, got = simulated(day), told.steps
    compared = to_first_preemption(expected, got)
    assert compared >= LEAST_STEPS.get(chosen(day), 500), "a comparison of the beginning proves little"
    assert first_difference(expected[:compared], got[:compared]) == ""


def test_greedy_sends_less_through_a_gateway_than_an_engine_admits() -> None:
    """The reason "room for outputs"."""
    (day,) = [day for day in only(admission_days(PLAIN), asynchronous=False) if day.admission == "greedy"]
    preempted = sum(len(step.preempted) for step in simulated(day))
    assert through_gateway(day).preemptions < preempted / 4


def test_every_policy_is_compared() -> None:
    days = [*GATEWAY_DAYS.values(), *PLUGIN_DAYS.values()]
    assert {day.ordering for day in days} == set(ORDERING)
    assert {day.admission for day in days} == {*ADMISSION, "backfill/reserve-max"}
    assert {day.preemption for day in days} == set(PREEMPTION)
    assert {*DIFFERENT.values(), *SHARED_DIFFERENT.values()} <= set(DIFFERENCES)
    assert {day.admission for day in SHARED_ADMISSION_DAYS.values()} >= set(SHARED_DIFFERENT)


@cache
def plugin_answers() -> dict[str, Any]:
    return ask_vllm([day.plugin_day() for day in PLUGIN_DAYS.values()])


@pytest.mark.vllm
@pytest.mark.parametrize("name", PLUGIN_DAYS)
def test_the_plug_in_decides_as_the_simulator(name: str) -> None:
    day, answer = PLUGIN_DAYS[name], plugin_answers()[name]
    assert not answer["disabled"]
    expected, got = simulated(day), [as_record(step) for step in answer["steps"]]
    if Need.VICTIMS in needs_of("preemption", day.preemption):  # graded estimated, and not for its size alone
        compared = to_first_preemption(expected, got)
        assert expected != got or not any(step.preempted for step in expected), "the page may say that it is exact"
        expected, got = expected[:compared], got[:compared]
    assert first_difference(expected, got) == ""
