"""Longest prefix match: the request with most cached prompt tokens runs first."""

from __future__ import annotations

from headway.domain.request import RequestView
from headway.policies.contracts import Need


class LongestPrefixMatch:
    """Longest cached prefix first.

    Idea: serve the requests that reuse most of the cache before something evicts it.
    Source: SGLang's `lpm` schedule policy (arXiv 2312.07104, §3). Deviations: the match is the one seen at entry. Only
        the head is asked again, once a second. There is no fall-back to FCFS beyond 128 waiting. Requests that share an
        uncached prefix with one already waiting are not held back.
    Reads: cached prompt tokens, then the arrival time.
    Wins when: the cache is small against the shared prefixes, so that order decides what is still there.
    Loses when: the tail matters: a request with no match waits as long as others with one keep coming. A long match
        is not a small request: 90,000 of 100,000 tokens cached goes before 0 of 10.
    """

    NEEDS = frozenset([Need.CACHED_TOKENS])

    def rank(self, request: RequestView) -> float:
        """Minus the cached prompt tokens."""
        return -request.cached_prompt_tokens
