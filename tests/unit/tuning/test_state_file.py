"""State on disk: it comes back as it was, or a sentence says why not and nothing is lost by it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.config.atomic_file import check_folder
from headway.domain.costs import ServiceCosts
from headway.domain.event import Arrived
from headway.domain.request import Request
from headway.policies.ordering.ewsjf import Ewsjf
from headway.policies.ordering.fcfs import Fcfs
from headway.tuning.state_file import SavedState, Tried, Unreadable, read_state, restore, write_state

COSTS = ServiceCosts(1e-4, 1e-2)


def taught() -> Ewsjf:
    policy = Ewsjf(costs=COSTS)
    for number in range(300):
        request = Request(number, 0.0, 100 if number % 3 else 5_000)
        policy.lane(request)
        policy.observe(Arrived(request, 0.0))
    return policy


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ewsjf.state"
    assert read_state(path, "ewsjf") is None
    saved = SavedState("ewsjf", taught().state(), [Tried({"b_u": 1.5}, 0.7, 2.0, False)], "a problem")
    write_state(path, saved)
    back = read_state(path, "ewsjf")
    assert isinstance(back, SavedState)
    assert back.trials == saved.trials
    assert back.problem == "a problem"
    fresh = Ewsjf(costs=COSTS)
    assert restore(fresh, "ewsjf", back.learned) is None
    assert fresh.state() == taught().state()
    assert [entry.name for entry in tmp_path.iterdir()] == ["ewsjf.state"]


def test_no_call_to_json_writes_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread writes it, and while `json` encodes no other thread runs."""
    state = {
        "lines": [{"prediction": {"state": {"kinds": [[["a", n], {"7": [0.5, 1e-9]}] for n in range(50)]}}}, {}, []]
    }
    longest, dumps = [0], json.dumps

    def noted(value: object, **named: bool) -> str:
        text = dumps(value, **named)  # type: ignore[arg-type]
        longest[0] = max(longest[0], len(text))
        return text

    monkeypatch.setattr(json, "dumps", noted)
    write_state(tmp_path / "s", SavedState("ewsjf", state))
    assert 0 < longest[0] < 100
    monkeypatch.undo()
    content = json.loads((tmp_path / "s").read_text())
    assert content["learned"] == state
    assert (tmp_path / "s").read_text() == json.dumps(content) + "\n"


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    write_state(path, SavedState("ewsjf", {"a": 1}))
    before = path.read_bytes()

    def crash(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="no space left"):
        write_state(path, SavedState("ewsjf", {"a": 2}))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


@given(st.binary(max_size=60))
def test_no_bytes_make_it_raise(content: bytes) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp"), f"headway-state-{os.getpid()}")
    path.write_bytes(content)
    try:
        assert isinstance(read_state(path, "ewsjf"), Unreadable)
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "other"}, "not a state file"),
        ({"policy": "fair-share"}, "belongs to the policy 'fair-share'"),
        ({"trials": [{"values": {}}]}, "a part is missing"),
        ({"trials": 3}, "a part is missing"),
        ({"trials": [{"values": {"a": 10**400}, "reward": 1, "ttft_p99_seconds": 1, "fenced": 0}]}, "another kind"),
        ({"trials": [{"values": {}, "reward": math.nan, "ttft_p99_seconds": 1, "fenced": 0}]}, "not finite"),
        ({"learned": 7}, "a part is missing"),
    ],
)
def test_a_file_of_another_kind_is_told_in_a_sentence(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "s"
    write_state(path, SavedState("ewsjf", taught().state()))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    found = read_state(path, "ewsjf")
    assert isinstance(found, Unreadable)
    assert said in found.reason
    assert found.reason.endswith("; starting afresh")


def test_a_file_nested_without_end_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text('{"format": "headway-state", "learned": ' + "[" * 200_000)
    found = read_state(path, "ewsjf")
    assert isinstance(found, Unreadable)
    assert "cannot be read" in found.reason


def test_a_file_of_somebody_else_is_never_lost(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    path.write_text("a trace, say\n")
    for _ in range(2):
        write_state(path, SavedState("ewsjf", taught().state()))
    assert isinstance(read_state(path, "ewsjf"), SavedState)
    assert (tmp_path / "day.jsonl.before").read_text() == "a trace, say\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_policy_that_refuses_a_state_stays_fresh() -> None:
    other = Ewsjf(costs=COSTS, feature="prompt-tokens")
    found = restore(other, "ewsjf", taught().state())
    assert found is not None
    assert "learned from 'uncached-tokens'" in found
    assert other.state() == Ewsjf(costs=COSTS, feature="prompt-tokens").state()
    nothing = restore(Fcfs(), "fcfs", {})
    assert nothing is not None
    assert "learns nothing" in nothing


def test_no_older_file_is_lost_where_a_foreign_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for content in ("mine", "mine too"):
        path.write_text(content)
        write_state(path, SavedState("ewsjf", {}))
    assert [(tmp_path / name).read_text() for name in ("s.before", "s.before-2")] == ["mine", "mine too"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    write_state(link, SavedState("ewsjf", {"a": 1}))
    assert link.is_symlink()
    assert isinstance(read_state(target, "ewsjf"), SavedState)
    assert isinstance(read_state(link, "ewsjf"), SavedState)


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    device = Path("/dev/null")
    write_state(device, SavedState("ewsjf", {"a": 1}))
    assert device.is_char_device()
    assert read_state(device, "ewsjf") is None


def test_a_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe or a socket"):
        check_folder("state.path", str(tmp_path / "pipe"))
