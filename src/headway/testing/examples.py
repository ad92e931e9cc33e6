"""How many examples a property test draws: the hypothesis profile in force decides it for all of them."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100  # what hypothesis draws where nobody says anything
_FEW = 20


def examples(usual: int) -> int:
    """The examples of a test that usually draws `usual`, under the hypothesis profile in force.

    A profile that has half of hypothesis's usual 100 halves them, but not below 20. Asked when the test is defined.
    """
    wanted: int = settings.default.max_examples  # type: ignore[union-attr]
    return max(min(usual, _FEW), usual * wanted // _USUAL)
