"""Hints of clients count as far as their key allows, under every name that engines know them by."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from headway.domain.later_deadlines import LaterDeadlines, ProgramStage
from headway.gateway.openai.client_hints import HINT_HEADERS, ClientHints, read_hints
from headway.gateway.openai.request_body import read_body
from headway.gateway.settings import TenantSettings
from headway.gateway.wire.messages import COMMON_NAMES, HttpRequest


def hints(headers: dict[str, str], body: object = None, **may: object) -> ClientHints:
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    read = read_body(json.dumps(body).encode()) if body is not None else None
    tenant = TenantSettings(name="t", key_env="X", **may)  # type: ignore[arg-type]
    return read_hints(HttpRequest(b"POST", b"/", lines), read, tenant)


ALL = ("priority", "deadline", "fairness-id", "session", "output-tokens")


SAID = {
    "x-request-priority": "-7",
    "x-llm-d-slo-ttft-ms": "250",
    "x-llm-d-inference-fairness-id": "team",
    "session_id": "s1",
    "x-headway-output-tokens": "40",
}


def test_hints_are_heard_only_as_far_as_the_key_allows() -> None:
    assert hints(SAID, may=()) == ClientHints()
    assert hints(SAID, may=ALL, priority_min=-3) == ClientHints(-3, 0.25, "team", "s1", 40)
    assert hints(SAID, may=("deadline",), deadline_seconds_min=1.0) == ClientHints(deadline_seconds=1.0)


def test_deadlines_after_the_first_token_and_programs() -> None:
    told = {
        "x-slo-tpot-ms": "62.5",
        "x-headway-end-deadline-ms": "9000",
        "x-headway-program": "task",
        "x-headway-program-stage": "2",
        "x-headway-program-stages": "5",
        "x-headway-program-deadline-ms": "60000",
    }
    whole = LaterDeadlines(0.0625, 9.0, ProgramStage("task", 2, 5, 60.0))
    assert hints(told, may=ALL).later == whole
    assert hints(told, may=("session",)).later is None
    floored = LaterDeadlines(0.0625, 30.0, ProgramStage("task", 2, 5, 60.0))
    assert hints(told, may=ALL, deadline_seconds_min=30.0).later == floored
    assert hints({"x-llm-d-slo-tpot-ms": "20"}, may=ALL).later == LaterDeadlines(tpot_seconds=0.02)
    odd = {"x-slo-tpot-ms": "-1", "x-headway-program-stage": "2", "x-headway-end-deadline-ms": "nan"}
    assert hints(odd, may=ALL).later is None
    alone = {"x-headway-program": "p", "x-headway-program-stage": "x", "x-headway-program-stages": "0"}
    assert hints(alone, may=ALL).later == LaterDeadlines(program=ProgramStage("p"))
    assert hints(told | {"x-headway-program-stages": "1"}, may=ALL).later == LaterDeadlines(
        0.0625, 9.0, ProgramStage("task", 2, None, 60.0)
    )


def test_hints_by_their_other_names_and_signs() -> None:
    nested = {"nvext": {"agent_hints": {"priority": 4, "osl": 90}}}
    assert hints({}, nested, may=ALL, priority_min=-9) == ClientHints(priority=-4, output_tokens=90)
    assert hints({"x-dynamo-request-priority": "-2"}, may=ALL).priority == 2
    assert hints({"x-claude-code-session-id": "c", "session-id": "s"}, may=ALL).session == "c"
    assert hints({}, {"priority": 5}, may=ALL).priority == 5


def test_numbers_of_any_length_are_heard_or_not_and_never_raise() -> None:
    endless = 10**400
    assert hints({}, {"nvext": {"agent_hints": {"priority": endless, "osl": endless}}}, may=ALL) == ClientHints()
    assert hints({}, {"priority": endless}, may=ALL).priority == 100


def test_sessions_and_objectives_by_their_other_names() -> None:
    context = {"nvext": {"agent_context": {"session_id": "run", "trajectory_id": "run:coder"}}}
    assert hints({}, context, may=ALL).session == "run:coder"
    assert hints({"x-dynamo-session-id": "d"}, context, may=ALL).session == "d"
    assert hints({}, {"nvext": {"agent_context": {"session_id": "run"}}}, may=("session",)).session == "run"
    assert hints({}, context, may=("priority",)).session is None
    for odd in (5, [1], {"agent_context": 3, "agent_hints": "x"}, {"agent_context": {"session_id": 4}}):
        assert hints({}, {"nvext": odd}, may=ALL) == ClientHints()

    def objective(name: str, *may: str) -> int:
        tenant = TenantSettings(name="t", key_env="X", may=may, priority_min=-5)
        request = HttpRequest(b"POST", b"/", [(b"x-llm-d-inference-objective", name.encode())])
        return read_hints(request, None, tenant, {"chat": 3, "batch": -50, "root": 99}).priority

    assert [objective(name, "priority") for name in ("chat", "batch", "root", "other", "")] == [-3, 50, -5, 0, 0]
    assert objective("chat", "session") == 0


@given(st.dictionaries(st.sampled_from(sorted(SAID)), st.text(st.characters(codec="latin-1"), max_size=300)))
def test_nonsense_is_as_if_unsaid(headers: dict[str, str]) -> None:
    lines = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    tenant = TenantSettings(name="t", key_env="X", may=ALL)
    found = read_hints(HttpRequest(b"POST", b"/", lines), None, tenant)
    assert tenant.priority_min <= found.priority <= tenant.priority_max
    assert found.deadline_seconds is None or 0.1 <= found.deadline_seconds <= 86_400
    assert found.output_tokens is None or found.output_tokens >= 1
    assert found.session is None or len(found.session) <= 128


def test_no_header_that_most_requests_have_is_a_hint() -> None:
    assert HINT_HEADERS.keys().isdisjoint(COMMON_NAMES)  # so that reading hints may pass them by
