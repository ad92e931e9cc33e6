"""Checked policies: an answer without sense, and whatever a policy raises, is a fault that names its kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from headway.domain.event import Arrived, Event
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.admission.backfill import Backfill
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import BackfillingAdmission, LanedOrdering, RedrawnOrdering, follows_what_is_learned
from headway.policies.ordering.ewsjf_authors import EwsjfAuthors
from headway.policies.ordering.fair_share import FairShare
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.smallest_volume_first import SmallestVolumeFirst
from headway.policies.prediction.conformal import CorrectedEstimate
from headway.policies.prediction.declared_max import DeclaredMax
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.policies.routing.round_robin import RoundRobin
from headway.scheduling.checked_policies import (
    CheckedEvents,
    CheckedRouting,
    PlainAsker,
    PolicyFault,
    checked,
    guarded,
)
from headway.scheduling.scheduler import Policies
from headway.testing.scripted import ScriptedBatch

REQUEST = Request("r", 1.0, 10)
BATCH = ScriptedBatch([Request("runs", 0.0, 10)])
MEMORY = MemoryView(9, 9, 16)


class Answers:
    """A policy of every kind that answers what it is told to, or raises it."""

    redrawn = 3
    look_ahead = 2
    made_by = "answers"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def rank(self, *_: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    lane = choose = next_change = hold_steps = may_pass = passed = victim = observe = remaining_mean = rank

    def predict(self, *_: Any) -> Any:
        return self

    def remaining_quantile(self, probability: float, produced_tokens: int) -> Any:
        return 5


class Quantiles(Answers):
    """Expects 7 tokens; what it is told are its quantiles, low ones first."""

    def remaining_mean(self, produced_tokens: int) -> float:
        return 7.0

    def remaining_quantile(self, probability: float, produced_tokens: int) -> Any:
        return self.answer[int(probability * 3)]


class Corrects:
    """Corrects another's estimates by scores of 0.75."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def predict(self, request: Any) -> CorrectedEstimate:
        return CorrectedEstimate(self.inner.predict(request), (0.75,) * 20, None)


def answering(answer: Any) -> Any:
    """Its four kinds, checked."""
    policy: Any = Answers(answer)
    return guarded(Policies(policy, policy, policy, policy), PlainAsker())


QUESTIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "rank": ("ordering", lambda policies: policies.ordering.rank(REQUEST)),
    "lane": ("ordering", lambda policies: policies.ordering.lane(REQUEST)),
    "choose": ("ordering", lambda policies: policies.ordering.choose({"a": REQUEST, 3: REQUEST}, 1.0)),
    "next_change": ("ordering", lambda policies: policies.ordering.next_change({"a": REQUEST}, 1.0)),
    "hold_steps": ("admission", lambda policies: policies.admission.hold_steps(REQUEST, BATCH, MEMORY, 1.0)),
    "may_pass": ("admission", lambda policies: policies.admission.may_pass(REQUEST, REQUEST, BATCH, MEMORY, 1.0)),
    "passed": ("admission", lambda policies: policies.admission.passed(REQUEST)),
    "victim": ("preemption", lambda policies: policies.preemption.victim([REQUEST], 1.0)),
    "predict": ("prediction", lambda policies: policies.prediction.predict(REQUEST)),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_a_policy_raises_is_a_fault_of_its_kind(question: str) -> None:
    kind, ask = QUESTIONS[question]
    cause = RuntimeError("broken")
    with pytest.raises(PolicyFault, match=f"the {kind} policy raised RuntimeError: broken") as raised:
        ask(answering(cause))
    assert (raised.value.kind, raised.value.reason) == (kind, "raised")
    assert raised.value.__cause__ is cause


