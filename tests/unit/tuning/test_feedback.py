"""What the tuner goes by: the shadow queue, the drift test and the rewards."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.policies.lanes.partition import Span
from headway.scheduling.shadow_fcfs import ShadowFcfs
from headway.tuning.drift import DriftTest, ks_distance, ks_threshold
from headway.tuning.rewards import Emphasis, Objective, plain_reward, published_reward

works = st.lists(st.integers(1, 500), min_size=1, max_size=40)


@given(works, st.booleans(), st.randoms(use_true_random=False))
def test_beside_a_live_fcfs_the_shadow_is_exact(tokens: list[int], seats: bool, random: object) -> None:
    shadow, live, waits = ShadowFcfs(seats=seats), [], []
    waiting: list[tuple[int, float, int]] = []
    now = 0.0
    todo = list(enumerate(tokens))
    while todo or waiting:
        now += random.random()  # type: ignore[attr-defined]
        if todo and (not waiting or random.random() < 0.5):  # type: ignore[attr-defined]
            number, work = todo.pop(0)
            shadow.arrived(number, now, work)
            waiting.append((number, now, work))
        else:
            _, arrived_at, work = waiting.pop(0)
            live.append(arrived_at)
            waits += shadow.admitted(work)
    assert [wait.arrived_at for wait in waits] == live
    assert shadow.waiting() == []


@given(works, st.randoms(use_true_random=False))
def test_under_any_order_everybody_is_let_in_once_and_work_is_conserved(tokens: list[int], random: object) -> None:
    shadow, waits = ShadowFcfs(seats=False), []
    for number, work in enumerate(tokens):
        shadow.arrived(number, float(number), work)
    order = tokens.copy()
    random.shuffle(order)  # type: ignore[attr-defined]
    for place, work in enumerate(order):
        waits += shadow.admitted(work)
        done = sum(order[: place + 1])
        assert sum(tokens[: len(waits)]) >= min(done, sum(tokens))  # never behind the replica …
        assert sum(tokens[: len(waits) - 1]) < done  # … and ahead by part of one request at most
    assert len(waits) == len(tokens)


def test_where_seats_count_a_large_admission_pays_for_one_request_only() -> None:
    admitted = []
    for seats in (False, True):
        shadow = ShadowFcfs(seats=seats)
        for number, tokens in enumerate((10, 10, 100)):
            shadow.arrived(number, 0.0, tokens)
        admitted.append([one.request_id for one in shadow.admitted(100)])
    assert admitted == [[0, 1, 2], [0]]


def test_who_gave_up_is_not_let_in_on_paper() -> None:
    shadow = ShadowFcfs(seats=False)
    for number in range(3):
        shadow.arrived(number, float(number), 10)
    shadow.left(0)
    assert shadow.waiting() == [1.0, 2.0]
    assert shadow.admitted(10) == [(1, 1.0)]
    assert shadow.waiting() == [2.0]


@given(works, st.randoms(use_true_random=False))
def test_when_nobody_waits_live_nobody_waits_on_paper(tokens: list[int], random: object) -> None:
    """Whoever is let in on paper and gives up live was paid for by others: they are not left behind for ever."""
    shadow, waits = ShadowFcfs(seats=False), []
    for day in range(3):
        waiting = list(enumerate(tokens))
        for number, work in waiting:
            shadow.arrived((day, number), float(number), work)  # type: ignore[arg-type]
        random.shuffle(waiting)  # type: ignore[attr-defined]
        gave_up = 0
        for place, (number, work) in enumerate(waiting):
            if place % 2:
                gave_up += 1
                waits += shadow.left((day, number))  # type: ignore[arg-type]
            else:
                waits += shadow.admitted(work // 2)  # the cache held more by then
        assert shadow.waiting() == []
        assert len(waits) >= (day + 1) * (len(tokens) - gave_up)


def test_the_distance_of_two_samples_by_hand() -> None:
    assert ks_distance(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0
    assert ks_distance(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1
    assert ks_distance(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 4.0])) == 0.5
    assert ks_threshold(100, 100, 0.05) == pytest.approx(1.358 * math.sqrt(2 / 100), rel=1e-3)


def arrivals(drift: DriftTest, count: int, mean_tokens: float, rate: float, seed: int, start: float) -> list[str]:
    random = np.random.default_rng(seed)
    times = start + np.cumsum(random.exponential(1 / rate, count))
    lengths = random.lognormal(math.log(mean_tokens), 1.0, count)
    told = [drift.arrived(at, max(1, int(n))) for at, n in zip(times.tolist(), lengths.tolist(), strict=True)]
    return [text for text in told if text is not None]


@pytest.mark.parametrize("seed", range(8))
def test_no_alarm_while_nothing_changes(seed: int) -> None:
    assert arrivals(DriftTest(), 6_000, 500, 10.0, seed, 0.0) == []


@pytest.mark.parametrize(("mean_tokens", "rate", "what"), [(2_000, 10.0, "prompt lengths"), (500, 30.0, "gaps")])
def test_a_change_of_lengths_or_rate_is_told_within_a_sample(mean_tokens: float, rate: float, what: str) -> None:
    drift = DriftTest()
    assert arrivals(drift, 1_500, 500, 10.0, 1, 0.0) == []
    alarms = arrivals(drift, 500, mean_tokens, rate, 2, 1e6)
    assert what in alarms[0]
    drift.restart()
    assert arrivals(drift, 2_000, mean_tokens, rate, 3, 2e6) == []


def test_the_published_reward_by_hand() -> None:
    """Two lanes of 1 and 3 requests without variance: C 1, CV of (1, 3) 0.5, S 2/4, U 5/10."""
    sizes, lanes = [10, 50, 50, 50], [Span(10, 10, 10.0, 1), Span(50, 50, 50.0, 3)]
    assert published_reward(sizes, lanes, 4, 5.0) == pytest.approx(1 + 1 / 1.5 - 0.5 - 0.5)
    assert published_reward(sizes, lanes, 4, 5.0, Emphasis(0, 0, 0, 2)) == pytest.approx(-1.0)
    assert published_reward([], [], 4, 0.0) == pytest.approx(2.0)


def test_the_plain_reward_counts_the_good_and_fines_the_starved() -> None:
    objective = Objective(ttft_seconds=1.0, starved_seconds=10.0, starvation_penalty=2.0)
    ttft = np.array([0.5, 1.0, 5.0, 20.0])
    early = 0.01 * np.mean([1 / 1.5, 1 / 2, 1 / 6, 1 / 21])
    assert plain_reward(ttft, objective) == pytest.approx(0.5 - 2 * 0.25 + early)
    never = plain_reward(np.array([0.5, math.inf]), objective)
    assert never == pytest.approx(0.5 - 1.0 + 0.01 * (1 / 1.5) / 2)
    weighted = plain_reward(np.array([0.5, math.inf]), objective, np.array([3.0, 1.0]))
    assert weighted == pytest.approx(0.75 - 0.5 + 0.01 * 0.75 / 1.5)
    assert plain_reward(np.array([]), objective) == 0.0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.integers(0, 19), st.floats(0.1, 50))
def test_nobody_is_better_off_by_waiting_longer(ttft: list[float], who: int, more: float) -> None:
    later = ttft.copy()
    later[who % len(ttft)] += more
    assert plain_reward(np.array(later), Objective()) <= plain_reward(np.array(ttft), Objective()) + 1e-12
