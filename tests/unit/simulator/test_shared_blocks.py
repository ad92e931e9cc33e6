"""Shared blocks kept as stretches are the blocks that the reference engine keeps one by one."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

from headway.simulator.blocks import CountedBlocks
from headway.simulator.prefix_cache import CachedBlocks
from headway.simulator.reference_blocks import ContentKeys, ReferenceBlockMemory
from headway.simulator.reference_request import ReferenceRequest
from headway.simulator.trace import Trace
from headway.simulator.tracked import TrackedRequest

ROWS = 40


@dataclass
class Both:
    """One request in both memories, and the KV tokens it holds."""

    fast: TrackedRequest
    plain: ReferenceRequest
    computed: int = 0

    @property
    def total(self) -> int:
        return self.plain.total_tokens


class Twins:
    """The same requests in both memories; every answer is compared."""

    def __init__(self, dice: random.Random, block_tokens: int, per_id: int) -> None:
        self.block = block_tokens
        id_tokens = per_id * block_tokens
        prompts = [dice.randint(1, 8 * block_tokens) for _ in range(ROWS)]
        ids = []
        for row, prompt in enumerate(prompts):
            whole = prompt // id_tokens + dice.randint(0, 1)  # sometimes the last id is partial
            shared = dice.randint(0, whole)
            document = dice.choice([1_000, 2_000])
            ids.append([document + i if i < shared else 100 * (100 + row) + i for i in range(whole)])
        trace = Trace(
            "shared", np.zeros(ROWS), np.array(prompts), np.ones(ROWS, np.int64), prefix_ids=ids,
            prefix_block_tokens=id_tokens,
        )  # fmt: skip
        blocks = dice.randint(10, 40)
        self.fast = CachedBlocks(blocks, block_tokens, ids, id_tokens)
        self.plain = ReferenceBlockMemory(blocks, block_tokens, ContentKeys(trace, block_tokens).key)
        self.waiting = [
            Both(TrackedRequest(row, 0.0, prompt, "", None, None, None, 0, False), ReferenceRequest(row, 0.0, prompt))
            for row, prompt in enumerate(prompts)
        ]
        self.running: list[Both] = []
        self.found = self.surely = 0

    def look(self) -> None:
        assert self.fast.free == self.plain.free
        for both in self.waiting[:6]:
            hits = self.plain.find(both.plain)
            surely = self.fast.surely_needs_more(both.fast, self.fast.free)
            hit = self.fast.cached_tokens(both.fast)
            assert hit == len(hits) * self.block
            for tokens in (min(hit + 1, both.total), both.total):
                assert self.fast.need(both.fast, tokens, hit) == self.plain.needed(tokens, hits)
            self.surely += surely
            assert not surely or self.plain.needed(both.total, hits) > self.plain.free

    def admit(self, place: int, tokens: int) -> None:
        both = self.waiting[place]
        hits = self.plain.find(both.plain)
        hit = len(hits) * self.block
        tokens = min(hit + tokens, both.total)
        if self.plain.needed(tokens, hits) > self.plain.free:
            return
        self.fast.admit(both.fast, tokens, hit)
        self.plain.admit(both.plain, tokens, hits)
        both.computed = tokens
        self.running.append(self.waiting.pop(place))
        self.found += hit

    def grow(self, both: Both, tokens: int) -> None:
        decodes = both.computed == both.total
        if decodes:
            both.fast.produced_tokens += 1
            both.plain.produced_tokens += 1
        more = min(both.computed + (1 if decodes else tokens), both.total)
        held = -(-both.computed // self.block)
        if not self.plain.extend(both.plain, more):
            assert -(-more // self.block) - held > self.fast.free
            both.fast.produced_tokens -= decodes
            both.plain.produced_tokens -= decodes
            return
        if decodes:
            self.fast.take(-(-more // self.block) - held)
        else:
            self.fast.extend(both.fast, more)
        both.computed = more

    def release(self, place: int, keep: bool) -> None:
        both = self.running.pop(place)
        self.fast.release(both.fast, both.computed, -(-both.computed // self.block), keep)
        self.plain.release(both.plain)
        if keep:
            self.waiting.insert(0, both)


@pytest.mark.parametrize("per_id", [1, 3])
@pytest.mark.parametrize("block_tokens", [1, 2, 4])
def test_the_same_blocks_are_found(block_tokens: int, per_id: int) -> None:
    found = surely = 0
    for seed in range(12):
        dice = random.Random(seed)
        twins = Twins(dice, block_tokens, per_id)
        for _ in range(300):
            twins.look()
            deed = dice.random()
            if deed < 0.35 and twins.waiting:
                twins.admit(dice.randrange(min(6, len(twins.waiting))), dice.randint(1, 4 * block_tokens))
            elif deed < 0.8 and twins.running:
                twins.grow(dice.choice(twins.running), dice.randint(1, 2 * block_tokens))
            elif twins.running:
                twins.release(dice.randrange(len(twins.running)), keep=dice.random() < 0.6)
        found += twins.found
        surely += twins.surely
    assert found > 300 * block_tokens, "blocks were found"
    assert surely > 100, "looks were saved"


def test_blocks_that_lie_across_two_ids_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^prefix caching needs block_tokens \(16\) to divide the trace's .* \(24 tok"
    ):
        CachedBlocks(10, 16, [[1]], 24)
    CachedBlocks(10, 16, None, 24)
    CachedBlocks(10, 16, [[1]], 48)


def test_without_a_cache_memory_is_a_number() -> None:
    memory = CountedBlocks(10, 4)
    request = TrackedRequest(0, 0.0, 9, "", None, None, None, 0, False)
    assert memory.cached_tokens(request) == 0
    assert [memory.need(request, tokens, 0) for tokens in (1, 4, 5, 9)] == [1, 1, 2, 3]
    assert not memory.surely_needs_more(request, 0)
    memory.admit(request, 5, 0)
    assert (memory.free, request.blocks) == (8, 2)
    memory.extend(request, 9)
    assert (memory.free, request.blocks) == (7, 3)
    memory.take(2)
    assert memory.free == 5
    memory.release(request, 20, 5, keep=True)
    assert (memory.free, request.blocks) == (10, 0)
    assert memory.cached_tokens(request) == 0
