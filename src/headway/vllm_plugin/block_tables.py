"""vLLM's block tables, as fusion reads and moves them, and the engines that it refuses.

A table entry is moved by public steps of vLLM's block pool (`get_new_blocks`, `touch`, `free_blocks`), in the table
that its own KV manager frees from later. The worker learns of it as of a request resumed with a full table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from headway.vllm_plugin import vllm_adapter as vllm
from headway.vllm_plugin.vllm_adapter import VllmAdapter, VllmRequest

CONNECTOR = "FusionConnector"
CONNECTOR_MODULE = "headway.vllm_plugin.fusion_connector"
_SETTING = f'--kv-transfer-config \'{{"kv_connector": "{CONNECTOR}", "kv_connector_module_path": '
_SETTING += f'"{CONNECTOR_MODULE}", "kv_role": "kv_both"}}\''


def refuse_fusion(scheduler: Any, engine: VllmAdapter) -> None:
    """Raise ValueError, one sentence, where fusion does not work with this engine."""
    config = scheduler.vllm_config
    parallel = getattr(config, "parallel_config", None)
    ranks = int(getattr(parallel, "world_size", 1) or 1)
    transfer = getattr(config, "kv_transfer_config", None)
    reasons = (
        (getattr(transfer, "kv_connector", None) != CONNECTOR, f"needs its connector: add {_SETTING}"),
        (
            ranks > 1,
            f"works on one rank and this engine has {ranks}: each would decide by its own heads alone; "
            "set --tensor-parallel-size and --pipeline-parallel-size to 1",
        ),
        (
            getattr(getattr(config, "device_config", None), "device_type", "cpu") != "cpu",
            "knows the KV layout of vLLM's CPU backend only",
        ),
        (
            getattr(scheduler.scheduler_config, "async_scheduling", False),
            "needs steps one after the other: add --no-async-scheduling",
        ),
        (getattr(config, "speculative_config", None) is not None, "was not tested with speculative decoding"),
        (
            getattr(scheduler, "use_v2_model_runner", False),
            "moves entries of running requests as vLLM's first model runner reads them: set VLLM_USE_V2_MODEL_RUNNER=0",
        ),
        (not engine.full_attention, "needs a model with one kind of KV blocks that keeps all of them"),
        (not hasattr(engine.pool, "touch"), "does not know this vLLM's block pool"),
    )
    for wrong, reason in reasons:
        if wrong:
            raise ValueError(f"headway: fusion {reason}, or leave fusion off")


class BlockTables:
    """The tables of one engine, whose model has one kind of blocks. `connector` is vLLM's, in the same process."""

    def __init__(self, engine: VllmAdapter, connector: Any) -> None:
        self._engine, self._pool, self._tables = engine, engine.pool, engine.tables
        self._connector = connector

    @property
    def free_blocks(self) -> int:
        """Blocks that no request holds."""
        return int(self._pool.get_num_free_blocks())

    def bind(self, sharing: object) -> None:
        """Let vLLM's connector in this process ask `sharing` for orders, and tell it reports."""
        self._connector.sharing = sharing

    @property
    def running(self) -> Sequence[VllmRequest]:
        """vLLM's running requests."""
        return self._engine.running

    def of(self, request: VllmRequest) -> list[Any]:
        """The request's blocks, in order: vLLM's own list."""
        return self._tables[vllm.request_id(request)]

    def take(self, blocks: int) -> list[Any]:
        """Free blocks, each held once by the caller."""
        taken: list[Any] = self._pool.get_new_blocks(blocks)
        return taken

    def give_back(self, blocks: Iterable[Any]) -> None:
        """End one hold of each block; the last one frees it."""
        self._pool.free_blocks(blocks)

    def point(self, request: VllmRequest, place: int, target: Any) -> None:
        """Move one entry of a request's table to another block."""
        table = self.of(request)
        before = table[place]
        self._pool.touch([target])
        table[place] = target
        self._pool.free_blocks([before])

    def send_whole_tables(self, output: Any, requests: set[str]) -> None:
        """Make this step's output carry the whole tables of those of the requests that it schedules.

        They leave `requests`. The worker takes them from its batch and puts them back as it does after a preemption;
        computed tokens stay.
        """
        cached = output.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            if request_id in requests:
                cached.new_block_ids[index] = ([block.block_id for block in self._tables[request_id]],)
                cached.resumed_req_ids.add(request_id)
                requests.discard(request_id)


def check_output(output: Any) -> None:
    """Raise ValueError where a step's output cannot carry whole tables; asked before anything is fused."""
    cached = output.scheduled_cached_reqs
    if not isinstance(getattr(cached, "resumed_req_ids", None), set) or not isinstance(cached.new_block_ids, list):
        raise ValueError("this vLLM's scheduler tells its worker of tables in another way")


def full_prompt_blocks(request: VllmRequest, block_tokens: int) -> int:
    """Blocks that its prompt fills, all of them computed; 0 while the prompt is being computed."""
    prompt = vllm.total_tokens(request) - vllm.output_tokens(request)
    return prompt // block_tokens if vllm.computed_tokens(request) >= prompt else 0


def may_be_fused(request: Any) -> bool:
    """Whether its KV is that of plain text, and stays in its table until it ends."""
    return not getattr(request, "resumable", False) and not getattr(request, "mm_features", None)


def domain_of(request: VllmRequest) -> tuple[object, ...]:
    """Requests of one domain may share KV: the same cache salt of the client, the same adapter."""
    adapter = getattr(request, "lora_request", None)
    return vllm.cache_salt(request), getattr(adapter, "lora_int_id", None)
