"""Hints of clients about their own requests: priority, deadline, fairness id, session, output length. Untrusted.

Laws: hints that the key may not set are ignored, values are clamped, and malformed hints count as absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from headway.domain.engine_hints import MAX_STAGES
from headway.domain.later_deadlines import LaterDeadlines, ProgramStage, later_deadlines
from headway.gateway.openai.request_body import Body, agent_tables
from headway.gateway.settings import TenantSettings
from headway.gateway.wire.messages import COMMON_NAMES, HttpRequest

NO_OBJECTIVES: Mapping[str, int] = MappingProxyType({})
_DEADLINES = (b"x-llm-d-slo-ttft-ms", b"x-slo-ttft-ms", b"x-dynamo-slo-ttft-ms")
_TPOTS = (b"x-llm-d-slo-tpot-ms", b"x-slo-tpot-ms")
_ENDS = (b"x-headway-end-deadline-ms",)
_PROGRAM = (b"x-headway-program",)
_PROGRAM_STAGE = (b"x-headway-program-stage",)
_PROGRAM_STAGES = (b"x-headway-program-stages",)
_PROGRAM_DEADLINES = (b"x-headway-program-deadline-ms",)
_LATER = (*_TPOTS, *_ENDS, *_PROGRAM, *_PROGRAM_STAGE, *_PROGRAM_STAGES, *_PROGRAM_DEADLINES)
_FAIRNESS = (b"x-llm-d-inference-fairness-id", b"x-gateway-inference-fairness-id")
_SESSIONS = (
    b"x-claude-code-session-id",
    b"x-session-affinity",
    b"session-id",
    b"x-session-id",
    b"x-dynamo-session-id",
)
_CONTEXT = ("trajectory_id", "session_id")  # of Dynamo's agent context: one chain of turns, or else the whole run
LOWER_FIRST = (b"x-request-priority",)
HIGHER_FIRST = (b"x-dynamo-request-priority",)
_OBJECTIVES = (b"x-llm-d-inference-objective", b"x-gateway-inference-objective")
_OUTPUT = (b"x-headway-output-tokens",)
HINT_HEADERS: Mapping[bytes, str] = MappingProxyType(
    {
        **dict.fromkeys((*_DEADLINES, *_LATER), "deadline"),
        **dict.fromkeys(_FAIRNESS, "fairness-id"),
        **dict.fromkeys(_SESSIONS, "session"),
        **dict.fromkeys((*LOWER_FIRST, *HIGHER_FIRST, *_OBJECTIVES), "priority"),
        **dict.fromkeys(_OUTPUT, "output-tokens"),
    }
)
"""Header -> the hint that it gives; see `HINTS` of the settings."""
_NAME_CHARACTERS_MAX = 128
_DEADLINE_SECONDS_MAX = 86_400.0
_NUMBER_MAX = 1e12


class ClientHints(NamedTuple):
    """The hints that count. `deadline_seconds` is from arrival to first token; `later` counts from arrival, too."""

    priority: int = 0
    deadline_seconds: float | None = None
    fairness_id: str | None = None
    session: str | None = None
    output_tokens: int | None = None
    later: LaterDeadlines | None = None


def read_hints(
    request: HttpRequest,
    body: Body | None,
    tenant: TenantSettings,
    objectives: Mapping[str, int] = NO_OBJECTIVES,
    tier_priority: int | None = None,
) -> ClientHints:
    """The hints of a request that its tenant's key may set.

    `objectives` gives the priority of each objective that a client may name; higher is sooner. `tier_priority` is that
    of the service tier it names, if any; lower is sooner. It counts where the request names no other.
    """
    headers: dict[bytes, bytes] = {}
    for name, value in request.headers:
        if name in COMMON_NAMES:  # none of them is a hint
            continue
        dashed = name.replace(b"_", b"-")
        if dashed in HINT_HEADERS:
            headers.setdefault(dashed, value)
    may = tenant.may
    nested, context = agent_tables(body) if body is not None and may else ({}, {})
    if "priority" in may:
        priority = _priority(headers, body, nested, tenant, objectives, tier_priority)
    else:
        priority = tenant.priority_default or 0
    if not (headers or nested or context):  # as mostly
        return ClientHints(priority)
    return ClientHints(
        priority,
        deadline_seconds=_deadline(headers, tenant) if "deadline" in may else None,
        fairness_id=_name(headers, _FAIRNESS) if "fairness-id" in may else None,
        session=(_name(headers, _SESSIONS) or _text(context)) if "session" in may else None,
        output_tokens=_output_tokens(headers, nested) if "output-tokens" in may else None,
        later=_later(headers, tenant) if "deadline" in may else None,
    )


def _priority(
    headers: dict[bytes, bytes],
    body: Body | None,
    nested: dict[str, object],
    tenant: TenantSettings,
    objectives: Mapping[str, int],
    tier_priority: int | None,
) -> int:
    """With vLLM's sign (lower is sooner), within the limits of the key."""
    priority: float | None = None if body is None else body.priority
    if priority is None:
        priority = _number(headers, LOWER_FIRST)
    if priority is None:
        higher = _number(headers, HIGHER_FIRST)
        if higher is None:
            higher = _within_reason(nested.get("priority"))
        if higher is None and objectives:
            higher = objectives.get(_name(headers, _OBJECTIVES) or "")
        priority = None if higher is None else -higher
    if priority is None:
        priority = tenant.priority_default if tier_priority is None else tier_priority
    return max(tenant.priority_min, min(tenant.priority_max, int(priority or 0)))


