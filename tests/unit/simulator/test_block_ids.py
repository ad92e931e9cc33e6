"""Prefix blocks in two arrays behave like the list of lists that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from headway.simulator.block_ids import BlockIds

ROWS = [[5, 6], [], [7], [8, 9, 10]]
IDS = BlockIds.of(ROWS)


def test_rows_come_out_as_they_went_in() -> None:
    assert len(IDS) == 4
    assert [list(row) for row in IDS] == ROWS
    assert IDS[-1] == [8, 9, 10]
    assert IDS[-4] == [5, 6]
    assert all(type(name) is int for row in IDS for name in row)
    assert IDS.lengths().tolist() == [2, 0, 1, 3]


@pytest.mark.parametrize("row", [4, -5])
def test_there_are_no_rows_beyond(row: int) -> None:
    with pytest.raises(IndexError):
        IDS[row]


def test_no_rows_at_all() -> None:
    none = BlockIds.of([])
    assert len(none) == 0
    assert list(none) == []


@pytest.mark.parametrize("part", [slice(1, 3), slice(None, None, 2), slice(-2, None), slice(None, None, -1)])
def test_slices_are_those_of_a_list(part: slice) -> None:
    assert [list(row) for row in IDS[part]] == ROWS[part]


def test_rows_are_taken_in_the_order_given_and_more_than_once() -> None:
    taken = IDS.take(np.array([3, 0, 3]))
    assert [list(row) for row in taken] == [[8, 9, 10], [5, 6], [8, 9, 10]]


def test_rows_are_cut_to_their_first_ids() -> None:
    cut = IDS.cut(np.array([3, 1, 0]), np.array([2, 0, 1]))
    assert [list(row) for row in cut] == [[8, 9], [], [5]]


def test_ids_are_raised() -> None:
    assert [list(row) for row in IDS.shifted(100)] == [[105, 106], [], [107], [108, 109, 110]]
    assert [list(row) for row in IDS] == ROWS
