"""Policy state: keeps over restarts what one engine's policies learn, and runs the live tuner of its ordering.

Laws: the engine's thread never waits for a search, a sort or a disk, as the tuner and the writer have threads of their
own; the engine's thread sets new values between two steps; a file that cannot be used costs one warning and never stops
the start; policies that cannot learn or be tuned at all are refused at start.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headway.config.atomic_file import check_folder
from headway.domain.event import Event
from headway.scheduling.scheduler import Policies
from headway.tuning.learned_policies import LearnedPolicies
from headway.tuning.state_file import SavedState, Unreadable, read_state, try_to_write
from headway.vllm_plugin.config import PluginConfig
from headway.vllm_plugin.plugin_log import logger

_OWNER = "vllm-plugin"
_SAVE_SECONDS = 60.0


class PolicyState:
    """State file and tuner of one engine's policies; a listener of its events. Without either it does nothing."""

    def __init__(self, config: PluginConfig, policies: Policies, file: Path | None) -> None:
        """Gives `policies` what the file holds, before they see a request.

        Raises:
            ValueError: one sentence: no policy learns, the file's folder is missing, or the ordering cannot be tuned.
        """
        self._learned = LearnedPolicies(policies, config.ordering, config.prediction)
        self._file = file
        self._saved_at: float | None = None
        self._writer: threading.Thread | None = None
        self._tuner: TunerThread | None = None
        tuned: Mapping[str, float] = {}
        if file is not None:
            self._check(file)
            tuned = self._read(file)
        if config.live_tuning.on:
            self._tuner = TunerThread(config, tuned)

    @property
    def listeners(self) -> tuple[TunerThread, ...]:
        """Listeners that need every event."""
        return () if self._tuner is None else (self._tuner,)

    def wanted(self) -> Mapping[str, float] | None:
        """Values that the ordering should take now; None if the tuner has no new ones."""
        return None if self._tuner is None else self._tuner.wanted()

    def stepped(self, now: float) -> None:
        """After a step: once a minute, write what was learned, in a thread."""
        if self._file is None:
            return
        if self._saved_at is None:
            self._saved_at = now
        if now - self._saved_at >= _SAVE_SECONDS and (self._writer is None or not self._writer.is_alive()):
            self._saved_at = now
            content = self._content()
            if content is not None:
                self._writer = threading.Thread(target=self._write, args=(self._file, content), daemon=True)
                self._writer.start()

    def close(self) -> None:
        """End the tuner and write what was learned."""
        if self._tuner is not None:
            self._tuner.close()
        if self._file is not None:
            if self._writer is not None:
                self._writer.join()
            content = self._content()
            if content is not None:
                self._write(self._file, content)

    def _check(self, file: Path) -> None:
        if not self._learned.can_learn():
            neither = f"{self._learned.ordering} nor {self._learned.prediction}"
            raise ValueError(f"headway: state_file: neither {neither} learns anything to keep: leave state_file out")
        check_folder("headway: state_file", str(file))

    def _read(self, file: Path) -> Mapping[str, float]:
        saved = read_state(file, _OWNER)
        if isinstance(saved, Unreadable):
            logger.warning("headway: %s", saved.reason)
        if not isinstance(saved, SavedState):
            return {}
        tuned, problems = self._learned.restore(saved.learned, str(file))
        for problem in problems:
            logger.warning("headway: %s", problem)
        return tuned

    def _content(self) -> dict[str, Any] | None:
        """Plain values, taken by the engine's thread, so that nothing of it changes while it is written.

        None, and the file is left as it is from then on, where a policy fails to report what it has learned.
        """
        try:
            return self._learned.saved(None if self._tuner is None else self._tuner.best())
        except RuntimeError as error:
            logger.exception("headway: %s; nothing is kept", error)
            self._file = None
            return None

    def _write(self, file: Path, content: dict[str, Any]) -> None:
        problem = try_to_write(file, SavedState(_OWNER, content))
        if problem is not None:
            logger.warning("headway: %s", problem)


class TunerThread:
    """The live tuner in a thread of its own: events reach it through a queue, and its values wait to be taken."""

    def __init__(self, config: PluginConfig, tuned: Mapping[str, float]) -> None:
        from headway.tuning.tuned_ordering import tuner_of  # noqa: PLC0415 - numpy

        options = config.options.get("ordering", {})
        try:
            self._tuner = tuner_of(config.ordering, self, options, tuned, seed=config.seed, settings=config.live_tuning)
        except ValueError as error:
            raise ValueError(f"headway: live_tuning: {error}; or leave live_tuning out") from None
        self._offered: deque[Mapping[str, float]] = deque(maxlen=1)
        self._best = self._tuner.best()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="headway-tuner", daemon=True)
        self._thread.start()

    def observe(self, event: Event) -> None:
        """Pass an event on; called by the engine's thread."""
        self._events.put(event)

    def retune(self, values: Mapping[str, float]) -> None:
        """Called by the tuner: offer these values to the engine's thread."""
        self._offered.append(dict(values))

    def wanted(self) -> Mapping[str, float] | None:
        """The latest values offered, once."""
        return self._offered.popleft() if self._offered else None

    def best(self) -> Mapping[str, float]:
        """The best values known."""
        return self._best

    def close(self) -> None:
        """End the thread when it has observed every event."""
        self._events.put(None)
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        logged = 0
        while (event := self._events.get()) is not None:
            try:
                self._tuner.observe(event)
            except Exception:
                logger.exception("headway: the live tuner failed; the ordering keeps the values it has")
                return
            for trial in self._tuner.trials[logged:]:
                logged += 1
                self._best = self._tuner.best()
                logger.info("headway: tuning: %s", trial)
