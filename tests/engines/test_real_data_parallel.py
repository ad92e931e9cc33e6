"""`vllm serve` with two data-parallel engines under our scheduler, asked over HTTP why a request waited.

Takes minutes, so it runs only on request: HEADWAY_VLLM_PYTHON names an interpreter that has vLLM, and
HEADWAY_REAL_ENGINE is 1. One start of two engines.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PYTHON = os.environ.get("HEADWAY_VLLM_PYTHON", "")
WANTED = os.environ.get("HEADWAY_REAL_ENGINE", "") == "1"
REQUESTS = 40
LOGS = ("log.jsonl", "log-1.jsonl")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not WANTED, reason="HEADWAY_REAL_ENGINE is not 1: starting vLLM takes minutes and both cores"),
]


class TwoEngines:
    """A server of two engines that has answered forty requests."""

    def __init__(self, folder: Path) -> None:
        self.port, *self.why_ports = free_ports(3)
        self.folder = folder
        headway = {
            "ordering": "shortest-prompt-first",
            "decision_log": str(folder / "log.jsonl"),
            "metrics_dir": str(folder / "metrics"),
            "why_listen": f"127.0.0.1:{self.why_ports[0]}",
        }
        paths = os.pathsep.join(map(str, (SOURCE, ROOT, folder / "distributions")))
        one_thread = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        with (folder / "server.log").open("w") as output:
            self.process = subprocess.Popen(
                [
                    str(Path(PYTHON).with_name("vllm")), "serve", str(folder / "model"), "--served-model-name", "tiny",
                    "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "2",
                    "--host", "127.0.0.1", "--port", str(self.port), "--data-parallel-size", "2",
                    "--scheduler-cls", "headway.vllm_plugin.Scheduler",
                    "--additional-config", json.dumps({"headway": headway}),
                ],
                env={**os.environ, "PYTHONPATH": paths, "VLLM_CPU_KVCACHE_SPACE": "1", **one_thread},
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def ask(self) -> None:
        """Wait until it is there, and have forty requests answered."""
        until = time.monotonic() + 900  # four processes that import torch, on a machine that others use too
        while not self.answers("/health"):
            assert self.process.poll() is None, self.log()[-3_000:]
            assert time.monotonic() < until, "the server did not start: " + self.log()[-3_000:]
            time.sleep(0.5)
        with ThreadPoolExecutor(REQUESTS) as clients:
            self.ids = list(clients.map(self.complete, range(REQUESTS)))

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10):
                return True
        except OSError:
            return False

    def complete(self, index: int) -> str:
        body = {"model": "tiny", "prompt": [300 + index] * (20 + 40 * (index % 5)), "max_tokens": 6, "ignore_eos": True}
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "X-Request-Id": f"asked{index}"},
        )
        with urllib.request.urlopen(asked, timeout=120) as answer:
            told: dict[str, Any] = json.load(answer)
        assert told["usage"]["completion_tokens"] == 6
        return str(told["id"])

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def free_ports(count: int) -> list[int]:
    """So many free ports in a row."""
    for first in range(20_000, 60_000, 97):
        try:
            for port in range(first, first + count):
                with socket.socket() as free:
                    free.bind(("127.0.0.1", port))
        except OSError:
            continue
        return list(range(first, first + count))
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[TwoEngines]:
    server = TwoEngines(place)
    try:
        server.ask()
        yield server
    finally:
        server.stop()


def test_both_engines_serve_under_our_order_and_no_request_is_lost(served: TwoEngines) -> None:
    logs = [[json.loads(line) for line in (served.folder / name).read_text().splitlines()] for name in LOGS]
    assert min(map(len, logs)) > 0, "one engine served no request"
    assert sum(map(len, logs)) == REQUESTS
    assert {line["order"] for log in logs for line in log} == {"shortest-prompt-first"}
    metrics = (served.folder / "metrics").glob("*.prom")  # one may be in the making beside them
    assert sorted(file.name for file in metrics) == ["engine-0.prom", "engine-1.prom"]
    assert "with several API servers vLLM's /metrics cannot carry the engines' metrics" in served.log()


def test_the_engine_that_served_it_tells_why_it_waited(served: TwoEngines) -> None:
    for id_ in (served.ids[0], "asked7"):
        told = [explained(port, id_) for port in served.why_ports]
        knows, other = sorted(told, key=lambda one: one.returncode)
        assert (knows.returncode, other.returncode) == (0, 2)
        assert "prompt tokens" in knows.stdout.splitlines()[0]
        assert "waited" in knows.stdout.splitlines()[0]
        assert f"does not know {id_!r}" in other.stderr
        assert "Traceback" not in other.stderr


def test_vllms_own_address_says_where_to_ask(served: TwoEngines) -> None:
    said = explained(served.port, served.ids[0])
    assert said.returncode == 2
    assert "has no /headway/why; name a gateway of `headway serve`" in said.stderr


def explained(port: int, id_: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from headway.cli import main; main()", "explain", "--live"]
    return subprocess.run([*line, f"http://127.0.0.1:{port}", id_], capture_output=True, text=True, check=False)
