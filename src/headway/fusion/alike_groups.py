"""Groups of blocks that one representative can stand for: every member within the bound of the final mean.

A block is described by one unit vector per component, such as its keys and its values in one layer. The representative
of a group is, component by component, the direction of the weighted mean of its members. A group is kept only if the
cosine of every member with it is at least the bound in every component, so chains of near neighbours cannot drift.

Two vectors can have a cosine of b with the same third one only if theirs is at least cos(2·arccos b) = 2b² − 1. Pairs
below are never tried.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headway.fusion.kv_blocks import Integers

ROUNDING = 1e-6  # of a cosine in float32: bounds hold to this
TRIES = 16  # candidates of one group that may be turned down in a row before the group is closed


def alike_groups(directions: Sequence[NDArray[np.float32]], weights: Integers, bound: float) -> list[Integers]:
    """Group greedily, the block with the most possible partners first.

    Args:
        directions: one array per component, (blocks, numbers), rows of length 1.
        weights: (blocks,), how many table entries each block stands for.
        bound: least cosine of a member with its representative, in (0, 1], to within `ROUNDING`.

    Returns:
        The groups of two and more, each as increasing indices. What is in none of them stays exact.
    """
    blocks = len(weights)
    if not blocks:
        return []
    cosines = np.stack([rows @ rows.T for rows in directions])
    least = cosines.min(axis=0)
    possible = least >= 2 * bound * bound - 1 - 4 * ROUNDING
    np.fill_diagonal(possible, False)
    free = np.ones(blocks, dtype=bool)
    groups = []
    for seed in np.argsort(-possible.sum(axis=1), kind="stable"):
        if not free[seed]:
            continue
        partners = np.flatnonzero(possible[seed] & free)
        if not partners.size:
            continue
        partners = partners[np.argsort(-least[seed, partners], kind="stable")]
        members = _grown(cosines, weights, bound, int(seed), partners)
        if len(members) > 1:
            free[members] = False
            groups.append(np.sort(np.array(members)))
    return groups


def _grown(cosines: NDArray[np.float32], weights: Integers, bound: float, seed: int, partners: Integers) -> list[int]:
    """The seed, and each partner in turn that leaves all members within the bound of the new mean."""
    members = [seed]
    with_sum = cosines[:, :, seed] * float(weights[seed])  # each block's product with the sum of the members
    turned_down = 0
    for partner in partners:
        tried = with_sum + cosines[:, :, partner] * float(weights[partner])
        wider = [*members, int(partner)]
        lengths = np.sqrt((tried[:, wider] * weights[wider]).sum(axis=1))
        within = tried[:, wider] >= (bound - ROUNDING) * lengths[:, None]
        if (lengths > 0).all() and within.all():
            members, with_sum, turned_down = wider, tried, 0
        elif (turned_down := turned_down + 1) == TRIES:
            break
    return members
