"""Recordings are read from three layouts; what is wrong with them is said in a sentence."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headway.bench.calibration.recording_files import read_recording
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import check_context, head, scale_arrivals
from headway.bench.traces.writing import write_jsonl
from headway.bench.user_mistake import UserMistake
from tests.support.recorded_days import recorded, traffic

ENGINE_LOG = (
    "request,prompt_tokens,output_tokens,queued_s,first_token_s,last_token_s,prompt_blocks\n"
    "1,40,3,0.5,0.75,1.25,7 8\n"
    "0,16,2,0.25,0.5,0.625,7\n"
)


def served(**wrong: list[object]) -> str:
    """One request as `vllm bench serve --save-detailed` writes it, over several lines, with something wrong."""
    right = {"input_lens": [10], "output_lens": [3], "ttfts": [0.5], "itls": [[0.1, 0.2]], "start_times": [101.0]}
    return json.dumps({**right, **wrong})


def test_a_written_recording_comes_back(tmp_path: Path) -> None:
    day = recorded(traffic(30))
    file = tmp_path / "day.jsonl.gz"
    write_jsonl(day.as_trace(), file)
    back = read_recording(str(file))
    np.testing.assert_allclose(back.ttft_seconds, day.ttft_seconds, atol=1e-6)
    np.testing.assert_allclose(back.e2e_seconds, day.e2e_seconds, atol=1e-6)
    assert back.trace.prompt_tokens.tolist() == day.trace.prompt_tokens.tolist()


def test_an_engine_log_is_sorted_by_queueing_and_keeps_shared_blocks(tmp_path: Path) -> None:
    file = tmp_path / "requests.csv.gz"
    file.write_bytes(gzip.compress(ENGINE_LOG.encode()))
    day = read_recording(str(file))
    assert day.trace.arrived_seconds.tolist() == [0.0, 0.25]
    assert day.trace.prompt_tokens.tolist() == [16, 40]
    assert day.ttft_seconds.tolist() == [0.25, 0.25]
    assert day.e2e_seconds.tolist() == [0.375, 0.75]
    assert day.tpot_seconds.tolist() == [0.125, 0.25]
    first, second = (list(row) for row in day.trace.prefix_ids or ())
    assert first == [7]
    assert second[:2] == [7, 8]
    assert second[2] not in (7, 8)


def test_a_serving_benchmark_of_vllm_is_read(tmp_path: Path) -> None:
    result = {
        "date": "x",
        "input_lens": [10, 20, 30],
        "output_lens": [3, 2, 0],
        "ttfts": [0.5, 0.25, 0.0],
        "itls": [[0.1, 0.2], [0.05], []],
        "start_times": [101.0, 100.0, 102.0],
        "errors": ["", "", "refused"],
    }
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result))
    day = read_recording(str(file))
    assert day.trace.arrived_seconds.tolist() == [0.0, 1.0]
    assert day.trace.prompt_tokens.tolist() == [20, 10]
    np.testing.assert_allclose(day.e2e_seconds, [0.3, 0.8])


def test_requests_that_were_not_measured_are_nan(tmp_path: Path) -> None:
    file = tmp_path / "half.jsonl"
    lines = [{"timestamp": 0, "input_length": 5, "output_length": 2, "ttft_ms": 10, "e2e_ms": 30}]
    lines += [{"timestamp": 5, "input_length": 5, "output_length": 2, "ttft_ms": 10}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    day = read_recording(str(file))
    assert np.isnan(day.ttft_seconds).tolist() == [False, True]
    assert day.e2e_seconds[0] == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"timestamp": 0, "input_length": 5, "output_length": 2}\n', "it has no measured times"),
        (
            "b.jsonl",
            '{"timestamp": 0, "input_length": 5, "output_length": 2, "ttft_ms": 9, "e2e_ms": 8}\n',
            "`e2e_ms` is below `ttft_ms`",
        ),
        (
            "c.jsonl",
            '{"timestamp": 0, "input_length": 5, "output_length": 2, "ttft_ms": -9, "e2e_ms": 8}\n',
            "must not be negative",
        ),
        ("d.json", '{"input_lens": [1], "output_lens": [1]}', "--save-detailed"),
        ("e.csv", ENGINE_LOG.replace("0.75", "0.4"), "not in this order"),
        ("f.csv", ENGINE_LOG.replace(",40,", ",x,"), "not a number"),
        ("g.csv", ENGINE_LOG.partition("\n")[0] + "\n", "no request in it was completed"),
        ("h.csv", ENGINE_LOG.replace("1.25", "inf"), "line 2: a time is not finite"),
        ("i.csv", ENGINE_LOG.replace(",40,", f",{10**30},"), "1 to 100,000,000 tokens"),
        ("j.json", served(input_lens=["many"]), "request 0: `input_lens` must be a whole number"),
        ("k.json", served(input_lens=[0]), "request 0: `input_lens` must be a whole number"),
        ("l.json", served(output_lens=[10**30]), "request 0: `output_lens` must be a whole number"),
        ("m.json", served(ttfts=["soon"]), "request 0: `ttfts` must be a number"),
        ("n.json", served(ttfts=[float("nan")]), "request 0: `ttfts` must be finite"),
        ("o.json", served(itls=[0.1]), "request 0: `itls` must be a list of lists"),
        ("p.json", served(itls=[[-0.1, 0.1]]), "request 0: `itls` must not be negative"),
        ("q.json", served(start_times=[None]), "request 0: `start_times` is missing"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, text: str, said: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UserMistake, match=said):
        read_recording(str(file))


def test_measured_times_do_not_outlive_a_change_of_the_traffic() -> None:
    trace = recorded(traffic(30)).as_trace()
    assert scale_arrivals(trace, 2.0).measured_e2e_seconds is None
    assert check_context(trace, 500, "cut")[0].measured_e2e_seconds is None
    short = head(trace, 10)
    assert short.measured_e2e_seconds is not None
    assert len(short.measured_e2e_seconds) == 10


def test_a_trace_without_measured_times_has_none(tmp_path: Path) -> None:
    file = tmp_path / "plain.jsonl"
    write_jsonl(replace(traffic(5)), file)
    assert load_trace(str(file)).trace.measured_ttft_seconds is None
