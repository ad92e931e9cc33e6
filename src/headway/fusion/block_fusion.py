"""Decides which blocks of a pool are fused in one step; changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headway.fusion.alike_groups import ROUNDING, alike_groups
from headway.fusion.block_pool import BlockPool
from headway.fusion.encoding import Half
from headway.fusion.joint_encoder import directions, representative
from headway.fusion.kv_blocks import Floats, Integers, flat
from headway.fusion.representative_search import nearest_representatives
from headway.fusion.rotary_embedding import RotaryEmbedding


@dataclass(frozen=True, slots=True)
class FusionDecision:
    """These blocks become this representative.

    Attributes:
        members: physical blocks.
        scales: (members, components).
        kept: the representative that they join, or None for a new one.
        means: of a new one, its direction in each component.
    """

    members: Integers
    scales: Floats
    kept: int | None
    means: list[Floats]


def decide_fusion(
    pool: BlockPool, waiting: Integers, bound: float, block_tokens: int, rotary: RotaryEmbedding | None
) -> list[FusionDecision]:
    """Compare exact blocks with the representatives of the pool, then what is left with each other.

    A representative is never moved by who joins: its members were checked against it as it is.

    Args:
        pool: where the blocks are.
        waiting: (blocks,), exact and full physical blocks.
        bound: least cosine with the representative, in each component.
        block_tokens: tokens in a block.
        rotary: turns keys back; without it only blocks at equal places are fused.
    """
    if not waiting.size:
        return []
    starts = pool.places[waiting] * block_tokens
    arrays = turned_keys(pool, [payload[waiting] for payload in pool.payload], -starts, rotary)
    units = [directions(array) for array in arrays]
    lengths = np.stack([np.linalg.norm(flat(array), axis=1) for array in arrays], axis=1)
    places = None if rotary else pool.places
    decisions, left = _joined(pool, waiting, units, lengths, bound, places)
    for candidates in _comparable(waiting, left, places):
        chosen = [rows[candidates] for rows in units]
        weights = pool.counts[waiting[candidates]]
        for group in alike_groups(chosen, weights, bound):
            means = [representative(rows[group], weights[group]) for rows in chosen]
            cosines = np.stack([rows[group] @ mean for rows, mean in zip(chosen, means, strict=True)], axis=1)
            if (cosines >= bound - 2 * ROUNDING).all():
                members = candidates[group]
                scales = (cosines * lengths[members]).astype(np.float32)
                decisions.append(FusionDecision(waiting[members], scales, None, means))
    return decisions


def turned_keys(
    pool: BlockPool, arrays: list[Floats], positions: int | Integers, rotary: RotaryEmbedding | None
) -> list[Floats]:
    """A pool's arrays with keys turned by positions; without rotary embedding all as they are."""
    if rotary is None:
        return arrays
    at = np.asarray(positions)[..., None, None]
    return [
        rotary.turned(array, at) if one.half is Half.KEYS else array
        for one, array in zip(pool.components, arrays, strict=True)
    ]


def _joined(
    pool: BlockPool, waiting: Integers, units: list[Floats], lengths: Floats, bound: float, places: Integers | None
) -> tuple[list[FusionDecision], Integers]:
    """Blocks that join a representative that there is, and the indices of the rest."""
    kept = np.flatnonzero(pool.is_mean & (pool.counts > 0))
    if not kept.size:
        return [], np.arange(len(waiting))
    means = [flat(payload[kept]) for payload in pool.payload]
    theirs, ours = (None, None) if places is None else (places[kept], places[waiting])
    best, least = nearest_representatives(units, means, ours, theirs)
    decisions = []
    for one in np.flatnonzero(least >= bound):
        cosines = np.array([rows[one] @ those[best[one]] for rows, those in zip(units, means, strict=True)])
        scales = (cosines * lengths[one]).astype(np.float32)[None]
        decisions.append(FusionDecision(waiting[one : one + 1], scales, int(kept[best[one]]), []))
    return decisions, np.flatnonzero(least < bound)


def _comparable(waiting: Integers, left: Integers, places: Integers | None) -> list[Integers]:
    """Sets of indices that may be fused with each other."""
    if places is None:
        return [left]
    at = places[waiting[left]]
    return [left[at == place] for place in np.unique(at)]
