"""Tokens per byte, learnt by model."""

from __future__ import annotations

import pytest

from headway.gateway.openai.token_ratio import TokenRatio


def test_tokens_from_bytes_are_calibrated_by_model() -> None:
    ratio = TokenRatio()
    assert ratio.tokens("m", 400) == 100
    for _ in range(200):
        ratio.learn("m", 10_000, 5_000)
    assert ratio.tokens("m", 400) == 200
    assert ratio.tokens("other", 400) == 100
    assert ratio.tokens("m", 0) == 1


@pytest.mark.parametrize("known", [0, 50])
@pytest.mark.parametrize(("prompt_bytes", "tokens"), [(1_000_000, 70), (300, 100_000), (40, 1_100)])
def test_one_outlier_moves_nothing_far(known: int, prompt_bytes: int, tokens: int) -> None:
    ratio = TokenRatio()
    for _ in range(known):
        ratio.learn("m", 4_000, 1_000)
    ratio.learn("m", prompt_bytes, tokens)
    assert 0.45 < ratio.tokens("m", 400_000) / 100_000 < 2.2
    if known:
        assert 0.9 < ratio.tokens("m", 400_000) / 100_000 < 1.1


def test_names_that_clients_invent_take_the_place_of_each_other_only() -> None:
    ratio = TokenRatio()
    for number in range(3_000):
        ratio.learn("m", 10_000, 5_000)
        ratio.learn(f"invented {number}", 10_000, 5_000)
    ratio.learn("new", 10_000, 5_000)
    assert len(ratio.state()) == len(ratio._seen) == 1_000
    assert ratio.tokens("m", 400) == 200
    assert ratio.tokens("new", 400) > 100
    assert "invented 1" not in ratio.state()
    again = TokenRatio()
    again.restore(ratio.state())
    assert again.state() == ratio.state()
