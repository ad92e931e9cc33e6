"""vLLM's own scheduler and KV cache manager on a day in virtual time: no worker, no model, no weights.

Run by an interpreter that has vLLM, with headway's `src` on PYTHONPATH for the step-time model:

    python -m tests.parity.vllm_driver < days.json > answers.json

In: a list of days (see `parity_days.py`); out: the vLLM version, its defaults for what `EngineRules` sets, and per day
every step and every request's times.
Nothing of headway's engines is used here: the loop is the one of `vllm.v1.engine.core.EngineCore` (`step`, and
`step_with_batch_queue` with two batches in flight), time is ours, and everything in between is vLLM's.
"""

from __future__ import annotations

import heapq
import json
import os
import sys
from collections import deque
from functools import partial
from typing import Any

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
import vllm
from vllm.config import CacheConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from headway import vllm_plugin
from headway.simulator.step_time import SECONDS_PER_PS, LinearStepTime, expected_step_ps
from tests.support.virtual_engine import STOP, block_hasher, model_folder

SHARED, OWN_PROMPT, OWN_OUTPUT = 10**9, 2 * 10**9, 3 * 10**9  # token ids that cannot be confused


def vllm_scheduler(rules: dict[str, Any], ordering: str, headway: dict[str, Any] | None, model: str) -> Scheduler:
    """vLLM's scheduler under these rules, or the plug-in's subclass; it takes one of the blocks as its null block."""
    limit = rules["max_model_tokens"]
    adaptive = "long_prefill_token_threshold_adaptive"
    newer = {adaptive: True} if rules[adaptive] else {}  # since 0.32
    config = VllmConfig(
        model_config=ModelConfig(model=model, skip_tokenizer_init=True, dtype="float16", max_model_len=limit, seed=0),
        scheduler_config=SchedulerConfig(
            is_encoder_decoder=False,
            max_model_len=limit,
            max_num_seqs=rules["max_num_seqs"],
            max_num_batched_tokens=rules["max_num_batched_tokens"],
            enable_chunked_prefill=rules["chunked_prefill"],
            long_prefill_token_threshold=rules["long_prefill_token_threshold"],
            scheduler_reserve_full_isl=rules["reserve_full_prompt"],
            watermark=rules["watermark"],
            async_scheduling=rules["async_scheduling"],
            policy=ordering,
            **newer,
        ),
        cache_config=CacheConfig(block_size=rules["block_tokens"], enable_prefix_caching=rules["prefix_caching"]),
        parallel_config=ParallelConfig(),
        additional_config={} if headway is None else {"headway": headway},
    )
    # The CPU platform has just switched these off; the scheduler itself knows nothing of platforms.
    config.scheduler_config.async_scheduling = rules["async_scheduling"]
    config.scheduler_config.enable_chunked_prefill = rules["chunked_prefill"]
    config.cache_config.enable_prefix_caching = rules["prefix_caching"]
    config.cache_config.num_gpu_blocks = rules["kv_blocks"] + 1
    register_all_kvcache_specs(config)
    spec = FullAttentionSpec(block_size=rules["block_tokens"], num_kv_heads=1, head_size=1, dtype=torch.float16)
    stock = AsyncScheduler if rules["async_scheduling"] else Scheduler
    return (stock if headway is None else vllm_plugin.Scheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=rules["kv_blocks"] + 1,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=rules["block_tokens"],
        log_stats=False,
    )


class RowId(str):
    """A row as vLLM's text, by which policies draw the lots of the simulator's number."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Batch:
    """A scheduled step: vLLM's output, whose token comes at its end, and when that is."""

    def __init__(self, output: Any, samples: list[bool], ends_ps: int) -> None:
        self.output, self.samples, self.ends_ps = output, samples, ends_ps


