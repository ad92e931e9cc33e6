"""Tokens per byte, learnt by model."""

from __future__ import annotations

from headway.gateway.openai.token_ratio import TokenRatio


def test_tokens_from_bytes_are_calibrated_by_model() -> None:
    ratio = TokenRatio()
    assert ratio.tokens("m", 400) == 100
    for _ in range(200):
        ratio.learn("m", 10_000, 5_000)
    assert ratio.tokens("m", 400) == 200
    assert ratio.tokens("other", 400) == 100
    assert ratio.tokens("m", 0) == 1
