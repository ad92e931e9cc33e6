"""The KV blocks that one replica's GPU holds, as its own events say, and which prefixes of prompts they are.

Laws: a block counts from the event that stores it to the event that removes it; one that several events stored counts
until as many removed it, since an engine may hold a block twice. A block whose predecessor is not known is not taken:
no prompt could be looked up through it. So what is said to be held is held; `is_whole` says if there may be more.

A prompt whose token ids are known is looked up by them, and the answer is exact. Of any other prompt the index learns
which blocks it became: the events of a request carry its session id, and its usage says how many tokens it had.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec import Raw

from headway.gateway.replicas.kv_block_map import KvBlockMap
from headway.gateway.replicas.kv_event_messages import (
    BlockName,
    BlockRemoved,
    BlockStored,
    KvEvent,
    MalformedEvents,
    names_in_pieces,
    tokens_in_pieces,
)
from headway.gateway.token_blocks import ROOT, TOKEN_BYTES, BlockKey, Extra, block_key, packed

PREFIXES_MAX = 65_536
"""Of prompts without token ids, about 16 MB; the least recently confirmed go first."""
_SESSIONS_MAX = 4_096  # requests in flight, or whose last event is still to come
_PATH_BLOCKS_MAX = 16_384  # of one prompt, about a millisecond; a longer one is not learned
_BLOCKS_A_STEP = 256  # about 0.3 ms
_FULL_ATTENTION = (None, "full_attention", "mla_attention", "sink_full_attention")
_GPU = (None, "GPU")


class Answered(NamedTuple):
    """A prompt that was answered whole.

    Attributes:
        prefixes: hashes of ever longer parts of it.
        tokens: of each of them.
        prompt_tokens: of all.
    """

    prefixes: Sequence[int]
    tokens: Sequence[int]
    prompt_tokens: int


class KvBlockIndex:
    """Those of one replica.

    Attributes:
        block_tokens: of each block; 0 until an event said so.
        is_whole: all blocks of the cache are known; False after a gap, and until the cache was seen empty.
        has_gap: batches are missing and asked for: what it says may be wrong for a moment.
        as_of: when the latest events came, seconds on the gateway's clock; `-math.inf` before.
        epoch: grows whenever the index is emptied.
        left_out: blocks not taken because their predecessor is not known, or the index is full.
        ignored: events about caches that are not looked at: of other attention groups, of a CPU or a disk.
    """

    def __init__(self, blocks_max: int) -> None:
        self._blocks_max = blocks_max
        self._keys: KvBlockMap[BlockName] = KvBlockMap()
        self._parents: KvBlockMap[BlockKey] = KvBlockMap()  # of blocks that are held
        self._copies: dict[BlockName, int] = {}  # beyond the first
        self._group: int | None = None
        self._learned: OrderedDict[int, tuple[BlockKey, int]] = OrderedDict()  # a prefix's hash -> its last block
        self._last: OrderedDict[str, BlockKey] = OrderedDict()  # session id -> the last block it stored
        self._answered: OrderedDict[str, Answered] = OrderedDict()  # whose last event is still to come
        self.block_tokens = 0
        self.is_whole = False
        self.has_gap = False
        self.as_of = -math.inf
        self.epoch = 0
        self.left_out = 0
        self.ignored = 0

    def __len__(self) -> int:
        """Different blocks that are held."""
        return len(self._keys)

    # Lookups

    def tokens_of_keys(self, keys: Sequence[BlockKey]) -> int:
        """Tokens of the longest beginning of these blocks that is held."""
        return self.block_tokens * self._parents.leading(keys)

    def tokens_of_prefix(self, prefix: int) -> int | None:
        """Tokens that it covers in whole blocks, 0 if they are no longer held; None where it was not learned."""
        learned = self._learned.get(prefix)
        if learned is None:
            return None
        key, tokens = learned
        return tokens if key in self._parents else 0

    # Events

    def clear(self, *, is_whole: bool) -> None:
        """Forget all blocks; `is_whole`: because the cache is empty, and not because it is unknown."""
        self._keys.clear()
        self._parents.clear()
        self._copies.clear()
        self._last.clear()
        self._group = None
        self.is_whole = is_whole
        self.epoch += 1

    def take(self, event: KvEvent, now: float) -> Iterator[None]:
        """Take in one event, a bounded number of blocks at a step. Raises MalformedEvents, perhaps half way."""
        self.as_of = now
        self.free_some()
        if isinstance(event, BlockStored):
            if event.medium in _GPU and event.kv_cache_spec_kind in _FULL_ATTENTION and self._is_of_group(event):
                yield from self._store(event)
            else:
                self.ignored += 1
        elif isinstance(event, BlockRemoved):
            if event.medium in _GPU and event.group_idx == self._group:
                yield from self._remove(event)
            else:
                self.ignored += 1
        else:
            self.clear(is_whole=True)

    def free_some(self) -> None:
        """Free a part of the memory of blocks that were forgotten."""
        self._keys.free_some()
        self._parents.free_some()

    def _is_of_group(self, event: BlockStored) -> bool:
        """Whether it is about the attention group that is looked at: the first one of full attention."""
        if not self._keys:
            if not 0 < event.block_size <= 1 << 20:
                raise MalformedEvents(f"a block of {event.block_size} tokens")
            self._group, self.block_tokens = event.group_idx, event.block_size
        return event.group_idx == self._group and event.block_size == self.block_tokens

    def _store(self, event: BlockStored) -> Iterator[None]:
        parent = ROOT if event.parent_block_hash is None else self._keys.get(event.parent_block_hash)
        size, epoch = self.block_tokens * TOKEN_BYTES, self.epoch
        names = (name for piece in names_in_pieces(event.block_hashes) for name in piece)
        tokens = _cut(event.token_ids, size)
        given = event.extra_keys
        extra_of_all: Extra = (event.lora_name,) if given is None and event.lora_name else None
        for number, name in enumerate(names):
            block = next(tokens, None)
            if block is None:
                raise MalformedEvents("an event stores blocks without all of their tokens")
            if parent is not None:
                extra = _extra(given[number]) if given is not None and number < len(given) else extra_of_all
                parent = self._add(name, parent, block, extra)
            if parent is None:
                self.left_out += 1
                self.is_whole = False
            if number % _BLOCKS_A_STEP == _BLOCKS_A_STEP - 1:
                yield
                if self.epoch != epoch:
                    return
        if parent is not None and event.session_id:
            self._stored_last(event.session_id, parent)

    def _add(self, name: BlockName, parent: BlockKey, tokens: bytes, extra: Extra) -> BlockKey | None:
        known = self._keys.get(name)
        if known is not None:
            self._copies[name] = self._copies.get(name, 0) + 1
            return known
        if len(self._keys) >= self._blocks_max:
            return None
        key = block_key(parent, tokens, extra)
        self._keys.add(name, key)
        if key not in self._parents:
            self._parents.add(key, parent)
        return key

    def _remove(self, event: BlockRemoved) -> Iterator[None]:
        epoch, number = self.epoch, 0
        for names in names_in_pieces(event.block_hashes):
            for name in names:
                number += 1
                copies = self._copies.get(name)
                if copies is None:
                    key = self._keys.pop(name)
                    if key is not None:
                        self._parents.pop(key)
                elif copies == 1:
                    del self._copies[name]
                else:
                    self._copies[name] = copies - 1
                if number % _BLOCKS_A_STEP == 0:
                    yield
                    if self.epoch != epoch:
                        return

    # Prompts without token ids

    def answered(self, session_id: str, prompt: Answered) -> None:
        """The one request of this session id was answered; learn its blocks, at once or when its last event comes."""
        if not self._learn(session_id, prompt):
            self._answered[session_id] = prompt
            if len(self._answered) > _SESSIONS_MAX:
                self._answered.popitem(last=False)

    def _stored_last(self, session_id: str, key: BlockKey) -> None:
        self._last[session_id] = key
        self._last.move_to_end(session_id)
        if len(self._last) > _SESSIONS_MAX:
            self._last.popitem(last=False)
        prompt = self._answered.get(session_id)
        if prompt is not None and self._learn(session_id, prompt):
            del self._answered[session_id]

    def _learn(self, session_id: str, prompt: Answered) -> bool:
        """Whether all events of the prompt were there."""
        size = self.block_tokens
        path: list[BlockKey] = []
        blocks = prompt.prompt_tokens // size if size else 0
        key = self._last.get(session_id, ROOT)
        while key != ROOT and len(path) <= _PATH_BLOCKS_MAX:
            path.append(key)
            parent = self._parents.get(key)
            if parent is None:  # evicted meanwhile
                return False
            key = parent
        if key != ROOT or len(path) < blocks or not path:
            return False
        del self._last[session_id]
        for prefix, tokens in zip(reversed(prompt.prefixes), reversed(prompt.tokens), strict=True):
            whole = min(tokens, prompt.prompt_tokens) // size
            if whole:
                self._learned[prefix] = path[-whole], whole * size
                self._learned.move_to_end(prefix)
        while len(self._learned) > PREFIXES_MAX:
            self._learned.popitem(last=False)
        return True


def _cut(written: Raw, size: int) -> Iterator[bytes]:
    """Token ids of one block after the other, packed; what is left at the end is no block."""
    left = b""
    for piece in tokens_in_pieces(written):
        try:
            tokens = left + packed(piece)
        except (OverflowError, TypeError):
            raise MalformedEvents("an event has token ids that are none") from None
        end = len(tokens) - len(tokens) % size
        for begin in range(0, end, size):
            yield tokens[begin : begin + size]
        left = tokens[end:]


def _extra(value: object) -> Extra:
    """As hashable values: None for nothing."""
    if not value:
        return None
    return tuple(map(_hashable, value)) if isinstance(value, list) else (_hashable(value),)


def _hashable(value: object) -> object:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return value if value is None or isinstance(value, str | int | float | bytes) else repr(value)
