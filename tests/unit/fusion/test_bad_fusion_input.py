"""Bad input: one sentence that names the field and the fix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from headway.fusion.block_store import BlockStore
from headway.fusion.encoded_attention import attend_encoded
from headway.fusion.encoders import encode
from headway.fusion.joint_encoder import Granularity, joint_encoding
from headway.fusion.kv_blocks import blocks_of_prompts, kv_blocks
from headway.fusion.rotary_embedding import RotaryEmbedding
from tests.support.made_kv_blocks import made_blocks

GOOD = made_blocks(0, [8, 8], 0.1)
ONES = np.ones((2, 3, 4, 2, 4))
PROMPT = np.ones((2, 8, 2, 4))


def a_store(bound: float = 0.9, blocks: int = 8) -> BlockStore:
    return BlockStore(2, 2, 4, block_tokens=4, blocks=blocks, bound=bound)


def a_full_store() -> BlockStore:
    held = a_store()
    held.add("r", PROMPT[:, :6], PROMPT[:, :6])
    return held


def a_fused_store() -> BlockStore:
    held = a_store()
    for name in "rs":
        held.add(name, PROMPT, PROMPT)
    assert held.fuse().freed
    return held


class Half16:
    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise TypeError("Got unsupported ScalarType BFloat16")


MISTAKES: list[tuple[Callable[[], object], str]] = [
    (lambda: kv_blocks(ONES[0], ONES[0], [0], [0]), r"keys have shape \(3, 4, 2, 4\): \(layers, blocks, block tokens"),
    (lambda: kv_blocks(ONES, ONES[:1], [0] * 3, [0] * 3), "both need the same"),
    (lambda: kv_blocks(ONES * np.nan, ONES, [0] * 3, [0] * 3), "keys holds NaN or infinity: leave such blocks out"),
    (lambda: kv_blocks(ONES, ONES * np.inf, [0] * 3, [0] * 3), "values holds NaN or infinity"),
    (lambda: kv_blocks(Half16(), ONES, [0] * 3, [0] * 3), r"keys does not convert to float32 .*float\(\)\.cpu"),
    (lambda: kv_blocks(ONES, ONES, [0] * 2, [0] * 3), r"requests has shape \(2,\).*one whole number per block"),
    (lambda: kv_blocks(ONES, ONES, [0] * 3, [0.5] * 3), "places has shape .* float64"),
    (lambda: kv_blocks(ONES, ONES, [0] * 3, [-1] * 3), "places has -1: a block's index in its prompt is 0 or more"),
    (lambda: blocks_of_prompts([PROMPT], [PROMPT], 0), "block_tokens is 0: at least 1 is needed"),
    (lambda: blocks_of_prompts([PROMPT], [], 4), "1 arrays of keys and 0 of values"),
    (lambda: blocks_of_prompts([], [], 4), "0 arrays of keys and 0 of values"),
    (lambda: blocks_of_prompts([PROMPT], [PROMPT[:, :5]], 4), "prompt 0 has keys of shape"),
    (
        lambda: blocks_of_prompts([PROMPT, PROMPT[:1]], [PROMPT, PROMPT[:1]], 4),
        "prompt 1 has shape .* of another model",
    ),
    *(
        (lambda bound=bound: joint_encoding(GOOD, bound), f"bound is {bound}: a cosine above 0 and at most 1")
        for bound in (0.0, -0.5, 1.01, float("nan"))
    ),
    (lambda: encode(GOOD, "batch-fast-fusion", 2.0), "bound is 2.0"),
    (lambda: encode(GOOD, "joint-encodings"), "encoder 'joint-encodings' is unknown: did you mean 'joint-encoding'"),
    (lambda: joint_encoding(GOOD, 0.9, weights=np.array([1])), "weights have shape"),
    (lambda: joint_encoding(GOOD, 0.9, granularity=Granularity(layers_together=0)), "layers_together is 0"),
    (
        lambda: joint_encoding(GOOD, 0.9, granularity=Granularity(exact_layers=frozenset({7}))),
        "exact_layers has 7: the model's layers are 0 to 1",
    ),
    (lambda: joint_encoding(GOOD, 0.9, rotary=RotaryEmbedding.of_base(8, 1e4)), "vectors are 4 wide: this rotary"),
    (lambda: RotaryEmbedding.of_base(5, 1e4), "head size is 5: rotary embedding needs an even one"),
    (lambda: RotaryEmbedding.of_base(4, 0.0), "the base of the rotary embedding is 0.0"),
    (lambda: attend_encoded(joint_encoding(GOOD, 0.9), 0, 0, np.ones((1, 3, 4))), "a multiple of 2 query heads"),
    (lambda: attend_encoded(joint_encoding(GOOD, 0.9), 5, 0, np.ones((1, 2, 4))), "request 5 has no full block"),
    (lambda: a_store(bound=0.0), "bound is 0.0"),
    (lambda: a_store(blocks=0), "blocks is 0: at least 1 is needed"),
    (lambda: a_store().add("r", PROMPT, PROMPT[:, :2]), r"both need \(2, tokens, 2, 4\)"),
    (lambda: a_store().add("r", PROMPT * np.nan, PROMPT), "keys holds NaN"),
    (lambda: a_full_store().add("r", PROMPT, PROMPT), "request 'r' is already stored"),
    (lambda: a_full_store().append("x", PROMPT[:, 0], PROMPT[:, 0]), "request 'x' is not stored: add it first"),
    (lambda: a_full_store().append("r", PROMPT, PROMPT), r"both need \(2, 2, 4\)"),
    (lambda: a_full_store().share_prefix("r", "s", 2), "request 'r' has 1 full blocks to share"),
    (lambda: a_full_store().share_prefix("r", "r", 1), "request 'r' is already stored"),
    (
        lambda: a_fused_store().share_prefix("r", "t", 1, may_fuse=False),
        "request 't' is to stay exact, and blocks of request 'r' are fused: add it with its own KV",
    ),
    (lambda: a_full_store().publish("r", 1), "block 1 of request 'r' is not a full block"),
    (lambda: a_full_store().write("r", 2, PROMPT, PROMPT), "request 'r' has no block 2: its blocks are 0 to 1"),
    (
        lambda: a_full_store().write("r", 1, PROMPT[:, :4], PROMPT[:, :4]),
        r"block 1 of request 'r' needs \(2, 2, 2, 4\)",
    ),
    (lambda: a_full_store().fuse(0), "most_blocks is 0"),
]


@pytest.mark.parametrize(("wrong", "sentence"), MISTAKES, ids=[sentence[:40] for _, sentence in MISTAKES])
def test_a_mistake_is_named_in_one_sentence(wrong: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        wrong()
    assert "\n" not in str(raised.value)
