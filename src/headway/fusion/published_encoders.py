"""The published forms of joint encoding: `batch-fast-fusion` and `chunks-fast-fusion` (arXiv 2601.03067).

After the authors' patch of vLLM (sef1/kv_fast_fusion, commit 233833584), for comparison: whole blocks of a layer, all
KV heads flattened, keys as the model turned them by their positions. A tree merges the requests (or chunks) of two
halves. Each representative on the left is averaged with *all* those on the right whose cosine with it is above the
threshold, without weights, and made a direction again. The rest passes through. Keys alone decide; values are averaged
over the same members. A block's decoded form is its representative × the block's own length. The first two and the last
two layers are left out.

What is known to be wrong with the patch:

1. It frees nothing: the lossy blocks are written back in place at full size, and the tables are thrown away.
2. Those tables are wrong beyond two requests: indices of the shortened list are applied to the full one. Here the
   table follows the restored values, which the patch has right.
3. Blocks of one request, or chunk, are never compared.
4. The similarity of all pairs is computed at each node: the root alone costs O(N²D).
5. Sequences that were fused are fused again whenever a prompt joins, so errors add up.
6. Writing in place alters prefix-cached blocks that others read.
7. Prompts have to be divisible by the chunk, and chunks are only fused at an exact multiple.
8. Under tensor parallelism each rank decides alone.
9. The reported ratio leaves out four layers, partial blocks and decoded tokens. At best 4.38× on 28 of 32 layers is
   32 ÷ (28 ÷ 4.38 + 4) = 3.08×.
10. Averages are checked pairwise and never against the final representative, so no bound holds for a member.

Here 1, 2, 5 and 6 do not arise, since nothing is written in place. The others are kept, being the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.fusion.encoding import Component, EncodedComponent, EncodedPart, Encoding, Half, exact_part
from headway.fusion.joint_encoder import check_bound, directions
from headway.fusion.kv_blocks import Floats, Integers, KvBlocks, flat

PUBLISHED_THRESHOLD = 0.75
_EXACT_LAYERS_AT_EACH_END = 2


@dataclass(frozen=True, slots=True)
class _Node:
    """Representatives of a part of the tree: their directions, which are means, and which each block below has."""

    keys: Floats
    values: Floats
    is_mean: NDArray[np.bool_]
    blocks: Integers
    table: Integers


def batch_fast_fusion(blocks: KvBlocks, threshold: float = PUBLISHED_THRESHOLD) -> Encoding:
    """Batch FastFusion: the leaves of the tree are the requests of a batch.

    Args:
        blocks: keys turned by their positions.
        threshold: pairs of representatives above it are averaged, in (0, 1]. No member is promised to be within it.

    Raises:
        ValueError: the threshold is outside (0, 1].
    """
    return _by_tree(blocks, threshold)


def chunks_fast_fusion(blocks: KvBlocks, threshold: float = PUBLISHED_THRESHOLD) -> Encoding:
    """Chunks FastFusion: the leaves are the chunks of one prompt.

    Args:
        blocks: of one prompt, `requests` being the number of the chunk.
        threshold: as in `batch_fast_fusion`.

    Raises:
        ValueError: the threshold is outside (0, 1], or the chunks do not hold the same number of blocks.
    """
    sizes = np.unique(np.unique(blocks.requests, return_counts=True)[1])
    if len(sizes) > 1:
        raise ValueError(f"the chunks hold {sizes.min()} to {sizes.max()} blocks: cut the prompt into equal chunks")
    return _by_tree(blocks, threshold)


def _by_tree(blocks: KvBlocks, threshold: float) -> Encoding:
    check_bound(threshold)
    leaves = [np.flatnonzero(blocks.requests == request) for request in np.unique(blocks.requests)]
    parts = []
    for layer in range(blocks.layers):
        components = (Component(Half.KEYS, layer, 0, blocks.heads), Component(Half.VALUES, layer, 0, blocks.heads))
        is_fused = _EXACT_LAYERS_AT_EACH_END <= layer < blocks.layers - _EXACT_LAYERS_AT_EACH_END and len(leaves) > 1
        parts.append(_layer(components, blocks, leaves, threshold) if is_fused else exact_part(components, blocks))
    return Encoding(
        tuple(parts),
        blocks.requests,
        blocks.places,
        blocks.layers,
        blocks.block_tokens,
        blocks.heads,
        blocks.head_dim,
    )


def _layer(
    components: tuple[Component, Component], blocks: KvBlocks, leaves: Sequence[Integers], threshold: float
) -> EncodedPart:
    arrays = [one.of(blocks) for one in components]
    keys, values = (directions(array) for array in arrays)
    root = _merged_tree([_leaf(keys, values, leaf) for leaf in leaves], threshold)
    table = np.empty(blocks.count, np.int64)
    table[root.blocks] = root.table
    # A right-hand representative near several left ones is averaged into each of them, and its blocks get the last.
    kept, table = np.unique(table, return_inverse=True)
    fused = root.is_mean[kept]
    encoded = []
    for component, array, rows in zip(components, arrays, (root.keys[kept], root.values[kept]), strict=True):
        scales = np.linalg.norm(flat(array), axis=1).astype(np.float32)
        means = rows.reshape(len(rows), *array.shape[1:]).copy()
        alone = ~fused[table]
        means[table[alone]], scales[alone] = array[alone], 1.0
        encoded.append(EncodedComponent(component, means, scales))
    return EncodedPart(table.astype(np.int64), fused, tuple(encoded))


def _leaf(keys: Floats, values: Floats, blocks: Integers) -> _Node:
    return _Node(keys[blocks], values[blocks], np.zeros(len(blocks), dtype=bool), blocks, np.arange(len(blocks)))


def _merged_tree(nodes: Sequence[_Node], threshold: float) -> _Node:
    if len(nodes) == 1:
        return nodes[0]
    half = len(nodes) // 2
    return _merged(_merged_tree(nodes[:half], threshold), _merged_tree(nodes[half:], threshold), threshold)


def _merged(left: _Node, right: _Node, threshold: float) -> _Node:
    near: NDArray[np.bool_] = left.keys @ right.keys.T > threshold
    for_left = np.arange(len(left.keys))
    fused, other_left = for_left[near.any(axis=1)], for_left[~near.any(axis=1)]
    other_right = np.flatnonzero(~near.any(axis=0))
    new_of_left, new_of_right = np.empty(len(left.keys), np.int64), np.empty(len(right.keys), np.int64)
    new_of_left[fused] = np.arange(len(fused))
    new_of_left[other_left] = len(fused) + np.arange(len(other_left))
    for number, one in enumerate(fused):
        new_of_right[near[one]] = number  # the last one stands
    new_of_right[other_right] = len(fused) + len(other_left) + np.arange(len(other_right))

    def together(ours: Floats, theirs: Floats) -> Floats:
        sums = ours[fused] + near[fused].astype(np.float32) @ theirs
        return np.concatenate([directions(sums), ours[other_left], theirs[other_right]])

    return _Node(
        together(left.keys, right.keys),
        together(left.values, right.values),
        np.concatenate([np.ones(len(fused), dtype=bool), left.is_mean[other_left], right.is_mean[other_right]]),
        np.concatenate([left.blocks, right.blocks]),
        np.concatenate([new_of_left[left.table], new_of_right[right.table]]),
    )
