"""Prompts of each set share what they say, where they say it."""

from __future__ import annotations

import pytest

from headway.fusion.shared_prompts import PROMPT_SETS, PromptSizes, Tokens, prompt_set

SIZES = PromptSizes(prompts=5, prompt_tokens=48, scored_tokens=6, block_tokens=4)
TEXTS = [list(range(1000 * text, 1000 * text + 120)) for text in range(1, 8)]


def made(name: str, seed: int = 0) -> list[Tokens]:
    return prompt_set(name, TEXTS, SIZES, seed=seed)


def blocks(prompt: Tokens) -> list[tuple[int, ...]]:
    return [tuple(prompt[start : start + 4]) for start in range(0, SIZES.prompt_tokens, 4)]


@pytest.mark.parametrize("name", sorted(PROMPT_SETS))
def test_no_prefix_is_shared_and_each_has_its_length(name: str) -> None:
    prompts = made(name)
    assert [len(prompt) for prompt in prompts] == [54] * 5
    assert len({blocks(prompt)[0] for prompt in prompts}) == 5
    assert len({tuple(prompt[48:]) for prompt in prompts}) == 5
    assert made(name) == prompts != made(name, seed=1)


def test_prompts_apart_share_nothing() -> None:
    everything = [token for prompt in made("apart") for token in prompt]
    assert len(set(everything)) == len(everything)


def test_a_template_is_at_equal_places() -> None:
    shared = [len({blocks(prompt)[place] for prompt in made("template")}) == 1 for place in range(12)]
    assert shared == [False] * 2 + [True] * 7 + [False] * 3


def test_documents_are_in_orders_of_their_own() -> None:
    prompts = [blocks(prompt) for prompt in made("documents")]
    documents = [tuple(prompt[1 + 3 * at] for at in range(3)) for prompt in prompts]
    assert len({document for one in documents for document in one}) == 4
    assert len(set(documents)) > 1
    whole = {(prompt[at], prompt[at + 1], prompt[at + 2]) for prompt in prompts for at in (1, 4, 7)}
    assert len(whole) == 4


def test_texts_that_are_too_short() -> None:
    with pytest.raises(ValueError, match="the texts hold 2 spans of 54 tokens and 9 are needed: name more texts"):
        prompt_set("apart", TEXTS[:1], SIZES)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ((1, 48, 6, 4), "prompts is 1: at least 2"),
        ((5, 47, 6, 4), "prompt_tokens is 47: a multiple of the block's 4 tokens"),
        ((5, 20, 6, 4), "prompt_tokens is 20: .* at least 6 blocks"),
        ((5, 48, 1, 4), "scored_tokens is 1"),
    ],
)
def test_sizes_that_do_not_fit(sizes: tuple[int, int, int, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PromptSizes(*sizes)
