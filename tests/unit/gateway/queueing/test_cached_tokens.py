"""A session's next turn is believed to be cached as far as engines have confirmed it, and no further."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.openai.prompt_count import PromptCount
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.openai.usage import Usage
from headway.gateway.queueing import cached_tokens as cached_guess
from headway.gateway.queueing.cached_tokens import CachedTokens
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.intake import Intake
from headway.gateway.queueing.request_state import GatewayRequest
from tests.support.gateway_requests import gateway_request


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


def test_what_is_confirmed_by_hand() -> None:
    """A tenth of the way at each turn, to the share of what was left that the engine found, at most all of it."""
    guess = CachedTokens()
    guess.learn("m", "a", "s", Usage(100, 20, 50))  # nothing was left before it
    assert guess.tokens("m", "a", "s", 1_000) == 0
    guess.learn("m", "a", "s", Usage(200, 20, 60))  # 60 of 120
    assert guess.tokens("m", "a", "s", 1_000) == int(220 * 0.05)
    guess.learn("m", "a", "s", Usage(100, 20, 90))  # 90 of 100: the prompt is shorter than what was left
    confirmed = 0.05 + 0.1 * (0.9 - 0.05)
    assert guess.tokens("m", "a", "s", 1_000) == int(120 * confirmed)
    guess.learn("m", "a", "s", Usage(1_000, 20, 999))  # more than was left: another session's, or it was 120 at most
    assert guess.tokens("m", "a", "s", 9_000) == int(1_020 * (confirmed + 0.1 * (1 - confirmed)))


def test_only_so_many_models_are_learned(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(cached_guess, "_MODELS_MAX", 1)
    guess = CachedTokens()
    for model in ("m", "n", "m"):
        for _ in range(2):
            guess.learn(model, "a", "s", Usage(100, 0, 100))
    assert guess.tokens("m", "a", "s", 1_000) > guess.tokens("n", "a", "s", 1_000) == 0


def test_a_turn_that_waits_is_estimated_again_when_the_turn_before_it_has_ended() -> None:
    intake = Intake(PromptCount({}, TokenRatio()), lambda: 0.0, "id")

    def turn(number: int, prompt_tokens: int) -> GatewayRequest:
        body = {"prompt": "x"}
        return gateway_request(number, body, prompt_tokens=prompt_tokens, model="m", payer="p", session="s")

    def answered(request: GatewayRequest, usage: Usage) -> None:
        request.relayed.usage = usage
        intake.ended(request, Outcome.COMPLETED, None, 0.0)

    answered(turn(1, 100), Usage(100, 20, 0))
    waiting, before = turn(3, 400), turn(2, 200)
    assert intake.cached_tokens(waiting.queued) == 0
    answered(before, Usage(200, 30, 120))
    assert intake.cached_tokens(waiting.queued) == 23, "a tenth of 230, since one turn has confirmed an estimate"
