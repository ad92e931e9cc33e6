"""Refine-and-Prune: each step by hand, the whole by its laws, and no quadratic surprise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headway.policies.lanes.partition import (
    Merge,
    Sizes,
    Span,
    clusters,
    merge_down,
    refine_and_prune,
    split_at_gaps,
    split_wide,
)

size_lists = st.lists(st.integers(0, 5_000) | st.sampled_from([7, 7, 1_000_000]), min_size=1, max_size=300)
merges = st.sampled_from(get_args(Merge))


def spread_within(spans: tuple[Span, ...] | list[Span], sizes: np.ndarray) -> float:
    """Request-weighted standard deviation of sizes inside their lanes."""
    total = sum(((sizes[(sizes >= s.low) & (sizes <= s.high)] - s.mean) ** 2).sum() for s in spans)
    return math.sqrt(total / len(sizes))


@given(size_lists, st.integers(1, 12), merges, st.sampled_from([1.2, 2.0, math.inf]), st.integers(1, 60))
def test_lanes_are_disjoint_in_order_bounded_and_hold_everybody(
    sizes: list[int], lanes_max: int, merge: Merge, spread_max: float, requests_min: int
) -> None:
    spans = refine_and_prune(sizes, lanes_max=lanes_max, merge=merge, spread_max=spread_max, requests_min=requests_min)
    assert 1 <= len(spans) <= lanes_max
    assert all(a.high < b.low for a, b in pairwise(spans))
    for span in spans:
        own = [size for size in sizes if span.low <= size <= span.high]
        assert (min(own), max(own), len(own)) == (span.low, span.high, span.requests)
        assert span.mean == pytest.approx(sum(own) / len(own))
    assert sum(span.requests for span in spans) == len(sizes)


@given(size_lists, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(sizes: list[int], random: object) -> None:
    shuffled = sizes.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert refine_and_prune(shuffled, spread_max=2.0) == refine_and_prune(sizes, spread_max=2.0)


def test_no_sizes_no_lanes() -> None:
    assert refine_and_prune([]) == ()


def test_two_well_kept_groups_become_two_lanes() -> None:
    sizes = [*range(100, 150), *range(4_000, 4_050)] * 3
    assert refine_and_prune(sizes, coarse=1) == (Span(100, 149, 124.5, 150), Span(4_000, 4_049, 4_024.5, 150))


def test_one_length_is_one_lane_and_fewer_lengths_than_clusters_are_no_fault() -> None:
    assert refine_and_prune([512] * 1_000) == (Span(512, 512, 512.0, 1_000),)
    assert [s[:2] for s in refine_and_prune([1, 1, 900], requests_min=1)] == [(1, 1), (900, 900)]


def test_k_means_finds_three_groups_whatever_their_shares() -> None:
    sizes = Sizes([10, 11, 12] * 500 + [1_000, 1_001] * 20 + [9_000] * 3)
    assert [sizes.span(*run)[:2] for run in clusters(sizes, 3)] == [(10, 12), (1_000, 1_001), (9_000, 9_000)]


def test_a_gap_is_a_cut_only_when_significant_wide_and_well_populated() -> None:
    values = [*range(100), *range(300, 400)]
    sizes = Sizes(values)
    whole = (0, len(values))
    assert split_at_gaps(sizes, whole, 5.5, 64, 50) == [(0, 100), (100, 200)]
    assert split_at_gaps(sizes, whole, 5.5, 202, 50) == [whole]  # the gap is 201 wide
    assert split_at_gaps(sizes, whole, 200.0, 64, 50) == [whole]  # 201 against a mean gap of 399/199
    assert split_at_gaps(sizes, whole, 5.5, 64, 201) == [whole]


def test_repetitions_do_not_split_noise() -> None:
    """Ties shrink the mean gap of raw lengths with n; over distinct lengths ten times the traffic is no more lanes."""
    sizes = np.random.default_rng(1).lognormal(6, 1, 5_000).astype(int).tolist()
    once, often = (refine_and_prune(many, lanes_max=10_000, requests_min=1) for many in (sizes, sizes * 10))
    assert [span[:2] for span in often] == [span[:2] for span in once]
    gaps = np.diff(np.sort(sizes * 10))
    assert (gaps > 5.5 * gaps.mean()).sum() > 3 * len(once)  # what raw gaps would cut, at the first pass alone


def test_cutting_wide_lanes_bounds_the_spread_where_there_is_traffic() -> None:
    sizes = Sizes(np.random.default_rng(2).integers(1, 4_000, 20_000).tolist())
    whole = (0, len(sizes.distinct))
    parts = split_wide(sizes, [whole], 2.0, 30, 50)
    assert [parts[0][0], *(end for _, end in parts)] == [0, *(begin for begin, _ in parts[1:]), whole[1]]
    for run in parts:
        span = sizes.span(*run)
        assert span.high + 1 <= 2 * (span.low + 1) or span.requests < 50
    assert len(split_wide(sizes, [whole], 2.0, 3, 50)) == 3


def test_merge_costs_by_hand() -> None:
    """Three lanes to two: Ward joins the two light ones, closeness in logs the two long ones."""
    a, b, c = Span(10, 20, 15.0, 1_000), Span(100, 120, 110.0, 1_000), Span(290, 310, 300.0, 400)
    assert [s[:2] for s in merge_down([a, b, c], 2, "ward")] == [(10, 120), (290, 310)]
    assert [s[:2] for s in merge_down([a, b, c], 2, "ward-log")] == [(10, 20), (100, 310)]
    # utility: (1000 + 1000)/(95 + 1) = 20.8 against 1400/191 = 7.3; authors: √110/(2000/110) against √210/(1400/210)
    assert [s[:2] for s in merge_down([a, b, c], 2, "utility")] == [(10, 120), (290, 310)]
    assert [s[:2] for s in merge_down([a, b, c], 2, "authors")] == [(10, 120), (290, 310)]
    assert merge_down([a, b, c], 1, "ward") == [Span(10, 310, (15_000 + 110_000 + 120_000) / 2_400, 2_400)]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=2, max_size=9), st.integers(1, 5), merges)
def test_the_heap_merges_as_a_scan_would(steps: list[tuple[int, int]], lanes_max: int, merge: Merge) -> None:
    from headway.policies.lanes.partition import _merge_cost

    at, spans = 0, []
    for width, requests in steps:
        spans.append(Span(at, at + width, at + width / 2, requests))
        at += 2 * width + 1
    plain = list(spans)
    while len(plain) > lanes_max:
        costs = [_merge_cost(a, b, merge) for a, b in pairwise(plain)]
        if costs.count(min(costs)) > 1:
            return  # a tie may be broken either way
        i = costs.index(min(costs))
        a, b = plain[i : i + 2]
        requests = a.requests + b.requests
        plain[i : i + 2] = [Span(a.low, b.high, (a.mean * a.requests + b.mean * b.requests) / requests, requests)]
    assert merge_down(spans, lanes_max, merge) == plain


def test_ward_keeps_lanes_tighter_than_the_utilities_on_mixtures() -> None:
    """On skewed mixtures Ward's lanes are the tightest; this is why they are not merged by the published utility."""
    random = np.random.default_rng(3)
    sizes = np.concatenate(
        [random.lognormal(4, 0.5, 8_000), random.normal(2_000, 400, 1_500).clip(1), random.uniform(3_000, 9_000, 500)]
    ).astype(int)
    spread = {
        merge: spread_within(refine_and_prune(sizes.tolist(), significance=2.0, lanes_max=10, merge=merge), sizes)
        for merge in ("ward", "utility", "authors")
    }
    assert spread["ward"] <= min(spread["utility"], spread["authors"])


