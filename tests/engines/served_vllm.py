"""Servers of real vLLM on the CPU, and `headway serve` in front of them, as processes that a test starts and ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PYTHON = os.environ.get("HEADWAY_VLLM_PYTHON", "")
WANTED = os.environ.get("HEADWAY_REAL_ENGINE", "") == "1"
WHY_SKIPPED = "HEADWAY_REAL_ENGINE is not 1: starting vLLM takes minutes and both cores"
START_SECONDS = 600
SERVE_OPTIONS = "--dtype float32 --enforce-eager --max-model-len 4096 --host 127.0.0.1 --served-model-name tiny"


def until(fact: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + START_SECONDS
    while not fact():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end
        time.sleep(0.2)


def fetched(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def is_there(url: str) -> bool:
    try:
        fetched(url)
    except OSError:
        return False
    return True


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the time of the block, its words in a file; ended with all that it started."""
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=env, stdout=said, stderr=said, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment(place: Path) -> dict[str, str]:
    one_thread = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return {**os.environ, "PYTHONPATH": str(place / "distributions"), **one_thread}


def without_ours(place: Path) -> Path:
    """The folder with the name that vLLM's command looks itself up by, and not with ours: stock engines."""
    for ours in (place / "distributions").glob("headway-*"):
        shutil.rmtree(ours)
    return place


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def vllm_command(place: Path, port: int, *options: str) -> list[str]:
    """A server of the written model; `options` beside the usual ones."""
    line = [str(Path(PYTHON).with_name("vllm")), "serve", str(place / "model"), *SERVE_OPTIONS.split(" ")]
    return [*line, "--port", str(port), "--enable-prompt-tokens-details", *options]


@contextmanager
def gateway_running(said: Path, replicas: int, *options: str) -> Iterator[str]:
    """`headway serve` with these options, all its replicas up; gives its URL. `said` gets its log."""
    serve = [sys.executable, "-c", "from headway.cli import main; main()", "serve", "--listen", "127.0.0.1:0"]
    with running([*serve, *options], dict(os.environ), said) as process:
        until(lambda: '"listening"' in said.read_text(), process)
        found = re.search(r'"url": "(http[^"]+)"', said.read_text())
        assert found is not None
        until(lambda: is_there(found[1] + "/ready"), process)
        until(lambda: fetched(found[1] + "/ready")["replicas_up"] == replicas, process)
        yield found[1]
