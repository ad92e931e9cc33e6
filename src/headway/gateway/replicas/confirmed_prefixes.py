"""Confirmed prefixes: what a replica's own answers say that its prefix cache holds.

Laws: a prefix counts from the moment that an answer of the replica confirmed it: what it computed it holds then. It
counts until the cached tokens in the usage of a later answer deny it. Then whatever was confirmed before it is in doubt
as well, and is forgotten: such caches give up first what was used least recently. A replica whose usage has never
counted cached tokens has told nothing of its cache.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

PREFIXES_MAX = 65_536
"""Of one replica, about 12 MB; the least recently confirmed go first."""
_DENIED_BELOW = 0.8
"""× the tokens believed: a cache holds whole blocks, and a prefix's tokens are known in proportion to its bytes."""


class ConfirmedPrefixes:
    """Those of one replica. `as_of` is when it told of its cache last, seconds; `-math.inf` if never."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[int, int] = OrderedDict()  # hash of a prefix -> its tokens
        self.as_of = -math.inf

    def __len__(self) -> int:
        return len(self._tokens)

    def tokens(self, prefix: Sequence[int], prompt_tokens: int) -> int | None:
        """Tokens of the longest of these prefixes that is held, fewer than the whole prompt; None where never told."""
        if self.as_of == -math.inf:
            return None
        longest = self._longest(prefix)
        return 0 if longest is None else max(0, min(self._tokens[longest], prompt_tokens - 1))

    def answered(
        self, prefix: Sequence[int], tokens: Sequence[int], cached_tokens: int, believed_tokens: int, now: float
    ) -> None:
        """A whole answer came.

        Args:
            prefix: hashes of its prompt's prefixes, the shortest first.
            tokens: of each of them.
            cached_tokens: of its prompt, that the replica found in its cache.
            believed_tokens: what `tokens` was when the request was sent there; 0 for None.
            now: seconds.
        """
        if cached_tokens or self.as_of > -math.inf:
            self.as_of = now
        if cached_tokens < _DENIED_BELOW * believed_tokens:
            self._forget_until(prefix, believed_tokens)
        held = self._tokens
        for key, prefix_tokens in zip(prefix, tokens, strict=True):
            held[key] = prefix_tokens
            held.move_to_end(key)
        while len(held) > PREFIXES_MAX:
            held.popitem(last=False)

    def _longest(self, prefix: Sequence[int]) -> int | None:
        return next((key for key in reversed(prefix) if key in self._tokens), None)

    def _forget_until(self, prefix: Sequence[int], believed_tokens: int) -> None:
        """Forget what was believed of this prompt, and all that was confirmed before it."""
        longest = self._longest(prefix)
        if longest is None or self._tokens[longest] > believed_tokens:  # confirmed once more since
            return
        while self._tokens.popitem(last=False)[0] != longest:
            pass
