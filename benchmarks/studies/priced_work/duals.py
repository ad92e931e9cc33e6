"""What exact shadow prices would buy over the order of `priced-work`: linear programs on short windows of real traces.

    HEADWAY_TRACES=FOLDER python -m benchmarks.studies.priced_work.duals [TRACE ...]

A window is 60 consecutive requests that all wait at once, time is cut into periods, and a period hands out prefill
(tokens) and KV memory (tokens held at once). The program starts requests, in parts if it likes, so that the mean start
is earliest; its duals are what a unit of prefill, and of memory, is worth in each period. The true lengths are known
here: this is a yardstick, not a policy. Memory is set so that all volumes would take `scarcity` times as long as all
prefills. Each line: the mean start of a list schedule in some order, as a multiple of the program's optimum. Prints the
table of docs/priced-work.md. Needs `pip install headway[opt]`; a minute.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import highspy
import numpy as np

from headway.bench.traces.loading import load_trace
from headway.simulator.replica import replica

TRACES = (  # the training half
    "azure_conv_2023",
    "lengths_arxiv_summarization",
    "mooncake_conversation",
    "servegen_deepseek_r1",
    "servegen_m_mid",
    "servegen_mm_image",
)
SCARCITIES = (0.3, 1.0, 3.0)
REQUESTS, WINDOWS, BUSY_PERIODS = 60, 5, 40
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Window(NamedTuple):
    """What waits, in the units of a period: prefill and memory as shares of what a period has, durations in periods."""

    prefill: Floats
    held: Floats
    periods: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def volume(self) -> Floats:
        return self.held * self.periods


class Prices(NamedTuple):
    """The program's optimum: mean start in periods, and the mean dual of each resource."""

    mean_start: float
    prefill: float
    memory: float
    starts: Floats


def window_of(prompts: Floats, outputs: Floats, scarcity: float) -> Window:
    """Scaled so that the scarcer resource is busy for `BUSY_PERIODS`."""
    costs = replica("h100", "llama-3.1-8b").costs
    prefill_seconds = prompts * costs.prefill_seconds_per_token
    decode_seconds = outputs * costs.decode_seconds_per_token
    held_tokens = prompts + outputs / 2
    period = prefill_seconds.sum() * max(1.0, scarcity) / BUSY_PERIODS
    periods = np.maximum(1, np.rint(decode_seconds / period)).astype(np.int64)
    memory = (held_tokens * periods).sum() * period / (scarcity * prefill_seconds.sum())
    memory = max(memory, held_tokens.max())  # or the largest would never fit
    return Window(prefill_seconds / period, held_tokens / memory, periods)


def solve(window: Window) -> Prices:
    """The relaxed program: parts of requests start in periods, nobody before 0."""
    count, horizon = len(window.prefill), 3 * BUSY_PERIODS + int(window.periods.max())
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = count * horizon, count + 2 * horizon
    begins, rows, values = [0], [], []
    for who in range(count):
        for start in range(horizon):
            held = range(start, min(horizon, start + int(window.periods[who])))
            rows += [who, count + start, *(count + horizon + period for period in held)]
            values += [1.0, window.prefill[who], *[window.held[who]] * len(held)]
            begins.append(len(rows))
    program.col_cost_ = np.tile(np.arange(horizon, dtype=float), count)
    program.col_lower_, program.col_upper_ = np.zeros(program.num_col_), np.ones(program.num_col_)
    program.row_lower_ = np.concatenate((np.ones(count), np.full(2 * horizon, -highspy.kHighsInf)))
    program.row_upper_ = np.ones(program.num_row_)
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_, program.a_matrix_.index_ = np.array(begins), np.array(rows, np.int32)
    program.a_matrix_.value_ = np.array(values)
    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.passModel(program)
    solver.run()
    solution = solver.getSolution()
    duals = -np.array(solution.row_dual)[count:]
    parts = np.array(solution.col_value).reshape(count, horizon)
    starts = parts @ np.arange(horizon, dtype=float)
    return Prices(float(starts.mean()), float(duals[:horizon].mean()), float(duals[horizon:].mean()), starts)


def list_schedule(window: Window, order: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Mean start when requests start in this order, each as soon as prefill and memory allow; nobody passes."""
    prefilled = 0.0  # when the prefill before is done
    held: list[tuple[float, float]] = []  # (end, share) of who holds memory
    starts = []
    for who in order:
        start = prefilled
        while sum(share for end, share in held if end > start) + window.held[who] > 1 + 1e-9:
            start = min(end for end, _ in held if end > start)
        held.append((start + window.periods[who], window.held[who]))
        prefilled = start + window.prefill[who]
        starts.append(np.floor(start))  # as the program counts
    return float(np.mean(starts))


def orders(window: Window, prices: Prices) -> dict[str, Floats]:
    """Keys, smaller first."""
    return {
        "arrival": np.arange(len(window.prefill), dtype=float),
        "prefill": window.prefill,
        "volume": window.volume,
        "√(prefill·volume)": window.prefill * window.volume,
        "exact prices": prices.prefill * window.prefill + prices.memory * window.volume,
        "the program's own starts": prices.starts,
    }


def measure(trace: str, scarcity: float) -> tuple[float, dict[str, float]]:
    """(memory's share of all prices, mean start by order as multiples of the optimum), over the windows."""
    loaded = load_trace(trace).trace
    ratios: dict[str, list[float]] = {}
    shares = []
    for number in range(WINDOWS):
        rows = slice(number * 300, number * 300 + REQUESTS)
        window = window_of(loaded.prompt_tokens[rows].astype(float), loaded.output_tokens[rows].astype(float), scarcity)
        prices = solve(window)
        bill = prices.prefill * window.prefill.sum(), prices.memory * window.volume.sum()
        shares.append(bill[1] / (bill[0] + bill[1]))
        for name, key in orders(window, prices).items():
            mean = list_schedule(window, np.argsort(key, kind="stable"))
            ratios.setdefault(name, []).append(mean / prices.mean_start)
    return float(np.mean(shares)), {name: float(np.exp(np.mean(np.log(each)))) for name, each in ratios.items()}


def main(measured: Callable[[str, float], tuple[float, dict[str, float]]] = measure) -> int:
    if not os.environ.get("HEADWAY_TRACES"):
        print("HEADWAY_TRACES names no folder; set it to one with the public traces", file=sys.stderr)
        return 2
    head: list[str] = []
    for trace in sys.argv[1:] or TRACES:
        for scarcity in SCARCITIES:
            share, ratios = measured(trace, scarcity)
            if not head:
                head = ["trace", "scarcity", "memory's share of the bill", *ratios]
                print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
            cells = [trace, f"{scarcity:g}", f"{share:.2f}", *(f"{ratio:.2f}" for ratio in ratios.values())]
            print("| " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
