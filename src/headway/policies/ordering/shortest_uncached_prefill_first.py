"""Shortest uncached prefill first: size judged by the prompt tokens that still have to be computed."""

from __future__ import annotations

from headway.domain.request import RequestView, uncached_prefill_tokens
from headway.policies.contracts import Need


class ShortestUncachedPrefillFirst:
    """Least prefill work first, after the prefix cache.

    Idea: a long prompt that is already in the prefix cache is a short piece of work and should be treated as one.
    Source: the `len - cached` key of SGLang PR #30806 without its ageing; ROCm/ATOM PR #2158 orders alike. Those ask
        the cache again each round; here at entry, then once a second for the head only.
    Reads: prompt length, cached prompt tokens, tokens produced before a preemption (they are computed again).
    Wins when: prefill is the bottleneck and prefix hits differ between requests (agents, long conversations).
    Loses when: decoding or KV memory is the bottleneck, when the cache has lost what it held at entry, or when overload
        lasts: large cold prompts then starve without bound.
    """

    NEEDS = frozenset([Need.CACHED_TOKENS])

    def rank(self, request: RequestView) -> float:
        """Tokens to compute before the next output token."""
        return uncached_prefill_tokens(request)
