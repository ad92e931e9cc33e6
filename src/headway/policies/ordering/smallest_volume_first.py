"""Smallest volume first: size judged by KV memory times time."""

from __future__ import annotations

from headway.domain.request import RequestView, expected_output_tokens


class SmallestVolumeFirst:
    """Smallest KV volume (memory × time) first.

    Idea: a request holds its prompt for its whole decode and one token more each step. The sum over its steps is the
        area it takes from KV memory, and areas add up whatever the batch. Serve the smallest area first.
    Source: SVF, arXiv 2606.22327v2: vol(s, o) = s·o + (o² + o)/2. The paper proves a competitive ratio of
        1 + 2/(1−α) for bursts with known lengths, no preemption and the forward-looking admission check
        (`--admission peak-check`). Deviations: a preempted request that is ranked again counts what it will still
        hold, and the whole prompt counts even if part of it is shared through the prefix cache.
    Reads: prompt length, tokens produced, the length estimate.
    Wins when: KV memory is the bottleneck and outputs can be told apart in advance.
    Loses when: prefill is the bottleneck (a prompt with a short answer costs little volume but much compute), the
        estimate is poor, or the tail matters: large volumes have no bound on their wait.
    """

    follows_what_is_learned = True

    def rank(self, request: RequestView) -> float:
        """Expected volume still ahead, token·steps."""
        return volume(request.prompt_tokens + request.produced_tokens, expected_output_tokens(request))


def volume(prompt_tokens: float, output_tokens: float) -> float:
    """KV volume of a request in token·steps: Σ of (prompt + t) for t = 1 … output (arXiv 2606.22327v2)."""
    return prompt_tokens * output_tokens + (output_tokens * output_tokens + output_tokens) / 2
