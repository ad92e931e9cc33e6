"""The smallest engine that calls a queue as vLLM does: running first; peek, check, pop; step over; preempt."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from types import SimpleNamespace
from typing import Any


class Status(Enum):
    WAITING = 1
    WAITING_FOR_REMOTE_KVS = 2
    WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR = 3
    RUNNING = 4
    PREEMPTED = 5
    FINISHED_STOPPED = 6
    FINISHED_ABORTED = 7


class StubRequest:
    def __init__(self, request_id: str, prompt: int, output: int = 4, priority: int = 0, **extra_args: Any) -> None:
        self.request_id, self.num_prompt_tokens, self.output, self.priority = request_id, prompt, output, priority
        self.max_tokens, self.num_computed_tokens, self.num_output_tokens = 1_000, 0, 0
        self.status = Status.WAITING
        self.sampling_params = SimpleNamespace(extra_args=extra_args or None)
        self.block_hashes: list[Any] = []
        self.structured_output_request: Any = None
        self.step_over = False

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens


class StubEngine:
    """Blocks of one token; a running request computes all it has in one step and gets a token a step."""

    seats, blocks = 2, 1_000_000

    def __init__(self, *, headway: dict[str, Any] | None = None, policy: str = "fcfs", caching: bool = False) -> None:
        self.vllm_config = SimpleNamespace(
            additional_config={"headway": {"metrics_dir": "", **(headway or {})}},
            instance_id="stub",
            parallel_config=SimpleNamespace(data_parallel_index=0),
            model_config=SimpleNamespace(is_diffusion=False),
        )
        self.scheduler_config = SimpleNamespace(policy=policy, long_prefill_token_threshold=0)
        self.cache_config = SimpleNamespace(block_size=1, num_gpu_blocks=self.blocks + 1, enable_prefix_caching=caching)
        self.max_num_scheduled_tokens, self.max_num_active_reqs = 10_000, self.seats
        self.cached: dict[Any, int] = {}
        self.kv_cache_manager = SimpleNamespace(
            block_pool=SimpleNamespace(get_num_free_blocks=self._free_blocks),
            coordinator=SimpleNamespace(
                find_longest_cache_hit=lambda hashes, most: (((),), self.cached.get(hashes[0]) if hashes else 0)
            ),
        )
        self.waiting: Any = []
        self.running: list[StubRequest] = []
        self.requests: dict[str, StubRequest] = {}
        self.admitted: list[str] = []
        self.ended: list[str] = []

    def _free_blocks(self) -> int:
        return self.blocks - sum(request.num_computed_tokens for request in self.running)

    def add_request(self, request: StubRequest) -> None:
        self.requests[request.request_id] = request
        self.waiting.add_request(request)

    def schedule(self) -> SimpleNamespace:
        given: dict[str, int] = {}
        preempted = False
        for request in list(self.running):
            while request in self.running and self._free_blocks() < request.num_tokens - request.num_computed_tokens:
                victim = self.running.pop()
                self._preempt_request(victim, 0.0)
                preempted = True
            if request in self.running:
                given[request.request_id] = request.num_tokens - request.num_computed_tokens
                request.num_computed_tokens = request.num_tokens
        skipped: list[StubRequest] = []
        while not preempted and self.waiting and len(self.running) < self.max_num_active_reqs:
            request = self.waiting.peek_request()
            if request.status.name.startswith("WAITING_FOR_"):
                asked = request.structured_output_request
                if asked is None or asked.grammar is None:
                    skipped.insert(0, self.waiting.pop_request())
                    continue
                request.status = Status.WAITING
            if request.step_over:
                skipped.insert(0, self.waiting.pop_request())
                continue
            if self._free_blocks() < request.num_tokens:
                break
            assert self.waiting.pop_request() is request, "peek and pop disagree"
            self.running.append(request)
            request.status = Status.RUNNING
            request.num_computed_tokens = request.num_tokens
            given[request.request_id] = request.num_tokens
            self.admitted.append(request.request_id)
        if skipped:
            self.waiting.prepend_requests(skipped)
        return SimpleNamespace(total_num_scheduled_tokens=sum(given.values()), num_scheduled_tokens=given)

    def update_from_output(self, scheduler_output: SimpleNamespace) -> None:
        for request in list(self.running):
            request.num_output_tokens += 1
            if request.num_output_tokens >= request.output:
                self.running.remove(request)
                request.status = Status.FINISHED_STOPPED
                self._free_request(request)

    def _preempt_request(self, request: StubRequest, timestamp: float) -> None:
        request.status, request.num_computed_tokens = Status.PREEMPTED, 0
        self.waiting.prepend_request(request)

    def finish_requests(self, ids: Iterable[str], status: Status) -> None:
        gone = [self.requests[id_] for id_ in ids if id_ in self.requests]
        self.running = [request for request in self.running if request not in gone]
        self.waiting.remove_requests(gone)
        for request in gone:
            request.status = status
            self._free_request(request)

    def _free_request(self, request: StubRequest) -> None:
        self.ended.append(request.request_id)
        del self.requests[request.request_id]

    def shutdown(self) -> None:
        pass
