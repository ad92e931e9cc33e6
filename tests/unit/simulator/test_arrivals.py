"""Arrivals of a day, by hand: order, ties, sessions, the end of the clock, and what a request is told of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headway.domain.event import Event
from headway.domain.later_deadlines import LaterDeadlines, ProgramStage
from headway.domain.request import Request
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.scheduler import Policies
from headway.simulator.arrivals import FOREVER, Arrivals, RequestFactory, check_clock, why_never
from headway.simulator.outcome import DayOutcome
from headway.simulator.reference import ExpectedArrivals, simulate_reference
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace
from tests.support.paper_days import ONE_SECOND, RULES, requests

SECOND = 10**12
NAN = float("nan")
SESSIONS = requests(
    (2, 1),
    (2, 1),
    (2, 1),
    (2, 1),
    (2, 1),
    at=[0, 1, 1, 1, 5],
    session=[7, -1, 7, 3, 7],
    turn=[0, 0, 1, 0, 2],
    think_seconds=[0, 0, 0.25, 0, 2],
)
"""Rows 0, 2 and 4 are the turns of session 7; row 3 is alone in session 3."""


class TestOrder:
    def test_rows_come_at_their_times_and_together_by_row(self) -> None:
        arrivals = Arrivals(requests((1, 1), (1, 1), (1, 1), at=[0.5, 0.5, 2]))
        assert arrivals.next_ps == SECOND // 2
        assert arrivals.take(SECOND // 2 - 1) == []
        assert arrivals.take(SECOND // 2) == [(SECOND // 2, 0), (SECOND // 2, 1)]
        assert arrivals.next_ps == 2 * SECOND
        assert arrivals.take(9 * SECOND) == [(2 * SECOND, 2)]
        assert arrivals.next_ps == FOREVER
        assert arrivals.take(10 * SECOND) == []

    def test_nobody_comes_on_an_empty_day(self) -> None:
        assert Arrivals(requests()).next_ps == FOREVER

    @pytest.mark.parametrize("kind", [Arrivals, ExpectedArrivals])
    def test_a_turn_follows_the_pause_after_the_turn_before(self, kind: type[Arrivals | ExpectedArrivals]) -> None:
        arrivals = kind(SESSIONS)
        assert arrivals.take(10 * SECOND) == [(0, 0), (SECOND, 1), (SECOND, 3)]
        arrivals.ended(1, 10 * SECOND)
        arrivals.ended(3, 10 * SECOND)
        assert arrivals.take(99 * SECOND) == [], "no more turns"
        arrivals.ended(0, 10 * SECOND)
        assert arrivals.next_ps == 10 * SECOND + SECOND // 4
        assert arrivals.take(10 * SECOND) == []
        assert arrivals.take(11 * SECOND) == [(10 * SECOND + SECOND // 4, 2)]
        arrivals.ended(2, 20 * SECOND)
        assert arrivals.take(30 * SECOND) == [(22 * SECOND, 4)]

    @pytest.mark.parametrize("kind", [Arrivals, ExpectedArrivals])
    def test_turns_mix_with_rows_that_come_at_their_times(self, kind: type[Arrivals | ExpectedArrivals]) -> None:
        trace = requests(
            *[(1, 1)] * 4, at=[0, 3, 9, 3], session=[0, -1, -1, 0], turn=[0, 0, 0, 1], think_seconds=[0, 0, 0, 2]
        )
        arrivals = kind(trace)
        assert arrivals.take(0) == [(0, 0)]
        arrivals.ended(0, SECOND)
        assert arrivals.next_ps == 3 * SECOND
        assert arrivals.take(4 * SECOND) == [(3 * SECOND, 1), (3 * SECOND, 3)]
        assert arrivals.next_ps == 9 * SECOND

    @pytest.mark.parametrize("kind", [Arrivals, ExpectedArrivals])
    def test_the_earlier_of_two_turns_comes_first(self, kind: type[Arrivals | ExpectedArrivals]) -> None:
        trace = requests(
            *[(1, 1)] * 5,
            at=[0, 0, 0, 0, 7],
            session=[0, 1, 0, 1, -1],
            turn=[0, 0, 1, 1, 0],
            think_seconds=[0, 0, 5, 1, 0],
        )
        arrivals = kind(trace)
        arrivals.take(0)
        arrivals.ended(0, SECOND)
        assert arrivals.next_ps == 6 * SECOND
        arrivals.ended(1, SECOND)
        assert arrivals.next_ps == 2 * SECOND
        assert arrivals.take(3 * SECOND) == [(2 * SECOND, 3)]
        assert arrivals.next_ps == 6 * SECOND
        assert arrivals.take(8 * SECOND) == [(6 * SECOND, 2), (7 * SECOND, 4)]

    def test_turns_are_ordered_by_number_whatever_their_rows(self) -> None:
        trace = requests((1, 1), (1, 1), (1, 1), session=[5, 5, 5], turn=[2, 0, 1], think_seconds=[1, 0, 2])
        arrivals = Arrivals(trace)
        assert arrivals.take(0) == [(0, 1)]
        assert arrivals.following(1) == [2, 0]
        assert arrivals.following(2) == [0]
        assert arrivals.following(0) == []
        expected = ExpectedArrivals(trace)
        assert expected.take(0) == [(0, 1)]
        assert [expected.rest_of_session(row) for row in range(3)] == [[], [2, 0], [0]]

    def test_without_pauses_a_turn_follows_at_once(self) -> None:
        trace = requests((1, 1), (1, 1), session=[0, 0], turn=[0, 1])
        for arrivals in (Arrivals(trace), ExpectedArrivals(trace)):
            arrivals.take(0)
            arrivals.ended(0, 3 * SECOND)
            assert arrivals.next_ps == 3 * SECOND


class TestClock:
    """Picoseconds in 64 bits hold 106 days; arrivals and pauses may take 100 of them."""

    DAY = 86_400.0

    def test_of_arrivals(self) -> None:
        check_clock(requests((1, 1), at=[100 * self.DAY]))
        check_clock(requests())
        with pytest.raises(
            ValueError, match=r"^by hand: lasts 100\.5 days; the simulator's clock holds 100, so replay"
        ):
            check_clock(requests((1, 1), at=[100.5 * self.DAY]))

    def test_of_the_pauses_of_one_session_after_them(self) -> None:
        def paused(*days: float, session: list[int], **columns: Any) -> Trace:
            rows = [(1, 1)] * len(days)
            pauses = [self.DAY * pause for pause in days]
            return requests(*rows, session=session, turn=list(range(len(days))), think_seconds=pauses, **columns)

        check_clock(paused(0, 60, 60, session=[0, 0, 1]))  # not one after the other
        with pytest.raises(ValueError, match=r"lasts 120\.0 days, pauses included; the"):
            check_clock(paused(0, 60, 60, session=[0, 0, 0]))
        with pytest.raises(ValueError, match=r"lasts 150\.0 days, pauses included; the"):
            check_clock(paused(0, 60, session=[0, 0], at=[90 * self.DAY, 90 * self.DAY]))
        check_clock(paused(0, 500, session=[-1, -1]))  # no sessions, no pauses
        check_clock(paused(0, 100, session=[0, 0]))  # to the second


class TestRequests:
    def test_a_row_tells_what_its_client_gave_and_no_length(self) -> None:
        trace = Trace(
            "full",
            np.zeros(3),
            np.array([10, 20, 30]),
            np.array([4, 5, 6]),
            max_output_tokens=np.array([0, 5, 9]),
            tenant=np.array([1, 0, 1]),
            tenants=("a", "b"),
            session=np.array([-1, 0, 12]),
            turn=np.zeros(3, np.int64),
            deadline_seconds=np.array([NAN, 2.5, 0.0]),
            priority=np.array([0, -1, 7]),
        )
        factory = RequestFactory(trace)
        told = [factory.make(row, 1.5, 1.5, 36) for row in range(3)]
        assert [one.id for one in told] == [0, 1, 2]
        assert [one.arrived_at for one in told] == [1.5] * 3
        assert [one.prompt_tokens for one in told] == [10, 20, 30]
        assert [one.tenant for one in told] == ["b", "a", "b"]
        assert [one.session for one in told] == [None, "0", "12"]
        assert [one.max_output_tokens for one in told] == [None, 5, 9]
        assert [one.deadline for one in told] == [None, 4.0, 1.5]
        assert [one.priority for one in told] == [0, -1, 7]
        assert [one.ends_by_limit for one in told] == [False, True, True]  # the client's bound; the model's context

    def test_a_plain_trace_gives_plain_requests(self) -> None:
        one = RequestFactory(requests((3, 4))).make(0, 0.0, 0.0, 100)
        plain = (one.tenant, one.session, one.max_output_tokens, one.deadline, one.priority, one.ends_by_limit)
        assert plain == ("", None, None, None, 0, False)

    @pytest.mark.parametrize("simulated", [simulate, simulate_reference])
    def test_deadlines_count_from_when_a_client_sent_and_a_programs_from_its_first_request(
        self, simulated: Callable[..., DayOutcome]
    ) -> None:
        """Row 2 follows row 0 in a session, and both are of program 4, whose first row says how long it may take."""
        trace = requests(
            (2, 1),
            (2, 1),
            (2, 1),
            at=[0, 1, 1],
            session=[0, -1, 0],
            turn=[0, 0, 1],
            think_seconds=[0, 0, 0.5],
            tpot_deadline_seconds=[NAN, 0.25, NAN],
            end_deadline_seconds=[NAN, 4.0, 8.0],
            program=[4, -1, 4],
            stage=[1, 0, 2],
            stages=[0, 0, 3],
            program_deadline_seconds=[60.0, NAN, 1.0],
        )
        seen: dict[int, Request] = {}

        class Eye:
            def observe(self, event: Event) -> None:
                assert isinstance(event.request, Request)
                seen[int(event.request.id)] = event.request

        policies = Policies(Fcfs(), Greedy(), LatestAdmitted(), RunningMean())
        simulated(trace, RULES, ONE_SECOND, policies, listeners=[Eye()])
        assert seen[0].later_deadlines == LaterDeadlines(program=ProgramStage("4", 1, None, 60.0))
        assert seen[1].later_deadlines == LaterDeadlines(0.25, 5.0)
        sent_at = seen[2].arrived_at
        assert sent_at > 1.0
        assert seen[2].later_deadlines == LaterDeadlines(end=sent_at + 8, program=ProgramStage("4", 2, 3, 60.0))

    def test_the_reference_tells_the_same(self) -> None:
        trace = Trace(
            "full",
            np.array([0.0, 1.0, 3.0]),
            np.array([10, 20, 30]),
            np.array([4, 5, 6]),
            max_output_tokens=np.array([0, 5, 9]),
            tenant=np.array([1, 0, 1]),
            tenants=("a", "b"),
            session=np.array([-1, 0, 12]),
            turn=np.zeros(3, np.int64),
            deadline_seconds=np.array([NAN, 2.5, 0.0]),
            priority=np.array([0, -1, 7]),
        )
        seen: dict[int, Request] = {}

        class Eye:
            def observe(self, event: Event) -> None:
                assert isinstance(event.request, Request)
                seen[int(event.request.id)] = event.request

        policies = Policies(Fcfs(), Greedy(), LatestAdmitted(), RunningMean())
        simulate_reference(trace, RULES, ONE_SECOND, policies, listeners=[Eye()])
        facts = ("arrived_at", "prompt_tokens", "tenant", "session", "max_output_tokens", "deadline", "priority")
        assert [tuple(getattr(seen[row], name) for name in facts) for row in range(3)] == [
            (0.0, 10, "b", None, None, None, 0),
            (1.0, 20, "a", "0", 5, 3.5, -1),
            (3.0, 30, "b", "12", 9, 3.0, 7),
        ]


def test_a_request_that_can_never_be_served_is_told_why() -> None:
    rules = EngineRules(kv_blocks=5, block_tokens=2, max_model_tokens=30, max_num_batched_tokens=64, max_num_seqs=4)
    assert why_never(rules, 7, 4) is None  # the last token needs no memory
    assert why_never(rules, 7, 5) == "prompt and output of 12 tokens exceed the replica's KV memory of 10 tokens"
    roomy = EngineRules(kv_blocks=99, block_tokens=2, max_model_tokens=30, max_num_batched_tokens=64, max_num_seqs=4)
    assert why_never(roomy, 20, 10) is None
    assert why_never(roomy, 20, 11) == "prompt and output of 31 tokens exceed the model's context of 30"
