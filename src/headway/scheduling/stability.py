"""Stability: the rate of requests up to which a replica's queue does not grow without bound, and how many replicas
keep a load stable.

Source: C. Nie, H. Si, Z. Zhou, "Stability of LLM inference with a KV cache" (arXiv 2605.04595, ICML 2026). A request is
a volume of KV tokens over steps. A memory of M tokens offers M of them a step, so with steps of b seconds and a mean
volume of E[g] the queue grows if requests come faster than M / (b · E[g]). Below (1 - d) times that a work-conserving
order is stable, d being the share of the memory that one request which does not fit can leave unused.

Their b is the mean time of a step under full load, the prompts in it included. Here it is solved for. If a full batch
decodes in t seconds a step, and prompts take E[u] · p seconds a request, then b = t / (1 - rate · E[u] · p), and

    rate = 1 / (E[u] · p + t · max(E[g] / (M - largest request), E[n] / K))

The second part of the maximum is the same law for K seats, of which a request holds one for n steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_LARGEST_SHARE_MAX = 0.5  # of the memory, that a request which does not fit leaves unused: others then fit beside it


@dataclass(frozen=True, slots=True)
class RequestNeeds:
    """What requests need of a replica, as means over them; `largest_tokens` is a maximum.

    Attributes:
        computed_prompt_tokens: prompt tokens that no cache had.
        seat_steps: steps in which one holds a seat, over its sequences.
        token_steps: KV tokens that one holds, over its steps.
        largest_tokens: KV tokens of the largest, at its end.
    """

    computed_prompt_tokens: float
    seat_steps: float
    token_steps: float
    largest_tokens: float


@dataclass(frozen=True, slots=True)
class StepCapacity:
    """What a replica has.

    Attributes:
        kv_tokens: its KV memory; None if unknown.
        seats: requests that run at once; None if unknown.
        prompt_seconds_per_token: that a prompt token adds to the steps that compute it.
        step_seconds: of a step in which a full batch decodes and no prompt is computed.
    """

    kv_tokens: float | None
    seats: float | None
    prompt_seconds_per_token: float
    step_seconds: float


def volume(prompt_tokens: float, output_tokens: float, sequences: int = 1) -> tuple[float, float]:
    """(seat steps, token steps) of one request.

    Its prompt takes one step and is shared by its sequences. Each of those has `output_tokens`, one a step.
    """
    tokens = prompt_tokens * (output_tokens + 1) + sequences * output_tokens * (output_tokens + 1) / 2
    return sequences * (output_tokens + 1), tokens


def full_batch(needs: RequestNeeds, kv_tokens: float | None, seats: float | None) -> float | None:
    """Sequences in a batch that fills memory or seats, whichever is full first; None if neither is known."""
    share = _steps_share(needs, kv_tokens, seats)
    return None if share is None or share <= 0 else max(1.0, needs.seat_steps / share)


def stable_rate(needs: RequestNeeds, capacity: StepCapacity) -> float | None:
    """Requests a second up to which one replica is stable; None if neither its memory nor its seats are known."""
    share = _steps_share(needs, capacity.kv_tokens, capacity.seats)
    if share is None:
        return None
    seconds = needs.computed_prompt_tokens * capacity.prompt_seconds_per_token + capacity.step_seconds * share
    return 1 / seconds if seconds > 0 else None


def replicas_for(rate: float, stable_rate_of_one: float, target_load: float = 1.0) -> int:
    """The least number of equal replicas of which each gets at most `target_load` of its stable rate.

    Raises:
        ValueError: a rate is negative or not finite, or the other numbers are not above 0.
    """
    if not (0 <= rate < math.inf and stable_rate_of_one > 0 and target_load > 0):
        raise ValueError(f"no fleet serves {rate:g} requests/s at {stable_rate_of_one:g} each and load {target_load:g}")
    wanted = rate / (stable_rate_of_one * target_load)
    nearest = round(wanted)
    count = nearest if math.isclose(wanted, nearest, rel_tol=1e-9) else math.ceil(wanted)
    return max(count, 1 if rate > 0 else 0)


def _steps_share(needs: RequestNeeds, kv_tokens: float | None, seats: float | None) -> float | None:
    """Which share of a full batch one request takes, summed over its steps."""
    shares = []
    if kv_tokens is not None and kv_tokens > 0:
        unused = min(needs.largest_tokens, _LARGEST_SHARE_MAX * kv_tokens)
        shares.append(needs.token_steps / (kv_tokens - unused))
    if seats is not None and seats > 0:
        shares.append(needs.seat_steps / seats)
    return max(shares, default=None)
