"""Routing policies after papers, each against its formula by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.request import Request
from headway.policies.bounded_load import within_bound
from headway.policies.contracts import RoutingPolicy
from headway.policies.routing.adapter_affinity import AdapterAffinity
from headway.policies.routing.cached_prefix import CachedPrefix
from headway.policies.routing.dual_map import DualMap
from headway.policies.routing.fullest_that_attains import FullestThatAttains
from headway.policies.routing.least_work import LeastWork
from headway.policies.routing.length_split import LengthSplit
from headway.policies.routing.lmetric import Lmetric
from headway.policies.routing.weighted_dispatch import WeightedDispatch
from headway.testing.laws.routing import OfferedReplica

FAST = ServiceCosts(prefill_seconds_per_token=1e-4, decode_seconds_per_token=0.01)
SLOW = ServiceCosts(prefill_seconds_per_token=4e-4, decode_seconds_per_token=0.04)


def request(
    number: int = 0,
    prompt_tokens: int = 1_000,
    *,
    output_tokens: int = 64,
    adapter: str | None = None,
    deadline: float | None = None,
) -> Request:
    made = Request(number, 0.0, prompt_tokens, adapter=adapter, deadline=deadline)
    made.estimate = PointEstimate(output_tokens, "test")
    return made


def holding(id: str, tokens: int, requests: int = 0, **more: int) -> OfferedReplica:
    """A replica that confirmed so many tokens of the prefix 1."""
    return OfferedReplica(id, requests, cached=((1, tokens),), **more)


# lmetric


def test_lmetric_is_the_product_of_new_tokens_and_requests_with_this_one() -> None:
    own = Lmetric(counts="own")
    cached, idle = holding("a", 900, requests=20), holding("b", 0, requests=1)
    assert own.choose(request(), [1], [cached, idle], 0.0) is idle, "100 · 21 > 1,000 · 2"
    less = cached._replace(requests=19, kv_tokens=5)
    assert own.choose(request(), [1], [less, idle], 0.0) is idle, "2,000 = 2,000, and fewer KV tokens"
    assert own.choose(request(), [1], [less, idle._replace(kv_tokens=6)], 0.0) is less
    waiting = holding("a", 900, requests=1, prefill_tokens=2_000)
    assert own.choose(request(), [1], [waiting, idle], 0.0) is waiting
    assert Lmetric().choose(request(), [1], [waiting, idle], 0.0) is idle, "2,100 · 2 > 1,000 · 2"


def test_lmetric_is_the_same_whatever_all_tokens_or_all_requests_are_multiplied_by() -> None:
    draw, policy = Random(1), Lmetric(counts="own")
    for _ in range(200):
        tokens = [draw.randint(100, 999) for _ in range(4)]
        requests = [draw.randint(0, 30) for _ in range(4)]
        offered = [
            holding(f"r{n}", 1_000 - t, requests=b) for n, (t, b) in enumerate(zip(tokens, requests, strict=True))
        ]
        scaled = [
            OfferedReplica(f"r{n}", 3 * (b + 1) - 1, cached=((1, 7_000 - 7 * t),))
            for n, (t, b) in enumerate(zip(tokens, requests, strict=True))
        ]
        chosen = policy.choose(request(), [1], offered, 0.0)
        assert policy.choose(request(0, 7_000), [1], scaled, 0.0).id == chosen.id


def test_lmetric_on_a_prompt_that_is_cached_everywhere_is_the_fewest_requests() -> None:
    replicas = [holding("a", 999, requests=5), holding("b", 999, requests=2)]
    assert Lmetric().choose(request(), [1], replicas, 0.0) is replicas[1]


# cached-prefix


def test_the_longest_confirmed_prefix_wins_within_the_bound() -> None:
    policy = CachedPrefix()
    far, near, none = holding("a", 100), holding("b", 800), OfferedReplica("c")
    assert policy.choose(request(), [1], [far, near, none], 0.0) is near
    assert policy.choose(request(), [1], [far, near._replace(requests=3), none], 0.0) is far
    assert policy.choose(request(), [9], [far, near, none._replace(requests=1)], 0.0) is far, "least work"
    busy = near._replace(prefill_tokens=10_000)
    assert policy.choose(request(), [1], [busy, near._replace(id="d")], 0.0).id == "d", "equals: least work"


# adapter-affinity


def test_an_adapter_goes_to_its_replicas_and_no_others_while_they_are_within_the_bound() -> None:
    policy = AdapterAffinity(load_factor=9.0)
    idle = [OfferedReplica(f"r{number}") for number in range(8)]
    used = {}
    for adapter in [f"adapter-{number}" for number in range(40)]:
        chosen, replicas = set(), idle
        for _ in range(6):
            one = policy.choose(request(adapter=adapter), [], replicas, 0.0)
            chosen.add(one.id)
            replicas = [r._replace(requests=r.requests + (r.id == one.id)) for r in replicas]
        assert len(chosen) == 2
        used[adapter] = chosen
    assert set().union(*used.values()) == {f"r{number}" for number in range(8)}
    full = [r._replace(requests=100 if r.id in used["adapter-0"] else 0) for r in idle]
    assert AdapterAffinity().choose(request(adapter="adapter-0"), [], full, 0.0).id not in used["adapter-0"]


def test_an_adapter_goes_only_where_it_is_listed() -> None:
    lacks = OfferedReplica("a", adapters=frozenset(["y"]))
    lists = OfferedReplica("b", requests=1, adapters=frozenset(["x"]))
    assert AdapterAffinity(load_factor=9.0).choose(request(adapter="x"), [], [lacks, lists], 0.0) is lists
    assert AdapterAffinity().choose(request(), [], [lacks, lists], 0.0) is lacks, "no adapter: least work"


# unequal replicas: least-work and weighted-dispatch


def test_least_work_weighs_by_speed() -> None:
    fast, slow = OfferedReplica("a", costs=FAST), OfferedReplica("b", costs=SLOW)
    policy = LeastWork()
    assert policy.choose(request(), [], [slow, fast], 0.0) is fast
    # The slow one is idle: 0.4 s of prompt and 0.04 s of output there; the fast one would have 0.1 + 0.01 s of its own.
    assert policy.choose(request(), [], [slow, fast._replace(prefill_tokens=3_200)], 0.0).id == "a"
    assert policy.choose(request(), [], [slow, fast._replace(prefill_tokens=3_400)], 0.0) is slow


def test_weighted_dispatch_by_hand() -> None:
    """Alone, the request takes 0.1 + 0.64 s on the fast one and 0.4 + 2.56 s on the slow one; the mean is 1.85 s."""
    slow, fast = OfferedReplica("a", costs=SLOW), OfferedReplica("b", costs=FAST)
    for weight in (0.0, 0.25, 1.0):
        policy = WeightedDispatch(speed_weight=weight)
        for tokens in range(0, 8_000, 250):
            busy = fast._replace(prefill_tokens=tokens)
            waits = slow._replace(prefill_tokens=500)
            works = [0.2, tokens * 1e-4]
            mean = sum(works) / 2
            scores = [
                weight * 1.85 / time - (1 - weight) * work / mean
                for time, work in zip((2.96, 0.74), works, strict=True)
            ]
            if abs(scores[0] - scores[1]) > 1e-9:
                expected = waits if scores[0] > scores[1] else busy
                assert policy.choose(request(), [], [waits, busy], 0.0) is expected, (weight, tokens)
    assert WeightedDispatch().choose(request(), [], [slow, fast], 0.0) is fast


@pytest.mark.parametrize("policy", [LeastWork(), Lmetric(), WeightedDispatch()])
@given(st.integers(0, 9), st.integers(0, 10**5), st.floats(0, 1e5), st.integers(1, 10**5), st.floats(1.01, 100.0))
def test_of_two_replicas_with_the_same_load_the_faster_is_taken(
    policy: RoutingPolicy, requests: int, prefill: int, decode: float, tokens: int, factor: float
) -> None:
    slower = ServiceCosts(*(factor * seconds for seconds in FAST))
    fast = OfferedReplica("a", requests, prefill_tokens=prefill, decode_tokens=decode, costs=FAST)
    slow = fast._replace(id="b", costs=slower)
    assert policy.choose(request(0, tokens), [], [slow, fast], 0.0) is fast
    assert policy.choose(request(0, tokens), [], [fast, slow], 0.0) is fast


# dual-map


def routed_day(policy: DualMap, prefixes: Sequence[Sequence[int]], replicas: list[OfferedReplica]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for number, prefix in enumerate(prefixes):
        chosen = policy.choose(request(number), prefix, replicas, 0.0)
        policy.routed(request(number), prefix, chosen)
        counts[chosen.id] += 1
    return counts


def test_one_prefix_names_two_replicas_and_the_better_cached_is_taken_while_it_is_in_time() -> None:
    replicas = [OfferedReplica(f"r{number}") for number in range(8)]
    policy = DualMap()
    first, second = policy.candidates(request(), [7], replicas)
    assert first is not second
    assert policy.candidates(request(99), [7, 8], replicas) == (first, second), "by the prefix alone"
    cached = second._replace(cached=((7, 900),), prefill_tokens=48_000)
    offered = [cached if one is second else one for one in replicas]
    assert policy.choose(request(), [7], offered, 0.0) is cached, "(48,000 + 100) · 0.1 ms < 5 s"
    late = cached._replace(prefill_tokens=50_000)
    offered = [late if one is second else one for one in replicas]
    assert policy.choose(request(), [7], offered, 0.0) is first
    assert policy.choose(request(deadline=6.0), [7], offered, 0.0) is late


def test_different_prefixes_spread_and_a_prefix_common_to_all_does_not_name_two_replicas_for_all() -> None:
    replicas = [OfferedReplica(f"r{number}") for number in range(8)]
    different = routed_day(DualMap(), [[number] for number in range(2_000)], replicas)
    assert set(different) == {f"r{number}" for number in range(8)}
    assert max(different.values()) < 2 * 2_000 / 8
    common = routed_day(DualMap(), [[0, number % 50, 9_000 + number] for number in range(2_000)], replicas)
    assert len(common) == 8
    assert max(common.values()) < 3 * 2_000 / 8


def test_a_prefix_that_cools_down_names_its_replicas_again() -> None:
    replicas = [OfferedReplica(f"r{number}") for number in range(8)]
    policy = DualMap()

    def named() -> list[tuple[str, ...]]:
        pairs = [policy.candidates(request(), [0, number], replicas) for number in range(20)]
        return [tuple(replica.id for replica in pair) for pair in pairs]

    before = named()
    assert len(set(before)) == 1
    routed_day(policy, [[0, number] for number in range(1_000)], replicas)
    assert len(set(named())) > 5
    routed_day(policy, [[5_000 + number] for number in range(1_000)], replicas)
    assert named() == before
    assert len(policy._counts) == 1_000, "what was counted is forgotten"


# fullest-that-attains


def test_one_replica_is_filled_until_it_no_longer_attains() -> None:
    policy = FullestThatAttains()
    replicas = [OfferedReplica(f"r{number}", costs=FAST) for number in range(3)]
    placed = []
    for number in range(1_300):
        chosen = policy.choose(request(number), [], replicas, 0.0)
        placed.append(chosen.id)
        replicas = [r._replace(requests=r.requests + 1) if r.id == chosen.id else r for r in replicas]
        loads = [r.requests for r in replicas]
        assert loads == sorted(loads, reverse=True), "sorted loads stay sorted"
    # 0.01 s a token at 64 requests is 0.09 s at 576: nine tenths of the bound of 0.1 s.
    assert Counter(placed) == {"r0": 576, "r1": 576, "r2": 148}


def test_a_replica_that_would_be_late_or_out_of_memory_does_not_attain() -> None:
    policy = FullestThatAttains()
    full = OfferedReplica("a", 5, prefill_tokens=17_000, costs=FAST)
    idle = OfferedReplica("b", costs=FAST)
    assert policy.choose(request(), [], [full, idle], 0.0) is full, "18,000 tokens are 1.8 s, and 0.9 · 2 s is left"
    assert policy.choose(request(), [], [full._replace(prefill_tokens=17_001), idle], 0.0) is idle
    assert policy.choose(request(deadline=1.9), [], [full, idle], 0.0) is idle
    tight = full._replace(prefill_tokens=0, kv_tokens=700, kv_tokens_max=1_960)
    assert policy.choose(request(), [], [tight, idle], 0.0) is tight
    assert policy.attains(request(), [], tight, 0.0), "700 + 1,000 + 64 = 0.9 · 1,960"
    assert not policy.attains(request(), [], tight._replace(kv_tokens=701), 0.0)
    none = [full._replace(prefill_tokens=90_000), idle._replace(prefill_tokens=80_000)]
    assert policy.choose(request(), [], none, 0.0) is none[1], "none attains: least work"


# length-split


def split_day(policy: LengthSplit, lengths: Sequence[int], replicas: list[OfferedReplica]) -> dict[bool, set[str]]:
    """Which replicas the latest quarter of the short and of the long prompts went to."""
    used: dict[bool, set[str]] = {True: set(), False: set()}
    busy = Counter[str]()
    for number, tokens in enumerate(lengths):
        offered = [r._replace(prefill_tokens=busy[r.id]) for r in replicas]
        one = request(number, tokens)
        chosen = policy.choose(one, [], offered, 0.0)
        policy.routed(one, [], chosen)
        busy[chosen.id] += tokens
        if number >= len(lengths) * 3 // 4:
            used[tokens < 256].add(chosen.id)
    return used


def test_short_and_long_prompts_never_share_a_replica_and_the_groups_follow_their_work() -> None:
    replicas = [OfferedReplica(f"r{number}") for number in range(8)]
    mostly_long = split_day(LengthSplit(), [100, 20_000] * 1_000, replicas)
    assert (len(mostly_long[True]), len(mostly_long[False])) == (1, 7)
    even = split_day(LengthSplit(), [200, 100, 250, 200, 250, 1_000] * 400, replicas)
    assert not even[True] & even[False]
    assert len(even[True]) in (3, 4, 5)
    assert len(even[True] | even[False]) == 8


def test_a_group_without_room_lends_from_the_other() -> None:
    only_long = [OfferedReplica("r1"), OfferedReplica("r2")]
    policy = LengthSplit()
    for number, replica in enumerate([OfferedReplica("r0"), *only_long]):
        policy.routed(request(number, 5_000), [], replica)
    assert policy.choose(request(9, 10), [], [OfferedReplica("r0"), *only_long], 0.0).id == "r0"
    assert policy.choose(request(9, 10), [], only_long, 0.0) in only_long
    assert policy.choose(request(9, 5_000), [], [OfferedReplica("r0")], 0.0).id == "r0"
    assert policy.choose(request(9, 300), [], [OfferedReplica("r0", cached=((1, 299),))], 0.0).id == "r0"


def test_a_replica_that_left_is_forgotten() -> None:
    policy = LengthSplit()
    policy.routed(request(0), [], OfferedReplica("gone"))
    for number in range(600):
        policy.routed(request(number), [], OfferedReplica("here"))
    assert list(policy._seen) == ["here"]


@pytest.mark.parametrize("policy", [LengthSplit(), DualMap(), WeightedDispatch(), FullestThatAttains()])
def test_one_replica_is_always_the_answer(
    policy: LengthSplit | DualMap | WeightedDispatch | FullestThatAttains,
) -> None:
    only = OfferedReplica("a", 99, prefill_tokens=10**6)
    assert policy.choose(Request(1, 0.0, 10**5), [3], [only], 0.0) is only


def test_the_bounded_load_of_unequal_replicas_is_by_their_speed() -> None:
    """Nine requests and this one, times 1.25: the fast one may hold 10, the slow one, of a quarter of its speed, 3."""
    fast, slow = OfferedReplica("a", 7, costs=FAST), OfferedReplica("b", 2, costs=SLOW)
    assert within_bound([fast, slow], 1.25) == [fast, slow]
    assert within_bound([fast._replace(requests=6), slow._replace(requests=3)], 1.25) == [fast._replace(requests=6)]
