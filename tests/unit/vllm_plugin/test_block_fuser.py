"""The worker's half of fusion: means into spares, nothing else written, every member checked as it is stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from headway.fusion.kv_blocks import Floats
from headway.vllm_plugin.block_fuser import carry_out
from headway.vllm_plugin.fusion_messages import FusedBlock, FusionOrder, PlaceOrder

BLOCKS, NUMBERS, LAYERS = 16, 6, 2


class Layer:
    """(blocks, 2, numbers), stored in a type of its own."""

    def __init__(self, halves: Floats, kind: type = np.float32) -> None:
        self.halves = halves.astype(kind)

    def read(self, blocks: Sequence[int]) -> Floats:
        return self.halves[list(blocks)].astype(np.float32)

    def write(self, block: int, halves: Floats) -> None:
        self.halves[block] = halves


def layers(noise: float = 0.02, kind: type = np.float32) -> list[Layer]:
    """All blocks alike, but for noise."""
    chance = np.random.default_rng(0)
    text = chance.normal(size=(LAYERS, 1, 2, NUMBERS))
    drawn = text + noise * chance.normal(size=(LAYERS, BLOCKS, 2, NUMBERS))
    return [Layer(np.asarray(one, np.float32), kind) for one in drawn]


def order(*places: PlaceOrder, spares: tuple[int, ...] = (14, 15), bound: float = 0.95) -> FusionOrder:
    return FusionOrder(places, spares, bound)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_the_weighted_mean_goes_into_a_spare_and_nothing_else_changes(kind: type) -> None:
    held = layers(kind=kind)
    before = [one.halves.copy() for one in held]
    report = carry_out(order(PlaceOrder((3, 5, 8), (1, 2, 1), 0)), held)
    assert report.fused == (FusedBlock(0, 14, (3, 5, 8)),)
    for one, was in zip(held, before, strict=True):
        changed = np.flatnonzero((one.halves != was).any(axis=(1, 2)))
        assert changed.tolist() == [14]
        mean = np.average(was[[3, 5, 8]].astype(np.float32), axis=0, weights=(1, 2, 1))
        np.testing.assert_allclose(one.halves[14], mean, rtol=2e-3 if kind is np.float16 else 1e-5)


def test_each_place_is_compared_by_itself_and_spares_run_out() -> None:
    places = [PlaceOrder((2 * at, 2 * at + 1), (1, 1), 0) for at in range(3)]
    report = carry_out(order(*places), layers())
    assert report.fused == (FusedBlock(0, 14, (0, 1)), FusedBlock(1, 15, (2, 3)))


def test_a_representative_is_joined_as_it_is() -> None:
    held = layers()
    before = [one.halves.copy() for one in held]
    report = carry_out(order(PlaceOrder((9, 1, 2), (3, 1, 1), 1)), held)
    assert report.fused == (FusedBlock(0, 9, (1, 2)),)
    for one, was in zip(held, before, strict=True):
        np.testing.assert_array_equal(one.halves, was)


def test_the_nearest_of_two_representatives_is_joined() -> None:
    held = layers(noise=0.2)
    for one in held:
        one.halves[4] = one.halves[11] + 0.001
    (fused,) = carry_out(order(PlaceOrder((10, 11, 4), (2, 2, 1), 2), bound=0.5), held).fused
    assert (fused.target, fused.members) == (11, (4,))


@pytest.mark.parametrize("half", [0, 1])
def test_one_layer_and_half_that_differ_keep_a_block_exact(half: int) -> None:
    held = layers()
    held[1].halves[5, half] *= -1
    report = carry_out(order(PlaceOrder((3, 5, 8), (1, 1, 1), 0)), held)
    assert report.fused == (FusedBlock(0, 14, (3, 8)),)
    assert carry_out(order(PlaceOrder((14, 5), (2, 1), 1)), held).fused == ()


def test_members_are_checked_against_what_is_stored() -> None:
    """A type that rounds coarsely: the mean of whole numbers is off by more than the bound when it is stored."""
    places = order(PlaceOrder((0, 1), (1, 1), 0), bound=0.985)  # a squared error of 0.03
    for kind, fused in ((np.float32, 1), (np.int8, 0)):
        held = [Layer(np.full((BLOCKS, 2, NUMBERS), 4.0, np.float32), kind) for _ in range(LAYERS)]
        for one in held:
            one.halves[1] = 5  # the mean is 4.5, off by 0.016 at most; stored as 4 it is off by 0.04
        assert len(carry_out(places, held).fused) == fused


def test_blocks_that_are_not_finite_stay_exact() -> None:
    held = layers()
    held[0].halves[5, 0, 0] = np.nan
    places = PlaceOrder((3, 5), (1, 1), 0), PlaceOrder((7, 8), (1, 1), 0)
    assert carry_out(order(*places), held).fused == (FusedBlock(1, 14, (7, 8)),)


def test_a_fault_is_told_and_fuses_nothing() -> None:
    report = carry_out(order(PlaceOrder((3, 99), (1, 1), 0)), layers())
    assert report.fused == ()
    assert report.fault.startswith("IndexError: ")