def test_gaps_that_double_are_cut_in_bounded_depth() -> None:
    """2, 4, 8, …: every cut leaves one more significant gap; the number of passes stays logarithmic."""
    sizes = [1 << i for i in range(40)] * 50
    assert len(refine_and_prune(sizes, coarse=1, significance=2.0, lanes_max=1_000)) >= 5


# recomputed from the docstrings, in plain loops


def total_squares(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values)


def requests_of(sizes: list[int], some: list[int]) -> list[int]:
    """The requests, with repetitions, whose size is one of these."""
    return [size for size in sizes if size in some]


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60), st.integers(1, 5))
def test_k_means_starts_from_halves_and_ends_where_each_is_nearest_its_own_mean(sizes: list[int], k: int) -> None:
    distinct = sorted(set(sizes))
    parts = [distinct]
    while len(parts) < min(k, len(distinct)):
        worst = max(parts, key=lambda part: (len(part) > 1, total_squares(requests_of(sizes, part))))
        half = (worst[0] + worst[-1]) / 2
        low = [value for value in worst if value < half] or worst[:1]
        low = low if len(low) < len(worst) else worst[:-1]
        at = parts.index(worst)
        parts[at : at + 1] = [low, worst[len(low) :]]
        spreads = sorted(total_squares([float(size) for size in requests_of(sizes, part)]) for part in parts)
        if any(b - a < 1e-6 for a, b in pairwise(spreads)):
            return  # a tie may be cut either way
    for _ in range(50):
        means = [sum(own := requests_of(sizes, part)) / len(own) for part in parts]
        middles = [(a + b) / 2 for a, b in pairwise(means)]
        edges = [-1.0, *middles, math.inf]
        moved = [[v for v in distinct if (i == 0 or v >= edges[i]) and v < edges[i + 1]] for i in range(len(means))]
        moved = [part for part in moved if part]
        if moved == parts:
            break
        parts = moved
    known = Sizes(sizes)
    assert [known.distinct[begin:end] for begin, end in clusters(known, k)] == parts


