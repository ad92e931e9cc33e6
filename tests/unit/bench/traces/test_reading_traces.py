"""Each format is recognised by its content and read with its units."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard

from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import merge, part
from headway.bench.traces.writing import write_jsonl
from headway.bench.user_mistake import UserMistake
from tests.support.trace_samples import block_rows, lines_file, request, tenant_names


def test_mooncake_times_are_milliseconds_and_start_at_zero(tmp_path: Path) -> None:
    path = lines_file(tmp_path, request(27_000, 6_758, 500, hash_ids=list(range(14))), request(30_000, 512, 490))
    trace = load_trace(path).trace
    assert trace.arrived_seconds.tolist() == [0.0, 3.0]
    assert trace.prompt_tokens.tolist() == [6_758, 512]
    assert trace.output_tokens.tolist() == [500, 490]
    assert block_rows(trace) == [list(range(14)), []]
    assert trace.prefix_block_tokens == 512
    assert trace.session is None
    assert trace.tenant is None


def test_every_optional_field_may_be_given_late(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        request(0),
        request(1, user_id="a", max_tokens=9, deadline_ms=1_500, priority=-1, category="x", hash_ids=[3]),
        request(2, user_id=7, max_tokens=None),
    )
    trace = load_trace(path).trace
    assert trace.max_output_tokens is not None
    assert trace.max_output_tokens.tolist() == [0, 9, 0]
    assert tenant_names(trace) == ["a", "a", "7"]
    assert trace.deadline_seconds is not None
    np.testing.assert_equal(trace.deadline_seconds, [np.nan, 1.5, np.nan])
    assert trace.priority is not None
    assert trace.priority.tolist() == [0, -1, 0]
    assert block_rows(trace) == [[], [3], []]


def test_later_deadlines_and_programs_are_read_and_written(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        request(0, program_id="a", stages=3, program_deadline_ms=60_000, tpot_deadline_ms=62.5),
        request(1, end_deadline_ms=9_000),
        request(2, program_id="b", stage=5),
        request(3, program_id="a", program_deadline_ms=57_000),
    )
    trace = load_trace(path).trace
    write_jsonl(trace, tmp_path / "again.jsonl")
    for read in (trace, load_trace(str(tmp_path / "again.jsonl")).trace):
        assert read.program is not None
        assert read.program.tolist() == [0, -1, 1, 0]
        assert read.stage is not None
        assert read.stage.tolist() == [1, 0, 5, 2], "as given, else by arrival"
        assert read.stages is not None
        assert read.stages.tolist() == [3, 0, 0, 0]
        np.testing.assert_equal(read.program_deadline_seconds, [60.0, np.nan, np.nan, 57.0])
        np.testing.assert_equal(read.tpot_deadline_seconds, [0.0625, np.nan, np.nan, np.nan])
        np.testing.assert_equal(read.end_deadline_seconds, [np.nan, 9.0, np.nan, np.nan])
    twice = merge([trace, trace])
    assert twice.program is not None
    assert sorted(twice.program.tolist()) == [-1, -1, 0, 0, 1, 2, 2, 3]
    rest = part(trace, 2, 4).program
    assert rest is not None
    assert rest.tolist() == [1, 0]


def test_sessions_keep_their_turns_and_pauses(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        request(0, session_id="a", turn=0, think_time_ms=77),
        request(5, session_id="b", turn=0, think_time_ms=0),
        request(9, session_id="a", turn=2, think_time_ms=1_500),
        request(9),
    )
    loaded = load_trace(path)
    trace = loaded.trace
    assert trace.session is not None
    assert trace.turn is not None
    assert trace.think_seconds is not None
    assert trace.session.tolist() == [0, 1, 0, -1]
    assert trace.turn.tolist() == [0, 0, 1, 0]
    assert trace.think_seconds.tolist() == [0.0, 0.0, 1.5, 0.0]
    assert loaded.notes == [f"{path}: 1 sessions lack some turns; their turns are renumbered in order"]


def test_sessions_without_pauses_are_replayed_at_their_own_times(tmp_path: Path) -> None:
    path = lines_file(tmp_path, request(0, session_id="a"), request(5, session_id="a"))
    loaded = load_trace(path)
    assert loaded.trace.session is None
    assert "replayed at its own time" in loaded.notes[0]


def test_bailian_times_are_seconds_and_blocks_16_tokens(tmp_path: Path) -> None:
    line = '{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 30, "output_length": 2, '
    path = lines_file(tmp_path, line + '"hash_ids": [1, 2]}', line.replace("61.114", "62.5") + '"hash_ids": [1, 3]}')
    trace = load_trace(path).trace
    assert trace.arrived_seconds == pytest.approx([0, 1.386])
    assert trace.prefix_block_tokens == 16


def test_blocks_of_another_size_are_found_out(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        *(request(at, 1_000 + 100 * at, hash_ids=list(range(-(-(1_000 + 100 * at) // 64)))) for at in range(5)),
    )
    assert load_trace(path).trace.prefix_block_tokens == 64


def test_fractions_of_unknown_unit_need_the_users_word(tmp_path: Path) -> None:
    path = lines_file(tmp_path, request(0), request(12.4))
    with pytest.raises(UserMistake, match=r"line 2: `timestamp` has a fraction.*--columns arrival_s=timestamp"):
        load_trace(path)
    assert load_trace(path, columns="arrival_s=timestamp").trace.arrived_seconds.tolist() == [0, 12.4]
    assert load_trace(path, columns="arrival_ms=timestamp").trace.arrived_seconds.tolist() == [0, 0.0124]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2023-11-16 18:17:03.9799600", "2023-11-16 18:17:04.0799600"),
        ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:00.109930+00:00"),
    ],
)
def test_azure(tmp_path: Path, first: str, second: str) -> None:
    path = lines_file(
        tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens", f"{first},4808,10", f"{second},3180,8", name="a.csv"
    )
    loaded = load_trace(path)
    assert loaded.trace.name == "a"
    assert loaded.trace.arrived_seconds == pytest.approx([0, 0.1])
    assert loaded.trace.prompt_tokens.tolist() == [4808, 3180]
    assert loaded.trace.output_tokens.tolist() == [10, 8]
    assert loaded.lines is not None
    assert loaded.lines.tolist() == [2, 3]


@pytest.mark.parametrize("session", ["", "Session ID,Elapsed time,"])
def test_burstgpt(tmp_path: Path, session: str) -> None:
    given = "12,3.5," if session else ""
    path = lines_file(
        tmp_path,
        f"Timestamp,{session}Model,Request tokens,Response tokens,Total tokens,Log Type",
        f"5,{given}ChatGPT,472,18,490,Conversation log",
        f"45.0,{given}GPT-4,1087,230,1317,API log",
        name="b.csv",
    )
    trace = load_trace(path).trace
    assert trace.arrived_seconds.tolist() == [0, 40]
    assert trace.prompt_tokens.tolist() == [472, 1087]
    assert trace.output_tokens.tolist() == [18, 230]


def test_a_failed_call_of_burstgpt_names_the_file_without(tmp_path: Path) -> None:
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    path = lines_file(tmp_path, header, "5,ChatGPT,472,0,472,API log", name="b.csv")
    with pytest.raises(UserMistake, match=r"line 2: `Response tokens` .*without_fails"):
        load_trace(path)


def test_any_csv_with_a_column_map(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        "at;who;in;out;limit",
        "1700000000000;007;10;2.0;5",
        "1700000000250;;20;3;",
        name="g.csv",
    )
    columns = "arrival_ms=at,prompt=in,output=out,tenant=who,max_output=limit"
    trace = load_trace(path, columns=columns).trace
    assert trace.arrived_seconds == pytest.approx([0, 0.25])
    assert trace.output_tokens.tolist() == [2, 3]
    assert trace.tenants == ("007",)
    assert trace.max_output_tokens is not None
    assert trace.max_output_tokens.tolist() == [5, 0]


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_bytes(b"\xef\xbb\xbfTIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03,48,10\r\n")
    assert len(load_trace(str(path)).trace) == 1


def test_a_name_is_looked_up_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(request().encode()))
    monkeypatch.setenv("HEADWAY_TRACES", str(tmp_path))
    assert load_trace("mine").trace.name == "mine"
    assert load_trace("mine.jsonl.gz").trace.name == "mine"


def test_a_workload_wins_over_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chat").write_text(request())
    monkeypatch.chdir(tmp_path)
    assert len(load_trace("chat", requests=7).trace) == 7
    assert len(load_trace("./chat").trace) == 1


def test_bad_lines_are_skipped_counted_and_told(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        request(0),
        request(1, 0),
        "nonsense",
        request(5),
        request(4),
        request(6, 0),
        request(7),
        name="s.jsonl",
    )
    loaded = load_trace(path, skip_bad_lines=True)
    assert loaded.trace.arrived_seconds.tolist() == [0, 0.004, 0.005, 0.007]
    assert loaded.lines is not None
    assert loaded.lines.tolist() == [1, 5, 4, 7]
    note, order = loaded.notes
    assert "3 of 7 lines skipped: 2 because `input_length` must be a whole number" in note
    assert "(first at line 2)" in note
    assert "the line is not JSON (first at line 3)" in note
    assert "requests are sorted by `timestamp`; 1 of 4 lines were before the line above" in order


def test_a_skipped_line_leaves_no_tenant_or_session_behind(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        request(0, 0, user_id="bad", session_id="s", turn=0, think_time_ms=0),
        request(1, user_id="good", session_id="s", turn=0, think_time_ms=0),
    )
    trace = load_trace(path, skip_bad_lines=True).trace
    assert trace.tenants == ("good",)
    assert trace.turn is not None
    assert trace.turn.tolist() == [0]


def test_blank_lines_are_no_lines(tmp_path: Path) -> None:
    path = lines_file(tmp_path, "", request(0), "   ", request(1), "")
    assert load_trace(path).notes == []
    assert len(load_trace(path).trace) == 2


HEADER, ROW = "TIMESTAMP,ContextTokens,GeneratedTokens\n", "2024-05-10 00:00:00,1024,5\n"


@pytest.mark.parametrize("start", ["\n", "\r\n\r\n", "  \n\t\n", "\ufeff", "\ufeff\n\n"])
def test_blank_lines_of_a_csv_are_no_lines_also_before_its_header(tmp_path: Path, start: str) -> None:
    path = tmp_path / "export.csv"
    path.write_bytes((start + HEADER + "\n" + ROW + "  \n" + ROW).encode())
    assert load_trace(str(path)).trace.prompt_tokens.tolist() == [1024, 1024]


def test_a_byte_order_mark_where_two_files_were_put_together_is_no_part_of_the_line(tmp_path: Path) -> None:
    path = tmp_path / "both.jsonl"
    path.write_bytes(("\ufeff" + request(0) + "\n\ufeff" + request(1) + "\n").encode())
    assert len(load_trace(str(path)).trace) == 2


def test_a_small_packed_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
        packed.write(b'{"a": "')
        for _ in range(300):
            packed.write(b"x" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(UserMistake, match="line 1 is longer than 64 MiB"):
        load_trace(str(path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200 << 20


def test_a_zst_file_may_hold_several_frames(tmp_path: Path) -> None:
    path = tmp_path / "frames.jsonl.zst"
    lines = [request(number) + "\n" for number in range(50)]
    path.write_bytes(b"".join(zstandard.compress(line.encode()) for line in lines))
    assert len(load_trace(str(path)).trace) == 50


def test_a_trace_with_images_says_what_of_them_is_not_simulated(tmp_path: Path) -> None:
    row = '{"timestamp": 0, "input_length": 10, "output_length": 5, "image_tokens": %s}\n'
    path = tmp_path / "images.jsonl"
    path.write_text(row % 8 + row % 0 + row % "null")
    (note,) = load_trace(str(path)).notes
    assert note == (
        f"{path}: 1 requests have images, which count as prompt tokens only; the encoder's time, and vLLM's encoder "
        "budget and cache, are not simulated"
    )
    path.write_text(row % 0)
    assert load_trace(str(path)).notes == []


@pytest.mark.parametrize("between", ["\n", ",\n", "\n,", ",", " , \n\n"])
@pytest.mark.parametrize("is_array", [True, False])
def test_objects_on_several_lines_are_read_as_those_on_one(tmp_path: Path, between: str, is_array: bool) -> None:
    """Brackets in a text do not count, and an object may begin on the line where the one above ends."""
    records = [
        {"timestamp": at, "input_length": 5 + at, "output_length": 2, "x": {"a": ['}"\\', {}]}} for at in range(9)
    ]
    text = between.join(json.dumps(record, indent=1) for record in records)
    (tmp_path / "t.json").write_text(f"[{text}\n]" if is_array else text)
    trace = load_trace(str(tmp_path / "t.json")).trace
    assert trace.prompt_tokens.tolist() == [record["input_length"] for record in records]


def test_an_object_of_many_lines_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a log is one object; to decode it at each line that closes a bracket took hours."""
    page = [
        {"startTime": f"2026-01-01T00:00:{at % 60:02}Z", "usageDetails": {"input": 3, "output": 4}} for at in range(500)
    ]
    (tmp_path / "page.json").write_text(json.dumps({"data": page}, indent=2))
    tries: list[int] = []
    decode = json.JSONDecoder.raw_decode

    def counted(self: json.JSONDecoder, text: str, idx: int = 0) -> tuple[object, int]:
        tries.append(idx)
        return decode(self, text, idx)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    assert len(load_trace(str(tmp_path / "page.json")).trace) == 500
    assert len(tries) < 10


