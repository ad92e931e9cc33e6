"""The paged store: counts, copies on write, and what is left after any sequence of operations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headway.fusion.block_pool import OutOfBlocks
from headway.fusion.block_store import BlockStore
from headway.fusion.joint_encoder import Granularity
from headway.fusion.kv_blocks import Floats
from headway.fusion.rotary_embedding import RotaryEmbedding
from headway.testing.examples import examples
from tests.support.made_kv_blocks import BLOCK_TOKENS, HEAD_DIM, HEADS, LAYERS, made_prompts

GRANULARITIES = [Granularity(), Granularity(layers_together=2), Granularity(halves_together=False)]
ROTARY = RotaryEmbedding.of_base(HEAD_DIM, 100.0)


def store(blocks: int = 64, bound: float = 0.9, **options: object) -> BlockStore:
    return BlockStore(LAYERS, HEADS, HEAD_DIM, block_tokens=BLOCK_TOKENS, blocks=blocks, bound=bound, **options)  # type: ignore[arg-type]


def check(kept: BlockStore) -> None:
    """Counts sum to table entries, in each pool, and exactly the blocks with a count of 0 are free, each once."""
    for number, pool in enumerate(kept.pools):
        entries = [block for request in kept.requests() for block in kept.tables(request)[number]]
        np.testing.assert_array_equal(pool.counts, np.bincount(entries, minlength=len(pool.counts)))
        assert sorted(pool.free_list()) == np.flatnonzero(pool.counts == 0).tolist()


def is_within(bound: float, original: Floats, found: Floats) -> bool:
    """Whether each block of each layer is as near as the bound says."""
    tokens = original.shape[1] // BLOCK_TOKENS * BLOCK_TOKENS
    shape = (LAYERS, tokens // BLOCK_TOKENS, BLOCK_TOKENS * HEADS * HEAD_DIM)
    errors = np.linalg.norm((original - found)[:, :tokens].reshape(shape), axis=2)
    sizes = np.linalg.norm(original[:, :tokens].reshape(shape), axis=2)
    assert (original[:, tokens:] == found[:, tokens:]).all()  # a block that is not full is exact
    return bool((errors <= (np.sqrt(1 - bound**2) + 3e-3) * sizes).all())


class StoreMachine(RuleBasedStateMachine):
    """Any sequence of operations; each request's KV stays within the bound of what was written."""

    @initialize(
        bound=st.sampled_from([0.7, 0.95, 1.0]),
        granularity=st.sampled_from(GRANULARITIES),
        rotary=st.sampled_from([None, ROTARY]),
        blocks=st.sampled_from([6, 20]),
    )
    def begin(self, bound: float, granularity: Granularity, rotary: RotaryEmbedding | None, blocks: int) -> None:
        self.bound = bound
        self.store = store(blocks, bound, granularity=granularity, rotary=rotary)
        self.written: dict[int, list[Floats]] = {}
        self.exact: set[int] = set()
        self.published: list[tuple[int, int, list[bytes]]] = []
        self.number = 0

    @rule(tokens=st.integers(0, 3 * BLOCK_TOKENS + 1), may_fuse=st.booleans(), noise=st.sampled_from([0.0, 0.3]))
    def add(self, tokens: int, may_fuse: bool, noise: float) -> None:
        (keys,), (values,) = made_prompts(self.number % 3, [tokens], noise)
        self.number += 1
        needed = -(-tokens // BLOCK_TOKENS)
        if needed > self.store.free_blocks:
            with pytest.raises(OutOfBlocks):
                self.store.add(self.number, keys, values, may_fuse=may_fuse)
            return
        self.store.add(self.number, keys, values, may_fuse=may_fuse)
        self.written[self.number] = [keys.copy(), values.copy()]
        if not may_fuse:
            self.exact.add(self.number)

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def decode(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.written)))
        token = np.random.default_rng(self.number).normal(size=(2, LAYERS, HEADS, HEAD_DIM)).astype(np.float32)
        try:
            self.store.append(request, *token)
        except OutOfBlocks:
            return
        self.written[request] = [
            np.concatenate([a, b[:, None]], 1) for a, b in zip(self.written[request], token, strict=True)
        ]

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        donor = data.draw(st.sampled_from(sorted(self.written)))
        blocks = data.draw(st.integers(0, self.written[donor][0].shape[1] // BLOCK_TOKENS))
        self.number += 1
        self.store.share_prefix(donor, self.number, blocks)
        self.written[self.number] = [array[:, : blocks * BLOCK_TOKENS].copy() for array in self.written[donor]]

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def overwrite(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.written)))
        keys = self.written[request][0]
        if not keys.shape[1]:
            return
        block = data.draw(st.integers(0, (keys.shape[1] - 1) // BLOCK_TOKENS))
        span = slice(block * BLOCK_TOKENS, min((block + 1) * BLOCK_TOKENS, keys.shape[1]))
        new = np.random.default_rng(block).normal(size=(2, *keys[:, span].shape)).astype(np.float32)
        try:
            self.store.write(request, block, *new)
        except OutOfBlocks:
            return
        for array, part in zip(self.written[request], new, strict=True):
            array[:, span] = part

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.written)))
        blocks = self.written[request][0].shape[1] // BLOCK_TOKENS
        if blocks:
            try:
                self.store.publish(request, blocks - 1)
            except ValueError:
                return
            physical = [table[blocks - 1] for table in self.store.tables(request)]
            for number, block in enumerate(physical):
                self.published.append((number, block, [p[block].tobytes() for p in self.store.pools[number].payload]))

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.written)))
        self.store.release(request)
        del self.written[request]
        self.exact.discard(request)

    @rule(most=st.sampled_from([1, 3, 256]))
    def fuse(self, most: int) -> None:
        before = sum(pool.free_blocks for pool in self.store.pools)
        step = self.store.fuse(most)
        assert sum(pool.free_blocks for pool in self.store.pools) - before == step.freed >= 0

    @invariant()
    def counts_are_right(self) -> None:
        if hasattr(self, "store"):
            check(self.store)

    @invariant()
    def kv_is_within_the_bound(self) -> None:
        for request, originals in getattr(self, "written", {}).items():
            for original, found in zip(originals, self.store.read(request), strict=True):
                if request in self.exact:
                    np.testing.assert_array_equal(original, found)
                assert is_within(self.bound, original, found)

    @invariant()
    def what_is_hashed_keeps_its_bytes(self) -> None:
        for number, block, content in getattr(self, "published", []):
            pool = self.store.pools[number]
            if pool.counts[block] and pool.is_hashed[block]:
                assert [payload[block].tobytes() for payload in pool.payload] == content


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=examples(40), stateful_step_count=15)


