"""Learned state of the gateway, kept over restarts and reloads: state of its policies, and tuned values.

Laws: a file that cannot be used is reported in one sentence, and never keeps the gateway from starting. A file is
written whole or not at all. What a queue learned under a policy is restored to the same policy, after a reload as after
a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from headway.config.atomic_file import check_folder
from headway.domain.event import Listener
from headway.gateway.learned.queue_tuning import live_tuner
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.queueing.request_state import QueueKey
from headway.gateway.settings import PolicySettings, Settings
from headway.scheduling.scheduler import Policies
from headway.tuning.learned_policies import LearnedPolicies
from headway.tuning.live_tuner import LiveTuner
from headway.tuning.state_file import SavedState, Unreadable, read_state, try_to_write

_OWNER = "gateway"
_PARTS_MAX = 1_000  # of queues without a request since long


@dataclass(frozen=True, slots=True)
class _Live:
    """The policies and the tuner of one queue."""

    learned: LearnedPolicies
    tuner: LiveTuner | None

    def saved(self) -> dict[str, Any]:
        """Its part of the state file."""
        return self.learned.saved(None if self.tuner is None else self.tuner.best())


class KeptTwin(Protocol):
    """A twin whose choice is kept."""

    def state(self) -> dict[str, Any]:
        """What is kept over a restart; empty for nothing."""

    def restore(self, saved: object) -> None:
        """Take it back. Raises ValueError if it is something else."""


class LearnedState:
    """Restores the fresh policies of each queue (`prepare`) before they see a request; `save` writes their state."""

    def __init__(
        self,
        settings: Settings,
        ratio: TokenRatio,
        report: Callable[[str], None],
        budgets_in_steps: Callable[[], Iterable[Mapping[str, object]]] = tuple,
        twin: KeptTwin | None = None,
    ) -> None:
        """Read the file if there is one.

        Args:
            settings: of the gateway.
            ratio: bytes per token, restored and saved with the rest.
            report: called with one sentence about what could not be used or written.
            twin: is given back what the file holds of it.
            budgets_in_steps: what the budgets of keys keep, by tenant, some at a step; `restore_budgets` gives it back.

        Raises:
            ValueError: the file's folder does not exist, or the ordering cannot be tuned; one sentence.
        """
        self.settings = settings
        self._ratio = ratio
        self._report = report
        self._budgets_in_steps = budgets_in_steps
        self._twin = twin
        self._saved_budgets: object = {}
        self._path = None if settings.state.path is None else Path(settings.state.path)
        self._parts: dict[QueueKey, Mapping[str, Any]] = {}
        self._live: dict[QueueKey, _Live] = {}
        self._trials_reported: dict[QueueKey, int] = {}
        self._saving: asyncio.Task[None] | None = None
        if self._path is not None:
            check_folder("state.path", settings.state.path)
            self._read(self._path)

    def prepare(self, key: QueueKey, chosen: PolicySettings, policies: Policies) -> tuple[Listener, ...]:
        """Restore what a queue's fresh policies had learned; returns the listeners that must hear its events."""
        model_key = QueueKey(key.model, key.kind)  # a queue beside it begins with what its model's has learned
        is_beside = key != model_key
        saved = self._parts.get(model_key) if is_beside else self._parts.pop(key, None)
        if model_key in self._live:
            try:
                saved = self._live[model_key].saved()
            except RuntimeError as error:
                self._report(f"what was learned for {key.model or 'any model'} is lost: {error}")
        learned = LearnedPolicies(policies, chosen.ordering, chosen.prediction)
        tuned, problems = learned.restore(saved or {}, f"what was learned for {key.model or 'any model'}")
        for problem in problems:
            self._report(problem)
        if is_beside:
            return ()
        is_tuned = self.settings.tuning.on and chosen == self.settings.policies  # no model with an order of its own
        tuner = live_tuner(self.settings, policies.ordering, tuned) if is_tuned else None
        self._live[key] = _Live(learned, tuner)
        self._trials_reported[key] = 0
        return () if tuner is None else (tuner,)

    def forget(self, key: QueueKey) -> None:
        """A queue is gone: keep what it learned, as a file would, for when its model is asked for again."""
        live = self._live.pop(key, None)
        self._trials_reported.pop(key, None)
        if live is None:
            return
        try:
            self._parts[key] = live.saved()
        except RuntimeError as error:
            self._report(f"what was learned for {key.model or 'any model'} is lost: {error}")
        if len(self._parts) > _PARTS_MAX:
            del self._parts[next(iter(self._parts))]

    def tuned(self, key: QueueKey) -> Mapping[str, float] | None:
        """The best known values of a queue's tuned options; None where nothing is tuned."""
        live = self._live.get(key)
        return None if live is None or live.tuner is None else live.tuner.best()

    def trials_ended(self) -> list[str]:
        """One sentence for each trial of the tuner that ended since the last call."""
        sentences = []
        for key, live in self._live.items():
            for trial in live.tuner.trials[self._trials_reported[key] :] if live.tuner is not None else ():
                sentences.append(f"tuning {key.model or 'any model'}: {trial}")
                self._trials_reported[key] += 1
        return sentences

    def restore_budgets(self, restore: Callable[[object], None]) -> None:
        """Give back what the file holds of the budgets of keys."""
        try:
            restore(self._saved_budgets)
        except ValueError as error:
            self._report(f"{self._path}: {error}; all budgets are whole")

    def save_soon(self) -> None:
        """Write the file in a thread, unless one is being written."""
        if self._path is not None and (self._saving is None or self._saving.done()):
            self._saving = asyncio.create_task(self._save(self._path))

    async def save(self) -> None:
        """Write the file, and return when it is written."""
        if self._saving is not None:
            await self._saving
        if self._path is not None:
            await self._save(self._path)

    def _read(self, path: Path) -> None:
        saved = read_state(path, _OWNER)
        if isinstance(saved, Unreadable):
            self._report(saved.reason)
        elif saved is not None:
            try:
                lines: list[Mapping[str, Any]] = [dict(part) for part in saved.learned["lines"]]
                parts = {QueueKey(str(part["model"]), str(part["kind"])): part for part in lines}
                self._ratio.restore(saved.learned["bytes_per_token"])
                self._saved_budgets = saved.learned.get("budgets", {})
            except (KeyError, TypeError, ValueError) as error:
                self._report(f"{path}: a part is missing or of another kind ({error!r}); starting afresh")
            else:
                self._parts = parts
                self._restore_twin(path, saved.learned.get("twin"))

    def _restore_twin(self, path: Path, saved: object) -> None:
        if self._twin is not None and saved:
            try:
                self._twin.restore(saved)
            except (TypeError, ValueError) as error:
                self._report(f"{path}: {error}; the twin begins with the configured policies")

    async def _save(self, path: Path) -> None:
        """Gather the state, a queue at a turn of the event loop, and write it in a thread."""
        parts: dict[QueueKey, Mapping[str, Any]] = dict(self._parts)  # of queues without a request since the start
        for key, live in list(self._live.items()):
            try:
                parts[key] = live.saved()
            except RuntimeError as error:  # of a policy: the other queues' state is kept
                self._report(f"what was learned for {key.model or 'any model'} is not saved: {error}")
            await asyncio.sleep(0)
        budgets: dict[str, object] = {}
        for step in self._budgets_in_steps():
            budgets |= step
            await asyncio.sleep(0)
        lines = [{"model": key.model, "kind": key.kind, **part} for key, part in parts.items()]
        learned = {"lines": lines, "bytes_per_token": self._ratio.state(), "budgets": budgets}
        content = SavedState(_OWNER, learned | {"twin": {} if self._twin is None else self._twin.state()})
        problem = await asyncio.to_thread(try_to_write, path, content)
        if problem is not None:
            self._report(problem)
