"""A request's state has one writer for each part, and its stage moves through a table that refines its life."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import headway.gateway
from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, Preempted, Refused
from headway.domain.request import Request
from headway.gateway.queueing.request_state import (
    REQUEST_STAGES,
    ArrivedRequest,
    GatewayRequest,
    QueuedRequest,
    RelayedAnswer,
    RequestMove,
    RequestStage,
)
from headway.scheduling.lifecycle import LIFE, Stage
from tests.support.gateway_requests import gateway_request

GATEWAY = Path(headway.gateway.__file__).parent
QUEUED = {*QueuedRequest.__slots__, *Request.__slots__} - {"estimate"}  # the scheduler stamps the estimate
WRITERS = {
    "queueing": QUEUED,
    "relay": set(RelayedAnswer.__slots__),
}


def foreign_writes(source: str, room: str) -> list[str]:
    """Assignments in a file of `room` to a part of a request's state that another room writes.

    What an object assigns to its own attribute (`self.status = 200`) is its own state, whatever the name. So is what is
    written to `http`, a message whose request has no state yet.
    """
    owned = {name: owner for owner, names in WRITERS.items() for name in names}
    owned |= dict.fromkeys([*ArrivedRequest.__slots__, "stage", "queued", "relayed"], "no room")
    found = []
    for node in ast.walk(ast.parse(source)):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        for target in [part for whole in targets for part in ast.walk(whole)]:
            if not isinstance(target, ast.Attribute) or not isinstance(target.ctx, ast.Store | ast.Del):
                continue
            is_own = isinstance(target.value, ast.Name) and target.value.id in ("self", "http")
            if not is_own and owned.get(target.attr, room) != room:
                found.append(f"line {target.lineno}: {ast.unparse(target)} is written by {owned[target.attr]}")
    return found


def test_each_part_is_written_by_one_room() -> None:
    # `wire` cannot name a request's state: it imports nothing of the rooms above (see the import contracts).
    files = [file for file in GATEWAY.rglob("*.py") if file.name != "request_state.py" and file.parent.name != "wire"]
    assert len(files) > 35
    written = {
        str(file.relative_to(GATEWAY)): foreign_writes(file.read_text(), file.relative_to(GATEWAY).parts[0])
        for file in files
    }
    assert {file: writes for file, writes in written.items() if writes} == {}


@pytest.mark.parametrize(
    ("room", "planted", "is_seen"),
    [
        ("relay", "request.queued.tries += 1", True),
        ("relay", "self.request.queued.tries = 1", True),
        ("queueing", "queued.tries += 1", False),
        ("queueing", "request.relayed.status = 200", True),
        ("queueing", "relayed.usage, other = None, 1", True),
        ("relay", "relayed.usage = None", False),
        ("observing", "request.arrived.traceparent = b''", True),
        ("queueing", "queued.arrived.traceparent = b''", True),
        ("queueing", "request.stage = 'ended'", True),
        ("observing", "del request.queued.arrived", True),
        ("observing", "setattr(request.relayed, 'status', 1)", True),
        ("openai", "self.usage = None", False),
        ("openai", "http.body = b''", False),
        ("openai", "request.arrived.http.body = b''", True),
    ],
)
def test_a_planted_write_is_seen(room: str, planted: str, is_seen: bool) -> None:
    assert bool(foreign_writes(planted, room)) is is_seen


def test_mypy_sees_that_what_arrived_is_final() -> None:
    annotations = ArrivedRequest.__annotations__
    assert annotations.keys() == set(ArrivedRequest.__slots__)
    assert all(annotation.startswith("Final[") for annotation in annotations.values())


STANDS_FOR = {
    RequestStage.ARRIVING: {Stage.OUTSIDE},
    RequestStage.QUEUED: {Stage.WAITING, Stage.EVICTED},
    RequestStage.CONNECTING: {Stage.PREFILLING},
    RequestStage.SENT: {Stage.PREFILLING},
    RequestStage.HELD: {Stage.PREFILLING},
    RequestStage.ANSWERING: {Stage.PREFILLING, Stage.DECODING},
    RequestStage.ENDED: {Stage.ENDED},
}
EVENTS: dict[RequestMove, tuple[type[Event], ...]] = {
    RequestMove.QUEUED: (Arrived,),
    RequestMove.DISPATCHED: (Admitted,),
    RequestMove.TAKEN_BACK: (Preempted,),
    RequestMove.ENDED: (Refused, Cancelled, Completed),
}


@pytest.mark.parametrize(("stage", "move"), REQUEST_STAGES.moves)
def test_every_move_is_a_move_of_the_life_that_policies_hear_of(stage: RequestStage, move: RequestMove) -> None:
    following = STANDS_FOR[REQUEST_STAGES.moves[stage, move]]
    events = EVENTS.get(move)
    for before in STANDS_FOR[stage]:
        if events is None:  # policies hear nothing: for them the request stays where it is
            assert before in following
        else:
            assert {LIFE.moves.get((before, event)) for event in events} & following, (before, move)


def test_every_stage_leads_to_the_end_and_none_leads_on_from_there() -> None:
    assert {stage for stage, move in REQUEST_STAGES.moves if move is RequestMove.ENDED} == {
        stage for stage in RequestStage if stage is not RequestStage.ENDED
    }
    assert not [stage for stage, _ in REQUEST_STAGES.moves if stage is RequestStage.ENDED]


def test_an_illegal_move_names_the_request_and_what_may_follow() -> None:
    request = gateway_request(7)
    request.move(RequestMove.QUEUED)
    with pytest.raises(
        ValueError, match=r"request 7 is queued and cannot be answered \(dispatched or ended may follow\)"
    ):
        request.move(RequestMove.ANSWERED)
    request.move(RequestMove.ENDED)
    with pytest.raises(ValueError, match=r"request 7 is ended and cannot be ended \(nothing may follow\)"):
        request.move(RequestMove.ENDED)


def test_a_debugger_shows_where_a_request_stands() -> None:
    request: GatewayRequest = gateway_request(7, model="m")
    assert repr(request) == "<request 7: arriving, tries=0, status=0, model='m', prompt_tokens=50>"
