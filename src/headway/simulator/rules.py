"""Limits and switches of the simulated engine: vLLM V1's rules, with a switch for each that versions differ in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from headway.scheduling.displacement import DisplaceRules
from headway.scheduling.harm_judge import HarmLimits
from headway.scheduling.offline_gate import OfflineRules
from headway.scheduling.prefill_budget import TPOT_SECONDS
from headway.scheduling.queue import Resumed
from headway.scheduling.self_tuned_threshold import Tuning
from headway.simulator.adapter_rules import AdapterRules


@dataclass(frozen=True, slots=True)
class PluginRules:
    """What Headway's vLLM plug-in does in the engine beside its four policies; by default nothing.

    Attributes:
        tuning: "self-tuned" moves the long-prefill threshold before each step, "prefill-budget" the token budget too.
        guard: when the do-no-harm guard suspends the policies; None for no guard.
        offline: bounds of offline requests.
        displace: when a waiting request takes the place of running ones of lower priority; None for never.
        tpot_seconds: of "prefill-budget": most seconds of a step with decodes and prompts in it.
    """

    tuning: Tuning = "off"
    guard: HarmLimits | None = None
    offline: OfflineRules = field(default_factory=OfflineRules)
    displace: DisplaceRules | None = None
    tpot_seconds: float = TPOT_SECONDS

    def __post_init__(self) -> None:
        if not 0 < self.tpot_seconds < float("inf"):
            raise ValueError(f"tpot_seconds must be above 0, got {self.tpot_seconds}")


NO_PLUGIN = PluginRules()


@dataclass(frozen=True, slots=True)
class EngineRules:
    """Limits and switches of one replica. Defaults follow `vllm serve` 0.32 on a GPU of 70 GiB or more.

    Attributes:
        kv_blocks: usable KV blocks (vLLM's `num_gpu_blocks` less its null block).
        block_tokens: tokens in a block.
        max_model_tokens: prompt and output of one request together.
        max_num_batched_tokens: token budget of a step.
        max_num_seqs: requests that run at once.
        chunked_prefill: whether a prompt may be computed in pieces. Off, admission stops at the first prompt larger
            than what is left of the budget.
        long_prefill_token_threshold: most tokens of one prompt in one step, 0 for no limit. A request that is alone
            (no other runs or waits) ignores it, as since 0.31.
        long_prefill_token_threshold_adaptive: raises that limit to an equal share of the step, where this is more: the
            budget over all requests that run or wait (since 0.32, default off).
        reserve_full_prompt: admission requires free blocks for the whole prompt although only the first chunk's are
            taken (`scheduler_reserve_full_isl`; since 0.20, default on).
        watermark: fraction of blocks that admission leaves free while something runs (since 0.25, default 0).
        async_scheduling: the next step is composed before the outputs of the running one are known (default on since
            0.15, two batches in flight).
        prefix_caching: full blocks are kept until their memory is needed, and found again by content (default on, as
            in vLLM). A preempted request finds its own; others only where the trace says which prompts share blocks.
        fused_share: KV-block fusion: share of a prompt's full blocks, from the first, that it has in common with other
            prompts of its tenant and adapter. They are kept once for those that run, from the step after their prompts
            are computed on. Measure it (`headway fusion measure`, `headway_fusion_shared_entries`). 0 for no fusion.
        resumed: where a preempted request waits; vLLM's `fcfs` puts it in front, its `priority` ranks it.
        adapters: what LoRA adapters take; None where they take nothing.
    """

    kv_blocks: int
    block_tokens: int = 16
    max_model_tokens: int = 131_072
    max_num_batched_tokens: int = 8_192
    max_num_seqs: int = 1_024
    chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    reserve_full_prompt: bool = True
    watermark: float = 0.0
    async_scheduling: bool = True
    prefix_caching: bool = True
    fused_share: float = 0.0
    resumed: Resumed = "front"
    adapters: AdapterRules | None = None

    def __post_init__(self) -> None:
        for name in ("kv_blocks", "block_tokens", "max_model_tokens", "max_num_batched_tokens", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), or running requests could not all decode"
            )
        if not self.chunked_prefill and self.max_num_batched_tokens < self.max_model_tokens:
            raise ValueError(
                f"with chunked prefill off, max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_model_tokens ({self.max_model_tokens}), or a long prompt could never run"
            )
        if self.adapters is not None and self.adapters.paged_blocks >= self.kv_blocks:
            raise ValueError(
                f"an adapter of {self.adapters.blocks:,} KV blocks leaves no room in a memory of {self.kv_blocks:,}; "
                "give the replica more memory, or adapters of a lower rank"
            )
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark must be in [0, 1), got {self.watermark}")
        if not 0 <= self.fused_share <= 1:
            raise ValueError(f"fused_share must be in [0, 1], got {self.fused_share}")
        if self.fused_share and (self.async_scheduling or self.prefix_caching):
            raise ValueError(
                f"fused_share ({self.fused_share:g}) is simulated without asynchronous scheduling and without a prefix "
                "cache only: set both to false (--sync --prefix-caching off)"
            )
        if self.long_prefill_token_threshold < 0:
            raise ValueError(
                f"long_prefill_token_threshold must not be negative, got {self.long_prefill_token_threshold}"
            )
        if self.long_prefill_token_threshold > self.max_model_tokens:
            raise ValueError(
                f"long_prefill_token_threshold ({self.long_prefill_token_threshold}) must be at most max_model_tokens "
                f"({self.max_model_tokens})"
            )

    @property
    def context_tokens(self) -> int:
        """Longest request this replica can hold at all: the model's limit or its whole memory.

        The token sampled last needs no KV, so a request of prompt p and output o needs p + o - 1 tokens of memory.
        """
        paged = 0 if self.adapters is None else self.adapters.paged_blocks  # its own adapter is beside it
        return min(self.max_model_tokens, (self.kv_blocks - paged) * self.block_tokens + 1)

    def facts(self) -> dict[str, Any]:
        """The fields as plain values, for files and JSON."""
        facts = asdict(self)
        if self.adapters is not None and self.adapters.names is not None:
            facts["adapters"]["names"] = sorted(self.adapters.names)
        return facts

    def serves(self, adapter: str | None) -> bool:
        """Whether the replica has this LoRA adapter; each has the base model, which is None."""
        return self.adapters is None or self.adapters.serves(adapter)
