"""Traffic for a real vLLM on the CPU: the mixed load, and slices of recorded traces in the size of that engine.

A slice keeps its arrivals' pattern, its lengths' proportions and who shares a prefix with whom; lengths are divided by
`shrink`, and time is stretched until the mean rate is a share of what the engine can do. Turns of a session come when
the trace says, whatever became of the turn before.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

FOLDER = "HEADWAY_TRACES"
CONTEXT_TOKENS = 4096
WORDS = range(3, 1000)
TRACE_BLOCK_TOKENS = 512
"""Of a `hash_ids` block of a trace."""


@dataclass(frozen=True)
class Row:
    """One request; `uncached_tokens` is what an unbounded prefix cache would leave to compute."""

    at_seconds: float
    tokens: list[int]
    output_tokens: int
    uncached_tokens: int
    length_class: str = ""


@dataclass(frozen=True)
class Traffic:
    """Requests by repeat, arriving at mean rate 1 a second, and the engine that suits them.

    Attributes:
        rows: repeat → requests.
        engine: arguments of the engine.
        told: one sentence for the page.
    """

    rows: Callable[[int], list[Row]]
    engine: dict[str, Any]
    told: str


def mixed(repeat: int, count: int) -> list[Row]:
    """80 % prompts of 32–128 tokens with 8–24 out, 20 % of 1,000–3,000 with 16–48 out; Poisson."""
    chance, at, rows = random.Random(repeat + 1), 0.0, []
    for _ in range(count):
        at += chance.expovariate(1.0)
        long = chance.random() < 0.2
        prompt = chance.randint(1000, 3000) if long else chance.randint(32, 128)
        output = chance.randint(16, 48) if long else chance.randint(8, 24)
        kind = "long" if long else "short"
        rows.append(Row(at, [chance.choice(WORDS) for _ in range(prompt)], output, prompt, kind))
    return rows


def sliced(name: str, shrink: int, first: int, count: int) -> Callable[[int], list[Row]]:
    """Repeat → `count` requests of a trace in a row, each repeat the next ones."""

    def rows(repeat: int) -> list[Row]:
        begin = first + repeat * count
        read = _read(name)[begin : begin + count]
        span = (read[-1]["timestamp"] - read[0]["timestamp"]) / len(read)
        chance, seen, made = random.Random(repeat + 1), set(), []
        for line in read:
            prompt, output = max(1, line["input_length"] // shrink), max(1, line["output_length"] // shrink)
            if prompt + output > CONTEXT_TOKENS:
                continue
            ids = line.get("hash_ids", [])
            tokens = _shared_tokens(ids, TRACE_BLOCK_TOKENS // shrink, prompt)
            hits = next((index for index, id_ in enumerate(ids) if id_ not in seen), len(ids))
            seen.update(ids)
            tokens += [chance.choice(WORDS) for _ in range(prompt - len(tokens))]
            at = (line["timestamp"] - read[0]["timestamp"]) / span
            made.append(Row(at, tokens, output, max(1, prompt - hits * TRACE_BLOCK_TOKENS // shrink)))
        return _classed(made)

    return rows


def _read(name: str) -> list[dict[str, Any]]:
    folder = os.environ.get(FOLDER)
    if not folder:
        sys.exit(f"{FOLDER} does not name the folder of recorded traces, which has {name}.jsonl.gz")
    with gzip.open(Path(folder) / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _shared_tokens(ids: list[int], block_tokens: int, at_most: int) -> list[int]:
    """The same words for the same block, wherever it comes up."""
    return [word for id_ in ids for word in random.Random(id_).choices(WORDS, k=block_tokens)][:at_most]


def _classed(rows: list[Row]) -> list[Row]:
    """Short: the half with least to compute; long: the fifth with most."""
    sizes = sorted(row.uncached_tokens for row in rows)
    half, most = sizes[len(rows) // 2], sizes[len(rows) * 4 // 5]

    def kind(size: int) -> str:
        return "short" if size <= half else "long" if size >= most else "middle"

    return [Row(r.at_seconds, r.tokens, r.output_tokens, r.uncached_tokens, kind(r.uncached_tokens)) for r in rows]


_SMALL_KV = {"num_gpu_blocks_override": 64, "block_size": 128, "enable_prefix_caching": False}
_SHARED_KV = {"num_gpu_blocks_override": 2048, "block_size": 32, "enable_prefix_caching": True}
TRAFFIC = {
    "mixed": Traffic(
        partial(mixed, count=150),
        _SMALL_KV,
        "150 requests, Poisson; 80 % with 32–128 prompt tokens (short) and 8–24 out, 20 % with 1,000–3,000 (long) and "
        "16–48 out. 63 KV blocks of 128 tokens, prefix cache off.",
    ),
    "mixed-longer": Traffic(
        partial(mixed, count=300), _SMALL_KV, "The same for twice as long: 300 requests. The queue grows all the while."
    ),
    "servegen_m_small": Traffic(
        sliced("servegen_m_small", 1, 0, 400),
        _SMALL_KV,
        "400 requests in a row a repeat, lengths as they are, time stretched. Short is the half with the shortest "
        "prompts, long the fifth with the longest. Engine as above.",
    ),
    "agentic_coding_weka": Traffic(
        sliced("agentic_coding_weka", 64, 600, 200),
        _SHARED_KV,
        "200 requests in a row a repeat, all lengths and the blocks of shared prefixes divided by 64, the few that "
        "then exceed 4,096 tokens left out, time stretched. 2,047 KV blocks of 32 tokens, prefix cache on and empty at "
        "first. Short is the half with the fewest tokens not in an unbounded prefix cache, long the fifth with most.",
    ),
}
