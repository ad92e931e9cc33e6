"""Files as other programs write them: any order, nested fields, numbers in quotes, arrays, unknown fields."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headway.bench.traces.loading import load_trace
from headway.bench.traces.unknown_fields import columns_line
from headway.bench.traces.writing import write_jsonl
from headway.bench.user_mistake import UserMistake
from headway.simulator.trace import Trace
from tests.support.trace_samples import assert_alike, lines_file, request, traces

NESTED = {"at": "2026-11-30T10:00:00.250Z", "usage": {"prompt_tokens": "12", "completion_tokens": 7}, "team": "a"}
COLUMNS = "arrival=at,prompt=usage.prompt_tokens,output=usage.completion_tokens,tenant=team"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trace=traces(), seed=st.integers(0, 99))
def test_lines_in_any_order_are_the_same_trace(tmp_path: Path, trace: Trace, seed: int) -> None:
    if trace.session is not None or trace.adapter is not None or len(set(trace.arrived_seconds)) < len(trace):
        return  # turns must stand in order; adapters and equal arrivals are numbered by line
    path = tmp_path / "t.jsonl"
    write_jsonl(trace, path)
    lines = path.read_text().splitlines(keepends=True)
    straight = load_trace(str(path))
    random.Random(seed).shuffle(lines)
    path.write_text("".join(lines))
    shuffled = load_trace(str(path))
    assert_alike(straight.trace, shuffled.trace)
    assert shuffled.lines is not None
    for row, line in enumerate(shuffled.lines.tolist()):
        assert json.loads(lines[line - 1])["input_length"] == shuffled.trace.prompt_tokens[row]


def test_sessions_in_a_log_of_ends_keep_their_turns(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        request(5, session_id="b", think_time_ms=0),
        request(0, session_id="a", think_time_ms=0),
        request(9, session_id="a", think_time_ms=3),
    )
    trace = load_trace(path).trace
    assert trace.turn is not None
    assert trace.turn.tolist() == [0, 0, 1]


def test_turns_against_the_order_of_arrival_are_refused(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        request(9, session_id="a", turn=0, think_time_ms=0),
        request(5, session_id="a", turn=1, think_time_ms=0),
    )
    with pytest.raises(UserMistake, match="`turn` does not go upwards with `timestamp` in its session"):
        load_trace(path)


def test_nested_names_and_numbers_in_quotes(tmp_path: Path) -> None:
    path = lines_file(tmp_path, json.dumps(NESTED), json.dumps(NESTED | {"at": "2026-11-30T10:00:01Z"}))
    trace = load_trace(path, columns=COLUMNS).trace
    assert trace.arrived_seconds.tolist() == [0, 0.75]
    assert trace.prompt_tokens.tolist() == [12, 12]
    assert trace.tenants == ("a",)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("is_array", [True, False])
def test_arrays_and_objects_on_several_lines(tmp_path: Path, indent: int | None, is_array: bool) -> None:
    records = [json.loads(request(at, 10 + at, text="a } ] , \\ \n [ {")) for at in range(5)]
    text = json.dumps(records, indent=indent)
    if not is_array:
        text = "\n".join(json.dumps(record, indent=indent) for record in records)
    trace = load_trace(lines_file(tmp_path, text)).trace
    assert trace.prompt_tokens.tolist() == [10, 11, 12, 13, 14]


def test_a_bad_object_of_an_array_is_named_by_its_line(tmp_path: Path) -> None:
    text = json.dumps([json.loads(request(0)), json.loads(request(1, 0))], indent=1)
    with pytest.raises(UserMistake, match="line 7: `input_length` must be a whole number"):
        load_trace(lines_file(tmp_path, text))


def test_unknown_fields_come_with_a_line_to_copy(tmp_path: Path) -> None:
    path = lines_file(tmp_path, json.dumps(NESTED), json.dumps(NESTED))
    with pytest.raises(UserMistake) as caught:
        load_trace(path)
    told = str(caught.value)
    assert "its fields are at, usage.prompt_tokens, usage.completion_tokens, team, which is no known format" in told
    assert "--columns arrival=...,prompt=usage.prompt_tokens,output=usage.completion_tokens" in told
    assert "--skip-bad-lines" not in told


def test_the_line_to_copy_works(tmp_path: Path) -> None:
    record = {"model": "m", "created_at": 5, "duration": 3, "tokens": {"input_tokens": 9, "output_tokens": "4"}}
    path = lines_file(tmp_path, json.dumps(record))
    with pytest.raises(UserMistake) as caught:
        load_trace(path)
    columns = str(caught.value).partition("--columns ")[2].partition(", in seconds")[0]
    trace = load_trace(path, columns=columns).trace
    assert (trace.prompt_tokens[0], trace.output_tokens[0]) == (9, 4)


def test_text_is_no_guess_for_a_length() -> None:
    assert columns_line({"ts": 1, "prompt": "Hi", "n_prompt_tokens": 3, "output": "Ho"}) == (
        "--columns arrival=ts,prompt=n_prompt_tokens,output=..."
    )
    assert columns_line({"ts": 1, "in_tokens": 3, "out_tokens": 4}) == (
        "--columns arrival=ts,prompt=in_tokens,output=out_tokens"
    )
