"""The histogram's law in plain loops over all completions: decayed hazards, kind by kind, over a log-logistic prior."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.event import Arrived, Completed
from headway.domain.request import Request
from headway.policies.prediction.histogram import Histogram

EDGES = [*range(9), *(round(2 ** (quarter / 4)) for quarter in range(13, 73))]


class Done(NamedTuple):
    """A completion."""

    tokens: int
    tenant: str
    session: str | None
    prompt: int
    bound: int | None


completions = st.builds(
    Done,
    st.sampled_from([1, 2, 5, 8, 9, 30, 700, 300_000]) | st.integers(1, 60),
    st.sampled_from(["a", "b"]),
    st.sampled_from([None, "s", "t"]),
    st.sampled_from([10, 100]),
    st.sampled_from([None, 8, 40]),
)


def made(number: int, done: Done) -> Request:
    return Request(number, 0.0, done.prompt, tenant=done.tenant, session=done.session, max_output_tokens=done.bound)


def hazards_by_hand(seen: list[Done], asked: Done, half_life: float, parent: float, prior: float) -> list[float]:
    survival = [1 / (1 + (edge / prior) ** 2) for edge in EDGES]
    hazards = [1 - after / before for before, after in pairwise(survival)]
    kinds: list[Any] = [
        lambda one: True,
        lambda one: one.tenant == asked.tenant,
        lambda one: (one.tenant, one.bound, one.prompt) == (asked.tenant, asked.bound, asked.prompt),
    ]
    if asked.session is not None:
        kinds.append(lambda one: (one.tenant, one.session) == (asked.tenant, asked.session))
    for kind in kinds:
        own = [one for one in seen if kind(one)]
        ended, reached = [0.0] * len(hazards), [0.0] * len(hazards)
        for age, one in enumerate(reversed(own)):
            weight = 0.5 ** (age / half_life)
            place = sum(edge < one.tokens for edge in EDGES[:-1]) - 1
            for bin_ in range(place + 1):
                reached[bin_] += weight
            if one.bound is None or one.tokens < one.bound:
                ended[place] += weight
        if own:
            hazards = [(e + parent * h) / (r + parent) for e, h, r in zip(ended, hazards, reached, strict=True)]
    return hazards


@given(
    st.lists(completions, max_size=25), completions, st.sampled_from([1.0, 3.0, 300.0]), st.sampled_from([1.0, 20.0])
)
def test_its_law_is_that_of_the_docstring(seen: list[Done], asked: Done, half_life: float, parent: float) -> None:
    predictor = Histogram(half_life_requests=half_life, parent_requests=parent, prior_tokens=30.0)
    for number, done in enumerate(seen):
        predictor.observe(Completed(made(number, done), 0.0, done.tokens))
    survival = 1.0
    estimate = predictor.predict(made(-1, asked))
    for edge, hazard in zip(EDGES[1:], hazards_by_hand(seen, asked, half_life, parent, 30.0), strict=True):
        survival *= 1 - hazard
        there = 0.0 if asked.bound is not None and edge >= asked.bound else survival
        assert estimate.survival(edge) == pytest.approx(there, rel=1e-6, abs=1e-9)


def test_what_it_does_not_learn_from() -> None:
    predictor = Histogram()
    predictor.observe(Arrived(Request(0, 0.0, 10), 0.0))
    predictor.observe(Completed(Request(0, 0.0, 10), 0.0, 0))
    assert predictor.state() == {"edges": 69, "kinds": []}


def test_the_kinds_least_recently_learnt_of_are_forgotten() -> None:
    predictor = Histogram(kinds_max=7)
    for tenant in ("old", "kept", "new", "kept"):
        predictor.observe(Completed(Request(0, 0.0, 10, tenant=tenant), 0.0, 5))
    known = [kind for kind, _ in predictor.state()["kinds"]]  # type: ignore[misc, attr-defined]
    assert [kind[0] for kind in known if len(kind) == 1] == ["old", "new", "kept"]
    predictor.observe(Completed(Request(0, 0.0, 10, tenant="more"), 0.0, 5))
    known = [kind for kind, _ in predictor.state()["kinds"]]  # type: ignore[misc, attr-defined]
    assert [kind[0] for kind in known if len(kind) == 1] == ["new", "kept", "more"]
    assert len(known) == 7


def test_a_state_by_hand() -> None:
    predictor = Histogram(half_life_requests=1.0)
    for tokens, bound in ((3, None), (3, None), (5, 5)):
        predictor.observe(Completed(Request(0, 0.0, 6, tenant="a", max_output_tokens=bound), 0.0, tokens))
    both = {"2": [0.75, 0.75], "4": [0.0, 1.0]}
    assert predictor.state() == {
        "edges": 69,
        "kinds": [
            [["a", None, 7], {"2": [1.5, 1.5]}],
            [[], both],
            [["a"], both],
            [["a", 5, 7], {"4": [0.0, 1.0]}],
        ],
    }, "the newest completion of a kind weighs 1, and the one that its bound cut off has not ended"


def test_of_a_state_with_too_many_kinds_the_latest_are_kept() -> None:
    predictor = Histogram(kinds_max=2)
    predictor.restore({"edges": 69, "kinds": [[[name], {"0": [1, 1]}] for name in ("a", "b", "c")]})
    assert [kind for kind, _ in predictor.state()["kinds"]] == [["b"], ["c"]]  # type: ignore[misc, attr-defined]


@pytest.mark.parametrize(
    ("kind", "bins"),
    [
        (["a", None, 5], {}),
        ([], {"0": [0, 0]}),
        (["a"], {"67": [1e12, 1e12]}),
        (["a", 3, 5], {"1": [0, 2]}),
    ],
)
def test_what_a_state_may_hold(kind: list[object], bins: dict[str, list[float]]) -> None:
    Histogram().restore({"edges": 69, "kinds": [[kind, bins]]})


@pytest.mark.parametrize(
    ("kind", "bins"),
    [
        (["a", 5], {}),
        (["a", "b", 5], {}),
        ([3], {}),
        ("a", {}),
        (["a", 1, 2, 3], {}),
        (["a"], {"68": [1, 1]}),
        (["a"], {"-1": [1, 1]}),
        (["a"], {"1": [-1, 1]}),
        (["a"], {"1": [1, 1.1e12]}),
        (["a"], {"1": [1.5, 1]}),
    ],
)
def test_what_it_may_not(kind: object, bins: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="a kind is missing or not written as it should be"):
        Histogram().restore({"edges": 69, "kinds": [[kind, bins]]})