@given(st.integers(0, 9), st.lists(st.integers(0, 17), min_size=2, max_size=16), st.sampled_from(GRANULARITIES))
@settings(max_examples=examples(25))
def test_fuse_preempt_resume_is_no_fusion_within_the_bound(
    seed: int, lengths: list[int], granularity: Granularity
) -> None:
    kept = store(blocks=128, bound=0.9, granularity=granularity)
    prompts = list(zip(*made_prompts(seed, lengths, 0.2), strict=True))
    for request, (keys, values) in enumerate(prompts):
        kept.add(request, keys, values)
    kept.fuse()
    for request, (keys, values) in enumerate(prompts):
        kept.release(request)
        kept.add(request, keys, values)
        np.testing.assert_array_equal(kept.read(request)[0], keys)
        kept.fuse()
    for request, originals in enumerate(prompts):
        for original, found in zip(originals, kept.read(request), strict=True):
            assert is_within(0.9, original, found)
    for request in range(len(prompts)):
        kept.release(request)
    check(kept)
    assert kept.free_blocks == 128


def test_memory_is_really_free_after_fusion() -> None:
    kept = store(blocks=12)
    keys, values = made_prompts(1, [12] * 4, 0.0)
    for request in range(4):
        kept.add(request, keys[0], values[0])
    assert kept.free_blocks == 0
    with pytest.raises(OutOfBlocks, match="request 4 needs 3 KV blocks and 0 are free"):
        kept.add(4, keys[0], values[0])
    step = kept.fuse()
    assert (step.compared, step.fused, step.freed) == (24, 24, 18)  # two layers
    assert kept.free_blocks == 9
    kept.add(4, keys[0], values[0])
    step = kept.fuse()
    assert (step.compared, step.fused, step.freed) == (6, 6, 6)  # they join the representatives there are
    assert kept.tables(4) == kept.tables(0)


