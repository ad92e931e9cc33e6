"""A KV connector whose loads take steps: vLLM's own example connector (KV in files), made asynchronous.

Named by its module path in `kv_connector_module_path`. A load is under way for `LOAD_STEPS` steps and then put into the
cache whole; a request whose KV comes has the status WAITING_FOR_REMOTE_KVS meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import (
    ExampleConnector,
    ExampleConnectorMetadata,
    ReqMeta,
)

LOAD_STEPS = 4


def transfer_config(folder: Path) -> KVTransferConfig:
    """What `vllm.LLM(kv_transfer_config=…)` takes."""
    return KVTransferConfig(
        kv_connector="LateConnector",
        kv_connector_module_path="tests.engines.late_connector",
        kv_role="kv_both",
        kv_connector_extra_config={"shared_storage_path": str(folder)},
    )


@dataclass
class LateMetadata(ExampleConnectorMetadata):
    """Which requests' loads begin with this step."""

    late: dict[str, ReqMeta] = field(default_factory=dict)


class LateConnector(ExampleConnector):
    """Loads are asynchronous; stores are as in the example."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin: dict[str, ReqMeta] = {}  # on the scheduler's side
        self._caches: dict[str, torch.Tensor] = {}  # on the worker's side
        self._under_way: dict[str, tuple[ReqMeta, int]] = {}

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return tokens, bool(tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens > 0:
            ids = blocks.get_block_ids()[0]
            self._begin[request.request_id] = ReqMeta.make_meta(
                request.prompt_token_ids, ids, self._block_size, is_store=False, mm_hashes=[]
            )

    def build_connector_meta(self, scheduler_output: Any) -> LateMetadata:
        made = LateMetadata(requests=super().build_connector_meta(scheduler_output).requests, late=self._begin)
        self._begin = {}
        return made

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._caches = kv_caches

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        for request_id, load in self._get_connector_metadata().late.items():
            self._under_way[request_id] = (load, LOAD_STEPS)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        done = set()
        for request_id, (load, steps) in list(self._under_way.items()):
            if steps > 0:
                self._under_way[request_id] = (load, steps - 1)
                continue
            del self._under_way[request_id]
            self._put(load)
            done.add(request_id)
        return None, done or None

    def _put(self, load: ReqMeta) -> None:
        blocks, offsets = load.slot_mapping // self._block_size, load.slot_mapping % self._block_size
        for name, cache in self._caches.items():
            file = self._generate_filename_debug(name, load.token_ids, load.mm_hashes)
            cache[blocks, :, offsets] = safetensors.torch.load_file(file)["kv_cache"]
