"""The engine's limits: vLLM's defaults, and one sentence for each that contradicts another."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from headway.simulator.rules import NO_PLUGIN, EngineRules

RULES = EngineRules(kv_blocks=100)


def test_defaults_are_those_of_vllm_on_a_large_gpu() -> None:
    """`vllm serve --help`, 0.33."""
    assert (RULES.block_tokens, RULES.max_model_tokens) == (16, 131_072)
    assert (RULES.max_num_batched_tokens, RULES.max_num_seqs) == (8_192, 1_024)
    assert RULES.chunked_prefill
    assert (RULES.long_prefill_token_threshold, RULES.long_prefill_token_threshold_adaptive) == (0, False)
    assert RULES.reserve_full_prompt
    assert RULES.watermark == 0
    assert RULES.async_scheduling
    assert RULES.prefix_caching
    assert RULES.resumed == "front"
    assert (NO_PLUGIN.tuning, NO_PLUGIN.guard) == ("off", None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kv_blocks": 0}, "kv_blocks must be at least 1, got 0"),
        ({"block_tokens": 0}, "block_tokens must be at least 1, got 0"),
        ({"max_model_tokens": -1}, "max_model_tokens must be at least 1, got -1"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens must be at least 1, got 0"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        (
            {"max_num_batched_tokens": 63, "max_num_seqs": 64},
            "max_num_batched_tokens (63) must be at least max_num_seqs (64)",
        ),
        (
            {"chunked_prefill": False, "max_model_tokens": 8_193},
            "with chunked prefill off, max_num_batched_tokens (8192) must be at least max_model_tokens (8193)",
        ),
        ({"watermark": -0.1}, "watermark must be in [0, 1), got -0.1"),
        ({"watermark": 1.0}, "watermark must be in [0, 1), got 1.0"),
        ({"long_prefill_token_threshold": -1}, "long_prefill_token_threshold must not be negative, got -1"),
        (
            {"long_prefill_token_threshold": 65, "max_model_tokens": 64},
            "long_prefill_token_threshold (65) must be at most max_model_tokens (64)",
        ),
    ],
)
def test_a_contradiction_is_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        replace(RULES, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"kv_blocks": 1, "block_tokens": 1},
        {"max_num_batched_tokens": 64, "max_num_seqs": 64},
        {"max_num_batched_tokens": 1, "max_num_seqs": 1, "max_model_tokens": 1},
        {"chunked_prefill": False, "max_model_tokens": 8_192},
        {"watermark": 0.99},
        {"long_prefill_token_threshold": 64, "max_model_tokens": 64},
        {"long_prefill_token_threshold": 1},
    ],
)
def test_limits_may_be_as_tight_as_they_can(given: dict[str, Any]) -> None:
    changed = replace(RULES, **given)
    assert all(getattr(changed, name) == value for name, value in given.items())


def test_the_longest_request_fits_the_model_and_the_memory() -> None:
    assert replace(RULES, max_model_tokens=1_601).context_tokens == 1_601  # the last token needs no memory
    assert replace(RULES, max_model_tokens=1_602).context_tokens == 1_601
    assert replace(RULES, max_model_tokens=900).context_tokens == 900
