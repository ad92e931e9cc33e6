"""Readers of answers as they pass: token usage, and whether the answer is whole, without changing what the client sees.

The replica is asked for a usage chunk at a stream's end (`stream_options.include_usage`); it is taken out again where
the client did not ask. Law: what passes differs from what came by that one event, or not at all. Only events that
mention usage or an error are parsed. Bytes are held back only while the event that they begin is not whole.

Status 200 does not make an answer good: an engine that fails in the middle sends an error event, or just stops.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from typing import NamedTuple

from headway.gateway.openai.usage import COMPLETION_USAGE, EngineError, Usage, UsageFields, parser_of

_HELD_BYTES_MAX = 1 << 20
_JSON_BYTES_MAX = 4 << 20
_LATEST = 4
"""Pieces that are kept to judge the end: a finish reason and [DONE] are among the last events; an error is anywhere."""
_END_BYTES = 1 << 13
"""Of a long piece only so much of either end is kept: thousands of streams may have such pieces."""
_READ_TOGETHER = 500
"""Of a packet's events with a usage or an error so many are read, the first and the last ones. An engine sends one; to
read 12,000 takes a quarter of a second."""
_USUAL_BYTES = 20
"""Beginning in which events of tokens are alike and an error differs: a compare costs half a search for "error"."""
_NEVER = b"\0"  # no event begins so
_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
# Six times as fast as with {2,}: `re` skips to the first byte of a line end. Further blank lines end no further event.
_BREAK = re.compile(_LINE_END + _LINE_END + rb"(?:" + _LINE_END + rb")*+")
_BREAK_BYTES_MAX = 4
_LINE = re.compile(rb"\r\n|\n|\r")
_DONE = re.compile(rb"data:(?<![^\r\n]data:)[ \t]*\[DONE\]")  # at a line's beginning; `^` first is ten times as slow
_USUAL_END = b"\ndata: [DONE]\n\n"
_USAGE_MARK = re.compile(rb'"usage"')
_USAGE_OR_ERROR_MARK = re.compile(rb'"(?:usage|error)"')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"')
_FINISH_BYTES_MAX = 32
_BAD_FINISH = re.compile(rb'"finish_reason"\s*:\s*"(error|abort)"')


class AnswerFault(NamedTuple):
    """Why an answer with status 200 is no success."""

    why: str
    """A clause whose subject is the replica."""
    is_cut: bool
    """It just stops: the client cannot tell unless the gateway tells it. Else it holds the engine's own error."""
    is_of_replica: bool


