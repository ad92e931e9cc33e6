"""Every log that docs/your-logs.md shows is read as it says, from the page itself."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.bench.calibration.recording_files import read_recording
from headway.bench.traces import vllm_logs
from headway.bench.traces.known_logs import KNOWN_LOGS, log_with
from headway.bench.traces.loading import LoadedTrace, load_trace
from headway.bench.traces.request_logs import fields_in
from headway.bench.user_mistake import UserMistake

PAGE = (Path(__file__).parents[4] / "docs" / "your-logs.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(
    r'^```\w+ title="(?P<name>[\w.-]+)"\n(?P<text>.*?)^```\n(?:\n```console\n\$ .*?--columns (?P<columns>\S+).*?```\n)?'
    r"\nRead as (?P<requests>\d+) requests?, (?P<prompt>\d+) prompt tokens, (?P<output>\d+) output tokens",
    re.MULTILINE | re.DOTALL,
)
EXAMPLES = {found["name"]: found for found in EXAMPLE.finditer(PAGE)}


def test_the_page_has_an_example_of_every_known_log() -> None:
    assert len(EXAMPLES) == PAGE.count(' title="')
    seen = {log.name for found in EXAMPLES.values() if (log := log_with(fields_in(found["text"]))) is not None}
    assert seen == {log.name for log in KNOWN_LOGS}
    assert vllm_logs.recognises(EXAMPLES["vllm.log"]["text"].encode())


def example(name: str, folder: Path, **changes: str) -> LoadedTrace:
    text = EXAMPLES[name]["text"]
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return load_trace(str(folder / name), columns=EXAMPLES[name]["columns"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_read_as_the_page_says(tmp_path: Path, name: str) -> None:
    trace = example(name, tmp_path).trace
    said = tuple(int(EXAMPLES[name][part]) for part in ("requests", "prompt", "output"))
    assert (len(trace), trace.prompt_tokens.sum(), trace.output_tokens.sum()) == said


@pytest.mark.parametrize(
    ("name", "arrived", "ttft", "e2e"),
    [
        ("spans.jsonl", [0, 2], [0.25, 0.1], [1.5, 0.7]),
        ("vllm.json", [0, 1], [0.25, 0.5], [0.3, 0.8]),
        ("spend.json", [0], [0.2], [1.0]),
        ("langfuse.json", [0], [0.12], [0.581]),
    ],
)
def test_times_are_kept(tmp_path: Path, name: str, arrived: list[float], ttft: list[float], e2e: list[float]) -> None:
    example(name, tmp_path)
    recording = read_recording(str(tmp_path / name))
    np.testing.assert_allclose(recording.trace.arrived_seconds, arrived)
    np.testing.assert_allclose(recording.ttft_seconds, ttft)
    np.testing.assert_allclose(recording.e2e_seconds, e2e)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("spans.jsonl", "1 entry is left out because `gen_ai.operation.name` is 'execute_tool'"),
        ("vllm.json", "1 entry is left out because the request failed"),
        ("sglang.jsonl", "SGLang's result has no arrivals"),
        ("batch-output.jsonl", "1 entry is left out because the request of the batch failed"),
        ("batch-input.jsonl", "a batch's input has no lengths"),
        ("responses.jsonl", "arrival in whole seconds"),
        ("spend.json", "1 entry is left out because `call_type` is 'aembedding'"),
        ("langfuse.json", "1 entry is left out because `type` is 'SPAN'"),
        ("vllm.log", "vLLM's log has whole seconds"),
        ("mine.jsonl", "requests are sorted by `at`; 1 of 2 lines"),
    ],
)
def test_what_a_log_lacks_is_said(tmp_path: Path, name: str, note: str) -> None:
    assert any(note in said for said in example(name, tmp_path).notes)


def test_arrivals_of_sglang_are_known_only_where_all_was_sent_at_once(tmp_path: Path) -> None:
    spread = example("sglang.jsonl", tmp_path).trace
    assert spread.arrived_seconds.tolist() == [0, 1]
    assert spread.measured_ttft_seconds is None
    result = json.loads(EXAMPLES["sglang.jsonl"]["text"]) | {"request_rate": math.inf}
    (tmp_path / "s.jsonl").write_text(json.dumps(result))
    at_once = load_trace(str(tmp_path / "s.jsonl")).trace
    assert at_once.arrived_seconds.tolist() == [0, 0]
    assert at_once.measured_ttft_seconds is not None
    assert at_once.measured_ttft_seconds.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("count", [1_000, 20_000])
def test_a_long_run_of_vllm_keeps_its_arrivals(tmp_path: Path, count: int) -> None:
    """Its `start_times` come after lists that fill far more than the beginning of the file."""
    starts = [100 + (row // 2) * 0.5 for row in range(count)]
    result = {
        "backend": "vllm",
        "request_rate": 4.0,
        "duration": count / 4,
        "completed": count,
        "input_lens": [1_000] * count,
        "output_lens": [20] * count,
        "ttfts": [0.25] * count,
        "itls": [[0.0125] * 19] * count,
        "start_times": starts,
        "errors": [""] * count,
        "mean_ttft_ms": 250.0,
    }
    (tmp_path / "long.json").write_text(json.dumps(result))
    loaded = load_trace(str(tmp_path / "long.json"))
    assert loaded.trace.arrived_seconds.tolist() == [start - 100 for start in starts]
    assert loaded.trace.measured_ttft_seconds is not None
    assert not any("SGLang" in note for note in loaded.notes)


def test_a_benchmark_without_details_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(json.dumps({"request_rate": 4.0, "mean_ttft_ms": 3.0, "duration": 2.0}))
    with pytest.raises(UserMistake, match=r"no list `input_lens`; run .* sglang\.bench_serving with --output-details"):
        load_trace(str(tmp_path / "s.jsonl"))


def test_a_batch_input_without_a_bound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="`max_tokens` is missing"):
        example("batch-input.jsonl", tmp_path, **{', "max_tokens": 30': ""})


def test_spend_logs_as_csv_and_packed(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = json.loads(EXAMPLES["spend.json"]["text"])
    header = list(rows[0])
    text = "\n".join([",".join(header), *(",".join(str(row.get(name, "")) for name in header) for row in rows)])
    (tmp_path / "spend.csv.gz").write_bytes(gzip.compress(text.encode()))
    trace = load_trace(str(tmp_path / "spend.csv.gz")).trace
    assert (len(trace), trace.tenants) == (1, ("blue",))


def test_columns_go_over_those_of_a_known_log(tmp_path: Path) -> None:
    example("spend.json", tmp_path)
    assert load_trace(str(tmp_path / "spend.json"), columns="tenant=model").trace.tenants == ("llama",)


def test_langfuse_as_blob_storage_exports_it(tmp_path: Path) -> None:
    record = {
        "id": "1", "type": "GENERATION", "start_time": "2024-05-29 13:46:19.963000",
        "end_time": "2024-05-29 13:46:20.963000", "completion_start_time": None,
        "usage_details": {"input": 5, "output": 6}, "user_id": "u",
    }  # fmt: skip
    (tmp_path / "o.jsonl").write_text(json.dumps(record) + "\n")
    trace = load_trace(str(tmp_path / "o.jsonl")).trace
    assert (trace.prompt_tokens[0], trace.output_tokens[0], trace.tenants) == (5, 6, ("u",))


def test_a_log_of_vllm_without_lengths_names_the_options(tmp_path: Path) -> None:
    lines = [line for line in EXAMPLES["vllm.log"]["text"].splitlines(keepends=True) if " DEBUG " not in line]
    (tmp_path / "v.log").write_text("".join(lines))
    with pytest.raises(UserMistake, match="vLLM logged no lengths; run it with VLLM_LOGGING_LEVEL=DEBUG"):
        load_trace(str(tmp_path / "v.log"))


def test_a_request_that_vllm_did_not_finish_is_left_out(tmp_path: Path) -> None:
    lines = EXAMPLES["vllm.log"]["text"].splitlines(keepends=True)[:-1]
    (tmp_path / "v.log").write_text("".join(lines))
    loaded = load_trace(str(tmp_path / "v.log"))
    assert loaded.trace.max_output_tokens is not None
    assert loaded.trace.max_output_tokens.tolist() == [16]
    assert any("1 entry is left out because the log has no token ids" in note for note in loaded.notes)


def test_an_unknown_text_log_says_which_are_known(tmp_path: Path) -> None:
    (tmp_path / "nginx.log").write_text('10.0.0.1 - - [30/Nov/2026:10:00:00 +0000] "POST /v1/completions" 200\n')
    with pytest.raises(UserMistake, match="of text logs only vLLM's request log is known"):
        load_trace(str(tmp_path / "nginx.log"))


@pytest.mark.parametrize("name", ["mine.jsonl", "spend.json", "langfuse.json"])
def test_parquet_is_read_as_the_same_log(tmp_path: Path, name: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    text = EXAMPLES[name]["text"]
    records = [json.loads(line) for line in text.splitlines()] if name == "mine.jsonl" else json.loads(text)
    records = records["data"] if isinstance(records, dict) else records
    for record in records:
        record.pop("usageDetails", None) if record.get("usageDetails") == {} else None
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "t.parquet")
    trace = load_trace(str(tmp_path / "t.parquet"), columns=EXAMPLES[name]["columns"]).trace
    said = tuple(int(EXAMPLES[name][part]) for part in ("requests", "prompt", "output"))
    assert (len(trace), trace.prompt_tokens.sum(), trace.output_tokens.sum()) == said


def test_broken_and_unknown_parquet_are_one_sentence(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserMistake, match="cannot be read as Parquet"):
        load_trace(str(tmp_path / "b.parquet"))
    parquet.write_table(pyarrow.table({"t": [1], "in_tokens": [2]}), tmp_path / "u.parquet")
    with pytest.raises(UserMistake, match="its fields are t, in_tokens, which is no known format"):
        load_trace(str(tmp_path / "u.parquet"))


def test_a_span_with_values_of_any_kind_and_size_is_a_mistake_in_a_sentence(tmp_path: Path) -> None:
    span = json.loads(EXAMPLES["spans.jsonl"]["text"].splitlines()[0])
    one = span["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    tokens = next(pair for pair in one["attributes"] if pair["key"] == "gen_ai.usage.input_tokens")
    for change, named in [
        (lambda: one.update(startTimeUnixNano="9" * 5000), "startTimeUnixNano"),
        (lambda: one.update(startTimeUnixNano="1", endTimeUnixNano="9" * 4000), "endTimeUnixNano"),
        (lambda: tokens.update(value={"intValue": "9" * 5000}) or one.update(endTimeUnixNano="2"), "input_tokens"),
        (
            lambda: one["attributes"].append({"key": "gen_ai.operation.name", "value": {"arrayValue": {"values": []}}}),
            "gen_ai.operation.name",
        ),
    ]:
        change()
        (tmp_path / "spans.jsonl").write_text(json.dumps(span))
        with pytest.raises(UserMistake, match=named):
            load_trace(str(tmp_path / "spans.jsonl"))


@pytest.mark.parametrize(
    ("start", "end"), [(1_700_000_000.5, 1_700_000_002.0), ("1700000000.5", "1700000002"), (1_700_000_000.5, 10**400)]
)
def test_times_of_a_spend_log_may_be_numbers_of_seconds(tmp_path: Path, start: object, end: object) -> None:
    record = {"startTime": start, "endTime": end, "completionStartTime": start}
    record |= {"prompt_tokens": 3, "completion_tokens": 4}
    (tmp_path / "spend.json").write_text(json.dumps(record))
    if end == 10**400:
        with pytest.raises(UserMistake, match="past 3,000 years"):
            load_trace(str(tmp_path / "spend.json"))
        return
    measured = load_trace(str(tmp_path / "spend.json")).trace.measured_e2e_seconds
    assert measured is not None
    assert measured.tolist() == [1.5]


def test_of_two_times_of_a_request_one_cannot_be_a_number(tmp_path: Path) -> None:
    record = {"startTime": "2026-01-01T00:00:00Z", "endTime": 1_700_000_002.0, "prompt_tokens": 3}
    (tmp_path / "spend.json").write_text(json.dumps(record | {"completion_tokens": 4}))
    with pytest.raises(UserMistake, match="one is a date and the other a number"):
        load_trace(str(tmp_path / "spend.json"))


@pytest.mark.parametrize(
    ("days", "gaps"),
    [
        (("12-31", "01-01"), [86_400]),
        (("12-31", "02-28", "02-29"), [59 * 86_400, 86_400]),
        (("02-29", "03-01"), [86_400]),
    ],
)
def test_a_log_of_vllm_may_go_over_the_end_of_a_year(tmp_path: Path, days: tuple[str, ...], gaps: list[int]) -> None:
    text = "".join(
        f"DEBUG {day} 10:00:00 [a.py:1] Request r{day} details: prompt: 'a', prompt_token_ids: [1, 2], prompt_embeds "
        f"shape: None.\nINFO {day} 10:00:00 [a.py:1] Received request r{day}: params: SamplingParams(max_tokens="
        f"{'9' * 5000},)\nDEBUG {day} 10:00:01 [a.py:1] Generated response r{day} details: output_token_ids: [7]\n"
        for day in days
    )
    (tmp_path / "vllm.log").write_text(text)
    loaded = load_trace(str(tmp_path / "vllm.log"))
    assert np.diff(loaded.trace.arrived_seconds).tolist() == gaps
    assert not any("sorted" in note for note in loaded.notes)
