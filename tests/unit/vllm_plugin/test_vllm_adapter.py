"""What vLLM may rename is named in one file: `vllm_adapter`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from headway.vllm_plugin import vllm_adapter

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
