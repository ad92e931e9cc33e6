"""Each routing policy against what its page says."""

from __future__ import annotations

from collections import Counter

import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.request import Request
from headway.policies.bounded_load import within_bound
from headway.policies.catalog import build
from headway.policies.contracts import RoutingPolicy
from headway.policies.routing.prefix_affinity import PrefixAffinity
from headway.policies.routing.round_robin import RoundRobin
from headway.testing.laws.routing import OfferedReplica

COSTS = ServiceCosts(prefill_seconds_per_token=1e-4, decode_seconds_per_token=0.0128)


def replica(
    id: str,
    requests: int = 0,
    prefill_tokens: int = 0,
    decode_tokens: float = 0.0,
    kv: tuple[int, int | None] = (0, None),
    costs: ServiceCosts = COSTS,
) -> OfferedReplica:
    return OfferedReplica(id, requests, 100, prefill_tokens, decode_tokens, *kv, costs=costs)


def policy(name: str, **options: object) -> RoutingPolicy:
    return build("routing", name, options, costs=COSTS, seed=7)


def request(number: int = 0, session: str | None = None) -> Request:
    return Request(number, 0.0, 100, session=session)


def chosen(of: RoutingPolicy, replicas: list[OfferedReplica], session: str | None = None, number: int = 0) -> str:
    answer = of.choose(request(number, session), [], replicas, 0.0)
    assert answer is not None
    return answer.id


def test_round_robin_takes_turns() -> None:
    turns, replicas = RoundRobin(), [replica("a"), replica("b"), replica("c")]
    served = []
    for number in range(6):
        answer = turns.choose(request(number), [], replicas, 0.0)
        turns.routed(request(number), [], answer)
        served.append(answer.id)
    assert served == ["a", "b", "c", "a", "b", "c"]


def test_least_work_counts_prompts_decodes_and_a_barrier() -> None:
    assert chosen(policy("least-work"), [replica("a", 1, 10_000), replica("b", 9, 9_000)]) == "b"
    # 10,000 prompt tokens are 1 s; 6,000 output tokens at 0.0128 / 64 s each are 1.2 s
    assert chosen(policy("least-work"), [replica("a", 1, 0, 6_000), replica("b", 9, 10_000)]) == "b"
    # memory at 95 %: 0.15 · 0.95 / 0.05 = 2.85 s
    assert chosen(policy("least-work"), [replica("a", 1, kv=(95, 100)), replica("b", 1, 28_000, kv=(0, 100))]) == "b"
    assert chosen(policy("least-work"), [replica("a", 1, kv=(95, 100)), replica("b", 1, 29_000, kv=(0, 100))]) == "a"
    assert chosen(policy("least-work"), [replica("a", 2), replica("b", 1)]) == "b"


def test_power_of_two_takes_the_less_loaded_of_two_and_reaches_all() -> None:
    draw = policy("power-of-two")
    equal = [replica(name) for name in "abcd"]
    counts = Counter(chosen(draw, equal, number=number) for number in range(400))
    assert set(counts) == set("abcd")
    loaded = [replica("a", 50), replica("b"), replica("c"), replica("d")]
    assert "a" not in {chosen(draw, loaded, number=number) for number in range(400)}


def test_a_prefix_goes_where_it_was_until_that_replica_is_loaded() -> None:
    affinity = PrefixAffinity(load_factor=1.5)
    idle = [replica("a"), replica("b")]
    affinity.routed(request(), [1, 2, 3], idle[1])
    assert affinity.choose(request(), [1, 2, 9], idle, 0.0) is idle[1]
    assert affinity.choose(request(), [8], idle, 0.0) is idle[0]
    hot = [replica("a"), replica("b", 5)]
    assert affinity.choose(request(), [1, 2, 3], hot, 0.0) is hot[0]


def test_the_longest_prefix_wins_and_the_oldest_is_forgotten() -> None:
    affinity = PrefixAffinity(prefixes_max=2, load_factor=2)
    idle = [replica("a"), replica("b")]
    affinity.routed(request(), [1], idle[0])
    affinity.routed(request(), [2], idle[1])
    assert affinity.choose(request(), [1, 2], idle, 0.0) is idle[1]
    affinity.routed(request(), [3], idle[1])
    assert affinity.choose(request(), [1], idle, 0.0) is idle[0]
    affinity.routed(request(), [1], idle[1])
    assert affinity.choose(request(), [1], idle, 0.0) is idle[1]


def test_a_session_stays_and_only_those_of_a_lost_replica_move() -> None:
    sticky = policy("session-affinity", load_factor=4)
    replicas = [replica(name) for name in "abc"]
    homes = {f"s{n}": chosen(sticky, replicas, session=f"s{n}") for n in range(60)}
    assert set(homes.values()) == set("abc")
    for session, home in homes.items():
        if home != "c":
            assert chosen(sticky, replicas[:2], session=session) == home
    assert chosen(sticky, [replica("a", 3), replica("b", 1)]) == "b"


def test_bounded_load_always_leaves_somebody() -> None:
    assert within_bound([replica("a", 7), replica("b", 7)], 1.0)
    assert [r.id for r in within_bound([replica("a", 10), replica("b", 0)], 1.25)] == ["b"]


@pytest.mark.parametrize("name", ["prefix-affinity", "session-affinity"])
def test_a_bound_below_the_mean_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"load_factor must be at least 1, got 0\.5"):
        policy(name, load_factor=0.5)


def test_round_robin_forgets_replicas_that_went_and_keeps_the_turns_of_those_that_stay() -> None:
    turns = RoundRobin()
    stays = [replica("a"), replica("b")]
    for number in range(5_000):
        pod = replica(f"pod-{number}")
        turns.routed(request(), (), pod)
        for one in stays:
            turns.routed(request(), (), one)
    assert len(turns._turn) <= 2_000
    assert turns.choose(request(), (), stays, 0.0) is stays[0]
