"""Lower bounds on mean latency and mean TTFT under any policy on one replica, in O(n log n). Proofs: `docs/bounds.md`.

Two facts bound every single completion.

    alone     A request takes a step for each of its tokens, and steps follow each other; a step takes at least what
              it would with this request alone in it. So it ends no earlier than it would on an idle replica.
    machine   A step's time can be split among the requests it serves so that each gets at least its tokens' share of
              computing, its context's share of reading, and of what any step costs its blocks' share of the memory or
              its share of the seats. Then the replica is one machine on which each request needs a known time, and
              no order beats shortest remaining work first there.

Both bound the k-th completion, for every k; the combined bound takes for each k the larger one. Two more bounds
(`bounds.fixed_cost_bound`, `bounds.crowding`) hold for the sum of all latencies only, and stand beside that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from headway.bounds.chains import Chains, Floats, Ints, chains
from headway.bounds.crowding import crowding_bound
from headway.bounds.fixed_cost_bound import first_token_bound, steps_and_work_bound
from headway.bounds.resource_needs import Needs, needs
from headway.bounds.srpt import earliest_completions
from headway.bounds.step_cost import alone, context, further_token
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND, FlooredStepTime, StepFloor, StepTime
from headway.simulator.trace import Trace

_MEMORY_SHARES = (1.0, 0.5, 0.0)  # of a step's fixed cost that blocks pay for; seats pay for the rest
_SAFETY = 1 - 1e-9  # against the rounding of floating-point sums, always to the bound's disadvantage
_LARGE = 100_000  # chains; beyond that fewer ways to split a step are tried


class Part(NamedTuple):
    """One bound: its name, seconds of mean end-to-end latency, and what it says in words."""

    name: str
    mean_e2e_seconds: float
    words: str


@dataclass(frozen=True, slots=True)
class LowerBounds:
    """Bounds of one trace on one replica that hold under every policy.

    Attributes:
        requests: served ones; refused ones, the same under every policy, have no latency.
        parts: each bound by itself, none of them above `mean_e2e_seconds`.
        mean_e2e_seconds: the largest of them; None without requests.
        mean_ttft_seconds: of mean time to first token; None without requests.
        completions_ps: rising; the k-th last-of-its-session completion comes no earlier.
    """

    requests: int
    parts: tuple[Part, ...]
    mean_e2e_seconds: float | None
    mean_ttft_seconds: float | None
    completions_ps: tuple[int, ...]


WORDS = {
    "alone": "each request has the replica to itself and finds every shared prefix cached",
    "prefill compute": "one machine computes uncached prompt tokens at the best rate, shortest first",
    "kv volume": "one machine hands out KV blocks at the fastest step, smallest volume first",
    "work": "one machine does all computing and reading and pays for memory and seats, least work first",
    "each completion": "for each k, the latest k-th completion of the bounds above",
    "steps and work": "each request pays the fixed cost of its own steps; one machine does the computing and reading",
    "crowding": "in the time there was, requests had to decode side by side; each sat through what all of them read",
}
"""Name of each part → its meaning in words."""


def lower_bounds(trace: Trace, rules: EngineRules, step_time: StepTime) -> LowerBounds:
    """Bounds on mean end-to-end latency and mean TTFT of this trace on a replica with these rules, under any policy.

    Prefix-cache hits, where the rules have a cache, are credited as luckily as they could fall. Follow-up turns of
    sessions arrive when the policy lets them; the bound holds for that too (`bounds.chains`).

    Raises:
        ValueError: blocks do not divide the trace's prefix blocks (with prefix caching).
    """
    served = chains(trace, rules)
    if not len(served):
        return LowerBounds(0, (), None, None, ())
    needed = needs(trace, rules, served)
    floors = step_floors(step_time, rules)
    by_itself = served.sums(alone(needed, floors, rules)) * _SAFETY
    known = np.sort(served.arrived_ps + served.think_ps)
    ends = {"alone": np.sort(served.arrived_ps + served.think_ps + by_itself.astype(np.int64))}
    for name, splits in _splits(served, needed, floors, rules).items():
        ways = [_completions(served, needed, _by_chain(served, needed, split)) for split in splits]
        ends[name] = np.maximum.reduce(ways)
    best = np.maximum.reduce(list(ends.values()))
    totals = {
        "steps and work": steps_and_work_bound(served, needed, floors, rules),
        "crowding": crowding_bound(served, needed, floors, rules, by_itself),
    }
    means = {name: _mean(end, known, served) for name, end in ends.items()}
    means["each completion"] = _mean(best, known, served)
    means |= {name: _of_total(max(0.0, total), served) for name, total in totals.items()}
    return LowerBounds(
        requests=len(served.rows),
        parts=tuple(Part(name, mean, WORDS[name]) for name, mean in means.items()),
        mean_e2e_seconds=max(means.values()),
        mean_ttft_seconds=_of_total(first_token_bound(served, needed, floors, rules), served),
        completions_ps=tuple(best.tolist()),
    )


def step_floors(step_time: StepTime, rules: EngineRules) -> tuple[StepFloor, ...]:
    """Floors of the steps of this replica.

    A step time that states none (`FlooredStepTime`) gets the weakest: adding requests or tokens to a step never
    makes it shorter, so no step is shorter than one of a single token.
    """
    if isinstance(step_time, FlooredStepTime):
        return step_time.floors(rules.max_num_batched_tokens, rules.max_num_seqs)
    least = min(step_time.decode_step(1)[0], step_time.mixed_step(0, 0, [(1, 0)], 0))
    return (StepFloor(float(least), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),)


class _Split(NamedTuple):
    """Picoseconds that a request pays, per unit of what it needs."""

    prompt_token: float
    pair: float
    output: float
    further_output: float
    context: float
    block_step: float

    def of(self, amounts: Sequence[Floats]) -> Floats:
        """Picoseconds for these amounts, in the order of the fields."""
        total = np.zeros_like(amounts[0])
        for rate, amount in zip(self, amounts, strict=True):
            if rate:
                total += rate * amount
        return total


def _amounts(needed: Needs) -> tuple[Floats, ...]:
    return (
        needed.share_tokens,
        needed.share_pairs,
        needed.outputs,
        needed.outputs - 1,
        needed.contexts,
        needed.share_block_steps,
    )


def _splits(served: Chains, needed: Needs, floors: Sequence[StepFloor], rules: EngineRules) -> dict[str, list[_Split]]:
    """Ways to split a step's time that each give a bound, by the name of the bound; few enough to try them all."""
    totals = [np.array([amount.sum()]) for amount in _amounts(needed)]

    def most(splits: Sequence[_Split]) -> _Split:
        return max(splits, key=lambda split: float(split.of(totals)[0]))

    prefill = [_Split(floor.prompt_token, floor.pair, 0, 0, 0, 0) for floor in floors]
    volume = [_Split(0, 0, 0, 0, 0, (floor.fixed + floor.sampled_fixed) / rules.kv_blocks) for floor in floors]
    ways: dict[str, list[_Split]] = {"prefill compute": [most(prefill)], "kv volume": [most(volume)], "work": []}
    for pairs in (False, True):
        alike = [floor for floor in floors if (floor.pair > 0) is pairs]
        for share in _MEMORY_SHARES if alike else ():
            ways["work"].append(most([_work(floor, rules, share) for floor in alike]))
    if len(served) > _LARGE:
        ways["work"] = sorted(ways["work"], key=lambda split: -float(split.of(totals)[0]))[:2]
    return ways


