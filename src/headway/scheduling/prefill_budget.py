"""Prefill budget: how many prompt tokens a step may compute beside decodes, so that it takes no longer than a bound.

Pure: facts of a step in, two limits out. The vLLM plug-in and both simulated engines set them as vLLM's token budget
and long-prefill threshold.

Law. While something decodes, a step gets the most prompt tokens with which it is expected to take `tpot_seconds` at
most. It gets at least a 32nd of the configured budget, so prompts go on however long the decodes alone take, and at
most what decodes leave of that budget. While nothing decodes, the configured limits hold. Prompts that run share what
they get equally, so that no decode behind them in the engine's list goes without its token.

Sources: P-PAS (arXiv 2608.15171) cuts the prompt tokens of a step to a constant while two prompts or more are pending
and something decodes. FairBatching (arXiv 2510.14392) has a time limit for the whole batch, from a step-time model and
the decodes' deadlines. This is the second one's time limit for the first one's tokens. Where we deviate:

- No count of pending prompts. A single prompt of a whole step delays decodes as two do, and a waiting request that
  cannot be admitted is no pressure.
- No constant number of tokens: what delays decodes depends on the engine, so the bound is in seconds.
- No credit for tokens that came early. FairBatching lets a step be longer by what the decodes are ahead of their
  deadlines. Then a gap between two tokens may be as long as a full step; here none is longer than the bound, as far as
  the model is right and the least share allows. A late decode needs no rule of its own either: deadlines that are once
  late stay late, and would keep prompts at the least for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from headway.scheduling.offline_gate import StepPicoseconds
from headway.scheduling.self_tuned_threshold import water_level

TPOT_SECONDS = 0.05
_LEAST_SHARE = 32  # of the token budget, one part in so many
_PS_PER_SECOND = 1e12


class StepLimits(NamedTuple):
    """What an engine obeys in one step.

    Attributes:
        threshold: most tokens of one prompt, 0 for no limit (vLLM's long-prefill threshold).
        token_budget: most tokens of all.
    """

    threshold: int
    token_budget: int


class PrefillLoad(NamedTuple):
    """What is inside an engine as a step is composed.

    Attributes:
        own: the operator's limits.
        decodes: requests that decode.
        decode_tokens: what they compute: one token each, and their drafts.
        context_tokens: their KV tokens.
        prefill_left: for each prompt that is computed, the tokens it has left.
        tokens_before: tokens that such prompts, and the next request to be admitted, have in memory already.
    """

    own: StepLimits
    decodes: int
    decode_tokens: int
    context_tokens: int
    prefill_left: Sequence[int]
    tokens_before: int


def prefill_limits(load: PrefillLoad, tpot_seconds: float, step_ps: StepPicoseconds) -> StepLimits:
    """The limits of the step that is composed; never above the operator's own."""
    own = load.own
    most = own.token_budget - load.decode_tokens
    if not load.decodes or most <= 0:
        return own
    tokens = _tokens_within(load, most, int(tpot_seconds * _PS_PER_SECOND), step_ps)
    wanted = [min(left, own.threshold) if own.threshold else left for left in load.prefill_left]
    threshold = own.threshold if sum(wanted) <= tokens else max(1, water_level(wanted, tokens))
    return StepLimits(threshold, load.decode_tokens + tokens)


def _tokens_within(load: PrefillLoad, most: int, bound_ps: int, step_ps: StepPicoseconds) -> int:
    """The most prompt tokens that keep the step within the bound; by bisection, since step times grow with tokens."""
    prompts = max(1, len(load.prefill_left))

    def fits(tokens: int) -> bool:
        return step_ps(load.decodes, load.context_tokens, prompts, tokens, load.tokens_before) <= bound_ps

    least = min(most, max(1, load.own.token_budget // _LEAST_SHARE))
    if fits(most):
        return most
    while most - least > 1:
        middle = (least + most) // 2
        if fits(middle):
            least = middle
        else:
            most = middle
    return least
