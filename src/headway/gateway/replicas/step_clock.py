"""Step clock: counts the decode steps of one engine by the tokens of a stream that it follows.

A decoding request gets a token in every step, so a stream that is passed on tells the engine's steps as they end. One
stream is followed at a time: streams jitter against each other, and the largest of many counts would run fast. Where
no stream brings tokens, the engine's own counter drives the clock, as often as its metrics are read.

Tokens of a stream that stalled may come late, all in one packet: steps that the clock counted meanwhile by others count
no second time. Fewer than that are taken for those of a request that was preempted and runs again.

Of a request with several sequences the longest tells the steps: one that ends is seen by its finish reason.

The clock loses at most a step where it takes up another stream, and the steps of one report where the engine's counter
gives way to a stream. Prefill-only steps bring no token and are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

_STALLED_TOKENS = 8  # other streams bring so many while the one followed brings none: it was preempted in the engine
_JUMP_MAX = 100_000  # steps between two reports, some minutes of them; above it another engine counts
_PACE_LEARNING = 0.2
_PACE_START_SECONDS = 0.02


class Progress(Protocol):
    """An answer that comes in pieces."""

    @property
    def events(self) -> int:
        """Events of the stream so far; 0 where none is streamed."""

    @property
    def sequence_tokens(self) -> int:
        """Of a stream of several sequences: tokens so far of each that has not ended; 0 where none is streamed."""


class DecodingStream:
    """A request at the replica, as far as its tokens go. Tokens are those of its longest sequence.

    Attributes:
        answer: what comes; None where it cannot be read.
        sequences: answers generated at once.
        begins_at_step: the clock when its prompt was computed; None before.
        seen_tokens: of it, when tokens were last compared with the clock.
        late_tokens: it brought so many fewer by then than the clock counted steps: they may come yet.
    """

    __slots__ = ("answer", "begins_at_step", "late_tokens", "seen_tokens", "sequences")

    def __init__(self, answer: Progress | None, sequences: int) -> None:
        self.answer = answer
        self.sequences = sequences
        self.begins_at_step: int | None = None
        self.seen_tokens = 0
        self.late_tokens = 0

    @property
    def tokens(self) -> int:
        """Tokens that came, of its longest sequence; 0 where it does not stream."""
        if self.answer is None:
            return 0
        return self.answer.events if self.sequences == 1 else self.answer.sequence_tokens


class StepClock:
    """The clock of one replica. `step_seconds` is how long a step has taken lately."""

    def __init__(self) -> None:
        self.steps = 0
        self.step_seconds = _PACE_START_SECONDS
        self._followed: DecodingStream | None = None
        self._counted_tokens = 0  # of the one followed
        self._engine_steps: float | None = None  # as the engine counts them, at its latest report
        self._seen_steps = 0  # the clock when tokens were last compared with it
        self._streamed = False  # a stream moved the clock since that report
        self._paced_from: tuple[float, int] | None = None  # time and steps

    def begins(self, stream: DecodingStream) -> None:
        """A prompt is computed: its tokens come from now on."""
        self._count()
        stream.begins_at_step = self.steps
        if self._followed is None:
            self._follow(stream)

    def ends(self, stream: DecodingStream, others: Iterable[DecodingStream]) -> None:
        """A request is gone. `others` are still there, the one to follow rather first."""
        if stream is not self._followed:
            return
        self._count()
        self._followed = self._paced_from = None
        silent = None  # decodes, but does not stream
        for other in others:
            if other.begins_at_step is not None:
                if other.tokens:
                    self._follow(other)
                    return
                silent = silent or other
        if silent is not None:
            self._follow(silent)

    def look(self, streams: Sequence[DecodingStream], now: float) -> None:
        """Bring the clock up to date; follow another stream if the one followed has stalled. O(streams)."""
        self._count()
        if self.steps == self._seen_steps:
            swift = max(streams, key=_news, default=None)
            if swift is not None and swift is not self._followed and _news(swift) >= _STALLED_TOKENS:
                self.steps += _news(swift)
                self._streamed = True
                self._follow(swift)
        self._see(streams)
        self._measure(now)

    def engine_counted(self, steps: float, streams: Iterable[DecodingStream]) -> None:
        """The engine's own counter of steps, which began at any number. It counts where no stream did since the last.

        Tokens that `streams` brought by now came in steps that it has counted: they count no second time.
        """
        before, self._engine_steps = self._engine_steps, steps
        streamed, self._streamed = self._count() or self._streamed, False
        if streamed or self._followed is None or before is None or not 0 < steps - before <= _JUMP_MAX:
            return
        self.steps += int(steps - before)
        self._see(streams)

    def tokens_of(self, stream: DecodingStream) -> int:
        """Output tokens of a request; of one that does not stream those of the steps since its prompt was computed."""
        tokens = stream.tokens
        if tokens or stream.begins_at_step is None:
            return tokens
        return self.steps - stream.begins_at_step

    def _follow(self, stream: DecodingStream) -> None:
        self._followed = stream
        self._counted_tokens = stream.tokens
        self._paced_from = None

    def _count(self) -> bool:
        """Count the tokens that the stream brought since; whether there were any."""
        followed = self._followed
        if followed is None or followed.answer is None:
            return False
        tokens = followed.tokens
        new = tokens - self._counted_tokens
        if new <= 0:
            return False
        self._counted_tokens = tokens
        if followed.late_tokens:
            new = _in_time(followed, new)
            followed.late_tokens = 0
            if new == 0:
                return False
        self.steps += new
        self._streamed = True
        return True

    def _see(self, streams: Iterable[DecodingStream]) -> None:
        """Where the clock has moved, note how many tokens each stream has brought, and how many are late."""
        if self.steps == self._seen_steps:
            return
        for stream in streams:
            tokens = stream.tokens
            new = tokens - stream.seen_tokens
            began = self.steps if stream.begins_at_step is None else stream.begins_at_step
            steps = self.steps - max(began, self._seen_steps)
            runs = 0 < new <= steps  # what it lacks from before is not late, for it was preempted then
            stream.late_tokens = steps - new if runs else max(0, stream.late_tokens + steps - new)
            stream.seen_tokens = tokens
        self._seen_steps = self.steps

    def _measure(self, now: float) -> None:
        if self._paced_from is None:
            self._paced_from = (now, self.steps) if self._followed is not None else None
            return
        since, steps = self._paced_from
        if self.steps > steps and now > since:
            pace = (now - since) / (self.steps - steps)
            self.step_seconds += _PACE_LEARNING * (pace - self.step_seconds)
            self._paced_from = (now, self.steps)


def _news(stream: DecodingStream) -> int:
    """Tokens since they were last compared with the clock that tell of steps it has not counted."""
    return _in_time(stream, stream.tokens - stream.seen_tokens)


def _in_time(stream: DecodingStream, new_tokens: int) -> int:
    return new_tokens - stream.late_tokens if new_tokens >= stream.late_tokens else new_tokens
