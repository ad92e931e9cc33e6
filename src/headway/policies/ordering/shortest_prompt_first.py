"""Shortest prompt first: size judged by the prompt alone."""

from __future__ import annotations

from headway.domain.request import RequestView


class ShortestPromptFirst:
    """Shortest prompt first, cached or not.

    Idea: short prompts slip in between long ones, and the mean time to first token falls.
    Source: shortest-job-first with the prompt as the job (TensorRT-LLM PR #12423 among others); folklore.
    Reads: the prompt length.
    Wins when: prefill is the bottleneck and prompts differ widely.
    Loses when: decoding or KV memory is the bottleneck (the prompt says little about either), when long prompts are
        mostly cached, or when overload lasts: long prompts then starve without bound.
    """

    def rank(self, request: RequestView) -> float:
        """The prompt length, tokens."""
        return request.prompt_tokens
