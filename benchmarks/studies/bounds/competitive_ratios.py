"""Published competitive ratios, tried: the worst instance an adversary finds for each policy, against the optimum.

    python -m benchmarks.studies.bounds.competitive_ratios > docs/results/bounds.md

One core, about five minutes, deterministic. Needs `pip install -e .[dev]` (hypothesis shrinks; no solver).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import hypothesis
import numpy as np
from hypothesis import strategies as st

from headway.bounds.adversary import Cost, Regime, SearchResult, search
from headway.bounds.discrete import Attempt, DiscretePolicy, DiscreteRequest, Instance, lower_bound, replay, serve
from headway.bounds.doubling import rect, response, route
from headway.bounds.exact_search import least_total_latency
from headway.bounds.reference_policies import (
    AMin,
    a_max,
    current_check,
    fcfs_peak,
    mc_sf,
    peak_sum_check,
    sorted_f,
    svf,
    svf_one_bit,
)

DRAWS, STEPS, SHRINKS = 60, 600, 300
SOLVED_WHILE_SHRINKING = 120


@dataclass(frozen=True)
class Row:
    """One line of the table: a policy, where it is tried, and what was published about it there."""

    policy: str
    cost: Cost
    regime: Regime
    bound: float | None
    source: str


def main() -> None:
    rows = [(row, *tried(row)) for row in ROWS]
    print(HEAD)
    print(
        "| policy | regime | proven bound | worst found | mean of random | stands | smallest about as bad (s, o[, a]) |"
    )
    print("|---|---|---|---|---|---|---|")
    for row, found, small in rows:
        verdict = "no bound" if row.bound is None else "yes" if found.worst.value <= row.bound else "**NO**"
        bound = row.source if row.bound is None else f"{row.bound:.2f} ({row.source})"
        shown = f"{ratio_of(row, small):.2f}: {told(small)}, M = {small.memory}"
        print(
            f"| {row.policy} | {row.regime.name} | {bound} | **{found.worst.value:.2f}** | {found.mean:.3f} "
            f"| {verdict} | {shown} |"
        )
    print(WORST_HEAD)
    for row, found, _ in rows:
        worst = found.worst
        print(
            f"- {row.policy}, {row.regime.name}: {worst.cost} / {worst.optimum}, M = {worst.instance.memory}: "
            f"{told(worst.instance)} ({found.tried:,} instances tried, {found.solved:,} solved)"
        )
    print(FAMILY_HEAD)
    for length in (16, 64, 256, 1_024):
        print("| " + " | ".join(family(length)) + " |")
    print(POISSON_HEAD)
    for load in (0.2, 0.4, 0.49, 0.6, 0.9):
        print("| " + " | ".join(poisson(load)) + " |")
    print(POISSON_TAIL, end="")


def tried(row: Row) -> tuple[SearchResult, Instance]:
    """What the search found, and the smallest instance about as bad."""
    found = search(row.cost, row.regime, np.random.default_rng(2026), draws=DRAWS, steps=STEPS)
    say(f"{row.policy}, {row.regime.name}: {found.worst.value:.3f} ({found.solved:,} solved)")
    # Hypothesis draws afresh: it need not reach the worst, and shrinks whatever is three quarters as bad.
    target = 1 + 0.75 * (found.worst.value - 1)
    return found, shrunk(row, target) or found.worst.instance


def shrunk(row: Row, target: float) -> Instance | None:
    """The smallest instance whose ratio reaches `target`, by hypothesis; None if it meets none."""
    regime = row.regime
    sizes = range(1, regime.memory + 1)
    lengths = [DiscreteRequest(s, o) for total in sizes for s in sizes if (o := total + 1 - s) >= 1]  # small ones first
    allowed = [one for one in lengths if one.peak <= regime.memory and regime.fits(one, regime.memory)]
    arrivals = st.integers(0, regime.latest)
    request = st.builds(lambda one, arrived: one._replace(arrived=arrived), st.sampled_from(allowed), arrivals)
    several = st.lists(request, min_size=1, max_size=regime.most).map(lambda all_: Instance(tuple(all_), regime.memory))
    quiet = hypothesis.settings(
        max_examples=SHRINKS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    known: dict[Instance, bool] = {}

    def is_as_bad(instance: Instance) -> bool:
        if instance not in known:
            known[instance] = len(known) < SOLVED_WHILE_SHRINKING * 40 and could_be(row, instance, target)
            if known[instance]:
                solved.append(instance)
                known[instance] = len(solved) <= SOLVED_WHILE_SHRINKING and ratio_of(row, instance) >= target
        return known[instance]

    solved: list[Instance] = []
    try:
        return hypothesis.find(several, is_as_bad, settings=quiet)
    except hypothesis.errors.NoSuchExample:
        return None


def could_be(row: Row, instance: Instance, target: float) -> bool:
    """Whether the ratio may reach `target`, as far as the lower bound tells."""
    try:
        return row.cost(instance) >= target * lower_bound(instance)
    except ValueError:
        return False


def ratio_of(row: Row, instance: Instance) -> float:
    """The policy's cost over the optimum; 0 where it does not take the instance or the optimum is not known."""
    try:
        cost = row.cost(instance)
    except ValueError:
        return 0.0
    best = least_total_latency(instance, states_most=1_500)
    return cost / best if best else 0.0


