"""Memory against quality: what encoding the KV of prompts frees, and what it does to the model's next tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from headway.fusion.encoding import Encoding, Half
from headway.fusion.joint_encoder import Granularity, directions, joint_encoding
from headway.fusion.kv_blocks import Floats, KvBlocks, blocks_of_prompts, flat
from headway.fusion.published_encoders import batch_fast_fusion
from headway.fusion.rotary_embedding import RotaryEmbedding
from headway.fusion.shared_prompts import PromptSizes, Tokens
from headway.fusion.unscaled_groups import unscaled_encoding


class ScoredModel(Protocol):
    """What is needed of a model; `CausalModel` is one."""

    def kv(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Floats, Floats]]:
        """Keys and values of each prompt, (layers, tokens, KV heads, head size)."""

    def log_probabilities(self, following: Sequence[Sequence[int]], keys: Floats, values: Floats) -> Floats:
        """(prompts, following tokens, vocabulary), given KV of (layers, prompts, tokens, KV heads, head size)."""

    def rotary(self) -> RotaryEmbedding:
        """How keys are turned by their positions."""


@dataclass(frozen=True, slots=True)
class Quality:
    """The next tokens of a model with approximate KV, beside those with exact KV.

    Attributes:
        perplexity: of the text's own next tokens.
        kl: mean Kullback–Leibler divergence of the next token's distribution from the exact one, in nats.
        same_greedy: share of places where the most likely token is the same, the text before being the same.
    """

    perplexity: float
    kl: float
    same_greedy: float


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One form at one bound.

    Attributes:
        form: its name in `FORMS`, or `rounded`.
        bound: the bound or threshold; of `rounded` the bits.
        fused_share: share of full blocks' memory freed, before scales and tables.
        stored_share: bytes kept ÷ bytes before, scales and tables counted.
        whole_share: the same of whole requests: the scored tokens after the prompt are in no full block, so exact.
        one_table_share: share of blocks freed in an engine with one block id for all layers.
        layer_shares: `fused_share` of each layer.
        quality: what it does to the model.
    """

    form: str
    bound: float
    fused_share: float
    stored_share: float
    whole_share: float
    one_table_share: float
    layer_shares: tuple[float, ...]
    quality: Quality


FORMS: dict[str, Callable[[KvBlocks, float, RotaryEmbedding | None], Encoding]] = {
    "joint-encoding": lambda blocks, bound, _: joint_encoding(blocks, bound),
    "any-place": lambda blocks, bound, rotary: joint_encoding(blocks, bound, rotary=rotary),
    "keys-alone": lambda blocks, bound, _: joint_encoding(
        blocks, bound, granularity=Granularity(exact_halves=frozenset({Half.VALUES}))
    ),
    "values-alone": lambda blocks, bound, _: joint_encoding(
        blocks, bound, granularity=Granularity(exact_halves=frozenset({Half.KEYS}))
    ),
    "halves-apart": lambda blocks, bound, _: joint_encoding(
        blocks, bound, granularity=Granularity(halves_together=False)
    ),
    "single-heads": lambda blocks, bound, _: joint_encoding(
        blocks, bound, granularity=Granularity(halves_together=False, heads_together=False)
    ),
    "all-layers": lambda blocks, bound, _: joint_encoding(
        blocks, bound, granularity=Granularity(layers_together=blocks.layers)
    ),
    "unscaled": lambda blocks, bound, _: unscaled_encoding(blocks, bound),
    "batch-fast-fusion": lambda blocks, bound, _: batch_fast_fusion(blocks, bound),
}