@pytest.mark.parametrize(
    ("question", "answer", "sentence"),
    [
        ("rank", math.nan, "gave request 'r' the rank nan"),
        ("rank", (1.0, math.nan), "gave request 'r' the rank"),
        ("rank", "a", "gave request 'r' the rank 'a'"),
        ("rank", None, "gave request 'r' the rank None"),
        ("lane", [], r"gave request 'r' the lane \[\]"),
        ("choose", "b", "chose the lane 'b', which is empty"),
        ("choose", [], r"chose the lane \[\], which is empty"),
        ("next_change", math.nan, "answered nan when asked how long its choice stands"),
        ("next_change", None, "answered None when asked how long its choice stands"),
        ("hold_steps", -1, "held request 'r' for -1 steps"),
        ("hold_steps", True, "held request 'r' for True steps"),
        ("hold_steps", 1.0, "held request 'r' for 1.0 steps"),
        ("may_pass", 1, "answered 1 when asked what may pass 'r'"),
        ("victim", Request("r", 1.0, 10), "named Request.*, which does not run"),
        ("predict", math.nan, "expects nan output tokens of request 'r'"),
        ("predict", math.inf, "expects inf output tokens of request 'r'"),
        ("predict", -1.0, "expects -1.0 output tokens of request 'r'"),
        ("predict", "many", "expects 'many' output tokens of request 'r'"),
    ],
)
def test_an_answer_without_sense_is_a_fault(question: str, answer: object, sentence: str) -> None:
    kind, ask = QUESTIONS[question]
    with pytest.raises(PolicyFault, match=sentence) as raised:
        ask(answering(answer))
    assert (raised.value.kind, raised.value.reason) == (kind, "nonsense")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("rank", 1),
        ("rank", -math.inf),
        ("rank", (1.0, 2)),
        ("lane", ("a", 1)),
        ("choose", "a"),
        ("choose", 3),
        ("next_change", math.inf),
        ("next_change", 2),
        ("hold_steps", 0),
        ("hold_steps", 7),
        ("may_pass", True),
        ("may_pass", False),
        ("victim", REQUEST),
    ],
)
def test_a_right_answer_is_passed_on(question: str, answer: object) -> None:
    assert QUESTIONS[question][1](answering(answer)) is answer


@pytest.mark.parametrize(
    ("quantiles", "sentence"),
    [
        ((3, math.nan, 9), "at most nan output tokens with probability 0.5, not a whole number of at least the 3 of"),
        ((0, 5, 9), "at most 0 output tokens with probability 0.1, not a whole number of at least 1$"),
        ((3, 5, 4), "at most 4 output tokens with probability 0.9, not a whole number of at least the 5 of"),
        ((3, 5, 9.0), "at most 9.0 output tokens with probability 0.9"),
        ((True, 5, 9), "at most True output tokens with probability 0.1"),
        ((3, "a", 9), "at most 'a' output tokens with probability 0.5"),
    ],
)
def test_quantiles_of_an_outside_estimate_without_sense_are_a_fault(
    quantiles: tuple[Any, Any, Any], sentence: str
) -> None:
    policy: Any = Quantiles(quantiles)
    prediction = guarded(Policies(policy, policy, policy, policy), PlainAsker()).prediction
    with pytest.raises(PolicyFault, match=f"expects of request 'r' {sentence}") as raised:
        prediction.predict(REQUEST)
    assert (raised.value.kind, raised.value.reason) == ("prediction", "nonsense")


WRONG_INSIDE: dict[str, tuple[Callable[[float], Any], str]] = {
    "none": (lambda p: None, "at most None output tokens with probability 0.1"),
    "less than one, which the correction hides": (lambda p: -3, "at most -3 output tokens with probability 0.1"),
    "falling": (lambda p: int(9 - 5 * p), "at most 6 output tokens with probability 0.5, not .* the 8 of"),
    "wrong only where the correction looks": (lambda p: 2.5 if p == 0.75 else 4, "at most 2.5 output tokens"),
}


@pytest.mark.parametrize("wrong", WRONG_INSIDE)
@pytest.mark.parametrize("corrections", [1, 2])
def test_wrong_quantiles_of_an_outside_estimate_show_through_a_correction(wrong: str, corrections: int) -> None:
    class Inside(Quantiles):
        def remaining_quantile(self, probability: float, produced_tokens: int) -> Any:
            return WRONG_INSIDE[wrong][0](probability)

    policy: Any = Inside(None)
    for _ in range(corrections):
        policy = Corrects(policy)
    prediction = guarded(Policies(Fcfs(), Greedy(), LatestAdmitted(), policy), PlainAsker()).prediction
    with pytest.raises(PolicyFault, match=WRONG_INSIDE[wrong][1]) as raised:
        prediction.predict(REQUEST)
    assert (raised.value.kind, raised.value.reason) == ("prediction", "nonsense")


