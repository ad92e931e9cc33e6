"""The published forms do what the patch does, with its known weaknesses where they belong to the method."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.fusion.joint_encoder import joint_encoding
from headway.fusion.kv_blocks import KvBlocks
from headway.fusion.published_encoders import batch_fast_fusion, chunks_fast_fusion
from tests.support.made_kv_blocks import made_blocks

LAYER = 2  # of five, the only one that is fused


def in_the_plane(angles: list[float], requests: list[int]) -> KvBlocks:
    """Blocks of one token whose keys are at these angles in degrees, of length 2; all values alike."""
    radians = np.radians(angles)
    keys = np.broadcast_to(
        2 * np.stack([np.cos(radians), np.sin(radians)], axis=1)[:, None, None], (5, len(angles), 1, 1, 2)
    )
    counts = [requests[:index].count(request) for index, request in enumerate(requests)]
    return KvBlocks(keys.astype(np.float32), np.ones_like(keys, dtype=np.float32), np.array(requests), np.array(counts))


def test_a_pair_becomes_its_mean_direction_and_keeps_its_lengths() -> None:
    blocks = in_the_plane([0, 30, 170], [0, 1, 1])
    encoding = batch_fast_fusion(blocks, 0.75)
    part = encoding.parts[LAYER]
    assert part.table.tolist() == [0, 0, 1]
    np.testing.assert_allclose(
        encoding.decode().keys[LAYER, :2, 0, 0],
        np.tile(2 * np.array([np.cos(np.radians(15)), np.sin(np.radians(15))]), (2, 1)),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(encoding.decode().keys[LAYER, 2], blocks.keys[LAYER, 2])
    for layer in (0, 1, 3, 4):
        np.testing.assert_array_equal(encoding.decode().keys[layer], blocks.keys[layer])


def test_averages_do_not_count_the_blocks_behind_them() -> None:
    """Four requests at 0, 20, 40 and 40 degrees: the mean of 10 and 40, not of all four."""
    kept = batch_fast_fusion(in_the_plane([0, 20, 40, 40], [0, 1, 2, 3]), 0.75).parts[LAYER]
    assert kept.table.tolist() == [0, 0, 0, 0]
    direction = kept.components[0].representatives[0].ravel()
    assert np.degrees(np.arctan2(direction[1], direction[0])) == pytest.approx(25, abs=1e-3)


def test_blocks_of_one_request_are_never_compared() -> None:
    blocks = in_the_plane([10] * 8, [0] * 4 + [1] * 4)
    assert len(batch_fast_fusion(blocks, 0.75).parts[LAYER].counts) == 4
    # Left blocks take all of the right, and each keeps a representative of its own: the last one has the right blocks.
    assert sorted(batch_fast_fusion(blocks, 0.75).parts[LAYER].counts.tolist()) == [1, 1, 1, 5]


def test_a_chain_of_averages_leaves_members_outside_the_threshold_and_ours_does_not() -> None:
    blocks = in_the_plane([0, 40, 60, 60], [0, 1, 2, 3])
    far = batch_fast_fusion(blocks, 0.75).parts[LAYER]
    assert far.table.tolist() == [0, 0, 0, 0]
    direction = far.components[0].representatives[0].ravel()
    assert direction[0] < 0.77  # the cosine with the first block, at 0 degrees, now at the threshold
    wider = in_the_plane([0, 40, 60, 60, 80, 80, 80, 80], list(range(8)))
    chained = batch_fast_fusion(wider, 0.75).parts[LAYER]
    first = chained.components[0].representatives[chained.table[0]].ravel()
    assert first[0] < 0.75
    assert (ours_cosines(wider, 0.75) >= 0.75 - 1e-5).all()


def ours_cosines(blocks: KvBlocks, bound: float) -> np.ndarray:
    one_place = KvBlocks(blocks.keys, blocks.values, blocks.requests, np.zeros_like(blocks.places))
    part = joint_encoding(one_place, bound).parts[LAYER]
    kept = part.components[0].representatives[part.table].reshape(blocks.count, -1)
    rows = blocks.keys[LAYER].reshape(blocks.count, -1)
    cosines: np.ndarray = (kept * rows).sum(axis=1) / (np.linalg.norm(rows, axis=1) * np.linalg.norm(kept, axis=1))
    return cosines


def test_one_request_alone_is_left_as_it_is() -> None:
    blocks = in_the_plane([0, 0, 0], [0, 0, 0])
    np.testing.assert_array_equal(batch_fast_fusion(blocks).decode().keys, blocks.keys)


@given(st.integers(0, 9), st.integers(2, 16))
def test_chunks_are_fused_as_requests_are(seed: int, chunks: int) -> None:
    blocks = made_blocks(seed, [8] * chunks, 0.2, layers=5)
    for ours, theirs in zip(chunks_fast_fusion(blocks).parts, batch_fast_fusion(blocks).parts, strict=True):
        np.testing.assert_array_equal(ours.table, theirs.table)


def test_chunks_need_equal_sizes() -> None:
    with pytest.raises(ValueError, match="the chunks hold 1 to 2 blocks: cut the prompt into equal chunks"):
        chunks_fast_fusion(made_blocks(0, [8, 4], 0.1))
