"""Mistakes that the user can correct, each in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserMistake(ValueError):
    """A mistake that the user can correct; the message names the field and the fix. The command line exits with 2."""


@contextmanager
def as_mistakes() -> Iterator[None]:
    """Turn a ValueError of the layers below into a `UserMistake`: here, a bad value is one that the user typed."""
    try:
        yield
    except UserMistake:
        raise
    except ValueError as error:
        raise UserMistake(str(error)) from error
