"""Traces to test with, and when two of them are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from headway.bench.traces.adapters import kept_apart
from headway.simulator.block_ids import BlockIds
from headway.simulator.trace import Trace

COLUMNS = (
    "arrived_seconds", "prompt_tokens", "output_tokens", "max_output_tokens", "session", "turn", "think_seconds",
    "deadline_seconds", "priority",
)  # fmt: skip


def assert_alike(one: Trace, other: Trace) -> None:
    """The same requests: every column equal, tenants by name."""
    for column in COLUMNS:
        np.testing.assert_equal(getattr(one, column), getattr(other, column), err_msg=column)
    assert tenant_names(one) == tenant_names(other)
    assert block_rows(one) == block_rows(other)


def tenant_names(trace: Trace) -> list[str] | None:
    return None if trace.tenant is None else [trace.tenants[index] for index in trace.tenant]


def block_rows(trace: Trace) -> list[list[int]] | None:
    return None if trace.prefix_ids is None else [list(row) for row in trace.prefix_ids]


def lines_file(folder: Path, *lines: str, name: str = "t.jsonl") -> str:
    path = folder / name
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def request(timestamp: object = 0, prompt: object = 10, output: object = 5, **more: object) -> str:
    import json

    return json.dumps({"timestamp": timestamp, "input_length": prompt, "output_length": output, **more})


@st.composite
def traces(draw: st.DrawFn, most: int = 12) -> Trace:
    """Any trace that a file can hold: whole milliseconds from 0, columns given or absent as a whole."""
    count = draw(st.integers(1, most))

    def column(values: st.SearchStrategy[int]) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=count, max_size=count)), dtype=np.int64)

    def maybe(values: st.SearchStrategy[int]) -> np.ndarray | None:
        drawn = column(values)
        return drawn if draw(st.booleans()) and drawn.any() else None

    gaps = column(st.integers(0, 5_000))
    gaps[0] = 0
    prompt, output = column(st.integers(1, 4_000)), column(st.integers(1, 4_000))
    room = maybe(st.integers(0, 9))
    tenants = draw(st.lists(st.text(max_size=4), min_size=1, max_size=3, unique=True))
    tenant = column(st.integers(0, len(tenants) - 1)) if draw(st.booleans()) else None
    deadline = maybe(st.integers(0, 9_000))
    blocks = None
    if draw(st.booleans()):
        lengths = -(-prompt // 512)
        blocks = BlockIds.of([draw(st.lists(st.integers(0, 99), min_size=n, max_size=n)) for n in lengths.tolist()])
    return kept_apart(
        Trace(
            name="t",
            arrived_seconds=np.cumsum(gaps) / 1000,
            prompt_tokens=prompt,
            output_tokens=output,
            max_output_tokens=None if room is None else np.where(room > 0, output + room - 1, 0),
            tenant=tenant,
            tenants=tuple(tenants) if tenant is not None else ("",),
            **(draw(sessions(count)) if draw(st.booleans()) else {}),
            prefix_ids=blocks,
            deadline_seconds=None if deadline is None else np.where(deadline > 0, deadline / 1000, np.nan),
            priority=maybe(st.integers(-3, 3)),
            **(draw(adapters(count)) if draw(st.booleans()) else {}),
        )
    )


@st.composite
def adapters(draw: st.DrawFn, count: int) -> dict[str, Any]:
    """The adapter column, adapters numbered in the order in which they are asked for first."""
    wanted = draw(st.lists(st.sampled_from(["", "a", "b", "ç"]), min_size=count, max_size=count))
    names = [*dict.fromkeys(filter(None, wanted))]
    column = [names.index(name) if name else -1 for name in wanted]
    return {"adapter": np.array(column), "adapters": tuple(names)} if names else {}


@st.composite
def sessions(draw: st.DrawFn, count: int) -> dict[str, Any]:
    """Session, turn and pause columns: sessions numbered in the order in which they begin, turns 0, 1, 2, ..."""
    session: list[int] = []
    turn: list[int] = []
    seen: list[int] = []
    for _ in range(count):
        chosen = draw(st.integers(-1, len(seen)))
        if chosen == len(seen):
            seen.append(0)
        session.append(chosen)
        turn.append(seen[chosen] if chosen >= 0 else 0)
        if chosen >= 0:
            seen[chosen] += 1
    if max(session) < 0:
        return {}
    pauses = draw(st.lists(st.integers(0, 99_999), min_size=count, max_size=count))
    turns = np.array(turn)
    return {
        "session": np.array(session),
        "turn": turns,
        "think_seconds": np.where(turns > 0, np.array(pauses) / 1000, 0.0),
    }
