"""Prompts of a live run: as long as the trace says, and alike exactly where it says so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headway.simulator.trace import Trace

pytest.importorskip("msgspec")

from headway.bench.load_test.prompts import Prompts


def trace(**more: object) -> Trace:
    lengths = np.array([1, 40, 70_000])
    return Trace("t", np.zeros(3), lengths, np.array([3, 4, 5]), **more)  # type: ignore[arg-type]


def body(prompts: Prompts, row: int) -> dict[str, object]:
    return dict(json.loads(prompts.body(row)))


def test_prompts_have_the_traces_lengths_and_are_not_alike() -> None:
    prompts = Prompts(trace(), "m", 0, simulated=False)
    ids = [body(prompts, row)["prompt"] for row in range(3)]
    assert [len(one) for one in ids] == [1, 40, 70_000]  # type: ignore[arg-type]
    assert ids[1][:10] != ids[2][:10]  # type: ignore[index]
    assert body(prompts, 1) | {"max_tokens": 4, "ignore_eos": True} == body(prompts, 1)
    assert prompts.body(2) == Prompts(trace(), "m", 0, simulated=False).body(2)


def test_a_simulated_engine_is_told_the_length_beside_the_bound() -> None:
    prompts = Prompts(trace(max_output_tokens=np.array([0, 9, 0])), "m", 0, simulated=True)
    assert body(prompts, 1)["vllm_xargs"] == {"headway_output_tokens": 4}
    assert body(prompts, 1)["max_tokens"] == 9
    assert "max_tokens" not in body(prompts, 0)


def test_shared_blocks_are_shared_and_nothing_else() -> None:
    shared = trace(prefix_ids=[[7], [1, 2, 3], [1, 2, 9]], prefix_block_tokens=16)
    prompts = Prompts(shared, "m", 0, simulated=False)
    one, two = body(prompts, 1)["prompt"], body(prompts, 2)["prompt"]
    assert one[:32] == two[:32]  # type: ignore[index]
    assert one[32:36] != two[32:36]  # type: ignore[index]
    assert len(two) == 70_000  # type: ignore[arg-type]