def _work(floor: StepFloor, rules: EngineRules, memory_share: float) -> _Split:
    """Everything a step costs, shared out: what is fixed by blocks held and by seats taken."""
    fixed = floor.fixed + floor.sampled_fixed
    return _Split(
        prompt_token=floor.prompt_token,
        pair=floor.pair,
        output=floor.sample + fixed * (1 - memory_share) / rules.max_num_seqs,
        further_output=further_token(floor),
        context=context(floor, rules),
        block_step=fixed * memory_share / rules.kv_blocks,
    )


def _by_chain(served: Chains, needed: Needs, split: _Split) -> Floats:
    return served.sums(split.of(_amounts(needed))) * _SAFETY


def _completions(served: Chains, needed: Needs, work: Floats) -> Ints:
    return np.array(earliest_completions(needed.released_ps.tolist(), work.astype(np.int64).tolist()), np.int64)


def _mean(ends: Ints, known: Ints, served: Chains) -> float:
    """Seconds of mean latency that these completions mean; never below 0, where a machine knew less than arrivals."""
    gained = np.maximum(ends - known, 0)
    return float(gained.astype(np.float64).sum()) / PS_PER_SECOND / len(served.rows)


def _of_total(total_ps: float, served: Chains) -> float:
    """Seconds a request, of a total in picoseconds that floating point may have rounded up."""
    return total_ps * _SAFETY / PS_PER_SECOND / len(served.rows)
