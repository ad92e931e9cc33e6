"""Step time: how long one engine step takes, the contract between a latency model and an engine.

Time is in integer picoseconds. Floating-point sums depend on their order, and one bit decides whether an arrival falls
before or after a step; with integers, skipping over k steps at once equals taking them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

PS_PER_SECOND = 1_000_000_000_000
SECONDS_PER_PS = 1e-12

Chunk: TypeAlias = tuple[int, int]
"""(tokens of one prompt computed in this step, tokens of it computed before)."""


class StepTime(Protocol):
    """Duration of one step of one replica. All answers are whole picoseconds, > 0, and depend on the arguments only."""

    def decode_step(self, requests: int) -> tuple[int, int]:
        """(fixed, slope) of a step in which `requests` (≥ 1) decode one token each and nothing else happens.

        The step takes `fixed + slope · context_tokens` picoseconds, `context_tokens` being the sum over the requests
        of their KV tokens computed before the step. Affine in the context, or runs could not be skipped.
        """

    def mixed_step(self, decodes: int, context_tokens: int, chunks: Sequence[Chunk], sampled: int) -> int:
        """Picoseconds of any step: `decodes` requests decode over `context_tokens`, `chunks` of prompts are computed.

        `sampled` requests (decodes, and chunks that finish their prompt) get a token. Without chunks and with
        `sampled == decodes` it equals `decode_step`.
        """


def expected_step_ps(
    step_time: StepTime, decodes: int, context_tokens: int, prompts: int, tokens: int, before: int
) -> int:
    """Picoseconds of a step in which `prompts` get `tokens` together, as if one prompt did, after `before` in all."""
    if tokens:
        return step_time.mixed_step(decodes, context_tokens, [(tokens, before)], decodes + prompts)
    fixed, slope = step_time.decode_step(decodes)
    return fixed + slope * context_tokens


class StepFloor(NamedTuple):
    """Floor of a step time: a linear lower bound, in picoseconds. Lower bounds of latency are made of it.

    Every step of at most the tokens and requests that were asked about takes at least::

        fixed + prompt_token · (tokens of chunks) + decode_token · (decodes)
              + sample · (sampled) + (sampled_fixed if anything is sampled)
              + context · (context of the decodes) + chunk_context · Σ before + pair · Σ new · (2 · before + new)
    """

    fixed: float
    sampled_fixed: float
    prompt_token: float
    decode_token: float
    sample: float
    context: float
    chunk_context: float
    pair: float


@runtime_checkable
class FlooredStepTime(StepTime, Protocol):
    """A step time that states its floors."""

    def floors(self, tokens_max: int, requests_max: int) -> tuple[StepFloor, ...]:
        """Floors of every step of at most `tokens_max` tokens and `requests_max` sampled requests; each one holds."""


@dataclass(frozen=True, slots=True)
class LinearStepTime:
    """Linear model with every term: for tests, and for engines calibrated by regression.

    Attributes:
        fixed_ps: of a step.
        ps_per_token: of each token computed.
        ps_per_context_token: of each token of context that a decode, or a chunk as a whole, reads.
        ps_per_request: of each request that gets a token.
        ps_per_pair: of each token of a chunk and each token it attends to, prompt attention's work; a chunk of n
            tokens after p has n · (p + n/2) pairs, rounded down over the step.
    """

    fixed_ps: int
    ps_per_token: int
    ps_per_context_token: int
    ps_per_request: int = 0
    ps_per_pair: int = 0

    def decode_step(self, requests: int) -> tuple[int, int]:
        """Fixed part, and slope per token of context, of a step of decodes only."""
        return self.fixed_ps + requests * (self.ps_per_token + self.ps_per_request), self.ps_per_context_token

    def mixed_step(self, decodes: int, context_tokens: int, chunks: Sequence[Chunk], sampled: int) -> int:
        """Duration of any step; a chunk reads what was computed before it."""
        tokens = decodes + sum(new for new, _ in chunks)
        context = context_tokens + sum(before for _, before in chunks)
        twice_pairs = sum(new * (2 * before + new) for new, before in chunks)
        return (
            self.fixed_ps
            + tokens * self.ps_per_token
            + sampled * self.ps_per_request
            + context * self.ps_per_context_token
            + twice_pairs * self.ps_per_pair // 2
        )

    def floors(self, tokens_max: int, requests_max: int) -> tuple[StepFloor, ...]:
        """Two floors: the model itself, and its fixed cost spread over a full step."""
        spread = self.fixed_ps / tokens_max
        rounding = 1.0 if self.ps_per_pair else 0.0
        return tuple(
            StepFloor(
                fixed=fixed,
                sampled_fixed=0.0,
                prompt_token=self.ps_per_token + share,
                decode_token=self.ps_per_token + share,
                sample=self.ps_per_request,
                context=self.ps_per_context_token,
                chunk_context=self.ps_per_context_token,
                pair=self.ps_per_pair / 2,
            )
            for fixed, share in ((self.fixed_ps - rounding, 0.0), (-rounding, spread))
        )