def told(instance: Instance) -> str:
    """(s, o) or (s, o, a) in the instance's order, which breaks ties, with how many alike follow each other."""
    late = any(request.arrived for request in instance.requests)
    shown = []
    for one, alike in groupby(instance.requests):
        count = len(list(alike))
        numbers = f"({one.prompt}, {one.output}, {one.arrived})" if late else f"({one.prompt}, {one.output})"
        shown.append(f"{count}×{numbers}" if count > 1 else numbers)
    return " ".join(shown)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------ what is tried


def served_by(policy: Callable[[Instance], DiscretePolicy]) -> Cost:
    return lambda instance: replay(instance, serve(instance, policy(instance))).total_latency


def made_by(policy: Callable[[Instance], list[Attempt]]) -> Cost:
    return lambda instance: replay(instance, policy(instance)).total_latency


def peaks_within(share: float, most: int, memory: int, latest: int = 0) -> Regime:
    words = "burst" if not latest else "arrivals in 12 steps"
    alpha = "any peak" if share == 1 else f"peaks ≤ {share:g}·M"
    return Regime(f"{words}, {alpha}", most, memory, lambda request, m: request.peak <= share * m, latest)


ANY, HALF, QUARTER, TENTH = (
    peaks_within(*sizes) for sizes in ((1, 6, 16), (0.5, 8, 16), (0.25, 10, 24), (0.1, 16, 30))
)
ONLINE = peaks_within(1, 6, 16, latest=12)
ONLINE_HALF = peaks_within(0.5, 7, 16, latest=12)
EQUAL_PROMPTS = Regime("burst, all s = 2", 6, 14, lambda request, _: request.prompt == 2)
LARGE = Regime("burst, s > M/4", 6, 20, lambda request, m: request.prompt > m / 4)
PROMPT_HEAVY = Regime("burst, s ≤ M/4, o ≤ s", 9, 24, lambda r, m: r.prompt <= m / 4 and r.output <= r.prompt)
RESPONSE_HEAVY = Regime("burst, s ≤ M/4, o > s", 6, 16, lambda r, m: r.prompt <= m / 4 and r.output > r.prompt)

SVF = "arXiv 2606.22327, Thm 3.2"
DOUBLING = "arXiv 2607.09248"


def one_plus(alpha: float) -> float:
    return 1 + 2 / (1 - alpha)


