"""The last hour in slices: sums are kept, names are bounded, and what is older than an hour is forgotten."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.observing.hour_series import LENGTH_CLASSES, HourSeries, length_class
from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from tests.support.gateway_requests import gateway_request

BODY = {"model": "m", "prompt": "x", "stream": True}


class Seconds:
    def __init__(self) -> None:
        self.now = 10_000.0

    def __call__(self) -> float:
        return self.now


def ended(hour: HourSeries, now: float, tenant: str = "", ttft: float | None = None, prompt_tokens: int = 50) -> None:
    """A request was answered at `now`, or refused if it has no TTFT."""
    request = gateway_request(body=BODY, tenant=tenant, prompt_tokens=prompt_tokens, arrived_at=now - 1.0)
    if ttft is None:
        hour.ended(request, Outcome.REFUSED, Reason.QUEUE_FULL, now)
        return
    request.relayed.status = 200
    request.relayed.first_byte_at = now - 1.0 + ttft
    hour.ended(request, Outcome.COMPLETED, None, now)


def total(entries: Any) -> int:
    return sum(entry["requests"] for entry in entries)


@given(st.lists(st.tuples(st.floats(0.0, 3_000.0), st.integers(0, 300)), max_size=400))
def test_no_request_of_the_hour_is_lost(arrivals: list[tuple[float, int]]) -> None:
    clock = Seconds()
    hour = HourSeries(clock)
    for after, tenant in sorted(arrivals):
        ended(hour, 10_000.0 + after, f"tenant {tenant}")
    clock.now = 13_100.0
    shown: Any = hour.shown()
    assert total(shown["tenants"]) == len(arrivals)
    assert len(shown["tenants"]) <= 11
    assert sum(sum(number or 0 for number in entry["by_slice"]) for entry in shown["tenants"]) == len(arrivals)
    assert shown["reasons"] == ({"queue-full": len(arrivals)} if arrivals else {})


@given(st.lists(st.tuples(st.floats(0.0, 4_000.0), st.integers(0, 40), st.none() | st.floats(0.01, 60.0)), max_size=60))
def test_the_sums_of_the_hour_are_those_of_its_slices(steps: list[tuple[float, int, float | None]]) -> None:
    """Whenever requests come and slices become too old; a request counts while its slice is among the last 180."""
    clock = Seconds()
    hour = HourSeries(clock)
    came = []
    for after, tenant, ttft in steps:
        clock.now += after
        ended(hour, clock.now, f"tenant {tenant}", ttft)
        came.append((clock.now // 20.0, f"tenant {tenant}", ttft))
    kept = [one for one in came if one[0] > clock.now // 20.0 - 180]
    shown: Any = hour.shown()
    refused = sum(ttft is None for _, _, ttft in kept)
    assert sum(shown["reasons"].values()) == refused
    assert sum(one["requests"] for one in shown["ttft"]) == len(kept) - refused
    assert sum(entry["not_answered"] for entry in shown["tenants"]) == refused
    by_tenant = Counter(name for _, name, _ in kept)
    for entry in shown["tenants"]:
        assert entry["requests"] == sum(number or 0 for number in entry["by_slice"])
        if entry["name"] != "others":
            assert entry["requests"] == by_tenant.pop(entry["name"])
        else:
            assert entry["requests"] == by_tenant.total()


def bytecodes_of(call: Callable[[], object]) -> int:
    """How many instructions of Python it takes, whatever else the machine does."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_a_look_costs_no_more_with_a_thousand_tenants() -> None:
    costs = []
    for tenants in (20, 1_000):
        clock = Seconds()
        hour = HourSeries(clock)
        requests = [gateway_request(body=BODY, tenant=f"tenant {number}") for number in range(tenants)]
        for number in range(180 * min(100, tenants)):  # 100 names a slice are kept
            hour.ended(requests[number % tenants], Outcome.COMPLETED, None, clock.now)
            clock.now += 20.0 / min(100, tenants)
        costs.append(bytecodes_of(hour.shown))
    assert costs[1] < 1.5 * costs[0]


def test_names_beyond_the_bound_are_others() -> None:
    clock = Seconds()
    hour = HourSeries(clock)
    for number in range(5_000):
        ended(hour, clock.now, f"tenant {number}")
    assert len(hour._slices[-1].tenants.by_name) == 101
    shown: Any = hour.shown()
    assert [entry["name"] for entry in shown["tenants"]][-1] == "others"
    assert total(shown["tenants"]) == 5_000


def test_a_tenant_may_be_called_others() -> None:
    clock = Seconds()
    hour = HourSeries(clock)
    ended(hour, clock.now, "others")
    shown: Any = hour.shown()
    assert [(entry["name"], entry["requests"], entry["by_slice"][-1]) for entry in shown["tenants"]] == [
        ("others", 1, 1)
    ]


def test_what_is_older_than_an_hour_is_forgotten() -> None:
    clock = Seconds()
    hour = HourSeries(clock)
    for _ in range(400):
        ended(hour, clock.now)
        clock.now += 20.0
    assert len(hour._slices) == 180
    assert total(hour.shown()["tenants"]) == 179  # the slice that has just begun is empty
    clock.now += 3_600.0
    assert total(hour.shown()["tenants"]) == 0


def test_rates_begin_with_the_gateway() -> None:
    clock = Seconds()
    hour = HourSeries(clock)
    for _ in range(40):
        ended(hour, clock.now)
        clock.now += 0.5
    clock.now -= 0.5
    shown: Any = hour.shown()
    assert shown["requests"]["refused"][:-1] == [None] * 179
    assert 2.0 <= shown["requests"]["refused"][-1] < 2.2
    clock.now = 10_020.5
    shown = hour.shown()
    assert shown["requests"]["refused"][-2:] == [2.0, None]  # a slice that has just begun has no rate yet


def test_ttft_is_that_of_each_length_class() -> None:
    clock = Seconds()
    hour = HourSeries(clock)
    for ttft, tokens in ((0.1, 255), (0.2, 256), (0.4, 2_048), (0.8, 16_384), (1.6, 16_384), (30.0, 16_384)):
        ended(hour, clock.now, ttft=ttft, prompt_tokens=tokens)
    shown: Any = hour.shown()
    assert [(one["class"], one["requests"]) for one in shown["ttft"]] == list(
        zip(LENGTH_CLASSES, (1, 1, 1, 3), strict=True)
    )
    for one, median in zip(shown["ttft"], (0.1, 0.2, 0.4, 1.6), strict=True):
        assert abs(one["median"] / median - 1) < 0.06
    assert abs(shown["ttft"][-1]["p99"] / 30.0 - 1) < 0.06


def test_the_most_that_waited_is_kept_and_goes_on_into_the_next_slice() -> None:
    clock = Seconds()
    hour = HourSeries(clock)
    for waiting in (3, 9, 5):
        hour.look(waiting)
    clock.now += 20.0
    ended(hour, clock.now)
    assert hour.shown()["waiting"][-2:] == [9, 5]  # type: ignore[index]


def test_length_classes_begin_at_their_bounds() -> None:
    assert [length_class(tokens) for tokens in (1, 255, 256, 2_047, 2_048, 16_383, 16_384)] == [0, 0, 1, 1, 2, 2, 3]
