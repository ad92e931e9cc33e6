"""A bundle as the twin names it: four policies and their options, as plain values that go through a pipe and a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headway.policies.catalog import KINDS


@dataclass(frozen=True, slots=True)
class ChosenBundle:
    """Four policies by their full names, and their options by kind."""

    ordering: str
    admission: str = "greedy"
    preemption: str = "latest-admitted"
    prediction: str = "running-mean"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its order with the order's options, and each other policy that is not the usual one."""
        dials = ", ".join(f"{name}={value}" for name, value in self.options.get("ordering", {}).items())
        said = self.ordering + (f"({dials})" if dials else "")
        said += "" if self.admission == "greedy" else f" + {self.admission}"
        return said + ("" if self.preemption == "latest-admitted" else f" + {self.preemption}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        named: dict[str, Any] = {kind: getattr(self, kind) for kind in KINDS}
        return named | {"options": {kind: dict(given) for kind, given in self.options.items() if given}}

    @classmethod
    def from_json(cls, given: object) -> ChosenBundle:
        """Read what `to_json` wrote. Raises ValueError if it is something else."""
        if not isinstance(given, Mapping) or set(given) != {*KINDS, "options"}:
            raise ValueError(f"a bundle has the keys {', '.join(KINDS)} and options, got {str(given)[:100]}")
        options = given["options"]
        if not isinstance(options, Mapping) or not all(isinstance(one, Mapping) for one in options.values()):
            raise ValueError("the options of a bundle are tables by kind")
        ordering, admission, preemption, prediction = (str(given[kind]) for kind in KINDS)
        tables = {str(kind): dict(one) for kind, one in options.items()}
        return cls(ordering, admission, preemption, prediction, tables)
