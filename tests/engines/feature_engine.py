"""One real vLLM in this process whose scheduler can be exchanged between two days: stock's and ours on one start.

Run by an interpreter that has vLLM, on the CPU, with VLLM_ENABLE_V1_MULTIPROCESSING=0, so that the engine is here.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
from safetensors.torch import save_file
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
from vllm.v1.core.sched.scheduler import Scheduler as StockScheduler

from headway.vllm_plugin import Scheduler as OurScheduler

BLOCK_TOKENS, SEATS = 32, 4
Rows = list[dict[str, Any]]


class FeatureEngine:
    """An engine and the two schedulers it may run under. `options` go to `vllm.LLM`."""

    def __init__(self, model: str, **options: Any) -> None:
        settings: dict[str, Any] = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 1024,
            "max_num_seqs": SEATS,
            "max_num_batched_tokens": 256,
            "block_size": BLOCK_TOKENS,
            "num_gpu_blocks_override": 60,
            "disable_log_stats": True,
            "scheduler_cls": "headway.vllm_plugin.Scheduler",
            "additional_config": {"headway": {"metrics_dir": ""}},
        }
        self.llm = LLM(model, **{**settings, **options})
        self.engine = self.llm.llm_engine
        self.core = self.engine.engine_core.engine_core
        self.schedulers_built = 0

    @property
    def scheduler(self) -> Any:
        return self.core.scheduler

    def rule(self, **headway: Any) -> Any:
        """Our scheduler from now on, under this configuration."""
        guard = {"budget_ms": 60_000}  # a test machine may be busy with others
        return self._exchange(OurScheduler, {"headway": {"metrics_dir": "", "guard": guard, **headway}})

    def rule_stock(self) -> Any:
        """vLLM's own scheduler from now on."""
        return self._exchange(StockScheduler, {})

    def _exchange(self, kind: Any, additional: dict[str, Any]) -> Any:
        before = self.scheduler
        assert not before.requests, "only between two days"
        config = before.vllm_config
        config.additional_config = additional
        block_size, hash_block_size = resolve_kv_cache_block_sizes(before.kv_cache_config, config)
        self.core.scheduler = kind(
            vllm_config=config,
            kv_cache_config=before.kv_cache_config,
            structured_output_manager=self.core.structured_output_manager,
            include_finished_set=False,
            log_stats=False,
            block_size=block_size,
            hash_block_size=hash_block_size,
        )
        self.schedulers_built += 1
        return self.core.scheduler

    def add(self, row: dict[str, Any]) -> None:
        """One request: `id`, `tokens`, and as wanted `output`, `sampling`, `lora`, `priority`, `hints`, `salt`."""
        sampling = {"max_tokens": row.get("output", 8), "ignore_eos": True, "temperature": 0.0, "detokenize": False}
        params = SamplingParams(**{**sampling, **row.get("sampling", {})}, extra_args=row.get("hints"))
        self.engine.add_request(
            row["id"],
            {"prompt_token_ids": row["tokens"]} | ({"cache_salt": row["salt"]} if "salt" in row else {}),
            params,
            lora_request=row.get("lora"),
            priority=row.get("priority", 0),
        )

    def serve(self, rows: Rows, meddle: Callable[[int], None] | None = None, steps_max: int = 4_000) -> Day:
        """All rows, added at once, to the end; `meddle(step)` before every step."""
        for row in rows:
            self.add(row)
        return self.drain(meddle, steps_max)

    def drain(self, meddle: Callable[[int], None] | None = None, steps_max: int = 4_000) -> Day:
        """Serve every request in the engine to its end."""
        day = Day()
        for step in range(steps_max):
            if meddle is not None:
                meddle(step)
            if not self.engine.has_unfinished_requests():
                return day
            for output in self.engine.step():
                day.note(output)
        raise RuntimeError(f"not done after {steps_max} steps: {sorted(self.scheduler.requests)[:5]}")

    def leftovers(self) -> list[str]:
        """What is left although no request is in the engine."""
        pool, headway = self.scheduler.kv_cache_manager.block_pool, getattr(self.scheduler, "headway", None)
        failures = []
        if pool.get_num_free_blocks() != pool.num_gpu_blocks - 1:
            failures.append(f"{pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()} blocks leaked")
        if headway is not None:
            left = (len(headway.queue), len(headway.book.entries), headway.book.batch.size, len(headway.policies))
            failures += [f"the books are not empty: {left}"] if any(left) else []
            failures += ["policies were disabled"] if headway.policies.disabled else []
        return failures


class Day:
    """What clients got: tokens per request and sequence, the order of first tokens, how often each ended."""

    def __init__(self) -> None:
        self.tokens: dict[str, dict[int, list[int]]] = {}
        self.first: list[str] = []
        self.ends: dict[str, int] = {}

    def note(self, output: Any) -> None:
        id_ = output.request_id
        for one in output.outputs:
            if one.token_ids and id_ not in self.tokens:
                self.first.append(id_)
            if one.token_ids:
                self.tokens.setdefault(id_, {})[one.index] = list(one.token_ids)
        if output.finished:
            self.ends[id_] = self.ends.get(id_, 0) + 1


def differing(stock: Day, mine: Day, ids: list[str]) -> list[str]:
    """Who did not get stock's tokens, or did not end once."""
    failures = [f"{id_} ended {mine.ends.get(id_, 0)} times" for id_ in ids if mine.ends.get(id_) != 1]
    failures += [f"{id_} got other tokens than stock's" for id_ in ids if mine.tokens.get(id_) != stock.tokens.get(id_)]
    return failures[:5]


def prompt(seed: int, length: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(300, 1000) for _ in range(length)]


def write_adapters(model: Path, folder: Path, count: int) -> list[LoRARequest]:
    """Adapters with random weights, large enough to change tokens."""
    config = json.loads((model / "config.json").read_text())
    hidden, layers, rank = config["hidden_size"], config["num_hidden_layers"], 8
    adapters = []
    for number in range(1, count + 1):
        torch.manual_seed(number)
        weights = {}
        for layer in range(layers):
            for name in ("q_proj", "v_proj"):
                stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
                weights[f"{stem}.lora_A.weight"] = 0.3 * torch.randn(rank, hidden)
                weights[f"{stem}.lora_B.weight"] = 0.3 * torch.randn(hidden, rank)
        target = folder / f"adapter-{number}"
        target.mkdir(parents=True, exist_ok=True)
        save_file(weights, target / "adapter_model.safetensors")
        peft = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 16,
            "target_modules": ["q_proj", "v_proj"],
            "bias": "none",
        }
        (target / "adapter_config.json").write_text(json.dumps(peft))
        adapters.append(LoRARequest(f"adapter-{number}", number, str(target)))
    return adapters
