"""What a user may set on a policy: its constructor's keyword-only parameters, checked by type."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

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
    declared = typing.get_type_hints(policy.__init__)
    return {
        name: _checked(f"option {name!r} of {policy_name}", value, declared.get(name, object))
        for name, value in options.items()
    }


def type_in_words(declared: Any) -> str:
    """A declared type as a user would say it: "a number", "a whole number". That it may be left out is not said."""
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in (Union, types.UnionType):
        return " or ".join(type_in_words(argument) for argument in arguments if argument is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin in (Mapping, dict):
        return f"a table of names, each with {type_in_words(arguments[1])}"
    words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    return words.get(declared, str(declared))


def _checked(what: str, value: object, declared: Any) -> object:
    if isinstance(value, int) and abs(value) > _MOST:
        raise ValueError(f"{what} must be {type_in_words(declared)} of at most {_MOST:,}, got one of more")
    fits, result = _fit(value, declared)
    if not fits:
        raise ValueError(f"{what} must be {type_in_words(declared)}, got {value!r}")
    return result


def _fit(value: object, declared: Any) -> tuple[bool, object]:
    """Whether a value has the declared type, and the value as that type."""
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in (Union, types.UnionType):
        fits = [fit for fit in (_fit(value, argument) for argument in arguments) if fit[0]]
        return fits[0] if fits else (False, value)
    if origin is Literal:
        return value in arguments, value
    if origin in (Mapping, dict):
        return _fit_table(value, arguments[1])
    if declared is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST:
        return True, float(value)
    if declared is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, declared), value


def _fit_table(value: object, declared: Any) -> tuple[bool, object]:
    if not isinstance(value, Mapping):
        return False, value
    fits = {name: _fit(entry, declared) for name, entry in value.items()}
    return all(isinstance(name, str) and ok for name, (ok, _) in fits.items()), {n: v for n, (_, v) in fits.items()}
