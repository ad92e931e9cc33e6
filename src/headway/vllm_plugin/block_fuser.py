"""The worker's half of fusion inside vLLM: compares blocks, writes means into spare blocks, alters no other.

A representative is accepted only as it is stored, after rounding to the cache's own type: each member is checked
against what was read back, in each layer, keys and values apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from headway.fusion.kv_blocks import Floats, Integers
from headway.fusion.unscaled_groups import Products, squared_error_allowed, unscaled_groups
from headway.vllm_plugin.fusion_messages import FusedBlock, FusionOrder, FusionReport, PlaceOrder


class PagedLayer(Protocol):
    """The KV of one layer, by block id."""

    def read(self, blocks: Sequence[int]) -> Floats:
        """(blocks, 2, numbers): a copy of keys and values."""

    def write(self, block: int, halves: Floats) -> None:
        """Overwrite one block with (2, numbers), rounded to the cache's type."""


def carry_out(order: FusionOrder, layers: Sequence[PagedLayer]) -> FusionReport:
    """Compare what the order names; never raises: a fault is reported, and fuses nothing."""
    try:
        return FusionReport(tuple(_fused(order, layers)))
    except Exception as error:
        return FusionReport(fault=f"{type(error).__name__}: {error}")


def _fused(order: FusionOrder, layers: Sequence[PagedLayer]) -> Iterator[FusedBlock]:
    spares = list(order.spares)
    for number, place in enumerate(order.places):
        halves = _halves(layers, place.blocks)
        products = np.stack([rows @ rows.T for rows in halves]).astype(np.float64)
        if not np.isfinite(products).all():
            continue
        joined, left = _joined(products, place, order.bound)
        for kept, members in joined.items():
            yield FusedBlock(number, place.blocks[kept], tuple(place.blocks[one] for one in members))
        if spares and len(left) > 1:
            yield from _averaged(number, place, left, products, halves, layers, order.bound, spares)


def _halves(layers: Sequence[PagedLayer], blocks: Sequence[int]) -> list[Floats]:
    """Keys and values of each layer, (blocks, numbers) each."""
    read = [layer.read(blocks) for layer in layers]
    return [both[:, half] for both in read for half in (0, 1)]


def _joined(products: Products, place: PlaceOrder, bound: float) -> tuple[dict[int, list[int]], Integers]:
    """Representative → new blocks that it can stand for as it is, and the indices of those that none can."""
    joined: dict[int, list[int]] = {}
    left = []
    squares = np.diagonal(products, axis1=1, axis2=2)
    for one in range(place.kept, len(place.blocks)):
        length = np.maximum(squares[:, one], np.finfo(np.float64).tiny)
        errors = squares[:, one, None] - 2 * products[:, one, : place.kept] + squares[:, : place.kept]
        worst = (errors / length[:, None]).max(axis=0)
        if place.kept and worst.min() <= squared_error_allowed(bound):
            joined.setdefault(int(worst.argmin()), []).append(one)
        else:
            left.append(one)
    return joined, np.array(left, np.int64)


def _averaged(
    number: int,
    place: PlaceOrder,
    left: Integers,
    products: Products,
    halves: list[Floats],
    layers: Sequence[PagedLayer],
    bound: float,
    spares: list[int],
) -> Iterator[FusedBlock]:
    """Groups of exact blocks, while there are spares for their means."""
    weights = np.array(place.weights, np.int64)
    among = products[:, left[:, None], left]
    for group in unscaled_groups(among, weights[left], bound):
        if not spares:
            return
        members = left[group]
        shares = (weights[members] / weights[members].sum()).astype(np.float32)
        for at, layer in enumerate(layers):
            layer.write(spares[0], np.stack([shares @ halves[2 * at + half][members] for half in (0, 1)]))
        stored = _halves(layers, spares[:1])
        within = np.ones(len(members), dtype=bool)
        for rows, mean in zip(halves, stored, strict=True):
            errors = ((rows[members] - mean) ** 2).sum(axis=1, dtype=np.float64)
            lengths = (rows[members] ** 2).sum(axis=1, dtype=np.float64)
            within &= errors <= squared_error_allowed(bound) * lengths
        if within.sum() > 1:
            yield FusedBlock(number, spares.pop(0), tuple(place.blocks[one] for one in members[within]))
