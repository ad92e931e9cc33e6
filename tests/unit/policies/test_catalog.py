"""The catalogue: one name from config to file to class to page, and sentences for what users mistype."""

from __future__ import annotations

import inspect
import math
import typing
from pathlib import Path
from typing import Any

import pytest

import headway.policies
from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.request import Request
from headway.policies.catalog import (
    ALIASES,
    ALL_KINDS,
    ROOMS,
    Kind,
    aliases,
    build,
    canonical,
    find,
    names,
    own_options,
)
from headway.policies.contracts import LanedOrdering, RankedOrdering

COSTS = ServiceCosts(1e-4, 1e-2)
EVERY: list[tuple[Kind, str]] = [(kind, name) for kind in ALL_KINDS for name in ROOMS[kind]]
ROOT = Path(headway.policies.__file__).parent
METHODS = {
    "admission": "hold_steps",
    "preemption": "victim",
    "prediction": "predict",
    "routing": "choose",
    "rescheduling": "moves",
}


def make(kind: Any, name: str, options: dict[str, object] | None = None) -> Any:
    return build(kind, name, options, costs=COSTS, seed=0, truth=lambda _: 5)


def sentence(kind: Any, name: str, options: dict[str, object] | None = None) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        make(kind, name, options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def full_name(kind: Kind, name: str) -> str:
    is_shared = sum(name in room for room in ROOMS.values()) > 1
    return f"{name}-{kind}" if is_shared else name


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_one_name_from_config_to_file_to_class(kind: Kind, name: str) -> None:
    """A name that two kinds share gets its kind at the end, so that no class and no file is there twice."""
    policy = find(kind, name)
    words = full_name(kind, name).split("-")
    assert policy.__name__ == "".join(word[0].upper() + word[1:] for word in words)
    assert policy.__module__ == f"headway.policies.{kind}.{'_'.join(words)}"


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_file_of_a_room_is_in_the_catalogue(kind: Kind) -> None:
    written = {path.stem.replace("_", "-") for path in (ROOT / kind).glob("*.py")} - {"--init--"}
    assert written == {full_name(kind, name) for name in ROOMS[kind]}


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_policy_is_built_with_its_defaults_and_answers_its_contract(kind: Kind, name: str) -> None:
    policy = make(kind, name)
    if kind == "ordering":
        assert isinstance(policy, (RankedOrdering, LanedOrdering))
    else:
        assert callable(getattr(policy, METHODS[kind]))
    assert make(kind, name) is not policy


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_policy_takes_keywords_only_and_no_bool_that_picks_a_behaviour(kind: Kind, name: str) -> None:
    policy = find(kind, name)
    if policy.__init__ is object.__init__:
        return
    parameters = inspect.signature(policy).parameters.values()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
    assert not any(isinstance(p.default, bool) for p in parameters)


def test_options_reach_the_policy() -> None:
    request = Request(0, 0.0, 150)
    assert make("ordering", "highest-response-ratio", {"lane_width": 10}).lane(request) == 2
    assert make("prediction", "declared-max", {"default_tokens": 3}).predict(request).output_tokens == 3


def test_costs_seed_and_truth_are_given_to_those_who_ask() -> None:
    request = Request(0, 0.0, 100)
    request.estimate = PointEstimate(10, "test")
    assert make("ordering", "shortest-job-first").rank(request) == pytest.approx(100 * 1e-4 + 10 * 1e-2)
    other = build("ordering", "random", costs=COSTS, seed=1)
    assert isinstance(other, RankedOrdering)
    assert make("ordering", "random").rank(request) != other.rank(request)
    assert make("prediction", "oracle").predict(request).output_tokens == 5


def test_a_slash_puts_an_ordering_inside_and_options_find_their_policy() -> None:
    policy = make("ordering", "fair-share/highest-response-ratio", {"lane_width": 10.0, "output_weight": 3.0})
    request = Request(0, 0.0, 150, tenant="t")
    assert policy.lane(request) == ("t", 2)
    twice = make("ordering", "fair-share/fair-share/shortest-prompt-first")
    assert twice.lane(request) == ("t", ("t", None))
    assert twice.rank(request) == 150


def test_mistyped_names_get_the_nearest_and_the_list() -> None:
    message = sentence("ordering", "smallest-volumne-first")
    assert message.startswith("unknown ordering policy 'smallest-volumne-first': did you mean 'smallest-volume-first'?")
    assert all(name in message for name in ROOMS["ordering"])
    assert "did you mean" not in sentence("admission", "zzzz")
    assert "unknown ordering policy 'nope'" in sentence("ordering", "fair-share/nope")
    assert "unknown ordering policy 'x'" in sentence("ordering", "x/fcfs")


@pytest.mark.parametrize("name", ["fair-share/", "/fcfs", "fair-share//fcfs", "/"])
def test_a_slash_needs_a_name_on_both_sides(name: str) -> None:
    expected = f"the ordering policy {name!r} lacks a name beside a slash; write OUTER/INNER, or one name"
    assert sentence("ordering", name) == expected


def test_mistyped_options_get_the_nearest_and_the_list() -> None:
    message = sentence("ordering", "highest-response-ratio", {"lane_widht": 1.5})
    assert message == (
        "unknown option 'lane_widht' of the ordering policy highest-response-ratio: "
        "did you mean 'lane_width'? choose from lane_width"
    )
    assert sentence("ordering", "fcfs", {"x": 1}) == "unknown option 'x': the ordering policy fcfs has no options"
    assert "'seed': the ordering policy random has no options" in sentence("ordering", "random", {"seed": 4})
    assert "choose from prompt_weight" in sentence("ordering", "fair-share/fcfs", {"inner": "fcfs"})


@pytest.mark.parametrize(
    ("kind", "name", "options", "expected"),
    [
        ("ordering", "highest-response-ratio", {"lane_width": "wide"}, "must be a number, got 'wide'"),
        ("ordering", "highest-response-ratio", {"lane_width": True}, "must be a number, got True"),
        ("ordering", "highest-response-ratio", {"lane_width": 1}, "highest-response-ratio: lane_width must be above 1"),
        ("prediction", "declared-max", {"default_tokens": 1.5}, "must be a whole number, got 1.5"),
        ("prediction", "declared-max", {"default_tokens": True}, "must be a whole number, got True"),
        (
            "ordering",
            "fair-share",
            {"tenant_weights": {"a": "x"}},
            "tenant_weights.a must be a number, got 'x'",
        ),
        ("ordering", "fair-share", {"tenant_weights": 3}, "a table of names, each with a number"),
        ("ordering", "fcfs/random", {}, "fcfs takes no other policy inside it"),
    ],
)
def test_bad_values_get_one_sentence(kind: Kind, name: str, options: dict[str, object], expected: str) -> None:
    assert expected in sentence(kind, name, options)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_without_an_order_gets_in(value: float) -> None:
    told = 0
    for kind, name in EVERY:
        policy = find(kind, name)
        for option in own_options(policy):
            if "float" not in str(typing.get_type_hints(policy.__init__)[option]):
                continue
            if (name, option, value) == ("ewsjf", "spread_max", math.inf):
                continue  # no lane is too wide then
            given = {"a": value} if option == "tenant_weights" else value
            assert option in sentence(kind, name, {option: given})
            told += 1
    assert told > 20


@pytest.mark.parametrize("name", ["oracle", "oracle-noisy"])
def test_an_oracle_without_truth_says_where_it_works(name: str) -> None:
    with pytest.raises(ValueError, match=f"^the {name} predictor works in the simulator only, because "):
        build("prediction", name, costs=COSTS, seed=0)


def test_an_alias_names_the_same_policy_and_is_never_a_name() -> None:
    told = {alias: (kind, name) for kind, short in ALIASES.items() for alias, name in short.items()}
    assert {"sjf", "spf", "hrrn", "svf", "edf", "vtc"} <= set(told)
    for alias, (kind, name) in told.items():
        assert find(kind, alias) is find(kind, name)
        assert canonical(kind, alias) == name
        assert alias in aliases(kind, name)
        assert type(make(kind, alias)) is type(make(kind, name))
        assert not any(alias in names(other) for other in ALL_KINDS)


def test_an_alias_works_inside_a_path_and_options_find_their_policy() -> None:
    policy = make("ordering", "vtc/hrrn", {"lane_width": 10.0, "output_weight": 3.0})
    assert policy.lane(Request(0, 0.0, 150, tenant="t")) == ("t", 2)
    assert canonical("ordering", "vtc/hrrn") == "fair-share/highest-response-ratio"
    assert canonical("ordering", "vtc/unknown") == "fair-share/unknown"
    assert canonical("admission", "sjf") == "sjf"
    assert "ordering policy fair-share/fcfs" in sentence("ordering", "vtc/fifo", {"x": 1})
