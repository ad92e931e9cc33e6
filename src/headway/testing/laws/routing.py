"""Laws of routing: the choice was offered, and asking changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.replica_view import ReplicaView
from headway.domain.request import Request
from headway.policies.contracts import DispatchListener, RoutingPolicy

MakeRouting = Callable[[], RoutingPolicy]


class OfferedReplica(NamedTuple):
    """A replica made up for a law; satisfies `ReplicaView`."""

    id: str
    requests: int
    requests_max: int
    prefill_tokens: int
    decode_tokens: float
    kv_tokens: int
    kv_tokens_max: int | None
    as_of: float


def the_choice_was_offered(make: MakeRouting) -> None:
    """It is one of the replicas offered, the very object, or None; and what was offered is left as it was."""

    @settings(deadline=None, max_examples=50)
    @given(rounds=st.lists(_rounds(), min_size=1, max_size=6))
    def check(rounds: list[_Round]) -> None:
        policy = make()
        for request, prefix, replicas in rounds:
            offered, before = list(replicas), tuple(prefix)
            chosen = policy.choose(request, prefix, offered, 1e3)
            assert chosen is None or any(chosen is replica for replica in offered), f"{chosen!r} was not offered"
            assert offered == replicas, "the policy changed the list of replicas"
            assert tuple(prefix) == before, "the policy changed the prefix"
            _route(policy, request, prefix, chosen)

    check()


def choosing_changes_nothing(make: MakeRouting) -> None:
    """The same question has the same answer, from the same policy and from one with the same history."""

    @settings(deadline=None, max_examples=50)
    @given(rounds=st.lists(_rounds(), min_size=1, max_size=6))
    def check(rounds: list[_Round]) -> None:
        policy, twin = make(), make()
        for request, prefix, replicas in rounds:
            first = policy.choose(request, prefix, replicas, 1e3)
            assert policy.choose(request, prefix, replicas, 1e3) is first, "asking again changed the answer"
            assert twin.choose(request, prefix, replicas, 1e3) is first, "two policies of one history differ"
            for each in (policy, twin):
                _route(each, request, prefix, first)

    check()


class _Round(NamedTuple):
    request: Request
    prefix: list[int]
    replicas: list[OfferedReplica]


def _route(policy: RoutingPolicy, request: Request, prefix: list[int], chosen: ReplicaView | None) -> None:
    if chosen is not None and isinstance(policy, DispatchListener):
        policy.routed(request, prefix, chosen)


def _rounds() -> st.SearchStrategy[_Round]:
    request = st.builds(
        lambda number, prompt, session: Request(number, 0.0, prompt, session=session),
        st.integers(0, 9),
        st.integers(1, 10_000),
        st.none() | st.sampled_from(["a", "b", "c"]),
    )
    replica = st.builds(
        OfferedReplica,
        id=st.sampled_from(["r0", "r1", "r2", "r3", "r4"]),
        requests=st.integers(0, 50),
        requests_max=st.integers(1, 50),
        prefill_tokens=st.integers(0, 10**6),
        decode_tokens=st.floats(0, 1e6),
        kv_tokens=st.integers(0, 10**6),
        kv_tokens_max=st.none() | st.integers(1, 10**6),
        as_of=st.just(-math.inf) | st.floats(0, 1e3),
    )
    replicas = st.lists(replica, min_size=1, max_size=5, unique_by=lambda r: r.id)
    return st.builds(_Round, request, st.lists(st.integers(0, 5), max_size=4), replicas)
