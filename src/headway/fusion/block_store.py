"""A paged KV cache whose blocks may be fused: tables per part, reference counts, copy on write.

A reference in numpy of what an engine has to keep. Each part of the cache (by default each layer) has a pool and tables
of its own, so a block can be shared in one layer and exact in the next. Memory that is free is the minimum over pools.

Only full blocks are fused, and each at most once. A representative is never altered while it lives. What is written to
a shared, fused or hashed block goes to a copy, with the scale folded in.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headway.fusion.block_fusion import FusionDecision, decide_fusion, turned_keys
from headway.fusion.block_pool import BlockPool, OutOfBlocks
from headway.fusion.encoding import Half
from headway.fusion.joint_encoder import PER_LAYER, Granularity, check_bound
from headway.fusion.kv_blocks import Floats, Integers, as_floats
from headway.fusion.rotary_embedding import RotaryEmbedding


@dataclass(slots=True)
class _Sequence:
    """One request's tables: per pool, the block and the scales of each logical block."""

    may_fuse: bool
    tokens: int = 0
    tables: list[list[int]] = field(default_factory=list)
    scales: list[list[Floats]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FusionStep:
    """What one step of `BlockStore.fuse` did.

    Attributes:
        compared: blocks compared, summed over pools.
        fused: blocks that became shared, summed over pools.
        freed: blocks freed, summed over pools.
    """

    compared: int
    fused: int
    freed: int


class BlockStore:
    """Blocks of running requests in pools of one size.

    Args:
        layers: layers of the model.
        heads: KV heads of a layer.
        head_dim: width of a head.
        block_tokens: tokens in a block.
        blocks: physical blocks in each pool.
        bound: least cosine of a fused block with its representative, in (0, 1], in each component.
        granularity: what is decided together.
        rotary: turns keys back, so that blocks at different places can be fused.

    Raises:
        ValueError: a size is below 1, or the bound is outside (0, 1].
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        head_dim: int,
        *,
        block_tokens: int,
        blocks: int,
        bound: float,
        granularity: Granularity = PER_LAYER,
        rotary: RotaryEmbedding | None = None,
    ) -> None:
        check_bound(bound)
        sizes = {"layers": layers, "heads": heads, "head_dim": head_dim, "block_tokens": block_tokens, "blocks": blocks}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}: at least 1 is needed")
        self.layers, self.heads, self.head_dim, self.block_tokens = layers, heads, head_dim, block_tokens
        self.bound, self.rotary = bound, rotary
        fused = granularity.parts(layers, heads)
        self.pools = [
            BlockPool(part, blocks, block_tokens, head_dim)
            for part in [*fused, *granularity.exact_parts(layers, heads)]
        ]
        self._fusing_pools = range(len(fused))
        self._sequences: dict[Hashable, _Sequence] = {}
        self._compared = [np.zeros(blocks, dtype=bool) for _ in self.pools]

    @property
    def free_blocks(self) -> int:
        """Blocks that a request can still get: the minimum over pools."""
        return min(pool.free_blocks for pool in self.pools)

    def tables(self, request: Hashable) -> list[list[int]]:
        """A copy of the request's tables, one per pool."""
        return [list(table) for table in self._of(request).tables]

    def requests(self) -> list[Hashable]:
        """All requests, in the order in which they came."""
        return list(self._sequences)

    def add(self, request: Hashable, keys: Any, values: Any, *, may_fuse: bool = True) -> None:
        """Store a prompt's KV exactly; all of it or nothing.

        Args:
            request: a new name.
            keys: (layers, tokens, KV heads, head size), turned by their positions.
            values: the same shape.
            may_fuse: False keeps the request's blocks exact for ever.

        Raises:
            ValueError: the name is taken, the shapes do not fit, or a number is not finite.
            OutOfBlocks: too few blocks are free.
        """
        if request in self._sequences:
            raise ValueError(f"request {request!r} is already stored: release it first, or choose another name")
        k, v = as_floats("keys", keys), as_floats("values", values)
        if k.ndim != 4 or k.shape != v.shape or (k.shape[0], *k.shape[2:]) != (self.layers, self.heads, self.head_dim):
            raise ValueError(
                f"keys have shape {k.shape} and values {v.shape}: both need "
                f"({self.layers}, tokens, {self.heads}, {self.head_dim})"
            )
        needed = -(-k.shape[1] // self.block_tokens)
        if needed > self.free_blocks:
            raise OutOfBlocks(f"request {request!r} needs {needed} KV blocks and {self.free_blocks} are free")
        self._sequences[request] = self._empty(may_fuse)
        for token in range(0, k.shape[1], self.block_tokens):
            self._new_block(request)
            span = slice(token, min(token + self.block_tokens, k.shape[1]))
            self._write_tokens(request, token // self.block_tokens, 0, k[:, span], v[:, span])
        self._sequences[request].tokens = k.shape[1]

    def append(self, request: Hashable, key: Any, value: Any) -> None:
        """Store one decoded token, (layers, KV heads, head size) each.

        Raises:
            ValueError: the request is unknown, the shapes do not fit, or a number is not finite.
            OutOfBlocks: a new block is needed and none is free.
        """
        sequence = self._of(request)
        k, v = as_floats("key", key), as_floats("value", value)
        if k.shape != (self.layers, self.heads, self.head_dim) or k.shape != v.shape:
            raise ValueError(
                f"key has shape {k.shape} and value {v.shape}: both need ({self.layers}, {self.heads}, {self.head_dim})"
            )
        block, offset = divmod(sequence.tokens, self.block_tokens)
        if not offset:
            if not self.free_blocks:
                raise OutOfBlocks(f"request {request!r} needs a KV block and none is free")
            self._new_block(request)
        self._write_tokens(request, block, offset, k[:, None], v[:, None])
        sequence.tokens += 1

    def share_prefix(self, donor: Hashable, request: Hashable, blocks: int, *, may_fuse: bool = True) -> None:
        """Begin a request with a donor's first full blocks, as a prefix cache does: nothing is copied.

        Raises:
            ValueError: the name is taken, the donor has fewer full blocks, or one of them is fused and the request has
                to be exact.
        """
        if request in self._sequences:
            raise ValueError(f"request {request!r} is already stored: release it first, or choose another name")
        theirs = self._of(donor)
        if not 0 <= blocks <= theirs.tokens // self.block_tokens:
            raise ValueError(
                f"blocks is {blocks}: request {donor!r} has {theirs.tokens // self.block_tokens} full blocks to share"
            )
        held = zip(self.pools, theirs.tables, strict=True)
        if not may_fuse and any(pool.is_mean[table[:blocks]].any() for pool, table in held):
            raise ValueError(
                f"request {request!r} is to stay exact, and blocks of request {donor!r} are fused: "
                "add it with its own KV, or let it fuse"
            )
        ours = self._empty(may_fuse)
        ours.tokens = blocks * self.block_tokens
        for number, pool in enumerate(self.pools):
            ours.tables[number] = theirs.tables[number][:blocks]
            ours.scales[number] = theirs.scales[number][:blocks]
            for block in ours.tables[number]:
                pool.retain(block)
        self._sequences[request] = ours

    def publish(self, request: Hashable, block: int) -> None:
        """Say that a prefix cache promises the exact bytes of a full block from now on.

        Raises:
            ValueError: the block is not full, or is fused: its bytes are no longer those of its tokens.
        """
        sequence = self._of(request)
        if not 0 <= block < sequence.tokens // self.block_tokens:
            raise ValueError(f"block {block} of request {request!r} is not a full block: publish full blocks only")
        held = [(pool, table[block]) for pool, table in zip(self.pools, sequence.tables, strict=True)]
        if any(pool.is_mean[it] for pool, it in held):
            raise ValueError(
                f"block {block} of request {request!r} is fused: publish it before, or under a key of its own"
            )
        for pool, it in held:
            pool.is_hashed[it] = True

    def write(self, request: Hashable, block: int, keys: Any, values: Any) -> None:
        """Overwrite the tokens of one block, (layers, tokens of the block, KV heads, head size) each.

        What others share, and what a hash promises, is copied first.

        Raises:
            ValueError: the block is unknown, the shapes do not fit, or a number is not finite.
            OutOfBlocks: a copy is needed and no block is free.
        """
        sequence = self._of(request)
        if not 0 <= block < len(sequence.tables[0]):
            raise ValueError(
                f"request {request!r} has no block {block}: its blocks are 0 to {len(sequence.tables[0]) - 1}"
            )
        k, v = as_floats("keys", keys), as_floats("values", values)
        tokens = min(self.block_tokens, sequence.tokens - block * self.block_tokens)
        if k.shape != (self.layers, tokens, self.heads, self.head_dim) or k.shape != v.shape:
            raise ValueError(
                f"keys have shape {k.shape} and values {v.shape}: block {block} of request {request!r} needs "
                f"({self.layers}, {tokens}, {self.heads}, {self.head_dim})"
            )
        self._write_tokens(request, block, 0, k, v)

    def read(self, request: Hashable) -> tuple[Floats, Floats]:
        """Keys and values in full, (layers, tokens, KV heads, head size): copies."""
        sequence = self._of(request)
        shape = (self.layers, len(sequence.tables[0]), self.block_tokens, self.heads, self.head_dim)
        found = {half: np.empty(shape, np.float32) for half in Half}
        for number, pool in enumerate(self.pools):
            for block in range(shape[1]):
                for one, decoded in zip(pool.components, self._decoded(sequence, number, block), strict=True):
                    found[one.half][one.layer, block, :, one.first_head : one.end_head] = decoded
        flat = (self.layers, shape[1] * self.block_tokens, self.heads, self.head_dim)
        return (
            found[Half.KEYS].reshape(flat)[:, : sequence.tokens],
            found[Half.VALUES].reshape(flat)[:, : sequence.tokens],
        )

    def release(self, request: Hashable) -> None:
        """Give a request's blocks back: it ended, was cancelled or was preempted."""
        sequence = self._of(request)
        for pool, table in zip(self.pools, sequence.tables, strict=True):
            for block in table:
                pool.release(block)
        del self._sequences[request]

    def fuse(self, most_blocks: int = 256) -> FusionStep:
        """Compare blocks that became full with representatives and with each other, and share what is alike.

        Everything is decided before anything is changed, so an exception leaves all requests exact.

        Args:
            most_blocks: blocks compared in each pool in this step, oldest first; the rest waits for the next.

        Raises:
            ValueError: `most_blocks` is below 1.
        """
        if most_blocks < 1:
            raise ValueError(f"most_blocks is {most_blocks}: at least 1 is needed")
        compared = [self._waiting(number)[:most_blocks] for number in self._fusing_pools]
        decisions = [
            decide_fusion(self.pools[number], waiting, self.bound, self.block_tokens, self.rotary)
            for number, waiting in enumerate(compared)
        ]
        before = sum(pool.free_blocks for pool in self.pools)
        fused = 0
        for number, waiting in enumerate(compared):
            self._compared[number][waiting] = True
            fused += self._commit(number, decisions[number])
        freed = sum(pool.free_blocks for pool in self.pools) - before
        return FusionStep(sum(len(waiting) for waiting in compared), fused, freed)

    # Tables and writes.

    def _of(self, request: Hashable) -> _Sequence:
        if request not in self._sequences:
            raise ValueError(f"request {request!r} is not stored: add it first")
        return self._sequences[request]

    def _empty(self, may_fuse: bool) -> _Sequence:
        return _Sequence(may_fuse, 0, [[] for _ in self.pools], [[] for _ in self.pools])

    def _new_block(self, request: Hashable) -> None:
        sequence = self._sequences[request]
        for number, pool in enumerate(self.pools):
            block = pool.allocate(len(sequence.tables[number]))
            self._compared[number][block] = False
            for payload in pool.payload:
                payload[block] = 0
            sequence.tables[number].append(block)
            sequence.scales[number].append(np.ones(len(pool.components), np.float32))

    def _write_tokens(self, request: Hashable, block: int, offset: int, keys: Floats, values: Floats) -> None:
        sequence = self._sequences[request]
        shared = [
            number for number, pool in enumerate(self.pools) if not pool.may_write(sequence.tables[number][block])
        ]
        short = [number for number in shared if not self.pools[number].free_blocks]
        if short:
            raise OutOfBlocks(f"block {block} of request {request!r} is shared, and no KV block is free for a copy")
        for number in shared:
            self._copy(sequence, number, block)
        for number, pool in enumerate(self.pools):
            physical = sequence.tables[number][block]
            self._compared[number][physical] = False
            for one, payload in zip(pool.components, pool.payload, strict=True):
                array = keys if one.half is Half.KEYS else values
                tokens = array[one.layer, :, one.first_head : one.end_head]
                payload[physical, offset : offset + len(tokens)] = tokens

    def _copy(self, sequence: _Sequence, number: int, block: int) -> None:
        pool = self.pools[number]
        decoded = self._decoded(sequence, number, block)
        copy = pool.allocate(block)
        for payload, array in zip(pool.payload, decoded, strict=True):
            payload[copy] = array
        pool.release(sequence.tables[number][block])
        sequence.tables[number][block] = copy
        sequence.scales[number][block] = np.ones(len(pool.components), np.float32)

    def _decoded(self, sequence: _Sequence, number: int, block: int) -> list[Floats]:
        """A logical block's components in full, keys turned by their positions: copies."""
        pool, physical = self.pools[number], sequence.tables[number][block]
        scales = sequence.scales[number][block]
        arrays = [payload[physical] * scale for payload, scale in zip(pool.payload, scales, strict=True)]
        if self.rotary is None or not pool.is_mean[physical]:
            return arrays
        return turned_keys(pool, arrays, block * self.block_tokens, self.rotary)

    # Fusion.

    def _waiting(self, number: int) -> Integers:
        """Full, exact blocks whose requests all allow fusion: those not compared yet first, then the others."""
        pool = self.pools[number]
        full = np.zeros(len(pool.counts), dtype=bool)
        barred = np.zeros(len(pool.counts), dtype=bool)
        order: dict[int, None] = {}
        for sequence in self._sequences.values():
            table = sequence.tables[number][: sequence.tokens // self.block_tokens]
            full[table] = True
            if not sequence.may_fuse:
                barred[table] = True
            order.update(dict.fromkeys(table))
        found = np.array([block for block in order if full[block] and not barred[block]], np.int64)
        found = found[~pool.is_mean[found]] if found.size else found
        new = ~self._compared[number][found]
        return np.concatenate([found[new], found[~new]]) if new.any() else found[:0]

    def _commit(self, number: int, decisions: list[FusionDecision]) -> int:
        """Point all entries of fused blocks to their representatives; returns the blocks fused."""
        pool = self.pools[number]
        moved: dict[int, tuple[int, Floats]] = {}
        for decision in decisions:
            target = decision.kept if decision.kept is not None else self._written(pool, decision)
            if target is not None:
                pairs = zip(decision.members.tolist(), decision.scales, strict=True)
                moved.update({block: (target, scales) for block, scales in pairs})
        for sequence in self._sequences.values():
            table = sequence.tables[number]
            for index, block in enumerate(table):
                if block in moved:
                    table[index], sequence.scales[number][index] = moved[block]
                    pool.retain(table[index])
                    pool.release(block)
        return len(moved)

    @staticmethod
    def _written(pool: BlockPool, decision: FusionDecision) -> int | None:
        """The block that now holds a new representative: a member that is free to be written, else a free one."""
        own = [block for block in decision.members.tolist() if pool.may_write(block)]
        if not own and not pool.free_blocks:
            return None
        target = own[0] if own else pool.allocate(int(pool.places[decision.members[0]]))
        if not own:
            pool.counts[target] = 0  # entries are counted as they are pointed to it
        for payload, mean in zip(pool.payload, decision.means, strict=True):
            payload[target] = mean.reshape(payload.shape[1:])
        pool.is_mean[target] = True
        return int(target)
