"""Laws of preemption: the victim is a running request, and asking changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.request import Request
from headway.policies.contracts import PreemptionPolicy
from headway.testing.examples import examples
from headway.testing.strategies import request_lists

MakePreemption = Callable[[], PreemptionPolicy]


def the_victim_runs(make: MakePreemption) -> None:
    """Whatever runs, the victim is one of it, the very object; and the list is left as it was."""

    @settings(deadline=None, max_examples=examples(30))
    @given(running=request_lists(max_produced_tokens=50).flatmap(st.permutations))
    def check(running: list[Request]) -> None:
        before = list(running)
        victim = make().victim(running, 1e3)
        assert any(victim is request for request in running), f"{victim!r} does not run"
        assert running == before, "the policy changed the running list"

    check()


def victims_repeat_themselves(make: MakePreemption) -> None:
    """The same question has the same answer, from the same policy and from a fresh one."""

    @settings(deadline=None, max_examples=examples(30))
    @given(rounds=st.lists(request_lists(max_produced_tokens=50), min_size=1, max_size=4))
    def check(rounds: list[list[Request]]) -> None:
        policy, twin = make(), make()
        for running in rounds:
            first = policy.victim(running, 1e3)
            assert twin.victim(running, 1e3) is first, "two fresh policies differ"
            assert policy.victim(running, 1e3) is first, "asking again changed the answer"

    check()
