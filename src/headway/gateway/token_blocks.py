"""Token blocks: keys for the KV blocks of a prompt, computed from its token ids alone, for prompts and engines alike.

Laws: equal tokens behind equal blocks have equal keys, whatever engine holds them and however it hashes. A key stands
for its block and all blocks before it, so the first key that an engine lacks ends the prefix that it holds. Keys are of
one process: 64 bits of Python's hashes, whose seed is random, so that no client can choose two prompts of one key.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import TypeAlias

BlockKey: TypeAlias = int
Extra: TypeAlias = "tuple[object, ...] | None"
"""What makes a block another one beside its tokens: the adapter, images in it, and the salt in the first block."""

ROOT: BlockKey = 0
"""The key before the first block of any prompt."""
TOKEN_BYTES = array("I").itemsize
_BLOCKS_A_STEP = 2_048  # about a millisecond


class PromptPrefixes(tuple[int, ...]):
    """The hashes of a prompt's prefixes (`prompt_prefixes.py`), and the keys of its KV blocks if its tokens are known.

    Attributes:
        keys: block size in tokens -> keys of all blocks that an engine could find in its cache. The last token of a
            prompt is always computed, so its block is not among them.
    """

    keys: dict[int, Sequence[BlockKey]]

    def __init__(self, hashes: Sequence[int]) -> None:
        self.keys = {}


def packed(tokens: Sequence[int]) -> bytes:
    """Token ids, four bytes each. Raises OverflowError or TypeError if one of them is no id."""
    return array("I", tokens).tobytes()


def block_key(parent: BlockKey, tokens: bytes, extra: Extra) -> BlockKey:
    """The key of a block behind another one; `tokens` are packed."""
    return hash((parent, tokens, extra)) or 1


def extras(adapter: str, salt: str) -> tuple[Extra, Extra]:
    """Those of the first block of a prompt, and of its other blocks, in the order in which vLLM names them."""
    others = (adapter,) if adapter else None
    return ((*(others or ()), salt) if salt else others), others


def keys_in_steps(tokens: bytes, block_tokens: int, adapter: str = "", salt: str = "") -> Iterator[array[int]]:
    """Keys of the blocks of a prompt that may be found in a cache, a bounded number at a step; the last ones are all.

    Args:
        tokens: packed.
        block_tokens: tokens of a block.
        adapter: name of the LoRA adapter that the prompt is for.
        salt: its `cache_salt`.
    """
    keys, key, size = array("q"), ROOT, block_tokens * TOKEN_BYTES
    extra, others = extras(adapter, salt)
    for number in range(max(0, len(tokens) // TOKEN_BYTES - 1) // block_tokens):
        key = block_key(key, tokens[number * size : (number + 1) * size], extra)
        keys.append(key)
        extra = others
        if len(keys) % _BLOCKS_A_STEP == 0:
            yield keys
    yield keys
