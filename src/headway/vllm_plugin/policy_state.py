"""What the policies of one engine learn, kept over restarts, and the slow loop that tunes its ordering.

Laws: the engine's thread never waits for a search, a sort or a disk: the tuner and the writer have threads of their
own, and what the tuner wants is done by the engine's thread between two steps; a file that cannot be used is told of in
one sentence and never a reason not to start; what cannot learn or be tuned at all is refused at start.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.domain.event import Event
from headway.policies.contracts import Stateful
from headway.scheduling.scheduler import Policies

if TYPE_CHECKING:
    from headway.vllm_plugin.config import PluginConfig

logger = logging.getLogger("vllm.headway")  # below vLLM's own, so that its handlers and levels hold

_OWNER = "vllm-plugin"
_KEPT = ("ordering", "prediction")
_SAVE_SECONDS = 60.0


class PolicyState:
    """State file and tuner of one engine's policies; a listener of its events. Without either it does nothing."""

    def __init__(self, config: PluginConfig, policies: Policies, file: Path | None) -> None:
        """Gives `policies`, before they see a request, what the file holds.

        Raises:
            ValueError: one sentence: nothing here learns, the file's folder is not there, the ordering cannot be tuned.
        """
        self._names = {"ordering": config.ordering, "prediction": config.prediction}
        self._policies = policies
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
        """Who has to hear every event."""
        return () if self._tuner is None else (self._tuner,)

    def wanted(self) -> Mapping[str, float] | None:
        """Values that the ordering should take now, if the tuner has decided on new ones."""
        return None if self._tuner is None else self._tuner.wanted()

    def stepped(self, now: float) -> None:
        """After a step: once a minute what was learned is written, in a thread."""
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
        if not any(isinstance(getattr(self._policies, kind), Stateful) for kind in _KEPT):
            neither = " nor ".join(self._names.values())
            raise ValueError(f"headway: state_file: neither {neither} learns what could be kept: leave it out")
        if not file.parent.is_dir():
            raise ValueError(f"headway: state_file: there is no folder {str(file.parent)!r}; make it first")

    def _read(self, file: Path) -> Mapping[str, float]:
        from headway.tuning.state_file import SavedState, Unreadable, read_state, restore  # noqa: PLC0415 - numpy

        saved = read_state(file, _OWNER)
        if isinstance(saved, Unreadable):
            logger.warning("headway: %s", saved.reason)
        if not isinstance(saved, SavedState):
            return {}
        for kind in _KEPT:
            part, name = saved.learned.get(kind), self._names[kind]
            if not isinstance(part, Mapping) or part.get("state") is None:
                continue
            before = part.get("name")
            if before != name:
                logger.warning("headway: %s: its %s is %r, not %r, which starts afresh", file, kind, before, name)
            elif refused := restore(getattr(self._policies, kind), SavedState(name, part["state"]), file):
                logger.warning("headway: %s", refused.reason)
        of, tuned = saved.learned.get("ordering"), saved.learned.get("tuned")
        same = isinstance(of, Mapping) and of.get("name") == self._names["ordering"]
        return tuned if same and isinstance(tuned, Mapping) else {}

    def _content(self) -> dict[str, Any] | None:
        """Plain values, taken by the engine's thread, so that nothing of it changes while it is written.

        None, and the file is left as it is from then on, where a policy fails to say what it has learned.
        """
        kept = {}
        for kind in _KEPT:
            policy = getattr(self._policies, kind)
            try:
                state = policy.state() if isinstance(policy, Stateful) else None
            except Exception:
                logger.exception("headway: %s cannot say what it has learned; nothing is kept", self._names[kind])
                self._file = None
                return None
            kept[kind] = {"name": self._names[kind], "state": state}
        return {**kept, "tuned": None if self._tuner is None else dict(self._tuner.best())}

    def _write(self, file: Path, content: dict[str, Any]) -> None:
        from headway.tuning.state_file import SavedState, write_state  # noqa: PLC0415 - numpy

        try:
            write_state(file, SavedState(_OWNER, content))
        except (OSError, ValueError, TypeError) as error:
            logger.warning("headway: %s: what was learned cannot be written: %s", file, error)


class TunerThread:
    """The live tuner in a thread of its own: hears events late by what is before them, and wishes for values."""

    def __init__(self, config: PluginConfig, tuned: Mapping[str, float]) -> None:
        from headway.tuning.tuned_ordering import tuner_of  # noqa: PLC0415 - numpy

        options = config.options.get("ordering", {})
        try:
            self._tuner = tuner_of(config.ordering, self, options, tuned, seed=config.seed, settings=config.live_tuning)
        except ValueError as error:
            raise ValueError(f"headway: live_tuning: {error}; or leave live_tuning out") from None
        self._wishes: deque[Mapping[str, float]] = deque(maxlen=1)
        self._best = self._tuner.best()
        self._heard: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="headway-tuner", daemon=True)
        self._thread.start()

    def observe(self, event: Event) -> None:
        """Pass an event on; called by the engine's thread."""
        self._heard.put(event)

    def retune(self, values: Mapping[str, float]) -> None:
        """What the tuner thinks it does to the ordering: a wish for the engine's thread to fulfil."""
        self._wishes.append(dict(values))

    def wanted(self) -> Mapping[str, float] | None:
        """The latest wish, once."""
        return self._wishes.popleft() if self._wishes else None

    def best(self) -> Mapping[str, float]:
        """The best values known."""
        return self._best

    def close(self) -> None:
        """End the thread when it has heard all."""
        self._heard.put(None)
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        told = 0
        while (event := self._heard.get()) is not None:
            try:
                self._tuner.observe(event)
            except Exception:
                logger.exception("headway: the live tuner failed; the ordering keeps the values it has")
                return
            for trial in self._tuner.trials[told:]:
                told += 1
                self._best = self._tuner.best()
                logger.info("headway: tuning: %s", trial)
