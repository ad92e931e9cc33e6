"""The running batch changes its version when a request joins or leaves."""

from __future__ import annotations

from typing import Any

from headway.domain.request import Request
from headway.vllm_plugin.request_entries import EngineBatch, Entry
from headway.vllm_plugin.xargs_hints import NO_HINTS
from tests.support.vllm_stub import StubRequest


def entry(prompt: int = 100, hashes: int = 3) -> Entry:
    request: Any = StubRequest("r", prompt)
    request.block_hashes = list(range(hashes))
    return Entry(request, Request("r", 0.0, prompt), NO_HINTS, 0)


def test_the_batch_changes_when_somebody_joins_or_leaves() -> None:
    batch, one = EngineBatch(), entry()
    batch.join(one)
    one.request.num_output_tokens = 3  # type: ignore[misc]
    assert [view.produced_tokens for view in batch.running()] == [3]
    version = batch.version
    batch.leave("stranger")
    assert (batch.version, batch.size) == (version, 1)
    batch.leave("r")
    assert (batch.version, batch.size) == (version + 1, 0)
