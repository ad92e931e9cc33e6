"""Which representative a new block may join: one matrix product per component and place, bounded per step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headway.fusion.kv_blocks import Floats, Integers


def nearest_representatives(
    new: Sequence[Floats], kept: Sequence[Floats], new_places: Integers | None, kept_places: Integers | None
) -> tuple[Integers, Floats]:
    """The best representative of each new block, judged by its worst component.

    Args:
        new: one array per component, (new blocks, numbers), rows of length 1.
        kept: the same for representatives, (representatives, numbers); at least one.
        new_places: (new blocks,), if only equal places may be fused; else None, as `kept_places`.
        kept_places: (representatives,).

    Returns:
        (new blocks,) the representative's index, and (new blocks,) the least cosine over the components; −1 where no
        representative has the place.
    """
    if new_places is None or kept_places is None:
        return _nearest(new, kept)
    best, least = np.zeros(len(new[0]), np.int64), np.full(len(new[0]), -1, np.float32)
    for place in np.unique(new_places):
        ours, theirs = np.flatnonzero(new_places == place), np.flatnonzero(kept_places == place)
        if theirs.size:
            found, least[ours] = _nearest([rows[ours] for rows in new], [rows[theirs] for rows in kept])
            best[ours] = theirs[found]
    return best, least


def _nearest(new: Sequence[Floats], kept: Sequence[Floats]) -> tuple[Integers, Floats]:
    least = np.minimum.reduce([rows @ others.T for rows, others in zip(new, kept, strict=True)])
    best = least.argmax(axis=1).astype(np.int64)
    return best, least[np.arange(len(best)), best]
