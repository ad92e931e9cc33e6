"""A recording is always a new file, in order of arrival, of whole answers, and its memory is bounded."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from headway.bench.calibration.recording_files import read_recording
from headway.bench.traces.loading import load_trace
from headway.domain.later_deadlines import LaterDeadlines, ProgramStage
from headway.gateway.observing import trace_recorder
from headway.gateway.observing.trace_recorder import TraceRecorder
from headway.gateway.openai.usage import Usage
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest
from tests.support.gateway_requests import gateway_request


def opened(path: Path, began: float) -> TraceRecorder:
    recorder = TraceRecorder(path, began)
    recorder.open()
    return recorder


def test_a_recording_never_writes_into_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    opened(path, 0.0).close()
    assert path.stat().st_mode & 0o777 == 0o600  # it names tenants
    with pytest.raises(ValueError, match=r"record: .*night\.jsonl exists already.*night-%Y%m%d-%H%M%S\.jsonl"):
        TraceRecorder(path, 0.0)


def test_a_recording_that_is_not_opened_leaves_no_file(tmp_path: Path) -> None:
    late = TraceRecorder(tmp_path / "night.jsonl", 0.0)
    late.close()
    assert list(tmp_path.iterdir()) == []
    opened(tmp_path / "night.jsonl", 0.0).close()
    with pytest.raises(ValueError, match="exists already"):
        late.open()
    with pytest.raises(ValueError, match="its folder does not exist"):
        TraceRecorder(tmp_path / "none" / "night.jsonl", 0.0)


def test_the_time_of_the_start_makes_a_name_new(tmp_path: Path) -> None:
    opened(tmp_path / "night-%Y%m%d-%H%M%S.jsonl", 0.0).close()
    (written,) = tmp_path.iterdir()
    assert re.fullmatch(r"night-\d{8}-\d{6}\.jsonl", written.name)


def answered(number: int, arrived_at: float, output: int = 10, **body: object) -> GatewayRequest:
    request = gateway_request(number, {"model": "m", "prompt": "x", **body}, arrived_at=arrived_at, session="s")
    request.relayed.status = 200
    request.relayed.usage = Usage(50, output, 0)
    return request


def lines_of(path: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_stand_in_order_of_arrival_also_where_requests_end_late(tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    recorder = opened(path, 0.0)
    requests = [answered(number, float(number)) for number in range(1, 8)]
    for request in requests:
        recorder.arrived(request)
    for request in requests[1:6]:
        recorder.ended(request, Outcome.COMPLETED, None, 20.0)
    recorder.flush(21.0)
    assert lines_of(path) == []  # the first is open, and they have not waited for long
    recorder.flush(100.0)
    assert len(lines_of(path)) == 5, "a crash would lose them"
    recorder.ended(requests[0], Outcome.COMPLETED, None, 200.0)
    recorder.ended(requests[6], Outcome.COMPLETED, None, 200.0)
    recorder.close()
    assert [line["timestamp"] for line in lines_of(path)] == [number * 1000 for number in range(1, 8)]
    assert [line["turn"] for line in lines_of(path)] == list(range(7))
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_programs_are_recorded_by_number_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    recorder = opened(path, 0.0)
    for number, name in ((1, "secret task"), (2, "other"), (3, "secret task")):
        later = LaterDeadlines(0.05, number + 9.0, ProgramStage(name, number, 7, 60.0))
        body: dict[str, object] = {"model": "m", "prompt": "x"}
        request = gateway_request(number, body, arrived_at=float(number), later_deadlines=later)
        request.relayed.status = 200
        request.relayed.usage = Usage(50, 10, 0)
        recorder.arrived(request)
        recorder.ended(request, Outcome.COMPLETED, None, 20.0)
    recorder.close()
    assert "secret" not in path.read_text()
    trace = load_trace(str(path)).trace
    assert trace.program is not None
    assert trace.program.tolist() == [0, 1, 0]
    assert trace.stage is not None
    assert trace.stage.tolist() == [1, 2, 3]
    assert trace.program_deadline_seconds is not None
    assert trace.program_deadline_seconds.tolist() == [59.0, 58.0, 57.0], "from each arrival"
    assert trace.end_deadline_seconds is not None
    assert trace.end_deadline_seconds.tolist() == [9.0] * 3


def test_what_waits_for_an_open_request_is_bounded(tmp_path: Path) -> None:
    recorder = opened(tmp_path / "night.jsonl", 0.0)
    recorder.arrived(answered(1, 1.0))
    request = answered(2, 2.0)
    for number in range(2, 12_002):
        recorder._open[number] = {}
        recorder.ended(
            answered(number, 2.0) if number < 4 else _numbered(request, number), Outcome.COMPLETED, None, 3.0
        )
    assert len(recorder._held) == 10_000
    recorder.close()
    assert len(lines_of(tmp_path / "night.jsonl")) == 12_000


def test_a_slow_disk_holds_up_nothing_and_ends_the_recording_before_memory_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trace_recorder, "_UNWRITTEN_BYTES_MAX", 2_000)
    is_free, threads = threading.Event(), set()

    async def record() -> None:
        recorder = opened(tmp_path / "night.jsonl", 0.0)
        put = recorder._put

        def put_slowly(batch: list[tuple[bool, str]]) -> None:
            threads.add(threading.current_thread())
            assert is_free.wait(120)
            put(batch)

        monkeypatch.setattr(recorder, "_put", put_slowly)
        for number in range(1, 101):
            recorder.arrived(answered(number, float(number)))
            recorder.ended(answered(number, float(number)), Outcome.COMPLETED, None, 200.0)
            recorder.flush_soon(200.0)  # returns at once, however slow the disk is
            await asyncio.sleep(0)
        assert len(threads) == 1
        assert threading.current_thread() not in threads
        assert recorder._unwritten_bytes < 2_500
        is_free.set()
        await recorder.end()
        assert recorder._given_up == []

    asyncio.run(record())
    assert "recording stopped: " in caplog.text
    assert "the disk is too slow" in caplog.text


def _numbered(request: GatewayRequest, number: int) -> GatewayRequest:
    request.arrived.number = number  # type: ignore[misc]
    return request


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED, Outcome.REFUSED])
def test_a_request_without_a_whole_answer_has_no_length_and_no_times(tmp_path: Path, outcome: Outcome) -> None:
    path = tmp_path / "night.jsonl"
    recorder = opened(path, 0.0)
    requests = [answered(1, 1.0), answered(2, 2.0)]
    for request in requests:
        recorder.arrived(request)
    recorder.ended(requests[0], outcome, None, 2.0)
    recorder.ended(requests[1], Outcome.COMPLETED, None, 3.0)
    recorder.close()
    first, second = lines_of(path)
    assert first["outcome"] == outcome.value
    assert not first.keys() & {"output_length", "ttft_ms", "e2e_ms", "cached_tokens"}
    assert second["outcome"] == "completed"
    loaded = load_trace(str(path))
    assert len(loaded.trace) == 1
    assert any(f"1 entry is left out because `outcome` is '{outcome.value}'" in note for note in loaded.notes)


def test_what_was_measured_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    recorder = opened(path, 0.0)
    streamed, whole = answered(1, 1.0, stream=True), answered(2, 2.0)
    streamed.relayed.usage = Usage(50, 10, 32)
    for request, first in ((streamed, 1.25), (whole, 2.5)):
        recorder.arrived(request)
        request.relayed.first_byte_at = first
    recorder.ended(streamed, Outcome.COMPLETED, None, 1.75)
    recorder.ended(whole, Outcome.COMPLETED, None, 2.5)
    recorder.close()
    first, second = lines_of(path)
    assert (first["ttft_ms"], first["e2e_ms"], first["cached_tokens"], first["outcome"]) == (250, 750, 32, "completed")
    assert second["e2e_ms"] == 500.0
    assert "ttft_ms" not in second, "the first token of an answer that came as a whole was not seen"
    recording = read_recording(str(path))
    assert recording.ttft_seconds[0] == 0.25
    assert np.isnan(recording.ttft_seconds[1])


@pytest.mark.parametrize(
    ("body", "sequences", "prompt"),
    [
        ({"n": 4}, 4, 50),
        ({"n": 1, "best_of": 3}, 3, 50),
        ({"prompt": ["a", "b"]}, 2, 25),
        ({"n": 2, "prompt": ["a", "b"]}, 4, 25),
    ],
)
def test_each_sequence_is_a_line(tmp_path: Path, body: dict[str, object], sequences: int, prompt: int) -> None:
    recorder = opened(tmp_path / "night.jsonl", 0.0)
    request = answered(1, 1.0, output=100 * sequences, **body)
    recorder.arrived(request)
    recorder.ended(request, Outcome.COMPLETED, None, 2.0)
    recorder.close()
    lines = lines_of(tmp_path / "night.jsonl")
    assert [(line["input_length"], line["output_length"]) for line in lines] == [(prompt, 100)] * sequences
    assert ["session_id" in line for line in lines] == [True] + [False] * (sequences - 1)
