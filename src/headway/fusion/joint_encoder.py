"""`joint-encoding`: what alike blocks share is kept once, and every member is within the bound of what is kept.

What it does otherwise than the published forms (arXiv 2601.03067, `published_encoders.py`):

- Keys are compared at equal places only, or turned back to the start of their block (`rotary`).
- Keys *and* values have to be within the bound; apart, if the granularity says so.
- Blocks of one request are compared with each other, too.
- A representative is the mean of its members' directions, weighted by the table entries that each stands for.
- Each member is checked against the *final* representative, in each component. What fails stays exact, to the bit.
- A block's scale is the product with the representative, the least-squares choice: with a cosine of at least b, the
  error is at most √(1 − b²) of the block's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headway.fusion.alike_groups import ROUNDING, alike_groups
from headway.fusion.encoding import Component, EncodedComponent, EncodedPart, Encoding, Half, exact_part
from headway.fusion.kv_blocks import Floats, Integers, KvBlocks, flat
from headway.fusion.rotary_embedding import RotaryEmbedding


@dataclass(frozen=True, slots=True)
class Granularity:
    """What is fused by one decision and has one table.

    Attributes:
        layers_together: so many neighbouring layers share a table; the decision is their least similarity.
        halves_together: whether keys and values share a table.
        heads_together: whether all KV heads of a layer share a table.
        exact_layers: layers that are never fused.
        exact_halves: halves that are never fused.
    """

    layers_together: int = 1
    halves_together: bool = True
    heads_together: bool = True
    exact_layers: frozenset[int] = frozenset()
    exact_halves: frozenset[Half] = frozenset()

    def parts(self, layers: int, heads: int) -> list[tuple[Component, ...]]:
        """The components of each part that is fused.

        Raises:
            ValueError: the layers together are fewer than 1, or an exact layer is not in the model.
        """
        if self.layers_together < 1:
            raise ValueError(f"layers_together is {self.layers_together}: at least 1 is needed")
        outside = sorted(layer for layer in self.exact_layers if not 0 <= layer < layers)
        if outside:
            raise ValueError(f"exact_layers has {outside[0]}: the model's layers are 0 to {layers - 1}")
        fused = [layer for layer in range(layers) if layer not in self.exact_layers]
        halves = [half for half in Half if half not in self.exact_halves]
        spans = [(0, heads)] if self.heads_together else [(head, head + 1) for head in range(heads)]
        choices = [halves] if self.halves_together else [[half] for half in halves]
        starts = range(0, len(fused), self.layers_together)
        return [
            tuple(
                Component(half, layer, *span)
                for layer in fused[start : start + self.layers_together]
                for half in chosen
            )
            for start in starts
            for span in spans
            for chosen in choices
            if chosen
        ]

    def exact_parts(self, layers: int, heads: int) -> list[tuple[Component, ...]]:
        """The components that stay exact, one part for each."""
        halves = [(layer, half) for layer in range(layers) for half in Half]
        return [
            (Component(half, layer, 0, heads),)
            for layer, half in halves
            if layer in self.exact_layers or half in self.exact_halves
        ]


PER_LAYER = Granularity()


def joint_encoding(
    blocks: KvBlocks,
    bound: float,
    *,
    granularity: Granularity = PER_LAYER,
    rotary: RotaryEmbedding | None = None,
    weights: Integers | None = None,
) -> Encoding:
    """Encode blocks so that each decoded one is within the bound of the original.

    Args:
        blocks: full blocks, keys as the model has them (turned by their positions).
        bound: least cosine of a block with its representative, in (0, 1], for each component by itself.
        granularity: what is decided together.
        rotary: turns keys back, so that blocks at different places can be fused. Without it only equal places are.
        weights: (blocks,), table entries that each block stands for; 1 if not given.

    Raises:
        ValueError: the bound is outside (0, 1], or the granularity or the rotary embedding does not fit the blocks.
    """
    check_bound(bound)
    counts = np.ones(blocks.count, np.int64) if weights is None else weights
    if counts.shape != (blocks.count,) or (counts < 1).any():
        raise ValueError(f"weights have shape {counts.shape}: one whole number of 1 or more per block is needed")
    compared = blocks if rotary is None else turned_back(blocks, rotary)
    layers, heads = blocks.layers, blocks.heads
    parts = [
        _fused(part, compared, bound, counts, any_place=rotary is not None) for part in granularity.parts(layers, heads)
    ]
    parts += [exact_part(part, compared) for part in granularity.exact_parts(layers, heads)]
    return Encoding(
        tuple(parts), blocks.requests, blocks.places, layers, blocks.block_tokens, heads, blocks.head_dim, rotary
    )


def check_bound(bound: float) -> None:
    """Raise ValueError if a bound is not in (0, 1]."""
    if not 0 < bound <= 1:
        raise ValueError(f"bound is {bound}: a cosine above 0 and at most 1 is needed")


def turned_back(blocks: KvBlocks, rotary: RotaryEmbedding) -> KvBlocks:
    """The blocks with keys turned back by the position of their block's first token."""
    starts = (blocks.places * blocks.block_tokens)[None, :, None, None]
    return KvBlocks(rotary.turned(blocks.keys, -starts), blocks.values, blocks.requests, blocks.places)