@given(
    st.lists(st.integers(0, 3_000), min_size=1, max_size=60),
    st.sampled_from([0.5, 1.0, 1.5, 2.0, 5.5]),
    st.sampled_from([1, 20, 64]),
    st.sampled_from([1, 5, 20]),
)
def test_gaps_are_cut_again_and_again_until_none_stands_out(
    sizes: list[int], significance: float, gap_tokens_min: int, requests_min: int
) -> None:
    distinct = sorted(set(sizes))

    def cut(part: list[int], depth: int) -> list[list[int]]:
        gaps = [b - a for a, b in pairwise(part)]
        if not depth or not gaps or len(requests_of(sizes, part)) < requests_min:
            return [part]
        wide = max(significance * sum(gaps) / len(gaps), gap_tokens_min)
        at = [place for place, gap in enumerate(gaps, 1) if gap >= wide]
        if not at or (significance <= 1 and len(at) == len(gaps)):
            return [part]
        pieces = [part[a:b] for a, b in pairwise([0, *at, len(part)])]
        return [small for piece in pieces for small in cut(piece, depth - 1)]

    known = Sizes(sizes)
    found = split_at_gaps(known, (0, len(distinct)), significance, gap_tokens_min, requests_min)
    assert [distinct[begin:end] for begin, end in found] == cut(distinct, max(1, len(distinct).bit_length()))


