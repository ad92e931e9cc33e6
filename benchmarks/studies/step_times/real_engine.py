"""Real vLLM on a CPU under three orders, predicted by a model that was fitted to another load under FCFS.

    python -m benchmarks.studies.step_times.real_engine VLLM_PYTHON [--requests N] [--repeats N] [--rate R]

VLLM_PYTHON is the Python of an environment with vLLM for CPU. Starts one server with `--scheduling-policy priority`,
on which FCFS is equal priorities, shortest prompt first is priority = prompt tokens, and shortest output first is
priority = output tokens. Each repeat is one FCFS run to fit to (`headway calibrate LOG`), then other traffic under the
three orders; the model predicts these. `--live` also runs `headway calibrate URL` first. Nothing else should run on the
machine: a run waits until others are still, and is repeated when they used more than 4 % of it meanwhile, whatever
came out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.quiet_machine import Watch, wait_for_quiet
from headway.bench.calibration.openai_stream import Server
from headway.bench.calibration.probe_load import replay_on
from headway.bench.calibration.replay import compare_with
from headway.bench.experiment.bundles import Bundle
from headway.bench.metrics.agreement import Agreement
from headway.bench.metrics.recording import Recording
from headway.bench.traces.writing import write_jsonl
from headway.simulator.calibration import Calibration, calibrated_replica, read_calibration
from headway.simulator.trace import Trace

MODEL_WRITER = Path(__file__).parents[2] / "tiny_model.py"
PORT = 18_431
SEATS, BUDGET, BLOCK_TOKENS, BLOCKS, CONTEXT = 8, 256, 128, 256, 4_096
ORDERS = ("fcfs", "shortest prompt", "shortest output")
FIGURES = ("ttft mean", "ttft p99", "tpot mean", "e2e mean", "e2e p99", "throughput")
START_SECONDS = 300
OTHERS_SHARE, ATTEMPTS, WAIT_SECONDS = 0.04, 4, 120.0


def traffic(requests: int, rate: float, seed: int) -> Trace:
    """Poisson; 80 % prompts of 32–128 tokens with 8–24 out, 20 % of 1,000–3,000 with 16–48 out."""
    draw = np.random.default_rng(seed)
    long = draw.random(requests) < 0.2
    prompt = np.where(long, draw.integers(1_000, 3_001, requests), draw.integers(32, 129, requests))
    output = np.where(long, draw.integers(16, 49, requests), draw.integers(8, 25, requests))
    arrived = np.cumsum(draw.exponential(1 / rate, requests))
    return Trace(f"seed {seed}", arrived - arrived[0], prompt, output, max_output_tokens=output)


def under(trace: Trace, order: str) -> Trace:
    """The same requests with the priorities of an order."""
    priority = {
        "fcfs": np.zeros(len(trace), np.int64),
        "shortest prompt": trace.prompt_tokens,
        "shortest output": trace.output_tokens,
    }[order]
    return replace(trace, priority=priority)


@contextmanager
def serving(python: str, folder: Path) -> Iterator[str]:
    """A vLLM server for the time of the block; gives its address."""
    subprocess.run([python, str(MODEL_WRITER), str(folder)], check=True, stdout=subprocess.DEVNULL)
    environment = os.environ | {
        "PYTHONPATH": str(folder / "shim"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    options = {
        "model": str(folder),
        "served-model-name": "tiny",
        "port": PORT,
        "load-format": "dummy",
        "dtype": "float32",
        "max-model-len": CONTEXT,
        "max-num-seqs": SEATS,
        "max-num-batched-tokens": BUDGET,
        "num-gpu-blocks-override": BLOCKS + 1,
        "block-size": BLOCK_TOKENS,
        "scheduling-policy": "priority",
    }
    flags = ["--enforce-eager", "--no-enable-prefix-caching", "--disable-log-stats"]
    pairs = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *pairs, *flags]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait(server, folder / "server.log")
            yield f"http://127.0.0.1:{PORT}"
        finally:
            server.terminate()
            server.wait(60)


def _wait(server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(START_SECONDS):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text(errors='replace')[-2_000:]}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise RuntimeError(f"the server did not come up in {START_SECONDS} s: {log.read_text(errors='replace')[-2_000:]}")


def calibrate(source: str, folder: Path, more: list[str]) -> Calibration:
    """What `headway calibrate` writes, its output shown."""
    limits = ["--kv-tokens", str(BLOCKS * BLOCK_TOKENS), "--block-tokens", str(BLOCK_TOKENS)]
    limits += ["--max-num-seqs", str(SEATS), "--max-num-batched-tokens", str(BUDGET), "--max-model-len", str(CONTEXT)]
    files = ["--out", str(folder / "c.toml"), "--name", "vLLM on a CPU"]
    headway = str(Path(sys.executable).with_name("headway"))
    subprocess.run([headway, "calibrate", source, *limits, *files, "--sync", *more], check=True)
    return read_calibration(folder / "c.toml")


def predicted(recording: Recording, calibration: Calibration) -> Agreement:
    """The recorded run under its own priorities, simulated."""
    server = calibrated_replica(calibration)
    rules = replace(server.rules, resumed="by-rank")
    return compare_with(recording, rules, server.step_time, Bundle("priority", "priority"))


def report(told: dict[str, list[Agreement]]) -> None:
    """Each order's figures: measured mean and spread over repeats, predicted, error."""
    print("\n| order | figure | measured | repeats from – to | simulated | error |\n|---|---|---:|---:|---:|---:|")
    errors: dict[str, list[float]] = {}
    for order, repeats in told.items():
        for name in FIGURES:
            measured = np.array([one.figures[name].measured for one in repeats])
            simulated = float(np.mean([one.figures[name].predicted for one in repeats]))
            error = simulated / measured.mean() - 1
            errors.setdefault(name, []).append(abs(error))
            cells = f"{measured.mean():.4g} | {measured.min():.4g} – {measured.max():.4g} | {simulated:.4g}"
            print(f"| {order} | {name} | {cells} | {100 * error:+.1f} % |")
    for name, found in errors.items():
        print(f"{name}: mean of |error| over the orders {100 * float(np.mean(found)):.1f} %")
    for name in ("ttft mean", "e2e mean"):
        for repeat in range(len(told["fcfs"])):
            ranks = [
                sorted(told, key=lambda order: getattr(told[order][repeat].figures[name], side))
                for side in ("measured", "predicted")
            ]
            print(f"ranking by {name}, repeat {repeat + 1}: {'same' if ranks[0] == ranks[1] else 'DIFFERENT'} {ranks}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm_python")
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rate", type=float, default=24.0)
    parser.add_argument("--fit-requests", type=int, default=300)
    parser.add_argument("--live", action="store_true")
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, serving(typed.vllm_python, Path(name)) as url:
        if typed.live:
            calibrate(url, Path(name), ["--requests", str(typed.fit_requests)])
        measured = []
        for repeat in range(1, typed.repeats + 1):
            log = Path(name) / f"fcfs-{repeat}.jsonl"
            write_jsonl(quietly(url, traffic(typed.requests, typed.rate, seed=100 + repeat), "fcfs").as_trace(), log)
            test = traffic(typed.requests, typed.rate, seed=repeat)
            measured.append((log, {order: quietly(url, test, order) for order in ORDERS}))
        told: dict[str, list[Agreement]] = {order: [] for order in ORDERS}
        for log, recordings in measured:
            calibration = calibrate(str(log), Path(name), [])
            for order, recording in recordings.items():
                told[order].append(predicted(recording, calibration))
                print(f"{order}: {told[order][-1].sentence()}", flush=True)
    report(told)
    return 0


def quietly(url: str, trace: Trace, order: str) -> Recording:
    """`served` while nobody else uses the machine; the last of a few attempts when somebody always does."""
    for _ in range(ATTEMPTS):
        still = wait_for_quiet([os.getpid()], share=OTHERS_SHARE, at_most_seconds=WAIT_SECONDS)
        watch = Watch([os.getpid()])
        recording = served(url, trace, order)
        others = watch.others_share()
        mean = float(recording.e2e_seconds.mean())
        print(f"{trace.name}, {order}: mean {mean:.3f} s; others used {100 * others:.1f} %", flush=True)
        if still and others <= OTHERS_SHARE:
            return recording
    print("  kept although others disturbed it", flush=True)
    return recording


def served(url: str, trace: Trace, order: str) -> Recording:
    """The trace on the live server, its requests' priorities kept."""
    recording = asyncio.run(replay_on(Server(url), "tiny", under(trace, order), 0, order))
    return replace(recording, trace=replace(recording.trace, priority=_priorities(recording, order)))


def _priorities(recording: Recording, order: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    priority = under(recording.trace, order).priority
    assert priority is not None
    return priority


if __name__ == "__main__":
    sys.exit(main())
