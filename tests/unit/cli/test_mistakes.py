"""Every mistake of a user's is one sentence on stderr, status 2, nothing on stdout, no traceback."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from headway.cli import compare_run
from tests.support.command_line import Said

Headway = Callable[..., Said]

GOOD = '{"timestamp": 0, "input_length": 10, "output_length": 5}\n'


def told(said: Said) -> str:
    assert said.status == 2, said
    assert said.out == ""
    assert said.err.startswith("headway: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (("--policy", "smalest-volume-first"), "did you mean 'smallest-volume-first'? choose from fcfs, shortest-"),
        (("--admission", "gredy"), "did you mean 'greedy'? choose from greedy, peak-check, reserve-max"),
        (("--prediction", "orakel"), "did you mean 'oracle'? choose from running-mean"),
        (("--preemption", "least-sunk"), "did you mean 'least-sunk-work'? choose from latest-admitted"),
        (("--policy", "fcfs", "--policy", "fcfs"), "--ordering fcfs is there twice"),
        (("--policy", "fcfs/random"), "takes no other policy inside it"),
        (("--load", "ninety"), "--load: 'ninety' is not a number; write a share of saturation, for example 0.9"),
        (("--load", "0"), "--load: 0 is not above 0"),
        (("--load", "-1"), "--load: -1 is not above 0"),
        (("--load", "nan"), "--load: nan is not above 0"),
        (("--load", "90"), "not a percentage"),
        (("--loads", "0.5,,0.9"), "--loads: '' is not a number"),
        (("--loads", "0.5,0.5"), "a load is there twice"),
        (("--load", "0.5", "--loads", "0.5"), "give --load or --loads, not both"),
        (("--slo", "ttft=2"), "ttft=2 is not a number with the unit s or ms"),
        (("--slo", "tfft=2s"), "'tfft' is none of ttft, tpot, e2e"),
        (("--hardware", "h1000"), "unknown hardware 'h1000'"),
        (("--model", "llama"), "unknown model 'llama'"),
        (("--model", "llama-3.1-70b", "--tp", "1"), "does not fit on 1 × h100"),
        (("--tp", "3"), "tp 3 is not known for h100: use one of 1, 2, 4, 8"),
        (("--kv-tokens", "5"), "kv_tokens must be at least one block"),
        (("--max-num-batched-tokens", "10", "--max-num-seqs", "20"), "must be at least max_num_seqs"),
        (("--kv-tokens", "40", "--block-tokens", "64"), "kv_tokens must be at least one block of 64, got 40"),
        (("--block-tokens", "0"), "'--block-tokens': Input should be greater than or equal to 1"),
        (("--watermark", "1"), "watermark must be in [0, 1), got 1.0"),
        (("--kv-precision", "int8"), "'int8' is not one of 'bf16', 'fp8'"),
        (("--long-prefill-token-threshold", "-1"), "'--long-prefill-token-threshold': Input should be greater than or"),
        (("--long-prefill-token-threshold", "999999"), "(999999) must be at most max_model_tokens (131072)"),
        (("--long-prefill-token-threshold-adaptive",), "raises --long-prefill-token-threshold, which is 0: give that"),
        (("--tuning", "on"), "'on' is not one of 'off', 'self-tuned', 'prefill-budget'"),
        (("--tpot-bound", "0.1"), "--tpot-bound is read under --tuning prefill-budget only"),
        (("--tuning", "prefill-budget", "--tpot-bound", "0"), "--tpot-bound must be above 0 seconds, got 0"),
        (("--displace", "--admission", "peak-check"), "displace needs the admission policy greedy, and"),
        (("--bundles", "none.toml"), "none.toml: it cannot be read"),
        (("--requests", "0"), "'--requests': Input should be greater than or equal to 1"),
        (("--seed", "-1"), "'--seed': Input should be greater than or equal to 0"),
        (("--jobs", "0"), "'--jobs': Input should be greater than or equal to 1"),
        (("--over-context", "ignore"), "'ignore' is not one of 'error', 'refuse', 'cut'"),
        (("--polcy", "fcfs"), "No such option: --polcy"),
        (("--load",), "requires an argument; see `headway COMMAND -h`"),
    ],
)
def test_a_bad_option(headway: Headway, small_trace: Path, line: tuple[str, ...], sentence: str) -> None:
    assert sentence in told(headway("compare", small_trace, *line))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD + GOOD.replace("0,", "-5,", 1), "line 2: `timestamp` must not be negative (it is -5)"),
        (GOOD + GOOD.replace("10", "0"), "line 2: `input_length` must be a whole number from 1"),
        (GOOD + GOOD.replace("5}", "0}"), "line 2: `output_length` must be a whole number from 1"),
        (GOOD + GOOD.replace("10", "200000"), "line 2: 200,000 prompt + 5 output tokens are past"),
        (GOOD + '{"timestamp": 1, "input_length": 10}\n', "line 2: `output_length` is missing"),
        (GOOD + "{not json}\n", "line 2: the line is not JSON"),
        (
            GOOD + '{"timestamp": NaN, "input_length": 10, "output_length": 5}\n',
            "line 2: a number is not finite (it is NaN)",
        ),
        ("", "is an empty file"),
        ("\n\n", "a trace needs at least one"),
    ],
)
def test_a_bad_trace(headway: Headway, tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    assert sentence in told(headway("compare", path, "--policy", "fcfs"))


def test_a_directory(headway: Headway, tmp_path: Path) -> None:
    assert "is a folder" in told(headway("compare", tmp_path))


def test_a_binary_file(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "picture.jsonl"
    path.write_bytes(bytes(range(256)) * 20)
    assert "binary" in told(headway("compare", path))


def test_a_packed_file_cut_short(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl.gz"
    path.write_bytes(gzip.compress((GOOD * 5000).encode())[:-20])
    told(headway("compare", path))


def test_a_file_that_is_not_there(headway: Headway, tmp_path: Path) -> None:
    assert "there is no such file" in told(headway("compare", tmp_path / "none.jsonl"))


def test_every_trace_is_looked_for_before_the_first_is_replayed(
    headway: Headway, small_trace: Path, tmp_path: Path
) -> None:
    fcfs = ("--policy", "fcfs")
    for verb in (("compare", *fcfs), ("bound",)):
        assert "there is no such file" in told(headway(*verb, small_trace, tmp_path / "none.jsonl"))


@pytest.mark.parametrize("option", ["--bundles", "--calibration", "--hardware", "--model"])
def test_no_file_that_an_option_names_is_written_over(
    headway: Headway, small_trace: Path, tmp_path: Path, option: str
) -> None:
    read = tmp_path / "read.toml"
    read.write_text("not yet read")
    for verb in ("compare", "bound") if option != "--bundles" else ("compare",):
        assert "this file is read" in told(headway(verb, small_trace, option, read, "--json", read))
    assert read.read_text() == "not yet read"


def test_a_trace_in_the_folder_of_traces_is_not_written_over(
    headway: Headway, small_trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWAY_TRACES", str(small_trace.parent))
    assert "this file is read" in told(headway("compare", "small", "--json", small_trace))
    assert "this file is read" in told(headway("tune", "small", "--out", small_trace))


def test_all_at_one_moment_has_no_load(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "burst.jsonl"
    path.write_text(GOOD * 5)
    assert headway("compare", path, "--policy", "fcfs").status == 0
    assert "all requests arrive at one moment" in told(headway("compare", path, "--policy", "fcfs", "--load", "1"))


def test_a_trace_longer_than_the_clock(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "months.jsonl"
    days = [0, 1, 2, 116]
    path.write_text("".join(GOOD.replace(": 0,", f": {86_400_000 * day},") for day in days))
    fcfs = ("--policy", "fcfs")
    assert "lasts 116.0 days" in told(headway("compare", path, *fcfs))
    assert "lasts 116.0 days" in told(headway("bound", path))
    assert headway("compare", path, *fcfs, "--load", "0.5").status == 0
    assert "the simulator's clock holds 100" in told(headway("compare", path, *fcfs, "--load", "0.0000000001"))
    assert headway("compare", path, *fcfs, "--requests", "3").status == 0


def test_bad_lines_are_skipped_when_asked_and_counted(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(GOOD + "{not json}\n" + GOOD)
    said = headway("compare", path, "--policy", "fcfs", "--skip-bad-lines")
    assert said.status == 0
    assert "1 of 3 lines skipped: 1 because the line is not JSON (first at line 2)" in said.err
    assert "2 requests" in said.out


def test_an_unknown_policy_to_explain(headway: Headway) -> None:
    assert "did you mean 'peak-check'?" in told(headway("explain", "peak-chek"))


def test_an_unknown_verb(headway: Headway) -> None:
    assert "compar" in told(headway("compar"))


def test_a_failure_of_ours_is_status_1_with_a_sentence(
    headway: Headway, small_trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the sky fell")

    monkeypatch.setattr(compare_run, "run_experiment", broken)
    said = headway("compare", small_trace)
    assert said.status == 1
    assert said.err.startswith("headway: the sky fell")
    assert "Traceback" not in said.err
    assert "Traceback" in headway("compare", small_trace, "--debug").err


def test_load_takes_the_advice_that_it_gives_about_a_trace(headway: Headway, tmp_path: Path) -> None:
    bad, unknown = tmp_path / "bad.jsonl", tmp_path / "unknown.csv"
    bad.write_text(GOOD + "{\n")
    unknown.write_text("a,b,c\n1,2,3\n")
    to = ("load", "http://127.0.0.1:1", "--trace")
    assert "--skip-bad-lines" in told(headway(*to, str(bad)))
    assert "cannot be reached" in headway(*to, str(bad), "--skip-bad-lines").err
    assert "--columns arrival=" in told(headway(*to, str(unknown)))
    assert "cannot be reached" in headway(*to, str(unknown), "--columns", "arrival_s=a,prompt=b,output=c").err
