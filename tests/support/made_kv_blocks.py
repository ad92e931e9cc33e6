"""KV made for tests: blocks near a few directions, so that some are alike and some are not."""

from __future__ import annotations

import numpy as np

from headway.fusion.kv_blocks import Floats, KvBlocks, blocks_of_prompts

LAYERS, BLOCK_TOKENS, HEADS, HEAD_DIM = 2, 4, 2, 4


def made_prompts(
    seed: int, lengths: list[int], noise: float, layers: int = LAYERS
) -> tuple[list[Floats], list[Floats]]:
    """Keys and values of prompts, each block one of three patterns, with noise."""
    drawn = np.random.default_rng(seed)
    blocks = -(-max([*lengths, 1]) // BLOCK_TOKENS)
    patterns = drawn.normal(size=(2, 3, layers, BLOCK_TOKENS, HEADS, HEAD_DIM))
    prompts: tuple[list[Floats], list[Floats]] = ([], [])
    for length in lengths:
        chosen = drawn.integers(3, size=blocks)
        lengths_of_blocks = drawn.uniform(0.5, 2, size=(blocks, 1, 1, 1, 1))
        for half in range(2):
            full = patterns[half, chosen] * lengths_of_blocks
            full = full + noise * drawn.normal(size=full.shape)
            tokens = full.transpose(1, 0, 2, 3, 4).reshape(layers, blocks * BLOCK_TOKENS, HEADS, HEAD_DIM)
            prompts[half].append(tokens[:, :length].astype(np.float32))
    return prompts


def made_blocks(seed: int, lengths: list[int], noise: float, layers: int = LAYERS) -> KvBlocks:
    """The full blocks of such prompts."""
    return blocks_of_prompts(*made_prompts(seed, lengths, noise, layers), BLOCK_TOKENS)
