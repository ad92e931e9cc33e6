"""Head look-ups: when the prefix cache is asked again about the head of the queue, and what the answer moves.

What a cache holds of a prompt changes while its request waits. Plug-in, simulator and gateway ask at arrival and then
only about heads, as often as said here; the gateway asks an estimate (`gateway.queueing.cached_tokens`).
"""

from __future__ import annotations

from headway.domain.request import Request, uncached_prefill_tokens

STALE_SECONDS = 1.0  # an answer this old is asked for again when its request is the head
MOVES_PER_STEP = 4  # heads that may be queued again in one step, because the cache holds something else now
_MUCH = 0.25  # relative change of prefill work that is worth moving a request


def is_stale(request: Request, now: float) -> bool:
    """Whether the cache should be asked about this head again. A preempted request's old answer does not count."""
    return now - request.looked_up_at >= STALE_SECONDS


def note_answer(request: Request, cached_tokens: int, now: float) -> bool:
    """Write the cache's answer down; True if the request has to be queued again, since its work changed much."""
    before = uncached_prefill_tokens(request)
    request.looked_up_at = now
    request.cached_prompt_tokens = cached_tokens
    return abs(uncached_prefill_tokens(request) - before) > _MUCH * max(1, before)
