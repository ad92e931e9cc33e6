"""Messages of vLLM's KV events: frames of ZeroMQ into batches, and batches into events, whatever release wrote them.

A batch is an array; its events are maps with a `type` (vLLM 0.25 and later) or arrays that begin with it (before).
Sources: `vllm/distributed/kv_events.py` of 0.20, 0.25, 0.28 and 0.32. SGLang writes the older form.

Law: whatever the bytes are, a reader raises `MalformedEvents` or gives events; long lists are read in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias, cast

import msgspec

END_OF_REPLAY = 2**64 - 1
"""The sequence number that ends a replay: -1."""
_PIECE = 4_096  # elements of a long list that are read at once: about 0.3 ms
_SHORT_BYTES = 16_384  # a list that is read at once
BlockName: TypeAlias = int | bytes
"""An engine's own hash of a block: the low 64 bits, or all bytes (`VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0`)."""


class MalformedEvents(ValueError):
    """Bytes that are no KV events."""


class BlockStored(msgspec.Struct, tag="BlockStored", tag_field="type", gc=False):
    """Consecutive blocks of one sequence are in the cache from now on."""

    block_hashes: msgspec.Raw
    parent_block_hash: BlockName | None
    token_ids: msgspec.Raw
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None


class BlockRemoved(msgspec.Struct, tag="BlockRemoved", tag_field="type", gc=False):
    """Blocks were evicted; the pool of a GPU sends one event for each."""

    block_hashes: msgspec.Raw
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag="AllBlocksCleared", tag_field="type", gc=False):
    """The cache is empty."""


class _BlockStoredArray(BlockStored, tag="BlockStored", array_like=True, gc=False):
    """As arrays hold it."""


class _BlockRemovedArray(BlockRemoved, tag="BlockRemoved", array_like=True, gc=False):
    """As arrays hold it."""


class _AllBlocksClearedArray(AllBlocksCleared, tag="AllBlocksCleared", array_like=True, gc=False):
    """As arrays hold it."""


KvEvent: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(NamedTuple):
    """The events of one step of an engine, not read yet, in the order in which they happened."""

    written_at: float  # seconds since 1970, on the engine's clock
    events: Sequence[msgspec.Raw]


class Message(NamedTuple):
    """One message of the publisher, or one reply to a replay request."""

    sequence: int
    payload: bytes


_LIST = msgspec.msgpack.Decoder(list[msgspec.Raw])
_SECONDS = msgspec.msgpack.Decoder(float)
_MAP = msgspec.msgpack.Decoder(BlockStored | BlockRemoved | AllBlocksCleared)
_ARRAY = msgspec.msgpack.Decoder(_BlockStoredArray | _BlockRemovedArray | _AllBlocksClearedArray)
_NAME = msgspec.msgpack.Decoder(str)
_ARRAY_MARKS = (*range(0x90, 0xA0), 0xDC, 0xDD)
_KNOWN = ("BlockStored", "BlockRemoved", "AllBlocksCleared")


class _Tagged(msgspec.Struct):
    type: str


_TAG = msgspec.msgpack.Decoder(_Tagged)


def read_message(frames: Sequence[bytes]) -> Message:
    """The last two frames: sequence number and payload; releases differ in what stands before them."""
    if len(frames) < 2 or len(frames[-2]) != 8:
        raise MalformedEvents("a message lacks its sequence number of 8 bytes")
    return Message(int.from_bytes(frames[-2], "big"), frames[-1])


def read_batch(payload: bytes) -> EventBatch:
    """A batch, whose events are read one by one by `read_event`."""
    try:
        parts = _LIST.decode(payload)
        if len(parts) < 2:
            raise MalformedEvents("a batch has fewer than two parts")
        return EventBatch(_SECONDS.decode(parts[0]), _LIST.decode(parts[1]))
    except msgspec.DecodeError as error:
        raise MalformedEvents(f"a batch cannot be read: {error}") from None


def read_event(written: msgspec.Raw) -> KvEvent | None:
    """One event; None for a kind that is not known here."""
    try:
        is_array = memoryview(written)[0] in _ARRAY_MARKS
        if _kind(written, is_array=is_array) not in _KNOWN:
            return None
        return cast(KvEvent, _ARRAY.decode(written) if is_array else _MAP.decode(written))
    except (msgspec.DecodeError, RecursionError, IndexError, UnicodeDecodeError) as error:
        raise MalformedEvents(f"an event cannot be read: {error}") from None


def _kind(written: msgspec.Raw, *, is_array: bool) -> str:
    return _NAME.decode(_LIST.decode(written)[0]) if is_array else _TAG.decode(written).type


def tokens_in_pieces(written: msgspec.Raw) -> Iterator[list[int]]:
    """A list of token ids, a bounded number at a step."""
    return cast("Iterator[list[int]]", _pieces(written, _INTS.decode))


def names_in_pieces(written: msgspec.Raw) -> Iterator[list[BlockName]]:
    """A list of an engine's hashes of blocks, a bounded number at a step."""
    return cast("Iterator[list[BlockName]]", _pieces(written, _NAMES.decode))


_INTS = msgspec.msgpack.Decoder(list[int])
_NAMES = msgspec.msgpack.Decoder(list[BlockName])


def _sizes() -> Iterator[tuple[int, int]]:
    """First byte of a whole number, or of up to 255 bytes -> bytes that it takes; of bytes without their content."""
    yield from zip(range(0x80), repeat(1), strict=False)
    yield from zip(range(0xE0, 0x100), repeat(1), strict=False)
    yield from zip(range(0xCC, 0xD4), (2, 3, 5, 9) * 2, strict=True)
    yield 0xC4, 2


_SIZES = dict(_sizes())


def _pieces(written: msgspec.Raw, decode: Callable[[bytes], list[Any]]) -> Iterator[list[Any]]:
    data = bytes(written)
    try:
        if len(data) <= _SHORT_BYTES:
            yield decode(data)
            return
        width = {0xDC: 2, 0xDD: 4}.get(data[0])
        if width is None:
            raise MalformedEvents("what should be a list is none")
        left, at = int.from_bytes(data[1 : 1 + width], "big"), 1 + width
        while left:
            count, begin = min(left, _PIECE), at
            for _ in range(count):
                first = data[at]
                at += _SIZES[first] + (data[at + 1] if first == 0xC4 else 0)
            yield decode(b"\xdc" + count.to_bytes(2, "big") + data[begin:at])
            left -= count
    except (msgspec.DecodeError, IndexError, KeyError) as error:
        raise MalformedEvents(f"a list of an event cannot be read: {error}") from None
