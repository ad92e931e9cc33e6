"""Prefix cache lookups stay within their budget of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headway.domain.request import Request
from headway.policies.contracts import Need
from headway.policies.places import GIVEN, DecisionPlace, Grade
from headway.vllm_plugin.prefix_hits import BLOCKS_MAX, SECONDS_PER_STEP, PrefixHits
from headway.vllm_plugin.request_entries import Entry
from headway.vllm_plugin.xargs_hints import NO_HINTS
from tests.support.vllm_stub import StubRequest


def entry(prompt: int = 100, hashes: int = 3) -> Entry:
    request: Any = StubRequest("r", prompt)
    request.block_hashes = list(range(hashes))
    return Entry(request, Request("r", 0.0, prompt), NO_HINTS, 0)


class Ticks:
    """A timer by which every lookup takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.0005
        return self.now


def test_lookups_stop_when_the_budget_is_spent() -> None:
    asked = []

    def lookup(hashes: Any, most: int) -> int:
        asked.append((len(hashes), most))
        return 64

    hits = PrefixHits(lookup, Ticks(), blocks_max=2, seconds_per_step=0.001)
    some = [entry() for _ in range(5)]
    for one in some:
        hits.arrive(one, 0.0)
    assert asked == [(2, 99), (2, 99)], "two blocks of three, two requests of five"
    assert [one.view.cached_prompt_tokens for one in some] == [64, 64, 0, 0, 0]
    hits.begin_step()
    assert hits.refresh(some[4], 0.0), "a request that was not looked up is looked up as a head"
    assert not hits.refresh(some[4], 0.5), "half a second old is young enough"
    assert (hits.lookups, hits.hit_tokens) == (3, 192)


def test_nothing_to_look_up() -> None:
    def lookup(hashes: Any, most: int) -> int:
        raise AssertionError("there is nothing to look up")

    hits = PrefixHits(lookup, Ticks())
    hits.arrive(entry(hashes=0), 0.0)
    private = entry()
    private.request.skip_reading_prefix_cache = True  # type: ignore[attr-defined]
    hits.arrive(private, 0.0)
    assert hits.lookups == 0


def test_all_blocks_are_asked_for_up_to_the_most() -> None:
    asked = []

    def lookup(hashes: Any, most: int) -> int:
        asked.append(len(hashes))
        return 0

    hits = PrefixHits(lookup, Ticks(), blocks_max=3, seconds_per_step=1.0)
    for count in (2, 3, 4):
        hits.arrive(entry(hashes=count), 0.0)
    usual = PrefixHits(lookup, Ticks())
    usual.arrive(entry(hashes=20_000), 0.0)
    assert asked == [2, 3, 3, 8_192]


def test_pages_say_how_far_look_ups_go() -> None:
    """They go less far than the simulator's, so what a policy is given is not exact."""
    given = GIVEN[DecisionPlace.PLUGIN][Need.CACHED_TOKENS]
    assert given.grade is Grade.ESTIMATED
    page = (Path(__file__).parents[3] / "docs" / "vllm.md").read_text(encoding="utf-8")
    for text in (given.how, page):
        assert f"{BLOCKS_MAX:,} blocks" in text
        assert f"{1_000 * SECONDS_PER_STEP:g} ms" in text


def test_a_step_looks_up_for_two_milliseconds() -> None:
    hits = PrefixHits(lambda hashes, most: 1, Ticks())  # each takes half of one
    for _ in range(9):
        hits.arrive(entry(), 0.0)
    assert hits.lookups == 4
    hits.begin_step()
    for _ in range(9):
        hits.arrive(entry(), 0.0)
    assert hits.lookups == 8


def test_the_last_token_is_computed_whatever_the_cache_holds() -> None:
    hits = PrefixHits(lambda hashes, most: 500, Ticks())
    one = entry(100)
    hits.arrive(one, 0.0)
    assert one.view.cached_prompt_tokens == 99
    one.request.num_output_tokens = 5  # type: ignore[misc] - it was preempted after five
    hits.refresh(one, 1.0)
    assert one.view.cached_prompt_tokens == 104


def test_a_head_moves_if_more_than_a_quarter_of_its_work_changed() -> None:
    answers = iter([20, 40, 55, 55, 0])
    hits = PrefixHits(lambda hashes, most: next(answers), Ticks(), seconds_per_step=1.0)
    one = entry(100)
    hits.arrive(one, 0.0)
    moves = [hits.refresh(one, now) for now in (1.0, 1.99, 2.0, 3.0, 4.0)]
    assert moves == [False, False, False, False, True], "80, 60 and 45 tokens to compute: a quarter each time at most"
    assert hits.hit_tokens == 170
