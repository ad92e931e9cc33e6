"""Results of serving benchmarks with the times of each request: `vllm bench serve` and `sglang.bench_serving`.

Seen: vLLM 0.32 (`--save-result --save-detailed`) and SGLang's `bench_serving --output-details`, whose result has no
`start_times`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from headway.bench.traces.column_map import ColumnMap
from headway.bench.traces.request_logs import Entry, Record, RequestLog
from headway.bench.traces.values import Fault, shown, span

_LISTS = ("input_lens", "output_lens", "ttfts", "itls")
_COLUMNS = ColumnMap(
    {
        "arrival": "start_times",
        "prompt": "input_lens",
        "output": "output_lens",
        "max_output": "max_output",
        "ttft": "ttfts",
        "e2e": "ttfts + itls",
    },
    {"arrival": 1.0, "ttft": 1.0, "e2e": 1.0},
)


def _of_vllm(record: Record) -> Iterator[Entry]:
    yield from _entries(record, record.get("start_times"), is_known=True)


def _of_sglang(record: Record) -> Iterator[Entry]:
    """Arrivals of a run that sent everything at once are known; of any other they are spread evenly over it.

    What was measured under arrivals that are not known says nothing of a replay, so it is left out.
    """
    count = len(_lists(record)[0])
    if _sends_at_once(record):
        yield from _entries(record, [0.0] * count, is_known=True)
        return
    seconds = span("duration", 1.0)(record.get("duration"))
    yield from _entries(record, [float(str(seconds)) * row / count for row in range(count)], is_known=False)


def _sends_at_once(record: Record) -> bool:
    rate = record.get("request_rate")
    return rate in (math.inf, "inf") and record.get("max_concurrency") is None


def _entries(record: Record, starts: object, *, is_known: bool) -> Iterator[Entry]:
    lists = _lists(record)
    if not isinstance(starts, list):
        raise Fault("`start_times` must be a list", shown(starts))
    if len({len(column) for column in (*lists, starts)}) > 1:
        raise Fault("the lists of the result have different lengths", fix="take the file as the benchmark wrote it")
    for prompt, output, first, gaps, start in zip(*lists, starts, strict=True):
        if not output or not first:
            yield "the request failed: it has no output"
            continue
        if not isinstance(gaps, list):
            raise Fault("`itls` must be a list of lists", shown(gaps))
        request = {
            "start_times": start,
            "input_lens": prompt,
            "output_lens": output,
            "max_output": output,  # lengths are fixed in such runs, so every request ends at its bound
        }
        if is_known:
            times = [
                float(str(span(name, 1.0)(time))) for name, time in [("ttfts", first), *(("itls", g) for g in gaps)]
            ]
            request |= {"ttfts": times[0], "ttfts + itls": sum(times)}
        yield request


def _lists(record: Record) -> list[list[Any]]:
    for name in _LISTS:
        if not isinstance(record.get(name), list):
            raise Fault(
                f"the benchmark's result has no list `{name}`",
                fix="run `vllm bench serve` with --save-result --save-detailed, sglang.bench_serving with "
                "--output-details",
            )
    return [record[name] for name in _LISTS]  # type: ignore[misc]


LOGS = (
    RequestLog(
        "vLLM benchmark result",
        (frozenset({"input_lens", "start_times"}),),
        _COLUMNS,
        _of_vllm,
        is_whole_run=True,
    ),
    RequestLog(
        "SGLang benchmark result",
        (  # of a long run of either program, the beginning of the file has no more than the last of these sets
            frozenset({"input_lens", "output_lens"}),
            frozenset({"request_rate", "mean_ttft_ms"}),
            frozenset({"request_rate", "input_lens"}),
        ),
        _COLUMNS,
        _of_sglang,
        (
            "SGLang's result has no arrivals: they are 0 where the rate was infinite and concurrency unbounded, "
            "else they are spread evenly over the run and its measured times left out",
        ),
        is_whole_run=True,
    ),
)
