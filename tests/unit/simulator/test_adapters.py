"""LoRA adapters on hand-made days: a step takes a second, a block holds two tokens, and both engines agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from headway.simulator.adapter_rules import AdapterRules
from headway.simulator.arrivals import why_never
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import replica
from headway.simulator.replica_adapters import AdapterSizes, with_adapters
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND
from tests.support.paper_days import RULES, requests, run_day, seconds

NAMES = ("a", "b", "c")


def day(
    wanted: str, lengths: tuple[int, int] | list[tuple[int, int]], rules: EngineRules, **adapters: Any
) -> tuple[list[str], DayOutcome]:
    """One request for each letter of `wanted`, "-" for the base model."""
    rows = lengths if isinstance(lengths, list) else [lengths] * len(wanted)
    trace = replace(requests(*rows, adapter=["abc".find(letter) for letter in wanted]), adapters=NAMES)
    return run_day(trace, replace(rules, adapters=AdapterRules(**adapters)))


ALONE = replace(RULES, max_num_seqs=1)


def test_an_adapter_stays_in_its_slot_until_the_slot_is_needed() -> None:
    """Two slots, two seconds to load: `b` gives way to `c`, because `a` was used since."""
    _, outcome = day("abacb-", (2, 1), ALONE, resident_max=2, load_ps=2 * PS_PER_SECOND)
    assert seconds(outcome.ended_ps) == [3, 6, 7, 10, 13, 14]


def test_with_unified_paging_an_adapter_is_there_while_a_request_of_it_runs() -> None:
    paged = {"blocks": 3, "paging": "unified", "load_ps": 2 * PS_PER_SECOND}
    words, outcome = day("aa", (2, 2), ALONE, **paged)
    assert seconds(outcome.ended_ps) == [4, 8], "each of them brings it in"
    assert words[0] == f"prefill 0:2@0; free {RULES.kv_blocks - 1 - 3}"
    words, outcome = day("aab", (2, 2), RULES, **paged)
    assert words[0] == f"prefill 0:2@0 1:2@0 2:2@0; free {RULES.kv_blocks - 3 - 2 * 3}", "two of them share one"
    assert seconds(outcome.ended_ps) == [6, 6, 6], "two loads lengthen the first step"


def test_pages_of_adapters_count_against_the_memory_for_requests() -> None:
    rules = replace(RULES, kv_blocks=8)
    for blocks, admitted in ((0, [0, 0]), (2, [0, 0]), (3, [0, 2])):
        _, outcome = day("ab", (4, 2), rules, blocks=blocks, paging="unified")
        assert seconds(outcome.admitted_ps) == admitted, f"2 requests and 2 adapters of {blocks} blocks"


def test_a_request_whose_adapter_finds_no_place_is_stepped_over() -> None:
    _, outcome = day("aba-", [(2, 3), (2, 1), (2, 5), (2, 1)], RULES, resident_max=1)
    assert seconds(outcome.admitted_ps) == [0, 5, 0, 0]


def test_an_adapter_that_the_replica_does_not_have_is_refused() -> None:
    _, outcome = day("ab-", (2, 1), RULES, names=frozenset(["a"]))
    assert outcome.refused == {1: "no replica has the adapter 'b'"}


def test_a_request_must_fit_beside_its_adapter() -> None:
    rules = replace(RULES, kv_blocks=8, adapters=AdapterRules(blocks=3, paging="unified"))
    assert why_never(rules, 9, 2, "a") is None
    assert why_never(rules, 10, 2, "a") == "prompt and output of 12 tokens exceed the replica's KV memory of 10 tokens"
    with pytest.raises(ValueError, match="an adapter of 8 KV blocks leaves no room in a memory of 8; give the replica"):
        replace(rules, adapters=AdapterRules(blocks=8, paging="unified"))


def test_sizes_of_a_replica_of_8b() -> None:
    """Rank 16 on Llama-3.1-8B (32 layers, 4,096 wide, keys and values 1,024): 26 MiB in BF16, 13 blocks of 2 MiB."""
    server = replica("h100", "llama-3.1-8b")
    rank_bytes = 2 * 32 * 16 * (2 * (4_096 + 4_096) + 2 * (4_096 + 1_024))
    assert server.model.adapter_bytes(16) == rank_bytes == 26 << 20
    slots = with_adapters(server, AdapterSizes(resident_max=10)).rules
    assert slots.adapters is not None
    assert (slots.adapters.blocks, slots.kv_blocks) == (13, server.rules.kv_blocks - 130)
    assert slots.adapters.load_ps == round((26 << 20) / (16 << 30) * PS_PER_SECOND)
    unified = with_adapters(server, AdapterSizes(bytes=(2 << 20) + 1, load_seconds=0.5, paging="unified")).rules
    assert unified.adapters is not None
    assert (unified.adapters.blocks, unified.kv_blocks) == (2, server.rules.kv_blocks)
    assert (unified.adapters.load_ps, unified.adapters.paged_blocks) == (PS_PER_SECOND // 2, 2)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        (AdapterSizes(resident_max=0), "adapters.resident_max must be at least 1, got 0"),
        (AdapterSizes(rank=-1), "adapters.rank must be from 0 to 4,096, got -1"),
        (AdapterSizes(bytes=-1), r"adapters.bytes must be from 0 to 2\^50, got -1"),
        (AdapterSizes(load_seconds=-0.5), "adapters.load_seconds must be from 0 to 3,600, got -0.5"),
        (AdapterSizes(resident_max=10**6), "adapters of 13 KV blocks each leave no KV memory of .*; lower adapters"),
        (AdapterSizes(bytes=1 << 45, paging="unified"), "leaves no room in a memory of"),
    ],
)
def test_wrong_sizes_are_one_sentence(sizes: AdapterSizes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        with_adapters(replica("h100", "llama-3.1-8b"), sizes)
