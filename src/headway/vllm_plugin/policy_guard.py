"""Policy guard: times every answer of a policy; one that stalls is raised as `PolicyFault`.

A policy cannot be interrupted from inside its own thread: one that stalls is noticed when it returns. What makes an
answer wrong stands in `headway.scheduling.checked_policies`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from headway.scheduling.checked_policies import PolicyFault
from headway.vllm_plugin.config import GuardLimits

P = ParamSpec("P")
Answer = TypeVar("Answer")
_GROSS_OVERRUN = 25  # budgets in one answer that need no second strike
_SURE_OVERRUN = 10  # budgets of wall time that a busy machine does not explain


class PolicyTimer:
    """Times every answer, adds the times up by kind of policy, and counts a strike for each that took too long.

    On a busy machine a policy that was not running looks slow. So the first overrun counts only if it is gross. For
    `strike_seconds` after it the thread's CPU time is read too (a microsecond, too dear for always): then a strike is
    one budget of CPU time, or ten budgets of wall time.
    """

    def __init__(self, limits: GuardLimits, clock: Callable[[], float], cpu_clock: Callable[[], float]) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._budget_seconds = limits.budget_ms / 1000
        self._strikes = limits.strikes
        self._strike_seconds = limits.strike_seconds
        self._struck: deque[float] = deque()
        self._suspicious_until = float("-inf")
        self.total_seconds = {"ordering": 0.0, "admission": 0.0, "preemption": 0.0, "prediction": 0.0}
        self._step_seconds = self._step_cpu_seconds = 0.0  # of choices in the present step; entries are judged singly
        self._step_kind = "ordering"
        self.lanes = 1  # compared in the last choice

    def bound(self, kind: str, per_step: bool, question: Callable[P, Answer]) -> Callable[P, Answer]:
        """The question as `ask` puts it."""
        return cast(Callable[P, Answer], partial(self.ask, kind, per_step, question))

    def ask(self, kind: str, per_step: bool, question: Callable[..., Answer], *arguments: Any) -> Answer:
        """The policy's answer. Raises PolicyFault if it raised, or stalled too often or too grossly."""
        began = self._clock()
        suspicious = began < self._suspicious_until
        cpu_began = self._cpu_clock() if suspicious else 0.0
        try:
            answer = question(*arguments)
        except Exception as error:
            raise PolicyFault(kind, "raised", f"raised {type(error).__name__}: {error}") from error
        seconds = self._clock() - began
        cpu_seconds = self._cpu_clock() - cpu_began if suspicious else 0.0
        self.total_seconds[kind] += seconds
        if per_step:
            self._step_seconds += seconds
            self._step_cpu_seconds += cpu_seconds
            self._step_kind = kind
        if seconds > self._budget_seconds:
            self._judge(kind, seconds, cpu_seconds, began)
        return answer

    def end_step(self) -> None:
        """Judge the choices of one step together. Raises PolicyFault at the last strike."""
        seconds, cpu_seconds = self._step_seconds, self._step_cpu_seconds
        self._step_seconds = self._step_cpu_seconds = 0.0
        if seconds > self._budget_seconds:
            self._judge(self._step_kind, seconds, cpu_seconds, self._clock())

    def _judge(self, kind: str, seconds: float, cpu_seconds: float, now: float) -> None:
        self._step_seconds = self._step_cpu_seconds = 0.0  # judged once is enough
        budget, suspicious = self._budget_seconds, now < self._suspicious_until
        self._suspicious_until = now + self._strike_seconds
        gross = seconds > _GROSS_OVERRUN * budget
        if not gross and not (suspicious and (cpu_seconds > budget or seconds > _SURE_OVERRUN * budget)):
            return
        while self._struck and now - self._struck[0] > self._strike_seconds:
            self._struck.popleft()
        self._struck.append(now)
        if gross or len(self._struck) >= self._strikes:
            raise PolicyFault(
                kind,
                "stalled",
                f"took {seconds * 1000:.1f} ms where {budget * 1000:g} ms are allowed "
                f"(strike {len(self._struck)} within {self._strike_seconds:g} s)",
            )
