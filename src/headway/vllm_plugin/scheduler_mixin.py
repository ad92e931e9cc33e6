"""Scheduler mixin: calls `SchedulerHooks` before and after vLLM's own methods, never instead of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from headway.vllm_plugin.block_sharing import BlockSharing
from headway.vllm_plugin.block_tables import BlockTables, refuse_fusion
from headway.vllm_plugin.config import read_config
from headway.vllm_plugin.explain_endpoint import WhyEndpoint
from headway.vllm_plugin.plugin_log import logger
from headway.vllm_plugin.policy_queue import PolicyQueue
from headway.vllm_plugin.publishing import Publisher, metrics_folder
from headway.vllm_plugin.scheduler_hooks import SchedulerHooks
from headway.vllm_plugin.vllm_adapter import VllmAdapter, VllmRequest


class PolicyScheduling:
    """Mix in before vLLM's scheduler class. `queue_base` is vLLM's `RequestQueue`."""

    queue_base: type = object

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        this: Any = self
        vllm_config = this.vllm_config
        config = read_config(getattr(vllm_config, "additional_config", None))
        engine_name = _engine_name(vllm_config)
        folder = metrics_folder(config.metrics_dir, str(getattr(vllm_config, "instance_id", "") or ""))
        publisher = Publisher(
            None if folder is None else folder / f"engine-{engine_name}.prom",
            _own_file(config.decision_log, engine_name) if config.decision_log else None,
            own_folder=config.metrics_dir is None,
        )
        self._publisher = publisher
        state_file = _own_file(config.state_file, engine_name) if config.state_file else None
        self.headway = SchedulerHooks(
            config, VllmAdapter(self), publisher, engine_name, _with_base(self.queue_base), state_file
        )
        self._why = None
        if config.why_listen is not None:
            host, port = config.why_listen
            self._why = WhyEndpoint(host, port + int(engine_name), self.headway.explain)
        self.headway.sharing = _block_sharing(self, self.headway)
        this.waiting = self.headway.queue
        if hasattr(self, "skipped_waiting"):  # 0.20 to 0.28 keep requests that cannot run yet there
            this.skipped_waiting = _with_base(self.queue_base, SkippedWaitingQueue)(self.headway.queue)
        logger.info(
            "headway: waiting requests are ordered by %s (admission %s, preemption %s, prediction %s, tuning %s)",
            config.ordering, config.admission, config.preemption, config.prediction, config.tuning,
        )  # fmt: skip

    def _select_waiting_queue_for_scheduling(self) -> PolicyQueue | None:
        """Called by 0.20 to 0.28: every waiting request is in one queue."""
        queue = self.headway.queue
        return queue if queue else None

    def add_request(self, request: Any) -> Any:
        """A request enters the engine."""
        self.headway.tick()
        return super().add_request(request)  # type: ignore[misc]

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step."""
        self.headway.before_schedule()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        if self.headway.sharing is not None:
            self.headway.sharing.after_schedule(output)
        self.headway.after_schedule(output.num_scheduled_tokens)
        return output

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """A step's tokens came back."""
        self.headway.tick()
        outputs = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        if self.headway.sharing is not None:
            self.headway.sharing.after_update()
        self.headway.after_update(scheduler_output.total_num_scheduled_tokens)
        return outputs

    def _handle_stopped_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """A request stopped; a streaming session goes on with its next input."""
        stopped = super()._handle_stopped_request(request, *args, **kwargs)  # type: ignore[misc]
        if not stopped:
            self.headway.turn_ended(request)
        return stopped

    def _update_request_as_session(self, session: Any, *args: Any, **kwargs: Any) -> None:
        self.headway.turn_ended(session)
        super()._update_request_as_session(session, *args, **kwargs)  # type: ignore[misc]
        self.headway.next_turn(session)

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self.headway.before_preempt(request)
        if self.headway.sharing is not None:
            self.headway.sharing.preempted(request)
        return super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """A request ends: finished, aborted or failed."""
        self.headway.finished(request)
        if self.headway.sharing is not None:
            self.headway.sharing.ended(request)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]

    def shutdown(self) -> None:
        """The engine ends."""
        self.headway.publish()
        self._publisher.close()
        self.headway.learned.close()
        self.headway.twin.close()
        if self._why is not None:
            self._why.close()
        super().shutdown()  # type: ignore[misc]


class SkippedWaitingQueue:
    """Stands in for `skipped_waiting` of vLLM 0.20 to 0.28: what is put into it is parked in our queue."""

    def __init__(self, queue: PolicyQueue) -> None:
        self._queue = queue

    def add_request(self, request: VllmRequest) -> None:
        """A request that is blocked on arrival."""
        self._queue.add_request(request)

    def prepend_request(self, request: VllmRequest) -> None:
        """A request that vLLM skipped."""
        self._queue.prepend_requests((request,))

    def prepend_requests(self, requests: Iterable[VllmRequest]) -> None:
        """Requests that vLLM skipped."""
        self._queue.prepend_requests(requests)

    def peek_request(self) -> VllmRequest:
        """Never called: this queue is always empty."""
        raise IndexError("this queue is always empty")

    def pop_request(self) -> VllmRequest:
        """Never called: this queue is always empty."""
        raise IndexError("this queue is always empty")

    def remove_request(self, request: VllmRequest) -> None:
        """Take one request out of our queue."""
        self._queue.remove_requests((request,))

    def remove_requests(self, requests: Iterable[VllmRequest]) -> None:
        """Take requests out of our queue."""
        self._queue.remove_requests(requests)

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0  # counted in the other queue

    def __iter__(self) -> Iterator[VllmRequest]:
        return self._queue.parked_requests()


def _with_base(base: type, kind: type = PolicyQueue) -> type:
    """Our queue as a subclass of vLLM's `RequestQueue`."""
    return type(kind.__name__, (kind, base), {})


def _own_file(path: str, engine_name: str) -> Path:
    """The file of one engine: several of one server must not write into the same."""
    given = Path(path)
    return given if engine_name == "0" else given.with_name(f"{given.stem}-{engine_name}{given.suffix}")


def _block_sharing(scheduler: Any, hooks: SchedulerHooks) -> BlockSharing | None:
    """Fusion, where it is configured."""
    settings = hooks.config.fusion
    if not settings.on:
        return None
    refuse_fusion(scheduler, hooks.engine)
    tables = BlockTables(hooks.engine, scheduler.connector)
    sharing = BlockSharing(settings, tables, hooks.engine.block_tokens)
    tables.bind(sharing)
    logger.warning("headway: fusion is experimental: answers of requests with alike prompts may differ from exact ones")
    return sharing


def _engine_name(vllm_config: Any) -> str:
    """The data-parallel index of this engine, "0" for a single one."""
    parallel = getattr(vllm_config, "parallel_config", None)
    for name in ("data_parallel_index", "data_parallel_rank"):
        if isinstance(index := getattr(parallel, name, None), int):
            return str(index)
    return "0"
