"""An engine for fusion without vLLM: a block pool as vLLM's, tables, a worker with numpy layers, and what is exact.

One step is `step()`: order, forward pass (each running request writes its next token), worker's report, tables moved.
A request's KV is drawn from its tokens' contents, so that what it reads later can be compared with what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from headway.fusion.kv_blocks import Floats
from headway.vllm_plugin.block_fuser import carry_out
from headway.vllm_plugin.block_sharing import BlockSharing
from headway.vllm_plugin.block_tables import BlockTables
from headway.vllm_plugin.config import FusionSettings
from headway.vllm_plugin.fusion_messages import FusionReport

BLOCK_TOKENS, LAYERS, WIDTH = 4, 3, 8


class Block:
    def __init__(self, block_id: int) -> None:
        self.block_id, self.ref_cnt = block_id, 0


class Pool:
    """The calls of vLLM's `BlockPool` that fusion makes."""

    def __init__(self, blocks: int) -> None:
        self.blocks = [Block(number) for number in range(blocks)]
        self._free = list(self.blocks)

    def get_num_free_blocks(self) -> int:
        return len(self._free)

    def get_new_blocks(self, count: int) -> list[Block]:
        if count > len(self._free):
            raise ValueError("no free blocks")
        taken, self._free = self._free[:count], self._free[count:]
        for block in taken:
            block.ref_cnt = 1
        return taken

    def touch(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            if not block.ref_cnt:
                self._free.remove(block)
            block.ref_cnt += 1

    def free_blocks(self, blocks: Any) -> None:
        for block in blocks:
            block.ref_cnt -= 1
            assert block.ref_cnt >= 0, "freed twice"
            if not block.ref_cnt:
                self._free.append(block)


class NumpyLayer:
    """(blocks, 2, block tokens, numbers of a token)."""

    def __init__(self, blocks: int) -> None:
        self.halves = np.zeros((blocks, 2, BLOCK_TOKENS, WIDTH), np.float32)

    def read(self, blocks: Sequence[int]) -> Floats:
        return self.halves[list(blocks)].reshape(len(blocks), 2, -1)

    def write(self, block: int, halves: Floats) -> None:
        self.halves[block] = halves.reshape(2, BLOCK_TOKENS, WIDTH)


class Request:
    """As much of vLLM's as fusion reads. `kv` is exact: (layers, 2, tokens, numbers of a token)."""

    def __init__(self, request_id: str, kv: Floats, output: int, salt: str | None, **hints: Any) -> None:
        self.request_id, self.kv, self.output = request_id, kv, output
        self.prompt = int(kv.shape[2]) - output
        self.num_computed_tokens = self.num_output_tokens = 0
        self.cache_salt, self.block_hashes = salt, ["plain"]
        self.sampling_params = SimpleNamespace(extra_args=hints or None)

    @property
    def num_tokens(self) -> int:
        return self.prompt + self.num_output_tokens

    def update_block_hashes(self) -> None:
        self.block_hashes.append(f"under {self.cache_salt}")


class FusedEngine:
    """One engine, its worker and fusion between them."""

    def __init__(self, bound: float = 0.95, *, blocks: int = 200, blocks_per_step: int = 256) -> None:
        self.pool = Pool(blocks)
        self.layers = [NumpyLayer(blocks) for _ in range(LAYERS)]
        self.tables: dict[str, list[Block]] = {}
        self.running: list[Request] = []
        self.sent: dict[str, list[int]] = {}  # the tables as the worker knows them
        self.connector = SimpleNamespace(sharing=None)
        engine: Any = SimpleNamespace(pool=self.pool, tables=self.tables, running=self.running)
        tables = BlockTables(engine, self.connector)
        self.sharing = BlockSharing(FusionSettings(True, bound, blocks_per_step), tables, BLOCK_TOKENS)
        tables.bind(self.sharing)
        self.report_lost = False

    def admit(self, request: Request) -> None:
        """Compute its whole prompt in the next step."""
        self.running.append(request)
        self.tables[request.request_id] = []

    def step(self) -> None:
        """Schedule, compute, share."""
        counts = {one.request_id: max(one.prompt - one.num_computed_tokens, 1) for one in self.running}
        cached = SimpleNamespace(req_ids=[], new_block_ids=[], resumed_req_ids=set())
        for one in self.running:
            table = self.tables[one.request_id]
            needed = -(-(one.num_computed_tokens + counts[one.request_id]) // BLOCK_TOKENS) - len(table)
            new = self.pool.get_new_blocks(needed) if needed > 0 else []
            table.extend(new)
            cached.req_ids.append(one.request_id)
            cached.new_block_ids.append(([block.block_id for block in new],) if new else None)
        output = SimpleNamespace(scheduled_cached_reqs=cached)
        order = self.sharing.order(output)
        self.sharing.after_schedule(output)
        for one_id, ids in zip(cached.req_ids, cached.new_block_ids, strict=True):
            whole = one_id in cached.resumed_req_ids
            self.sent[one_id] = ([] if whole else self.sent.get(one_id, [])) + (list(ids[0]) if ids else [])
        for one in self.running:
            self._compute(one, counts[one.request_id])
        report = None if order is None else carry_out(order, self.layers)
        if isinstance(report, FusionReport) and not self.report_lost:
            self.sharing.heard(report)
        for one in list(self.running):
            one.num_output_tokens += 1
            if one.num_output_tokens >= one.output:
                self.end(one)
        self.sharing.after_update()

    def _compute(self, one: Request, tokens: int) -> None:
        for at in range(one.num_computed_tokens, one.num_computed_tokens + tokens):
            block, offset = divmod(at, BLOCK_TOKENS)
            number = self.sent[one.request_id][block]
            assert self.pool.blocks[number].ref_cnt == 1, "a decode writes to a shared block"
            for layer, held in enumerate(self.layers):
                held.halves[number, :, offset] = one.kv[layer, :, at]
        one.num_computed_tokens += tokens

    def end(self, one: Any) -> None:
        """It is finished."""
        self.sharing.ended(one)
        self._free(one)
        self.running.remove(one)

    def preempt(self, one: Any) -> None:
        """It loses its blocks and computes everything again from the next step on."""
        self.sharing.preempted(one)
        self._free(one)
        self.tables[one.request_id] = []
        one.prompt, one.output, one.num_computed_tokens = one.num_tokens, one.output - one.num_output_tokens, 0
        one.num_output_tokens = 0

    def _free(self, one: Request) -> None:
        self.pool.free_blocks(reversed(self.tables.pop(one.request_id)))
        del self.sent[one.request_id]

    def read(self, one: Request) -> Floats:
        """(layers, 2, computed tokens, numbers), by the table that the worker has."""
        found = np.stack([layer.halves[self.sent[one.request_id]] for layer in self.layers])
        tokens = found.transpose(0, 2, 1, 3, 4).reshape(LAYERS, 2, -1, WIDTH)
        return np.asarray(tokens[:, :, : one.num_computed_tokens])
