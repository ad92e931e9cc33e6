"""Internal errors: exceptions of our own code, or of a plug-in's, that were contained where they passed.

Law: an exception ends the one request that it belongs to and nothing else. It is counted by place. Its traceback is
logged at most once a minute for each place, so that a fault which repeats cannot flood the log.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import ParamSpec

from headway.scheduling.checked_policies import PolicyFault

LOGGED_EVERY_SECONDS = 60.0
P = ParamSpec("P")
log = logging.getLogger("headway.gateway")


class InternalErrors:
    """One per process. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.by_place: Counter[str] = Counter()
        self.policy_faults: Counter[tuple[str, str]] = Counter()  # (kind of policy, reason)
        self._clock = clock
        self._logged: dict[str, tuple[float, int]] = {}  # place -> when it was logged last, and its count then

    def contained(self, place: str, error: Exception) -> None:
        """An exception was contained at one of a few named places."""
        self.by_place[place] += 1
        self._log(place, self.by_place[place], f"an internal error in {place} was contained", error)

    def policy_fault(self, fault: PolicyFault) -> None:
        """A policy raised, or its answer made no sense; a simple rule decided instead."""
        key = fault.kind, fault.reason
        self.policy_faults[key] += 1
        self._log(
            f"{fault.kind} policy, {fault.reason}",
            self.policy_faults[key],
            f"{fault}; a simple rule decides instead",
            fault.__cause__ or fault,
        )

    def guard(self, place: str, act: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> None:
        """Call `act`; what it raises is contained."""
        try:
            act(*arguments, **named)
        except Exception as error:
            self.contained(place, error)

    def _log(self, place: str, number: int, sentence: str, error: BaseException) -> None:
        now = self._clock()
        at, before = self._logged.get(place, (None, 0))
        if at is not None and now - at < LOGGED_EVERY_SECONDS:
            return
        self._logged[place] = now, number
        log.error(sentence, exc_info=error, extra={"fields": {"since_last_line": number - before}})
