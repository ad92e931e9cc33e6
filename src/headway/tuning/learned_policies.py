"""Learned state of an ordering and a predictor: saved for a state file, and restored to fresh policies."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from headway.policies.contracts import Stateful
from headway.scheduling.scheduler import Policies
from headway.tuning.state_file import restore


class Restored(NamedTuple):
    """Result of a restore.

    Attributes:
        tuned: values that the tuner had found for options of this ordering; empty where there are none.
        problems: a sentence for each policy that starts without its state.
    """

    tuned: Mapping[str, float]
    problems: list[str]


@dataclass(frozen=True, slots=True)
class LearnedPolicies:
    """The policies of one queue or engine that may learn, beside the names they were chosen by."""

    policies: Policies
    ordering: str
    prediction: str

    def can_learn(self) -> bool:
        """Whether any of them has a state to keep."""
        return any(isinstance(policy, Stateful) for _, _, policy in self._each())

    def saved(self, tuned: Mapping[str, float] | None) -> dict[str, Any]:
        """Plain values for a state file, no part of which changes later; `tuned` are the tuner's best.

        Raises:
            RuntimeError: a policy failed to report its state.
        """
        parts: dict[str, Any] = {}
        for kind, name, policy in self._each():
            try:
                state = policy.state() if isinstance(policy, Stateful) else None
            except Exception as error:
                raise RuntimeError(f"{name} cannot report its learned state") from error
            parts[kind] = {"name": name, "state": state}
        return {**parts, "tuned": None if tuned is None else dict(tuned)}

    def restore(self, saved: Mapping[str, Any], where: str) -> Restored:
        """Give fresh policies what `saved` held; a policy of another name, or one that refuses, stays fresh.

        `where` is what the problems call the place, such as the file's path.
        """
        problems = []
        for kind, name, policy in self._each():
            part = saved.get(kind)
            if not isinstance(part, Mapping) or part.get("state") is None:
                continue
            if part.get("name") != name:
                problems.append(f"{where}: its {kind} is {part.get('name')!r}, not {name!r}, which starts afresh")
            elif why := restore(policy, name, part["state"]):
                problems.append(f"{where}: {why}; starting afresh")
        tuned = self._tuned(saved)
        if not all(map(_is_number, tuned.values())):
            problems.append(f"{where}: a tuned value is no finite number; tuning begins with the options as configured")
            tuned = {}
        return Restored(tuned, problems)

    def _tuned(self, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        ordering, tuned = saved.get("ordering"), saved.get("tuned")
        if isinstance(ordering, Mapping) and ordering.get("name") == self.ordering and isinstance(tuned, Mapping):
            return tuned
        return {}

    def _each(self) -> Iterator[tuple[str, str, object]]:
        """Kind, name and policy."""
        yield "ordering", self.ordering, self.policies.ordering
        yield "prediction", self.prediction, self.policies.prediction


def _is_number(value: object) -> bool:
    """Whether it is a number that fits a float, and neither NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
