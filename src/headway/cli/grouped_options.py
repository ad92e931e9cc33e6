"""Groups of command-line options: a verb takes each group as one frozen dataclass.

A field of the group is one option, and its only declaration:

    @dataclass(frozen=True, slots=True)
    class ReadingOptions:
        seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0

    @grouped
    def compare(reading: ReadingOptions) -> None: ...   # headway compare --seed 3
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Show typer every field of the verb's option groups as an option of its own.

    Args:
        verb: takes options and groups of options, by name. No two of them may share an option's name.

    Returns:
        A function whose signature lists single options. It builds the groups and calls the verb.
    """
    groups: dict[str, type[Any]] = {}
    options: list[inspect.Parameter] = []
    hints = get_type_hints(verb, include_extras=True)
    for parameter in inspect.signature(verb).parameters.values():
        hint = hints[parameter.name]
        if isinstance(hint, type) and is_dataclass(hint):
            groups[parameter.name] = hint
            field_hints = get_type_hints(hint, include_extras=True)
            options += [_option(field, field_hints[field.name]) for field in fields(hint)]
        else:
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hint))

    @wraps(verb)
    def command(**typed: object) -> None:
        for name, group in groups.items():
            typed[name] = group(**{field.name: typed.pop(field.name) for field in fields(group)})
        verb(**typed)

    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options}
    return command


def _option(field: Field[Any], hint: object) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
