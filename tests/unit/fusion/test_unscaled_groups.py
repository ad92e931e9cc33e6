"""Groups under a plain mean: the bound holds for every member, in every component, lengths included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.fusion.unscaled_groups import squared_error_allowed, unscaled_encoding, unscaled_groups
from tests.support.made_kv_blocks import made_blocks


def products_of(rows: np.ndarray) -> np.ndarray:
    """(components, blocks, blocks) of (components, blocks, numbers)."""
    return np.asarray(rows @ rows.transpose(0, 2, 1), np.float64)


def drawn_rows(seed: int, noise: float) -> np.ndarray:
    chance = np.random.default_rng(seed)
    patterns = chance.normal(size=(3, 4, 12))
    chosen = chance.integers(4, size=10)
    lengths = chance.uniform(0.7, 1.3, size=(1, 10, 1))
    return np.asarray(lengths * patterns[:, chosen] + noise * chance.normal(size=(3, 10, 12)))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), noise=st.sampled_from([0.0, 0.1, 0.4]), bound=st.sampled_from([0.7, 0.9, 0.99, 1.0])
)
def test_every_member_is_within_the_bound_of_the_mean(seed: int, noise: float, bound: float) -> None:
    rows = drawn_rows(seed, noise)
    weights = np.random.default_rng(seed).integers(1, 4, size=10)
    groups = unscaled_groups(products_of(rows), weights, bound)
    members = [int(one) for group in groups for one in group]
    assert len(members) == len(set(members))
    for group in groups:
        assert len(group) > 1
        mean = np.average(rows[:, group], axis=1, weights=weights[group])
        errors = ((rows[:, group] - mean[:, None]) ** 2).sum(axis=2)
        squares = (rows[:, group] ** 2).sum(axis=2)
        assert (errors <= squared_error_allowed(bound) * squares * (1 + 1e-9) + 1e-12).all()
        cosines = (rows[:, group] * mean[:, None]).sum(axis=2) / np.sqrt(squares * (mean**2).sum(axis=1)[:, None])
        assert (cosines >= np.sqrt(1 - squared_error_allowed(bound)) - 1e-9).all(), "the error bounds the angle"


def test_copies_are_one_group_and_lengths_count() -> None:
    rows = np.ones((2, 5, 6))
    (group,) = unscaled_groups(products_of(rows), np.ones(5, np.int64), 1.0)
    assert group.tolist() == [0, 1, 2, 3, 4]
    rows[0, 3] *= 3  # the same direction, thrice as long, in one component
    (group,) = unscaled_groups(products_of(rows), np.ones(5, np.int64), 0.9)
    assert group.tolist() == [0, 1, 2, 4]


def test_the_largest_group_comes_first_for_spares_may_be_few() -> None:
    rows = np.stack([np.eye(3)[[0, 1, 1, 1, 2, 2, 0]]])
    groups = unscaled_groups(products_of(rows), np.ones(7, np.int64), 0.99)
    assert [len(group) for group in groups] == [3, 2, 2]


def test_one_block_and_none_are_no_group() -> None:
    for blocks in (0, 1):
        assert unscaled_groups(np.ones((2, blocks, blocks)), np.ones(blocks, np.int64), 0.9) == []


@pytest.mark.parametrize("bound", [0.0, -1.0, 1.1, float("nan")])
def test_a_bound_outside_of_0_to_1_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="a cosine above 0 and at most 1"):
        unscaled_groups(np.ones((1, 2, 2)), np.ones(2, np.int64), bound)
    with pytest.raises(ValueError, match="a cosine above 0 and at most 1"):
        unscaled_encoding(made_blocks(0, [8], 0.1), bound)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.6])
def test_an_encoding_frees_what_one_table_frees_and_decodes_within_the_bound(noise: float) -> None:
    blocks = made_blocks(3, [16] * 7, noise)
    encoding = unscaled_encoding(blocks, 0.8)
    decoded = encoding.decode()
    for ours, exact in ((decoded.keys, blocks.keys), (decoded.values, blocks.values)):
        errors = ((ours - exact) ** 2).sum(axis=(2, 3, 4))
        assert (errors <= squared_error_allowed(0.8) * (exact**2).sum(axis=(2, 3, 4)) * (1 + 1e-4)).all()
    assert encoding.free_blocks_with_one_table() == pytest.approx(encoding.fused_share() * blocks.count)