@pytest.mark.parametrize("first", ["2026-01-01T00:00:01Z", 1_767_225_601_000])
def test_dates_and_numbers_are_not_mixed(tmp_path: Path, first: object) -> None:
    """A date counts from the first one, a number from its own zero: together they are years apart."""
    second = 1_767_225_602_000 if isinstance(first, str) else "2026-01-01T00:00:02Z"
    path = lines_file(tmp_path, request(first), request(second))
    with pytest.raises(UserMistake, match="line 2: `timestamp` is a date in some lines and a number in others"):
        load_trace(str(path))


def test_a_parquet_file_with_a_broken_page_is_a_mistake(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    columns = {"timestamp": range(5000), "input_length": range(1, 5001), "output_length": range(1, 5001)}
    parquet.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
    broken = bytearray(path.read_bytes())
    broken[100:2000] = bytes(byte ^ 0x5A for byte in broken[100:2000])
    path.write_bytes(broken)
    with pytest.raises(UserMistake, match="cannot be read as Parquet"):
        load_trace(str(path))


def test_a_name_that_no_file_can_hold_is_a_mistake(tmp_path: Path) -> None:
    """Half a surrogate pair is well-formed JSON, and failed only when the requests were written after all runs."""
    path = lines_file(tmp_path, request(1).replace("}", ', "user_id": "\\ud83d"}'))
    with pytest.raises(UserMistake, match="`user_id` holds half a character"):
        load_trace(str(path))
    path = lines_file(tmp_path, request(1).replace("}", ', "user_id": "\\ud83d\\ude00"}'))
    assert load_trace(str(path)).trace.tenants == ("\U0001f600",)
