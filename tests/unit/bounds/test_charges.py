"""What the lower bounds charge, recomputed in plain loops from docs/bounds.md: token by token, block by block."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from headway.bounds.chains import Chains, chains
from headway.bounds.crowding import crowding_bound
from headway.bounds.fixed_cost_bound import first_token_bound, steps_and_work_bound
from headway.bounds.lower_bounds import lower_bounds, step_floors
from headway.bounds.resource_needs import Needs, needs
from headway.bounds.srpt import earliest_completions
from headway.bounds.step_cost import alone, alone_to_first_token, context, further_token
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND, LinearStepTime, StepFloor
from headway.simulator.trace import Trace
from headway.testing.strategies import engine_rules, traces

FLOORS = (
    StepFloor(700.0, 30.0, 5.0, 11.0, 3.0, 0.5, 0.25, 0.02),
    StepFloor(90.0, 0.0, 40.0, 9.0, 2.0, 2.0, 0.125, 0.0),
    StepFloor(1_500.0, 10.0, 1.0, 0.5, 1.0, 0.01, 0.5, 0.001),
)


class ByHand:
    """One request's least needs, found token by token."""

    def __init__(self, trace: Trace, rules: EngineRules, served: Chains, place: int) -> None:
        row = int(served.rows[place])
        self.prompt, self.output = int(trace.prompt_tokens[row]), int(trace.output_tokens[row])
        self.chain = int(np.searchsorted(served.starts, place, side="right")) - 1
        block, per_id = rules.block_tokens, trace.prefix_block_tokens
        ids = trace.prefix_ids[row] if rules.prefix_caching and trace.prefix_ids is not None else []
        asking = self._asking(trace, rules, served)
        turns = [int(served.rows[earlier]) for earlier in range(int(served.starts[self.chain]), place)]
        seen = {name for turn in turns for name in (trace.prefix_ids[turn] if trace.prefix_ids is not None else [])}
        whole_blocks = min(self.prompt, len(ids) * per_id) // block
        self.share_tokens = self.share_pairs = self.own_tokens = self.own_pairs = 0.0
        shared_blocks = 0.0
        self.released = int(served.arrived_ps[self.chain])
        for token in range(self.prompt):
            number = token // block
            name = ids[token // per_id] if ids and number < whole_blocks else None
            sharers = asking.get(name, set()) if name is not None else set()
            is_shared = name is not None and (len(sharers) > 1 or name in seen)
            part = (0.0 if name in seen else 1 / len(sharers)) if is_shared else 1.0
            self.share_tokens += part
            self.share_pairs += part * (2 * token + 1)
            if not is_shared or number >= (self.prompt - 1) // block:
                self.own_tokens += 1
                self.own_pairs += 2 * token + 1
            if is_shared:
                self.released = min([self.released, *(int(served.arrived_ps[chain]) for chain in sharers)])
                if token % block == 0:
                    shared_blocks += 1 - 1 / len(sharers)
        held = [math.ceil((self.prompt + k) / block) for k in range(self.output)]
        self.block_steps = sum(blocks - shared_blocks for blocks in held)
        self.contexts = sum(self.prompt + k for k in range(self.output - 1))

    @staticmethod
    def _asking(trace: Trace, rules: EngineRules, served: Chains) -> dict[int, set[int]]:
        asking: dict[int, set[int]] = {}
        if rules.prefix_caching and trace.prefix_ids is not None:
            for place, row in enumerate(served.rows.tolist()):
                chain = int(np.searchsorted(served.starts, place, side="right")) - 1
                for name in trace.prefix_ids[row]:
                    asking.setdefault(name, set()).add(chain)
        return asking


def by_hand(trace: Trace, rules: EngineRules) -> tuple[Chains, Needs, list[ByHand]]:
    served = chains(trace, rules)
    return served, needs(trace, rules, served), [ByHand(trace, rules, served, p) for p in range(len(served.rows))]


@given(traces(), engine_rules())
def test_least_needs_are_those_counted_token_by_token(trace: Trace, rules: EngineRules) -> None:
    served, found, hand = by_hand(trace, rules)
    assert found.prompts.tolist() == [one.prompt for one in hand]
    assert found.outputs.tolist() == [one.output for one in hand]
    assert found.contexts.tolist() == [one.contexts for one in hand]
    assert found.share_tokens == pytest.approx([one.share_tokens for one in hand])
    assert found.share_pairs == pytest.approx([one.share_pairs for one in hand])
    assert found.own_tokens == pytest.approx([one.own_tokens for one in hand])
    assert found.own_pairs == pytest.approx([one.own_pairs for one in hand])
    assert found.share_block_steps == pytest.approx([one.block_steps for one in hand])
    for chain in range(len(served)):
        assert found.released_ps[chain] == min(one.released for one in hand if one.chain == chain)


SHARED = Trace(
    "shared",
    np.array([0.0, 1.0, 2.0]) * 1e-9,
    np.array([10, 8, 4]),
    np.array([3, 1, 2]),
    prefix_ids=[[1, 2, 3], [1, 2], [1]],
    prefix_block_tokens=4,
)


def test_shared_blocks_by_hand() -> None:
    """Blocks of 2 tokens, ids of 4: three ask for the first four tokens, two for the next four."""
    rules = EngineRules(kv_blocks=100, block_tokens=2)
    _, found, _ = by_hand(SHARED, rules)
    assert found.share_tokens == pytest.approx([4 / 3 + 4 / 2 + 2, 4 / 3 + 4 / 2, 4 / 3])
    assert found.own_tokens.tolist() == [2, 2, 2]  # the last block is never wholly found
    assert found.own_pairs.tolist() == [100 - 64, 64 - 36, 16 - 4]
    # Blocks in each step: 5, 6, 6; 4; 2, 3. Of the first two a sharer saves two thirds, of the next two one half.
    assert found.share_block_steps == pytest.approx([17 - 3 * (4 / 3 + 2 / 2), 4 - (4 / 3 + 2 / 2), 5 - 2 * 4 / 3])
    assert found.released_ps.tolist() == [0, 0, 0]


def floor_costs(one: ByHand, floor: StepFloor, rules: EngineRules) -> dict[str, float]:
    """The charges of docs/bounds.md for one request under one floor."""
    per_context = min(floor.context, floor.prompt_token)
    if rules.prefix_caching:
        per_context = min(per_context, floor.chunk_context + 2 * floor.pair)
    token = min(floor.decode_token, floor.prompt_token)
    decoding = (one.output - 1) * token + per_context * one.contexts + floor.sample * one.output
    chunks = math.ceil(one.own_tokens / rules.max_num_batched_tokens)
    return {
        "chunks": floor.fixed * chunks,
        "own prompt": floor.prompt_token * one.own_tokens + floor.pair * one.own_pairs,
        "shared prompt": floor.prompt_token * one.share_tokens + floor.pair * one.share_pairs,
        "decoding": decoding,
        "steps": floor.fixed * (chunks + one.output - 1) + floor.sampled_fixed * one.output,
        "one step": token + per_context * 0,
        "per context": per_context,
        "token": token,
    }


def to_first_token(one: ByHand, rules: EngineRules) -> float:
    costs = [floor_costs(one, floor, rules) for floor in FLOORS]
    return max(cost["chunks"] + cost["own prompt"] for cost in costs) + max(f.sampled_fixed + f.sample for f in FLOORS)


@given(traces(min_size=2), engine_rules())
def test_a_request_alone_is_charged_what_the_page_says(trace: Trace, rules: EngineRules) -> None:
    _, found, hand = by_hand(trace, rules)
    first = alone_to_first_token(found, FLOORS, rules)
    assert first == pytest.approx([to_first_token(one, rules) for one in hand])

    def decoding(one: ByHand) -> float:
        return max(
            (floor.fixed + floor.sampled_fixed + floor.sample + cost["token"]) * (one.output - 1)
            + cost["per context"] * one.contexts
            for floor in FLOORS
            for cost in [floor_costs(one, floor, rules)]
        )

    whole = alone(found, FLOORS, rules)
    assert whole == pytest.approx([to_first_token(one, rules) + decoding(one) for one in hand])


def test_the_least_cost_of_a_token_after_a_preemption() -> None:
    """A decode or a chunk's token; its context read, computed again, or found and paired with."""
    floor = StepFloor(0.0, 0.0, 5.0, 11.0, 0.0, 9.0, 1.0, 0.5)
    cached, plain = EngineRules(kv_blocks=9, prefix_caching=True), EngineRules(kv_blocks=9, prefix_caching=False)
    assert further_token(floor) == 5.0
    assert further_token(floor._replace(decode_token=4.0)) == 4.0
    assert (context(floor, plain), context(floor, cached)) == (5.0, 2.0)
    assert context(floor._replace(context=1.5), cached) == context(floor._replace(context=1.5), plain) == 1.5
    assert context(floor._replace(pair=3.0), cached) == 5.0


def machine(released: list[int], work: list[float]) -> float:
    return float(sum(earliest_completions(released, [int(amount) for amount in work])))


@given(traces(min_size=2), engine_rules())
def test_steps_and_work_and_first_tokens(trace: Trace, rules: EngineRules) -> None:
    """Fixed costs of own steps, and one machine: of own work from the arrival, or of shares from the first sharer's."""
    served, found, hand = by_hand(trace, rules)
    if not hand:
        return
    arrived, thought = served.arrived_ps.tolist(), served.think_ps.tolist()
    of_chain = [[one for one in hand if one.chain == chain] for chain in range(len(served))]
    released = found.released_ps.tolist()
    latency, first = [], [sum(to_first_token(one, rules) for one in hand)]
    for floor in FLOORS:
        cost = {id(one): floor_costs(one, floor, rules) for one in hand}

        def total(chain: list[ByHand], *names: str, cost: dict[int, dict[str, float]] = cost) -> float:
            return sum(cost[id(one)][name] for one in chain for name in names)

        own = [total(chain, "own prompt", "decoding") for chain in of_chain]
        shared = [total(chain, "shared prompt", "decoding") for chain in of_chain]
        steps = sum(total(chain, "steps") for chain in of_chain)
        known = sum(arrived) + sum(thought)
        latency += [
            steps + max(sum(own), machine(arrived, own) - known),
            steps + max(sum(own), machine(released, shared) - known),
        ]
        heads = [cost[id(chain[0])]["own prompt"] + floor.sample for chain in of_chain]
        head_shares = [cost[id(chain[0])]["shared prompt"] + floor.sample for chain in of_chain]
        others = [one for chain in of_chain for one in chain[1:]]
        apart = sum(cost[id(one)]["chunks"] + floor.sampled_fixed for one in hand)
        apart += sum(cost[id(one)]["own prompt"] + floor.sample for one in others)
        first += [
            apart + max(sum(heads), machine(arrived, heads) - sum(arrived)),
            apart + max(sum(heads), machine(released, head_shares) - sum(arrived)),
        ]
    assert steps_and_work_bound(served, found, FLOORS, rules) == pytest.approx(max(latency), abs=len(hand) * 2 + 1)
    assert first_token_bound(served, found, FLOORS, rules) == pytest.approx(max(first), abs=len(hand) * 2 + 1)


def crowding_by_hand(served: Chains, hand: list[ByHand], floor: StepFloor, rules: EngineRules) -> float:
    """The largest of all prices, caps and horizons; with no more floors than are tried in full."""
    chosen = [floor_costs(one, floor, rules) for one in hand]
    further = sum(one.output - 1 for one in hand)
    if not further:
        return 0.0
    by_itself = [
        sum(cost for cost, one in zip(alone_of(hand, floor, rules), hand, strict=True) if one.chain == chain)
        for chain in range(len(served))
    ]
    arrived = served.arrived_ps.astype(float)
    horizons = [arrived.max() + times * np.mean(by_itself) for times in (1, 2, 4, 8)]
    horizons += [float(np.quantile(arrived, share)) for share in (0.8, 0.9, 1.0)]
    token, per_context = chosen[0]["token"] + floor.sample, chosen[0]["per context"]
    mean = token + per_context * sum(one.contexts for one in hand) / further
    best = 0.0
    for cap in (mean, 0.5 * mean, 2 * mean):
        for crowd in np.geomspace(1.0, max(2.0, min(rules.max_num_seqs, len(hand))), 24):
            price = crowd**2 * cap / floor.fixed
            for horizon in horizons:
                bound = -price * (horizon - arrived.min())
                for chain in range(len(served)):
                    own = [(one, cost) for one, cost in zip(hand, chosen, strict=True) if one.chain == chain]
                    steps = sum(cost["steps"] for _, cost in own)
                    work = sum(cost["own prompt"] + cost["decoding"] for _, cost in own)
                    ramps = [token + per_context * (one.prompt + k) for one, _ in own for k in range(one.output - 1)]
                    capped = sum(min(cost, cap) for cost in ramps)
                    late = max(by_itself[chain], horizon - arrived[chain] - served.think_ps[chain])
                    bound += min(steps + 2 * crowd * capped + price * work, late)
                best = max(best, bound)
    return best


def alone_of(hand: list[ByHand], floor: StepFloor, rules: EngineRules) -> list[float]:
    def one_alone(one: ByHand) -> float:
        cost = floor_costs(one, floor, rules)
        first = cost["chunks"] + cost["own prompt"] + floor.sampled_fixed + floor.sample
        step = floor.fixed + floor.sampled_fixed + floor.sample + cost["token"]
        return first + step * (one.output - 1) + cost["per context"] * one.contexts

    return [one_alone(one) for one in hand]


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("sessions", [False, True])
def test_crowding_by_its_formula(floor: StepFloor, prefix_caching: bool, sessions: bool) -> None:
    """Twelve requests within a microsecond, half of them in sessions, on a step of some hundred picoseconds."""
    count = 12
    trace = Trace(
        "crowd",
        np.arange(count) * 300e-12,
        5 + np.arange(count) * 7 % 23,
        1 + np.arange(count) * 5 % 17,
        session=np.array([0, 1, -1, 0, 1, -1] * 2) if sessions else None,
        turn=np.array([0, 0, 0, 1, 1, 0, 2, 2, 0, 3, 3, 0]) if sessions else None,
        think_seconds=np.full(count, 40e-12) if sessions else None,
        prefix_ids=[[1, 2, 100 + row][: 1 + row % 3] for row in range(count)],
        prefix_block_tokens=4,
    )
    rules = EngineRules(
        kv_blocks=400, block_tokens=2, max_num_batched_tokens=16, max_num_seqs=8, prefix_caching=prefix_caching
    )
    served, found, hand = by_hand(trace, rules)
    by_itself = served.sums(alone(found, [floor], rules))
    assert by_itself == pytest.approx(
        [
            sum(cost for cost, one in zip(alone_of(hand, floor, rules), hand, strict=True) if one.chain == chain)
            for chain in range(len(served))
        ]
    )
    expected = crowding_by_hand(served, hand, floor, rules)
    assert crowding_bound(served, found, [floor], rules, by_itself) == pytest.approx(expected, rel=1e-9)
    assert crowding_bound(served, found, [floor._replace(fixed=0.0)], rules, by_itself) == 0.0


@given(traces(min_size=1), engine_rules())
def test_work_is_shared_out_among_what_the_page_names(trace: Trace, rules: EngineRules) -> None:
    """`prefill compute`, `kv volume` and `work`, each the latest over the splits that are tried, on one machine."""
    step_time = LinearStepTime(10**12, 3 * 10**9, 10**7, 10**9, 10**5)
    served, found, hand = by_hand(trace, rules)
    if not hand:
        return
    floors = step_floors(step_time, rules)
    released, known = found.released_ps.tolist(), np.sort(served.arrived_ps + served.think_ps)

    def mean(cost_of: list[list[float]]) -> float:
        """Of completions, each the latest that any of the ways gives."""
        ways = []
        for costs in cost_of:
            work = [sum(c for c, one in zip(costs, hand, strict=True) if one.chain == k) for k in range(len(served))]
            ways.append(earliest_completions(released, [int(amount * (1 - 1e-9)) for amount in work]))
        ends = np.maximum.reduce([np.array(way) for way in ways])
        return float(np.maximum(ends - known, 0).sum()) / PS_PER_SECOND / len(hand)

    def split(floor: StepFloor, theta: float) -> list[float]:
        fixed = floor.fixed + floor.sampled_fixed
        return [
            floor_costs(one, floor, rules)["shared prompt"]
            + floor_costs(one, floor, rules)["decoding"]
            + fixed * theta / rules.kv_blocks * one.block_steps
            + fixed * (1 - theta) / rules.max_num_seqs * one.output
            for one in hand
        ]

    prefill = [[floor_costs(one, floor, rules)["shared prompt"] for one in hand] for floor in floors]
    volume = [[(f.fixed + f.sampled_fixed) / rules.kv_blocks * one.block_steps for one in hand] for f in floors]
    work = [max((split(floor, theta) for floor in floors), key=sum) for theta in (1.0, 0.5, 0.0)]
    parts = {part.name: part.mean_e2e_seconds for part in lower_bounds(trace, rules, step_time).parts}
    assert parts["prefill compute"] == pytest.approx(mean([max(prefill, key=sum)]), rel=1e-6, abs=1e-9)
    assert parts["kv volume"] == pytest.approx(mean([max(volume, key=sum)]), rel=1e-6, abs=1e-9)
    assert parts["work"] == pytest.approx(mean(work), rel=1e-6, abs=1e-9)


def test_the_last_turn_refused_takes_the_later_ones_along_and_no_other() -> None:
    trace = Trace(
        "sessions",
        np.arange(6.0),
        np.array([10, 10, 900, 10, 10, 10]),
        np.array([5] * 6),
        session=np.array([3, 3, 3, 3, 4, -1]),
        turn=np.array([0, 1, 2, 3, 0, 0]),
        think_seconds=np.array([9.0, 0.5, 0.25, 0.125, 7.0, 5.0]),
    )
    served = chains(trace, EngineRules(kv_blocks=50, block_tokens=16))
    assert served.rows.tolist() == [5, 0, 1, 4]
    assert served.starts.tolist() == [0, 1, 3]
    assert (served.arrived_ps / PS_PER_SECOND).tolist() == [5.0, 0.0, 4.0]
    assert (served.think_ps / PS_PER_SECOND).tolist() == [0.0, 0.5, 0.0]
    alone_again = chains(replace(trace, session=None, turn=None), EngineRules(kv_blocks=50, block_tokens=16))
    assert alone_again.rows.tolist() == [0, 1, 3, 4, 5]
    assert alone_again.think_ps.tolist() == [0] * 5


def test_first_tokens_of_prompts_in_many_chunks_by_hand() -> None:
    """Prompts of 25 and 45 in steps of 10 tokens: 3 and 5 steps of 1,000, and on one machine 250 and 250 + 450."""
    trace = Trace("chunks", np.zeros(2), np.array([25, 45]), np.array([1, 1]))
    rules = EngineRules(kv_blocks=100, max_num_batched_tokens=10, max_num_seqs=4, prefix_caching=False)
    served, found, _ = by_hand(trace, rules)
    floor = StepFloor(1_000.0, 7.0, 10.0, 0.0, 3.0, 0.0, 0.0, 0.0)
    together = 8 * 1_000 + 2 * 7 + (250 + 3) + (250 + 3 + 450 + 3)
    assert first_token_bound(served, found, [floor], rules) == pytest.approx(together)
    assert alone_to_first_token(found, [floor], rules).tolist() == [3_260.0, 5_460.0]
