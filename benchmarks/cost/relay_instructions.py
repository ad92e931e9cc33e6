"""Instructions that `headway serve` executes for one streamed chunk and for one request, counted by valgrind.

    python -m benchmarks.cost.relay_instructions                   # this environment's headway
    python -m benchmarks.cost.relay_instructions --beside PYTHON   # and the headway of another environment

CPU time on a shared machine varies by more than a version differs from the next; a count of instructions does not. It
leaves out the kernel, where most of a chunk's time is spent: `relay.py` measures that. Two loads differ in chunks only,
two in requests only, and last equally long, so that start, end and what is done by the clock drop out. Needs valgrind.
Nothing leaves 127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.cost.relay import free_port, headway, is_ready, running

STREAMS = 8  # at once
GAP_SECONDS = 0.1  # so long that valgrind, twenty times as slow, reads each chunk by itself
CHUNKS_FEW, CHUNKS_MANY = 10, 410
REQUESTS_FEW, REQUESTS_MANY = 1, 101  # by each of the clients, one after the other, of one chunk
START_SECONDS = 900.0


def client(port: int, requests: int, chunks: int) -> None:
    """One kept connection. Raises SystemExit if an answer is not whole."""
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    asked = {"model": "m", "prompt": "hello " * 20, "max_tokens": chunks, "stream": True, "gap": GAP_SECONDS}
    for _ in range(requests):
        connection.request("POST", "/v1/completions", json.dumps(asked), {"content-type": "application/json"})
        answer = connection.getresponse()
        events = answer.read().count(b"data:")
        if answer.status != 200 or events != chunks + 1:
            raise SystemExit(f"status {answer.status} with {events} events instead of {chunks + 1}")
    connection.close()


def instructions(python: str, requests: int, chunks: int, seconds: float = 0.0) -> tuple[int, float]:
    """All that one process executes from its start to its end under one load, and the load's seconds.

    It stays idle for the rest of `seconds`.
    """
    upstream, port = free_port(), free_port()
    source = [sys.executable, "-m", "benchmarks.cost.relay", "--source", str(upstream)]
    with tempfile.TemporaryDirectory() as folder, running(source, upstream):
        command = [python, *headway(port, upstream, Path(folder))[1:]]
        counter = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
        process = subprocess.Popen([*counter, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            until = time.monotonic() + START_SECONDS
            while not is_ready(port):
                if time.monotonic() > until or process.poll() is not None:
                    raise SystemExit(f"{python} did not start to listen")
                time.sleep(0.5)
            began = time.monotonic()
            clients = [threading.Thread(target=client, args=(port, requests, chunks)) for _ in range(STREAMS)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join()
            took = time.monotonic() - began
            time.sleep(max(0.0, seconds - took))
        finally:
            process.send_signal(signal.SIGTERM)
            said = process.communicate()[1]
    found = re.search(r"I\s+refs:\s+([\d,]+)", said)
    if found is None:
        raise SystemExit(f"valgrind counted nothing: {said[-500:]}")
    return int(found[1].replace(",", "")), took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", metavar="PYTHON", help="the Python of another environment")
    asked = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed; it counts the instructions")
    print("| headway | instructions a chunk | instructions a request |\n|---|---|---|")
    pythons = {"here": sys.executable} | ({"beside": asked.beside} if asked.beside is not None else {})
    for name, python in pythons.items():
        print(f"{name}: four runs under valgrind, some minutes", file=sys.stderr, flush=True)
        many, took = instructions(python, REQUESTS_FEW, CHUNKS_MANY)
        chunk = many - instructions(python, REQUESTS_FEW, CHUNKS_FEW, took)[0]
        many, took = instructions(python, REQUESTS_MANY, 1)
        request = many - instructions(python, REQUESTS_FEW, 1, took)[0]
        chunks, requests = STREAMS * (CHUNKS_MANY - CHUNKS_FEW), STREAMS * (REQUESTS_MANY - REQUESTS_FEW)
        print(f"| {name} | {chunk / chunks:,.0f} | {request / requests:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
