"""The encoders by name."""

from __future__ import annotations

from collections.abc import Callable

from headway.config.nearest_name import nearest
from headway.fusion.encoding import Encoding
from headway.fusion.joint_encoder import joint_encoding
from headway.fusion.kv_blocks import KvBlocks
from headway.fusion.published_encoders import batch_fast_fusion, chunks_fast_fusion

ENCODERS: dict[str, Callable[[KvBlocks, float], Encoding]] = {
    "joint-encoding": joint_encoding,
    "batch-fast-fusion": batch_fast_fusion,
    "chunks-fast-fusion": chunks_fast_fusion,
}


def encode(blocks: KvBlocks, encoder: str = "joint-encoding", bound: float = 0.9) -> Encoding:
    """Encode blocks with an encoder's own defaults.

    Args:
        blocks: full blocks of several requests (of chunks of one, for `chunks-fast-fusion`).
        encoder: a name in `ENCODERS`.
        bound: least cosine with the final representative for `joint-encoding`, in (0, 1]; the published forms compare
            pairs with it.

    Raises:
        ValueError: the encoder is unknown, or its own reasons.
    """
    if encoder not in ENCODERS:
        raise ValueError(f"encoder {encoder!r} is unknown{nearest(encoder, ENCODERS)}")
    return ENCODERS[encoder](blocks, bound)