def test_right_quantiles_pass_through_a_correction_and_headways_own_are_not_asked() -> None:
    for inner, asked in ((Quantiles((1, 5, 9)), 1), (DeclaredMax(), 0)):
        policy = Corrects(inner)
        prediction = guarded(Policies(Fcfs(), Greedy(), LatestAdmitted(), policy), PlainAsker()).prediction
        with (
            mock.patch.object(CorrectedEstimate, "remaining_mean", return_value=1.0),  # it asks for quantiles itself
            mock.patch.object(CorrectedEstimate, "remaining_quantile", return_value=1) as quantile,
        ):
            assert isinstance(prediction.predict(REQUEST), CorrectedEstimate)
        assert quantile.call_count == 3 * asked


def test_quantiles_that_do_not_fall_are_passed_on() -> None:
    policy: Any = Quantiles((1, 5, 5))
    assert guarded(Policies(policy, policy, policy, policy), PlainAsker()).prediction.predict(REQUEST) is policy


def test_an_estimate_of_nothing_is_allowed() -> None:
    assert isinstance(QUESTIONS["predict"][1](answering(0.0)), Answers)


def test_powers_stay_what_they_are() -> None:
    def powers(ordering: Any, admission: Any) -> tuple[bool, ...]:
        policies = guarded(Policies(ordering, admission, LatestAdmitted(), DeclaredMax()), PlainAsker())
        return (
            isinstance(policies.ordering, LanedOrdering),
            isinstance(policies.ordering, RedrawnOrdering),
            isinstance(policies.admission, BackfillingAdmission),
            follows_what_is_learned(policies.ordering),
        )

    assert powers(Fcfs(), Greedy()) == (False, False, False, False)
    assert powers(EwsjfAuthors(), Backfill(inner=Greedy())) == (True, False, True, False)
    assert powers(FairShare(inner=SmallestVolumeFirst()), Greedy()) == (True, True, False, True)
    policies = answering(0)
    assert (policies.ordering.redrawn, policies.admission.look_ahead) == (3, 2)


# events


class Listens:
    def __init__(self, heard: list[str], name: str, error: Exception | None = None) -> None:
        self._heard, self._name, self._error = heard, name, error

    def observe(self, event: Event) -> None:
        self._heard.append(self._name)
        if self._error is not None:
            raise self._error

    def rank(self, request: Request) -> float:
        return 0.0


def events(
    error: Exception | None, *, on_fault: Callable[[PolicyFault], None] | None
) -> tuple[CheckedEvents, list[str]]:
    heard: list[str] = []
    ordering, prediction = Listens(heard, "ordering"), Listens(heard, "prediction", error)
    policies = Policies(ordering, Greedy(), LatestAdmitted(), prediction)  # type: ignore[arg-type]
    return CheckedEvents(policies, PlainAsker(), lambda: heard.append("reconsider"), on_fault), heard


def test_the_ordering_is_reconsidered_after_all_have_heard() -> None:
    delivery, heard = events(None, on_fault=None)
    assert delivery
    delivery.observe(Arrived(REQUEST, 1.0))
    assert heard == ["prediction", "ordering", "reconsider"]


def test_checked_policies_hear_events_once_each_and_the_ordering_is_known_to_listen() -> None:
    heard: list[str] = []
    ordering, prediction = Listens(heard, "ordering"), Listens(heard, "prediction", RuntimeError("deaf"))
    plain = Policies(ordering, Greedy(), LatestAdmitted(), prediction)  # type: ignore[arg-type]
    policies = checked(plain, {"ordering", "admission"})
    assert policies.prediction is prediction
    assert policies.ordering in policies.fanout()
    assert len(policies.fanout().listeners) == 2
    one: Any = Listens(heard, "all")
    hearing = checked(Policies(one, Greedy(), LatestAdmitted(), one), {"ordering", "prediction"}).fanout()
    hearing.observe(Arrived(REQUEST, 1.0))
    assert heard == ["all"]
    deaf: Any = Answers(RuntimeError("deaf"))
    hearing = checked(Policies(deaf, deaf, deaf, deaf), {"ordering", "prediction"}).fanout()
    with pytest.raises(PolicyFault, match="the ordering policy raised RuntimeError: deaf"):
        hearing.observe(Arrived(REQUEST, 1.0))


