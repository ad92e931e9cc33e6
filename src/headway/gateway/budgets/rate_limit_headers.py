"""Headers that tell a client what is left of its budget, in OpenAI's spelling and in Anthropic's."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from headway.gateway.budgets.key_budget import KeyBudget
from headway.gateway.budgets.token_bucket import TokenBucket

RateLimitHeaders = tuple[tuple[bytes, bytes], ...]
RATE_LIMIT_NAMES = (b"x-ratelimit-", b"anthropic-ratelimit-")
"""How their names begin; an engine's own of these names are not passed on beside ours."""
_OF_REQUESTS = b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"
_OF_TOKENS = b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"
EVERY_NAME = (
    *(*_OF_REQUESTS, *_OF_TOKENS),
    *(
        b"anthropic-ratelimit-%b-%b" % (unit, figure)
        for unit in (b"requests", b"tokens")
        for figure in (b"limit", b"remaining", b"reset")
    ),
)
"""All names that this module writes, for browsers, which let a page read only headers that are named to them."""
_MICROSECONDS = 1_000_000
_LATEST_SECONDS = 253_402_300_799  # 9999-12-31, the last day that RFC 3339 can write: a lowered limit may lie beyond it


def rate_limit_headers(budget: KeyBudget[Any], now_us: int) -> RateLimitHeaders:
    """`x-ratelimit-limit-requests`, `-remaining-` and `-reset-`, and the same of tokens, for the tighter limit each.

    "Reset" is the time until all is there again, as OpenAI defines it
    (https://platform.openai.com/docs/guides/rate-limits, "Rate limits in headers").
    """
    requests, tokens = budget.tightest(now_us)
    return _openai(_OF_REQUESTS, requests, now_us) + _openai(_OF_TOKENS, tokens, now_us)


def anthropic_headers(budget: KeyBudget[Any], now_us: int, wall_clock: Callable[[], float]) -> RateLimitHeaders:
    """`anthropic-ratelimit-requests-limit`, `-remaining` and `-reset`, an RFC 3339 time, and the same of tokens."""
    unix_seconds = wall_clock()
    found: list[tuple[bytes, bytes]] = []
    for unit, bucket in zip((b"requests", b"tokens"), budget.tightest(now_us), strict=True):
        if bucket is not None:
            balance, full_us = bucket.figures(now_us)
            full_seconds = math.ceil(unix_seconds + full_us / _MICROSECONDS)
            full_at = datetime.fromtimestamp(min(full_seconds, _LATEST_SECONDS), UTC)
            name = b"anthropic-ratelimit-" + unit
            found += [
                (name + b"-limit", bucket.limit_text),
                (name + b"-remaining", b"%d" % balance),
                (name + b"-reset", full_at.strftime("%Y-%m-%dT%H:%M:%SZ").encode()),
            ]
    return tuple(found)


def _openai(names: tuple[bytes, bytes, bytes], bucket: TokenBucket | None, now_us: int) -> RateLimitHeaders:
    if bucket is None:
        return ()
    limit, remaining, reset = names
    balance, full_us = bucket.figures(now_us)
    return (limit, bucket.limit_text), (remaining, b"%d" % balance), (reset, duration(full_us))


def duration(microseconds: int) -> bytes:
    """A time as OpenAI writes it: `0s`, `17ms`, `1s`, `6m0s`, `23h59m59s`; rounded up."""
    if microseconds <= _MICROSECONDS - 1_000:
        return b"%dms" % -(-microseconds // 1_000) if microseconds else b"0s"
    minutes, seconds = divmod(-(-microseconds // _MICROSECONDS), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, seconds)
    return b"%dm%ds" % (minutes, seconds) if minutes else b"%ds" % seconds
