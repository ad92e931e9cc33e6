"""`headway calibrate LOG` and what `headway compare` makes of it, as users type them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from headway.bench.calibration.replay import replay
from headway.bench.metrics.recording import Recording
from headway.bench.traces.writing import write_jsonl
from headway.cli.app import run
from headway.simulator.replica import replica
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.trace import Trace

LIMITS = ["--kv-tokens", "40000", "--max-num-seqs", "32", "--max-num-batched-tokens", "2048"]
PROFILE = ["--hardware", "rtx-4090", "--model", "llama-3.1-8b"]


@pytest.fixture
def day(tmp_path: Path) -> str:
    """A day on an engine that is a fifth slower than its profile."""
    draw = np.random.default_rng(3)
    output = draw.integers(4, 60, 60)
    arrived = np.round(np.cumsum(draw.exponential(0.1, 60)), 3)
    trace = Trace("day", arrived - arrived[0], draw.integers(10, 1_500, 60), output, max_output_tokens=output)
    server = replica("rtx-4090", "llama-3.1-8b", kv_tokens=40_000, max_num_seqs=32, max_num_batched_tokens=2_048)
    step_time = ScaledStepTime(server.step_time, Scalars(step_scale=1.2))  # type: ignore[arg-type]
    nothing = Recording(trace, np.zeros(60), np.zeros(60), "day")
    ttft, e2e, _ = replay(nothing, server.rules, step_time)
    file = tmp_path / "day.jsonl"
    write_jsonl(Recording(trace, ttft, e2e, "day").as_trace(), file)
    return str(file)


def test_a_calibration_is_written_and_compare_stands_on_it(
    day: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, numbers, report = tmp_path / "c.toml", tmp_path / "o.json", tmp_path / "o.html"
    assert run(["calibrate", day, *PROFILE, *LIMITS, "--out", str(out), "--name", "my engine"]) == 0
    told = capsys.readouterr().out
    assert "held out, profile alone" in told
    assert "my engine: 60 requests of day, fitted to the first 42" in told
    policies = ["--policy", "fcfs", "--policy", "shortest-prompt-first"]
    files = ["--json", str(numbers), "--report", str(report)]
    assert run(["compare", day, "--calibration", str(out), "--kv-tokens", "5"]) == 2
    assert "--kv-tokens must be at least one block of 16" in capsys.readouterr().err
    assert run(["compare", day, "--calibration", str(out), *policies, *files]) == 0
    table = capsys.readouterr().out
    assert "calibrated to 60 requests of day" in table
    assert "Recorded day: the trace has measured times. Simulated fcfs against them" in table
    result = json.loads(numbers.read_text())
    fcfs, shortest = result["runs"]
    assert abs(fcfs["recorded"]["e2e_mean"]["simulated"] / fcfs["recorded"]["e2e_mean"]["measured"] - 1) < 0.02
    assert shortest["recorded"] is None
    page = report.read_text(encoding="utf-8")
    for name, title in (
        ("ttft_mean", "TTFT mean, s"),
        ("e2e_p99", "end to end p99, s"),
        ("throughput", "output tokens/s"),
    ):
        told = fcfs["recorded"][name]
        assert told["error_percent"] == pytest.approx(100 * (told["simulated"] / told["measured"] - 1))
        shown = f"{told['error_percent']:+.1f} %"
        assert next(line for line in table.splitlines() if line.startswith(title) and "%" in line).endswith(shown)
        assert f'<th scope="row">{title}</th>' in page
        assert f"<td>{shown}</td>" in page
    assert "held out" in result["replica"]["profile"]["error"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--kv-tokens", "40000"], "--max-num-seqs is missing"),
        ([*LIMITS, "--kv-tokens", "5"], "--kv-tokens must be at least one block of 16, got 5"),
        ([*PROFILE, "--kv-tokens", "40", "--block-tokens", "64"], "--kv-tokens must be at least one block of 64"),
        ([*PROFILE, "--fit", "speed"], "'speed' is no scalar"),
        (["--hardware", "rtx-4091"], "unknown hardware"),
        ([*LIMITS, "--model", "llama-3.1-70b"], "--model is about a profile; name its GPU with --hardware"),
        ([*LIMITS, "--fit", "kv_scale"], "--fit is about a profile"),
        ([*LIMITS, "--precision", "fp8"], "--precision is about a profile"),
        ([*LIMITS, "--tp", "2"], "--tp is about a profile"),
        ([*LIMITS, "--served-model", "m"], "--served-model is for a live server"),
    ],
)
def test_mistakes_are_said(
    day: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert run(["calibrate", day, *more, "--out", str(tmp_path / "c.toml")]) == 2
    assert said in capsys.readouterr().err


def test_a_calibration_says_itself_what_was_measured(
    day: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.toml")
    assert run(["compare", day, "--calibration", missing, "--hardware", "a100"]) == 2
    assert "leave --hardware" in capsys.readouterr().err
    assert run(["compare", day, "--calibration", missing, "--precision", "fp8"]) == 2
    assert "--precision" in capsys.readouterr().err
    assert run(["compare", day, "--calibration", missing]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_recorded_day_of_which_nothing_can_be_compared_is_still_compared_on(
    day: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, numbers = tmp_path / "other.jsonl", tmp_path / "o.json"
    lines = [json.loads(line) for line in Path(day).read_text().splitlines()]
    file.write_text("".join(json.dumps({**line, "ttft_ms": 0, "e2e_ms": 0}) + "\n" for line in lines))
    assert run(["compare", str(file), "--policy", "fcfs", "--json", str(numbers)]) == 0
    assert json.loads(numbers.read_text())["runs"][0]["recorded"] is None
    assert "Recorded day" not in capsys.readouterr().out


def test_blocks_are_as_large_as_the_engine_has_them(day: str, tmp_path: Path) -> None:
    out = tmp_path / "c.toml"
    assert run(["calibrate", day, *PROFILE, *LIMITS, "--block-tokens", "64", "--out", str(out)]) == 0
    engine = tomllib.loads(out.read_text())["engine"]
    assert (engine["block_tokens"], engine["kv_blocks"]) == (64, 40_000 // 64)


def test_bad_lines_are_left_out_when_asked(day: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "c.toml")]
    with Path(day).open("a") as file:
        file.write("{\n")
    assert run(["calibrate", day, *PROFILE, *LIMITS, *out]) == 2
    assert "leave such lines out with --skip-bad-lines" in capsys.readouterr().err
    assert run(["calibrate", day, *PROFILE, *LIMITS, *out, "--skip-bad-lines"]) == 0
    told = capsys.readouterr()
    assert "1 of 61 lines skipped" in told.err
    assert "60 requests of day" in told.out