class Day:
    """One day on one engine."""

    def __init__(self, day: dict[str, Any], model: str) -> None:
        self.day, self.rules, self.trace = day, day["rules"], day["trace"]
        self.scheduler = vllm_scheduler(self.rules, day["ordering"], day["headway"], model)
        self.step_time = LinearStepTime(**day["step_time"])
        self.now_ps = self.gpu_free_ps = 0
        self.steps: list[dict[str, Any]] = []
        self.victims: list[int] = []
        self.prefilling: set[str] = set()
        rows = len(self.trace["arrived_ps"])
        self.produced, self.first_token_ps, self.ended_ps = [0] * rows, [-1] * rows, [-1] * rows
        self.preemptions = [0] * rows
        self.next_turn = {int(a): b for a, b in self.trace["next_turn"].items()}
        late = set(self.next_turn.values())
        self.expected = [(at, row) for row, at in enumerate(self.trace["arrived_ps"]) if row not in late]
        heapq.heapify(self.expected)
        self.hasher = block_hasher(self.rules["block_tokens"]) if self.rules["prefix_caching"] else None
        self.clock_ps = 0
        if day["headway"] is not None:
            hooks = self.scheduler.headway
            hooks.clock = lambda: self.clock_ps * SECONDS_PER_PS
            if hooks.prefix_hits is not None:  # no look-up is too slow, since a test machine may be busy with others
                hooks.prefix_hits._clock = lambda: 0.0
            step_ps = partial(expected_step_ps, self.step_time)  # what it takes is known, as in the simulator
            hooks.meter.step_ps = step_ps
            hooks.meter._learned._steps = 10**9
            if hooks.displacing is not None:
                hooks.displacing.displacement._step_ps = step_ps
        self._preempt = self.scheduler._preempt_request
        self.scheduler._preempt_request = self._note_victim

    def _note_victim(self, request: Request, *args: Any, **kwargs: Any) -> None:
        row = int(request.request_id)
        self.victims.append(row)
        self.preemptions[row] += 1
        self._preempt(request, *args, **kwargs)

    # The two loops of EngineCore ------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        queue: deque[Batch] = deque()
        depth = 2 if self.rules["async_scheduling"] else 1
        while True:
            self._arrivals()
            if not self.scheduler.has_requests() and not queue:
                if not self.expected:
                    break
                self.now_ps = max(self.now_ps, self.expected[0][0])
                continue
            if self.scheduler.has_requests():
                batch = self._schedule()
                queue.appendleft(batch)
                executed = batch.output.total_num_scheduled_tokens > 0
                if len(queue) < depth and (executed or self.scheduler.has_requests()):
                    continue
            self._update(queue.pop())
        return {
            "steps": self.steps,
            "first_token_ps": self.first_token_ps,
            "ended_ps": self.ended_ps,
            "preemptions": self.preemptions,
            "disabled": self.day["headway"] is not None and self.scheduler.headway.policies.disabled,
        }

    # ------------------------------------------------------------------------------------------------------------------

    def _arrivals(self) -> None:
        while self.expected and self.expected[0][0] <= self.now_ps:
            at_ps, row = heapq.heappop(self.expected)
            self.clock_ps = at_ps  # the simulator knows when a request came, not just when the engine sees it
            self.scheduler.add_request(self._request(row, at_ps))

    def _request(self, row: int, at_ps: int) -> Request:
        trace = self.trace
        prompt = trace["prompt_tokens"][row]
        ids, per_id = (trace["prefix_ids"] or {row: []})[row], trace["prefix_block_tokens"]
        tokens = [SHARED + ids[p // per_id] for p in range(min(prompt, len(ids) * per_id))]
        tokens += [OWN_PROMPT + row] * (prompt - len(tokens))
        bound = trace["max_output_tokens"][row] or self.rules["max_model_tokens"] - prompt
        hints = trace["hints"]
        params = SamplingParams(max_tokens=bound, temperature=0.0, extra_args=None if hints is None else hints[row])
        params.update_from_generation_config({}, STOP)
        return Request(
            # vLLM breaks ties of priority and arrival by this string; our policies draw lots by it.
            request_id=f"{row:09d}" if hints is None else RowId(row),
            prompt_token_ids=tokens,
            sampling_params=params,
            pooling_params=None,
            arrival_time=at_ps * 1e-12,
            priority=trace["priority"][row],
            block_hasher=self.hasher,
        )

    def _schedule(self) -> Batch:
        ran = {request.request_id for request in self.scheduler.running}
        self.clock_ps = self.now_ps
        output = self.scheduler.schedule()
        given = output.num_scheduled_tokens
        admitted = [r.request_id for r in self.scheduler.running if r.request_id not in ran]
        self.prefilling.update(admitted)
        chunks, decodes, context, samples = [], [], 0, []
        for id_, new in given.items():
            request = self.scheduler.requests[id_]
            before = request.num_computed_tokens - new
            if id_ in self.prefilling:
                chunks.append((int(id_), new, before))
            else:
                assert new == 1, f"a decode of {new} tokens"
                decodes.append(int(id_))
                context += before
            samples.append(not request.is_prefill_chunk)
            if not request.is_prefill_chunk:
                self.prefilling.discard(id_)
        if not given:
            return Batch(output, samples, self.now_ps)
        started = max(self.now_ps, self.gpu_free_ps)
        duration = self.step_time.mixed_step(len(decodes), context, [chunk[1:] for chunk in chunks], sum(samples))
        self.gpu_free_ps = started + duration
        self.steps.append(
            {
                "started_ps": started,
                "duration_ps": duration,
                "decodes": len(decodes),
                "context_tokens": context,
                "chunks": chunks,
                "preempted": self.victims[:],
                "admitted": [int(id_) for id_ in admitted],
                "blocks_free": self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            }
        )
        self.victims.clear()
        return Batch(output, samples, self.gpu_free_ps)

    def _update(self, batch: Batch) -> None:
        self.now_ps = self.clock_ps = max(self.now_ps, batch.ends_ps)
        ids = list(batch.output.num_scheduled_tokens)
        sampled = [[self._next_token(id_)] if samples else [] for id_, samples in zip(ids, batch.samples, strict=True)]
        answer = self.scheduler.update_from_output(
            batch.output,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={id_: index for index, id_ in enumerate(ids)},
                sampled_token_ids=sampled,
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
        for outputs in answer.values():
            for output in outputs.outputs:
                if output.finished:
                    row = int(output.request_id)
                    self.ended_ps[row] = self.now_ps
                    if row in self.next_turn:
                        follower = self.next_turn[row]
                        heapq.heappush(self.expected, (self.now_ps + self.trace["think_ps"][follower], follower))

    def _next_token(self, id_: str) -> int:
        """The model's part: an own token each time, the stop token exactly at the true length."""
        row = int(id_)
        if id_ in self.scheduler.requests:
            self.produced[row] += 1
            if self.produced[row] == 1:
                self.first_token_ps[row] = self.now_ps
            true_length = self.trace["output_tokens"][row]
            if self.produced[row] == true_length != self.trace["max_output_tokens"][row]:
                return STOP
        return OWN_OUTPUT + row


def defaults() -> dict[str, Any]:
    """What vLLM takes where its user says nothing, by the names of `EngineRules`."""
    scheduler = SchedulerConfig.default_factory(max_model_len=4_096, is_encoder_decoder=False)
    return {
        "block_tokens": CacheConfig.DEFAULT_BLOCK_SIZE,
        "chunked_prefill": scheduler.enable_chunked_prefill,
        "long_prefill_token_threshold": scheduler.long_prefill_token_threshold,
        "reserve_full_prompt": scheduler.scheduler_reserve_full_isl,
        "watermark": scheduler.watermark,
        "prefix_caching": CacheConfig().enable_prefix_caching,
    }


def main() -> None:
    days = json.load(sys.stdin)
    answers = {day["name"]: Day(day, model_folder()).run() for day in days}
    json.dump({"vllm": vllm.__version__, "defaults": defaults(), "days": answers}, sys.__stdout__)


if __name__ == "__main__":
    sys.stdout = sys.stderr  # whatever a library prints must not get into the answer
    main()
