"""What policies compute in a clever way, recomputed in plain loops from what their docstrings say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import GeometricEstimate, PointEstimate
from headway.domain.event import Admitted, Arrived, Completed, Preempted
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.admission.backfill import Backfill
from headway.policies.bounded_load import within_bound
from headway.policies.lanes.features import kv_volume_tokens
from headway.policies.lanes.lane_assignment import LaneAssigner
from headway.policies.lanes.partition import Merge, Sizes, Span, merge_down, split_at_gaps, split_wide
from headway.policies.ordering.goodput_first import GoodputFirst
from headway.policies.prediction.conformal import Conformal, CorrectedEstimate, score
from headway.policies.prediction.external import _estimate as external_estimate
from headway.policies.prediction.histogram import EDGES, Histogram, kinds_of
from headway.policies.prediction.one_bit import OneBit
from headway.policies.prediction.past_future_prediction import EmpiricalLaw, Window
from headway.policies.preemption.smallest_remaining_benefit import SmallestRemainingBenefit
from headway.policies.routing.least_work import LeastWork
from headway.policies.routing.power_of_two import PowerOfTwo
from headway.policies.routing.prefix_affinity import PrefixAffinity
from headway.policies.routing.round_robin import RoundRobin
from headway.policies.routing.session_affinity import SessionAffinity
from headway.testing.scripted import ScriptedBatch
from headway.testing.strategies import request_lists

COSTS = ServiceCosts(prefill_seconds_per_token=1e-3, decode_seconds_per_token=0.02)


def expected(request: Request) -> int:
    assert request.estimate is not None
    remaining = max(1, round(request.estimate.remaining_mean(request.produced_tokens)))
    if request.max_output_tokens is None:
        return remaining
    return max(1, min(remaining, request.max_output_tokens - request.produced_tokens))


def held(request: Request) -> int:
    return request.prompt_tokens + request.produced_tokens


# admission and preemption


@given(request_lists(min_size=3, max_produced_tokens=30), st.integers(2, 60), st.sampled_from([1, 4, 16]))
def test_backfill_lets_pass_what_is_gone_in_time_or_leaves_room(lives: list[Request], blocks: int, block: int) -> None:
    head, request, *running = lives
    needed = math.ceil((held(head) + expected(head)) / block)
    steps, spare = 0, 0
    ends = sorted((expected(r), held(r)) for r in running)
    for gone, (end, _) in enumerate(ends, 1):
        left = ends[gone:]
        used = sum(tokens + end for _, tokens in left) // block + len(left)
        if blocks - used - needed >= 0:
            steps, spare = end, blocks - used - needed
            break
    assert request.estimate is not None
    remaining = request.estimate.remaining_quantile(0.9, request.produced_tokens)
    if request.max_output_tokens is not None:
        remaining = max(1, min(remaining, request.max_output_tokens - request.produced_tokens))
    gone_in_time = 1 + held(request) // 2_048 + remaining <= steps
    leaves_room = math.ceil((held(request) + remaining) / block) <= spare
    policy = Backfill()
    may = policy.may_pass(request, head, ScriptedBatch(running), MemoryView(blocks, blocks, block), 0.0)
    assert may is (gone_in_time or leaves_room)


def test_a_long_prompt_takes_more_steps_and_a_head_is_passed_sixteen_times_at_most() -> None:
    def known(number: int, prompt: int, length: int) -> Request:
        request = Request(number, 0.0, prompt)
        request.estimate = PointEstimate(length, "test")
        return request

    policy, head = Backfill(), known(0, 60_000, 10)
    batch, memory = ScriptedBatch([known(1, 50_000, 10)]), MemoryView(100, 60_016, 1)
    assert policy.may_pass(known(2, 2_047, 9), head, batch, memory, 0.0)
    assert not policy.may_pass(known(2, 2_048, 9), head, batch, memory, 0.0), "1 + 1 + 9 steps are more than 10"
    for number in range(16):
        assert policy.may_pass(known(2, 10, 9), head, batch, memory, 0.0), number
        policy.passed(head)
    assert not policy.may_pass(known(2, 10, 9), head, batch, memory, 0.0)
    policy.observe(Admitted(head, 1.0))
    assert policy.may_pass(known(2, 10, 9), head, batch, memory, 1.0)


def test_a_request_with_one_token_to_come_is_gone_in_one_step() -> None:
    """The head fits after that step; a prefill and a token take two, and nothing is to spare beside the head."""
    runs, head, small = (Request(number, 0.0, prompt) for number, prompt in enumerate((40, 49, 5)))
    for request in (runs, head, small):
        request.estimate = PointEstimate(1, "test")
    assert not Backfill().may_pass(small, head, ScriptedBatch([runs]), MemoryView(10, 50, 1), 0.0)
    assert Backfill().may_pass(small, head, ScriptedBatch([runs]), MemoryView(10, 56, 1), 0.0), "six blocks are"


@given(request_lists(min_size=2, max_produced_tokens=30), st.sets(st.integers(0, 8), max_size=3))
def test_the_victim_loses_least_work_per_memory_freed(running: list[Request], preempted: set[int]) -> None:
    policy = SmallestRemainingBenefit()
    spared = {}
    for number in preempted:
        if number < len(running):
            victim = running[number]
            before = victim.produced_tokens
            victim.produced_tokens = before // 2
            policy.observe(Preempted(victim, 0.0))
            spared[victim.id] = before // 2 + before // 2 // 2 + 16
            victim.produced_tokens = before
    lives = [(expected(r), held(r)) for r in running]
    use = {end: sum(tokens + end for other, tokens in lives if other >= end) for end, _ in lives}
    peak_at = max(use, key=lambda end: (use[end], end))
    horizon = max(16, peak_at)

    def price(request: Request) -> float:
        steps = min(expected(request), horizon)
        freed = sum(held(request) + step for step in range(1, steps + 1))
        return max(1, held(request) - request.cached_prompt_tokens) / freed

    open_to_it = [r for r in running[1:] if r.produced_tokens >= spared.get(r.id, 0)]
    chosen = policy.victim(running, 0.0)
    if not open_to_it:
        assert chosen is running[-1]
    else:
        least = min(price(request) for request in open_to_it)
        assert chosen is [r for r in open_to_it if price(r) == pytest.approx(least)][-1] or price(chosen) == least  # type: ignore[arg-type]


# predictors


def support(lengths: list[int], bound: int, produced: int) -> list[int]:
    longer = [produced, *sorted(length for length in lengths if length > produced)]
    return [*longer, bound] if longer[-1] < bound else longer


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 80), st.integers(0, 70), st.floats(0.01, 0.99)
)
def test_the_empirical_law_interpolates_what_is_longer(
    lengths: list[int], bound: int, produced: int, probability: float
) -> None:
    law = EmpiricalLaw(Window(9, lengths), bound)
    if produced == 0:
        drawn = sorted(lengths)[min(int(probability * len(lengths)), len(lengths) - 1)]
        assert law.remaining_quantile(probability, 0) == max(1, min(bound, drawn))
        assert law.remaining_mean(0) == pytest.approx(sum(min(length, bound) for length in lengths) / len(lengths))
        return
    points = support(lengths, bound, produced)
    if len(points) == 1:
        assert law.remaining_quantile(probability, produced) == 1
        assert law.remaining_mean(produced) == 1.0
        return
    place = probability * (len(points) - 1)
    low, high = points[int(place)], points[int(place) + 1]
    drawn = round(low + (high - low) * (place % 1))
    assert law.remaining_quantile(probability, produced) == max(1, drawn - produced)
    mean = sum((a + b) / 2 for a, b in pairwise(points)) / (len(points) - 1)
    assert law.remaining_mean(produced) == pytest.approx(max(1.0, mean - produced))


def test_a_window_forgets_its_oldest() -> None:
    window = Window(3, [5, 1])
    for length in (9, 2, 2):
        window.add(length)
    assert window.by_size == [2, 2, 9]


INNER = GeometricEstimate(50.0, None, "inner")


@given(
    st.lists(st.floats(0.01, 1.6), min_size=1, max_size=12).map(sorted),
    st.sampled_from([0.05, 0.3, 0.5, 0.9]),
    st.integers(0, 300),
    st.none() | st.integers(301, 500),
)
def test_the_corrected_law_asks_the_inner_one_at_a_recent_score(
    scores: list[float], probability: float, produced: int, bound: int | None
) -> None:
    estimate = CorrectedEstimate(INNER, tuple(scores), bound)
    outlived = len([value for value in scores if value <= score(INNER, produced)]) if produced else 0
    if outlived == len(scores):
        remaining = INNER.remaining_quantile(probability, produced)
    else:
        gone = outlived / (len(scores) + 1)
        wanted = gone + probability * (1 - gone)
        place = math.ceil(wanted * (len(scores) + 1)) - 1
        value = scores[max(0, min(place, len(scores) - 1))]
        tail = INNER.remaining_quantile(0.99, 0)
        beyond = math.ceil(tail * math.exp(value - 0.99))
        total = beyond if value > 0.99 else INNER.remaining_quantile(max(0.001, value), 0)
        remaining = max(1, total - produced)
    if bound is not None:
        remaining = max(1, min(remaining, bound - produced))
    assert estimate.remaining_quantile(probability, produced) == remaining
    nine = [estimate.remaining_quantile((2 * step + 1) / 18, produced) for step in range(9)]
    assert estimate.remaining_mean(produced) == pytest.approx(sum(nine) / 9)


def test_scores_by_hand() -> None:
    point = PointEstimate(100, "p")
    assert score(point, 50) == 0.0
    assert score(point, 100) == 0.5, "the middle of its jump"
    assert score(point, 200) == pytest.approx(0.99 + math.log(2))
    survives = 1 - 1 / 50
    assert score(INNER, 10) == pytest.approx(1 - (survives**10 + survives**9) / 2)


def test_conformal_corrects_from_the_twentieth_score_on_and_forgets_the_oldest() -> None:
    predictor = Conformal(window_requests=25)
    for number in range(30):
        request = Request(number, 0.0, 10)
        request.estimate = predictor.predict(request)
        assert isinstance(request.estimate, CorrectedEstimate) is (number >= 20)
        predictor.observe(Arrived(request, 0.0))
        predictor.observe(Completed(request, 0.0, 10 + number))
    assert len(predictor._scores) == 25
    assert predictor._scores == sorted(predictor._scores)


@pytest.mark.parametrize(
    ("answer", "bound", "at_half"),
    [(7.2, None, 8), (7.2, 5, 5), (1, None, 1), ({0.5: 10}, None, 10), ({0.25: 10, 0.75: 30}, None, 20)],
)
def test_an_external_answer_becomes_a_law(answer: float | dict[float, float], bound: int | None, at_half: int) -> None:
    assert external_estimate(answer, bound).remaining_quantile(0.5, 0) == at_half


def test_of_equal_quantiles_of_an_answer_the_higher_counts() -> None:
    law = external_estimate({0.2: 10, 0.6: 10, 0.8: 20}, None)
    assert [law.remaining_quantile(p, 0) for p in (0.3, 0.6, 0.7, 0.8)] == [5, 10, 15, 20]


@pytest.mark.parametrize("answer", [0.9, math.inf, math.nan, {0.0: 3}, {1.0: 3}, {0.5: 0}, {0.2: 9, 0.8: 8}])
def test_an_answer_that_is_no_law_is_refused(answer: float | dict[float, float]) -> None:
    with pytest.raises(ValueError, match=r"length|rise"):
        external_estimate(answer, None)


def test_the_edges_of_the_bins_and_the_kinds_of_requests() -> None:
    assert EDGES[:16] == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 23, 27)
    assert EDGES[-1] == 2**18

    def kind(prompt: int, **fields: object) -> object:
        return kinds_of(Request(0, 0.0, prompt, tenant="t", **fields))[2]  # type: ignore[arg-type]

    same = [(1_024, 1_535), (1_536, 2_047), (4, 5), (6, 7)]
    other = [(1_535, 1_536), (2_047, 2_048), (5, 6), (1, 2), (2, 3)]
    assert all(kind(a) == kind(b) for a, b in same)
    assert all(kind(a) != kind(b) for a, b in other)
    assert kind(10) != kind(10, max_output_tokens=5)
    assert kinds_of(Request(0, 0.0, 10, tenant="t", session="s"))[3:] == [("t", "session", "s")]


def test_a_histogram_by_hand() -> None:
    """Three completions of 2, 2 and 5 tokens and one cut off at 4, all weighing alike, over a log-logistic prior."""
    predictor = Histogram(half_life_requests=1e12, parent_requests=4.0, prior_tokens=8.0)
    for number, (length, bound) in enumerate([(2, None), (2, None), (5, None), (4, 4)]):
        predictor.observe(Completed(Request(number, 0.0, 10, max_output_tokens=bound), 0.0, length))
    asked = Request(9, 0.0, 1_000, tenant="new")

    def prior_survival(tokens: int) -> float:
        return 1 / (1 + (tokens / 8) ** 2)

    survival, alive = 1.0, []
    for tokens in range(1, 6):
        hazard = 1 - prior_survival(tokens) / prior_survival(tokens - 1)
        ended = {2: 2, 5: 1}.get(tokens, 0)
        reached = sum(length >= tokens for length in (2, 2, 5, 4))
        survival *= 1 - (ended + 4 * hazard) / (reached + 4)
        alive.append(survival)
    estimate = predictor.predict(asked)
    assert [estimate.remaining_survival(tokens, 0) for tokens in range(1, 6)] == pytest.approx(alive, rel=1e-6)


@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["a", "b"])), max_size=30), st.integers(2, 12))
def test_one_bit_is_the_majority_of_the_kind(seen: list[tuple[int, str]], window: int) -> None:
    predictor = OneBit(window_requests=window, parent_requests=3.0, prior_tokens=16.5)
    for number, (length, tenant) in enumerate(seen):
        predictor.observe(Completed(Request(number, 0.0, 10, tenant=tenant), 0.0, length))
    kept = seen[-window:]
    lengths = sorted(length for length, _ in kept)
    threshold = lengths[(len(lengths) - 1) // 2] if lengths else 17
    assert predictor.threshold_tokens == threshold
    for tenant in "ab":
        share = 0.5
        for own in (lengths, [length for length, who in kept if who == tenant]):
            if own:
                share = (sum(length > threshold for length in own) + 3 * share) / (len(own) + 3)
        own = [length for length, who in kept if who == tenant]
        if own:  # tenant, bound and prompt: the same again
            share = (sum(length > threshold for length in own) + 3 * share) / (len(own) + 3)
        request = Request("q", 0.0, 10, tenant=tenant)
        assert predictor.share_long(request) == pytest.approx(share)
        members = [length for length in lengths if (length > threshold) is (share > 0.5)]
        mean = sum(members) / len(members) if members else threshold * (2.0 if share > 0.5 else 0.5)
        assert predictor.predict(request).output_tokens == max(1, round(mean))


# lanes


def naive_merge(spans: list[Span], most: int, merge: Merge) -> list[Span]:
    def cost(a: Span, b: Span) -> float:
        total = a.requests + b.requests
        if merge == "ward":
            return a.requests * b.requests / total * (b.mean - a.mean) ** 2
        if merge == "ward-log":
            return a.requests * b.requests / total * (math.log(b.mean + 1) - math.log(a.mean + 1)) ** 2
        if merge == "utility":
            return -total / (abs(b.mean - a.mean) + 1)
        return math.sqrt(b.high - a.low) / (total / max(1, b.high - a.low) + 1e-5)

    spans = list(spans)
    while len(spans) > max(1, most):
        at = min(range(len(spans) - 1), key=lambda i: cost(spans[i], spans[i + 1]))
        a, b = spans[at], spans[at + 1]
        total = a.requests + b.requests
        mean = (a.mean * a.requests + b.mean * b.requests) / total
        spans[at : at + 2] = [Span(a.low, b.high, mean, total)]
    return spans


@pytest.mark.parametrize("merge", ["ward", "ward-log", "utility", "authors"])
@given(
    parts=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 90), st.integers(1, 60)), min_size=1, max_size=14),
    most=st.integers(1, 8),
)
def test_merging_takes_the_cheapest_pair_each_time(merge: Merge, parts: list[tuple[int, int, int]], most: int) -> None:
    spans, low = [], 0
    for number, (gap, width, requests) in enumerate(parts):
        low += gap
        spans.append(Span(low, low + width, low + width / 2 + number * 1e-3, requests))
        low += width
    assert [(s.low, s.high, s.requests) for s in merge_down(spans, most, merge)] == [
        (s.low, s.high, s.requests) for s in naive_merge(spans, most, merge)
    ]


def test_a_run_is_cut_in_two_by_means_of_logs() -> None:
    sizes = Sizes([10] * 60 + [11] * 60 + [100] * 60 + [120] * 60)
    assert split_wide(sizes, [(0, 4)], 1.5, 9, 50) == [(0, 2), (2, 4)]
    assert split_wide(sizes, [(0, 4)], 1.05, 9, 50) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert split_wide(sizes, [(0, 4)], 1.05, 3, 50) == [(0, 2), (2, 3), (3, 4)], "the widest first"
    assert split_wide(sizes, [(0, 4)], 1.5, 9, 241) == [(0, 4)], "too few requests"
    assert split_wide(sizes, [(0, 4)], 121 / 11, 9, 50) == [(0, 4)], "just not too wide"
    skewed = Sizes([1] * 100 + [2] * 100 + [3] * 100 + [30] * 60)
    assert split_wide(skewed, [(0, 4)], 8.0, 9, 50) == [(0, 3), (3, 4)]


def test_a_gap_is_cut_where_it_is_wide_enough_and_enough_requests_are_there() -> None:
    sizes = Sizes([*range(50), *range(200, 250)])
    assert split_at_gaps(sizes, (0, 100), 5.5, 64, 50) == [(0, 50), (50, 100)]
    assert split_at_gaps(sizes, (0, 100), 5.5, 151, 50) == [(0, 50), (50, 100)], "the gap is 151"
    assert split_at_gaps(sizes, (0, 100), 5.5, 152, 50) == [(0, 100)]
    assert split_at_gaps(sizes, (0, 100), 5.5, 64, 100) == [(0, 50), (50, 100)]
    assert split_at_gaps(sizes, (0, 100), 5.5, 64, 101) == [(0, 100)]
    assert split_at_gaps(sizes, (0, 100), 61.0, 64, 50) == [(0, 100)], "60 times the mean gap"


def test_the_size_by_volume() -> None:
    request = Request(0, 0.0, 100, produced_tokens=20)
    request.estimate = PointEstimate(70, "test")
    assert kv_volume_tokens(request) == int(math.sqrt(2 * (120 * 50 + 50 * 51 / 2)))


def test_lanes_take_what_is_a_tenth_off_and_open_bubbles_between() -> None:
    router = LaneAssigner([Span(100, 200, 150.0, 9), Span(1_000, 2_000, 1_500.0, 9)])
    short, long = router.lanes
    assert [router.route(size) for size in (100, 200, 220)] == [short] * 3
    assert [router.route(size) for size in (1_000, 2_200, 900)] == [long] * 3
    bubble = router.route(500)
    assert (bubble.bubble, bubble.low, bubble.high) == (True, 450, 550)
    assert router.route(545) is bubble
    assert router.route(600) is bubble, "within a tenth"
    assert router.route(899).low >= bubble.high
    assert router.route(20).high < 100


def test_authors_bubbles_are_as_wide_as_the_lane_before() -> None:
    router = LaneAssigner([Span(100, 200, 150.0, 9), Span(1_000, 2_000, 1_500.0, 9)], tolerant=False)
    assert [(lane.low, lane.high) for lane in (router.route(201), router.route(999), router.route(5_000))] == [
        (201, 301),
        (949, 999),
        (4_500, 5_500),
    ]
    below = LaneAssigner([Span(1_000, 2_000, 1_500.0, 9)], tolerant=False)
    assert (below.route(500).low, below.route(500).high) == (0, 500)


def test_a_bubble_that_stays_empty_for_twenty_rounds_goes() -> None:
    router = LaneAssigner([Span(100, 200, 150.0, 9)])
    bubble = router.route(5_000)
    router.enter(bubble)
    for _ in range(30):
        router.new_round()
    assert router.knows(bubble)
    router.leave(bubble)
    for _ in range(20):
        router.new_round()
    assert router.knows(bubble)
    version = router.version
    router.new_round()
    assert not router.knows(bubble)
    assert (len(router.lanes), router.version) == (1, version + 1)


def test_edges_and_means_follow_what_came_lately() -> None:
    router = LaneAssigner([Span(100, 200, 150.0, 10), Span(1_000, 2_000, 1_500.0, 10)])
    router.adjust([210, 190, 950, 950, 5_000])
    short, long = router.lanes
    assert (short.low, short.high, short.mean) == (100, 210, pytest.approx(150 + (200 - 150) * 2 / 12))
    assert (long.low, long.high, long.mean) == (950, 2_000, pytest.approx(1_500 + (950 - 1_500) * 2 / 12))
    assert router.route(950) is long


# orders


def test_goodput_first_prefers_what_must_start_now_then_the_cheap_then_the_hopeless() -> None:
    policy = GoodputFirst(costs=COSTS, guard_seconds=1.0)

    def request(number: int, prompt: int, deadline: float | None, at: float = 0.0) -> Request:
        made = Request(number, at, prompt, deadline=deadline)
        made.estimate = PointEstimate(10, "test")
        return made

    # 1,000 tokens are a second: the latest starts are 9, 19, never and 1 s.
    near, far, free, lost = request(0, 1_000, 10.0), request(1, 500, 19.5), request(2, 100, None), request(3, 10, 1.01)
    heads = {0: near, 1: far, 2: free, 3: lost}
    assert policy.choose(heads, 5.0) == 2, "the cheapest of those that need not"
    assert policy.choose(heads, 8.0) == 0, "it must start within a second"
    assert policy.choose(heads, 9.0) == 0
    assert policy.choose(heads, 9.01) == 2
    assert policy.next_change(heads, 5.0) == 8.0
    assert policy.next_change(heads, 8.5) == 9.0
    assert policy.next_change(heads, 8.0) == 8.0
    assert policy.next_change(heads, 9.0) == 9.0, "it can just make it, and no more from then on"
    assert policy.next_change(heads, 9.5) == 18.0
    assert policy.next_change({0: near}, 5.0) == math.inf
    lost_too = request(4, 10, 0.5, at=-1.0)
    assert policy.choose({3: lost, 4: lost_too}, 30.0) == 4, "of the hopeless the first to come"
    assert policy.choose({1: far, 3: lost}, 30.0) == 1 or policy._latest_start(far) < 30.0


# routing


class Load:
    """A replica as routing sees it."""

    def __init__(self, number: int, requests: int = 0, most: int = 8, **tokens: float) -> None:
        self.id, self.requests, self.requests_max = f"r{number}", requests, most
        self.prefill_tokens, self.decode_tokens = tokens.get("prefill", 0), tokens.get("decode", 0.0)
        self.kv_tokens, self.kv_tokens_max = tokens.get("kv", 0), tokens.get("kv_max")
        self.as_of, self.costs = 0.0, COSTS

    def cached_prompt_tokens(self, request: Request, prefix: Sequence[int]) -> None:
        """Nothing is confirmed."""


def route(policy: object, replicas: Sequence[Load], prefix: Sequence[int] = (), **fields: object) -> Load:
    request = Request(fields.pop("id", 1), 0.0, 10, **fields)  # type: ignore[arg-type]
    return policy.choose(request, prefix, replicas, 0.0)  # type: ignore[attr-defined,no-any-return]


def test_each_in_turn_and_a_newcomer_first() -> None:
    policy, replicas = RoundRobin(), [Load(0), Load(1), Load(2)]
    order = []
    for _ in range(6):
        chosen = route(policy, replicas)
        assert route(policy, replicas) is chosen, "asking changes nothing"
        policy.routed(Request(1, 0.0, 10), (), chosen)  # type: ignore[arg-type]
        order.append(chosen.id)
    assert order == ["r0", "r1", "r2"] * 2
    assert route(policy, [*replicas, Load(3)]).id == "r3"


def test_the_seconds_of_work_at_a_replica() -> None:
    policy = LeastWork()
    assert policy.seconds(Load(0, prefill=500, decode=64.0)) == pytest.approx(0.5 + 0.02)  # type: ignore[arg-type]
    assert policy.seconds(Load(0, kv=600, kv_max=800)) == pytest.approx(0.15 * 0.75 / 0.25)  # type: ignore[arg-type]
    assert policy.seconds(Load(0, kv=900, kv_max=800)) == pytest.approx(0.15 * 0.99 / 0.01)  # type: ignore[arg-type]
    assert route(policy, [Load(0, 3), Load(1, 2)]).id == "r1"
    assert route(policy, [Load(0, 0, prefill=9), Load(1, 7)]).id == "r1"


def test_the_less_loaded_of_two_that_a_hash_draws() -> None:
    policy = PowerOfTwo(seed=0)
    replicas = [Load(number, number) for number in range(4)]
    chosen = [route(policy, replicas, id=number).id for number in range(300)]
    share = {name: chosen.count(name) / 300 for name in ("r0", "r1", "r2", "r3")}
    assert share["r3"] == 0, "the most loaded is never the less loaded of two"
    assert share["r0"] == pytest.approx(1 / 2, abs=0.1)
    assert share["r1"] == pytest.approx(1 / 3, abs=0.1)
    assert share["r2"] == pytest.approx(1 / 6, abs=0.1)
    assert route(policy, replicas[:1]) is replicas[0]


def test_a_replica_holds_at_most_the_bound_of_the_mean() -> None:
    """Six requests and this one over three replicas, times 1.25: at most three each."""
    replicas = [Load(0, 3), Load(1, 2), Load(2, 1)]
    assert [replica.id for replica in within_bound(replicas, 1.25)] == ["r1", "r2"]  # type: ignore[arg-type]
    assert [replica.id for replica in within_bound(replicas, 1.5)] == ["r0", "r1", "r2"]  # type: ignore[arg-type]
    assert within_bound([Load(0, 0)], 1.0)  # type: ignore[arg-type]


def test_the_longest_prefix_known_wins_within_the_bound() -> None:
    policy = PrefixAffinity(prefixes_max=3)
    one, other = Load(0, 1), Load(1, 1)
    policy.routed(Request(1, 0.0, 10), (11, 12), other)  # type: ignore[arg-type]
    policy.routed(Request(2, 0.0, 10), (11,), one)  # type: ignore[arg-type]
    assert route(policy, [one, other], (11, 12, 13)) is other
    assert route(policy, [one, other], (11, 99)) is one
    assert route(policy, [one, other], (99,)) is one, "least work"
    other.requests = 9
    assert route(policy, [one, other], (11, 12)) is one, "the holder is loaded above the bound"
    policy.routed(Request(3, 0.0, 10), (21, 22), one)  # type: ignore[arg-type]
    assert list(policy._sent) == [11, 21, 22], "the least recently used is forgotten"


def test_a_session_has_a_ranking_of_its_own() -> None:
    policy = SessionAffinity()
    replicas = [Load(number) for number in range(4)]
    homes = [route(policy, replicas, session=f"s{number}") for number in range(200)]
    assert [route(policy, replicas[::-1], session=f"s{number}") for number in range(200)] == homes
    assert {homes.count(replica) > 25 for replica in replicas} == {True}
    without = [replica for replica in replicas if replica is not homes[0]]
    moved = [route(policy, without, session=f"s{number}") for number in range(200)]
    assert all(new is old for new, old in zip(moved, homes, strict=True) if old is not homes[0])
    busy = homes[0]
    busy.requests = 9
    assert route(policy, replicas, session="s0") is moved[0]
