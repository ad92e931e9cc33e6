"""A replica with LoRA adapters: from their rank and number to blocks, seconds and what is left of the KV memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headway.simulator.adapter_rules import AdapterRules, Paging
from headway.simulator.hardware import BYTES
from headway.simulator.replica import Replica
from headway.simulator.step_time import PS_PER_SECOND

LOADING_GIB_PER_SECOND = 16.0
"""From host memory into the GPU, PCIe 4.0 x16 in practice: an assumption; `load_seconds` replaces what follows."""
_LOAD_SECONDS_MAX = 3_600
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class AdapterSizes:
    """LoRA adapters of a replica as a user describes them.

    Attributes:
        resident_max: in GPU memory at once, at most (vLLM's `max_loras`).
        rank: of each, on the four projections of attention; 0 where `bytes` says their size.
        bytes: of each, on all GPUs together; None for what follows from the rank.
        load_seconds: to bring one in; None for its bytes at 16 GiB/s into each GPU.
        paging: "slots", in memory set aside as in vLLM, or "unified", in pages of the KV memory as in S-LoRA.
        names: those that the replica serves; None for any.
    """

    resident_max: int = 8
    rank: int = 16
    bytes: int | None = None
    load_seconds: float | None = None
    paging: Paging = "slots"
    names: Sequence[str] | None = None


def with_adapters(server: Replica, sizes: AdapterSizes) -> Replica:
    """The replica with such adapters.

    Raises:
        ValueError: one sentence: a number is out of range, or the adapters leave no KV memory.
    """
    if sizes.resident_max < 1:
        raise ValueError(f"adapters.resident_max must be at least 1, got {sizes.resident_max}")
    if not 0 <= sizes.rank <= 4_096:
        raise ValueError(f"adapters.rank must be from 0 to 4,096, got {sizes.rank}")
    if sizes.bytes is not None and not 0 <= sizes.bytes <= 1 << 50:
        raise ValueError(f"adapters.bytes must be from 0 to 2^50, got {sizes.bytes}")
    if sizes.load_seconds is not None and not 0 <= sizes.load_seconds <= _LOAD_SECONDS_MAX:
        raise ValueError(f"adapters.load_seconds must be from 0 to {_LOAD_SECONDS_MAX:,}, got {sizes.load_seconds:g}")
    rules, tp = server.rules, server.tp
    size = -(-(server.model.adapter_bytes(sizes.rank) if sizes.bytes is None else sizes.bytes) // tp)  # on one GPU
    block_bytes = rules.block_tokens * server.model.kv_bytes_per_token(tp, BYTES[server.kv_precision])
    seconds = size / _GIB / LOADING_GIB_PER_SECOND if sizes.load_seconds is None else sizes.load_seconds
    names = None if sizes.names is None else frozenset(sizes.names)
    adapters = AdapterRules(
        sizes.resident_max, -(-size // block_bytes), round(seconds * PS_PER_SECOND), sizes.paging, names
    )
    set_aside = 0 if sizes.paging == "unified" else adapters.blocks * adapters.resident_max
    if set_aside >= rules.kv_blocks:
        raise ValueError(
            f"{adapters.resident_max} adapters of {adapters.blocks:,} KV blocks each leave no KV memory of "
            f"{rules.kv_blocks:,} blocks; lower adapters.resident_max or adapters.rank"
        )
    return replace(server, rules=replace(rules, kv_blocks=rules.kv_blocks - set_aside, adapters=adapters))
