"""Prompts are counted where they can be; the tokenizer is a real one, made here from the words of a sentence."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from headway.gateway.openai import prompt_count
from headway.gateway.openai.prompt_count import Counted, PromptCount
from headway.gateway.openai.request_body import Body, read_body
from headway.gateway.openai.token_ratio import TokenRatio


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    """One token a word, and one before each prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({"[BOS]": 0, "[UNK]": 1, "word": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 0)])
    made.enable_truncation(3)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


def body(**fields: Any) -> Body:
    read = read_body(json.dumps({"model": "m", **fields}).encode())
    assert read is not None
    return read


@pytest.mark.parametrize(
    ("fields", "counted"),
    [
        ({"prompt": "word " * 9}, Counted(10, 0)),
        ({"prompt": ["word word", "word"]}, Counted(5, 0)),
        ({"input": "word word"}, Counted(3, 0)),
        ({"prompt": [5, 6, 7]}, Counted(3, 0)),
        ({"prompt": [[5, 6], [7]]}, Counted(3, 0)),
        ({"messages": [{"role": "user", "content": "word word"}]}, Counted(2, 1)),
        (
            {"messages": [{"role": "s", "content": [{"type": "text", "text": "word word"}, {"type": "x"}]}, {}, 5]},
            Counted(2, 3),
        ),
        ({"messages": 5}, None),
        ({"prompt": {"odd": 1}}, None),
        ({"prompt": 7}, None),
        ({}, None),
    ],
)
def test_what_is_counted(tokenizer_json: Path, fields: dict[str, Any], counted: Counted | None) -> None:
    count = PromptCount({"m": str(tokenizer_json)}, TokenRatio())
    assert count.at_once(body(**fields), 400)[1] == counted


def test_without_a_tokenizer_only_ids_are_counted_and_the_rest_is_the_ratios() -> None:
    count = PromptCount({}, TokenRatio())
    assert count.at_once(body(prompt="x" * 398), 1_000) == (100, None)
    assert count.at_once(None, 400) == (100, None)
    assert count.at_once(body(prompt=[1, 2]), 400) == (2, Counted(2, 0))
    ids = body(prompt=[1, 2])
    count.learn(ids, Counted(2, 0), 2)
    assert count.at_once(body(prompt="x" * 398), 1_000) == (100, None), "ids say nothing of how long words are"


def test_what_a_template_adds_is_learnt(tokenizer_json: Path) -> None:
    count = PromptCount({"m": str(tokenizer_json)}, TokenRatio())
    chat = body(messages=[{"role": "user", "content": "word"}, {"role": "user", "content": "word"}])
    tokens, counted = count.at_once(chat, 0)
    assert (tokens, counted) == (12, Counted(2, 2))
    count.learn(chat, counted, 2 + 2 * 9)
    assert count.at_once(chat, 0)[0] == 20


def test_a_long_prompt_is_counted_in_a_thread_and_not_waited_for_too_long(
    tokenizer_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def day() -> list[Counted | None]:
        monkeypatch.setattr(prompt_count, "WAIT_SECONDS", 30.0)
        count = PromptCount({"m": str(tokenizer_json)}, TokenRatio())
        long = body(prompt="word " * 2_000)
        assert count.at_once(long, 0) == (2_500, None)
        assert count.takes_long(long, None)
        heard: asyncio.Queue[Counted | None] = asyncio.Queue()
        count.later(long, heard.put_nowait)
        found = [await heard.get()]
        monkeypatch.setattr(prompt_count, "WAIT_SECONDS", 0.0)
        longer = body(prompt="word " * 200_000)
        for _ in range(3):
            count.later(longer, heard.put_nowait)
        found += [await heard.get() for _ in range(3)]
        count.close()
        return found

    first, *others = asyncio.run(day())
    assert first == Counted(2_001, 0)
    assert others == [None] * 3


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizers\.m: there is no file .*; name the model's tokenizer\.json"):
        PromptCount({"m": str(tmp_path / "none.json")}, TokenRatio())
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizers\.m: .*bad\.json is no tokenizer\.json"):
        PromptCount({"m": str(bad)}, TokenRatio())