@given(
    st.lists(st.integers(0, 3_000), min_size=2, max_size=60),
    st.sampled_from([1.1, 2.0, 10.0]),
    st.integers(1, 6),
    st.sampled_from([1, 5]),
)
def test_the_widest_lane_is_cut_first_while_lanes_are_left(
    sizes: list[int], spread_max: float, lanes_max: int, requests_min: int
) -> None:
    distinct = sorted(set(sizes))

    def logs(part: list[int]) -> list[float]:
        return [math.log(size + 1) for size in requests_of(sizes, part)]

    def halved(part: list[int]) -> tuple[list[int], list[int]]:
        middle = (math.log(part[0] + 1) + math.log(part[-1] + 1)) / 2
        at = 0
        for _ in range(51):
            assume(all(abs(math.log(size + 1) - middle) > 1e-9 for size in part))  # a tie may be cut either way
            below = sum(math.log(size + 1) < middle for size in part)
            moved = min(max(1, below), len(part) - 1)
            if moved == at:
                break
            at = moved
            sides = logs(part[:at]), logs(part[at:])
            middle = sum(sum(side) / len(side) for side in sides) / 2
        return part[:at], part[at:]

    def wide(part: list[int]) -> bool:
        many = len(requests_of(sizes, part)) >= requests_min
        return len(part) > 1 and part[-1] + 1 > spread_max * (part[0] + 1) and many

    parts = [distinct]
    while len(parts) < lanes_max and any(wide(part) for part in parts):
        spreads = sorted((total_squares(logs(part)) for part in parts if wide(part)), reverse=True)
        if len(spreads) > 1 and spreads[0] - spreads[1] < 1e-9:
            return  # a tie may be cut either way
        worst = max((part for part in parts if wide(part)), key=lambda part: total_squares(logs(part)))
        parts = sorted([*(part for part in parts if part is not worst), *halved(worst)])
    known = Sizes(sizes)
    found = split_wide(known, [(0, len(distinct))], spread_max, lanes_max, requests_min)
    assert [distinct[begin:end] for begin, end in found] == parts


@given(st.lists(st.integers(0, 900), min_size=1, max_size=40), st.data())
def test_any_run_of_sizes_is_described(sizes: list[int], data: st.DataObject) -> None:
    known = Sizes(sizes)
    begin = data.draw(st.integers(0, len(known.distinct) - 1))
    end = data.draw(st.integers(begin + 1, len(known.distinct)))
    own = requests_of(sizes, known.distinct[begin:end])
    assert known.distinct == sorted(set(sizes))
    assert known.logs == [math.log(size + 1) for size in known.distinct]
    assert known.requests(begin, end) == len(own)
    assert known.span(begin, end) == (min(own), max(own), pytest.approx(sum(own) / len(own)), len(own))
    assert known.spread(begin, end) == pytest.approx(total_squares([float(size) for size in own]), abs=1e-3)
    logs = [math.log(size + 1) for size in own]
    assert known.log_mean(begin, end) == pytest.approx(sum(logs) / len(logs))
    assert known.log_spread(begin, end) == pytest.approx(total_squares(logs), abs=1e-6)
    assert known.log_spread(begin, end) >= 0.0


def test_what_is_made_by_default() -> None:
    """Three clusters, cuts at 5.5 mean gaps of at least 64 tokens where 50 requests are, and 30 lanes by Ward."""
    sizes = np.random.default_rng(4).lognormal(6, 1.2, 3_000).astype(int).tolist()
    given_by_name = refine_and_prune(
        sizes,
        coarse=3,
        significance=5.5,
        gap_tokens_min=64,
        requests_min=50,
        spread_max=math.inf,
        lanes_max=30,
        merge="ward",
    )
    assert refine_and_prune(sizes) == given_by_name
    runs = [run for c in clusters(Sizes(sizes), 3) for run in split_at_gaps(Sizes(sizes), c, 5.5, 64, 50)]
    known = Sizes(sizes)
    assert refine_and_prune(sizes, lanes_max=5) == tuple(merge_down([known.span(*run) for run in runs], 5, "ward"))
    wide = split_wide(known, runs, 1.5, 4 * 5, 50)
    assert refine_and_prune(sizes, lanes_max=5, spread_max=1.5, merge="ward-log") == tuple(
        merge_down([known.span(*run) for run in wide], 5, "ward-log")
    )


def test_closeness_in_logs_is_of_sizes_and_one() -> None:
    """ln(4/1) is more than ln(15/4), so the two long ones are merged."""
    some = [Span(0, 0, 0.0, 1), Span(3, 3, 3.0, 1), Span(14, 14, 14.0, 1)]
    assert [span[:2] for span in merge_down(some, 2, "ward-log")] == [(0, 0), (3, 14)]


def test_no_more_than_thirty_lanes_are_made_unless_more_are_asked_for() -> None:
    sizes = [1_000 * group + place for group in range(60) for place in range(20)] * 3
    assert len(refine_and_prune(sizes, lanes_max=99)) == 60
    assert len(refine_and_prune(sizes)) == 30
