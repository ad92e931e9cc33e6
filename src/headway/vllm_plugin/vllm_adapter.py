"""Adapter of vLLM's scheduler and requests: every field of theirs that the plug-in reads or sets is named here.

Fields are found by looking for them, never by a version's name. When vLLM renames one, only this file changes.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Protocol

from headway.domain.engine_hints import REQUEST_SESSION
from headway.domain.replica_view import MemoryView

_NEEDED = ("waiting", "running", "requests", "kv_cache_manager", "scheduler_config", "max_num_scheduled_tokens")


class VllmRequest(Protocol):
    """A `vllm.v1.request.Request`, as far as it is read; only this file reads it."""

    request_id: str
    priority: int
    max_tokens: int
    num_computed_tokens: int
    status: Any
    sampling_params: Any
    block_hashes: Sequence[Any]

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output so far."""

    @property
    def num_output_tokens(self) -> int:
        """Tokens of output so far."""


# `attrgetter`s cost less than functions, and these are read for every request, some in every step.

request_id: Callable[[VllmRequest], str] = attrgetter("request_id")
"""vLLM's own id."""

total_tokens: Callable[[VllmRequest], int] = attrgetter("num_tokens")
"""Tokens of prompt and output so far."""

output_tokens: Callable[[VllmRequest], int] = attrgetter("num_output_tokens")
"""Tokens of output so far."""

computed_tokens: Callable[[VllmRequest], int] = attrgetter("num_computed_tokens")
"""Tokens of prompt and output that have KV; 0 after a preemption."""

max_output_tokens: Callable[[VllmRequest], int] = attrgetter("max_tokens")
"""The client's bound on the output."""

client_priority: Callable[[VllmRequest], int | None] = attrgetter("priority")
"""The client's priority, lower sooner; 0 or None where it gave none."""


def session_of(request: VllmRequest) -> str | None:
    """vLLM's session id (`X-Session-ID`), in versions that have it, where a client gave it and not our gateway."""
    session: str | None = getattr(request, "session_id", None)
    return None if session is not None and session.startswith(REQUEST_SESSION) else session


def lora_of(request: VllmRequest) -> str | None:
    """The name of the LoRA adapter that it wants; None for the base model."""
    wanted = getattr(request, "lora_request", None)
    return None if wanted is None else wanted.lora_name


def extra_arguments(request: VllmRequest) -> object:
    """The client's `vllm_xargs`, unchecked."""
    return getattr(request.sampling_params, "extra_args", None)


def block_hashes_to_look_up(request: VllmRequest) -> Sequence[Any]:
    """Hashes of the full KV blocks of its tokens; none where it may not read the prefix cache."""
    return () if getattr(request, "skip_reading_prefix_cache", False) else request.block_hashes


def cache_salt(request: VllmRequest) -> str | None:
    """What its blocks are hashed with besides their tokens: requests with other salts find none of them."""
    salt: str | None = getattr(request, "cache_salt", None)
    return salt


def set_cache_salt(request: Any, salt: str | None) -> None:
    """Hash all its blocks again, under another salt."""
    request.cache_salt = salt
    del request.block_hashes[:]
    request.update_block_hashes()


def lacking_tokens(request: Any) -> int:
    """Tokens that a running request has known, drafted or on their way, and no KV for; what it wants of a step."""
    known = getattr(request, "num_tokens_with_spec", request.num_tokens)
    return int(known + getattr(request, "num_output_placeholders", 0) - request.num_computed_tokens)


def is_ending(request: Any) -> bool:
    """Whether the tokens on their way reach the client's bound, so that it gets no further step."""
    on_their_way = getattr(request, "num_output_placeholders", 0)
    if not on_their_way:
        return False
    return bool(request.num_computed_tokens + 2 - on_their_way >= request.num_prompt_tokens + request.max_tokens)


def is_running(request: VllmRequest) -> bool:
    """Whether vLLM has put it into its running list."""
    return str(request.status.name) == "RUNNING"


def was_aborted(request: VllmRequest) -> bool:
    """Whether it ended because its client left."""
    return str(request.status.name) == "FINISHED_ABORTED"


