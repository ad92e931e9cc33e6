"""Groups of blocks that their plain mean can stand for, without scales: what an engine's attention kernel can read.

An engine keeps one block id for all layers and reads a block as it is. So a block is fused in every layer at once, and
lengths are not kept apart. The promise is the library's: in each layer, keys and values apart, the representative is
off by at most √(1 − bound²) of the block's length. That implies a cosine of at least the bound.

Everything is decided from the products of blocks with each other, which an engine computes on its own device.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headway.fusion.encoding import EncodedComponent, EncodedPart, Encoding
from headway.fusion.joint_encoder import Granularity, check_bound
from headway.fusion.kv_blocks import Integers, KvBlocks, flat

Products = NDArray[np.float64]
"""(components, blocks, blocks): the product of each two blocks in each component."""

ROUNDING = 1e-5  # of a squared length in float32: bounds hold to this


def squared_error_allowed(bound: float) -> float:
    """Squared distance from the representative ÷ squared length of the block that a bound allows."""
    return 1.0 - bound * bound + ROUNDING


def unscaled_groups(products: Products, weights: Integers, bound: float) -> list[Integers]:
    """Group greedily, the block with the most possible partners first.

    Args:
        products: see `Products`; float32 will do.
        weights: (blocks,), how many table entries each block stands for.
        bound: see the module, in (0, 1].

    Returns:
        The groups of two and more, each as increasing indices, those with the most blocks first.

    Raises:
        ValueError: the bound is outside (0, 1].
    """
    check_bound(bound)
    blocks = len(weights)
    if blocks < 2:
        return []
    squares = np.diagonal(products, axis1=1, axis2=2)
    lengths = np.sqrt(squares)
    apart = np.maximum(squares[:, :, None] + squares[:, None, :] - 2 * products, 0)
    reach = squared_error_allowed(bound) * (lengths[:, :, None] + lengths[:, None, :]) ** 2
    possible = np.asarray(
        (apart <= reach).all(axis=0)
    )  # two blocks farther apart are not both within the bound of one mean
    np.fill_diagonal(possible, False)
    farthest = apart.max(axis=0)
    free = np.ones(blocks, dtype=bool)
    groups = []
    for seed in np.argsort(-possible.sum(axis=1), kind="stable"):
        partners = np.flatnonzero(possible[seed] & free)
        if not free[seed] or not partners.size:
            continue
        members = np.array([seed])
        for partner in partners[np.argsort(farthest[seed, partners], kind="stable")]:
            wider = np.append(members, partner)
            if within_bound_of_mean(products, weights, wider, bound):
                members = wider
        if len(members) > 1:
            free[members] = False
            groups.append(np.sort(members))
    return sorted(groups, key=len, reverse=True)


def within_bound_of_mean(products: Products, weights: Integers, members: Integers, bound: float) -> bool:
    """Whether the weighted mean of these blocks is within the bound of each of them in each component."""
    inside = products[:, members[:, None], members]
    shares = weights[members] / weights[members].sum()
    with_mean = inside @ shares
    squares = np.diagonal(inside, axis1=1, axis2=2)
    errors = squares - 2 * with_mean + (with_mean @ shares)[:, None]
    return bool((errors <= squared_error_allowed(bound) * squares).all())


def unscaled_encoding(blocks: KvBlocks, bound: float) -> Encoding:
    """What an engine would keep of blocks that are all there at once; only equal places are compared.

    Raises:
        ValueError: the bound is outside (0, 1].
    """
    check_bound(bound)
    components = Granularity(layers_together=max(blocks.layers, 1)).parts(blocks.layers, blocks.heads)[0]
    arrays = [flat(one.of(blocks)) for one in components]
    groups = []
    for place in np.unique(blocks.places):
        here = np.flatnonzero(blocks.places == place)
        products = np.stack([rows[here] @ rows[here].T for rows in arrays]).astype(np.float64)
        groups += [here[group] for group in unscaled_groups(products, np.ones(len(here), np.int64), bound)]
    table, exact = np.full(blocks.count, -1), np.ones(blocks.count, dtype=bool)
    for number, group in enumerate(groups):
        table[group], exact[group] = number, False
    table[exact] = len(groups) + np.arange(exact.sum())
    kept = []
    for component, rows in zip(components, arrays, strict=True):
        means = [rows[group].mean(axis=0) for group in groups]
        stored = np.concatenate([np.array(means, np.float32).reshape(len(groups), rows.shape[1]), rows[exact]])
        shape = (-1, *component.of(blocks).shape[1:])
        kept.append(EncodedComponent(component, stored.reshape(shape), np.ones(blocks.count, np.float32)))
    part = EncodedPart(table, np.arange(len(groups) + exact.sum()) < len(groups), tuple(kept))
    return Encoding(
        (part,), blocks.requests, blocks.places, blocks.layers, blocks.block_tokens, blocks.heads, blocks.head_dim
    )