class StreamReader:
    """Reads a stream of server-sent events as it passes."""

    def __init__(self, *, hide_usage: bool, fields: UsageFields = COMPLETION_USAGE) -> None:
        self._parser = parser_of(fields)
        self._hide_usage = hide_usage
        self._is_open = False  # in the middle of an event
        self._held = bytearray()
        self._searched = 0  # bytes held in which no event ends
        self._split_break: bytes | None = None  # an event ended with CR: what becomes of LF if that comes next
        self._is_too_long = False  # the event that is open passes unread
        self._usual = _NEVER  # how a token's event begins: an error's begins differently
        self._latest: deque[bytes] = deque(maxlen=_LATEST)
        self._error: EngineError | None = None
        self._read_slowly = 0  # pieces
        self.events = 0
        self.usage: Usage | None = None

    def pass_on(self, piece: bytes) -> bytes:
        """The bytes for the client: `piece`, perhaps with what was held before it; may be empty."""
        if piece.endswith(b"\n\n") and piece.find(b'"usage"') < 0:
            # One event of one line, as mostly: to find its end is quicker than to count.
            if piece.startswith(self._usual) and piece.find(b"\n") == len(piece) - 2:
                self.events += 1
                self._latest.append(piece)
                return piece
            if not self._is_open and piece.find(b'"error"') < 0:
                self._usual = piece[:_USUAL_BYTES]
                self.events += piece.count(b"\n\n")
                self._latest.append(_shortened(piece))
                return piece
        return self._slowly(piece)

    @property
    def is_between_events(self) -> bool:
        """Whether what was passed on ends with a whole event, so that another may follow."""
        return not self._is_too_long

    @property
    def pieces_mark(self) -> int:
        """A number that grows with every piece: of the usual ones each brings an event."""
        return self.events + self._read_slowly

    def rest(self) -> bytes:
        """The bytes still held when the stream ends: an event without its end."""
        self._is_open = False
        if not self._held:
            return b""
        held = bytes(self._held)
        self._held.clear()
        self.events += 1
        return held if self._is_too_long or self._passes(held) else b""

    def has_passed_all(self, last_event: re.Pattern[bytes]) -> bool:
        """Whether a good stream's last event has passed; asked when no more of it will."""
        return last_event.search(self._last_events()) is not None and self.fault(last_event) is None

    def _last_events(self) -> bytes:
        # An event may end with CR, its LF having come in the next packet. Of a long one both ends are looked at.
        latest = b"\n".join(self._latest)
        return latest if len(latest) <= 2 * _END_BYTES else b"\n".join(map(_shortened, self._latest))

    def fault(self, end: re.Pattern[bytes]) -> AnswerFault | None:
        """What is wrong with a stream that ended now; `end` finds the mark of a whole one in its last events."""
        latest = self._last_events()
        self._latest.clear()
        if self._error is not None:
            return AnswerFault(f"its answer holds an error: {self._error.message}", False, self._error.is_of_replica)
        bad = _BAD_FINISH.search(latest)
        if bad is not None:
            return AnswerFault(f"its answer ends with finish_reason {bad[1].decode()!r}", False, True)
        if latest.endswith(_USUAL_END) or _DONE.search(latest) is not None:
            self.events -= 1  # no token
        elif end.search(latest) is None:
            return AnswerFault("its answer stops before its end", True, True)
        return None

    def _slowly(self, piece: bytes) -> bytes:
        self._read_slowly += 1
        held, passed = self._held, []
        if self._split_break is not None and piece.startswith(b"\n"):
            passed.append(self._split_break)
            piece = piece[1:]
        self._split_break = None
        held += piece
        ends = [mark.end() for mark in _BREAK.finditer(held, self._searched)]
        if ends:
            whole = bytes(held[: ends[-1]])
            del held[: ends[-1]]
            passed += self._passed_of(whole, ends)
            if not held and whole.endswith(b"\r"):
                self._split_break = b"\n" if passed[-1] else b""
        if len(held) > _HELD_BYTES_MAX or self._is_too_long:
            self._is_too_long = True
            passed.append(bytes(held[:-_BREAK_BYTES_MAX]))
            del held[:-_BREAK_BYTES_MAX]
        self._searched = max(0, len(held) - _BREAK_BYTES_MAX)
        self._is_open = bool(held) or self._is_too_long or self._split_break is not None
        if self._is_open:
            self._usual = _NEVER
        return b"".join(passed)

    def _passed_of(self, whole: bytes, ends: list[int]) -> list[bytes]:
        """What is for the client of these events, each of which ends at one of `ends`."""
        self.events += len(ends)
        if not self._is_too_long and not self._says_more(whole):
            return [self._unread(whole)]
        passed, begin = [], 0
        for number in self._worth_reading(whole, ends):
            event_begin, event_end = ends[number - 1] if number else 0, ends[number]
            if begin < event_begin:
                passed.append(self._unread(whole[begin:event_begin]))
            event = whole[event_begin:event_end]
            begin = event_end
            if self._is_too_long:
                self._is_too_long = False
                passed.append(self._unread(event))
            else:
                passed.append(event if self._passes(event) else b"")
        if begin < len(whole):
            passed.append(self._unread(whole[begin:]))
        return passed

    def _unread(self, events: bytes) -> bytes:
        self._latest.append(_shortened(events))
        return events

    def _worth_reading(self, whole: bytes, ends: list[int]) -> list[int]:
        """Numbers of the events that are looked at one by one, in order: the others hold neither usage nor error."""
        marks = _USAGE_MARK if self._error is not None else _USAGE_OR_ERROR_MARK
        crowd = sorted({bisect_right(ends, mark.start()) for mark in marks.finditer(whole)})
        if len(crowd) > 2 * _READ_TOGETHER:
            crowd = crowd[:_READ_TOGETHER] + crowd[-_READ_TOGETHER:]
        if self._is_too_long and (not crowd or crowd[0] > 0):
            crowd.insert(0, 0)
        return crowd

    def _says_more(self, content: bytes) -> bool:
        """Whether a usage or a first error may be in it."""
        return content.find(b'"usage"') >= 0 or (self._error is None and content.find(b'"error"') >= 0)

    def _passes(self, event: bytes) -> bool:
        """Note its usage and its error; false for a usage chunk that the client did not ask for."""
        self._latest.append(_shortened(event))
        if not self._says_more(event):
            return True
        facts = self._parser.facts(_data_of(event))
        self._error = self._error or facts.error
        if facts.usage is not None:
            self.usage = facts.usage.merged(self.usage)
        if not (facts.is_usage_alone and self._hide_usage):
            return True
        self.events -= 1
        self._latest.pop()  # it says nothing of the end
        return False


