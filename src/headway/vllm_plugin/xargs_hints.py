"""Hints in `vllm_xargs`: read from a client's request, forced into bounds, and expected lengths corrected.

A malformed hint is ignored and counted, never an error: a client's mistake must not cost it its answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from headway.domain.engine_hints import (
    CLASS,
    DEADLINE_MS,
    END_DEADLINE_MS,
    EXPECTED_TOKENS,
    LATER_NAMES,
    MAX_DEADLINE_MS,
    MAX_EXPECTED_TOKENS,
    MAX_PROGRAM_MS,
    MAX_RANK,
    MAX_STAGES,
    MAX_TEXT,
    NAMES,
    PROGRAM,
    PROGRAM_DEADLINE_MS,
    PROGRAM_STAGE,
    PROGRAM_STAGES,
    RANK,
    SESSION,
    TENANT,
    TPOT_MS,
)
from headway.domain.estimate import GeometricEstimate, LengthEstimate
from headway.domain.event import Cancelled, Completed, Event
from headway.domain.later_deadlines import LaterDeadlines, ProgramStage, later_deadlines
from headway.domain.request import RequestId, RequestView
from headway.policies.contracts import LengthPredictor
from headway.policies.event_fanout import EventFanout

_CLASSES = ("online", "offline")
_CORRECTION_BOUND = 16.0
_TENANTS_REMEMBERED = 1024
_KEEP = 0.5 ** (1 / 50)  # the weight of an observation halves with each further 50 of its tenant


class XargsHints(NamedTuple):
    """One request's hints, within bounds. `ignored`: names of malformed hints; `later`: from its arrival on."""

    expected_tokens: int | None = None
    deadline_seconds: float | None = None
    tenant: str = ""
    session: str | None = None
    rank: int | None = None
    ignored: tuple[str, ...] = ()
    is_offline: bool = False
    later: LaterDeadlines | None = None


NO_HINTS = XargsHints()


def read_hints(arguments: object) -> XargsHints:
    """The hints in vLLM's `sampling_params.extra_args`; never raises."""
    if not isinstance(arguments, Mapping):
        return NO_HINTS
    given = {name: arguments[name] for name in NAMES if name in arguments}
    if not given:
        return NO_HINTS
    expected = _number(given.get(EXPECTED_TOKENS), 1, MAX_EXPECTED_TOKENS)
    deadline = _number(given.get(DEADLINE_MS), 0, MAX_DEADLINE_MS)
    rank = _number(given.get(RANK), -MAX_RANK, MAX_RANK)
    request_class = next((name for name in _CLASSES if name == given.get(CLASS)), None)
    tenant, session = _text(given.get(TENANT)), _text(given.get(SESSION))
    read = {EXPECTED_TOKENS: expected, DEADLINE_MS: deadline, RANK: rank, TENANT: tenant, SESSION: session}
    read[CLASS] = request_class
    later = _read_later(given) if any(name in given for name in LATER_NAMES) else {}
    read |= later
    return XargsHints(
        None if expected is None else round(expected),
        None if deadline is None else deadline / 1000,
        tenant or "",
        session,
        None if rank is None else round(rank),
        tuple(name for name in given if read[name] is None),
        request_class == "offline",
        _later(later) if later else None,
    )


def _read_later(given: Mapping[str, object]) -> dict[str, float | str | None]:
    """Deadlines after the first token and the place in a program, by the names of their hints."""
    return {
        TPOT_MS: _number(given.get(TPOT_MS), 1e-3, MAX_DEADLINE_MS),
        END_DEADLINE_MS: _number(given.get(END_DEADLINE_MS), 0, MAX_PROGRAM_MS),
        PROGRAM: _text(given.get(PROGRAM)),
        PROGRAM_STAGE: _number(given.get(PROGRAM_STAGE), 1, MAX_STAGES),
        PROGRAM_STAGES: _number(given.get(PROGRAM_STAGES), 1, MAX_STAGES),
        PROGRAM_DEADLINE_MS: _number(given.get(PROGRAM_DEADLINE_MS), 0, MAX_PROGRAM_MS),
    }


