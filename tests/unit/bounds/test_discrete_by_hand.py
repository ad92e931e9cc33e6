"""The discrete model's policies and searches by hand and in plain loops: doubling, Sorted-F, A_max, the neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given

from headway.bounds.adversary import Moves, Ratio, Regime, _belongs, change, climb, cross, draw
from headway.bounds.discrete import (
    Active,
    Attempt,
    Choice,
    DiscreteRequest,
    Instance,
    lower_bound,
    peak_of,
    replay,
    serve,
)
from headway.bounds.doubling import peak_of_staggered, rect, response, route, staggered_most
from headway.bounds.exact_search import _Search, _State
from headway.bounds.optimum import optimum
from headway.bounds.reference_policies import AMin, a_max, fcfs_peak, mc_sf, sorted_f
from tests.support.bound_instances import instances


def burst(*sizes: tuple[int, int], memory: int) -> Instance:
    return Instance(tuple(DiscreteRequest(prompt, output) for prompt, output in sizes), memory)


# doubling


def test_response_runs_phases_of_doubling_caps_staggered() -> None:
    """Memory 16. Phases of 1, 2, 4 and 8 steps; a prompt takes part once the cap is as long as it."""
    served = response(burst((1, 5), (2, 1), (2, 7), (1, 3), memory=16))
    assert [(a.place, a.started, a.steps) for a in served] == [
        *[(0, 0, 1), (3, 0, 1)],
        *[(0, 1, 2), (1, 1, 1), (2, 2, 2), (3, 2, 2)],
        *[(0, 4, 4), (2, 6, 4), (3, 8, 3)],
        *[(0, 12, 5), (2, 20, 7)],
    ]


def test_rect_gives_each_its_width_and_doubles_its_steps() -> None:
    """Widths of twice the prompt: 6, 4, 2 and 8 of 16, in the order of width times steps."""
    served = rect(burst((3, 3), (2, 2), (1, 1), (4, 3), memory=16))
    assert [(a.place, a.started, a.steps) for a in served] == [
        *[(0, 0, 1), (1, 0, 1), (2, 0, 1)],
        *[(3, 1, 1), (1, 1, 2), (0, 2, 2), (3, 3, 2), (0, 4, 3), (3, 5, 3)],
    ]


@pytest.mark.parametrize(
    ("policy", "instance", "words"),
    [
        (rect, burst((5, 1), (2, 1), memory=16), "one regime"),
        (rect, burst((2, 3), (2, 1), memory=16), "response-heavy"),
        (response, burst((5, 1), (2, 1), memory=16), "at most a quarter"),
        (response, Instance((DiscreteRequest(1, 1, 2), DiscreteRequest(1, 1)), 16), "burst"),
        (rect, Instance((DiscreteRequest(1, 1, 2), DiscreteRequest(1, 1)), 16), "burst"),
    ],
)
def test_a_regime_that_is_not_served_is_named(policy: object, instance: Instance, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        policy(instance)  # type: ignore[operator]


def test_at_a_quarter_of_the_memory_a_prompt_is_small() -> None:
    assert replay(burst((4, 2), memory=16), response(burst((4, 2), memory=16))).total_latency > 0
    assert replay(burst((4, 4), memory=16), rect(burst((4, 4), memory=16))).killed == 2


def test_route_takes_turns_of_doubling_length() -> None:
    """One large, one small, one that turns out response-heavy: turns of 1, 1, 1, 2, 2, 2, … steps."""
    served = route(burst((9, 2), (2, 2), (1, 6), memory=16))
    assert [(a.place, a.started, a.steps) for a in served] == [
        *[(1, 0, 1), (2, 0, 1), (2, 1, 1), (0, 2, 1)],
        *[(1, 3, 1), (1, 4, 1), (2, 5, 1), (2, 6, 1), (0, 7, 1), (0, 8, 1)],
        *[(1, 9, 1), (1, 10, 2), (2, 13, 1), (2, 14, 2), (2, 16, 1), (0, 17, 1), (0, 18, 2)],
        *[(2, 29, 1), (2, 30, 2), (2, 32, 4), (2, 36, 1)],
        *[(2, 61, 1), (2, 62, 2), (2, 64, 4), (2, 68, 6)],
    ]


@pytest.mark.parametrize(("memory", "cap", "prompt"), [(16, 4, 2), (40, 8, 3), (9, 8, 1), (100, 16, 16), (7, 1, 1)])
def test_as_many_are_staggered_as_fit(memory: int, cap: int, prompt: int) -> None:
    most = max([n for n in range(1, 200) if peak_of_staggered(n, cap, prompt) <= memory], default=1)
    assert staggered_most(memory, cap, prompt) == most


# policies


def naive_sorted_f(instance: Instance) -> list[int]:
    requests, order = instance.requests, []
    left = sorted(range(len(requests)), key=lambda place: (requests[place].output, place))
    while left:
        fitting = [
            (sum(requests[p].output for p in chosen) / size**2, size, number, chosen)
            for size in range(1, len(left) + 1)
            for number, chosen in enumerate(combinations(left, size))
            if peak_of((requests[p].prompt, requests[p].output) for p in chosen) <= instance.memory
        ]
        chosen = min(fitting)[3]
        order += chosen
        left = [place for place in left if place not in chosen]
    return order


@given(instances(arrivals=False, most=5))
def test_sorted_f_takes_the_set_of_least_output_per_square(instance: Instance) -> None:
    assert sorted(range(len(instance.requests)), key=lambda place: sorted_f(instance)._keys[place]) == naive_sorted_f(
        instance
    )


def test_a_max_expects_the_longest_output_of_all() -> None:
    """Outputs of up to 4: beside one of (2, 4) that made 1, a second of 1 prompt token peaks at 6 + 4 = 10."""
    running = [Active(0, 2, 1)]

    def starts(memory: int) -> Sequence[int]:
        instance = burst((2, 4), (1, 1), memory=memory)
        return a_max(instance).choose([1], running).start  # type: ignore[return-value]

    assert starts(10) == [1]
    assert starts(9) == []
    assert a_max(burst((9, 1), (1, 9), memory=10)).choose([0], []).start == [0], "alone it may always run"


def test_shortest_output_first_stops_at_one_that_does_not_fit_unless_it_skips() -> None:
    """Beside a running (3, 3) in memory 8: outputs 2 of prompt 4 do not fit, outputs 3 of prompt 0 do."""
    instance = burst((3, 3), (4, 2), (0, 3), memory=8)
    running = [Active(0, 3, 0)]
    assert mc_sf(instance).choose([1, 2], running).start == []
    assert mc_sf(instance, skips=True).choose([1, 2], running).start == []
    roomy = burst((1, 3), (4, 2), (0, 3), memory=8)
    assert mc_sf(roomy, skips=True).choose([1, 2], [Active(0, 1, 0)]).start == [2]
    assert mc_sf(roomy).choose([1, 2], [Active(0, 1, 0)]).start == []
    assert fcfs_peak(Instance((DiscreteRequest(1, 1, 3), DiscreteRequest(1, 9, 0)), 20)).choose([0, 1], []).start == [
        1,
        0,
    ]


def test_a_min_kills_the_shortest_estimate_and_remembers_what_it_made() -> None:
    policy = AMin(burst((1, 6), (1, 6), memory=8), shortest=2)
    choice = policy.choose([], [Active(0, 1, 3), Active(1, 1, 2)])
    assert choice == Choice([1], [])
    assert policy._learnt == [2, 2]
    choice = policy.choose([1], [Active(0, 1, 3)])
    assert choice.kill == []
    assert policy.choose([], [Active(0, 1, 4), Active(1, 1, 3)]).kill == [1]
    assert policy._learnt == [2, 3]


# replay


@pytest.mark.parametrize("steps", [-1, 3])
def test_an_attempt_makes_between_none_and_all_tokens(steps: int) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        replay(burst((1, 2), memory=5), [Attempt(0, 0, steps)])
    assert replay(burst((1, 2), memory=5), [Attempt(0, 0, 0), Attempt(0, 0, 2)]).total_latency == 2


def test_a_policy_that_overfills_memory_is_stopped() -> None:
    class All:
        def choose(self, waiting: Sequence[int], active: Sequence[Active]) -> Choice:
            return Choice((), list(waiting))

    with pytest.raises(ValueError, match=r"holds \d+ tokens, there is memory for 6"):
        serve(burst((2, 2), (2, 2), memory=6), All())


def test_a_request_is_there_from_the_start_unless_said() -> None:
    assert DiscreteRequest(1, 1).arrived == 0


# the searches


@given(instances(most=4))
def test_the_bound_of_the_search_starts_as_that_of_the_instance(instance: Instance) -> None:
    search = _Search(instance)
    assert search._left(search._first) == lower_bound(instance)


def test_what_runs_counts_with_the_volume_that_it_still_takes() -> None:
    """It holds 3 and has 2 to go: 4 + 5 = 9 token-steps in memory 5, two steps; with one of (1, 1) 11, three."""
    search = _Search(burst((1, 1), (2, 3), memory=5))
    waiting = tuple(int(kind == DiscreteRequest(1, 1)) for kind in search._kinds)
    assert search._left(_State(0, waiting, ((3, 2),))) == max(2 + 1, 1 + 3)


@pytest.mark.parametrize("sizes", [((8, 1), (1, 4), (1, 4)), ((3, 2), (2, 2), (1, 5)), ((2, 2),), ((1, 9), (1, 9))])
def test_the_optimum_is_proven_and_repeats(sizes: tuple[tuple[int, int], ...]) -> None:
    instance = burst(*sizes, memory=12)
    found = optimum(instance)
    assert found.is_proven
    assert found.bound == found.total_latency == _Search(instance).run(100_000)


class Rolls:
    """Chance that the test decides."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = list(numbers)

    def integers(self, *_: int) -> int:
        return self._numbers.pop(0)

    def choice(self, of: object, *_: object, **__: object) -> object:
        return self._numbers.pop(0)

    def uniform(self, low: float, high: float) -> float:
        return float(np.log(self._numbers.pop(0) + 0.5))


