"""When a look leads to a switch: for an expected gain, of a tail beyond noise; and back where it was false."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.twin.auto_settings import AutoSettings
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import Judged, LookAnswer, Since
from headway.twin.switch_rules import SwitchRules

USUAL = ChosenBundle("highest-response-ratio")
OTHER = ChosenBundle("priced-work", options={"ordering": {"patience": 5.0}})
SETTINGS = AutoSettings(on=True)
OF_TAILS = AutoSettings(on=True, objective="p99-ttft", looks=2)


def answer(
    current: ChosenBundle = USUAL,
    other: ChosenBundle = OTHER,
    *,
    gain: float = 1.5,
    sure: bool = True,
    fidelity: float | None = 1.0,
    since: Since | None = None,
    requests: int = 1_000,
) -> LookAnswer:
    judged = [Judged(current, 2.0, 10.0, gain), Judged(other, 2.0 / gain, 12.0, 1.0, gain, sure)]
    return LookAnswer(requests, requests, fidelity, judged, since, (1, 1, 1, 1, 1), 0.0)


def test_a_mean_is_followed_at_once_and_what_is_expected_decides() -> None:
    assert SwitchRules(SETTINGS, USUAL).decide(answer(sure=False), 0.0).to == OTHER
    ahead = answer()
    drawn_back = replace(ahead, judged=[ahead.current, replace(ahead.judged[1], expected=1.01)])
    decision = SwitchRules(SETTINGS, USUAL).decide(drawn_back, 0.0)
    assert decision.to is None
    assert "1.50 times better by the objective, 1.01 expected" in decision.sentence


def test_for_a_tail_a_switch_needs_two_looks_in_a_row() -> None:
    rules = SwitchRules(OF_TAILS, USUAL)
    first = rules.decide(answer(), 0.0)
    assert first.to is None
    assert first.sentence.startswith("stays with highest-response-ratio until another look agrees on priced-work")
    assert rules.decide(answer(sure=False), 60.0).to is None, "and this one does not agree"
    assert rules.decide(answer(), 120.0).to is None
    second = rules.decide(answer(), 180.0)
    assert second.to == OTHER
    assert "predicted mean TTFT 0.67×, p99 1.20×" in second.sentence


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (answer(gain=1.08), "less than a factor of 1.1"),
        (answer(sure=False), "may be chance"),
        (answer(requests=150), "too few requests"),
        (answer(other=USUAL), "the best of 2"),
        (replace(answer(), judged=answer().judged[:1]), "no order makes a difference"),
        (answer(fidelity=2.5), "2.50× the measured one"),
    ],
)
def test_it_stays_and_says_why(found: LookAnswer, why: str) -> None:
    rules = SwitchRules(replace(OF_TAILS, looks=1), USUAL)
    decision = rules.decide(found, 0.0)
    assert decision.to is None
    assert why in decision.sentence


def switched(rules: SwitchRules) -> None:
    found = answer()
    assert rules.decide(found, 60.0).to == OTHER
    rules.done(OTHER, found, 60.0)


def test_what_was_measured_since_is_said() -> None:
    rules = SwitchRules(SETTINGS, USUAL)
    switched(rules)
    said = rules.decide(answer(OTHER, USUAL, gain=0.7, since=Since(500, 0.7, 1.1)), 120.0).sentence
    assert said.endswith("since the last switch measured 0.70×, 1.10× (predicted 0.67×, 1.20×)")


def test_a_false_prediction_returns_to_the_default_and_fences_the_bundle_off() -> None:
    rules = SwitchRules(SETTINGS, USUAL)
    switched(rules)
    few = rules.decide(answer(OTHER, USUAL, gain=0.7, since=Since(50, 3.0, 3.0)), 120.0)
    assert few.to is None, "too few requests to say so"
    found = answer(OTHER, USUAL, gain=0.7, since=Since(500, 3.0, 3.0))
    decision = rules.decide(found, 180.0)
    assert decision.to == USUAL
    assert decision.is_return
    assert "predicted mean TTFT 0.67×, measured since 3.00×" in decision.sentence
    rules.done(USUAL, found, 180.0)
    assert [rules.decide(answer(), at).to for at in (240.0, 300.0, 360.0)] == [None] * 3
    assert "fenced off for 3420 s more" in rules.decide(answer(), 360.0).sentence
    assert rules.decide(answer(), 240.0 + SETTINGS.fence_seconds).to == OTHER


def test_a_replay_that_cannot_be_believed_returns_to_the_default() -> None:
    rules = SwitchRules(SETTINGS, USUAL)
    switched(rules)
    assert rules.decide(answer(OTHER, USUAL, fidelity=0.4), 120.0).to == USUAL


@given(st.lists(st.tuples(st.floats(0.5, 3.0), st.booleans()), max_size=40))
def test_for_a_tail_it_never_switches_twice_without_two_sure_looks_between(looks: list[tuple[float, bool]]) -> None:
    rules, sure_in_a_row = SwitchRules(OF_TAILS, USUAL), 0
    for number, (gain, sure) in enumerate(looks):
        other = OTHER if rules.current == USUAL else USUAL
        found = answer(rules.current, other, gain=gain, sure=sure)
        sure_in_a_row = sure_in_a_row + 1 if sure and gain >= OF_TAILS.gain else 0
        decision = rules.decide(found, 60.0 * number)
        assert (decision.to is not None) == (sure_in_a_row == OF_TAILS.looks)
        if decision.to is not None:
            rules.done(decision.to, found, 60.0 * number)
            sure_in_a_row = 0


def test_the_choice_survives_a_restart_unless_the_default_changed() -> None:
    rules = SwitchRules(SETTINGS, USUAL)
    switched(rules)
    again = SwitchRules(SETTINGS, USUAL)
    again.restore(rules.state())
    assert again.current == OTHER
    changed = SwitchRules(SETTINGS, ChosenBundle("fcfs"))
    changed.restore(rules.state())
    assert changed.current == ChosenBundle("fcfs")
    for wrong in ([], {}, {"bundle": 1, "default": 2}, {"bundle": {"ordering": "fcfs"}, "default": {}}):
        with pytest.raises(ValueError, match=r"twin had chosen|a bundle has the keys"):
            again.restore(wrong)
