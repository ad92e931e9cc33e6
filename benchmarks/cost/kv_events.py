"""What KV events cost the gateway: memory of the index per million blocks, and processor time of events and lookups.

    python -m benchmarks.cost.kv_events [--blocks 1000000]

Memory: what the process grows by as the index of one replica fills. Time: processor time of one thread, so that a busy
machine does not count, per block stored and removed, and per lookup of a prompt. Blocks of 16 tokens.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from headway.gateway.replicas.kv_block_index import Answered, KvBlockIndex
from headway.gateway.replicas.kv_event_messages import read_batch, read_event
from headway.gateway.token_blocks import keys_in_steps, packed

BLOCK_TOKENS = 16
PROMPT_BLOCKS = 125  # 2,000 tokens, stored by one event
LOOKED_UP_TOKENS = (2_000, 32_000, 128_000)


def resident_bytes() -> int:
    """Memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4_096


def prompt_batch(number: int, chance: random.Random) -> tuple[bytes, list[int]]:
    """A batch that stores one prompt of its own, and the engine's names of its blocks."""
    names = [chance.getrandbits(64) for _ in range(PROMPT_BLOCKS)]
    tokens = [chance.randrange(128_000) for _ in range(PROMPT_BLOCKS * BLOCK_TOKENS)]
    event = {
        "type": "BlockStored", "block_hashes": names, "parent_block_hash": None, "token_ids": tokens,
        "block_size": BLOCK_TOKENS, "medium": "GPU", "extra_keys": [None] * PROMPT_BLOCKS, "group_idx": 0,
        "kv_cache_spec_kind": "full_attention", "session_id": f"headway-request-hw-01234567-{number}",
    }  # fmt: skip
    return msgspec.msgpack.encode([0.0, [event], 0]), names


def take(index: KvBlockIndex, payload: bytes) -> tuple[float, float]:
    """Processor seconds of the whole batch, and of its longest turn."""
    last = began = time.thread_time()
    longest = 0.0
    for written in read_batch(payload).events:
        event = read_event(written)
        assert event is not None
        for _ in index.take(event, 0.0):
            now = time.thread_time()
            longest, last = max(longest, now - last), now
    now = time.thread_time()
    return now - began, max(longest, now - last)


def filling(blocks: int) -> Iterator[tuple[str, str]]:
    """(what, figure) of an index that fills to so many blocks, and loses half of them."""
    index, chance = KvBlockIndex(blocks), random.Random(0)
    index.clear(is_whole=True)
    gc.collect()
    before, seconds = resident_bytes(), 0.0
    turns: list[float] = []
    evicted: list[int] = []
    for number in range(blocks // PROMPT_BLOCKS):
        payload, names = prompt_batch(number, chance)
        whole, turn = take(index, payload)
        seconds += whole
        turns.append(turn)
        if len(evicted) < blocks // 10:
            evicted += names[::-1]
    gc.collect()
    held = len(index)
    yield "blocks", f"{held:,}"
    yield "MB per million blocks", f"{(resident_bytes() - before - 40 * len(evicted)) / held:,.0f}"
    yield "us to store a block", f"{1e6 * seconds / held:.2f}"
    yield (
        "longest turn of 999 in 1,000 events of 2,000 tokens, ms",
        f"{1e3 * sorted(turns)[len(turns) * 999 // 1_000]:.2f}",
    )
    payload = msgspec.msgpack.encode(
        [0.0, [{"type": "BlockRemoved", "block_hashes": [name], "medium": "GPU", "group_idx": 0} for name in evicted]]
    )
    yield "us to remove a block", f"{1e6 * take(index, payload)[0] / len(evicted):.2f}"


def lookups() -> Iterator[tuple[int, float, float]]:
    """(prompt tokens, seconds for the keys of its blocks, seconds to look them up where all are held)."""
    chance = random.Random(1)
    for tokens in LOOKED_UP_TOKENS:
        prompt = [chance.randrange(128_000) for _ in range(tokens)]
        index = KvBlockIndex(tokens)
        index.clear(is_whole=True)
        names = list(range(tokens // BLOCK_TOKENS))
        event = {"type": "BlockStored", "block_hashes": names, "parent_block_hash": None, "token_ids": prompt}
        take(index, msgspec.msgpack.encode([0.0, [event | {"block_size": BLOCK_TOKENS}]]))
        ids, rounds = packed(prompt), max(3, 2_000_000 // tokens)
        began = time.thread_time()
        for _ in range(rounds):
            *_, keys = keys_in_steps(ids, BLOCK_TOKENS)
        middle = time.thread_time()
        for _ in range(rounds):
            assert index.tokens_of_keys(keys) == (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        yield tokens, (middle - began) / rounds, (time.thread_time() - middle) / rounds


def learning(prompts: int = 2_000) -> float:
    """Seconds to learn which blocks a text of 2,000 tokens became."""
    index, chance, seconds = KvBlockIndex(prompts * PROMPT_BLOCKS), random.Random(2), 0.0
    for number in range(prompts):
        payload, _ = prompt_batch(number, chance)
        take(index, payload)
        tokens = [250 * step for step in range(1, 9)]
        answered = Answered([1_000 * number + step for step in range(8)], tokens, 2_000)
        began = time.thread_time()
        index.answered(f"headway-request-hw-01234567-{number}", answered)
        seconds += time.thread_time() - began
    return seconds / prompts


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost.kv_events")
    parser.add_argument("--blocks", type=int, default=1_000_000)
    chosen = parser.parse_args(arguments)
    print("| index of one replica | |\n|---|---|")
    for what, figure in filling(chosen.blocks):
        print(f"| {what} | {figure} |")
    print(f"| us to learn the blocks of a text of 2,000 tokens | {1e6 * learning():.1f} |")
    print("\n| prompt tokens | keys, ms | lookup at one replica, ms |\n|---|---|---|")
    for tokens, keys, lookup in lookups():
        print(f"| {tokens:,} | {1e3 * keys:.3f} | {1e3 * lookup:.3f} |")


if __name__ == "__main__":
    main()