def test_free_memory_is_the_minimum_over_pools() -> None:
    kept = store(blocks=8, granularity=Granularity(exact_layers=frozenset({1})))
    (keys,), (values,) = made_prompts(1, [8], 0.0)
    for request in range(4):
        kept.add(request, keys, values)
    kept.fuse()
    assert sorted(pool.free_blocks for pool in kept.pools) == [0, 0, 6]
    assert kept.free_blocks == 0


def test_a_request_that_opted_out_shares_nothing() -> None:
    kept = store()
    (keys,), (values,) = made_prompts(1, [8], 0.0)
    kept.add("plain", keys, values)
    kept.add("exact", keys, values, may_fuse=False)
    assert kept.fuse().fused == 0
    kept.share_prefix("plain", "other", 2, may_fuse=False)
    kept.add("third", keys, values)
    assert kept.fuse().fused == 0


def test_a_write_to_a_fused_block_goes_to_a_copy() -> None:
    kept = store()
    (keys,), (values,) = made_prompts(1, [8], 0.0)
    for request in ("left", "right"):
        kept.add(request, keys, values)
    kept.fuse()
    before = kept.read("right")
    assert kept.tables("left") == kept.tables("right")
    kept.write("left", 0, 2 * keys[:, :4], values[:, :4])
    assert [table[0] for table in kept.tables("left")] != [table[0] for table in kept.tables("right")]
    np.testing.assert_array_equal(kept.read("right")[0], before[0])
    np.testing.assert_array_equal(kept.read("left")[0][:, :4], 2 * keys[:, :4])
    check(kept)


def test_the_last_holder_of_a_representative_copies_too() -> None:
    kept = store()
    (keys,), (values,) = made_prompts(1, [4], 0.0)
    for request in ("left", "right"):
        kept.add(request, keys, values)
    kept.fuse()
    kept.release("right")
    kept.write("left", 0, keys, values)
    np.testing.assert_array_equal(kept.read("left")[0], keys)
    assert not any(pool.is_mean[table[0]] for pool, table in zip(kept.pools, kept.tables("left"), strict=True))


def test_a_step_is_bounded_and_the_rest_waits() -> None:
    kept = store(blocks=64)
    (keys,), (values,) = made_prompts(1, [16], 0.0)
    for request in range(8):
        kept.add(request, keys, values)
    compared = []
    while (step := kept.fuse(8)).compared:
        compared.append(step.compared)
    assert max(compared) == 16  # eight in each of two pools
    assert kept.free_blocks == 64 - 4


def test_a_fault_leaves_all_requests_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store()
    (keys,), (values,) = made_prompts(1, [8], 0.0)
    for request in range(3):
        kept.add(request, keys, values)
    tables = [kept.tables(request) for request in range(3)]
    decided = []

    def failing(*arguments: object) -> list[object]:
        decided.append(arguments)
        if len(decided) == 2:
            raise MemoryError("no room for the products")
        return []

    monkeypatch.setattr("headway.fusion.block_store.decide_fusion", failing)
    with pytest.raises(MemoryError):
        kept.fuse()
    assert [kept.tables(request) for request in range(3)] == tables
    monkeypatch.undo()
    assert kept.fuse().fused == 12  # what was not decided then is decided now


def test_published_blocks_are_left_and_not_altered() -> None:
    kept = store(blocks=8)
    (keys,), (values,) = made_prompts(1, [4], 0.0)
    for request in range(3):
        kept.add(request, keys, values)
        kept.publish(request, 0)
    held = [table[0] for table in kept.tables(0)]
    kept.fuse()
    assert all(table[0] != block for table, block in zip(kept.tables(0), held, strict=True))
    with pytest.raises(ValueError, match="block 0 of request 0 is fused: publish it before, or under a key of its own"):
        kept.publish(0, 0)
    full = store(blocks=3)
    for request in range(3):
        full.add(request, keys, values)
        full.publish(request, 0)
    assert full.fuse().fused == 0  # no block is free for a representative
    check(full)
