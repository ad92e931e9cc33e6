"""Bytes per prompt token: one ratio per model, calibrated by the usage that replicas return."""

from __future__ import annotations

import math
from collections.abc import Mapping

_START = 4.0  # bytes a token: the usual rule of thumb for English in JSON
_LEARNING = 0.05
_MODELS_MAX = 1_000


class TokenRatio:
    """Bytes per token by model."""

    def __init__(self) -> None:
        self._ratios: dict[str, float] = {}

    def tokens(self, model: str, prompt_bytes: int) -> int:
        """An estimate of the prompt's tokens, at least 1."""
        return max(1, round(prompt_bytes / self._ratios.get(model, _START)))

    def learn(self, model: str, prompt_bytes: int, prompt_tokens: int) -> None:
        """Move the ratio towards a prompt whose tokens a replica counted."""
        if prompt_tokens < 1 or prompt_bytes < 1:
            return
        ratio = prompt_bytes / prompt_tokens
        known = self._ratios.get(model)
        if known is None and len(self._ratios) >= _MODELS_MAX:
            return
        # Ratios are averaged in logarithms, by large prompts more than by small ones: those are mostly template.
        weight = _LEARNING if prompt_tokens >= 64 else _LEARNING / 5
        self._ratios[model] = ratio if known is None else known * (ratio / known) ** weight

    def state(self) -> dict[str, float]:
        """Bytes per token by model."""
        return dict(self._ratios)

    def restore(self, state: Mapping[str, float]) -> None:
        """Restore what `state` returned. Raises ValueError if it is something else."""
        for model, ratio in state.items():
            if not isinstance(model, str) or not isinstance(ratio, int | float) or not 0 < ratio < math.inf:
                raise ValueError(f"{ratio!r} bytes per token of {model!r}")
        self._ratios = dict(list(state.items())[:_MODELS_MAX])
