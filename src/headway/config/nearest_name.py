"""The end of a sentence about an unknown name: the nearest known one, and the list."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], unlisted: Iterable[str] = ()) -> str:
    """`": did you mean 'x'? choose from x, y"`, or the list alone where no name is near.

    Args:
        name: as the user wrote it.
        known: names to list and to compare with.
        unlisted: names to compare with only, such as aliases.
    """
    known = list(known)
    close = difflib.get_close_matches(name.lower(), [*known, *unlisted])
    close.sort(key=lambda one: sorted(one) != sorted(name.lower()))  # two letters that changed places come first
    return (f": did you mean {close[0]!r}? " if close else ": ") + f"choose from {', '.join(known)}"