def directions(rows: Floats) -> Floats:
    """Rows of length 1, those of length 0 left as they are.

    Args:
        rows: (blocks, …); each is one vector.
    """
    vectors = flat(rows)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0), dtype=np.float32)


def representative(units: Floats, weights: Integers) -> Floats:
    """(numbers,), the direction of the weighted mean of unit vectors (members, numbers)."""
    total = weights.astype(np.float64) @ units.astype(np.float64)
    return np.asarray(total / np.linalg.norm(total), dtype=np.float32)


def _fused(
    components: Sequence[Component], blocks: KvBlocks, bound: float, weights: Integers, *, any_place: bool
) -> EncodedPart:
    arrays = [one.of(blocks) for one in components]
    units = [directions(array) for array in arrays]
    groups = [
        group
        for candidates in _candidates(blocks, any_place=any_place)
        for group in _groups_of(candidates, units, weights, bound)
    ]
    table, exact = np.full(blocks.count, -1), np.ones(blocks.count, dtype=bool)
    for number, group in enumerate(groups):
        table[group], exact[group] = number, False
    table[exact] = len(groups) + np.arange(exact.sum())
    kept = []
    for component, array, rows in zip(components, arrays, units, strict=True):
        means = [representative(rows[group], weights[group]) for group in groups]
        scales = np.ones(blocks.count, np.float32)
        for mean, group in zip(means, groups, strict=True):
            scales[group] = flat(array[group]) @ mean
        shared = np.array(means, np.float32).reshape(len(groups), *array.shape[1:])
        kept.append(EncodedComponent(component, np.concatenate([shared, array[exact]]), scales))
    return EncodedPart(table, np.arange(len(groups) + exact.sum()) < len(groups), tuple(kept))


def _candidates(blocks: KvBlocks, *, any_place: bool) -> list[Integers]:
    """Sets of blocks that may be fused with each other."""
    if any_place:
        return [np.arange(blocks.count)]
    return [np.flatnonzero(blocks.places == place) for place in np.unique(blocks.places)]


def _groups_of(candidates: Integers, units: Sequence[Floats], weights: Integers, bound: float) -> list[Integers]:
    chosen = [rows[candidates] for rows in units]
    found = alike_groups(chosen, weights[candidates], bound)
    return [group for members in found if _holds(group := candidates[members], units, weights, bound)]


def _holds(group: Integers, units: Sequence[Floats], weights: Integers, bound: float) -> bool:
    """Whether each member is within the bound of the representative as it will be stored."""
    return all(
        bool((rows[group] @ representative(rows[group], weights[group]) >= bound - 2 * ROUNDING).all())
        for rows in units
    )
