"""Lower bounds that add up: the fixed costs of a request's own steps, and its wait for one machine (docs/bounds.md).

Cut the fixed cost out of every step. Whoever was in the batch sat through it: that is charged to each of them in full.
What is left of the day is a schedule of one machine, arrivals moved closer together, and moving them closer never makes
the least total of waits smaller. So both may be added, where `bounds.lower` else takes the larger.
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

_RANKED_ON = 2_000  # chains that minorants are ranked on when there are more
_KEPT = 2  # of them are tried on all


class _Jobs(NamedTuple):
    """By chain, picoseconds: fixed costs of its own steps; what one machine does for it and from when on; by itself."""

    steps: Floats
    work: Floats
    released: Ints
    own_work: Floats


def steps_and_work(found: Chains, needed: Needs, floors: Sequence[StepFloor], rules: EngineRules) -> float:
    """Total end-to-end latency of all chains, picoseconds, is no less."""

    def jobs(floor: StepFloor) -> tuple[_Jobs, ...]:
        steps = found.sums(fixed_of_steps(needed, floor, rules))
        decoding = decode_work(needed, floor, rules)
        own = found.sums(prompt_work(needed, floor) + decoding)
        shared = found.sums(shared_work(needed, floor) + decoding)
        return _Jobs(steps, own, found.arrived_ps, own), _Jobs(steps, shared, needed.released_ps, own)

    return _best(jobs, floors, found.arrived_ps, found.think_ps)


def first_tokens(found: Chains, needed: Needs, floors: Sequence[StepFloor], rules: EngineRules) -> float:
    """Total time to first token of all requests, picoseconds, is no less.

    Only requests whose arrival is known share the machine; follow-up turns are charged their own prompt.
    """

    def jobs(floor: StepFloor) -> tuple[_Jobs, ...]:
        own = prompt_work(needed, floor) + floor.sample
        heads = own[found.starts]
        steps = found.sums(floor.fixed * chunks(needed, rules) + floor.sampled_fixed + own) - heads
        shared = shared_work(needed, floor)[found.starts] + floor.sample
        return _Jobs(steps, heads, found.arrived_ps, heads), _Jobs(steps, shared, needed.released_ps, heads)

    by_itself = float(alone_to_first_token(needed, floors, rules).sum())
    return max(by_itself, _best(jobs, floors, found.arrived_ps, np.zeros_like(found.arrived_ps)))


def _best(
    jobs: Callable[[StepFloor], tuple[_Jobs, ...]], floors: Sequence[StepFloor], arrived: Ints, thought: Ints
) -> float:
    """The largest total of any minorant whose fixed cost can be cut out; of many chains, of those that look best."""
    usable = [floor for floor in floors if floor.fixed >= 0]

    def total(floor: StepFloor, chosen: Ints) -> float:
        return max(_total(one, chosen, arrived, thought) for one in jobs(floor))

    everybody = np.arange(len(arrived))
    if len(arrived) > _RANKED_ON:
        first = np.argsort(arrived, kind="stable")[:_RANKED_ON]
        usable = sorted(usable, key=lambda floor: total(floor, first), reverse=True)[:_KEPT]
    return max((total(floor, everybody) for floor in usable), default=0.0)


def _total(jobs: _Jobs, chosen: Ints, arrived: Ints, thought: Ints) -> float:
    """Fixed costs, and completions less arrivals and pauses on one machine; alone, a chain waits for its own work."""
    ends = earliest_completions(jobs.released[chosen].tolist(), jobs.work[chosen].astype(np.int64).tolist())
    known = (arrived + thought)[chosen].astype(np.float64).sum()
    waits = max(float(jobs.own_work[chosen].sum()), float(np.array(ends, np.float64).sum() - known))
    return float(jobs.steps[chosen].sum()) + waits