class PromptKv:
    """The KV of a set of prompts, cut into blocks, and what the model says with it as it is.

    Args:
        model: what the KV is of.
        prompts: `sizes.own_tokens` tokens each.
        sizes: how many of them are encoded, and how many scored.
    """

    def __init__(self, model: ScoredModel, prompts: Sequence[Tokens], sizes: PromptSizes) -> None:
        self._model, self._sizes = model, sizes
        self._following = [prompt[sizes.prompt_tokens :] for prompt in prompts]
        keys, values = zip(*model.kv([prompt[: sizes.prompt_tokens] for prompt in prompts]), strict=True)
        self.blocks = blocks_of_prompts(keys, values, sizes.block_tokens)
        self._exact = self._scores(self.blocks)
        self.quality = self._quality(self._exact)

    def point(self, form: str, bound: float) -> CurvePoint:
        """Encode with a form of `FORMS`, decode, and let the model go on.

        Raises:
            ValueError: the bound is outside (0, 1], or the form does not fit the model.
        """
        rotary = self._model.rotary() if form == "any-place" else None
        encoding = FORMS[form](self.blocks, bound, rotary)
        stored_share = encoding.sizes().stored_share
        return CurvePoint(
            form,
            bound,
            encoding.fused_share(),
            stored_share,
            self._whole_share(stored_share),
            encoding.free_blocks_with_one_table() / self.blocks.count,
            encoding.layer_shares(),
            self._quality(self._scores(encoding.decode())),
        )

    def rounded(self, bits: int) -> CurvePoint:
        """The control: nothing is shared, every number is rounded to a few bits."""
        stored_share = rounded_share(self.blocks, bits)
        return CurvePoint(
            "rounded",
            bits,
            0.0,
            stored_share,
            self._whole_share(stored_share),
            0.0,
            (0.0,) * self.blocks.layers,
            self._quality(self._scores(rounded(self.blocks, bits))),
        )

    def likeness(self) -> dict[Half, Floats]:
        """(layers, blocks): each block's best cosine with a block of another prompt at the same place."""
        found = {}
        for half, array in ((Half.KEYS, self.blocks.keys), (Half.VALUES, self.blocks.values)):
            best = np.full(array.shape[:2], -1, np.float32)
            for layer in range(self.blocks.layers):
                units = directions(flat(array[layer]))
                for place in np.unique(self.blocks.places):
                    here = np.flatnonzero(self.blocks.places == place)
                    cosines = units[here] @ units[here].T
                    np.fill_diagonal(cosines, -1)
                    best[layer, here] = cosines.max(axis=1)
            found[half] = best
        return found

    def _whole_share(self, stored_share: float) -> float:
        prompt, after = self._sizes.prompt_tokens, self._sizes.scored_tokens
        return (stored_share * prompt + after) / (prompt + after)

    def _scores(self, blocks: KvBlocks) -> Floats:
        shape = (blocks.layers, len(self._following), -1, blocks.heads, blocks.head_dim)
        return self._model.log_probabilities(self._following, blocks.keys.reshape(shape), blocks.values.reshape(shape))

    def _quality(self, scores: Floats) -> Quality:
        following = np.array(self._following)
        said = np.take_along_axis(scores[:, :-1], following[:, 1:, None], axis=2)
        exact = self._exact
        return Quality(
            float(np.exp(-said.mean(dtype=np.float64))),
            max(
                float((np.exp(exact) * (exact - scores)).sum(axis=2, dtype=np.float64).mean()), 0.0
            ),  # but for rounding
            float((scores.argmax(axis=2) == exact.argmax(axis=2)).mean()),
        )


def rounded(blocks: KvBlocks, bits: int) -> KvBlocks:
    """Keys rounded per block and channel, values per token and head, to 2^bits equal steps from least to largest.

    The axes are those of KIVI (Liu et al., arXiv 2402.02750).

    Raises:
        ValueError: the bits are not 1 to 8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits}: 1 to 8 are needed")
    return KvBlocks(_steps(blocks.keys, bits, 2), _steps(blocks.values, bits, 4), blocks.requests, blocks.places)


def rounded_share(blocks: KvBlocks, bits: int) -> float:
    """Bytes of the rounded form ÷ bytes of 16-bit numbers; each span's least value and step have 16 bits each."""
    of_keys, of_values = 32 / blocks.block_tokens, 32 / blocks.head_dim
    return (bits + (of_keys + of_values) / 2) / 16


def _steps(numbers: Floats, bits: int, axis: int) -> Floats:
    least, most = numbers.min(axis=axis, keepdims=True), numbers.max(axis=axis, keepdims=True)
    step = (most - least) / (2**bits - 1)
    step = np.where(step > 0, step, 1)
    return np.asarray(np.round((numbers - least) / step) * step + least, np.float32)