class SequencesReader(StreamReader):
    """Reads a stream of several sequences: it also sees when one of them ends, in the events with a finish reason.

    Sequences decode in lockstep, each with an event a step, the last of which holds its finish reason. An engine that
    gives the reason an event of its own makes the others seem a token longer by its share of them.
    """

    def __init__(self, sequences: int, *, hide_usage: bool, fields: UsageFields = COMPLETION_USAGE) -> None:
        super().__init__(hide_usage=hide_usage, fields=fields)
        self._running = sequences
        self._ended_tokens = 0  # of the sequences that have ended
        self._tail = b""  # of the last piece: a finish reason may be cut in two

    @property
    def sequence_tokens(self) -> int:
        """Tokens that came by now of each sequence that has not ended."""
        return (self.events - self._ended_tokens) // self._running

    def pass_on(self, piece: bytes) -> bytes:
        """See `StreamReader`."""
        before = self.events
        passed = super().pass_on(piece)
        text, tail, events = self._tail + piece, len(self._tail), before + 1
        at = max(0, tail - 1)  # the end of an event may be cut in two as well
        for finish in _FINISH.finditer(text):
            if finish.end() > tail and self._running > 1:
                begin, at = at, finish.end()
                events += text.count(b"\n\n", begin, at)  # from the one before: a packet may hold thousands
                self._ended_tokens += -(-(events - self._ended_tokens) // self._running)
                self._running -= 1
        self._tail = (self._tail + piece[-_FINISH_BYTES_MAX:])[-_FINISH_BYTES_MAX:]
        return passed


class JsonReader:
    """Keeps a copy of a JSON answer, up to 4 MiB, to read it at the end. `may_be_cut`: no length was announced."""

    def __init__(self, fields: UsageFields = COMPLETION_USAGE, *, may_be_cut: bool = False) -> None:
        self._parser = parser_of(fields)
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._may_be_cut = may_be_cut
        self._fault: AnswerFault | None = None
        self.events = 0
        self.usage: Usage | None = None

    @property
    def pieces_mark(self) -> int:
        """A number that grows with every piece."""
        return self._bytes

    def pass_on(self, piece: bytes) -> bytes:
        """The piece itself."""
        self._bytes += len(piece)
        if self._bytes <= _JSON_BYTES_MAX:
            self._pieces.append(piece)
        else:
            self._pieces.clear()
        return piece

    def rest(self) -> bytes:
        """Nothing is held back; the answer is read now."""
        if self._bytes <= _JSON_BYTES_MAX:
            content = b"".join(self._pieces)
            facts = self._parser.facts(content)
            self.usage = facts.usage
            if facts.error is not None:
                why = f"its answer holds an error: {facts.error.message}"
                self._fault = AnswerFault(why, False, facts.error.is_of_replica)
            elif self._may_be_cut and not content.rstrip().endswith((b"}", b"]")):
                self._fault = AnswerFault("its answer stops before its end", True, True)
        self._pieces.clear()
        return b""

    def has_passed_all(self, last_event: re.Pattern[bytes]) -> bool:
        """False: the end of JSON is the end of the answer; `last_event` is of streams."""
        return False

    def fault(self, end: re.Pattern[bytes]) -> AnswerFault | None:
        """What is wrong with an answer that ended now; `end` is of streams."""
        return self._fault


def _shortened(piece: bytes) -> bytes:
    return piece if len(piece) <= 2 * _END_BYTES else piece[:_END_BYTES] + b" " + piece[-_END_BYTES:]


def _data_of(event: bytes) -> bytes:
    lines = [line[5:].lstrip(b" ") for line in _LINE.split(event) if line.startswith(b"data:")]
    return b"\n".join(lines)