SMALL = Regime("small", 4, 20, lambda request, memory: request.prompt <= memory / 2, latest=9)
START = Instance((DiscreteRequest(3, 2, 1), DiscreteRequest(4, 5, 0), DiscreteRequest(1, 1, 9)), 20)


@pytest.mark.parametrize(
    ("rolls", "expected"),
    [
        ((1, 0, 6, 7, 2), [(3, 2, 1), (4, 5, 0), (1, 1, 9), (6, 7, 2)]),  # one more
        ((1, 1), [(3, 2, 1), (1, 1, 9)]),  # one less
        ((1, 2), [(3, 2, 1), (4, 5, 0), (1, 1, 9), (4, 5, 0)]),  # doubled
        ((1, 3, 6, 7, 2), [(3, 2, 1), (6, 7, 2), (1, 1, 9)]),  # drawn again
        ((1, 4, 3, 0), [(3, 2, 1), (7, 5, 0), (1, 1, 9)]),  # a longer prompt
        ((1, 5, -3, 1), [(3, 2, 1), (4, 2, 0), (1, 1, 9)]),  # a shorter output
        ((0, 4, -1, 2), [(3, 2, 0), (4, 5, 0), (1, 1, 9)]),  # an earlier arrival
        ((2, 4, 1, 2), [(3, 2, 1), (4, 5, 0), (1, 1, 9)]),  # a later one than the regime allows: as before
        ((2, 4, -1, 0), [(3, 2, 1), (4, 5, 0), (1, 1, 9)]),  # no prompt: as before
    ],
)
def test_a_neighbour(rolls: tuple[int, ...], expected: list[tuple[int, int, int]]) -> None:
    found = change(START, SMALL, Rolls(*rolls))  # type: ignore[arg-type]
    assert [tuple(request) for request in found.requests] == expected