def test_a_fault_of_a_listener_is_raised_or_given_away_and_then_the_others_hear() -> None:
    delivery, heard = events(RuntimeError("deaf"), on_fault=None)
    with pytest.raises(PolicyFault, match="the prediction policy raised RuntimeError: deaf"):
        delivery.observe(Arrived(REQUEST, 1.0))
    assert heard == ["prediction"]
    faults: list[PolicyFault] = []
    delivery, heard = events(RuntimeError("deaf"), on_fault=faults.append)
    delivery.observe(Arrived(REQUEST, 1.0))
    assert heard == ["prediction", "ordering", "reconsider"]
    assert [fault.kind for fault in faults] == ["prediction"]


def test_where_no_policy_listens_nothing_is_delivered() -> None:
    def fail() -> None:
        raise AssertionError("no ordering listens")

    silent = CheckedEvents(Policies(Fcfs(), Greedy(), LatestAdmitted(), DeclaredMax()), PlainAsker(), fail)
    assert not silent
    learning = CheckedEvents(Policies(Fcfs(), Greedy(), LatestAdmitted(), RunningMean()), PlainAsker(), fail)
    assert learning
    learning.observe(Arrived(REQUEST, 1.0))


# routing


class Replica:
    id = "a"


def test_a_route_is_one_of_those_offered_or_none() -> None:
    offered: Any = [Replica(), Replica()]

    def choose(answer: Any) -> Any:
        return CheckedRouting(Answers(answer), PlainAsker()).choose(REQUEST, (), offered, 1.0)

    assert choose(None) is None
    assert choose(offered[1]) is offered[1]
    with pytest.raises(PolicyFault, match=r"chose .* for request 'r', which has no room") as raised:
        choose(Replica())
    assert (raised.value.kind, raised.value.reason) == ("routing", "nonsense")
    with pytest.raises(PolicyFault, match="the routing policy raised RuntimeError"):
        choose(RuntimeError("lost"))
    assert CheckedRouting(RoundRobin(), PlainAsker()).choose(REQUEST, (), offered, 1.0) in offered


def test_which_questions_are_asked_many_times_a_step() -> None:
    """The asker judges those together, step by step; the others one by one."""

    class Notes(PlainAsker):
        def __init__(self) -> None:
            self.bounds: dict[str, tuple[str, bool]] = {}

        def bound(self, kind: str, per_step: bool, question: Any) -> Any:
            self.bounds[question.__name__] = (kind, per_step)
            return question

    class Named(Answers):
        """Each method has a name of its own."""

    for name in ("rank", "lane", "choose", "next_change", "hold_steps", "may_pass", "passed", "victim", "predict"):

        def answer(self: Any, *_: Any) -> Any:
            return self

        answer.__name__ = name
        setattr(Named, name, answer)
    notes, policy = Notes(), Named(0)
    guarded(Policies(policy, policy, policy, policy), notes)  # type: ignore[arg-type]
    notes.bounds["predict"] = notes.bounds.pop("_answers")
    assert notes.bounds == {
        "rank": ("ordering", False),
        "lane": ("ordering", False),
        "choose": ("ordering", True),
        "next_change": ("ordering", True),
        "hold_steps": ("admission", True),
        "may_pass": ("admission", True),
        "passed": ("admission", True),
        "victim": ("preemption", True),
        "predict": ("prediction", False),
    }


def test_the_asker_knows_among_how_many_lanes_was_chosen() -> None:
    asker, policy = PlainAsker(), Answers("a")
    ordering: Any = guarded(Policies(policy, policy, policy, policy), asker).ordering  # type: ignore[arg-type]
    ordering.choose({"a": REQUEST, "b": REQUEST, "c": REQUEST}, 1.0)
    assert asker.lanes == 3


def test_a_victim_is_one_of_those_that_run() -> None:
    policy: Any = Answers(REQUEST)
    preemption = guarded(Policies(policy, policy, policy, policy), PlainAsker()).preemption
    assert preemption.victim([Request("other", 0.0, 1), REQUEST], 1.0) is REQUEST
