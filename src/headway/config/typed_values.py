"""Values and tables that a user wrote, checked against declared types; the first mistake is one sentence.

A type is declared as Python declares it: `bool`, `int`, `float`, `str`, `Literal`, unions, lists, tables of names, and
dataclasses, whose fields are the keys of a table. `Annotated` notes narrow it: `Bounds` a number, `Described` how a
sentence calls the type, `Hidden` that it does not show the value. Pure: no file is read here.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar, Union

from headway.config.nearest_name import nearest

T = TypeVar("T")
Reader: TypeAlias = Callable[[object, str], Any]
"""Reads the value of one key its own way; the text is the key's name for sentences."""

_PLAIN = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


class Bounds(NamedTuple):
    """Which numbers are allowed: finite ones of at least `least`, above `above`, at most `most`, where given."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    unit: str = ""

    def hold(self, number: float) -> bool:
        """Whether the number is allowed; NaN never is."""
        most = sys.float_info.max if self.most is None else self.most
        low_enough, high_enough = number <= most, self.least is None or number >= self.least
        return low_enough and high_enough and (self.above is None or number > self.above)

    def in_words(self) -> str:
        """What follows "a number": " of seconds above 0 and at most 8"."""
        low = "" if self.least is None else f" of at least {self.least:g}"
        low += "" if self.above is None else f" above {self.above:g}"
        high = "" if self.most is None else f"{' and' if low else ' of'} at most {self.most:g}"
        return (f" of {self.unit}" if self.unit else "") + low + high


class Described(NamedTuple):
    """What a sentence calls the type instead of "a text" or "a number"."""

    words: str


class Hidden(NamedTuple):
    """What a sentence calls the type; it does not show the value, for a secret may have been written there."""

    words: str


def checked(value: object, declared: Any, where: str) -> Any:
    """The value as the declared type; a whole number becomes a float where that is declared, a list a tuple.

    Args:
        value: as TOML or JSON gave it.
        declared: the type.
        where: the key's name for sentences.

    Raises:
        ValueError: one sentence that names the key, the type and the value.
    """
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin is Annotated:
        return _noted(value, declared, where)
    if origin in (Union, types.UnionType):
        return _one_of(value, declared, where)
    if is_dataclass(declared):
        if not isinstance(value, Mapping):
            known = ", ".join(one.name for one in fields(declared))
            raise ValueError(f"{where} must be a table of {known}, got {value!r}")
        return read_table(typing.cast(type[Any], declared), value, f"{where}.")
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _mismatch(value, declared, where)
        return {key: checked(entry, arguments[1], f"{where}.{_shown(key)}") for key, entry in value.items()}
    if origin in (Sequence, list, tuple):
        if not isinstance(value, list | tuple):
            table = f"; write [[{where}]]" if is_dataclass(arguments[0]) else ""
            raise ValueError(f"{where} must be a list{table}, got {value!r}")
        return tuple(checked(entry, arguments[0], f"{where}[{number}]") for number, entry in enumerate(value))
    if not _fits(value, declared):
        raise _mismatch(value, declared, where)
    if isinstance(value, str) and "\0" in value:  # which no path, address or name may hold
        raise ValueError(f"{where} holds a NUL character: {value!r}; take it out")
    return float(value) if declared is float else value  # type: ignore[arg-type]


def read_table(
    kind: type[T], content: Mapping[str, Any], where: str = "", readers: Mapping[str, Reader] | None = None
) -> T:
    """A dataclass from a table whose keys are its fields' names.

    Args:
        kind: the dataclass.
        content: the table.
        where: what stands before a key's name in sentences, such as "queue.".
        readers: keys that are not read by their declared type.

    Raises:
        ValueError: one sentence that names the key: unknown, missing, or of another type.
    """
    declared = _declared(typing.cast(Any, kind))
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            raise ValueError(f"unknown key {where}{_shown(key)}{nearest(str(key), known)}")
    for name, one in known.items():
        if one.default is MISSING and one.default_factory is MISSING and name not in content:
            raise ValueError(f"{where}{name} is missing")
    own = readers or {}
    return kind(
        **{
            key: own[key](value, f"{where}{key}") if key in own else checked(value, declared[key], f"{where}{key}")
            for key, value in content.items()
        }
    )


def type_in_words(declared: Any) -> str:
    """A declared type as a user says it: "a number", "a whole number"; `None` beside other types is left out."""
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin is Annotated:
        words = [note.words for note in arguments[1:] if isinstance(note, Described | Hidden)]
        bounds = "".join(note.in_words() for note in arguments[1:] if isinstance(note, Bounds))
        return words[0] if words else type_in_words(arguments[0]) + bounds
    if origin in (Union, types.UnionType):
        return " or ".join(type_in_words(argument) for argument in arguments if argument is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin in (Mapping, dict):
        return (
            "a table" if arguments[1] in (Any, object) else f"a table of names, each with {type_in_words(arguments[1])}"
        )
    return _PLAIN.get(declared, str(declared))


@cache
def _declared(kind: Any) -> Mapping[str, Any]:
    """The types of a dataclass's fields: half a millisecond to find out, and a list may hold 10,000 of one."""
    return typing.get_type_hints(kind, include_extras=True)


def _noted(value: object, declared: Any, where: str) -> Any:
    """The value of an `Annotated` type."""
    base, *notes = typing.get_args(declared)
    try:
        result = checked(value, base, where)
    except ValueError:
        if any(isinstance(note, Hidden) for note in notes):
            raise ValueError(f"{where} must be {type_in_words(declared)}") from None
        raise _mismatch(value, declared, where) from None
    if not all(note.hold(result) for note in notes if isinstance(note, Bounds)):
        raise _mismatch(value, declared, where)
    return result


def _one_of(value: object, declared: Any, where: str) -> Any:
    """The value as the first type of a union that takes it."""
    members = [member for member in typing.get_args(declared) if member is not type(None)]
    if value is None and len(members) < len(typing.get_args(declared)):
        return None
    if len(members) == 1:
        return checked(value, members[0], where)
    for member in members:
        try:
            return checked(value, member, where)
        except ValueError:
            continue
    raise _mismatch(value, declared, where)


def _fits(value: object, declared: Any) -> bool:
    """Whether a value has a type that has no parts."""
    if declared in (Any, object):
        return True
    if typing.get_origin(declared) is Literal:
        return any(type(value) is type(known) and value == known for known in typing.get_args(declared))
    if declared in (int, float) and isinstance(value, int):
        return not isinstance(value, bool) and (declared is int or abs(value) <= sys.float_info.max)
    kind = typing.get_origin(declared) or declared
    return not isinstance(kind, type) or isinstance(value, kind)


def _shown(key: object) -> str:
    """A key as a sentence of one line can hold it."""
    return key if isinstance(key, str) and key.isprintable() else repr(key)


def _mismatch(value: object, declared: Any, where: str) -> ValueError:
    return ValueError(f"{where} must be {type_in_words(declared)}, got {value!r}")
