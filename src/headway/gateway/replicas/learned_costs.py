"""Learned costs of a replica: seconds per prompt token and per output token, as its latest answers show them.

Laws: a cost is a median or a line through medians, so that a few odd answers do not move it far; prompts and outputs
are learned apart; what too few answers have shown is unknown, and `believed_costs.py` says what stands in.

Source: the line is Tukey's resistant line (J. Tukey, Exploratory Data Analysis, 1977, chapter 10), of which only the
slope is kept: its height is what every first byte takes however short its prompt is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from headway.domain.costs import ServiceCosts

_ANSWERS = 64  # the latest ones
_ANSWERS_MIN = 8  # before anything is believed
_OUTPUT_TOKENS_MIN = 8  # of an answer that tells of outputs: fewer come in one packet
_SPREAD = 2.0  # the long prompts are so many times the short ones where a line is drawn


class AnswerTimes(NamedTuple):
    """What one whole answer of a replica shows.

    Attributes:
        prefill_tokens: prompt tokens that were to be computed there when it was sent, its own included.
        prefill_seconds: that those took until its first byte; None where it came in one piece.
        output_tokens: of one of its sequences.
        output_seconds: from its first byte until its end; of one that came in one piece, from its dispatch.
    """

    prefill_tokens: int
    prefill_seconds: float | None
    output_tokens: int
    output_seconds: float


class LearnedCosts:
    """The costs of one replica. `as_of` is when an answer was taken in last, seconds; `-math.inf` before the first."""

    def __init__(self) -> None:
        self._prefills: deque[tuple[int, float]] = deque(maxlen=_ANSWERS)  # tokens, seconds
        self._decodes: deque[float] = deque(maxlen=_ANSWERS)  # seconds per token
        self.as_of = -math.inf
        self._known: tuple[float | None, float | None] | None = None  # per prompt and per output token, once asked for

    def answered(self, times: AnswerTimes, believed: ServiceCosts, now: float) -> None:
        """An answer ended.

        Of one that came in one piece, the smaller of its two parts is taken as `believed`, and the rest is the other's.
        """
        self._known = None
        tokens, outputs = times.prefill_tokens, times.output_tokens
        first, rest = times.prefill_seconds, times.output_seconds
        if first is not None:
            outputs -= 1  # the first token came with the first byte
        else:
            prefill = tokens * believed.prefill_seconds_per_token
            decode = outputs * believed.decode_seconds_per_token
            first, rest = (None, rest - prefill) if decode >= prefill else (rest - decode, 0.0)
        if first is not None and first > 0 and tokens > 0:
            self._prefills.append((tokens, first))
            self.as_of = now
        if rest > 0 and outputs >= _OUTPUT_TOKENS_MIN - 1:
            self._decodes.append(rest / outputs)
            self.as_of = now

    @property
    def prefill_seconds_per_token(self) -> float | None:
        """None while unknown."""
        return self._costs()[0]

    @property
    def decode_seconds_per_token(self) -> float | None:
        """None while unknown."""
        return self._costs()[1]

    def shown(self) -> dict[str, float]:
        """What is known: `input` and `output`, in seconds per token."""
        both = {"input": self.prefill_seconds_per_token, "output": self.decode_seconds_per_token}
        return {kind: seconds for kind, seconds in both.items() if seconds is not None}

    def _costs(self) -> tuple[float | None, float | None]:
        """Both, worked out once after an answer: it takes 0.1 ms."""
        if self._known is None:
            self._known = (
                _seconds_per_token(sorted(self._prefills)) if len(self._prefills) >= _ANSWERS_MIN else None,
                median(self._decodes) if len(self._decodes) >= _ANSWERS_MIN else None,
            )
        return self._known


def _seconds_per_token(ordered: Sequence[tuple[int, float]]) -> float:
    """The slope of the line through the medians of the shortest and of the longest third; else the median ratio."""
    third = len(ordered) // 3
    short, long = ordered[:third], ordered[-third:]
    few, many = median([tokens for tokens, _ in short]), median([tokens for tokens, _ in long])
    if many >= _SPREAD * few:
        slope = (median([s for _, s in long]) - median([s for _, s in short])) / (many - few)
        if slope > 0:
            return slope
    return median([seconds / tokens for tokens, seconds in ordered])
