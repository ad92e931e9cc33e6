"""Full KV blocks of several requests, as arrays: what an encoder reads.

Numpy arrays, and whatever converts to them: torch tensors on the CPU do, without an import of torch here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

SHAPE = "(layers, blocks, block tokens, KV heads, head size)"


@dataclass(frozen=True, slots=True)
class KvBlocks:
    """Full blocks of every layer. Build it with `kv_blocks` or `blocks_of_prompts`, which check.

    Attributes:
        keys: (layers, blocks, block tokens, KV heads, head size).
        values: the same shape.
        requests: (blocks,), the number of the request, or of the prompt chunk, that each block belongs to.
        places: (blocks,), the block's index in its prompt; its first token has position places × block tokens.
    """

    keys: Floats
    values: Floats
    requests: Integers
    places: Integers

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return int(self.keys.shape[0])

    @property
    def count(self) -> int:
        """Blocks in each layer."""
        return int(self.keys.shape[1])

    @property
    def block_tokens(self) -> int:
        """Tokens in a block."""
        return int(self.keys.shape[2])

    @property
    def heads(self) -> int:
        """KV heads of a layer."""
        return int(self.keys.shape[3])

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return int(self.keys.shape[4])

    def take(self, chosen: Integers | NDArray[np.bool_]) -> KvBlocks:
        """Some of the blocks, in the order given."""
        return KvBlocks(self.keys[:, chosen], self.values[:, chosen], self.requests[chosen], self.places[chosen])


def as_floats(name: str, array: Any) -> Floats:
    """Convert an array or a CPU tensor to float32.

    Raises:
        ValueError: it does not convert, or holds a number that is not finite.
    """
    try:
        floats: Floats = np.asarray(array, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} does not convert to float32 ({error}): pass a numpy array, or tensor.detach().float().cpu()"
        ) from error
    if not np.isfinite(floats).all():
        raise ValueError(f"{name} holds NaN or infinity: leave such blocks out")
    return floats


def kv_blocks(keys: Any, values: Any, requests: Any, places: Any) -> KvBlocks:
    """Check and convert blocks; the shapes are those of `KvBlocks`.

    Raises:
        ValueError: shapes do not agree, a number is not finite, or a place is negative.
    """
    keys, values = as_floats("keys", keys), as_floats("values", values)
    if keys.ndim != 5 or 0 in (keys.shape[0], *keys.shape[2:]):
        raise ValueError(f"keys have shape {keys.shape}: {SHAPE} is needed, none of them 0 but the blocks")
    if values.shape != keys.shape:
        raise ValueError(f"values have shape {values.shape} and keys {keys.shape}: both need the same")
    owners = _integers("requests", requests, keys.shape[1])
    indices = _integers("places", places, keys.shape[1])
    if indices.size and indices.min() < 0:
        raise ValueError(f"places has {indices.min()}: a block's index in its prompt is 0 or more")
    return KvBlocks(keys, values, owners, indices)


def blocks_of_prompts(keys: Sequence[Any], values: Sequence[Any], block_tokens: int) -> KvBlocks:
    """Cut the KV of prompts, of any lengths, into full blocks; what is left of a prompt stays out.

    Args:
        keys: one array per prompt, (layers, tokens, KV heads, head size).
        values: the same shapes.
        block_tokens: tokens in a block.

    Raises:
        ValueError: shapes do not agree, or a number is not finite.
    """
    if block_tokens < 1:
        raise ValueError(f"block_tokens is {block_tokens}: at least 1 is needed")
    if not keys or len(keys) != len(values):
        raise ValueError(f"{len(keys)} arrays of keys and {len(values)} of values: one of each per prompt is needed")
    parts_of_keys: list[Floats] = []
    parts_of_values: list[Floats] = []
    requests, places = [], []
    for request, (its_keys, its_values) in enumerate(zip(keys, values, strict=True)):
        k, v = as_floats(f"keys of prompt {request}", its_keys), as_floats(f"values of prompt {request}", its_values)
        if k.ndim != 4 or k.shape != v.shape:
            raise ValueError(
                f"prompt {request} has keys of shape {k.shape} and values of {v.shape}: "
                "both need (layers, tokens, KV heads, head size)"
            )
        if parts_of_keys and (k.shape[0], *k.shape[2:]) != (parts_of_keys[0].shape[0], *parts_of_keys[0].shape[3:]):
            raise ValueError(f"prompt {request} has shape {k.shape}, of another model than prompt 0")
        full = k.shape[1] // block_tokens
        parts_of_keys.append(_cut(k, full, block_tokens))
        parts_of_values.append(_cut(v, full, block_tokens))
        requests.append(np.full(full, request))
        places.append(np.arange(full))
    return kv_blocks(
        np.concatenate(parts_of_keys, axis=1),
        np.concatenate(parts_of_values, axis=1),
        np.concatenate(requests),
        np.concatenate(places),
    )


def flat(array: Floats) -> Floats:
    """(blocks, …) as (blocks, numbers); no blocks are no rows."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _cut(tokens: Floats, full: int, block_tokens: int) -> Floats:
    """(layers, tokens, heads, width) to (layers, full, block tokens, heads, width)."""
    layers, _, heads, width = tokens.shape
    return tokens[:, : full * block_tokens].reshape(layers, full, block_tokens, heads, width)


def _integers(name: str, array: Any, blocks: int) -> Integers:
    numbers = np.asarray(array)
    if numbers.shape != (blocks,) or (numbers.size and not np.issubdtype(numbers.dtype, np.integer)):
        raise ValueError(
            f"{name} has shape {numbers.shape} and type {numbers.dtype}: one whole number per block is needed"
        )
    return numbers.astype(np.int64)
