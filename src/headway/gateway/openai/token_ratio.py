"""Bytes per prompt token: one ratio per model, calibrated by the usage that replicas return."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

_START = 4.0  # bytes a token: the usual rule of thumb for English in JSON
_LEARNING = 0.05
_SEEN_MAX = 20  # until then a prompt weighs as much as each before it, and the start as one
_STEP_MAX = 4.0  # how far off a prompt may seem: an odd one counts as this far
_LARGE_TOKENS = 64
_MODELS_MAX = 1_000


class TokenRatio:
    """Bytes per token by model."""

    def __init__(self) -> None:
        self._ratios: OrderedDict[str, float] = OrderedDict()  # the model least lately learnt of first
        self._seen: dict[str, int] = {}  # prompts that taught the ratio of a model

    def tokens(self, model: str, prompt_bytes: int) -> int:
        """An estimate of the prompt's tokens, at least 1."""
        return max(1, round(prompt_bytes / self._ratios.get(model, _START)))

    def learn(self, model: str, prompt_bytes: int, prompt_tokens: int) -> None:
        """Move the ratio towards a prompt of text whose tokens a replica counted. One that is odd moves it little."""
        if prompt_tokens < 1 or prompt_bytes < 1:
            return
        known = self._ratios.get(model, _START)
        seen = self._seen.get(model, 0)
        self._seen[model] = min(_SEEN_MAX, seen + 1)
        # Ratios are averaged in logarithms, by large prompts more than by small ones: those are mostly template.
        weight = max(_LEARNING, 1 / (seen + 2))
        if min(prompt_tokens, prompt_bytes / _START) < _LARGE_TOKENS:
            weight /= 5
        step = min(_STEP_MAX, max(1 / _STEP_MAX, prompt_bytes / prompt_tokens / known))
        self._ratios[model] = known * step**weight
        self._ratios.move_to_end(model)
        if len(self._ratios) > _MODELS_MAX:  # clients name models, and replicas that list none take any name
            oldest, _ = self._ratios.popitem(last=False)
            self._seen.pop(oldest, None)

    def state(self) -> dict[str, float]:
        """Bytes per token by model."""
        return dict(self._ratios)

    def restore(self, state: Mapping[str, float]) -> None:
        """Restore what `state` returned. Raises ValueError if it is something else."""
        for model, ratio in state.items():
            if not isinstance(model, str) or not isinstance(ratio, int | float) or not 0 < ratio < math.inf:
                raise ValueError(f"{ratio!r} bytes per token of {model!r}")
        self._ratios = OrderedDict(list(state.items())[-_MODELS_MAX:])
        self._seen = dict.fromkeys(self._ratios, _SEEN_MAX)
