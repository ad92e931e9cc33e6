"""Messages of KV events: both forms are read, in pieces where they are long, and anything else is malformed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.replicas.kv_event_messages import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    MalformedEvents,
    names_in_pieces,
    read_batch,
    read_event,
    read_message,
    tokens_in_pieces,
)

encode = msgspec.msgpack.encode


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(encode(value))


def test_the_event_that_vllm_0_32_sent_is_read() -> None:
    """As it was seen, with fewer tokens."""
    event = {
        "type": "BlockStored", "block_hashes": [4365206232166607859, 2**64 - 1], "parent_block_hash": None,
        "token_ids": [504, 2365, 6354, 7], "block_size": 2, "lora_id": None, "medium": "GPU", "lora_name": None,
        "extra_keys": [None, None], "group_idx": 0, "kv_cache_spec_kind": "full_attention", "session_id": "s",
        "lookahead_token_ids": [[1]],
    }  # fmt: skip
    batch = read_batch(encode([1795991698.68, [event], 0]))
    assert batch.written_at == 1795991698.68
    read = read_event(batch.events[0])
    assert isinstance(read, BlockStored)
    assert [*names_in_pieces(read.block_hashes)] == [[4365206232166607859, 2**64 - 1]]
    assert [*tokens_in_pieces(read.token_ids)] == [[504, 2365, 6354, 7]]
    assert (read.session_id, read.group_idx, read.kv_cache_spec_kind) == ("s", 0, "full_attention")


def test_the_arrays_of_older_releases_are_read() -> None:
    events = [["BlockStored", [b"x" * 32], None, [1, 2], 2, None, "GPU"], ["BlockRemoved", [5]], ["AllBlocksCleared"]]
    stored, removed, cleared = map(read_event, read_batch(encode([1.5, events])).events)
    assert isinstance(stored, BlockStored)
    assert [*names_in_pieces(stored.block_hashes)] == [[b"x" * 32]]
    assert isinstance(removed, BlockRemoved)
    assert isinstance(cleared, AllBlocksCleared)


def test_the_last_two_frames_count() -> None:
    assert read_message([b"topic", b"\0" * 7 + b"\5", b"x"]) == (5, b"x")
    assert read_message([b"\0" * 7 + b"\5", b"x"]) == (5, b"x")
    for frames in ([], [b"x"], [b"short", b"x"]):
        with pytest.raises(MalformedEvents):
            read_message(frames)


@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=40).map(lambda some: some * 500))
def test_long_lists_are_read_in_pieces(numbers: list[int]) -> None:
    pieces = [*tokens_in_pieces(raw(numbers))]
    assert [number for piece in pieces for number in piece] == numbers
    if len(encode(numbers)) > 1 << 14:
        assert max(map(len, pieces)) <= 4_096


def test_long_lists_of_whole_digests_are_read_in_pieces() -> None:
    names = [bytes([number % 251]) * (32 if number % 2 else 20) for number in range(9_000)]
    pieces = [*names_in_pieces(raw(names))]
    assert [name for piece in pieces for name in piece] == names
    assert len(pieces) == 3


@given(st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.text(max_size=3) | st.sampled_from(["BlockStored", "type"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["type", "block_hashes", "x"]), inner),
).map(encode)))  # fmt: skip
def test_any_bytes_are_events_or_malformed(content: bytes) -> None:
    try:
        for written in read_batch(content).events:
            event = read_event(written)
            if isinstance(event, BlockStored):
                _ = [*tokens_in_pieces(event.token_ids), *names_in_pieces(event.block_hashes)]
    except MalformedEvents:
        pass


@pytest.mark.parametrize("list_of", [["x"], [[]], {"a": 1}, 7, None])
@pytest.mark.parametrize("times", [1, 20_000])
def test_lists_of_anything_else_are_malformed(list_of: object, times: int) -> None:
    content = raw(list_of * times if isinstance(list_of, list) else list_of)
    for read in (tokens_in_pieces, names_in_pieces):
        with pytest.raises(MalformedEvents):
            _ = [*read(content)]
