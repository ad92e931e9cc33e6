"""The encoded form of KV blocks: representatives, scales and tables, and how to read blocks out of it again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from headway.fusion.kv_blocks import Floats, Integers, KvBlocks
from headway.fusion.rotary_embedding import RotaryEmbedding

TABLE_ENTRY_BYTES = 4  # an int32 block id, as engines keep them
SCALE_BYTES = 4  # a float32


class Half(StrEnum):
    """The two halves of a KV cache."""

    KEYS = "keys"
    VALUES = "values"


@dataclass(frozen=True, slots=True)
class Component:
    """The keys or the values of a span of heads in one layer; what a scale belongs to.

    Attributes:
        half: keys or values.
        layer: index of the layer.
        first_head: first KV head.
        end_head: one past the last KV head.
    """

    half: Half
    layer: int
    first_head: int
    end_head: int

    def of(self, blocks: KvBlocks) -> Floats:
        """(blocks, block tokens, heads of the span, head size): a view."""
        array = blocks.keys if self.half is Half.KEYS else blocks.values
        return array[self.layer, :, :, self.first_head : self.end_head]


@dataclass(frozen=True, slots=True)
class EncodedComponent:
    """What is kept of a component. A block's decoded form is its representative × its scale.

    Attributes:
        component: which.
        representatives: (representatives, block tokens, heads of the span, head size). Of a mean the direction, of
            length 1; of an exact block the block as it was.
        scales: (blocks,), 1 for an exact block.
    """

    component: Component
    representatives: Floats
    scales: Floats

    def decoded(self, table: Integers) -> Floats:
        """(blocks, block tokens, heads of the span, head size), a copy: writing to it alters nothing shared."""
        return self.representatives[table] * self.scales[:, None, None, None]


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """Components that are fused together: one table, one decision for each block.

    Attributes:
        table: (blocks,), the representative of each block.
        fused: (representatives,), whether it is the mean of several blocks; else it is one block as it was.
        components: in the order of the granularity's part.
    """

    table: Integers
    fused: NDArray[np.bool_]
    components: tuple[EncodedComponent, ...]

    @property
    def counts(self) -> Integers:
        """(representatives,), blocks that each stands for."""
        return np.bincount(self.table, minlength=len(self.fused)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class EncodedBytes:
    """Bytes of an encoded cache, with what is left out of a compression ratio otherwise.

    Attributes:
        original: keys and values of all full blocks in all layers.
        representatives: what is kept of them, exact layers included.
        scales: of the blocks that are not exact.
        tables: one entry per block and part, less the one table that an engine has anyway.
    """

    original: int
    representatives: int
    scales: int
    tables: int

    @property
    def stored_share(self) -> float:
        """Bytes kept ÷ bytes before, everything counted; 1 for no blocks."""
        return (self.representatives + self.scales + self.tables) / self.original if self.original else 1.0


@dataclass(frozen=True, slots=True)
class Encoding:
    """Encoded blocks of several requests.

    Attributes:
        parts: together they cover each layer, head and half once.
        requests: (blocks,), as in `KvBlocks`.
        places: (blocks,), as in `KvBlocks`.
        layers: layers of the model.
        block_tokens: tokens in a block.
        heads: KV heads of a layer.
        head_dim: width of a head.
        rotary: given if representatives of keys are turned back to the first position of their block.
    """

    parts: tuple[EncodedPart, ...]
    requests: Integers
    places: Integers
    layers: int
    block_tokens: int
    heads: int
    head_dim: int
    rotary: RotaryEmbedding | None = None

    def decode(self) -> KvBlocks:
        """All blocks in full, as fresh arrays."""
        shape = (self.layers, len(self.requests), self.block_tokens, self.heads, self.head_dim)
        blocks = KvBlocks(
            np.empty(shape, np.float32), np.empty(shape, np.float32), self.requests.copy(), self.places.copy()
        )
        for part in self.parts:
            for kept in part.components:
                kept.component.of(blocks)[...] = kept.decoded(part.table)
        if self.rotary is None:
            return blocks
        starts = (self.places * self.block_tokens)[None, :, None, None]
        return KvBlocks(self.rotary.turned(blocks.keys, starts), blocks.values, blocks.requests, blocks.places)

    def sizes(self, number_bytes: int = 2) -> EncodedBytes:
        """Bytes, with `number_bytes` for each number of a block."""
        blocks = len(self.requests)
        token_numbers = self.heads * self.head_dim * self.block_tokens
        kept = sum(one.representatives.size for part in self.parts for one in part.components)
        scales = sum(int(part.fused[part.table].sum()) * len(part.components) for part in self.parts)
        tables = max(len([part for part in self.parts if part.fused.any()]) - 1, 0)
        return EncodedBytes(
            original=2 * self.layers * blocks * token_numbers * number_bytes,
            representatives=kept * number_bytes,
            scales=scales * SCALE_BYTES,
            tables=tables * blocks * TABLE_ENTRY_BYTES,
        )

    def fused_share(self) -> float:
        """Share of the full blocks' KV memory that is freed, before scales and tables: 1 − representatives ÷ original.

        It is what the simulator takes as the measured share of a workload.
        """
        sizes = self.sizes()
        return 1.0 - sizes.representatives / sizes.original if sizes.original else 0.0

    def layer_shares(self) -> tuple[float, ...]:
        """`fused_share` of each layer."""
        blocks = len(self.requests)
        kept = [0] * self.layers
        for part in self.parts:
            for one in part.components:
                kept[one.component.layer] += one.representatives.size
        numbers = 2 * blocks * self.block_tokens * self.heads * self.head_dim
        return tuple(1.0 - size / numbers if numbers else 0.0 for size in kept)

    def free_blocks_with_one_table(self) -> int:
        """Blocks that are free in an engine with one block id for all layers.

        There a block is freed only if it is fused with the same others in every part, so this counts the blocks less
        the distinct rows of all tables side by side.
        """
        if not self.parts or not len(self.requests):
            return 0
        rows = np.stack([part.table for part in self.parts], axis=1)
        return len(rows) - len(np.unique(rows, axis=0))


def exact_part(components: tuple[Component, ...], blocks: KvBlocks) -> EncodedPart:
    """Components kept as they are."""
    scales = np.ones(blocks.count, np.float32)
    return EncodedPart(
        np.arange(blocks.count),
        np.zeros(blocks.count, dtype=bool),
        tuple(EncodedComponent(one, one.of(blocks).copy(), scales) for one in components),
    )
