"""An estimate of the prompt tokens that a replica has in its prefix cache: of a session's next turn, the last turn.

Law: no estimate without confirmation by replicas. The estimate is the tokens of the turn before, times the share of
such tokens that usage (`prompt_tokens_details.cached_tokens`) has lately confirmed. An engine that reports no cached
tokens confirms none.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from headway.gateway.openai.usage import Usage

_Session: TypeAlias = tuple[str, str, str]  # model, payer, session
_SESSIONS_MAX = 100_000
_MODELS_MAX = 1_000
_LEARNING = 0.1


class CachedTokens:
    """Estimates of one gateway, for the sessions and models seen last."""

    def __init__(self) -> None:
        self._left: OrderedDict[_Session, int] = OrderedDict()  # tokens of prompt and answer of the latest turn
        self._confirmed: OrderedDict[str, float] = OrderedDict()  # model -> share, the one least lately confirmed first

    def tokens(self, model: str, payer: str, session: str | None, prompt_tokens: int) -> int:
        """Prompt tokens estimated to be cached, fewer than all; 0 without a session."""
        if session is None:
            return 0
        left = self._left.get((model, payer, session), 0)
        return max(0, min(prompt_tokens - 1, int(left * self._confirmed.get(model, 0.0))))

    def learn(self, model: str, payer: str, session: str | None, usage: Usage) -> None:
        """A turn was answered; compare its usage with the estimate."""
        if session is None:
            return
        key = (model, payer, session)
        left = self._left.get(key)
        if left and usage.prompt_tokens:
            share = min(1.0, usage.cached_tokens / min(left, usage.prompt_tokens))
            known = self._confirmed.get(model, 0.0)
            self._confirmed[model] = known + _LEARNING * (share - known)
            self._confirmed.move_to_end(model)
            if len(self._confirmed) > _MODELS_MAX:
                self._confirmed.popitem(last=False)
        self._left[key] = usage.prompt_tokens + usage.output_tokens
        self._left.move_to_end(key)
        if len(self._left) > _SESSIONS_MAX:
            self._left.popitem(last=False)
