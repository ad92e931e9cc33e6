"""Policies of other packages and programs: checked before use, and blamed by name when they are broken.

A package offers a policy with an entry point in the group `headway.KIND`, whose name is the policy's. A broken one
never hides the others: it is refused by name, in one sentence that says what is missing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import FunctionType
from typing import Any

from headway.policies.contracts import (
    AdmissionPolicy,
    BackfillingAdmission,
    DispatchListener,
    LanedOrdering,
    LengthPredictor,
    Listener,
    PreemptionPolicy,
    RankedOrdering,
    ReschedulingPolicy,
    Retunable,
    RoutingPolicy,
    Stateful,
)

_CONTRACT: Mapping[str, type] = {
    "ordering": RankedOrdering,
    "admission": AdmissionPolicy,
    "preemption": PreemptionPolicy,
    "prediction": LengthPredictor,
    "routing": RoutingPolicy,
    "rescheduling": ReschedulingPolicy,
}
_WHOLE: Mapping[str, tuple[type, ...]] = {
    "ordering": (LanedOrdering, Stateful),
    "admission": (BackfillingAdmission,),
    "prediction": (Stateful,),
}
"""Powers of which a class must have all methods or none: with some of them it would silently do something else."""
_OPTIONAL = (Listener, DispatchListener, Retunable, Stateful)


def offered(kind: str) -> dict[str, list[EntryPoint]]:
    """Entry points of a kind by name; more than one under a name is a clash of two packages."""
    by_name: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=f"headway.{kind}"):
        by_name.setdefault(entry.name, []).append(entry)
    return by_name


def packages(entries: Sequence[EntryPoint]) -> str:
    """The packages that offer these, for a sentence."""
    return " and ".join("an unknown package" if e.dist is None else f"package {e.dist.name}" for e in entries)


def load(kind: str, name: str, entries: Sequence[EntryPoint], injected: Iterable[str]) -> type[Any]:
    """The class that a package offers under a name.

    Args:
        kind: ordering, admission, preemption, prediction or routing.
        name: the policy's.
        entries: what is offered under that name.
        injected: constructor keywords that Headway gives.

    Raises:
        ValueError: it cannot be used; one sentence that names the policy, its package and the missing part.
    """
    if len(entries) > 1:
        raise ValueError(f"{packages(entries)} both offer the {kind} policy {name!r}: uninstall one of them")
    entry = entries[0]
    who = f"the {kind} policy {name!r} of {packages(entries)}"
    if "/" in name:
        raise ValueError(f"{who} cannot be used: a slash puts one policy inside another; rename its entry point")
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{who} cannot be loaded: {type(error).__name__}: {_line(error)}; repair or uninstall the package"
        ) from error
    if not isinstance(loaded, type):
        raise ValueError(f"{who} is not a class but {loaded!r}: correct its entry point {entry.value}")
    check(kind, who, loaded, injected)
    return loaded


def check(kind: str, who: str, policy: type[Any], injected: Iterable[str] | None) -> None:
    """Hold a class against the contract of its kind.

    Args:
        kind: as in `load`.
        who: what the sentence calls it.
        policy: the class.
        injected: as in `load`; None where nothing is constructed, so that any constructor will do.

    Raises:
        ValueError: it cannot be used; one sentence that names the missing part.
    """
    fault = _missing_method(kind, policy) or _wrong_method(kind, policy)
    if not fault and injected is not None:
        fault = _wrong_constructor(policy, injected)
    if fault:
        raise ValueError(f"{who} cannot be used: {policy.__name__} {fault}; see headway.policies.contracts")


def refused_construction(kind: str, name: str, policy: type[Any], error: BaseException) -> ValueError:
    """The sentence for a constructor that raised."""
    where = f"{policy.__module__}.{policy.__qualname__}"
    return ValueError(
        f"the {kind} policy {name!r} cannot be built: {where} raised {type(error).__name__}: {_line(error)}"
    )


def raised_in(kind: str, name: str, policy: type[Any], failure: BaseException) -> str | None:
    """A sentence that blames an outside policy for an exception that came out of its module; None if it did not."""
    trace = failure.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get("__name__") == policy.__module__:
            where = f"line {trace.tb_lineno} of {policy.__module__}, in {frame.f_code.co_name}()"
            raised = f"{type(failure).__name__}: {_line(failure)}"
            return f"the {kind} policy {name!r} raised {raised} ({where}); correct the policy"
        trace = trace.tb_next
    return None


def _missing_method(kind: str, policy: type[Any]) -> str:
    contract = _CONTRACT[kind]
    for name in _methods(contract):
        if not callable(getattr(policy, name, None)):
            return f"lacks the method {name}"
    for power in _WHOLE.get(kind, ()):
        own = [name for name in _methods(power) if name not in _methods(contract)]
        present = [name for name in own if callable(getattr(policy, name, None))]
        if present and len(present) < len(own):
            lacking = ", ".join(name for name in own if name not in present)
            return f"has {', '.join(present)} but lacks {lacking}, which a {power.__name__} needs"
    return ""


def _wrong_method(kind: str, policy: type[Any]) -> str:
    """Which method cannot be called as its contract says; "" where all can."""
    for contract in (_CONTRACT[kind], *_WHOLE.get(kind, ()), *_OPTIONAL):
        for name, declared in _methods(contract).items():
            method = inspect.getattr_static(policy, name, None)
            if not isinstance(method, FunctionType | staticmethod | classmethod):
                continue  # absent, or something callable that cannot be looked into
            arguments = list(inspect.signature(declared).parameters)[1:]
            bound = len(arguments) + isinstance(method, FunctionType)
            try:
                inspect.signature(getattr(policy, name)).bind(*[None] * bound)
            except TypeError:
                return f"must have {name}({', '.join(['self', *arguments])})"
    return ""


def _wrong_constructor(policy: type[Any], injected: Iterable[str]) -> str:
    if policy.__init__ is object.__init__:
        return ""
    try:
        parameters = inspect.signature(policy).parameters.values()
    except (TypeError, ValueError) as error:
        return f"has a constructor that cannot be read ({error})"
    for parameter in parameters:
        by_position = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if by_position and parameter.default is parameter.empty:
            hint = ": make it keyword-only" if parameter.name in injected else ": give it a default"
            return f"has a constructor that needs the argument {parameter.name}{hint}"
    return ""


def _methods(contract: type) -> dict[str, FunctionType]:
    return {
        name: member
        for name, member in vars(contract).items()
        if isinstance(member, FunctionType) and not name.startswith("_")
    }


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"
