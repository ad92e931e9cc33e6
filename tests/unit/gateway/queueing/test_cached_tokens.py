"""A session's next turn is believed to be cached as far as engines have confirmed it, and no further."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.openai.usage import Usage
from headway.gateway.queueing import cached_tokens as cached_guess
from headway.gateway.queueing.cached_tokens import CachedTokens


def test_an_engine_that_does_not_tell_is_believed_to_cache_nothing() -> None:
    guess = CachedTokens()
    for turn in range(1, 20):
        guess.learn("m", "a", "s", Usage(100 * turn, 10, 0))
    assert guess.tokens("m", "a", "s", 2_000) == 0


def test_what_is_borne_out_is_believed_of_this_session_only() -> None:
    guess = CachedTokens()
    for turn in range(100):
        guess.learn("m", "a", f"s{turn % 3}", Usage(1_000, 100, 990))
    assert 900 < guess.tokens("m", "a", "s0", 5_000) <= 1_100
    assert guess.tokens("m", "a", "s0", 50) == 49, "the last token is always computed"
    assert guess.tokens("m", "a", None, 5_000) == 0
    assert guess.tokens("m", "a", "new", 5_000) == 0
    assert guess.tokens("m", "other payer", "s0", 5_000) == 0
    assert guess.tokens("other", "a", "s0", 5_000) == 0
    for _ in range(100):
        guess.learn("m", "a", "s0", Usage(1_000, 100, 0))
    assert guess.tokens("m", "a", "s0", 5_000) < 50, "the cache is too small by now"


def test_sessions_are_forgotten_when_there_are_too_many(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(cached_guess, "_SESSIONS_MAX", 10)
    guess = CachedTokens()
    for number in range(50):
        guess.learn("m", "a", str(number), Usage(100, 10, 0))
    assert len(guess._left) == 10
    assert ("m", "a", "49") in guess._left


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 900)), max_size=20))
def test_the_belief_is_always_less_than_the_prompt(turns: list[tuple[int, int, int]]) -> None:
    guess = CachedTokens()
    for prompt, output, cached in turns:
        guess.learn("m", "", "s", Usage(prompt, output, cached))
        assert 0 <= guess.tokens("m", "", "s", 300) < 300
        assert guess.tokens("m", "", "s", 1) == 0
