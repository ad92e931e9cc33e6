"""The laws of the encoded form: who shares, what is promised of each member, and attention over it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.fusion.encoded_attention import attend_encoded
from headway.fusion.encoders import ENCODERS, encode
from headway.fusion.encoding import Component, Encoding, Half
from headway.fusion.joint_encoder import Granularity, joint_encoding, turned_back
from headway.fusion.kv_blocks import Floats, KvBlocks, flat
from headway.fusion.rotary_embedding import RotaryEmbedding
from headway.testing.examples import examples
from tests.support.made_kv_blocks import BLOCK_TOKENS, HEAD_DIM, HEADS, LAYERS, made_blocks

ROTARY = RotaryEmbedding.of_base(HEAD_DIM, 100.0)
GRANULARITIES = [
    Granularity(),
    Granularity(layers_together=2),
    Granularity(halves_together=False),
    Granularity(heads_together=False),
    Granularity(exact_layers=frozenset({0})),
    Granularity(exact_halves=frozenset({Half.VALUES})),
]

# 2 to 16 requests, odd numbers too, of ragged lengths; some have no full block.
batches = st.lists(st.integers(0, 4 * BLOCK_TOKENS), min_size=2, max_size=16)
settings_of_encoding = st.tuples(
    st.sampled_from(GRANULARITIES), st.sampled_from([0.7, 0.9, 0.99, 1.0]), st.sampled_from([None, ROTARY])
)


def cosine(left: Floats, right: Floats) -> float:
    a, b = left.ravel().astype(np.float64), right.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@settings(max_examples=examples(40))
@given(st.integers(0, 9), batches, st.sampled_from([0.0, 0.2, 0.6]), settings_of_encoding)
def test_every_member_is_within_the_bound_of_its_final_representative(
    seed: int, lengths: list[int], noise: float, chosen: tuple[Granularity, float, RotaryEmbedding | None]
) -> None:
    granularity, bound, rotary = chosen
    blocks = made_blocks(seed, lengths, noise)
    encoding = joint_encoding(blocks, bound, granularity=granularity, rotary=rotary)
    originals = blocks if rotary is None else turned_back(blocks, rotary)
    for part in encoding.parts:
        for one in part.components:
            for block, kept in enumerate(part.table):
                original = one.component.of(originals)[block]
                if part.fused[kept]:
                    assert cosine(original, one.representatives[kept]) >= bound - 1e-5
                else:
                    np.testing.assert_array_equal(one.representatives[kept], original)
                    assert one.scales[block] == 1


@settings(max_examples=examples(40))
@given(st.integers(0, 9), batches, settings_of_encoding)
def test_the_error_of_a_decoded_block_follows_from_the_bound(
    seed: int, lengths: list[int], chosen: tuple[Granularity, float, RotaryEmbedding | None]
) -> None:
    granularity, bound, rotary = chosen
    blocks = made_blocks(seed, lengths, 0.4)
    decoded = joint_encoding(blocks, bound, granularity=granularity, rotary=rotary).decode()
    for original, approximate in ((blocks.keys, decoded.keys), (blocks.values, decoded.values)):
        errors = np.linalg.norm(
            (original - approximate).reshape(LAYERS, blocks.count, BLOCK_TOKENS * HEADS * HEAD_DIM), axis=-1
        )
        sizes = np.linalg.norm(original.reshape(LAYERS, blocks.count, BLOCK_TOKENS * HEADS * HEAD_DIM), axis=-1)
        assert (errors <= (np.sqrt(1 - bound**2) + 3e-3) * sizes).all()


@settings(max_examples=examples(40))
@given(st.integers(0, 9), batches, st.sampled_from(sorted(ENCODERS)))
def test_blocks_share_an_id_exactly_if_they_share_a_representative(seed: int, lengths: list[int], name: str) -> None:
    blocks = made_blocks(seed, lengths, 0.2, layers=5)
    if name == "chunks-fast-fusion":
        blocks = made_blocks(seed, [lengths[0]] * len(lengths), 0.2, layers=5)
    encoding = encode(blocks, name, 0.8)
    covered = np.zeros((2, 5, HEADS), int)
    for part in encoding.parts:
        assert part.counts.sum() == blocks.count == len(part.table)
        assert (part.counts > 0).all()
        assert (part.counts[~part.fused] == 1).all()
        for one in part.components:
            span = slice(one.component.first_head, one.component.end_head)
            covered[int(one.component.half is Half.VALUES), one.component.layer, span] += 1
            rows = flat(one.representatives[part.table])
            alike = (rows[:, None] == rows[None]).all(axis=2)
            np.testing.assert_array_equal(alike, part.table[:, None] == part.table[None])
    assert (covered == 1).all()


@settings(max_examples=examples(40))
@given(st.integers(0, 9), batches, settings_of_encoding, st.integers(1, 3), st.integers(1, 3))
def test_attention_over_the_encoded_form_is_that_over_the_decoded_one(
    seed: int,
    lengths: list[int],
    chosen: tuple[Granularity, float, RotaryEmbedding | None],
    tokens: int,
    group: int,
) -> None:
    granularity, bound, rotary = chosen
    encoding = joint_encoding(made_blocks(seed, lengths, 0.3), bound, granularity=granularity, rotary=rotary)
    queries = np.random.default_rng(seed).normal(size=(tokens, HEADS * group, HEAD_DIM)).astype(np.float32)
    decoded = encoding.decode()
    for request in set(encoding.requests.tolist()):
        for layer in range(LAYERS):
            expected = plain_attention(decoded, request, layer, queries)
            np.testing.assert_allclose(attend_encoded(encoding, request, layer, queries), expected, atol=1e-4)


def plain_attention(blocks: KvBlocks, request: int, layer: int, queries: Floats) -> Floats:
    """Attention as in a textbook, head by head."""
    mine = blocks.requests == request
    keys = blocks.keys[layer, mine].reshape(-1, HEADS, HEAD_DIM)
    values = blocks.values[layer, mine].reshape(-1, HEADS, HEAD_DIM)
    out = np.empty_like(queries)
    for head in range(queries.shape[1]):
        kv_head = head // (queries.shape[1] // HEADS)
        powers = np.exp(queries[:, head] @ keys[:, kv_head].T / np.sqrt(HEAD_DIM))
        out[:, head] = powers / powers.sum(axis=1, keepdims=True) @ values[:, kv_head]
    return out


def test_blocks_of_one_request_are_fused_with_each_other() -> None:
    blocks = made_blocks(1, [32 * BLOCK_TOKENS], 0.0)
    encoding = joint_encoding(turned_forth(blocks), 0.95, rotary=ROTARY)
    assert [len(part.counts) for part in encoding.parts] == [3, 3]  # one for each pattern
    assert encoding.fused_share() == pytest.approx(1 - 3 / 32)


def turned_forth(blocks: KvBlocks) -> KvBlocks:
    """Blocks alike in content, with keys turned by their positions as a model does."""
    starts = (blocks.places * blocks.block_tokens)[None, :, None, None]
    return KvBlocks(ROTARY.turned(blocks.keys, starts), blocks.values, blocks.requests, blocks.places)


def test_turned_keys_meet_only_at_equal_places_or_turned_back() -> None:
    alone = turned_forth(made_blocks(1, [32 * BLOCK_TOKENS], 0.0))
    assert joint_encoding(alone, 0.5).fused_share() == 0
    decoded = joint_encoding(alone, 0.95, rotary=ROTARY).decode()
    np.testing.assert_allclose(decoded.keys, alone.keys, atol=1e-4)


def test_a_mean_is_weighted_by_the_table_entries() -> None:
    keys = np.zeros((1, 2, 1, 1, 2), np.float32)
    keys[0, :, 0, 0] = [[1, 0], [0, 1]]
    blocks = KvBlocks(keys, np.ones_like(keys), np.array([0, 1]), np.array([0, 0]))
    encoding = joint_encoding(blocks, 0.3, weights=np.array([3, 1]))
    mean = encoding.parts[0].components[0].representatives[0].ravel()
    np.testing.assert_allclose(mean, np.array([3, 1]) / np.sqrt(10), rtol=1e-6)


def test_values_that_differ_keep_blocks_apart() -> None:
    blocks = made_blocks(2, [4 * BLOCK_TOKENS] * 6, 0.0)
    drawn = np.random.default_rng(0).normal(size=blocks.values.shape).astype(np.float32)
    other = KvBlocks(blocks.keys, drawn, blocks.requests, blocks.places)
    assert joint_encoding(blocks, 0.9).fused_share() > 0.4
    assert joint_encoding(other, 0.9).fused_share() == 0
    keys_alone = joint_encoding(other, 0.9, granularity=Granularity(exact_halves=frozenset({Half.VALUES})))
    assert keys_alone.fused_share() > 0.2


def test_a_block_of_zeros_stays_exact() -> None:
    zeros = np.zeros((1, 3, 2, 1, 2), np.float32)
    encoding = joint_encoding(KvBlocks(zeros, zeros, np.arange(3), np.zeros(3, int)), 0.1)
    assert encoding.fused_share() == 0
    np.testing.assert_array_equal(encoding.decode().keys, zeros)


def test_writing_to_decoded_blocks_alters_nothing_shared() -> None:
    encoding = joint_encoding(made_blocks(1, [16] * 5, 0.1), 0.9)
    before = encoding.decode()
    changed = encoding.decode()
    changed.keys[:], changed.values[:], changed.places[:] = 7, 7, 7
    np.testing.assert_array_equal(encoding.decode().keys, before.keys)
    np.testing.assert_array_equal(encoding.decode().places, before.places)


def test_bytes_count_everything() -> None:
    blocks = made_blocks(1, [16] * 6, 0.0)
    granularity = Granularity(exact_layers=frozenset({1}))
    encoding = joint_encoding(blocks, 0.95, granularity=granularity)
    sizes = encoding.sizes(number_bytes=2)
    block_bytes = BLOCK_TOKENS * HEADS * HEAD_DIM * 2
    representatives = len(encoding.parts[0].counts)
    fused = int(encoding.parts[0].fused[encoding.parts[0].table].sum())
    assert representatives < 24
    assert sizes.original == 2 * LAYERS * 24 * block_bytes
    assert sizes.representatives == 2 * (24 + representatives) * block_bytes
    assert sizes.scales == 2 * fused * 4
    assert sizes.tables == 0  # one table is there anyway
    assert sizes.stored_share == (sizes.representatives + sizes.scales) / sizes.original
    apart = joint_encoding(blocks, 0.95, granularity=Granularity(halves_together=False))
    assert apart.sizes().tables == 3 * 24 * 4


def test_an_engine_with_one_table_frees_only_what_is_shared_in_every_layer() -> None:
    blocks = made_blocks(3, [16] * 6, 0.0)
    free_in_each = [blocks.count - len(part.counts) for part in joint_encoding(blocks, 0.95).parts]
    assert joint_encoding(blocks, 0.95).free_blocks_with_one_table() == min(free_in_each) > 0
    exact = joint_encoding(blocks, 0.95, granularity=Granularity(exact_layers=frozenset({0})))
    assert exact.free_blocks_with_one_table() == 0


def test_no_blocks_at_all() -> None:
    encoding = joint_encoding(made_blocks(0, [0, 3], 0.1), 0.9)
    assert (encoding.fused_share(), encoding.sizes().stored_share, encoding.free_blocks_with_one_table()) == (0, 1, 0)
    assert encoding.decode().count == 0


def test_what_converts_to_an_array_is_taken() -> None:
    """A torch tensor on the CPU converts by `__array__`, as this does."""

    class Tensor:
        def __init__(self, numbers: Floats) -> None:
            self.numbers = numbers

        def __array__(self, dtype: object = None, copy: object = None) -> Floats:
            return self.numbers

    blocks = made_blocks(1, [16], 0.1)
    encoding: Encoding = joint_encoding(blocks, 0.9)
    queries = np.ones((1, HEADS, HEAD_DIM), np.float32)
    from_tensor = attend_encoded(encoding, 0, 0, Tensor(queries))
    np.testing.assert_array_equal(from_tensor, attend_encoded(encoding, 0, 0, queries))


def test_a_component_names_what_it_holds() -> None:
    blocks = made_blocks(1, [8], 0.1)
    np.testing.assert_array_equal(Component(Half.VALUES, 1, 1, 2).of(blocks), blocks.values[1, :, :, 1:2])
