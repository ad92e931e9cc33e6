"""Sets of prompts made of real texts, by what they share: nothing, a template, or documents.

No set shares its first block, so a prefix cache finds nothing in any of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Tokens = list[int]


@dataclass(frozen=True, slots=True)
class PromptSizes:
    """How much text a measurement takes.

    Attributes:
        prompts: prompts in a set.
        prompt_tokens: tokens of each whose KV is encoded, a multiple of `block_tokens`.
        scored_tokens: tokens after them, on which the model is judged.
        block_tokens: tokens in a block.
    """

    prompts: int
    prompt_tokens: int
    scored_tokens: int
    block_tokens: int

    def __post_init__(self) -> None:
        if self.prompts < 2:
            raise ValueError(f"prompts is {self.prompts}: at least 2 are needed to share anything")
        if (
            self.block_tokens < 1
            or self.prompt_tokens % self.block_tokens
            or self.prompt_tokens < 6 * self.block_tokens
        ):
            raise ValueError(
                f"prompt_tokens is {self.prompt_tokens}: a multiple of the block's {self.block_tokens} tokens, "
                f"and at least 6 blocks, is needed"
            )
        if self.scored_tokens < 2:
            raise ValueError(f"scored_tokens is {self.scored_tokens}: at least 2 are needed")

    @property
    def own_tokens(self) -> int:
        """Tokens of its own text that a prompt can need."""
        return self.prompt_tokens + self.scored_tokens


def apart(own: Sequence[Tokens], shared: Sequence[Tokens], sizes: PromptSizes) -> list[Tokens]:
    """Prompts that share nothing."""
    return [tokens[: sizes.own_tokens] for tokens in own]


def with_template(own: Sequence[Tokens], shared: Sequence[Tokens], sizes: PromptSizes) -> list[Tokens]:
    """An own beginning, such as a name and a date, then a template at equal places, then own text.

    Of 12 blocks the beginning has 2 and the template 7.
    """
    blocks = sizes.prompt_tokens // sizes.block_tokens
    beginning = max(blocks // 6, 1) * sizes.block_tokens
    template = shared[0][: blocks * 7 // 12 * sizes.block_tokens]
    return [_joined(tokens, beginning, template, sizes) for tokens in own]


def with_documents(own: Sequence[Tokens], shared: Sequence[Tokens], sizes: PromptSizes) -> list[Tokens]:
    """An own beginning, then three of four documents in an order of its own, then own text.

    Of 12 blocks the beginning has 1 and each document 3, so a document begins at one of three places.
    """
    blocks = sizes.prompt_tokens // sizes.block_tokens
    beginning, length = max(blocks // 12, 1) * sizes.block_tokens, blocks // 4 * sizes.block_tokens
    prompts = []
    for number, tokens in enumerate(own):
        chosen = random.Random(number).sample(range(4), 3)
        prompts.append(_joined(tokens, beginning, [token for one in chosen for token in shared[one][:length]], sizes))
    return prompts


PROMPT_SETS: dict[str, Callable[[Sequence[Tokens], Sequence[Tokens], PromptSizes], list[Tokens]]] = {
    "apart": apart,
    "template": with_template,
    "documents": with_documents,
}


def prompt_set(name: str, texts: Sequence[Tokens], sizes: PromptSizes, *, seed: int = 0) -> list[Tokens]:
    """Prompts of one set, `sizes.own_tokens` tokens each.

    Args:
        name: in `PROMPT_SETS`.
        texts: the tokens of each text.
        sizes: how much of them.
        seed: which spans of the texts, and in which order.

    Raises:
        ValueError: the texts are too short; says how many spans there are and how many are needed.
    """
    spans = [
        tokens[start : start + sizes.own_tokens]
        for tokens in texts
        for start in range(0, len(tokens) - sizes.own_tokens + 1, sizes.own_tokens)
    ]
    needed = sizes.prompts + 4
    if len(spans) < needed:
        raise ValueError(
            f"the texts hold {len(spans)} spans of {sizes.own_tokens} tokens and {needed} are needed: "
            "name more texts, or ask for fewer or shorter prompts"
        )
    chosen = random.Random(seed).sample(spans, needed)
    return PROMPT_SETS[name](chosen[: sizes.prompts], chosen[sizes.prompts :], sizes)


def _joined(own: Tokens, beginning: int, shared: Tokens, sizes: PromptSizes) -> Tokens:
    return (own[:beginning] + shared + own[beginning:])[: sizes.own_tokens]
