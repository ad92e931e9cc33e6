"""The plug-in on a real vLLM on the CPU: order, tokens, conservation, faults, and a served model with real clients.

Takes minutes, so it runs only on request: HEADWAY_VLLM_PYTHON names an interpreter that has vLLM, and
HEADWAY_REAL_ENGINE is 1. Three engine starts, one at a time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCE = ROOT / "src"
PYTHON = os.environ.get("HEADWAY_VLLM_PYTHON", "")
WANTED = os.environ.get("HEADWAY_REAL_ENGINE", "") == "1"

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not WANTED, reason="HEADWAY_REAL_ENGINE is not 1: starting vLLM takes minutes and both cores"),
]
LONGEST_SECONDS = 900  # an engine that hangs fails its tests; it does not hang what waits for them
CHECKS = ("order_of_every_policy", "tokens_are_stocks", "ten_thousand_wait")


def environment(place: Path, **more: str) -> dict[str, str]:
    paths = os.pathsep.join(map(str, (SOURCE, ROOT, place / "distributions")))
    one_thread = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # more spin when others compute too
    vllm = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    return {**os.environ, "PYTHONPATH": paths, **vllm, **one_thread, **more}


def run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=LONGEST_SECONDS)
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


@cache
def findings(place: Path) -> dict[str, Any]:
    env = environment(place, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    out = run([PYTHON, "-m", "tests.engines.real_checks", str(place / "model")], env)
    return dict(json.loads(out.splitlines()[-1])["checks"])


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_fails(check: str, place: Path) -> None:
    assert findings(place)[check]["failures"] == []


class Served:
    """`vllm serve` with our scheduler, as an operator starts it."""

    def __init__(self, place: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.place, self.env = place, environment(place)
        self.decisions = place / "decisions.jsonl"
        self.output = (place / "server.log").open("w")
        headway = {"ordering": "priority", "decision_log": str(self.decisions), "explain_above_seconds": 0}
        self.process = subprocess.Popen(
            [
                str(Path(PYTHON).with_name("vllm")), "serve", str(place / "model"), "--served-model-name", "tiny",
                "--dtype", "float32", "--enforce-eager", "--max-model-len", "4096", "--max-num-seqs", "4",
                "--host", "127.0.0.1", "--port", str(self.port), "--scheduler-cls", "headway.vllm_plugin.Scheduler",
                "--additional-config", json.dumps({"headway": headway}),
            ],
            env=self.env, stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        for _ in range(600):
            assert self.process.poll() is None, self.log()[-3_000:]
            try:
                self.get("/health")
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError("the server did not start: " + self.log()[-3_000:])

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def log(self) -> str:
        return (self.place / "server.log").read_text(errors="replace")

    def metric(self, name: str) -> float:
        """The sum of a metric's samples on vLLM's own /metrics."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith((name + "{", name + " "))]
        assert lines, f"/metrics has no {name}"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.output.close()


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Served]:
    server = Served(place)
    yield server
    server.stop()
    told = re.search(r"/metrics carries the metrics that engines write to (\S+)", server.log())
    assert told is not None
    assert not Path(told[1]).exists(), "the folder of a server that is gone"


def test_the_openai_client_is_served_with_hints(served: Served) -> None:
    out = json.loads(run([PYTHON, str(HERE / "openai_client.py"), str(served.port), "hints"], served.env))
    assert out["answers"] == out["asked"]
    decisions = [json.loads(line) for line in served.decisions.read_text().splitlines()]
    assert len(decisions) >= out["asked"]
    assert "headway: waiting requests are ordered by priority" in served.log()
    assert "headway: request" in served.log(), "the log explains a wait"


def test_a_storm_of_clients_that_leave_loses_no_other_request(served: Served) -> None:
    out = json.loads(run([PYTHON, str(HERE / "openai_client.py"), str(served.port), "storm"], served.env))
    assert out["answers"] == out["stayed"]
    assert out["as_alone"] == out["stayed"], "who stays gets the tokens that it gets with the engine to itself"
    assert out["left"] > 50
    for _ in range(100):
        if served.metric("vllm:num_requests_running") + served.metric("vllm:num_requests_waiting") == 0:
            break
        time.sleep(0.1)
    assert served.metric("vllm:num_requests_waiting") == 0
    assert served.metric("vllm:num_requests_running") == 0


def test_our_numbers_are_on_vllms_own_metrics_page(served: Served) -> None:
    assert served.metric("headway_steps_total") > 0
    assert served.metric("headway_wait_seconds_count") > 0
    assert served.metric("headway_fallbacks_total") == 0
    assert served.metric("headway_decision_seconds_count") > 0


def test_vllm_bench_serve_runs_against_it(served: Served) -> None:
    result = served.place / "bench.json"
    run(
        [
            str(Path(PYTHON).with_name("vllm")), "bench", "serve", "--model", "tiny",
            "--tokenizer", str(served.place / "model"), "--host", "127.0.0.1", "--port", str(served.port),
            "--dataset-name", "random", "--random-input-len", "60", "--random-output-len", "8", "--num-prompts", "30",
            "--request-rate", "20", "--ignore-eos", "--save-result", "--result-filename", str(result),
        ],
        served.env,
    )  # fmt: skip
    found = json.loads(result.read_text())
    assert found["completed"] == 30
    assert found["total_output_tokens"] == 240
