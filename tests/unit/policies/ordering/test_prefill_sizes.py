"""Orders by prefill alone: prompt length, uncached work, cached prefix."""

from __future__ import annotations

from headway.domain.request import Request
from headway.policies.contracts import OrderingPolicy
from headway.policies.ordering.longest_prefix_match import LongestPrefixMatch
from headway.policies.ordering.shortest_prompt_first import ShortestPromptFirst
from headway.policies.ordering.shortest_uncached_prefill_first import ShortestUncachedPrefillFirst
from headway.scheduling.queue import WaitingQueue


def served(ordering: OrderingPolicy, *requests: Request) -> list[object]:
    queue = WaitingQueue(ordering, resumed="by-rank")
    for request in requests:
        queue.add(request)
    return [queue.pop(0.0).id for _ in requests]


COLD_SHORT = ("cold short", 100, 0)
WARM_LONG = ("warm long", 10_000, 9_950)
COLD_LONG = ("cold long", 5_000, 0)


def three() -> list[Request]:
    return [
        Request(name, float(at), prompt_tokens, cached_prompt_tokens=cached)
        for at, (name, prompt_tokens, cached) in enumerate((COLD_LONG, COLD_SHORT, WARM_LONG))
    ]


def test_shortest_prompt_ignores_the_cache() -> None:
    assert served(ShortestPromptFirst(), *three()) == ["cold short", "cold long", "warm long"]


def test_shortest_uncached_prefill_counts_what_must_be_computed() -> None:
    assert served(ShortestUncachedPrefillFirst(), *three()) == ["warm long", "cold short", "cold long"]


def test_longest_prefix_looks_at_the_match_only_then_at_arrival() -> None:
    assert served(LongestPrefixMatch(), *three()) == ["warm long", "cold long", "cold short"]


def test_recomputing_after_a_preemption_is_prefill_work() -> None:
    preempted = Request("preempted", 0.0, 80, produced_tokens=30, cached_prompt_tokens=5)
    assert ShortestUncachedPrefillFirst().rank(preempted) == 105
    assert ShortestPromptFirst().rank(preempted) == 80


def test_equals_go_by_arrival() -> None:
    later, earlier = Request("later", 2.0, 50), Request("earlier", 1.0, 50)
    for ordering in (ShortestPromptFirst(), ShortestUncachedPrefillFirst(), LongestPrefixMatch()):
        assert served(ordering, later, earlier) == ["earlier", "later"]
