"""What vLLM may rename is named in one file, `vllm_adapter`, and means what that file says."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from headway.domain.replica_view import MemoryView
from headway.vllm_plugin import vllm_adapter
from headway.vllm_plugin.vllm_adapter import VllmAdapter

ROOM = Path(vllm_adapter.__file__).parent
FIELDS = {
    "block_hashes",
    "block_pool",
    "cache_config",
    "kv_cache_manager",
    "max_num_active_reqs",
    "max_num_running_reqs",
    "max_num_scheduled_tokens",
    "num_computed_tokens",
    "num_output_tokens",
    "num_prompt_tokens",
    "num_tokens",
    "sampling_params",
    "skip_reading_prefix_cache",
    "status",
    "structured_output_request",
    "FINISHED_ABORTED",
}


def named_in(source: str) -> set[str]:
    """Attributes read and texts written in a module, docstrings aside."""
    tree = ast.parse(source)
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return (attributes | texts) & FIELDS


@pytest.mark.parametrize("file", sorted(ROOM.glob("*.py")), ids=lambda file: file.stem)
def test_fields_of_vllms_scheduler_and_requests_are_named_in_the_adapter_only(file: Path) -> None:
    named = named_in(file.read_text(encoding="utf-8"))
    if file.stem == "vllm_adapter":
        assert {"num_computed_tokens", "status", "kv_cache_manager", "block_hashes"} <= named
    else:
        assert named == set(), "read it through vllm_adapter"


def test_a_field_that_is_read_elsewhere_is_found() -> None:
    assert named_in("left = request.num_tokens - request.num_computed_tokens") == {"num_tokens", "num_computed_tokens"}
    assert named_in('if request.status.name == "FINISHED_ABORTED": pass') == {"status", "FINISHED_ABORTED"}


# what the fields mean


class Status(NamedTuple):
    """As vLLM's enumeration: it has a name and a hash."""

    name: str


def scheduler(**changes: Any) -> SimpleNamespace:
    pool = SimpleNamespace(get_num_free_blocks=lambda: 10)
    fields: dict[str, Any] = {
        "waiting": [],
        "running": ["a", "b"],
        "requests": {},
        "kv_cache_manager": SimpleNamespace(block_pool=pool),
        "scheduler_config": SimpleNamespace(policy="fcfs", long_prefill_token_threshold=None),
        "cache_config": SimpleNamespace(block_size=16, num_gpu_blocks=101, enable_prefix_caching=True),
        "max_num_scheduled_tokens": 100,
        "max_num_running_reqs": 8,
    }
    return SimpleNamespace(**fields | changes)


def test_what_is_read_of_a_scheduler() -> None:
    engine = VllmAdapter(scheduler())
    assert (engine.block_tokens, engine.token_budget, engine.seats, engine.own_threshold) == (16, 100, 8, 0)
    assert engine.memory() == MemoryView(10, 100, 16)
    assert engine.running_count() == 2
    engine.reorder_running(["b", "a"])  # type: ignore[list-item]
    assert engine.running == ["b", "a"]
    engine.set_threshold(7)
    assert engine._scheduler.scheduler_config.long_prefill_token_threshold == 7
    config = SimpleNamespace(policy="fcfs", long_prefill_token_threshold=5)
    newer = VllmAdapter(
        scheduler(
            block_size=32,
            max_num_active_reqs=4,
            kv_cache_config=SimpleNamespace(num_blocks=51, kv_cache_groups=[]),
            scheduler_config=config,
        )
    )
    assert (newer.block_tokens, newer.seats, newer.own_threshold) == (32, 4, 5)
    assert newer.memory() == MemoryView(10, 50, 32)


def test_a_scheduler_that_cannot_be_used_is_refused_by_name() -> None:
    without = scheduler()
    del without.running, without.requests
    with pytest.raises(ValueError, match="lacks running, requests, so"):
        VllmAdapter(without)
    with pytest.raises(ValueError, match="--scheduling-policy priority"):
        VllmAdapter(scheduler(scheduler_config=SimpleNamespace(policy="priority")))
    diffusion = SimpleNamespace(model_config=SimpleNamespace(is_diffusion=True))
    with pytest.raises(ValueError, match="diffusion"):
        VllmAdapter(scheduler(vllm_config=diffusion))


def test_paused_means_that_vllm_says_so() -> None:
    assert not VllmAdapter(scheduler()).paused
    assert not VllmAdapter(scheduler(_pause_state=Status("UNPAUSED"))).paused
    assert VllmAdapter(scheduler(_pause_state=Status("PAUSED_ALL"))).paused


@pytest.mark.parametrize(
    ("changes", "tokens", "fits"),
    [
        ({"scheduler_reserve_full_isl": True}, 160, True),  # ten free blocks of 16
        ({"scheduler_reserve_full_isl": True}, 161, False),
        ({}, 9_999, True),  # a chunk of 100 tokens will do
        ({"max_num_scheduled_tokens": 161}, 9_999, False),
        ({"kv_cache_manager": 2, "scheduler_reserve_full_isl": True}, 128, True),
        ({"kv_cache_manager": 2, "scheduler_reserve_full_isl": True}, 129, False),
    ],
)
def test_a_prompt_may_fit(changes: dict[str, Any], tokens: int, fits: bool) -> None:
    if "kv_cache_manager" in changes:
        pool = SimpleNamespace(get_num_free_blocks=lambda: 10)
        manager = SimpleNamespace(block_pool=pool, watermark_blocks=changes["kv_cache_manager"])
        changes = changes | {"kv_cache_manager": manager}
    request: Any = SimpleNamespace(num_tokens=tokens)
    assert VllmAdapter(scheduler(**changes)).may_fit(request) is fits


