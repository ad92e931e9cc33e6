"""What differs between versions of vLLM and between the engines of one server."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headway.bench.user_mistake import UserMistake
from headway.cli.explain_live import live_lines
from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.vllm_stub import Status, StubEngine, StubRequest


class TwoQueues(StubEngine):
    """As 0.20 to 0.28: a queue of their own for those that cannot run yet."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.skipped_waiting: Any = []


class Engine(PolicyScheduling, TwoQueues):
    """Ours over it."""


def test_a_second_queue_of_vllm_is_always_empty_and_keeps_nothing_of_its_own() -> None:
    engine = Engine(headway={"ordering": "shortest-prompt-first"})
    skipped = engine.skipped_waiting
    one, two, three = (StubRequest(f"r{number}", number) for number in (1, 2, 3))
    one.status = Status.WAITING_FOR_REMOTE_KVS
    skipped.add_request(one)
    engine.add_request(two)
    engine.add_request(three)
    assert (bool(skipped), len(skipped), len(engine.waiting)) == (False, 0, 3)
    assert [request.request_id for request in skipped] == ["r1"]
    for ask in (skipped.peek_request, skipped.pop_request):
        with pytest.raises(IndexError, match="this queue is always empty"):
            ask()
    engine.headway.before_schedule()
    assert engine.waiting.pop_request() is two
    skipped.prepend_request(two)
    assert engine.waiting.pop_request() is three
    skipped.prepend_requests([three])
    assert [request.request_id for request in skipped] == ["r1", "r2", "r3"]
    skipped.remove_request(two)
    skipped.remove_requests([three])
    assert [request.request_id for request in skipped] == ["r1"]
    assert len(engine.waiting) == 1


def test_vllm_is_given_our_queue_while_it_has_one_to_admit() -> None:
    engine = Engine()
    assert engine._select_waiting_queue_for_scheduling() is None
    engine.add_request(StubRequest("a", 1))
    assert engine._select_waiting_queue_for_scheduling() is engine.waiting


def test_a_version_without_a_second_queue_is_given_none() -> None:
    class Plain(PolicyScheduling, StubEngine):
        pass

    assert not hasattr(Plain(), "skipped_waiting")


@pytest.mark.parametrize(
    ("parallel", "name"),
    [
        (SimpleNamespace(data_parallel_index=2, data_parallel_rank=5), "2"),
        (SimpleNamespace(data_parallel_index=None, data_parallel_rank=5), "5"),
        (SimpleNamespace(data_parallel_rank=0), "0"),
        (SimpleNamespace(), "0"),
        (None, "0"),
    ],
)
def test_an_engine_is_named_by_its_data_parallel_index(parallel: object, name: str, tmp_path: Path) -> None:
    class Ranked(StubEngine):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.vllm_config.parallel_config = parallel

    class Named(PolicyScheduling, Ranked):
        pass

    log = tmp_path / "decisions.jsonl"
    engine = Named(headway={"decision_log": str(log)})
    assert f'engine="{name}"' in engine.headway.metrics.text()
    engine.shutdown()
    assert [path.name for path in tmp_path.iterdir()] == [
        "decisions.jsonl" if name == "0" else f"decisions-{name}.jsonl"
    ]


def test_each_engine_explains_on_a_port_of_its_own_until_it_ends() -> None:
    class Ranked(StubEngine):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.vllm_config.parallel_config.data_parallel_index = 3

    class Third(PolicyScheduling, Ranked):
        pass

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    engine = Third(headway={"why_listen": f"127.0.0.1:{port - 3}"})
    try:
        engine.add_request(StubRequest("a", 5))
        assert live_lines(f"http://127.0.0.1:{port}", "a")[0].startswith("a: (5 prompt tokens, 0 cached")
    finally:
        engine.shutdown()
    with pytest.raises(UserMistake, match="nothing answers there"):
        live_lines(f"http://127.0.0.1:{port}", "a")


def test_a_metrics_folder_that_was_not_configured_goes_with_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = []

    class Unconfigured(StubEngine):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.vllm_config.additional_config = None

        def shutdown(self) -> None:
            ended.append(self)

    class Plain(PolicyScheduling, Unconfigured):
        pass

    engine = Plain()
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith("-stub")
    engine.shutdown()
    assert list(tmp_path.iterdir()) == []
    assert ended == [engine], "vLLM's own end comes after ours"


def test_an_instance_without_an_id_has_no_metrics_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    class Nameless(StubEngine):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.vllm_config.additional_config = self.vllm_config.instance_id = None

    class Plain(PolicyScheduling, Nameless):
        pass

    Plain().shutdown()
    assert list(tmp_path.iterdir()) == []


class Sessions(StubEngine):
    """Requests that may go on: vLLM's hooks for it, of which a test calls one."""

    def _handle_stopped_request(self, request: StubRequest) -> bool:
        return request.output <= 1

    def _update_request_as_session(self, session: StubRequest, update: int) -> None:
        session.num_prompt_tokens += update
        session.status = Status.WAITING


class Ours(PolicyScheduling, Sessions):
    """Ours over it."""


def test_a_turn_ends_where_a_request_goes_on_and_not_where_it_stops() -> None:
    engine = Ours()
    ends, goes_on = StubRequest("ends", 5, output=1), StubRequest("goes on", 5)
    for request in (ends, goes_on):
        engine.add_request(request)
    engine.schedule()
    assert engine._handle_stopped_request(ends) is True
    assert engine.headway.book.batch.size == 2
    assert engine._handle_stopped_request(goes_on) is False
    assert engine.headway.book.batch.size == 1
    assert engine.headway.book.entries["goes on"].turn_over
    engine._update_request_as_session(goes_on, 30)
    entry = engine.headway.book.entries["goes on"]
    assert (entry.turn_over, entry.view.prompt_tokens) == (False, 35)


def test_a_running_session_whose_input_is_there_already_goes_on_as_a_request_of_its_own() -> None:
    engine = Ours()
    session = StubRequest("s", 5)
    engine.add_request(session)
    engine.schedule()
    engine._update_request_as_session(session, 30)
    assert engine.headway.book.batch.size == 0
    assert engine.headway.book.entries["s"].view.prompt_tokens == 35