def _deadline(
    headers: dict[bytes, bytes], tenant: TenantSettings, names: tuple[bytes, ...] = _DEADLINES
) -> float | None:
    milliseconds = _number(headers, names)
    if milliseconds is None or milliseconds <= 0:
        return None
    return max(tenant.deadline_seconds_min, min(_DEADLINE_SECONDS_MAX, milliseconds / 1000))


def _later(headers: dict[bytes, bytes], tenant: TenantSettings) -> LaterDeadlines | None:
    """Deadlines after the first token, and the place in a program; None where none is named."""
    if headers.keys().isdisjoint(_LATER):  # as mostly
        return None
    tpot, program = _number(headers, _TPOTS), _name(headers, _PROGRAM)
    place = None
    if program is not None:
        stage = _count(headers, _PROGRAM_STAGE) or 1
        stages = _count(headers, _PROGRAM_STAGES)
        known = stages if stages is not None and stages >= stage else None
        place = ProgramStage(program, stage, known, _deadline(headers, tenant, _PROGRAM_DEADLINES))
    return later_deadlines(
        tpot / 1000 if tpot is not None and tpot > 0 else None, _deadline(headers, tenant, _ENDS), place
    )


def _count(headers: dict[bytes, bytes], names: tuple[bytes, ...]) -> int | None:
    number = _number(headers, names)
    return int(number) if number is not None and 1 <= number <= MAX_STAGES else None


def _output_tokens(headers: dict[bytes, bytes], nested: dict[str, object]) -> int | None:
    tokens = _number(headers, _OUTPUT)
    if tokens is None:
        tokens = _within_reason(nested.get("osl"))
    return int(tokens) if tokens is not None and 1 <= tokens <= 1e7 else None


def _number(headers: dict[bytes, bytes], names: tuple[bytes, ...]) -> float | None:
    for name in names:
        if name in headers:
            try:
                number = float(headers[name])
            except ValueError:
                continue
            if math.isfinite(number) and abs(number) < _NUMBER_MAX:
                return number
    return None


def _within_reason(value: object) -> float | None:
    """A whole number of a body, unless it is absurdly large."""
    return float(value) if isinstance(value, int) and abs(value) < _NUMBER_MAX else None


def _name(headers: dict[bytes, bytes], names: tuple[bytes, ...]) -> str | None:
    for name in names:
        if headers.get(name):
            return headers[name].decode("latin-1")[:_NAME_CHARACTERS_MAX]
    return None


def _text(context: dict[str, object]) -> str | None:
    if not context:
        return None
    named = [context.get(name) for name in _CONTEXT]
    return next((name[:_NAME_CHARACTERS_MAX] for name in named if isinstance(name, str) and name), None)
