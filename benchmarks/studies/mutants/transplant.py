"""Transplant: gives the modules that are loaded the code of a mutant, without loading anything again.

The mutated module is executed beside the real one. What differs is put in its place: code and defaults of functions and
methods, plain values of modules (wherever they were imported) and of classes.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

_PLAIN = (bool, int, float, str, tuple, frozenset, dict, list)


def transplant(module: ModuleType, tree: ast.Module, known: Mapping[str, object] = MappingProxyType({})) -> bool:
    """Put the mutant into the module; False where nothing of it could be put in. `known`: names that it may use."""
    beside = ModuleType(module.__name__)
    vars(beside).update(known)
    beside.__file__ = module.__file__
    real = sys.modules[module.__name__]
    sys.modules[module.__name__] = beside  # dataclasses look their module up
    try:
        exec(compile(tree, module.__file__ or "", "exec"), beside.__dict__)
    finally:
        sys.modules[module.__name__] = real
    changed = False
    for name, new in vars(beside).items():
        old = vars(module).get(name)
        if isinstance(old, _PLAIN) and not name.startswith("__") and type(new) is type(old) and repr(new) != repr(old):
            _replace_everywhere(name, old, new)
            changed = True
    functions = dict(_functions(module, module.__name__))
    for where, new in _functions(beside, module.__name__):
        old = functions.get(where)
        if old is not None and _differ(old, new):
            old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__
            changed = True
    classes = dict(_classes(module, module.__name__))
    for where, new in _classes(beside, module.__name__):
        old = classes.get(where)
        for name, value in list(vars(new).items()):
            had = None if old is None else vars(old).get(name)
            if (
                isinstance(had, _PLAIN)
                and not name.startswith("__")
                and type(value) is type(had)
                and value != had
                and repr(value) != repr(had)
            ):
                setattr(old, name, value)
                changed = True
    return changed


def _replace_everywhere(name: str, old: Any, new: Any) -> None:
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is old:
            setattr(module, name, new)


def _differ(old: FunctionType, new: FunctionType) -> bool:
    if old.__code__.co_freevars != new.__code__.co_freevars:
        return False
    return (
        old.__code__ != new.__code__
        or repr(old.__defaults__) != repr(new.__defaults__)
        or repr(old.__kwdefaults__) != repr(new.__kwdefaults__)
    )


def _functions(holder: Any, module: str) -> Iterator[tuple[str, FunctionType]]:
    """The functions of a module and of its classes, with those inside properties and decorators."""
    for name, value in list(vars(holder).items()):
        for part, inner in _unwrapped(value):
            if isinstance(inner, FunctionType) and inner.__module__ == module:
                yield f"{name}{part}", inner
        if isinstance(value, type) and value.__module__ == module and value is not holder:
            for where, function in _functions(value, module):
                yield f"{name}.{where}", function


def _classes(holder: Any, module: str) -> Iterator[tuple[str, type]]:
    for name, value in list(vars(holder).items()):
        if isinstance(value, type) and value.__module__ == module:
            yield name, value


def _unwrapped(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, property):
        yield from [(".get", value.fget), (".set", value.fset)]
    elif isinstance(value, staticmethod | classmethod):
        yield "", value.__func__
    else:
        while hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        yield "", value
