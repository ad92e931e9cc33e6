"""Step meter: how long a step of this vLLM takes, learned from its own steps; asked by what plans the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from headway.scheduling.learned_step_time import LearnedStepTime, StepWork
from headway.vllm_plugin import vllm_adapter as vllm
from headway.vllm_plugin.vllm_adapter import VllmAdapter

_PICOSECONDS = 1e12


class StepMeter:
    """One per engine. `measures` says whether steps are looked at; it costs a look at each running request."""

    def __init__(self, engine: VllmAdapter) -> None:
        self._engine = engine
        self._learned = LearnedStepTime()
        self._in_flight: deque[StepWork] = deque()
        self._ended_at: float | None = None
        self.measures = False

    @property
    def is_known(self) -> bool:
        """Whether enough steps were measured to be believed."""
        return self._learned.is_known

    def step_ps(self, decodes: int, context_tokens: int, prompts: int, tokens: int, before: int) -> int:
        """Picoseconds of such a step as learned, at least 1 (`offline_gate.StepPicoseconds`)."""
        return max(1, int(self._learned.seconds(StepWork(decodes, context_tokens, tokens, before)) * _PICOSECONDS))

    def composed(self, tokens: Mapping[str, int]) -> None:
        """vLLM has scanned and gave out these tokens, by request."""
        if not (self.measures and tokens):
            return
        decodes = context = prompt_tokens = prompts_before = 0
        for request in self._engine.running:
            given = tokens.get(vllm.request_id(request), 0)
            if not given:
                continue
            before = vllm.computed_tokens(request) - given
            if before >= vllm.total_tokens(request) - 1:
                decodes += 1
                context += before
                prompt_tokens += given - 1  # drafts
            else:
                prompt_tokens += given
                prompts_before += before
        self._in_flight.append(StepWork(decodes, context, prompt_tokens, prompts_before))

    def step_ended(self, now: float) -> None:
        """The oldest step ended: learn how long it took, where the engine was busy since the one before."""
        if not self._in_flight:
            self._ended_at = None
            return
        facts = self._in_flight.popleft()
        if self._ended_at is not None:
            self._learned.measured(facts, now - self._ended_at)
        self._ended_at = now if self._in_flight or self._engine.running_count() else None
