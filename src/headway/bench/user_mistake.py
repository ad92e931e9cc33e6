"""Mistakes that the user can correct, each in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral


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


def whole(name: str, value: object, least: int | None = None, most: int | None = None) -> None:
    """Check an argument; whole numbers of numpy count, True and False do not.

    Raises:
        UserMistake: it is no whole number from `least` to `most`, as far as these are given.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserMistake(f"{name}: {value!r} is not a whole number; give one, without fraction and quotes")
    if least is not None and int(value) < least:
        raise UserMistake(f"{name} must be at least {least}, got {value}")
    if most is not None and int(value) > most:
        raise UserMistake(f"{name} must be at most {most:,}, got {value}")