def _later(read: Mapping[str, float | str | None]) -> LaterDeadlines | None:
    """The same as they travel; a stage beyond the number of stages leaves that number unknown."""

    def seconds(name: str) -> float | None:
        value = read[name]
        return value / 1000 if isinstance(value, float | int) else None

    program, stage, stages = read[PROGRAM], read[PROGRAM_STAGE], read[PROGRAM_STAGES]
    place = None
    if isinstance(program, str):
        at = round(stage) if isinstance(stage, float | int) else 1
        known = round(stages) if isinstance(stages, float | int) and stages >= at else None
        place = ProgramStage(program, at, known, seconds(PROGRAM_DEADLINE_MS))
    return later_deadlines(seconds(TPOT_MS), seconds(END_DEADLINE_MS), place)


def _number(value: object, least: float, most: float) -> float | None:
    """A number forced into its bounds; a text that parses as a number counts, as proxies turn numbers into texts."""
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        return None
    return min(max(value, least), most)


def _text(value: object) -> str | None:
    if not isinstance(value, str) or not value or not value.isprintable():
        return None
    return value[:MAX_TEXT]


class HintedLengths:
    """Predictor of hinted lengths, corrected by how the tenant's earlier hints came true; else it asks `inner`.

    Inside vLLM any client may hint, so a hint is corrected. (The gateway's `HintedPrediction` trusts a hint as it is:
    there an API key must allow it.) Per tenant the decayed ratio of output tokens to hinted tokens multiplies the next
    hint, within 1/16 … 16. The estimate is geometric around the corrected hint: an expectation and no promise.
    """

    def __init__(self, inner: LengthPredictor) -> None:
        self._inner = inner
        self._inner_listeners = EventFanout(inner).listeners
        self._hinted: dict[RequestId, int] = {}
        self._ratios: dict[str, tuple[float, float]] = {}  # tenant → decayed (tokens produced, tokens hinted)

    def hint(self, request_id: RequestId, expected_tokens: int) -> None:
        """Note what a request's client expects, before `predict` is asked."""
        self._hinted[request_id] = expected_tokens

    def predict(self, request: RequestView) -> LengthEstimate:
        """The corrected hint, or the inner predictor's estimate where there is none."""
        hinted = self._hinted.get(request.id)
        if hinted is None:
            return self._inner.predict(request)
        mean_tokens = max(1.0, hinted * self.correction(request.tenant))
        return GeometricEstimate(mean_tokens, request.max_output_tokens, "hint")

    def correction(self, tenant: str) -> float:
        """The factor for a tenant's hints; 1 while nothing is known of them."""
        produced, hinted = self._ratios.get(tenant, (0.0, 0.0))
        ratio = (produced + 100.0) / (
            hinted + 100.0
        )  # a hundred tokens' worth of doubt: one short answer proves little
        return min(max(ratio, 1 / _CORRECTION_BOUND), _CORRECTION_BOUND)

    def observe(self, event: Event) -> None:
        """Compare a completed request's hint with its output. The inner predictor hears every event."""
        for listener in self._inner_listeners:
            listener.observe(event)
        if isinstance(event, Completed):
            hinted = self._hinted.pop(event.request.id, None)
            if hinted is not None:
                produced_before, hinted_before = self._ratios.pop(event.request.tenant, (0.0, 0.0))
                if len(self._ratios) >= _TENANTS_REMEMBERED:
                    del self._ratios[next(iter(self._ratios))]
                produced = produced_before * _KEEP + event.output_tokens
                self._ratios[event.request.tenant] = (produced, hinted_before * _KEEP + hinted)
        elif isinstance(event, Cancelled):
            self._hinted.pop(event.request.id, None)
