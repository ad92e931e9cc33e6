"""The map of KV blocks in parts is a dict to those who use it, and frees what it forgot a part at a time."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.replicas.kv_block_map import KvBlockMap


@given(st.lists(st.tuples(st.sampled_from(["add", "pop", "clear", "free"]), st.integers(0, 2**64 - 1) | st.binary())))
def test_it_is_a_dict(acts: list[tuple[str, int | bytes]]) -> None:
    made: KvBlockMap[int | bytes] = KvBlockMap()
    plain: dict[int | bytes, int] = {}
    for number, (act, block) in enumerate(acts):
        if act == "add" and block not in plain:
            made.add(block, number)
            plain[block] = number
        elif act == "pop":
            assert made.pop(block) == plain.pop(block, None)
        elif act == "clear":
            made.clear()
            plain.clear()
        else:
            made.free_some()
        assert len(made) == len(plain)
        assert all(made.get(one) == value and one in made for one, value in plain.items())
        assert made.get(b"never") is None
    held = list(plain)
    assert made.leading([*held, b"never", *held]) == len(held)


def test_parts_are_of_about_one_size_and_freed_one_by_one() -> None:
    made: KvBlockMap[int] = KvBlockMap()
    chance = random.Random(0)
    for number in range(200_000):
        made.add(chance.getrandbits(64), number)
    sizes = [len(part) for part in made._parts]
    assert min(sizes) > 300
    assert max(sizes) < 1_500
    made.clear()
    parts = len(made._old)
    assert parts == len(sizes)
    made.free_some()
    assert len(made._old) == parts - 1
