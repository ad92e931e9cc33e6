"""What is no text in a prompt is counted as what it is, and teaches nothing about text."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from headway.gateway.openai.endpoints import CHAT, MESSAGES, RESPONSES
from headway.gateway.openai.prompt_count import NO_PROMPT, PromptCount
from headway.gateway.openai.prompt_media import NO_MEDIA, image_size, media_of
from headway.gateway.openai.request_body import Body, read_body
from headway.gateway.openai.token_ratio import TokenRatio
from tests.support.gateway_requests import counted_at_once

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 1024, 768) + bytes(100_000)
HEADS = {
    "PNG": PNG,
    "GIF": b"GIF89a" + struct.pack("<HH", 1024, 768),
    "JPEG": b"\xff\xd8\xff\xe0\0\x10" + bytes(14) + b"\xff\xc2\0\x11\x08" + struct.pack(">HH", 768, 1024),
    "WebP": b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 1024, 768),
    "WebP, lossless": b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", 1023 | 767 << 14),
    "WebP, extended": b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\0\0\0\0" + b"\xff\x03\0\xff\x02\0",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_an_images_size_stands_in_its_head(head: bytes) -> None:
    assert image_size(head) == (1024, 768)
    for end in range(len(head[:64]) - 1):
        assert image_size(head[:end]) in (None, (1024, 768))


def test_anything_else_has_no_size() -> None:
    for head in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"%PDF", PNG[:16] + bytes(8), b"\xff\xd8\xff\xe0\0\0" * 9):
        assert image_size(head) is None


def data_url(content: bytes = PNG) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def chat(*parts: Any, model: str = "m") -> Body:
    content = [{"type": "text", "text": "what is it?"}, *parts]
    body = read_body(json.dumps({"model": model, "messages": [{"role": "user", "content": content}]}).encode(), CHAT)
    assert body is not None
    return body


PARTS = {
    "a data URL": {"type": "image_url", "image_url": {"url": data_url()}},
    "a web address": {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
    "audio": {"type": "input_audio", "input_audio": {"data": "A" * 200_000, "format": "wav"}},
    "audio by address": {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64," + "A" * 200_000}},
    "video": {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + "A" * 200_000}},
    "a file": {"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 200_000}},
    "of the Responses API": {"type": "input_image", "image_url": data_url()},
    "of Anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 200_000}},
    "a tool's": {
        "type": "tool_result",
        "content": [{"type": "image", "source": {"type": "base64", "data": "A" * 200_000}}],
    },
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
def test_each_kind_of_media_counts_as_the_default(part: object) -> None:
    tokens, counted = counted_at_once(PromptCount({}, TokenRatio(), 700), chat(part), 0)
    assert counted is None
    assert 700 < tokens < 760
    assert counted_at_once(PromptCount({}, TokenRatio(), 700), chat(part, part), 0)[0] > 1_400


TEXTS = {
    "text": {"type": "text", "text": "base64," + "x" * 200_000},
    "a document of text": {"type": "document", "source": {"type": "text", "data": "x" * 200_000}},
    "a call of a tool": {"type": "tool_use", "input": {"image": "x" * 200_000}},
}


@pytest.mark.parametrize("part", TEXTS.values(), ids=TEXTS.keys())
def test_text_stays_text(part: object) -> None:
    body = chat(part)
    assert media_of(body.prompt_bytes, "m", 700) == NO_MEDIA
    assert counted_at_once(PromptCount({}, TokenRatio()), body, 0)[0] > 50_000


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", round(1024 / 28) * round(768 / 28) + 2),
        ("Qwen/Qwen3-VL-8B", 32 * 24 + 2),
        ("mistralai/Pixtral-12B-2409", 48 * (64 + 1)),
        ("google/gemma-3-27b-it", 256),
        ("llava-hf/llava-1.5-7b-hf", 576),
        ("unknown", 700),
    ],
)
def test_an_image_counts_by_the_rule_of_the_models_family(model: str, tokens: int) -> None:
    body = chat({"type": "image_url", "image_url": {"url": data_url()}}, model=model)
    assert media_of(body.prompt_bytes, model, 700).tokens == tokens
    huge = chat({"type": "image_url", "image_url": {"url": data_url(PNG[:16] + b"\x7f\xff\xff\xff" * 2)}}, model=model)
    assert media_of(huge.prompt_bytes, model, 700).tokens <= 16_386


@pytest.mark.parametrize(
    "prompt",
    [
        b'[{"type"',
        b'[{"content":[{"type":5}]}]',
        b'[{"content":[{"type":"image"}]}]',
        b'["type"]',
        b'{"type":1}',
        b'"type"',
    ],
)
def test_odd_prompts_raise_nothing(prompt: bytes) -> None:
    assert media_of(prompt, "gemma-3", 7).tokens in (0, 7)


@pytest.mark.parametrize(("path", "field"), [(RESPONSES, "input"), (MESSAGES, "messages")])
def test_other_vendors_prompts_are_looked_at_too(path: Any, field: str) -> None:
    content = [{"role": "user", "content": [PARTS["of the Responses API"], PARTS["of Anthropic"]]}]
    body = read_body(json.dumps({"model": "m", field: content}).encode(), path)
    assert 1_400 <= counted_at_once(PromptCount({}, TokenRatio(), 700), body, 0)[0] < 1_500


def test_an_image_teaches_nothing_about_text() -> None:
    ratio = TokenRatio()
    count = PromptCount({}, ratio)
    before = ratio.tokens("m", 200_000)
    for part in PARTS.values():
        count.learn("m", count.read(chat(part)), None, 1_100)
    assert ratio.tokens("m", 200_000) == before


def test_a_file_in_a_form_is_no_text() -> None:
    assert PromptCount({}, TokenRatio(), 700).at_once(None, NO_PROMPT, 25_000_000) == (700, None)
    assert PromptCount({}, TokenRatio(), 700).at_once(None, NO_PROMPT, 40) == (10, None)