def test_an_instance_grows_to_the_most_and_shrinks_to_two() -> None:
    full = Instance((*START.requests, DiscreteRequest(1, 1)), 20)
    for kind in (0, 2):
        assert len(change(full, SMALL, Rolls(0, kind, 1, 0)).requests) == 4  # type: ignore[arg-type]
    two = Instance(START.requests[:2], 20)
    assert len(change(two, SMALL, Rolls(0, 1, 1, 0)).requests) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "belongs"),
    [
        ((1, 1, 0), True),
        ((0, 1, 0), False),
        ((1, 0, 0), False),
        ((1, 1, 9), True),
        ((1, 1, 10), False),
        ((1, 1, -1), False),
        ((10, 10, 0), True),
        ((10, 11, 0), False),
        ((11, 1, 0), False),
    ],
)
def test_what_belongs_to_a_regime(request_: tuple[int, int, int], belongs: bool) -> None:
    assert _belongs(DiscreteRequest(*request_), SMALL) is belongs


def test_drawn_and_crossed_instances_have_two_requests_to_the_most() -> None:
    rng = np.random.default_rng(0)
    sizes = {len(draw(SMALL, rng).requests) for _ in range(200)}
    assert sizes == {2, 3, 4}
    other = draw(SMALL, rng)
    for _ in range(100):
        child = cross(START, other, SMALL, rng)
        assert 2 <= len(child.requests) <= 4
        assert set(child.requests) <= {*START.requests, *other.requests}
    assert {len(cross(START, other, SMALL, rng).requests) for _ in range(100)} == {2, 3, 4}


class Number(NamedTuple):
    instance: int

    @property
    def value(self) -> float:
        return float(self.instance)


def test_climbing_and_evolution_take_turns_and_keep_the_worst() -> None:
    seen: list[tuple[str, int, float]] = []

    def worse_than(instance: int, value: float) -> Number | None:
        seen.append(("tried", instance, value))
        return Number(instance) if instance > value else None

    def changed(instance: int, rng: object) -> int:
        return instance + 1

    def crossed(one: int, other: int, rng: object) -> int:
        return 100 + min(one, other)

    moves: Moves[int, Number] = Moves(worse_than, changed, crossed)
    worst = climb([Number(5), Number(3)], moves, np.random.default_rng(0), steps=4)
    climbs, evolved = seen[::2], seen[1::2]
    assert climbs[0] == ("tried", 6, 5.0)
    assert all(instance == value + 1 for _, instance, value in climbs)
    assert all(instance > 100 for _, instance, _ in evolved)
    assert worst.instance == max(instance for _, instance, _ in seen)
    assert climb([Number(2), Number(9)], moves, np.random.default_rng(0), steps=0) == Number(9)
    with pytest.raises(ValueError, match="nothing to start from"):
        climb([], moves, np.random.default_rng(0), steps=4)


def test_a_ratio_is_of_the_cost_to_the_best() -> None:
    assert Ratio(START, 9, 6).value == 1.5
