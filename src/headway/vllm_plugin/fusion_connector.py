"""KV connector that carries fusion's orders to the worker and its reports back. Only vLLM loads it.

    --kv-transfer-config '{"kv_connector": "FusionConnector",
      "kv_connector_module_path": "headway.vllm_plugin.fusion_connector", "kv_role": "kv_both"}'

It transfers nothing. Without `fusion` in Headway's configuration it does nothing at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from headway.fusion.kv_blocks import Floats
from headway.vllm_plugin.block_fuser import carry_out
from headway.vllm_plugin.block_sharing import BlockSharing
from headway.vllm_plugin.fusion_messages import FusionOrder, FusionReport


@dataclass
class OrderMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """An order, or none in this step."""

    order: FusionOrder | None


@dataclass
class ReportMetadata(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """A worker's report."""

    report: FusionReport

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """Refused at the start: there is one worker."""
        return ReportMetadata(FusionReport(fault="several workers answered"))


class CpuLayer:
    """One layer's KV in vLLM's CPU layout: (blocks, KV heads, block tokens, 2 × head size).

    A head of a block has all its keys, then all its values (0.32, `cpu_attn.py`).
    """

    def __init__(self, cache: torch.Tensor) -> None:
        if cache.ndim != 4 or not cache.is_contiguous():
            raise ValueError(f"its KV cache has shape {tuple(cache.shape)}, not that of vLLM's CPU backend")
        blocks, heads, tokens, width = cache.shape
        self._halves = cache.view(blocks, heads, 2, tokens * width // 2)

    def read(self, blocks: Sequence[int]) -> Floats:
        """(blocks, 2, numbers): a copy of keys and values."""
        found = self._halves[list(blocks)].transpose(1, 2).flatten(2).float()
        return found.numpy()  # type: ignore[no-any-return]

    def write(self, block: int, halves: Floats) -> None:
        """Overwrite one block with (2, numbers), rounded to the cache's type."""
        heads = self._halves.shape[1]
        rows = torch.from_numpy(halves).view(2, heads, -1).transpose(0, 1)
        self._halves[block].copy_(rows)


class FusionConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """See the module. The scheduler's and the worker's half are two objects of this class."""

    requires_kv_delivery = False

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.sharing: BlockSharing | None = None  # the scheduler's half; Headway's scheduler sets it
        self._caches: dict[str, torch.Tensor] = {}
        self._layers: list[CpuLayer] = []
        self._report: FusionReport | None = None

    # the scheduler's half -------------------------------------------------------------------------------------------

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Nothing comes from outside."""
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Nothing to do."""

    def build_connector_meta(self, scheduler_output: Any) -> OrderMetadata:
        """The order of this step."""
        return OrderMetadata(None if self.sharing is None else self.sharing.order(scheduler_output))

    def update_connector_output(self, connector_output: Any) -> None:
        """A step came back."""
        found = connector_output.kv_connector_worker_meta
        if self.sharing is not None and isinstance(found, ReportMetadata):
            self.sharing.heard(found.report)

    # the worker's half ----------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The worker has allocated its cache."""
        self._caches = kv_caches

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing to load."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing to save."""

    def wait_for_save(self) -> None:
        """After the forward pass: carry the order out."""
        order = self._get_connector_metadata().order
        if order is None:
            return
        try:
            self._layers = self._layers or [CpuLayer(cache) for cache in self._caches.values()]
        except ValueError as error:
            self._report = FusionReport(fault=str(error))
            return
        self._report = carry_out(order, self._layers)

    def build_connector_worker_meta(self) -> ReportMetadata | None:
        """The report of this step's order."""
        report, self._report = self._report, None
        return None if report is None else ReportMetadata(report)
