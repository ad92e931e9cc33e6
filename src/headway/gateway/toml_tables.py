"""TOML tables as dataclasses: keys are field names, types are checked, and the first mistake is one sentence."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar

from headway.policies.catalog import nearest
from headway.policies.options import type_in_words

T = TypeVar("T")


def read_table(kind: type[T], content: Mapping[str, Any], where: str = "") -> T:
    """A value of a dataclass out of a TOML table; `where` is what its keys' names begin with in sentences.

    Raises:
        ValueError: one sentence that names the key: unknown, missing, or of another type.
    """
    declared = typing.get_type_hints(kind)
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            raise ValueError(f"unknown key {where}{key}{nearest(key, known)}")
    for name, one in known.items():
        if one.default is MISSING and one.default_factory is MISSING and name not in content:
            raise ValueError(f"{where}{name} is missing")
    return kind(**{key: _value(value, declared[key], f"{where}{key}") for key, value in content.items()})


def _value(value: Any, declared: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if isinstance(declared, type) and hasattr(declared, "__dataclass_fields__"):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a table")
        return read_table(declared, value, f"{where}.")
    if origin is not None and origin not in (types.UnionType, typing.Union, Literal):
        if origin.__name__ == "Mapping":
            if isinstance(value, Mapping):
                return {key: _value(entry, arguments[1], f"{where}.{key}") for key, entry in value.items()}
            raise ValueError(f"{where} must be a table")
        if isinstance(value, list):
            return tuple(_value(entry, arguments[0], f"{where}[{number}]") for number, entry in enumerate(value))
        raise ValueError(f"{where} must be a list" + (f"; write [[{where}]]" if where in ("replica", "tenant") else ""))
    options = arguments if origin in (types.UnionType, typing.Union) else (declared,)
    if declared is Any or (origin is Literal and value in arguments):
        return value
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is not Literal and any(type(value) is option for option in options):
        return value
    raise ValueError(f"{where} must be {type_in_words(declared)}, got {value!r}")
