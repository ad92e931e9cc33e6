"""Refine-and-Prune: from the sizes of past requests to a bounded number of lanes, in O(n log n).

Four steps, each usable alone: `clusters` (k-means), `split_at_gaps`, `split_wide`, `merge_down`; `refine_and_prune` is
all of them. Sizes are whole tokens ≥ 0. Source: EWSJF, arXiv 2601.21758, section on Refine-and-Prune, as reported by
others, and the authors' published partitioner; where those disagree the docstrings say what was taken and why.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, TypeAlias

Merge: TypeAlias = Literal["ward", "ward-log", "utility", "authors"]

_SPARE = 4  # times the lanes wanted are made at most before they are merged down
_ROUNDS = 50  # of Lloyd's iteration; in one dimension and with 3 clusters it stands still after a few


class Span(NamedTuple):
    """What one lane was made from: the shortest and longest size seen, their mean, and how many there were."""

    low: int
    high: int
    mean: float
    requests: int


class Sizes:
    """Sizes as distinct values with prefix sums, so that any run of them is described in O(1).

    Attributes:
        distinct: the different sizes, rising.
        logs: log(size + 1) of each.
    """

    __slots__ = ("_counts", "_log_squares", "_log_sums", "_squares", "_sums", "distinct", "logs")

    def __init__(self, sizes: Iterable[int]) -> None:
        tally = sorted(Counter(sizes).items())
        self.distinct = [size for size, _ in tally]
        self.logs = logs = [math.log(size + 1) for size in self.distinct]
        counts = [count for _, count in tally]
        self._counts = [0, *accumulate(counts)]
        self._sums = [0, *accumulate(size * count for size, count in tally)]
        self._squares = [0, *accumulate(size * size * count for size, count in tally)]
        self._log_sums = [0.0, *accumulate(log * count for log, count in zip(logs, counts, strict=True))]
        self._log_squares = [0.0, *accumulate(log * log * count for log, count in zip(logs, counts, strict=True))]

    def span(self, begin: int, end: int) -> Span:
        """The span of `distinct[begin:end]`, which must not be empty."""
        requests = self.requests(begin, end)
        mean = (self._sums[end] - self._sums[begin]) / requests
        return Span(self.distinct[begin], self.distinct[end - 1], mean, requests)

    def requests(self, begin: int, end: int) -> int:
        """How many requests have a size in `distinct[begin:end]`."""
        return self._counts[end] - self._counts[begin]

    def spread(self, begin: int, end: int) -> float:
        """Sum over the requests of the squared distance of the size from its mean."""
        total = self._sums[end] - self._sums[begin]
        return self._squares[end] - self._squares[begin] - total * total / self.requests(begin, end)

    def log_mean(self, begin: int, end: int) -> float:
        """Mean of log(size + 1) over the requests."""
        return (self._log_sums[end] - self._log_sums[begin]) / self.requests(begin, end)

    def log_spread(self, begin: int, end: int) -> float:
        """Sum over the requests of the squared distance of log(size + 1) from its mean."""
        squares = self._log_squares[end] - self._log_squares[begin]
        return max(0.0, squares - self.log_mean(begin, end) ** 2 * self.requests(begin, end))


Run: TypeAlias = tuple[int, int]
"""[begin, end) into `Sizes.distinct`."""


def refine_and_prune(
    sizes: Iterable[int],
    *,
    coarse: int = 3,
    significance: float = 5.5,
    gap_tokens_min: int = 64,
    requests_min: int = 50,
    spread_max: float = math.inf,
    lanes_max: int = 30,
    merge: Merge = "ward",
) -> tuple[Span, ...]:
    """Lanes for these sizes, shortest first, disjoint, with holes where nothing was seen; () for no sizes.

    Args:
        sizes: observed sizes, in any order.
        coarse: clusters of the first step.
        significance: a gap this many times the mean gap of its run is a cut (the authors' 5.5).
        gap_tokens_min: and it must be at least this wide.
        requests_min: a run with fewer requests is not cut any more (the authors' 50).
        spread_max: longest over shortest of one lane before merging; infinite as published.
        lanes_max: most lanes; more are merged, pair by pair.
        merge: which neighbours are merged first, see `merge_down`.
    """
    known = Sizes(sizes)
    if not known.distinct:
        return ()
    runs: Sequence[Run] = [
        run
        for cluster in clusters(known, coarse)
        for run in split_at_gaps(known, cluster, significance, gap_tokens_min, requests_min)
    ]
    if spread_max < math.inf:
        runs = split_wide(known, runs, spread_max, _SPARE * lanes_max, requests_min)
    return tuple(merge_down([known.span(*run) for run in runs], lanes_max, merge))


def clusters(sizes: Sizes, k: int) -> list[Run]:
    """Lloyd's k-means over all requests; clusters left empty are dropped.

    It starts from halves: the cluster of the greatest squared error is cut in the middle of its range until there are
    k. Quantiles would be a poor start where nine of ten requests are short.
    """
    count = len(sizes.distinct)
    starts = [(0, count)]
    while len(starts) < min(k, count):
        begin, end = worst = max(starts, key=lambda run: (run[1] - run[0] > 1, sizes.spread(*run)))
        middle = bisect_left(sizes.distinct, (sizes.distinct[begin] + sizes.distinct[end - 1]) / 2, begin + 1, end - 1)
        starts.remove(worst)
        starts += [(begin, middle), (middle, end)]
    cuts = sorted(begin for begin, _ in starts if begin)
    for _ in range(_ROUNDS):
        means = [sizes.span(begin, end).mean for begin, end in pairwise([0, *cuts, count])]
        middles = [(left + right) / 2 for left, right in pairwise(means)]
        moved = sorted({bisect_left(sizes.distinct, middle) for middle in middles} - {0, count})
        if moved == cuts:
            break
        cuts = moved
    return list(pairwise([0, *cuts, count]))


def split_at_gaps(sizes: Sizes, run: Run, significance: float, gap_tokens_min: int, requests_min: int) -> Sequence[Run]:
    """Cut a run at every gap wider than `significance` times its mean gap, and the parts again, until none is left.

    Gaps are between *distinct* sizes: counted with repetitions, their mean shrinks with the number of requests and
    noise is split. The depth is bounded by log2 of the distinct sizes, so the whole is O(n log n).
    """
    done: list[Run] = []
    todo = [(run, max(1, (run[1] - run[0]).bit_length()))]
    distinct = sizes.distinct
    while todo:
        (begin, end), depth = todo.pop()
        cuts: list[int] = []
        if depth and end - begin > 1 and sizes.requests(begin, end) >= requests_min:
            wide = max(significance * (distinct[end - 1] - distinct[begin]) / (end - begin - 1), gap_tokens_min)
            cuts = [at for at in range(begin + 1, end) if distinct[at] - distinct[at - 1] >= wide]
            if significance <= 1 and len(cuts) == end - begin - 1:
                cuts = []  # equal gaps throughout: none stands out
        if cuts:
            todo += [(part, depth - 1) for part in pairwise([begin, *cuts, end])]
        else:
            done.append((begin, end))
    return sorted(done)


def split_wide(
    sizes: Sizes, runs: Sequence[Run], spread_max: float, lanes_max: int, requests_min: int
) -> Sequence[Run]:
    """Cut runs whose longest is over `spread_max` times their shortest, the worst first, while lanes are left.

    Ours, not published: gaps find the groups of a mixture, but where sizes are smooth there is no gap, and one lane
    first-come over all of them would be FCFS. A run is cut in two by 2-means over log sizes.
    """

    def entry(run: Run) -> tuple[float, int, int]:
        return (-sizes.log_spread(*run), *run)

    def wide(run: Run) -> bool:
        begin, end = run
        longest, shortest = sizes.distinct[end - 1] + 1, sizes.distinct[begin] + 1
        return end - begin > 1 and longest > spread_max * shortest and sizes.requests(begin, end) >= requests_min

    done = [run for run in runs if not wide(run)]
    todo = [entry(run) for run in runs if wide(run)]
    heapq.heapify(todo)
    while todo and len(done) + len(todo) < lanes_max:
        _, begin, end = heapq.heappop(todo)
        cut = _halved(sizes, begin, end)
        for part in ((begin, cut), (cut, end)):
            if wide(part):
                heapq.heappush(todo, entry(part))
            else:
                done.append(part)
    return sorted([*done, *((begin, end) for _, begin, end in todo)])


def _halved(sizes: Sizes, begin: int, end: int) -> int:
    """Where 2-means over log sizes cuts a run of at least two distinct sizes; each side keeps one at least."""
    cut = bisect_left(sizes.logs, (sizes.logs[begin] + sizes.logs[end - 1]) / 2, begin + 1, end - 1)
    for _ in range(_ROUNDS):
        middle = (sizes.log_mean(begin, cut) + sizes.log_mean(cut, end)) / 2
        moved = bisect_left(sizes.logs, middle, begin + 1, end - 1)
        if moved == cut:
            break
        cut = moved
    return cut


def merge_down(spans: Sequence[Span], lanes_max: int, merge: Merge) -> list[Span]:
    """Merge neighbours until at most `lanes_max` are left, in O(k log k).

    "ward" merges where the variance within lanes grows least: N1·N2/(N1+N2)·(difference of means)². "ward-log" takes
    the logarithms of the means, since scores compare waits by ratios of sizes (ours). "utility" merges the highest
    U = (ρ1 + ρ2)/(|difference of means| + 1): dense and close. Sources disagree on U; the lowest would join
    the sparsest and farthest. "authors" is their code's smallest sqrt(R)/(N/max(1, R) + 1e-5), R the merged range and
    N the merged count.
    """
    kept: list[Span | None] = list(spans)
    left, right = list(range(-1, len(kept) - 1)), list(range(1, len(kept) + 1))
    pairs = [(_merge_cost(a, b, merge), i, i + 1, 0) for i, (a, b) in enumerate(pairwise(spans))]
    heapq.heapify(pairs)
    version = [0] * len(kept)
    for _ in range(len(spans) - max(1, lanes_max)):
        while True:
            _, i, j, stamp = heapq.heappop(pairs)
            a, b = kept[i], kept[j]
            if a is not None and b is not None and stamp == version[i] + version[j] and right[i] == j:
                break
        requests = a.requests + b.requests
        mean = (a.mean * a.requests + b.mean * b.requests) / requests
        kept[i] = Span(a.low, b.high, mean, requests)
        kept[j] = None
        version[i] += version[j] + 1
        right[i] = right[j]
        if right[j] < len(kept):
            left[right[j]] = i
        for before, after in ((left[i], i), (i, right[i])):
            if before >= 0 and after < len(kept):
                one, other = kept[before], kept[after]
                assert one is not None, "a neighbour was merged away"
                assert other is not None, "a neighbour was merged away"
                heapq.heappush(pairs, (_merge_cost(one, other, merge), before, after, version[before] + version[after]))
    return [span for span in kept if span is not None]


def _merge_cost(a: Span, b: Span, merge: Merge) -> float:
    """Least is merged first."""
    requests = a.requests + b.requests
    if merge == "ward":
        return a.requests * b.requests / requests * (b.mean - a.mean) ** 2
    if merge == "ward-log":
        return a.requests * b.requests / requests * math.log((b.mean + 1) / (a.mean + 1)) ** 2
    if merge == "utility":
        return -requests / (abs(b.mean - a.mean) + 1.0)
    width = b.high - a.low
    return math.sqrt(width) / (requests / max(1, width) + 1e-5)
