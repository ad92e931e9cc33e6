"""Laws of routing: the choice was offered, and asking changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.replica_view import ReplicaView
from headway.domain.request import Request, RequestView
from headway.policies.contracts import DispatchListener, RoutingPolicy
from headway.testing.examples import examples

MakeRouting = Callable[[], RoutingPolicy]


class OfferedReplica(NamedTuple):
    """A replica made up for a law; satisfies `ReplicaView`.

    `cached` holds the hashes of the prefixes that it confirmed, each with its tokens; None where it never told any.
    """

    id: str
    requests: int = 0
    requests_max: int = 100
    prefill_tokens: int = 0
    decode_tokens: float = 0.0
    kv_tokens: int = 0
    kv_tokens_max: int | None = None
    as_of: float = -math.inf
    costs: ServiceCosts = ServiceCosts(1e-4, 0.02)
    costs_as_of: float = -math.inf
    adapters: frozenset[str] | None = None
    adapters_as_of: float = -math.inf
    cached: tuple[tuple[int, int], ...] | None = None
    cache_as_of: float = -math.inf

    def cached_prompt_tokens(self, request: RequestView, prefix: Sequence[int]) -> int | None:
        """The tokens of the longest of these prefixes that it holds."""
        if self.cached is None:
            return None
        tokens = dict(self.cached)
        held = next((tokens[key] for key in reversed(prefix) if key in tokens), 0)
        return min(held, request.prompt_tokens - 1)


def the_choice_was_offered(make: MakeRouting) -> None:
    """It is one of the replicas offered, the very object, or None; and what was offered is left as it was."""

    @settings(deadline=None, max_examples=examples(50))
    @given(rounds=st.lists(_rounds(), min_size=1, max_size=4))
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

    @settings(deadline=None, max_examples=examples(50))
    @given(rounds=st.lists(_rounds(), min_size=1, max_size=4))
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
        lambda number, prompt, session, adapter, deadline, output: _estimated(
            Request(number, 999.0, prompt, session=session, adapter=adapter, deadline=deadline), output
        ),
        st.integers(0, 9),
        st.integers(1, 10_000),
        st.none() | st.sampled_from(["a", "b", "c"]),
        st.none() | st.sampled_from(["x", "y"]),
        st.none() | st.floats(999.0, 1_010.0),
        st.integers(1, 2_000),
    )
    past = st.just(-math.inf) | st.floats(0, 1e3)
    replica = st.builds(
        OfferedReplica,
        id=st.sampled_from(["r0", "r1", "r2", "r3", "r4"]),
        requests=st.integers(0, 50),
        requests_max=st.integers(1, 50),
        prefill_tokens=st.integers(0, 10**6),
        decode_tokens=st.floats(0, 1e6),
        kv_tokens=st.integers(0, 10**6),
        kv_tokens_max=st.none() | st.integers(1, 10**6),
        as_of=past,
        costs=st.builds(ServiceCosts, st.floats(1e-7, 1e-2), st.floats(1e-4, 1.0)),
        costs_as_of=past,
        adapters=st.none() | st.frozensets(st.sampled_from(["x", "y"])),
        adapters_as_of=past,
        cached=st.none() | st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10_000)), max_size=4).map(tuple),
        cache_as_of=past,
    )
    replicas = st.lists(replica, min_size=1, max_size=5, unique_by=lambda r: r.id)
    return st.builds(_Round, request, st.lists(st.integers(0, 5), max_size=4), replicas)


def _estimated(request: Request, output_tokens: int) -> Request:
    request.estimate = PointEstimate(output_tokens, "law")
    return request
