"""The search box, its fences, and the optimiser over them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.policies.ordering.ewsjf import Ewsjf
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.tunable import Tunable
from headway.tuning.optimiser import Optimiser, best_sampler
from headway.tuning.search import Fences, SearchBox

BOX = SearchBox((Tunable("x", -2.0, 2.0), Tunable("y", 0.01, 100.0, "log")))
optuna = pytest.importorskip("optuna", reason="tuning needs the extra 'tune'")


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_point_and_its_values_say_the_same(x: float, y: float) -> None:
    values = BOX.values({"x": x, "y": y})
    assert -2 <= values["x"] <= 2
    assert 0.01 <= values["y"] <= 100
    assert BOX.shares(values) == pytest.approx({"x": x, "y": y}, abs=1e-9)


def test_a_log_range_is_halved_at_its_geometric_mean() -> None:
    assert BOX.values({"x": 0.5, "y": 0.5}) == pytest.approx({"x": 0.0, "y": 1.0})
    assert BOX.shares({"x": 99.0}) == {"x": 1.0, "y": 0.5}
    assert Tunable("n", 1, 9, whole=True).value(0.49) == 5


def test_every_declared_option_is_one_and_has_its_default_in_the_box() -> None:
    from headway.policies.catalog import ORDERING
    from headway.policies.contracts import tunables
    from headway.policies.options import constructor_keywords

    tunable = {name: tunables(policy) for name, policy in ORDERING.items() if tunables(policy)}
    assert set(tunable) >= {"ewsjf", "ewsjf-published"}
    for name, declared in tunable.items():
        keywords = constructor_keywords(ORDERING[name])
        for one in declared:
            assert one.low <= keywords[one.name].default <= one.high, f"{name}: {one.name}"


def test_ranges_of_ones_own_are_checked() -> None:
    box = SearchBox.of(Ewsjf, "ewsjf", {"b_u": (1.0, 2.0)})
    assert next(t for t in box.dimensions if t.name == "b_u") == Tunable("b_u", 1.0, 2.0, "log")
    for ranges, said in (
        ({"nope": (0.0, 1.0)}, "no tunable option 'nope'"),
        ({"b_u": (2.0, 1.0)}, "must rise"),
        ({"b_u": (0.0, 1.0)}, "above 0"),
        ({"a_u": (0.0, math.inf)}, "must rise"),
    ):
        with pytest.raises(ValueError, match=said):
            SearchBox.of(Ewsjf, "ewsjf", ranges)
    with pytest.raises(ValueError, match="fcfs declares no tunable options"):
        SearchBox.of(Fcfs, "fcfs")


def test_fences_forbid_what_is_near() -> None:
    fences = Fences(radius=0.1)
    assert not fences.forbids({"x": 0.5, "y": 0.5})
    fences.add({"x": 0.5, "y": 0.5})
    assert fences.forbids({"x": 0.55, "y": 0.55})
    assert not fences.forbids({"x": 0.5, "y": 0.7})


def hill(shares: dict[str, float]) -> float:
    return -((shares["x"] - 0.8) ** 2) - (shares["y"] - 0.3) ** 2


def test_it_climbs_a_hill_and_repeats_itself() -> None:
    stories = []
    for _ in range(2):
        search = Optimiser(BOX, seed=3, sampler="tpe")
        search.suggest({"x": 0.0, "y": 1.0})
        for _ in range(30):
            number, point = search.ask()
            search.tell(number, hill(point))
        stories.append(search.results)
    assert stories[0] == stories[1]
    first, best = stories[0][0], max(stories[0], key=lambda told: told[1])
    assert first[0] == pytest.approx({"x": 0.5, "y": 0.5})
    assert best[1] > first[1] / 4


def test_what_is_fenced_is_not_asked_again_while_there_is_room() -> None:
    search = Optimiser(BOX, seed=1, fences=Fences(radius=0.3), sampler="tpe")
    search.fences.add({"x": 0.8, "y": 0.3})
    for _ in range(25):
        number, point = search.ask()
        assert not search.fences.forbids(point)
        search.tell(number, hill(point))


def test_where_everything_is_fenced_the_farthest_point_is_taken() -> None:
    search = Optimiser(BOX, seed=1, fences=Fences(radius=5.0), sampler="tpe")
    search.fences.add({"x": 0.0, "y": 0.0})
    number, point = search.ask()
    assert search.fences.distance(point) > 0.5
    search.tell(number, 1.0)
    assert search.best() == (point, 1.0)


def test_trials_of_an_earlier_life_are_believed() -> None:
    search = Optimiser(BOX, seed=1, sampler="tpe")
    assert search.best() is None
    search.recall({"x": 1.2, "y": 1.0}, 5.0)
    search.tell(search.ask()[0], 1.0)
    best = search.best()
    assert best is not None
    assert BOX.values(best[0]) == pytest.approx({"x": 1.2, "y": 1.0})


def test_the_sampler_is_one_that_can_run_here() -> None:
    search = Optimiser(BOX, seed=1)
    assert search.sampler == best_sampler()
    for _ in range(6):
        number, point = search.ask()
        search.tell(number, hill(point))
    assert len(search.results) == 6
