"""Whatever is wrong with a file ends in one sentence that names the place and the fix."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headway.bench.traces.loading import load_trace
from headway.bench.user_mistake import UserMistake
from headway.simulator.trace import Trace
from headway.testing.examples import examples
from tests.support.trace_samples import lines_file, request


def sentence(text: str, **options: str) -> str:
    with pytest.raises(UserMistake) as caught:
        load_trace(text, **options)  # type: ignore[arg-type]
    told = str(caught.value)
    assert "\n" not in told
    assert "Traceback" not in told
    return told


def outcome(path: str | Path, skip: bool) -> tuple[Trace | None, str]:
    """The trace, or the sentence instead of it; anything else than these two is raised."""
    try:
        return load_trace(str(path), skip_bad_lines=skip).trace, ""
    except UserMistake as told:
        return None, str(told)


GOOD = request(10)
BAD_LINES = [
    (request(-1), "`timestamp` must not be negative (it is -1)"),
    (request("soon"), "`timestamp` must be a number or a date with time (it is 'soon')"),
    (request(True), "`timestamp` must be a number (it is True)"),
    (request(10**400), "`timestamp` is past 3,000 years"),
    (request(1e300), "`timestamp` is past 3,000 years (it is 1e+300); name its unit"),
    (request(20, 0), "`input_length` must be a whole number from 1 to 100,000,000 (it is 0)"),
    (request(20, -5), "`input_length` must be a whole number from 1 to 100,000,000 (it is -5)"),
    (request(20, 1.5), "`input_length` must be a whole number from 1 to 100,000,000 (it is 1.5)"),
    (request(20, "twelve"), "`input_length` must be a whole number from 1 to 100,000,000 (it is 'twelve')"),
    (request(20, "0"), "`input_length` must be a whole number from 1 to 100,000,000 (it is 0)"),
    (request(20, 10**30), "`input_length` must be a whole number from 1 to 100,000,000"),
    (request(20, 5, 0), "`output_length` must be a whole number from 1 to 100,000,000 (it is 0)"),
    (request(20, 5, None), "`output_length` is missing"),
    ('{"timestamp": 20, "input_length": 5}', "`output_length` is missing; correct the line"),
    ('{"timestamp": 20, "input_length": 5, "output_lenght": 5}', "if `output_lenght` is meant, give --columns output="),
    ('{"timestamp": NaN, "input_length": 5, "output_length": 5}', "a number is not finite (it is NaN)"),
    ('{"timestamp": 20, "input_length": Infinity, "output_length": 5}', "a number is not finite (it is Infinity)"),
    ('{"timestamp": 1e999, "input_length": 5, "output_length": 5}', "`timestamp` must be finite (it is inf)"),
    ('{"timestamp": 2' + "0" * 5_000 + ', "input_length": 5, "output_length": 5}', "a number too long"),
    ("[" * 100_000, "brackets too deep"),
    ("[1, 2]", "the line is not a JSON object (it is [1, 2])"),
    ("7", "the line is not a JSON object (it is 7)"),
    ('{"timestamp": 20,', "the line is not JSON"),
    (request(20, max_tokens=2), "`max_tokens` is below `output_length` (it is 2)"),
    (request(20, max_tokens=-1), "`max_tokens` must be a whole number from 1"),
    (request(20, deadline_ms=-3), "`deadline_ms` must not be negative"),
    (request(20, tpot_deadline_ms="x"), "`tpot_deadline_ms` must be a number"),
    (request(20, end_deadline_ms=-3), "`end_deadline_ms` must not be negative"),
    (request(20, stage=1), "`stage` is given without `program_id`"),
    (request(20, program_deadline_ms=5), "`program_deadline_ms` is given without `program_id`"),
    (request(20, program_id="p", stage=0), "`stage` must be a whole number from 1"),
    (request(20, program_id="p", stage=3, stages=2), "`stage` is above `stages` (it is 3)"),
    (request(20, think_time_ms="x", session_id="s"), "`think_time_ms` must be a number (it is 'x')"),
    (request(20, priority=0.5), "`priority` must be a whole number"),
    (request(20, user_id=["a"]), "`user_id` must be text or a whole number"),
    (request(20, turn=1), "`turn` is given without `session_id`"),
    (request(20, turn=-1, session_id="s"), "`turn` must be a whole number from 0"),
    (request(20, hash_ids="abc"), "`hash_ids` must be a list of whole numbers from 0 (it is 'abc')"),
    (request(20, hash_ids=[1, "2"]), "`hash_ids` must be a list of whole numbers from 0"),
    (request(20, hash_ids=[-1]), "`hash_ids` must be a list of whole numbers from 0"),
    (request(20, hash_ids=[2**70]), "`hash_ids` must be a list of whole numbers from 0"),
]


@pytest.mark.parametrize(("line", "told"), BAD_LINES)
def test_a_bad_line_is_named_with_its_number_and_fault(tmp_path: Path, line: str, told: str) -> None:
    path = lines_file(tmp_path, GOOD, line, GOOD)
    assert sentence(path).startswith(f"{path}: line 2: ")
    assert told in sentence(path)
    assert len(load_trace(path, skip_bad_lines=True).trace) == 2


@pytest.mark.parametrize(("turns", "told"), [((0, 0), "comes twice"), ((3, 1), "comes after a later turn")])
def test_turns_of_a_session_go_upwards(tmp_path: Path, turns: tuple[int, int], told: str) -> None:
    path = lines_file(tmp_path, *(request(at, session_id="s", turn=turn) for at, turn in enumerate(turns)))
    assert f"line 2: `turn` {told} in its session (it is turn {turns[1]} of 's')" in sentence(path)


def test_a_pause_before_some_follow_ups_only(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        request(0, session_id="s"),
        request(1, session_id="s", think_time_ms=4),
        request(2, session_id="s"),
    )
    assert "line 3: a follow-up turn has no `think_time_ms`" in sentence(path)


def test_more_blocks_than_the_prompt_has(tmp_path: Path) -> None:
    rows = [request(at, 512 * 20, hash_ids=list(range(20))) for at in range(5)]
    path = lines_file(tmp_path, *rows, request(9, 512, hash_ids=[1, 2, 3]))
    assert "line 6: `hash_ids` has 3 ids, but 512 tokens are 1 blocks of 512" in sentence(path)


def test_blocks_that_fit_no_size(tmp_path: Path) -> None:
    path = lines_file(tmp_path, *(request(at, 1_000, hash_ids=list(range(at + 5))) for at in range(9)))
    assert "fit no block size; name it" in sentence(path)


def test_an_empty_file(tmp_path: Path) -> None:
    assert "is an empty file" in sentence(lines_file(tmp_path))
    (tmp_path / "e.gz").write_bytes(gzip.compress(b""))
    assert "a trace needs at least one" in sentence(str(tmp_path / "e.gz"))
    assert "a trace needs at least one" in sentence(lines_file(tmp_path, "", "  "))


def test_a_header_alone(tmp_path: Path) -> None:
    path = lines_file(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens", name="h.csv")
    assert "holds no request" in sentence(path)


def test_nothing_but_bad_lines(tmp_path: Path) -> None:
    path = lines_file(tmp_path, request(0, 0), request(1, 0))
    with pytest.raises(UserMistake, match="all 2 lines were bad, 2 of them because `input_length` must be"):
        load_trace(path, skip_bad_lines=True)


def test_a_folder(tmp_path: Path) -> None:
    inside = lines_file(tmp_path, GOOD)
    assert sentence(str(tmp_path)) == f"{tmp_path}: is a folder, not a trace; name one file in it, such as {inside}"


def test_a_missing_file_with_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADWAY_TRACES", raising=False)
    near = lines_file(tmp_path, GOOD, name="monday.jsonl")
    assert f"did you mean {near}?" in sentence(str(tmp_path / "mondy.jsonl"))
    assert "HEADWAY_TRACES is not set" in sentence("quite-unlike-anything")
    assert "did you mean coding-agents?" in sentence("coding-agent")


def test_a_missing_name_with_the_nearest_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines_file(tmp_path, GOOD, name="azure_conv_2023.jsonl")
    monkeypatch.setenv("HEADWAY_TRACES", str(tmp_path))
    assert "did you mean azure_conv_2023?" in sentence("azure_con_2023")


@pytest.mark.parametrize("name", ["", "  ", "a\x00b", "x" * 5_000])
def test_names_that_are_none(name: str) -> None:
    assert sentence(name)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_rights(tmp_path: Path) -> None:
    path = Path(lines_file(tmp_path, GOOD))
    path.chmod(0)
    assert "cannot be opened" in sentence(str(path))


def test_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(range(256)) * 10)
    assert "is a binary file" in sentence(str(path))
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(range(256)) * 10))
    assert "is a binary file" in sentence(str(tmp_path / "x.gz"))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_file_cut_short(tmp_path: Path, pack) -> None:  # type: ignore[no-untyped-def]
    whole = pack("".join(request(at, at % 97 + 1) + "\n" for at in range(30_000)).encode())
    path = tmp_path / "cut"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert "ends in the middle, after line" in sentence(str(path))
    path.write_bytes(whole[:12])
    assert "ends in the middle, after line 0" in sentence(str(path))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_damaged_file(tmp_path: Path, pack) -> None:  # type: ignore[no-untyped-def]
    whole = bytearray(pack("".join(request(at, at % 97 + 1) + "\n" for at in range(30_000)).encode()))
    for place in range(len(whole) // 2, len(whole) // 2 + 50):
        whole[place] ^= 0x5A
    path = tmp_path / "damaged"
    path.write_bytes(whole)
    assert sentence(str(path))


def test_two_packed_parts_in_one_file_are_one_file(tmp_path: Path) -> None:
    for pack in (gzip.compress, zstandard.compress):
        path = tmp_path / "two"
        path.write_bytes(pack(f"{request(0)}\n".encode()) + pack(f"{request(1)}\n".encode()))
        assert len(load_trace(str(path)).trace) == 2


def test_bad_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    path.write_bytes(f"{GOOD}\n".encode() + b'{"timestamp": 20, "user_id": "\xff"}\n')
    assert "line 2 is not UTF-8 text" in sentence(str(path))


def test_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "u16.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n", encoding="utf-16")
    assert "is UTF-16 text; save the file as UTF-8" in sentence(str(path))


def test_an_array_that_is_cut_short(tmp_path: Path) -> None:
    assert "line 2: the array is not closed" in sentence(lines_file(tmp_path, f"[{GOOD},"))
    assert "line 2: the line is not JSON" in sentence(lines_file(tmp_path, f"[{GOOD},", '{"timestamp": 1'))


def test_skipping_is_no_advice_where_every_line_is_bad(tmp_path: Path) -> None:
    told = sentence(lines_file(tmp_path, request(0, 0), request(1, 0)))
    assert "line 1: `input_length` must be" in told
    assert "--skip-bad-lines" not in told
    many = sentence(lines_file(tmp_path, *[request(0, 0)] * 2_000, request(0)))
    assert "--skip-bad-lines" not in many
    some = sentence(lines_file(tmp_path, request(0, 0), request(1)))
    assert some.endswith("leave such lines out with --skip-bad-lines")


def test_text_of_no_known_format(tmp_path: Path) -> None:
    assert "is neither JSON Lines nor CSV" in sentence(lines_file(tmp_path, "To be, or not to be"))
    told = sentence(lines_file(tmp_path, "a,b,c,d", "1,2,3,4"))
    assert "its fields are a, b, c, d, which is no known format" in told
    assert "--columns arrival=...,prompt=...,output=..." in told


def test_a_row_of_another_width(tmp_path: Path) -> None:
    path = lines_file(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:03,1", name="a.csv")
    assert "line 2: the line does not have 3 fields (it has 2);" in sentence(path)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("2023-11-16 18:17:03,nan,1", "`ContextTokens` must be a whole number"),
        ("2023-11-16 18:17:03,,1", "`ContextTokens` is missing"),
        ("yesterday,1,1", "`TIMESTAMP` must be a number or a date with time (it is 'yesterday')"),
        ("2023-11-16 18:17:09+00:00,1,1", "`TIMESTAMP` has a time zone in some lines only"),
        ("inf,1,1", "`TIMESTAMP` must be finite"),
    ],
)
def test_bad_cells(tmp_path: Path, row: str, told: str) -> None:
    path = lines_file(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:02,1,1", row, name="a.csv")
    assert f"line 3: {told}" in sentence(path)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ("arrival", "'arrival' is not COLUMN=FIELD"),
        ("arival=a", "there is no column 'arival'; did you mean arrival?"),
        ("arrival=a,arrival_ms=b", "arrival is named twice"),
        ("arrival=a,prompt=b", "--columns names no output"),
        ("arrival=a,prompt=b,output=q", "the header has no field 'q' for output"),
        ("arrival=a,prompt=a,output=b", "'a' is given for arrival and prompt"),
        ("prefix_block=0", "prefix_block=0 is not a number of tokens"),
    ],
)
def test_bad_column_maps(tmp_path: Path, columns: str, told: str) -> None:
    path = lines_file(tmp_path, "a,b,c", "1,2,3", name="g.csv")
    assert told in sentence(path, columns=columns)


def test_turns_mapped_without_sessions(tmp_path: Path) -> None:
    path = lines_file(tmp_path, "a,b,c,d", "1,2,3,4", name="g.csv")
    told = sentence(path, columns="arrival=a,prompt=b,output=c,turn=d")
    assert "line 2: `d` is given without `session`" in told


def test_columns_of_a_workload() -> None:
    assert "--columns is for files" in sentence("chat", columns="arrival=a")


@pytest.mark.slow
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_content_whatever_breaks_the_reader(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(content)
    for skip in (False, True):
        trace, told = outcome(path, skip)
        assert "\n" not in told
        assert trace is None or len(trace) > 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids", "session_id", "turn", "think_time_ms", "user_id")


@pytest.mark.slow
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.dictionaries(st.sampled_from(FIELDS), json_values), min_size=1, max_size=4))
def test_no_values_whatever_break_the_reader(tmp_path: Path, records: list[dict[str, object]]) -> None:
    whole = [{"timestamp": 1, "input_length": 5, "output_length": 5, **record} for record in records]
    path = lines_file(tmp_path, *map(json.dumps, whole))
    trace, told = outcome(path, skip=True)
    assert "\n" not in told
    if trace is not None:
        assert (trace.prompt_tokens >= 1).all()
        assert (trace.arrived_seconds[1:] >= trace.arrived_seconds[:-1]).all()
