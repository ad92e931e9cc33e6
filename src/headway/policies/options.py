"""Options of a policy: the keyword-only parameters of its constructor, checked by type."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from headway.config.typed_values import checked, type_in_words

_MOST = 10**15  # of whole numbers: whatever is counted or measured here is less, and floats hold it exactly


def constructor_keywords(policy: type[Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a policy's constructor, by name, in order."""
    if policy.__init__ is object.__init__:
        return {}
    parameters = inspect.signature(policy).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def checked_options(policy_name: str, policy: type[Any], options: Mapping[str, object]) -> dict[str, object]:
    """The options with the types the constructor declares (whole numbers become floats where those are wanted).

    Raises:
        ValueError: a value of another type; one sentence for the user.
    """
    if not options:
        return {}
    declared = declared_types(policy)
    return {
        name: _checked_option(f"{policy_name}: {name}", value, declared.get(name, object))
        for name, value in options.items()
    }


def declared_types(policy: type[Any]) -> dict[str, Any]:
    """The types that a policy's constructor declares, by keyword; none where they cannot be resolved at run time.

    A class of another package may name types that it imports for type checkers only. Its options are then not checked.
    """
    try:
        return typing.get_type_hints(policy.__init__)
    except NameError:
        return {}


def _checked_option(where: str, value: object, declared: Any) -> object:
    if any(abs(number) > _MOST for number in _whole_numbers(value)):
        raise ValueError(f"{where} must be {type_in_words(declared)} of at most {_MOST:,}, got one of more")
    return checked(value, declared, where)


def _whole_numbers(value: object) -> Iterator[int]:
    """The value itself, or those of a table."""
    for entry in value.values() if isinstance(value, Mapping) else (value,):
        if isinstance(entry, int):
            yield entry
