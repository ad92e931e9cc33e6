"""Rotary position embedding: how keys are turned by their position, and turned back.

RoPE (Su et al., arXiv 2104.09864) turns each pair of a key's numbers by position × frequency. Turned back by the
position of its block's first token, a key depends only on its offset in the block, so blocks at other places can be
compared. Cosines between blocks are then those of keys without RoPE, because both are turned by the same offsets.

The pairs are (i, i + head size / 2), as Llama, Qwen and Mistral have them in Hugging Face checkpoints and in vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.fusion.kv_blocks import Floats, Integers


@dataclass(frozen=True, slots=True)
class RotaryEmbedding:
    """Frequencies of one model.

    Attributes:
        frequencies: (head size / 2,), radians per position.
    """

    frequencies: NDArray[np.float64]

    @classmethod
    def of_base(cls, head_dim: int, base: float) -> RotaryEmbedding:
        """The plain form: base^(−2i / head size), without the scaling that long-context models add.

        Raises:
            ValueError: the head size is odd, or the base is not above 0.
        """
        if head_dim < 2 or head_dim % 2:
            raise ValueError(f"head size is {head_dim}: rotary embedding needs an even one")
        if not base > 0:
            raise ValueError(f"the base of the rotary embedding is {base}: it needs to be above 0")
        return cls(base ** (-np.arange(0, head_dim, 2) / head_dim))

    def turned(self, vectors: Floats, positions: Integers) -> Floats:
        """Vectors turned by positions, negative ones back.

        Args:
            vectors: (…, head size).
            positions: a shape that broadcasts to the leading dimensions of `vectors`.
        """
        half = len(self.frequencies)
        if vectors.shape[-1] != 2 * half:
            raise ValueError(f"vectors are {vectors.shape[-1]} wide: this rotary embedding is for {2 * half}")
        angles = np.asarray(positions)[..., None] * self.frequencies
        cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        first, second = vectors[..., :half], vectors[..., half:]
        return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
