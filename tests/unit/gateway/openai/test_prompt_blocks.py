"""Keys of a prompt's KV blocks: made where its token ids are known, and equal to those of an engine's events."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from headway.gateway.openai.endpoints import endpoint_of
from headway.gateway.openai.prompt_blocks import CacheShape
from headway.gateway.openai.prompt_count import PromptCount, PromptFacts
from headway.gateway.openai.request_body import Body, read_body
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.token_blocks import PromptPrefixes, keys_in_steps, packed

SIZE = 4


def count_with(sizes: Collection[int] = (SIZE,), adapter: str = "", files: dict[str, str] | None = None) -> PromptCount:
    return PromptCount(files or {}, TokenRatio(), cache_shape=lambda model: CacheShape(sizes, adapter))


def body(path: str = "/v1/completions", **fields: Any) -> Body:
    read = read_body(json.dumps({"model": "m", **fields}).encode(), endpoint_of(path))
    assert read is not None
    return read


def facts_of(count: PromptCount, one: Body) -> PromptFacts:
    """Read at once and in steps, with one result."""
    at_once = count.read(one)
    *_, stepped = count.read_in_steps(one)
    assert at_once == stepped
    assert keys_of(at_once) == keys_of(stepped)
    return at_once


def keys_of(facts: PromptFacts) -> dict[int, list[int]]:
    hashes = facts.hashes
    return {size: list(keys) for size, keys in hashes.keys.items()} if isinstance(hashes, PromptPrefixes) else {}


def keys(tokens: list[int], size: int = SIZE, adapter: str = "", salt: str = "") -> list[int]:
    *_, found = keys_in_steps(packed(tokens), size, adapter, salt)
    return list(found)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("length", [1, 4, 5, 9, 40_000])
def test_token_ids_have_the_keys_of_their_blocks(nested: bool, length: int) -> None:
    ids = [number % 70_000 for number in range(length)]
    found = keys_of(facts_of(count_with((SIZE, 16)), body(prompt=[ids] if nested else ids)))
    assert found == {SIZE: keys(ids), 16: keys(ids, 16)}
    assert len(found[SIZE]) == (length - 1) // SIZE


def test_salts_and_adapters_are_in_the_keys() -> None:
    ids = list(range(20))
    salted = keys_of(facts_of(count_with(), body(prompt=ids, cache_salt="s")))[SIZE]
    assert salted == keys(ids, salt="s")
    assert not set(salted) & set(keys(ids))
    assert keys_of(facts_of(count_with(adapter="a"), body(prompt=ids)))[SIZE] == keys(ids, adapter="a")
    for odd in (None, 5, ""):
        assert keys_of(facts_of(count_with(), body(prompt=ids, cache_salt=odd)))[SIZE] == keys(ids)


def test_a_salt_keeps_equal_texts_apart() -> None:
    text = "word " * 1_000
    bare, salted, again = (
        facts_of(count_with(()), body(prompt=text, **salt)).hashes
        for salt in ({}, {"cache_salt": "s"}, {"cache_salt": "s"})
    )
    assert not set(bare) & set(salted)
    assert salted == again


@pytest.mark.parametrize(
    "prompt",
    [[[1, 2], [3, 4]], [1, -2, 3], [1, 2**32], [1, 2.5], [1, "x"], [5, [6]], "text", ["a", "b"], [], {"a": 1}, 7],
    ids=str,
)
def test_of_anything_else_no_tokens_are_known(prompt: object) -> None:
    count = count_with()
    one = body(prompt=prompt)
    assert keys_of(facts_of(count, one)) == {}
    assert keys_of(facts_of(count_with(()), body(prompt=[1, 2, 3, 4, 5]))) == {}
    assert keys_of(facts_of(count, body("/v1/chat/completions", messages=[{"role": "user", "content": "x"}]))) == {}


class TestTexts:
    @pytest.fixture
    def count(self, tmp_path: Path) -> PromptCount:
        """One token a word, and one before each prompt."""
        tokenizers = pytest.importorskip("tokenizers")
        words = {"[BOS]": 0, "[UNK]": 1, **{f"w{number}": number for number in range(2, 30)}}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        made.post_processor = tokenizers.processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 0)])
        made.save(str(tmp_path / "tokenizer.json"))
        return count_with(files={"m": str(tmp_path / "tokenizer.json")})

    def counted(self, count: PromptCount, one: Body) -> PromptFacts:
        facts = count.read(one)
        count.at_once(one, facts, 400)
        return facts

    def test_a_text_has_the_keys_of_its_tokens(self, count: PromptCount) -> None:
        facts = self.counted(count, body(prompt="w5 w6 w7 w8 w9"))
        assert keys_of(facts)[SIZE] == keys([0, 5, 6, 7, 8, 9])
        assert keys_of(self.counted(count, body(prompt=["w5 w6 w7 w8 w9"])))[SIZE] == keys([0, 5, 6, 7, 8, 9])
        assert keys_of(self.counted(count, body(prompt=["w5 w6 w7", "w8 w9"]))) == {}
        assert keys_of(self.counted(count, body("/v1/chat/completions", messages=[{"content": "w5 " * 9}]))) == {}

    def test_a_tokenizer_that_counts_otherwise_than_the_replica_is_not_believed(self, count: PromptCount) -> None:
        one = body(prompt="w5 w6 w7 w8 w9")
        facts = self.counted(count, one)
        counted = count.at_once(one, facts, 400)[1]
        count.learn("m", facts, counted, 7)
        assert keys_of(self.counted(count, one)) == {}
        count.learn("m", facts, counted, 0)  # a replica that says nothing
        assert keys_of(self.counted(count, one)) == {}
        count.learn("m", facts, counted, 6)
        assert keys_of(self.counted(count, one)) != {}
        ids = body(prompt=[5, 6, 7, 8, 9])  # truncated by the replica: no fault of the tokenizer
        facts = self.counted(count, ids)
        count.learn("m", facts, count.at_once(ids, facts, 400)[1], 3)
        assert keys_of(self.counted(count, one)) != {}
