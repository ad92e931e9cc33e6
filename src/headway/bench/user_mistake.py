"""The user's mistakes, told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserMistake(ValueError):
    """Something the user can put right; the message names the field and the fix. The command line exits with 2."""


@contextmanager
def as_mistakes() -> Iterator[None]:
    """What the layers below call a bad value (a ValueError) is, at this place, something the user typed."""
    try:
        yield
    except UserMistake:
        raise
    except ValueError as error:
        raise UserMistake(str(error)) from error