def rows() -> Iterator[Row]:
    forward, peak_sum = served_by(svf), served_by(lambda instance: svf(instance, peak_sum_check))
    none = "none: Ω(√L) below"
    yield Row("SVF, forward check", forward, ANY, None, none)
    for alpha, regime in ((0.5, HALF), (0.25, QUARTER), (0.1, TENTH)):
        yield Row("SVF, forward check", forward, regime, one_plus(alpha), SVF)
    for alpha, regime in ((0.5, HALF), (0.25, QUARTER), (0.1, TENTH)):
        yield Row("SVF, peak sum", peak_sum, regime, one_plus(alpha), "arXiv 2607.09248, Thm 4")
    yield Row("SVF, current capacity", served_by(lambda i: svf(i, current_check)), HALF, None, "none covers it")
    for regime, bits in ((ANY, 16), (HALF, 8)):
        told_bits = f"O(T), T = {bits}, constant not stated"
        yield Row("1-bit SVF", served_by(lambda i, t=bits: svf_one_bit(i, t)), regime, None, told_bits)
    yield Row("1-bit SVF", served_by(lambda i: svf_one_bit(i, 8)), ONLINE_HALF, None, "none proven")
    yield Row("Sorted-F", served_by(sorted_f), HALF, 48, "arXiv 2508.06133, for large memory")
    yield Row("Sorted-F", served_by(sorted_f), QUARTER, 48, "arXiv 2508.06133, for large memory")
    yield Row("MC-SF", served_by(mc_sf), EQUAL_PROMPTS, 9_216, "quoted by arXiv 2607.09248")
    yield Row("MC-SF", served_by(mc_sf), HALF, None, "none")
    yield Row("MC-SF", served_by(mc_sf), ONLINE, None, "Θ(n), arXiv 2608.16944")
    yield Row("SVF, forward check", forward, ONLINE, None, "Θ(n), arXiv 2608.16944")
    yield Row("SVF, forward check", forward, ONLINE_HALF, None, "none proven")
    yield Row("A_min, l = 1", served_by(AMin), EQUAL_PROMPTS, None, "O(log u/l), constant not stated")
    yield Row("A_min, l = 1", served_by(AMin), HALF, None, "none")
    yield Row("A_max", served_by(a_max), EQUAL_PROMPTS, None, "none")
    yield Row("FCFS, forward check", served_by(fcfs_peak), HALF, None, "none")
    yield Row("Rect", made_by(rect), LARGE, 36, DOUBLING)
    yield Row("Rect", made_by(rect), PROMPT_HEAVY, 36, DOUBLING)
    yield Row("Response", made_by(response), RESPONSE_HEAVY, 236 / 3, DOUBLING)
    yield Row("Route, no predictor", made_by(route), ANY, 996, DOUBLING)
    yield Row("Route, no predictor", made_by(route), QUARTER, 996, DOUBLING)


ROWS = tuple(rows())


# ---------------------------------------------------------------------------------- no order is constant-competitive


def family(length: int) -> tuple[str, ...]:
    """One X = (1, L) and √L of Y = (L³, 1) in memory L³ + 1: SVF against serving the Y first."""
    few = math.isqrt(length)
    instance = Instance((DiscreteRequest(1, length), *[DiscreteRequest(length**3, 1)] * few), length**3 + 1)
    greedy = replay(instance, serve(instance, svf(instance))).total_latency
    other = [Attempt(0, few, length), *(Attempt(1 + i, i, 1) for i in range(few))]
    better = replay(instance, other).total_latency
    return str(length), str(few), f"{greedy:,}", f"{better:,}", f"{greedy / better:.2f}"


# ------------------------------------------------------------------------------------------- the two Poisson bounds


def poisson(load: float) -> tuple[str, ...]:
    """Poisson arrivals, o ~ Geo(μ), s = 1: the lemma's lower bound against a schedule that is feasible.

    The schedule starts everybody at once; its memory is added up step by step.
    """
    mu, memory, steps = 0.01, 1_000_000, 6_000
    volume = 1 / mu + 1 / mu**2
    rate = load * memory / volume
    claimed = rate * (1 - mu) / mu**2 * (1 + 2 / mu) / memory
    rng = np.random.default_rng(7)
    arrivals = rng.poisson(rate, steps)
    starts = np.repeat(np.arange(steps), arrivals)
    outputs = rng.geometric(mu, len(starts))
    # Held in step t: Σ (1 + t - start) over those running: a count, and a slope, by where runs begin and end.
    horizon = steps + int(outputs.max()) + 1
    running = np.zeros(horizon)
    offsets = np.zeros(horizon)
    for at, sign in ((starts + 1, 1.0), (starts + outputs + 1, -1.0)):
        np.add.at(running, at, sign)
        np.add.at(offsets, at, sign * (1.0 - starts))
    held = np.cumsum(offsets) + np.cumsum(running) * np.arange(horizon)
    ratio = 2 * load  # ρ of Theorem 3.4 with α → 0
    guarantee = 1 + 2 / ((1 - mu) * (1 - ratio)) if ratio < 1 else math.inf
    verdict = "true, but less than 1/μ" if claimed <= outputs.mean() else "**false**"
    return (
        f"{load:g}",
        f"{claimed:.1f}",
        f"{outputs.mean():.1f}",
        f"{held.max() / memory:.2f}" + ("" if held.max() <= memory else " (not feasible)"),
        verdict,
        f"{guarantee:.2f}" if ratio < 1 else "none: ρ ≥ 1",
    )


