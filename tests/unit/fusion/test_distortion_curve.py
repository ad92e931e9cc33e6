"""Memory against quality, on a model of one head and two layers that fits on a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from headway.fusion.distortion_curve import FORMS, PromptKv, rounded, rounded_share
from headway.fusion.encoding import Half
from headway.fusion.kv_blocks import Floats
from headway.fusion.rotary_embedding import RotaryEmbedding
from headway.fusion.shared_prompts import PromptSizes
from tests.support.made_kv_blocks import made_blocks

WORDS, WIDTH = 11, 8
SIZES = PromptSizes(prompts=4, prompt_tokens=24, scored_tokens=3, block_tokens=4)


class SmallModel:
    """Each layer's keys and values are fixed functions of the token and its position; their sum speaks."""

    def __init__(self) -> None:
        drawn = np.random.default_rng(0)
        self.tables = drawn.normal(size=(3, 2, WORDS, WIDTH)).astype(np.float32)  # keys, values, queries of each layer
        self.rotation = RotaryEmbedding.of_base(WIDTH, 50.0)

    def rotary(self) -> RotaryEmbedding:
        return self.rotation

    def kv(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Floats, Floats]]:
        found = []
        for prompt in prompts:
            at = np.arange(len(prompt))
            keys = self.rotation.turned(self.tables[0][:, prompt], at)
            found.append((keys[:, :, None], self.tables[1][:, prompt][:, :, None]))
        return found

    def log_probabilities(self, following: Sequence[Sequence[int]], keys: Floats, values: Floats) -> Floats:
        out = np.empty((len(following), len(following[0]), WORDS), np.float32)
        for number, tokens in enumerate(following):
            for index, token in enumerate(tokens):
                heard = sum(
                    self._heard(layer, token, keys[layer, number, :, 0], values[layer, number, :, 0])
                    for layer in (0, 1)
                )
                logits = self.tables[2][0] @ heard
                out[number, index] = logits - np.log(np.exp(logits).sum())
        return out

    def _heard(self, layer: int, token: int, keys: Floats, values: Floats) -> Floats:
        query = self.rotation.turned(self.tables[2][layer, token], np.array(len(keys)))
        powers = np.exp(keys @ query)
        return np.asarray(powers @ values / powers.sum(), np.float32)


def prompts(seed: int, *, alike: bool) -> list[list[int]]:
    drawn = np.random.default_rng(seed)
    first = drawn.integers(WORDS, size=SIZES.own_tokens).tolist()
    return [first if alike else drawn.integers(WORDS, size=SIZES.own_tokens).tolist() for _ in range(SIZES.prompts)]


def test_exact_kv_is_the_model_itself() -> None:
    measured = PromptKv(SmallModel(), prompts(0, alike=False), SIZES)
    assert (measured.quality.kl, measured.quality.same_greedy) == (0, 1)
    following = [prompt[SIZES.prompt_tokens :] for prompt in prompts(0, alike=False)]
    kv = SmallModel().kv([prompt[: SIZES.prompt_tokens] for prompt in prompts(0, alike=False)])
    said = SmallModel().log_probabilities(
        following, *(np.stack([pair[half] for pair in kv], axis=1) for half in (0, 1))
    )
    logs = [said[row, at, word] for row, words in enumerate(following) for at, word in enumerate(words[1:])]
    assert measured.quality.perplexity == pytest.approx(math.exp(-np.mean(logs)), rel=1e-5)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_prompts_that_are_the_same_are_kept_once(form: str) -> None:
    point = PromptKv(SmallModel(), prompts(1, alike=True), SIZES).point(form, 0.99)
    assert point.quality.kl < 1e-5
    assert point.quality.same_greedy == 1
    freed = {"batch-fast-fusion": 0.0, "keys-alone": 0.375, "values-alone": 0.375}.get(form, 0.75)
    # A published form leaves the first and the last two layers: here all. Any place may find more.
    assert point.fused_share >= freed - 1e-9
    assert point.fused_share == pytest.approx(np.mean(point.layer_shares))
    assert point.one_table_share == pytest.approx(freed) or form in ("any-place", "keys-alone", "values-alone")
    assert point.stored_share >= 1 - point.fused_share


def test_a_lower_bound_frees_more_and_costs_more() -> None:
    measured = PromptKv(SmallModel(), prompts(2, alike=False), SIZES)
    points = [measured.point("halves-apart", bound) for bound in (1.0, 0.8, 0.5)]
    assert points[0].fused_share <= points[1].fused_share < points[2].fused_share
    assert points[0].quality.kl < points[2].quality.kl
    assert points[2].quality.perplexity != measured.quality.perplexity


def test_likeness_is_the_best_cosine_at_the_same_place_in_another_prompt() -> None:
    same = PromptKv(SmallModel(), prompts(1, alike=True), SIZES).likeness()
    np.testing.assert_allclose(same[Half.KEYS], 1, atol=1e-5)
    measured = PromptKv(SmallModel(), prompts(3, alike=False), SIZES)
    blocks, found = measured.blocks, measured.likeness()[Half.VALUES]
    here, place, layer = 5, blocks.places[5], 1
    others = [b for b in range(blocks.count) if blocks.places[b] == place and b != here]
    one = blocks.values[layer, here].ravel()
    cosines = [
        one @ blocks.values[layer, b].ravel() / np.linalg.norm(one) / np.linalg.norm(blocks.values[layer, b])
        for b in others
    ]
    assert found[layer, here] == pytest.approx(max(cosines), abs=1e-5)


def test_more_bits_are_nearer_and_larger() -> None:
    blocks = made_blocks(0, [16, 16], 0.5)
    errors = [float(np.abs(rounded(blocks, bits).keys - blocks.keys).max()) for bits in range(1, 9)]
    assert all(more > less for more, less in pairwise(errors))
    spread = np.ptp(blocks.keys, axis=2).max()
    assert errors[3] <= spread / 15 / 2 * 1.001
    assert rounded_share(blocks, 4) == (4 + (32 / 4 + 32 / 4) / 2) / 16
    flat_blocks = made_blocks(0, [16], 0.0)
    flat_blocks.keys[:] = 3
    np.testing.assert_array_equal(rounded(flat_blocks, 2).keys, 3)
    with pytest.raises(ValueError, match="bits is 0: 1 to 8 are needed"):
        rounded(blocks, 0)
