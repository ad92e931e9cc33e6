"""When the prefix cache is asked about a head again, and which answers move it."""

from __future__ import annotations

import pytest

from headway.domain.request import Request
from headway.scheduling.head_lookups import is_stale, note_answer


def test_an_answer_is_stale_after_a_second() -> None:
    request = Request(0, 0.0, 100)
    request.looked_up_at = 5.0
    assert not is_stale(request, 5.99)
    assert is_stale(request, 6.0)


@pytest.mark.parametrize(("before", "now", "moves"), [(0, 25, False), (0, 26, True), (60, 50, False), (60, 49, True)])
def test_more_than_a_quarter_of_the_work_moves_a_request(before: int, now: int, moves: bool) -> None:
    request = Request(0, 0.0, 100, cached_prompt_tokens=before)
    assert note_answer(request, now, 7.0) is moves
    assert (request.cached_prompt_tokens, request.looked_up_at) == (now, 7.0)


def test_where_nothing_was_left_to_compute_any_token_moves_it() -> None:
    assert note_answer(Request(0, 0.0, 100, cached_prompt_tokens=100), 99, 7.0)
    assert not note_answer(Request(0, 0.0, 100, cached_prompt_tokens=100), 100, 7.0)
