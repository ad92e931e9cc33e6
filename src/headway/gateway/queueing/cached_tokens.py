"""How much of a prompt is believed to be cached by its replica: of the next turn of a session, what the last one left.

Law: nothing is believed that replicas do not confirm. The belief is what the turn before had at its end, times the
share of such beliefs that usage (`prompt_tokens_details.cached_tokens`) has lately borne out; an engine that tells none
bears out none.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from headway.gateway.openai.usage import Usage

_Session: TypeAlias = tuple[str, str, str]  # model, payer, name
_SESSIONS_MAX = 100_000
_MODELS_MAX = 1_000
_LEARNING = 0.1


class CachedTokens:
    """Of one gateway."""

    def __init__(self) -> None:
        self._left: OrderedDict[_Session, int] = OrderedDict()  # tokens of prompt and answer of the latest turn
        self._borne_out: dict[str, float] = {}  # model -> share

    def tokens(self, model: str, payer: str, session: str | None, prompt_tokens: int) -> int:
        """Prompt tokens believed to be cached, fewer than all."""
        if session is None:
            return 0
        left = self._left.get((model, payer, session), 0)
        return max(0, min(prompt_tokens - 1, int(left * self._borne_out.get(model, 0.0))))

    def learn(self, model: str, payer: str, session: str | None, usage: Usage) -> None:
        """A turn was answered."""
        if session is None:
            return
        key = (model, payer, session)
        left = self._left.get(key)
        if left and usage.prompt_tokens and (model in self._borne_out or len(self._borne_out) < _MODELS_MAX):
            share = min(1.0, usage.cached_tokens / min(left, usage.prompt_tokens))
            known = self._borne_out.get(model, 0.0)
            self._borne_out[model] = known + _LEARNING * (share - known)
        self._left[key] = usage.prompt_tokens + usage.output_tokens
        self._left.move_to_end(key)
        if len(self._left) > _SESSIONS_MAX:
            self._left.popitem(last=False)