class VllmAdapter:
    """One vLLM scheduler. Raises ValueError, one sentence, where this vLLM or its settings do not work with Headway."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        _refuse_unsupported(scheduler)
        self._pool = scheduler.kv_cache_manager.block_pool
        self._coordinator = getattr(scheduler.kv_cache_manager, "coordinator", None)
        blocks = getattr(scheduler, "kv_cache_config", None)
        total = blocks.num_blocks if blocks is not None else scheduler.cache_config.num_gpu_blocks
        self._blocks_total = total - 1  # one is vLLM's null block
        self.block_tokens = int(getattr(scheduler, "block_size", 0) or scheduler.cache_config.block_size)
        self._seats_name = (
            "max_num_active_reqs" if hasattr(scheduler, "max_num_active_reqs") else "max_num_running_reqs"
        )
        self.own_threshold = int(getattr(scheduler.scheduler_config, "long_prefill_token_threshold", 0) or 0)
        self.can_preempt = _can_preempt(scheduler)  # between two steps
        self.own_token_budget = int(scheduler.max_num_scheduled_tokens)
        self._blocked_by_status: dict[Any, bool] = {}

    @property
    def pool(self) -> Any:
        """vLLM's own pool of KV blocks."""
        return self._pool

    @property
    def tables(self) -> dict[str, list[Any]]:
        """vLLM's own block tables, of a model with one kind of KV blocks."""
        assert self._coordinator is not None
        tables: dict[str, list[Any]] = self._coordinator.single_type_managers[0].req_to_blocks
        return tables

    @property
    def running(self) -> list[VllmRequest]:
        """vLLM's own list, in its order."""
        running: list[VllmRequest] = self._scheduler.running
        return running

    def reorder_running(self, running: Sequence[VllmRequest]) -> None:
        """Put the same requests in another order: vLLM serves from the front and preempts from the end."""
        self._scheduler.running[:] = running

    def running_count(self) -> int:
        """Number of running requests."""
        return len(self._scheduler.running)

    @property
    def token_budget(self) -> int:
        """Tokens the next step may compute."""
        return int(self._scheduler.max_num_scheduled_tokens)

    @property
    def seats(self) -> int:
        """Number of requests that may run now."""
        return int(getattr(self._scheduler, self._seats_name))

    def set_seats(self, seats: int) -> None:
        """Number of requests that may run now."""
        setattr(self._scheduler, self._seats_name, seats)

    @property
    def threshold(self) -> int:
        """Tokens one prefill may take of the next step; 0 for no limit."""
        return int(getattr(self._scheduler.scheduler_config, "long_prefill_token_threshold", 0) or 0)

    def set_threshold(self, tokens: int) -> None:
        """Tokens one prefill may take of the next step; 0 for no limit."""
        self._scheduler.scheduler_config.long_prefill_token_threshold = tokens

    def set_token_budget(self, tokens: int) -> None:
        """Tokens the next step may compute."""
        self._scheduler.max_num_scheduled_tokens = tokens

    def preempt(self, request: VllmRequest) -> None:
        """Preempt a running request between two steps, as vLLM itself does when blocks run out.

        Only where `can_preempt` is true.
        """
        scheduler = self._scheduler
        scheduler.running.remove(request)
        # Older versions send a resumed request's tokens to the worker only if it was not in the step before.
        getattr(scheduler, "prev_step_scheduled_req_ids", set()).discard(request.request_id)
        drops = {"drop_stale_output": True} if getattr(scheduler, "requires_kv_delivery", False) else {}
        scheduler._preempt_request(request, time.monotonic(), **drops)

    @property
    def blocks_to_spare(self) -> int:
        """KV blocks that a waiting request may have: those that are free, less vLLM's watermark."""
        kept = int(getattr(self._scheduler.kv_cache_manager, "watermark_blocks", 0))
        return int(self._pool.get_num_free_blocks()) - kept

    def admission_needs(self, request: VllmRequest) -> tuple[int, int]:
        """The tokens that a waiting request has to compute, and the free blocks that its admission needs."""
        total, cached, held = total_tokens(request), 0, 0
        if self.caches_prefixes:
            blocks = self._cached_blocks(request)
            cached, held = len(blocks) * self.block_tokens, sum([block.ref_cnt > 0 for block in blocks])
        gate = total
        if not getattr(self._scheduler, "scheduler_reserve_full_isl", False):
            gate = min(total, cached + self.own_token_budget)
        return total - cached, -(-gate // self.block_tokens) - held

    @property
    def cuts_prompts(self) -> bool:
        """Whether a prompt may be computed in pieces."""
        return bool(getattr(self._scheduler.scheduler_config, "enable_chunked_prefill", True))

    @property
    def paused(self) -> bool:
        """Whether vLLM admits no new requests (sleep, weight updates)."""
        state = getattr(self._scheduler, "_pause_state", None)
        return state is not None and state.name != "UNPAUSED"

    def memory(self) -> MemoryView:
        """KV blocks now."""
        return MemoryView(self._pool.get_num_free_blocks(), self._blocks_total, self.block_tokens)

    @property
    def full_attention(self) -> bool:
        """Whether a request's KV is one block per `block_tokens` tokens and nothing else."""
        groups = getattr(getattr(self._scheduler, "kv_cache_config", None), "kv_cache_groups", None)
        if groups is None:
            return True
        kinds = [kind.__name__ for group in groups for kind in type(group.kv_cache_spec).__mro__]
        return len(groups) == 1 and "FullAttentionSpec" in kinds

    def may_fit(self, request: VllmRequest) -> bool:
        """Whether vLLM may find KV blocks for a waiting request now; False only where it surely does not.

        vLLM wants blocks for the whole prompt, or for its next chunk where the operator says so, and keeps its
        watermark free. Blocks in the prefix cache are wanted too, unless another request holds them now.
        """
        tokens = total_tokens(request) - (self._tokens_held_by_others(request) if self.caches_prefixes else 0)
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
        """Tokens of a prompt that the prefix cache holds; asking has no side effects (index 1 since 0.11)."""
        assert self._coordinator is not None
        return int(self._coordinator.find_longest_cache_hit(block_hashes, tokens_max)[1])

    def _tokens_held_by_others(self, request: VllmRequest) -> int:
        """Tokens of a waiting prompt whose cached blocks are in use."""
        held = sum([block.ref_cnt > 0 for block in self._cached_blocks(request)])
        return int(held * self.block_tokens)

    def _cached_blocks(self, request: VllmRequest) -> Sequence[Any]:
        """Blocks of a waiting prompt that the prefix cache holds (index 0: the blocks, by kind)."""
        assert self._coordinator is not None
        hashes = block_hashes_to_look_up(request)
        blocks: Sequence[Any] = self._coordinator.find_longest_cache_hit(hashes, total_tokens(request) - 1)[0][0]
        return blocks

    def is_blocked(self, request: VllmRequest) -> bool:
        """Whether it cannot run yet: it waits for its grammar, its remote KV or its session's next input."""
        status = request.status
        blocked = self._blocked_by_status.get(status)
        if blocked is None:
            blocked = self._blocked_by_status[status] = status.name.startswith("WAITING_FOR_")
        return blocked

    def may_be_ready(self, request: VllmRequest) -> bool:
        """Whether a blocked request may run now. True where we cannot tell: vLLM skips it then."""
        name = request.status.name
        if not name.startswith("WAITING_FOR_"):
            return True
        if "STRUCTURED" in name or "FSM" in name or "GRAMMAR" in name:
            structured = getattr(request, "structured_output_request", None)
            return structured is None or structured.grammar is not None
        if name == "WAITING_FOR_REMOTE_KVS":
            ended = [getattr(self._scheduler, f"{how}_recving_kv_req_ids", ()) for how in ("finished", "failed")]
            return any(request.request_id in ids for ids in ended)
        return str(name) != "WAITING_FOR_STREAMING_REQ"


def _can_preempt(scheduler: Any) -> bool:
    """Whether a request may be preempted between two steps.

    With asynchronous scheduling a token of it may be on its way then, and older versions fail when it comes.
    """
    if not getattr(scheduler.scheduler_config, "async_scheduling", False):
        return True
    written = [vars(kind)["_preempt_request"] for kind in type(scheduler).__mro__ if "_preempt_request" in vars(kind)]
    return any("drop_stale_output" in inspect.signature(one).parameters for one in written)


def _refuse_unsupported(scheduler: Any) -> None:
    missing = [name for name in _NEEDED if not hasattr(scheduler, name)]
    if missing:
        raise ValueError(
            f"headway: this vLLM's scheduler lacks {', '.join(missing)}, so Headway's queue cannot be put into it: "
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
