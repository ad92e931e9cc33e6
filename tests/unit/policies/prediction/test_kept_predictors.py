"""What a predictor learned survives being written down, and nothing else is taken for it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.event import Completed
from headway.domain.request import Request
from headway.policies.prediction.histogram import Histogram
from headway.policies.prediction.running_mean import RunningMean

LEARNT = st.lists(
    st.tuples(
        st.integers(1, 5_000),  # prompt
        st.integers(1, 3_000),  # output
        st.sampled_from(["", "a", "b"]),
        st.sampled_from([None, "s"]),
        st.sampled_from([None, 100]),
    ),
    max_size=60,
)


def request(number: int, prompt: int, tenant: str, session: str | None, bound: int | None) -> Request:
    return Request(number, 0.0, prompt, tenant=tenant, session=session, max_output_tokens=bound)


def taught(predictor: Any, learnt: list[tuple[int, int, str, str | None, int | None]]) -> Any:
    for number, (prompt, output, tenant, session, bound) in enumerate(learnt):
        made = request(number, prompt, tenant, session, bound)
        predictor.observe(Completed(made, 0.0, min(output, bound or output)))
    return predictor


@pytest.mark.parametrize("kind", [RunningMean, Histogram])
@given(learnt=LEARNT)
def test_a_restored_predictor_says_the_same(kind: Any, learnt: list[Any]) -> None:
    before = taught(kind(), learnt)
    after = kind()
    after.restore(json.loads(json.dumps(before.state())))
    for prompt, _, tenant, _, bound in [*learnt, (10, 1, "nobody", None, None)]:
        asked = request(-1, prompt, tenant, None, bound)
        for produced in (0, 40):
            one, two = before.predict(asked), after.predict(asked)
            assert one.remaining_mean(produced) == pytest.approx(two.remaining_mean(produced), rel=1e-6)


def test_conversations_are_not_written_down() -> None:
    predictor = taught(Histogram(), [(10, 20, "team", "secret-session-name", None)])
    assert "secret-session-name" not in json.dumps(predictor.state())
    assert "team" in json.dumps(predictor.state())


def test_of_many_kinds_the_latest_are_written_down() -> None:
    predictor = taught(
        Histogram(), [(2**power, 20, f"t{number}", None, 64) for number in range(100) for power in range(20)]
    )
    kinds: Any = predictor.state()["kinds"]
    assert len(predictor._counts) > len(kinds) == 1_000
    assert [kind for kind, _ in kinds[-3:]] == [[], ["t99"], ["t99", 64, 40]]
    assert not any(kind[:1] == ["t0"] for kind, _ in kinds)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"edges": 3, "kinds": []},
        {"edges": 69},
        {"edges": 69, "kinds": 5},
        {"edges": 69, "kinds": [[["a", "b"], {}]]},
        {"edges": 69, "kinds": [[["a"], {"999": [1, 1]}]]},
        {"edges": 69, "kinds": [[["a"], {"1": [2, 1]}]]},
        {"edges": 69, "kinds": [[["a"], {"1": "x"}]]},
        {"edges": 69, "kinds": [[["a"], {"1": [1, 10**400]}]]},
        {"edges": 69, "kinds": [[["a"], {"1": [1, 1e308], "2": [1, 1e308]}]]},
        {"weight": 0, "weighted_tokens": 1},
        {"weight": "a", "weighted_tokens": 1},
        {"weight": 1, "weighted_tokens": -1},
        {"weight": 10**400, "weighted_tokens": 1},
        {"weight": 1e-320, "weighted_tokens": 1},
        {"weight": 1, "weighted_tokens": math.nan},
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(state: dict[str, object]) -> None:
    for predictor in (
        taught(Histogram(), [(10, 20, "a", None, None)]),
        taught(RunningMean(), [(1, 9, "", None, None)]),
    ):
        before = json.dumps(predictor.state())
        with pytest.raises(ValueError):  # noqa: PT011 - each has a sentence of its own
            predictor.restore(state)
        assert json.dumps(predictor.state()) == before