def test_cached_blocks_are_wanted_too_unless_another_request_holds_them() -> None:
    held, free = SimpleNamespace(ref_cnt=1), SimpleNamespace(ref_cnt=0)
    for blocks, fits in (([held, held], True), ([held, free], False), ([], False)):
        manager = SimpleNamespace(
            block_pool=SimpleNamespace(get_num_free_blocks=lambda: 10),
            coordinator=SimpleNamespace(find_longest_cache_hit=lambda hashes, most, found=blocks: ((found,), 0)),
        )
        engine = VllmAdapter(scheduler(kv_cache_manager=manager, scheduler_reserve_full_isl=True))
        request: Any = SimpleNamespace(num_tokens=192, block_hashes=["h"])
        assert engine.may_fit(request) is fits


@pytest.mark.parametrize(
    ("name", "fields", "blocked", "ready"),
    [
        ("WAITING", {}, False, True),
        ("PREEMPTED", {}, False, True),
        ("WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR", {}, True, True),
        ("WAITING_FOR_FSM", {"structured_output_request": SimpleNamespace(grammar=None)}, True, False),
        ("WAITING_FOR_GRAMMAR", {"structured_output_request": SimpleNamespace(grammar="g")}, True, True),
        ("WAITING_FOR_STRUCTURED_X", {"structured_output_request": SimpleNamespace(grammar=None)}, True, False),
        ("WAITING_FOR_REMOTE_KVS", {"request_id": "x"}, True, False),
        ("WAITING_FOR_REMOTE_KVS", {"request_id": "came"}, True, True),
        ("WAITING_FOR_REMOTE_KVS", {"request_id": "failed"}, True, True),
        ("WAITING_FOR_STREAMING_REQ", {}, True, False),
        ("WAITING_FOR_SOMETHING_NEW", {}, True, True),
    ],
)
def test_what_blocks_a_request(name: str, fields: dict[str, Any], blocked: bool, ready: bool) -> None:
    engine = VllmAdapter(scheduler(finished_recving_kv_req_ids={"came"}, failed_recving_kv_req_ids={"failed"}))
    request: Any = SimpleNamespace(status=Status(name), **fields)
    assert engine.is_blocked(request) is blocked
    assert engine.is_blocked(request) is blocked
    assert engine.may_be_ready(request) is ready


def test_full_attention_is_one_group_of_that_kind() -> None:
    class FullAttentionSpec: ...

    class Special(FullAttentionSpec): ...

    class SlidingWindowSpec: ...

    def groups(*kinds: type) -> bool:
        made = [SimpleNamespace(kv_cache_spec=kind()) for kind in kinds]
        return VllmAdapter(
            scheduler(kv_cache_config=SimpleNamespace(num_blocks=9, kv_cache_groups=made))
        ).full_attention

    assert VllmAdapter(scheduler()).full_attention
    assert groups(FullAttentionSpec)
    assert groups(Special)
    assert not groups(SlidingWindowSpec)
    assert not groups(FullAttentionSpec, SlidingWindowSpec)
    assert not groups(FullAttentionSpec, FullAttentionSpec)


def test_the_prefix_cache_is_asked_where_there_is_one() -> None:
    assert not VllmAdapter(scheduler()).caches_prefixes
    asked: list[tuple[object, int]] = []

    def find(hashes: object, most: int) -> tuple[object, int]:
        asked.append((hashes, most))
        return None, 48

    pool = SimpleNamespace(get_num_free_blocks=lambda: 10)
    manager = SimpleNamespace(block_pool=pool, coordinator=SimpleNamespace(find_longest_cache_hit=find))
    engine = VllmAdapter(scheduler(kv_cache_manager=manager))
    assert engine.caches_prefixes
    assert engine.cached_tokens(["h"], 63) == 48
    assert asked == [(["h"], 63)]
    off = SimpleNamespace(block_size=16, num_gpu_blocks=101, enable_prefix_caching=False)
    assert not VllmAdapter(scheduler(kv_cache_manager=manager, cache_config=off)).caches_prefixes


def test_what_is_read_of_a_request() -> None:
    request: Any = SimpleNamespace(
        status=Status("RUNNING"), block_hashes=["h"], sampling_params=SimpleNamespace(extra_args={"a": 1})
    )
    assert vllm_adapter.is_running(request)
    assert not vllm_adapter.was_aborted(request)
    assert vllm_adapter.session_of(request) is None
    assert vllm_adapter.lora_of(request) is None
    assert vllm_adapter.extra_arguments(request) == {"a": 1}
    assert vllm_adapter.block_hashes_to_look_up(request) == ["h"]
    request.skip_reading_prefix_cache = True
    request.status, request.session_id = Status("FINISHED_ABORTED"), "s"
    assert vllm_adapter.block_hashes_to_look_up(request) == ()
    assert vllm_adapter.was_aborted(request)
    assert not vllm_adapter.is_running(request)
    assert vllm_adapter.session_of(request) == "s"
    request.lora_request = SimpleNamespace(lora_name="sql", lora_int_id=3)
    assert vllm_adapter.lora_of(request) == "sql"
    request.session_id = "headway-request-hw-1-2"  # our gateway's, by which it knows a request's KV events
    assert vllm_adapter.session_of(request) is None
