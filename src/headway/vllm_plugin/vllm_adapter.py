"""All that is read from and set on vLLM's scheduler, found by looking for it and never by a version's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headway.domain.replica_view import MemoryView
from headway.vllm_plugin.request_entries import Entry, VllmRequest

_NEEDED = ("waiting", "running", "requests", "kv_cache_manager", "scheduler_config", "max_num_scheduled_tokens")


class VllmAdapter:
    """One vLLM scheduler. Raises ValueError, one sentence, where this vLLM or its settings do not go with ours."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        _refuse_what_does_not_go(scheduler)
        self._pool = scheduler.kv_cache_manager.block_pool
        self._coordinator = getattr(scheduler.kv_cache_manager, "coordinator", None)
        blocks = getattr(scheduler, "kv_cache_config", None)
        total = blocks.num_blocks if blocks is not None else scheduler.cache_config.num_gpu_blocks
        self._blocks_total = total - 1  # one is vLLM's null block
        self.block_tokens = int(getattr(scheduler, "block_size", 0) or scheduler.cache_config.block_size)
        self._cap_name = "max_num_active_reqs" if hasattr(scheduler, "max_num_active_reqs") else "max_num_running_reqs"
        self.seats = int(getattr(scheduler, self._cap_name))
        self.own_threshold = int(getattr(scheduler.scheduler_config, "long_prefill_token_threshold", 0) or 0)
        self._blocked_by_status: dict[Any, bool] = {}

    @property
    def running(self) -> list[VllmRequest]:
        """vLLM's own list, in its order."""
        running: list[VllmRequest] = self._scheduler.running
        return running

    def reorder_running(self, running: Sequence[VllmRequest]) -> None:
        """Put the same requests in another order: served from the front, preempted from the end."""
        self._scheduler.running[:] = running

    def running_count(self) -> int:
        """Requests that run."""
        return len(self._scheduler.running)

    @property
    def token_budget(self) -> int:
        """Tokens of one step."""
        return int(self._scheduler.max_num_scheduled_tokens)

    @property
    def cap(self) -> int:
        """Requests that may run now."""
        return int(getattr(self._scheduler, self._cap_name))

    def set_cap(self, cap: int) -> None:
        """Cap the running requests; never below those that run (vLLM asserts that), nor above the configured seats."""
        setattr(self._scheduler, self._cap_name, min(self.seats, max(cap, self.running_count())))

    def set_threshold(self, tokens: int) -> None:
        """Tokens one prefill may take of a step; 0 for no limit."""
        self._scheduler.scheduler_config.long_prefill_token_threshold = tokens

    @property
    def paused(self) -> bool:
        """Whether new requests are kept out (sleep, weight updates)."""
        state = getattr(self._scheduler, "_pause_state", None)
        return state is not None and state.name != "UNPAUSED"

    def memory(self) -> MemoryView:
        """KV blocks now."""
        return MemoryView(self._pool.get_num_free_blocks(), self._blocks_total, self.block_tokens)

    @property
    def full_attention(self) -> bool:
        """Whether a request holds a block for every so many tokens, and nothing else."""
        groups = getattr(getattr(self._scheduler, "kv_cache_config", None), "kv_cache_groups", None)
        if groups is None:
            return True
        kinds = [one.__name__ for group in groups for one in type(group.kv_cache_spec).__mro__]
        return len(groups) == 1 and "FullAttentionSpec" in kinds

    def fits(self, entry: Entry) -> bool:
        """Whether vLLM may find blocks for it now; no only where that is sure.

        vLLM wants blocks for the whole prompt, or for the next chunk of it where the operator says so, and keeps its
        watermark free. What the prefix cache holds may be in use already, so it is not counted.
        """
        tokens = entry.request.num_tokens - entry.view.cached_prompt_tokens
        if not getattr(self._scheduler, "scheduler_reserve_full_isl", False):
            tokens = min(tokens, self.token_budget)
        kept = int(getattr(self._scheduler.kv_cache_manager, "watermark_blocks", 0))
        return -(-tokens // self.block_tokens) + kept <= int(self._pool.get_num_free_blocks())

    @property
    def caches_prefixes(self) -> bool:
        """Whether a prompt can be looked up in a prefix cache."""
        enabled = bool(getattr(self._scheduler.cache_config, "enable_prefix_caching", False))
        return enabled and hasattr(self._coordinator, "find_longest_cache_hit")

    def cached_tokens(self, block_hashes: Sequence[Any], tokens_max: int) -> int:
        """Tokens of a prompt that the prefix cache holds; without side effects (index 1 since 0.11)."""
        assert self._coordinator is not None
        return int(self._coordinator.find_longest_cache_hit(block_hashes, tokens_max)[1])

    def runs(self, request: VllmRequest) -> bool:
        """Whether vLLM says that it runs."""
        return str(request.status.name) == "RUNNING"

    def blocked(self, request: VllmRequest) -> bool:
        """Whether it cannot run yet: its grammar, remote KV or next input is awaited."""
        status = request.status
        blocked = self._blocked_by_status.get(status)
        if blocked is None:
            blocked = self._blocked_by_status[status] = status.name.startswith("WAITING_FOR_")
        return blocked

    def ready(self, request: VllmRequest) -> bool:
        """Whether vLLM should be asked about a blocked one again. True where we cannot tell: vLLM steps over it."""
        name = request.status.name
        if not name.startswith("WAITING_FOR_"):
            return True
        if "STRUCTURED" in name or "FSM" in name or "GRAMMAR" in name:
            asked = getattr(request, "structured_output_request", None)
            return asked is None or asked.grammar is not None
        if name == "WAITING_FOR_REMOTE_KVS":
            known = [getattr(self._scheduler, f"{how}_recving_kv_req_ids", ()) for how in ("finished", "failed")]
            return any(request.request_id in ids for ids in known)
        return str(name) != "WAITING_FOR_STREAMING_REQ"


def _refuse_what_does_not_go(scheduler: Any) -> None:
    missing = [name for name in _NEEDED if not hasattr(scheduler, name)]
    if missing:
        raise ValueError(
            f"headway: this vLLM's scheduler lacks {', '.join(missing)}, so our queue cannot be put into it: "
            "see docs/vllm.md for the versions that were tested"
        )
    policy = getattr(scheduler.scheduler_config, "policy", "fcfs")
    if policy != "fcfs":
        raise ValueError(
            f"headway: --scheduling-policy {policy} orders and preempts by itself: leave it at fcfs and set "
            '{"headway": {"ordering": "priority", "preemption": "lowest-priority"}}'
        )
    model = getattr(getattr(scheduler, "vllm_config", None), "model_config", None)
    if getattr(model, "is_diffusion", False):
        raise ValueError(
            "headway: diffusion models have a scheduler of their own in vLLM: start without --scheduler-cls"
        )
