"""Prompts are counted where they can be; the tokenizer is a real one, made here from the words of a sentence."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from headway.gateway.openai import prompt_count
from headway.gateway.openai.prompt_count import NO_PROMPT, Counted, PromptCount
from headway.gateway.openai.prompt_media import NO_MEDIA, Media
from headway.gateway.openai.request_body import Body, read_body
from headway.gateway.openai.token_ratio import TokenRatio
from tests.support.gateway_requests import counted_at_once


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
        (
            {"messages": [{"content": [{"text": 5}, {"text": {}}, 7]}, {"content": {"image": "word"}}]},
            Counted(0, 2),
        ),
        ({"messages": 5}, None),
        ({"prompt": {"odd": 1}}, None),
        ({"prompt": 7}, None),
        ({}, None),
    ],
)
def test_what_is_counted(tokenizer_json: Path, fields: dict[str, Any], counted: Counted | None) -> None:
    count = PromptCount({"m": str(tokenizer_json)}, TokenRatio())
    assert counted_at_once(count, body(**fields), 400)[1] == counted


def test_without_a_tokenizer_only_ids_are_counted_and_the_rest_is_the_ratios() -> None:
    count = PromptCount({}, TokenRatio())
    assert counted_at_once(count, body(prompt="x" * 398), 1_000) == (100, None)
    assert count.at_once(None, NO_PROMPT, 400) == (100, None)
    assert counted_at_once(count, body(prompt=[1, 2]), 400) == (2, Counted(2, 0))
    ids = body(prompt=[1, 2])
    count.learn("m", count.read(ids), Counted(2, 0), 2)
    assert counted_at_once(count, body(prompt="x" * 398), 1_000) == (100, None), "ids say nothing of how long words are"


def test_what_a_template_adds_is_learnt(tokenizer_json: Path) -> None:
    count = PromptCount({"m": str(tokenizer_json)}, TokenRatio())
    chat = body(messages=[{"role": "user", "content": "word"}, {"role": "user", "content": "word"}])
    tokens, counted = counted_at_once(count, chat, 0)
    assert (tokens, counted) == (12, Counted(2, 2))
    count.learn("m", count.read(chat), counted, 2 + 2 * 9)
    assert counted_at_once(count, chat, 0)[0] == 20


def test_a_long_prompt_is_counted_in_a_thread(tokenizer_json: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_count, "WAIT_SECONDS", 30.0)

    async def count_once() -> Counted | None:
        count = PromptCount({"m": str(tokenizer_json)}, TokenRatio())
        long = body(prompt="word " * 2_000)
        assert counted_at_once(count, long, 0) == (2_500, None)
        assert count.takes_long(long, count.read(long), None)
        heard: asyncio.Queue[Counted | None] = asyncio.Queue()
        count.later(long, count.read(long), heard.put_nowait)
        counted = await heard.get()
        count.close()
        return counted

    assert asyncio.run(count_once()) == Counted(2_001, 0)


@pytest.mark.parametrize(
    ("fields", "counted"),
    [
        ({"messages": [{}] * 4_096}, Counted(0, 4_096)),
        ({"messages": [{}] * 4_097}, None),
        ({"prompt": [""] * 4_097}, None),
        ({"messages": [{"content": [{"text": "word"}] * 2_000}] * 2}, Counted(4_000, 2)),
        ({"messages": [{"content": [{"text": "word"}] * 2_500}] * 2}, None),
    ],
)
def test_a_prompt_of_too_many_texts_is_estimated(
    tokenizer_json: Path, fields: dict[str, Any], counted: Counted | None
) -> None:
    tokenizer = PromptCount({"m": str(tokenizer_json)}, TokenRatio())._tokenizers["m"]
    assert prompt_count._count(tokenizer, body(**fields), NO_MEDIA) == counted


def test_only_prompts_whose_values_are_soon_read_are_counted(tokenizer_json: Path) -> None:
    count = PromptCount({"m": str(tokenizer_json)}, TokenRatio())
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    for fields, takes_long in (
        ({"prompt": "x" * 500_000}, True),
        ({"prompt": "x" * 600_000}, False),
        ({"messages": [{"content": [image, {"type": "text", "text": "word " * 1_000}]}]}, True),
        ({"messages": [{"content": [image]}, *[{}] * 200_000]}, False),
    ):
        one = body(**fields)
        assert count.takes_long(one, count.read(one), None) is takes_long


def test_a_count_that_takes_too_long_is_not_waited_for(tokenizer_json: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_count = threading.Event()
    count_now = prompt_count._count

    def count_when_allowed(tokenizer: prompt_count.Tokenizer, body: Body, media: Media) -> Counted | None:
        assert may_count.wait(60)
        return count_now(tokenizer, body, media)

    monkeypatch.setattr(prompt_count, "_count", count_when_allowed)

    async def count_thrice() -> list[Counted | None]:
        count = PromptCount({"m": str(tokenizer_json)}, TokenRatio())
        heard: asyncio.Queue[Counted | None] = asyncio.Queue()
        for _ in range(3):
            long = body(prompt="word " * 2_000)
            count.later(long, count.read(long), heard.put_nowait)
        answers = [await heard.get() for _ in range(3)]
        may_count.set()
        count.close()
        return answers

    assert asyncio.run(count_thrice()) == [None] * 3


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"tokenizers\.m: the file .* does not exist; name the model's tokenizer\.json"
    ):
        PromptCount({"m": str(tmp_path / "none.json")}, TokenRatio())
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizers\.m: .*bad\.json is not a valid tokenizer\.json"):
        PromptCount({"m": str(bad)}, TokenRatio())
