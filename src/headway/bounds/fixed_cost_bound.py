"""Lower bounds from fixed step costs: those of a request's own steps, plus its wait for one machine (docs/bounds.md).

Cut the fixed cost out of every step. Each request in the batch sat through it and is charged for it in full. What is
left of the day is a schedule of one machine, with arrivals moved closer together. Moving them closer never makes the
least total of waits smaller. So the two parts add up, where `bounds.lower_bounds` otherwise takes the larger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from headway.bounds.chains import Chains, Floats, Ints
from headway.bounds.resource_needs import Needs
from headway.bounds.srpt import earliest_completions
from headway.bounds.step_cost import alone_to_first_token, chunks, decode_work, fixed_of_steps, prompt_work, shared_work
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import StepFloor

_RANKED_ON = 2_000  # chains that floors are ranked on when there are more
_KEPT = 2  # of them are tried on all


class _Jobs(NamedTuple):
    """Columns by chain, picoseconds: fixed costs of its steps; work and release on one machine; work on its own."""

    steps: Floats
    work: Floats
    released: Ints
    own_work: Floats


def steps_and_work_bound(served: Chains, needed: Needs, floors: Sequence[StepFloor], rules: EngineRules) -> float:
    """Total end-to-end latency of all chains, picoseconds, is no less."""

    def jobs(floor: StepFloor) -> tuple[_Jobs, ...]:
        steps = served.sums(fixed_of_steps(needed, floor, rules))
        decoding = decode_work(needed, floor, rules)
        own = served.sums(prompt_work(needed, floor) + decoding)
        shared = served.sums(shared_work(needed, floor) + decoding)
        return _Jobs(steps, own, served.arrived_ps, own), _Jobs(steps, shared, needed.released_ps, own)

    return _best(jobs, floors, served.arrived_ps, served.think_ps)


def first_token_bound(served: Chains, needed: Needs, floors: Sequence[StepFloor], rules: EngineRules) -> float:
    """Total time to first token of all requests, picoseconds, is no less.

    Only requests whose arrival is known share the machine; follow-up turns are charged their own prompt.
    """

    def jobs(floor: StepFloor) -> tuple[_Jobs, ...]:
        own = prompt_work(needed, floor) + floor.sample
        heads = own[served.starts]
        steps = served.sums(floor.fixed * chunks(needed, rules) + floor.sampled_fixed + own) - heads
        shared = shared_work(needed, floor)[served.starts] + floor.sample
        return _Jobs(steps, heads, served.arrived_ps, heads), _Jobs(steps, shared, needed.released_ps, heads)

    by_itself = float(alone_to_first_token(needed, floors, rules).sum())
    return max(by_itself, _best(jobs, floors, served.arrived_ps, np.zeros_like(served.arrived_ps)))


def _best(
    jobs: Callable[[StepFloor], tuple[_Jobs, ...]], floors: Sequence[StepFloor], arrived: Ints, thought: Ints
) -> float:
    """Largest total of any floor whose fixed cost can be cut out; with many chains, of the floors that look best."""
    usable = [floor for floor in floors if floor.fixed >= 0]

    def total(floor: StepFloor, chosen: Ints) -> float:
        return max(_total(way, chosen, arrived, thought) for way in jobs(floor))

    all_chains = np.arange(len(arrived))
    if len(arrived) > _RANKED_ON:
        first = np.argsort(arrived, kind="stable")[:_RANKED_ON]
        usable = sorted(usable, key=lambda floor: total(floor, first), reverse=True)[:_KEPT]
    return max((total(floor, all_chains) for floor in usable), default=0.0)


def _total(jobs: _Jobs, chosen: Ints, arrived: Ints, thought: Ints) -> float:
    """Fixed costs, and completions less arrivals and pauses on one machine; alone, a chain waits for its own work."""
    ends = earliest_completions(jobs.released[chosen].tolist(), jobs.work[chosen].astype(np.int64).tolist())
    known = (arrived + thought)[chosen].astype(np.float64).sum()
    waits = max(float(jobs.own_work[chosen].sum()), float(np.array(ends, np.float64).sum() - known))
    return float(jobs.steps[chosen].sum()) + waits
