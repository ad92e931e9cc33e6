"""What benchmarks of `headway serve` stand on: simulated replicas in one process, the gateway in another; Linux only.

python -m benchmarks.studies.serve.processes N SEATS    # N simulated replicas, URLs on stdout, until stdin ends
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from headway.gateway.embedded.embedded_engine import EmbeddedEngine
from headway.gateway.settings import EmbeddedSettings

MODEL_WRITER = Path(__file__).parents[2] / "tiny_model.py"
START_SECONDS = 30.0
VLLM_SECONDS = 300.0
WORDS = 16_384  # so many that the prompts of `headway load` are words of it
_TICKS = os.sysconf("SC_CLK_TCK")


async def engines(number: int, seats: int, model: str) -> None:
    """Run them, say where they are, and end with stdin."""
    settings = EmbeddedSettings(replicas=number, max_num_seqs=seats, model=model)
    made = [EmbeddedEngine(settings) for _ in range(number)]
    print(*[(await engine.start(at)).url for at, engine in enumerate(made)], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for engine in made:
        await engine.stop()


@contextmanager
def simulated(number: int, seats: int, model: str = "llama-3.1-8b") -> Iterator[list[str]]:
    """So many simulated replicas for the time of the block; gives their URLs."""
    line = [sys.executable, "-m", "benchmarks.studies.serve.processes", str(number), str(seats), model]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()
        process.communicate()


@contextmanager
def vllms(python: str, folder: Path, number: int, options: Mapping[str, object]) -> Iterator[list[str]]:
    """So many vLLM servers on this machine's CPU, a thread each, of a tiny model; gives their URLs once all answer."""
    subprocess.run([python, MODEL_WRITER, folder, str(WORDS)], check=True, stdout=subprocess.DEVNULL)
    environment = os.environ | {
        "PYTHONPATH": str(folder / "shim"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    fixed = {"model": folder, "served-model-name": "tiny", "load-format": "dummy", "dtype": "float32"}
    pairs = [str(text) for name, value in {**fixed, **options}.items() for text in (f"--{name}", value)]
    flags = ["--enforce-eager", "--no-enable-prefix-caching"]
    ports = [_free_port() for _ in range(number)]
    servers = []
    try:
        for port in ports:
            line = [python, "-m", "vllm.entrypoints.openai.api_server", *pairs, *flags, "--port", str(port)]
            with (folder / f"server-{port}.log").open("wb") as log:
                servers.append(subprocess.Popen(line, env=environment, stdout=log, stderr=log))
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        _wait(lambda: all(map(_answers, urls)), VLLM_SECONDS)
        yield urls
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(60)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url + "/health", timeout=2).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Gate:
    """A running gateway."""

    url: str
    pid: int

    def state(self) -> dict[str, Any]:
        """What the live page is drawn from."""
        with urllib.request.urlopen(self.url + "/headway/state", timeout=30) as answer:
            return dict(json.load(answer))

    def resident_mib(self) -> float:
        """Memory of the process."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def cpu_seconds(self) -> float:
        """Processor time of the process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def gateway(replicas: Sequence[str], config: str = "", replica_config: str = "") -> Iterator[Gate]:
    """`headway serve` in front of them, all up, for the time of the block; `replica_config` goes for each of them."""
    tables = "".join(f'\n[[replica]]\nurl = "{url}"\n{replica_config}\n' for url in replicas)
    with tempfile.TemporaryDirectory() as name:
        file, said = Path(name) / "gateway.toml", Path(name) / "said.jsonl"
        file.write_text(f'listen = "127.0.0.1:0"\n{config}\n{tables}')
        line = [sys.executable, "-c", "from headway.cli import main; main()", "serve", "--config", str(file)]
        with said.open("wb") as err:
            process = subprocess.Popen(line, stderr=err)
        try:
            gate = Gate(_listening(process, said), process.pid)
            _wait(lambda: all(one["health"] == "up" for one in gate.state()["replicas"]))
            yield gate
        finally:
            process.terminate()
            process.wait(60)


def _listening(process: subprocess.Popen[bytes], said: Path) -> str:
    found: list[str] = []

    def told() -> bool:
        if process.poll() is not None:
            raise RuntimeError(said.read_text())
        lines = [json.loads(line) for line in said.read_text().splitlines() if line.endswith("}")]
        found.extend(line["url"] for line in lines if line["message"] == "listening")
        return bool(found)

    _wait(told)
    return found[0]


def _wait(fact: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > until:
            raise RuntimeError("the gateway or its replicas did not start")
        time.sleep(0.05)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(engines(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
