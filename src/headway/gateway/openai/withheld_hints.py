"""Withheld hints: what a client's key does not allow is taken out of its request before any replica gets it.

Engines read priorities and hints from the body and from headers themselves. So what does not count in our queue must
not count in theirs, whatever is known of the replica.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from headway.domain import engine_hints
from headway.gateway.openai.client_hints import HIGHER_FIRST, HINT_HEADERS, LOWER_FIRST
from headway.gateway.openai.form_fields import delimiter_of
from headway.gateway.openai.found_fields import HINT_FIELDS, form_parts_of, found_fields, replace_values
from headway.gateway.openai.request_body import NO_PRIORITY, Body, top_level, with_fields
from headway.gateway.settings import TenantSettings
from headway.gateway.wire.messages import Headers, HttpRequest

_FIELDS = {name.encode(): name for name in HINT_FIELDS}
_NO_TIER = (None, "auto", "default", "standard_only")
"""Service tiers that ask for nothing beyond what the key has anyway."""
_AGENT_HINTS = {"priority": "priority", "osl": "output-tokens"}
"""Field of Dynamo's `nvext.agent_hints` -> the hint that it gives."""


def withhold(
    http: HttpRequest, body: Body | None, tenant: TenantSettings, priority: int, tier_priority: int | None = None
) -> None:
    """Take out of the request what its key does not allow.

    Args:
        http: the request; its headers and its body are replaced where they say too much. What of a large body is
            replaced is written when it is sent (`FoundFields`).
        body: the fields of its JSON body; None if they could not be read.
        tenant: of its key.
        priority: as its key allows it, in vLLM's sign.
        tier_priority: that of the service tier that it names, likewise; None where it names none.
    """
    http.change_headers(_allowed_headers(http.headers, tenant, priority))
    found = found_fields(http)
    if body is not None:
        changes = _changes(body.priority_bytes, body.arguments_bytes, body.agent_bytes, tenant, priority)
        may_name = "priority" in tenant.may and (tier_priority is None or tier_priority >= tenant.priority_min)
        if not may_name and body.endpoint.service_tiers and body.service_tier not in _NO_TIER:
            changes["service_tier"] = "default"
    elif http.body and (delimiter := delimiter_of(http.header(b"content-type") or b"")) is not None:
        _withhold_in_form(http, delimiter, tenant, priority)
        return
    elif http.body:
        fields: Mapping[str, bytes] = top_level(http.body) if found is None or found.json is None else found.json
        given = [fields.get(name, b"") for name in ("priority", "vllm_xargs", "nvext")]
        changes = _changes(given[0], given[1], given[2], tenant, priority)
    else:
        return
    if found is not None:
        found.changes |= changes
    elif changes:
        http.body = with_fields(http.body, changes)


def _withhold_in_form(http: HttpRequest, delimiter: bytes, tenant: TenantSettings, priority: int) -> None:
    """Take out of a form what its key does not allow: values are replaced, and all else keeps its bytes."""
    edits: dict[int, tuple[int, bytes]] = {}
    for part in form_parts_of(http, delimiter):
        named = part.names & _FIELDS.keys()
        if not named:
            continue
        value = allowed = http.body[part.start : part.end].strip()
        for name in named:
            given = dict.fromkeys(_FIELDS, b"") | {name: value}
            changes = _changes(given[b"priority"], given[b"vllm_xargs"], given[b"nvext"], tenant, priority)
            if changes:
                allowed = msgspec.json.encode(changes[_FIELDS[name]])
        if allowed is not value:
            edits[part.start] = part.end, allowed
    replace_values(http, edits)


def _allowed_headers(headers: Headers, tenant: TenantSettings, priority: int) -> Headers:
    named = [(HINT_HEADERS.get(name.replace(b"_", b"-")), name, value) for name, value in headers]
    if not any(hint for hint, _, _ in named):
        return headers
    limited = dict.fromkeys(LOWER_FIRST, b"%d" % priority) | dict.fromkeys(HIGHER_FIRST, b"%d" % -priority)
    return [
        (name, value)
        for hint, name, value in named
        if hint is None or (hint in tenant.may and limited.get(name.replace(b"_", b"-"), value) == value)
    ]


def _changes(
    priority_bytes: bytes, arguments_bytes: bytes, agent_bytes: bytes, tenant: TenantSettings, priority: int
) -> dict[str, object]:
    """The fields of the body to replace, so that only what the key allows is left of them."""
    changes: dict[str, object] = {}
    if bytes(priority_bytes) not in (*NO_PRIORITY, b"%d" % priority):
        changes["priority"] = priority
    arguments = top_level(arguments_bytes)
    if any(name in arguments for name in engine_hints.NAMES):  # only the gateway writes these
        changes["vllm_xargs"] = {name: value for name, value in arguments.items() if name not in engine_hints.NAMES}
    tables = top_level(agent_bytes)
    hints = top_level(tables.get("agent_hints", b""))
    allowed: dict[str, object] = {
        name: value for name, value in hints.items() if _AGENT_HINTS.get(name) in (None, *tenant.may)
    }
    if "priority" in allowed and bytes(hints["priority"]) != b"%d" % -priority:
        allowed["priority"] = -priority
    if allowed != hints:
        changes["nvext"] = {**tables, "agent_hints": allowed}
    return changes
