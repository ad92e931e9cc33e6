"""`headway load` against replicas that answer, refuse, break and hang: what is counted, told, and left when stopped."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from headway.bench.load_test.load_progress import ProgressLines
from headway.bench.load_test.measure import LiveRun, measure
from headway.bench.load_test.sending import Tally
from headway.bench.metrics.run_metrics import RunMetrics, Slo
from headway.bench.report.comparison_facts import describe_losses
from headway.bench.report.table_columns import shown_columns
from headway.simulator.trace import Trace
from tests.support.scripted_replica import Call, Script, ScriptedReplica, answers, dies_mid_stream, hangs, streams
from tests.support.serve_process import HEADWAY


@contextmanager
def replica_that(*scripts: Script, usual: Script) -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    """A scripted replica in a thread of its own: its URL, and its loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    replica = ScriptedReplica(usual)
    replica.next.extend(scripts)
    asyncio.run_coroutine_threadsafe(replica.start(), loop).result(30)
    try:
        yield replica.url, loop
    finally:
        asyncio.run_coroutine_threadsafe(replica.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def trace_of(requests: int, *, sessions: bool = False) -> Trace:
    """Requests 1 ms apart; with sessions, two turns each."""
    count = np.arange(requests)
    return Trace(
        "made",
        count * 0.001,
        np.full(requests, 5, np.int64),
        np.full(requests, 3, np.int64),
        session=count // 2 if sessions else None,
        turn=count % 2 if sessions else None,
    )


def measured(trace: Trace, *scripts: Script, usual: Script, silence_seconds: float | None = None) -> RunMetrics:
    with replica_that(*scripts, usual=usual) as (url, _):
        result = measure(LiveRun(url, trace, Slo(), silence_seconds=silence_seconds))
    assert result.stopped_by is None
    return result.comparison.runs[0].metrics


def counts(metrics: RunMetrics) -> tuple[int, int, int, int]:
    return metrics.completed, metrics.refused, metrics.failed, metrics.unfinished


@pytest.mark.parametrize("status", [400, 429, 503])
def test_what_the_endpoint_turns_away_is_refused(status: int) -> None:
    metrics = measured(trace_of(4), answers(status, {"error": {"message": "full"}}), usual=streams(3))
    assert counts(metrics) == (3, 1, 0, 0)
    assert metrics.refused_reasons == {f"status {status}: full": 1}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (answers(500, {"error": {"message": "oh"}}), "status 500: oh"),
        (dies_mid_stream, "it closed the connection in the middle of its answer"),
        (hangs, "nothing came for 0.2 s"),
    ],
)
def test_what_has_no_whole_answer_has_failed(script: Script, reason: str) -> None:
    metrics = measured(trace_of(1), script, usual=streams(3), silence_seconds=0.2)
    assert counts(metrics) == (0, 0, 1, 0)
    assert metrics.failed_reasons == {reason: 1}
    assert metrics.makespan_seconds > 0


def test_later_turns_of_a_session_count_with_the_one_that_was_lost() -> None:
    metrics = measured(trace_of(2, sessions=True), answers(429, {"error": "no"}), usual=streams(3))
    assert counts(metrics) == (0, 2, 0, 0)
    assert metrics.refused_reasons == {"status 429: no": 1, "an earlier turn of its session was refused": 1}


def test_rates_are_those_of_the_run() -> None:
    metrics = measured(trace_of(5), usual=streams(3))
    assert metrics.offered_requests_per_second == pytest.approx(1000)
    assert metrics.completed_requests_per_second == pytest.approx(5 / metrics.makespan_seconds)
    assert metrics.makespan_seconds >= 0.004


def test_the_table_shows_what_was_lost_and_leaves_out_what_is_empty() -> None:
    with replica_that(answers(429, {"error": "no"}), dies_mid_stream, usual=streams(3)) as (url, _):
        comparison = measure(LiveRun(url, trace_of(9), Slo())).comparison
    titles = [column.column.title for column in shown_columns(comparison)]
    assert titles[:6] == ["offered", "achieved", "duration", "completed", "refused", "failed"]
    assert not {"preemptions", "recomputed", "peak KV", "Jain index", "slowdown"} & {*titles}
    assert [*describe_losses(comparison)] == [
        "1 request refused: 1 × status 429: no.",
        "1 request failed: 1 × it closed the connection in the middle of its answer.",
    ]


def test_how_far_it_is_is_told_while_nothing_ends() -> None:
    heard = threading.Event()
    told: list[Tally] = []

    async def answers_once_told(call: Call) -> None:
        while not heard.is_set():
            await asyncio.sleep(0.01)
        await streams(3)(call)

    def tell(tally: Tally) -> None:
        told.append(tally)
        if tally.sent == 2:
            heard.set()

    with replica_that(usual=answers_once_told) as (url, _):
        measure(LiveRun(url, trace_of(2), Slo()), tell=tell, tell_seconds=0.02)
    assert Tally(told[-1].seconds, 2, 0, 0, 0) in told


def test_lines_have_totals_and_the_rates_since_the_line_before() -> None:
    lines = ProgressLines(500)
    first = lines.line(Tally(10.0, 120, 90, 3, 1))
    assert first == (
        "10 s: 120 of 500 requests sent, 90 completed, 3 refused, 1 failed; last 10 s: 12.0 requests/s offered, "
        "9.0 achieved"
    )
    assert lines.line(Tally(20.0, 140, 190, 3, 1)).endswith("last 10 s: 2.0 requests/s offered, 10.0 achieved")


def load_process(url: str, *options: object) -> subprocess.Popen[str]:
    line = [*HEADWAY, "load", url, "--workload", "chat", *map(str, options)]
    return subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - also where tests ignore it
    )


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_tells_what_it_has(ending: signal.Signals, status: int, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    hung = threading.Event()

    async def hangs_aloud(call: Call) -> None:
        hung.set()
        await hangs(call)

    with replica_that(streams(3), streams(3), usual=hangs_aloud) as (url, _):
        process = load_process(url, "--requests", 50, "--rate", 20, "--json", out)
        assert hung.wait(60)
        process.send_signal(ending)
        said, noted = process.communicate(timeout=60)
    assert process.returncode == status, noted
    assert "TTFT" in said
    content = json.loads(out.read_text())
    (run,) = content["runs"]
    assert content["trace"]["planned_requests"] == 50
    assert (run["completed"], run["refused"], run["failed"]) == (2, 0, 0)
    assert run["requests"] == 2 + run["unfinished"] < 50
    assert f"interrupted: figures of the {run['requests']} requests sent, of 50" in noted
    assert "had not ended when the run was interrupted" in said


@pytest.mark.slow
def test_the_status_is_1_where_nothing_was_completed() -> None:
    with replica_that(usual=answers(429, {"error": "no"})) as (url, _):
        process = load_process(url, "--requests", 3, "--rate", 100)
        said, noted = process.communicate(timeout=60)
    assert process.returncode == 1, noted
    assert noted == "headway: no request was completed: 3 were refused, 0 failed\n"
    assert "3 requests refused: 3 × status 429: no." in said
