"""The index of KV blocks: what is held, counted as an engine counts it, and which prompts became which blocks."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from headway.gateway.replicas import kv_block_index
from headway.gateway.replicas.confirmed_prefixes import ConfirmedPrefixes
from headway.gateway.replicas.known_prefix import known_tokens
from headway.gateway.replicas.kv_block_index import Answered, KvBlockIndex
from headway.gateway.replicas.kv_event_messages import AllBlocksCleared, BlockRemoved, BlockStored
from headway.gateway.token_blocks import PromptPrefixes, keys_in_steps, packed

SIZE = 4


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


def store(
    index: KvBlockIndex, names: Sequence[int], tokens: Sequence[int], parent: int | None = None, **fields: object
) -> None:
    size = fields.pop("block_size", SIZE)
    event = BlockStored(raw(list(names)), parent, raw(list(tokens)), size, **fields)  # type: ignore[arg-type]
    for _ in index.take(event, 5.0):
        pass


def remove(index: KvBlockIndex, *names: int, **fields: object) -> None:
    for _ in index.take(BlockRemoved(raw(list(names)), **fields), 6.0):  # type: ignore[arg-type]
        pass


def whole() -> KvBlockIndex:
    index = KvBlockIndex(1_000)
    index.clear(is_whole=True)
    return index


def held(index: KvBlockIndex, prompt: Sequence[int], adapter: str = "", salt: str = "") -> int:
    *_, keys = keys_in_steps(packed(prompt), SIZE, adapter, salt)
    return index.tokens_of_keys(keys)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    index = whole()
    store(index, [1, 2], range(8))
    assert held(index, range(9)) == 8
    assert held(index, range(8)) == 4
    assert held(index, [0]) == held(index, []) == 0


def test_a_block_that_is_held_twice_is_held_until_both_are_gone() -> None:
    index = whole()
    store(index, [1], range(4))
    store(index, [1, 2], range(8))
    remove(index, 1)
    assert held(index, range(9)) == 8
    remove(index, 2)
    remove(index, 1)
    assert held(index, range(9)) == 0
    assert len(index) == 0
    remove(index, 1)


def test_adapters_salts_and_images_keep_equal_tokens_apart() -> None:
    index = whole()
    store(index, [1, 2], range(8), extra_keys=[["salt"], None])
    store(index, [3, 4], range(8), extra_keys=[["lora"], ["lora"]], lora_name="lora")
    store(index, [5, 6], range(8), extra_keys=[["lora", "salt"], ["lora"]], lora_name="lora")
    store(index, [7, 8], range(8), extra_keys=[[["image", 3]], [{"odd": 1}]])
    assert held(index, range(9)) == 0
    assert held(index, range(9), salt="salt") == 8
    assert held(index, range(9), adapter="lora") == 8
    assert held(index, range(9), adapter="lora", salt="salt") == 8
    assert held(index, range(9), adapter="lora", salt="other") == 0
    assert index.is_whole


def test_an_older_engine_names_the_adapter_only() -> None:
    index = whole()
    store(index, [1, 2], range(8), lora_name="lora")
    assert (held(index, range(9)), held(index, range(9), adapter="lora")) == (0, 8)


def test_other_groups_and_media_are_not_looked_at() -> None:
    index = whole()
    store(index, [9], range(4), group_idx=1, kv_cache_spec_kind="sliding_window")
    store(index, [1], range(4), group_idx=0, kv_cache_spec_kind="full_attention", medium="GPU")
    store(index, [1], range(4), group_idx=0, medium="CPU")
    store(index, [1], range(4), group_idx=2)
    remove(index, 1, group_idx=2)
    remove(index, 1, group_idx=0, medium="CPU")
    assert held(index, range(5)) == 4
    assert index.ignored == 5
    remove(index, 1, group_idx=0, medium="GPU")
    assert held(index, range(5)) == 0


def test_a_cleared_cache_is_known_to_be_empty() -> None:
    index = KvBlockIndex(10)
    store(index, [1], range(4))
    assert not index.is_whole
    for _ in index.take(AllBlocksCleared(), 7.0):
        pass
    assert index.is_whole
    assert (len(index), index.as_of) == (0, 7.0)


def test_clearing_while_a_batch_is_taken_in_ends_it() -> None:
    index = whole()
    event = BlockStored(raw(list(range(2_000))), None, raw(list(range(8_000))), SIZE)
    steps = index.take(event, 5.0)
    next(steps)
    index.clear(is_whole=False)
    assert list(steps) == []
    assert len(index) == 0


class TestPromptsWithoutTokenIds:
    """The second prompt begins as the first one does; each prefix of 4 tokens has a hash."""

    def test_their_prefixes_are_learned_from_the_events_of_their_session(self) -> None:
        index = whole()
        store(index, [1], range(4), session_id="a")
        store(index, [2, 3], range(4, 12), 1, session_id="a")
        index.answered("a", Answered([11, 12, 13], [4, 8, 11], 11))
        assert [index.tokens_of_prefix(prefix) for prefix in (11, 12, 13, 14)] == [4, 8, 8, None]
        remove(index, 3, 2)
        assert [index.tokens_of_prefix(prefix) for prefix in (11, 12, 13)] == [4, 0, 0]

    def test_events_that_come_after_the_answer_are_waited_for(self) -> None:
        index = whole()
        store(index, [1], range(4), session_id="a")
        index.answered("a", Answered([11, 12], [4, 8], 9))
        assert index.tokens_of_prefix(11) is None
        store(index, [7], [5] * 4, session_id="b")
        assert index.tokens_of_prefix(11) is None
        store(index, [2], range(4, 8), 1, session_id="a")
        assert index.tokens_of_prefix(12) == 8

    def test_what_another_request_stored_is_not_mistaken_for_it(self) -> None:
        index = whole()
        store(index, [1, 2], range(8), session_id="other")
        index.answered("a", Answered([11], [8], 9))
        assert index.tokens_of_prefix(11) is None

    def test_the_part_that_was_cached_before_is_known_too(self) -> None:
        index = whole()
        store(index, [1, 2], range(8), session_id="a")
        store(index, [3], range(8, 12), 2, session_id="b")
        index.answered("b", Answered([11, 12, 13], [4, 8, 12], 12))
        assert index.tokens_of_prefix(13) == 12
        remove(index, 3)
        assert [index.tokens_of_prefix(prefix) for prefix in (12, 13)] == [8, 0]

    def test_as_many_are_kept_as_the_bounds_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kv_block_index, "PREFIXES_MAX", 2)
        monkeypatch.setattr(kv_block_index, "_SESSIONS_MAX", 2)
        index = whole()
        for number in range(5):
            store(index, [number], [number] * 4, session_id=f"s{number}")
        for number in range(5):
            index.answered(f"s{number}", Answered([10 + number], [4], 4))
        assert [index.tokens_of_prefix(10 + number) for number in range(5)] == [None, None, None, 4, 4]
        assert len(index._answered) == 2
        store(index, [9], [9] * 4, session_id="one more")
        index.answered("one more", Answered([19], [4], 4))
        assert [index.tokens_of_prefix(prefix) for prefix in (13, 14, 19)] == [None, 4, 4]
        monkeypatch.setattr(kv_block_index, "_PATH_BLOCKS_MAX", 1)
        store(index, [21, 22, 23], range(12), session_id="long")
        index.answered("long", Answered([31], [4], 12))
        assert index.tokens_of_prefix(31) is None


class TestWhatIsKnownOfAPrefix:
    def test_token_ids_decide_where_they_are_known(self) -> None:
        index, confirmed = whole(), ConfirmedPrefixes()
        confirmed.answered([11, 12], [4, 8], 8, 0, 1.0)
        prefix = PromptPrefixes([11, 12])
        *_, prefix.keys[SIZE] = keys_in_steps(packed(range(9)), SIZE)
        store(index, [1], range(4))
        assert known_tokens(index, confirmed, prefix, 9) == 4
        index.is_whole = False
        assert known_tokens(index, confirmed, prefix, 9) == 8, "there may be more than the index knows"
        index.is_whole = index.has_gap = True
        assert known_tokens(index, confirmed, prefix, 9) == 8, "while batches are missing only answers count"
        assert known_tokens(None, confirmed, prefix, 9) == 8

    def test_an_evicted_prefix_is_not_believed_whatever_answers_said(self) -> None:
        index, confirmed = whole(), ConfirmedPrefixes()
        confirmed.answered([11, 12, 13], [4, 8, 12], 8, 0, 1.0)
        store(index, [1, 2], range(8), session_id="a")
        index.answered("a", Answered([11, 12], [4, 8], 9))
        assert known_tokens(index, confirmed, [11, 12], 9) == 8
        assert known_tokens(index, confirmed, [11, 12], 8) == 7
        assert known_tokens(index, confirmed, [11, 12, 13], 20) == 12, "the events say nothing of this one"
        remove(index, 2)
        assert known_tokens(index, confirmed, [11, 12], 9) == 4
        assert known_tokens(index, confirmed, [], 9) == 0

    def test_a_part_of_the_blocks_says_nothing_of_an_unknown_text(self) -> None:
        index = KvBlockIndex(9)
        store(index, [1], range(4))
        assert known_tokens(index, ConfirmedPrefixes(), [11], 9) is None
        index.is_whole = True
        assert known_tokens(index, ConfirmedPrefixes(), [11], 9) == 0

    def test_an_empty_cache_holds_nothing(self) -> None:
        confirmed = ConfirmedPrefixes()
        confirmed.answered([11], [4], 8, 0, 1.0)
        assert known_tokens(whole(), confirmed, [11], 9) == 0
        assert known_tokens(KvBlockIndex(9), confirmed, [11], 9) == 4
        assert known_tokens(KvBlockIndex(9), ConfirmedPrefixes(), [11], 9) is None
