"""Any vLLM from 0.20 on in virtual time: its real scheduler and KV manager, no worker, no weights; time is ours.

Run by an interpreter that has vLLM, with headway's `src` on PYTHONPATH; an older vLLM's unpacked `.py` files in front.
The true length of a request stays in here: the scheduler sees the stop token at the right moment and nothing before.
"""

from __future__ import annotations

import atexit
import inspect
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm.config import CacheConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

STOP = 2
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 1 << 20,
    "bos_token_id": 1,
    "eos_token_id": STOP,
    "torch_dtype": "float16",
}
OUTPUT_FIELDS = inspect.signature(ModelRunnerOutput).parameters


@cache
def model_folder() -> str:
    """Of this process alone: another one may read its own at the same time."""
    folder = Path(tempfile.mkdtemp(prefix="headway-tests-virtual-model-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "config.json").write_text(json.dumps(MODEL))
    return str(folder)


def block_hasher(block_tokens: int) -> Callable[[Any], Any]:
    """Needed with prefix caching only."""
    try:
        from vllm.utils.hashing import get_hash_fn_by_name
    except ImportError:
        from vllm.utils import get_hash_fn_by_name
    function = get_hash_fn_by_name("sha256")
    init_none_hash(function)
    hasher: Callable[[Any], Any] = get_request_block_hasher(block_tokens, function)
    return hasher


def build(
    kind: Any = None,
    *,
    blocks: int = 4096,
    block_tokens: int = 16,
    seats: int = 64,
    budget: int = 1024,
    max_tokens: int = 8192,
    prefix_caching: bool = False,
    policy: str = "fcfs",
    asynchronous: bool = False,
    additional: dict[str, Any] | None = None,
    **scheduler_options: Any,
) -> Any:
    """A scheduler with `blocks` KV blocks, one of which is vLLM's null block; `kind` builds it, None is stock."""
    options: dict[str, Any] = {
        "max_num_seqs": seats,
        "max_num_batched_tokens": budget,
        "max_model_len": max_tokens,
        "enable_chunked_prefill": True,
        "policy": policy,
        "async_scheduling": asynchronous,
        "is_encoder_decoder": False,
        **scheduler_options,
    }
    config = VllmConfig(
        model_config=ModelConfig(
            model=model_folder(), skip_tokenizer_init=True, dtype="float16", max_model_len=max_tokens, seed=0
        ),
        scheduler_config=SchedulerConfig(**options),
        cache_config=CacheConfig(block_size=block_tokens, enable_prefix_caching=prefix_caching),
        parallel_config=ParallelConfig(),
        additional_config=additional or {},
    )
    config.scheduler_config.async_scheduling = asynchronous  # the CPU platform has just switched it off
    config.cache_config.enable_prefix_caching = prefix_caching
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=block_tokens, num_kv_heads=1, head_size=1, dtype=torch.float16)
    try:
        from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs

        register_all_kvcache_specs(config)
    except ImportError:
        pass
    return (kind or (AsyncScheduler if asynchronous else Scheduler))(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_tokens,
        log_stats=False,
    )


def linear_cost(tokens: int, requests: int) -> float:
    """Seconds of one step: about those of a small model on a large GPU."""
    return 0.008 + 2.5e-5 * tokens + 2e-5 * requests


class Day:
    """One engine and its clients. `before_step(day)` may meddle before every step."""

    def __init__(
        self,
        scheduler: Any,
        *,
        depth: int = 1,
        block_tokens: int = 16,
        prefix_caching: bool = False,
        before_step: Callable[[Day], None] | None = None,
    ) -> None:
        self.scheduler, self.depth, self.before_step = scheduler, depth, before_step
        self.now, self.steps = 0.0, 0
        self.hasher = block_hasher(block_tokens) if prefix_caching else None
        self.first_token: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.ends: dict[str, int] = {}
        self.aborted: set[str] = set()
        self.produced: dict[str, int] = {}
        self.true_length: dict[str, int] = {}
        self.admissions: list[tuple[float, str]] = []
        self.step_log: list[dict[str, int]] = []
        if hasattr(scheduler, "headway"):
            scheduler.headway.clock = lambda: self.now

    def request(self, row: dict[str, Any]) -> Any:
        params = SamplingParams(max_tokens=row.get("max_tokens", 4096), temperature=0.0, extra_args=row.get("hints"))
        params.update_from_generation_config({}, STOP)
        self.true_length[row["id"]], self.produced[row["id"]] = row["output"], 0
        return Request(
            request_id=row["id"],
            prompt_token_ids=row.get("tokens") or [3] * row["prompt"],
            sampling_params=params,
            pooling_params=None,
            arrival_time=row["at"],
            priority=row.get("priority", 0),
            block_hasher=self.hasher,
            resumable=row.get("resumable", False),
        )

    def run(self, rows: list[dict[str, Any]], steps_max: int = 100_000) -> Day:
        """Serve these requests (`id`, `at`, `prompt`, `output`, …) to the end; raises if that takes too many steps."""
        scheduler = self.scheduler
        coming = deque(sorted(rows, key=lambda row: row["at"]))
        in_flight: deque[tuple[Any, list[bool]]] = deque()
        idle = 0
        while coming or scheduler.has_unfinished_requests() or in_flight:
            while coming and coming[0]["at"] <= self.now:
                scheduler.add_request(self.request(coming.popleft()))
            if self.before_step is not None:
                self.before_step(self)
            ran = {request.request_id for request in scheduler.running}
            out = scheduler.schedule()
            self.admissions += [(self.now, r.request_id) for r in scheduler.running if r.request_id not in ran]
            if out.total_num_scheduled_tokens:
                idle = 0
                known = scheduler.requests
                samples = [known[r].num_computed_tokens >= known[r].num_tokens for r in out.num_scheduled_tokens]
                in_flight.append((out, samples))
                self.step_log.append(dict(out.num_scheduled_tokens))
                self.now += linear_cost(out.total_num_scheduled_tokens, len(out.num_scheduled_tokens))
                self.steps += 1
            elif not in_flight:
                idle += 1
                if not scheduler.has_unfinished_requests() and not coming:
                    break
                self.now = max(self.now, coming[0]["at"]) if coming and not scheduler.running else self.now + 0.001
                if idle > 5_000:
                    raise RuntimeError("the engine spins: somebody waits, and nothing runs")
                continue
            if len(in_flight) >= self.depth or not out.total_num_scheduled_tokens:
                self._return(*in_flight.popleft())
            if self.steps > steps_max:
                raise RuntimeError(f"not done after {steps_max} steps")
        return self

    def abort(self, request_id: str) -> None:
        """The client leaves."""
        from vllm.v1.request import RequestStatus

        if request_id in self.scheduler.requests and request_id not in self.ended:
            self.aborted.add(request_id)
            self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def blocks_leaked(self, blocks: int) -> int:
        return blocks - 1 - int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def _return(self, out: Any, samples: list[bool]) -> None:
        ids = list(out.num_scheduled_tokens)
        sampled = [self._sample(id_) if now else [] for id_, now in zip(ids, samples, strict=True)]
        fields: dict[str, Any] = {
            "req_ids": ids,
            "req_id_to_index": {id_: index for index, id_ in enumerate(ids)},
            "sampled_token_ids": sampled,
            "logprobs": None,
            "prompt_logprobs_dict": {},
            "pooler_output": [],
        }
        answer = self.scheduler.update_from_output(
            out, ModelRunnerOutput(**{name: value for name, value in fields.items() if name in OUTPUT_FIELDS})
        )
        for outputs in answer.values():
            for output in outputs.outputs:
                if output.finished:
                    self.ended[output.request_id] = self.now
                    self.ends[output.request_id] = self.ends.get(output.request_id, 0) + 1

    def _sample(self, id_: str) -> list[int]:
        if id_ not in self.scheduler.requests:
            return [7]
        self.produced[id_] += 1
        if self.produced[id_] == 1:
            self.first_token[id_] = self.now
        return [STOP if self.produced[id_] >= self.true_length[id_] else 7]
