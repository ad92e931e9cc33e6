"""Confirmed prefixes: what a replica's own answers say that its prefix cache holds.

Laws: a prefix counts from the moment that an answer of the replica confirmed it: what it computed it holds then. It
counts until the cached tokens in the usage of a later answer deny it. Then whatever was confirmed before it is in doubt
as well, and is forgotten: such caches give up first what was used least recently, and of one prompt its end. So where a
prefix is held, all shorter ones of its prompt are. A replica whose usage has never counted cached tokens has told
nothing of its cache.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

PREFIXES_MAX = 65_536
"""Of one replica, about 12 MB; the least recently confirmed go first."""
ALL_PREFIXES_MAX = 1 << 20
"""Of all replicas together, about 190 MB: from 17 replicas on each may keep an equal share of it."""
_FORGOTTEN_AT_ONCE = 1_000
_DENIED_BELOW = 0.8
"""× the tokens believed: a cache holds whole blocks, and a prefix's tokens are known in proportion to its bytes."""


def share_prefixes(of_replicas: Sequence[ConfirmedPrefixes]) -> None:
    """Bound them all together, as many as there are now."""
    for one in of_replicas:
        one.share = max(1, ALL_PREFIXES_MAX // len(of_replicas))


class ConfirmedPrefixes:
    """Those of one replica.

    Attributes:
        as_of: when it told of its cache last, seconds; `-math.inf` if never.
        share: how many it may keep of those of all replicas.
    """

    def __init__(self) -> None:
        self._tokens: OrderedDict[int, int] = OrderedDict()  # hash of a prefix -> its tokens
        self.as_of = -math.inf
        self.share = PREFIXES_MAX

    def __len__(self) -> int:
        return len(self._tokens)

    def tokens(self, prefix: Sequence[int], prompt_tokens: int) -> int | None:
        """Tokens of the longest of these prefixes that is held, fewer than the whole prompt; None where never told."""
        if self.as_of == -math.inf:
            return None
        held = bisect_left(prefix, True, key=self._lacks)
        return max(0, min(self._tokens[prefix[held - 1]], prompt_tokens - 1)) if held else 0

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
            self._deny(prefix, cached_tokens, believed_tokens)
        held = self._tokens
        for key, prefix_tokens in zip(reversed(prefix), reversed(tokens), strict=True):  # the longest goes first
            held[key] = prefix_tokens
            held.move_to_end(key)
        self.forget_excess(len(prefix))

    def forget_excess(self, more: int = 0) -> None:
        """Forget what is beyond the share, not much at once: it may have become much smaller. `more` were added."""
        held = self._tokens
        for _ in range(min(len(held) - min(PREFIXES_MAX, self.share), more + _FORGOTTEN_AT_ONCE)):
            held.popitem(last=False)

    def _lacks(self, key: int) -> bool:
        return key not in self._tokens

    def _deny(self, prefix: Sequence[int], cached_tokens: int, believed_tokens: int) -> None:
        """Forget what is longer than was found of this prompt, and all that was confirmed before that."""
        held = self._tokens
        for key in prefix:
            tokens = held.get(key, 0)
            if tokens > believed_tokens:  # confirmed since
                return
            if cached_tokens < _DENIED_BELOW * tokens:
                while held.popitem(last=False)[0] != key:
                    pass
                return
