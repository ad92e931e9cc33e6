"""Prefill cost: seconds as a power of the tokens, fitted online and robustly to observed prefills.

Source of the form: C_prefill(b) = coefficient·b^exponent by log-log regression, EWSJF, arXiv 2601.21758; last 500
points, at least 10, exponent within [0.5, 3]: a public re-implementation. Ours: the regression is Theil–Sen (the
median of the slopes between pairs), so that a third of the observations may be wild; the unit is the second; and how
prefills are told apart when several are computed at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple, TypeAlias

from headway.domain.event import Admitted, Cancelled, Completed, Event, FirstToken, Preempted
from headway.domain.request import RequestId, RequestView, uncached_prefill_tokens

EXPONENT_MIN, EXPONENT_MAX = 0.5, 3.0
COEFFICIENT_MIN, COEFFICIENT_MAX = 1e-30, 1e30  # of a law taken back: no replica is out there
POINTS_KEPT = 500
POINTS_MIN = 10  # fewer fit nothing
POINTS_COMPARED = 80  # of those kept: pairs grow with the square
REFIT_EVERY = 200  # prefills; sooner while there are few
_LEVER = 2.0  # long prefills must be this many times the short ones to show overhead and power apart
_MEMBERS_MAX = 256  # prefills in one observation; beyond that the replica is saturated and a new one is begun


class PowerLaw(NamedTuple):
    """seconds(tokens) = coefficient · tokens^exponent, never below `floor_seconds`, a straight line to 0 below a point.

    Below `linear_below` tokens the cost is in proportion to them: a power fitted to long prompts says nothing of short
    ones, and its exponent would make them all but free.
    """

    coefficient: float
    exponent: float = 1.0
    floor_seconds: float = 0.0
    linear_below: float = 1.0

    def seconds(self, tokens: float) -> float:
        """Expected seconds of a prefill of `tokens` (at least 1)."""
        tokens = max(1.0, tokens)
        at = max(tokens, self.linear_below)
        return max(self.floor_seconds, self.coefficient * math.pow(at, self.exponent) * (tokens / at))


class PrefillPoint(NamedTuple):
    """One observation: so many prompt tokens took so many seconds."""

    tokens: int
    seconds: float


Fit: TypeAlias = Callable[[Sequence[PrefillPoint], PowerLaw], PowerLaw]
"""(points, prior) -> the law."""


def fit_power_law(points: Sequence[PrefillPoint], prior: PowerLaw) -> PowerLaw:
    """Theil–Sen in log-log over at most 80 of the points, evenly taken; `prior` with fewer than 10 points.

    Where all points have nearly the same tokens the exponent is the prior's and only the coefficient is fitted. The
    floor is the shortest of the points.
    """
    usable = [point for point in points if point.tokens > 0 and 0 < point.seconds < math.inf]
    if len(usable) < POINTS_MIN:
        return prior
    logs = [(math.log(tokens), math.log(seconds)) for tokens, seconds in _thinned(usable)]
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(logs, 2) if abs(x2 - x1) > 0.05]
    exponent = median(slopes) if len(slopes) >= POINTS_MIN else prior.exponent
    exponent = min(EXPONENT_MAX, max(EXPONENT_MIN, exponent))
    coefficient = math.exp(median([y - exponent * x for x, y in logs]))
    return PowerLaw(coefficient, exponent, min(point.seconds for point in usable))


def fit_beyond_overhead(points: Sequence[PrefillPoint], prior: PowerLaw) -> PowerLaw:
    """The same of what a prefill adds to the steps that run anyway; ours, and what the bounded variant goes by.

    A step costs time whatever is in it, and on a busy replica most short prefills last one or two steps. Counted as
    theirs, that overhead makes a prompt of 4,000 tokens look 12 times as dear as one of 32 and not 120 times. So the
    overhead is estimated first, as the intercept of a Theil–Sen line of seconds over tokens, and taken off; the law
    is fitted to the longer half of the prefills, where what is left stands out from the noise.
    """
    usable = [point for point in points if point.tokens > 0 and 0 < point.seconds < math.inf]
    if len(usable) < 2 * POINTS_MIN:
        return prior
    ordered = sorted(point.tokens for point in usable)
    if ordered[int(0.9 * len(ordered))] < _LEVER * ordered[int(0.1 * len(ordered))]:
        # Steps full to the budget, all alike.
        return PowerLaw(median([point.seconds / point.tokens for point in usable]))
    thinned = _thinned(usable)
    pairs = [(a, b) for a, b in combinations(thinned, 2) if a.tokens != b.tokens]
    slopes = [(b.seconds - a.seconds) / (b.tokens - a.tokens) for a, b in pairs]
    slope = median(slopes) if len(slopes) >= POINTS_MIN else 0.0
    overhead = max(0.0, median([seconds - slope * tokens for tokens, seconds in usable])) if slope > 0 else 0.0
    middle = median([tokens for tokens, _ in usable])
    left = [PrefillPoint(tokens, seconds - overhead) for tokens, seconds in usable if tokens >= middle]
    law = fit_power_law(left, prior)
    return law if law is prior else law._replace(floor_seconds=0.0, linear_below=float(middle))


def _thinned(points: Sequence[PrefillPoint]) -> Sequence[PrefillPoint]:
    """At most 80 of them, evenly taken, the latest always among them."""
    return points[::-1][:: max(1, -(-len(points) // POINTS_COMPARED))]


class CostFit:
    """The power law in force, and the prefills it was fitted to by `fit`.

    How long a prefill took is read off admissions and first tokens, as one reads service times off a busy single
    server: prefills whose first tokens come out together cost the time since the ones before came out, or since their
    own admission where that was later. While a prompt admitted before that is still being computed, time and tokens
    are carried forward to the next first token, for part of the time was its. `tokens_of` counts a request's tokens;
    ask the law in the same unit.
    """

    def __init__(
        self,
        prior: PowerLaw,
        fit: Fit = fit_power_law,
        tokens_of: Callable[[RequestView], int] = uncached_prefill_tokens,
    ) -> None:
        self._prior = prior
        self._fit = fit
        self._tokens_of = tokens_of
        self.law = prior
        self.points: deque[PrefillPoint] = deque(maxlen=POINTS_KEPT)
        self._computing: dict[RequestId, tuple[float, int]] = {}  # admitted at, tokens
        self._done: list[tuple[float, int]] = []  # the same, of requests whose first token is not counted yet
        self._token_at = -math.inf  # when the latest first tokens came out
        self._since = -math.inf  # when those before them did
        self._unfitted = 0

    def observe(self, event: Event) -> bool:
        """Take note; True if the law changed."""
        changed = False
        if self._done and event.at > self._token_at:
            changed = self._close()
        request_id = event.request.id
        match event:
            case Admitted(request=request, at=at) if request.produced_tokens == 0:
                self._computing[request_id] = (at, self._tokens_of(request))
            case FirstToken(at=at):
                started = self._computing.pop(request_id, None)
                if started is not None:
                    self._done.append(started)
                    self._token_at = at
            case Preempted() | Cancelled() | Completed():
                self._computing.pop(request_id, None)
            case _:
                pass
        return changed

    def _close(self) -> bool:
        """Count what came out at `_token_at`, unless a prompt begun earlier is still being computed."""
        if len(self._done) < _MEMBERS_MAX and any(at < self._since for at, _ in self._computing.values()):
            return False
        seconds = self._token_at - max(self._since, min(at for at, _ in self._done))
        tokens = sum(tokens for _, tokens in self._done)
        self._since = self._token_at
        self._done.clear()
        return self.add(PrefillPoint(tokens, seconds))

    def add(self, point: PrefillPoint) -> bool:
        """One more observation, from outside; True if the law changed with it."""
        if point.tokens < 1 or not 0 < point.seconds < math.inf:
            return False
        self.points.append(point)
        self._unfitted += 1
        due = min(REFIT_EVERY, max(POINTS_MIN, len(self.points) // 2))
        if self._unfitted < due:
            return False
        self._unfitted = 0
        self.law = self._fit(self.points, self._prior)
        return True

    def state(self) -> dict[str, object]:
        """What survives a restart, as plain values."""
        return {"law": list(self.law), "points": [list(point) for point in self.points]}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take back what `state` gave, all of it or nothing.

        Raises ValueError, TypeError, KeyError or OverflowError when it is something else.
        """
        law, points = state["law"], state["points"]
        if not (isinstance(law, list) and isinstance(points, list) and len(law) == 4):
            raise ValueError("the cost fit must have a law of four numbers and a list of points")
        fitted = PowerLaw(*(float(number) for number in law))
        sound = COEFFICIENT_MIN <= fitted.coefficient <= COEFFICIENT_MAX
        sound = sound and EXPONENT_MIN <= fitted.exponent <= EXPONENT_MAX
        if not (sound and 0 <= fitted.floor_seconds < math.inf and 1 <= fitted.linear_below < math.inf):
            raise ValueError(f"the cost fit {fitted} is out of range")
        kept = [PrefillPoint(int(tokens), float(seconds)) for tokens, seconds in points]
        if not all(tokens >= 1 and 0 < seconds < math.inf for tokens, seconds in kept):
            raise ValueError("the cost fit was made from prefills without tokens or without an end")
        self.law, self.points = fitted, deque(kept, maxlen=POINTS_KEPT)