HEAD = """\
# Published competitive ratios, tried

Policies with published guarantees beside the hindsight optimum, each on the worst instance that a search finds. The
model is the papers' own: one token a step, free prefill, scarce memory (`src/headway/bounds/discrete.py`). Regenerate
with

```
python -m benchmarks.studies.bounds.competitive_ratios > docs/results/bounds.md
```

Each row is made in three steps. Random instances give the mean. Then hill climbing, evolution by crossing and changing,
and restarts from the worst find the worst instance (`bounds/adversary.py`). Last, hypothesis looks for an instance at
least three quarters as bad and shrinks it. Optima are exact: best-first search, which the tests compare with HiGHS and
with trying everything. Instances are small, so a worst case found here is a lower limit of the true worst case. The
distance to a proven bound may be slack of the proof or shortness of the search. The ratio is of total latency; for a
burst that is total completion time too.

No proven bound was beaten where the last column but one says yes. Requests are in order: ties are broken by place.
Rules that a paper's text leaves open are marked *unverified* in `bounds/reference_policies.py`: the order inside a
Sorted-F set, A_min's victim, whether MC-SF skips, what 1-bit SVF's check reads. [Another page](lower-bounds.md)
measures how far orders are from lower bounds in the simulator itself.
"""

WORST_HEAD = """
## The worst instances

Each as policy's total latency / optimum, memory, requests (prompt, output[, arrival]).
"""

FAMILY_HEAD = """
## No order by size is constant-competitive without small peaks

One X = (1, L) and √L of Y = (L³, 1) in memory L³ + 1 (arXiv 2607.09248, Prop. 1). SVF takes X first, and no Y fits
beside it. The other schedule takes the Y first; it need not be the best, so the ratio is at most the true one. It
grows as √L.

| L | number of Y | SVF | the other | ratio |
|---|---|---|---|---|"""

POISSON_HEAD = """
## The two Poisson bounds

Theorems 3.4 and 3.5 of arXiv 2606.22327 divide by a lower bound on the optimum's mean latency (Lemma F.1), max(1/μ,
W/M) with W = λ(1−μ)/μ²·(E[s] + 2/μ). Here s = 1, μ = 0.01, M = 10⁶, and there are 6,000 steps of arrivals. The
schedule starts every request on arrival. Where its peak memory is below 1 it is feasible, and its mean latency, the
mean output, is the optimum.

| load λE[vol]/M | W/M claimed | latency reached | peak memory / M | the claim is | guarantee of Thm 3.4, α → 0 |
|---|---|---|---|---|---|"""

POISSON_TAIL = """
As stated the lemma is false: above half load W/M exceeds what is reached. W is the memory-time still owed to the
requests in the system. Dividing it by M gives the time to drain it, which is no request's latency.

The theorems ask for ρ = λE[vol]/((1−α)M/2) < 1, that is, for a load below (1−α)/2. There

    μ·W/M  =  λ(1−μ)(E[s]/μ + 2/μ²)/M  ≤  2λE[vol]/M  =  (1−α)ρ  <  1,

so the doubtful term never exceeds 1/μ, which is a true lower bound (an output takes as many steps as it has tokens).
Inside their own regime the theorems therefore do not fall with the lemma. They are also of little use there, at less
than half load. Three points stay open. Harris' inequality is applied to waits that are not shown to be monotone. A
ratio of expectations is bounded, not the expected ratio. A geometric output exceeds αM with positive probability. We
count both theorems as unproven.
"""


if __name__ == "__main__":
    main()
