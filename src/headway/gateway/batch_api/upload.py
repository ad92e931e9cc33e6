"""Upload of a file: its form is read as it comes and its content written to the disk, in threads.

Laws: the event loop writes nothing; of a file no more is in memory than a few pieces, however fast its client sends;
an upload that does not become whole leaves nothing on the disk.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser

from headway.gateway.openai.error_responses import Reason, error_response
from headway.gateway.wire.messages import Response

_PIECE_BYTES = 1 << 18
_PIECES_MAX = 3  # that wait to be written before the client is read no more
_PARTS_MAX = 16
_PART_HEADERS_MAX, _HEADER_BYTES_MAX = 8, 4_096
_VALUE_BYTES_MAX = 4_096  # of a field that is no file
FORM_BYTES_MAX = 1 << 17
"""Of all that a form holds besides its file."""
NAME_CHARACTERS_MAX = 255


class UploadedForm:
    """A form as far as it was read. All of it is called in one thread at a time.

    Attributes:
        path: where the content of its file is written.
        name: of its file, as its client calls it; None before one came.
        fields: its other parts.
    """

    def __init__(self, boundary: bytes, path: Path, file_bytes_max: int) -> None:
        self.path = path
        self.name: str | None = None
        self.fields: dict[str, str] = {}
        self._file_bytes_max = file_bytes_max
        self._file: BinaryIO | None = None
        self._parser = PushMultipartParser(
            boundary,
            max_header_size=_HEADER_BYTES_MAX,
            max_header_count=_PART_HEADERS_MAX,
            max_segment_count=_PARTS_MAX,
        )
        self._part: MultipartSegment | None = None
        self._value = bytearray()
        self._file_bytes = 0

    def feed(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            ValueError: one sentence; the form is not valid, or beyond a bound.
            OSError: the content cannot be written.
        """
        try:
            for event in self._parser.parse(piece):
                if isinstance(event, MultipartSegment):
                    self._begin(event)
                elif event is None:
                    self._end()
                else:
                    self._more(event)
        except ParserLimitReached as error:
            raise ValueError(f"the form is beyond a bound: {error}") from None
        except MultipartError as error:
            raise ValueError(f"the body is not a valid form (multipart/form-data): {error}") from None

    def finish(self) -> None:
        """The body has ended. Raises as `feed`, also where it ended too soon."""
        try:
            self._parser.close()
        except MultipartError as error:
            raise ValueError(f"the body is not a valid form (multipart/form-data): {error}") from None
        if self._file is None:
            raise ValueError("the form has no part `file`; send the input file in it")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Leave nothing on the disk."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _begin(self, part: MultipartSegment) -> None:
        self._part = part
        self._value.clear()
        if part.name != "file":
            if part.name in self.fields:
                raise ValueError(f"the form has the part {part.name[:40]!r} more than once; send it once")
            return
        if self._file is not None:
            raise ValueError("the form has more than one part `file`; upload one file at a time")
        self.name = _plain_name(part.filename or "")
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(handle, "wb")

    def _more(self, piece: bytes | bytearray) -> None:
        if self._part is not None and self._part.name == "file":
            self._file_bytes += len(piece)
            if self._file_bytes > self._file_bytes_max:
                raise ValueError(f"the file is longer than {self._file_bytes_max} bytes; split it")
            if self._file is not None:
                self._file.write(piece)
            return
        self._value += piece
        if len(self._value) > _VALUE_BYTES_MAX:
            name = self._part.name[:40] if self._part is not None else ""
            raise ValueError(f"the part {name!r} of the form is longer than {_VALUE_BYTES_MAX} bytes")

    def _end(self) -> None:
        part, self._part = self._part, None
        if part is not None and part.name != "file":
            self.fields[part.name] = self._value.decode("utf-8", "replace")


def _plain_name(given: str) -> str:
    """A name to show, without folders and without what cannot be shown."""
    last = given.replace("\\", "/").rpartition("/")[2]
    return "".join(one for one in last if one.isprintable())[:NAME_CHARACTERS_MAX] or "file"


class Upload:
    """A `BodySink`: takes the body of one `POST /v1/files` as it comes."""

    def __init__(
        self,
        boundary: bytes,
        folder: Path,
        file_bytes_max: int,
        seconds_max: float,
        threads: Executor,
        over: Callable[[Upload], None],
        owner: str,
        announced: int,
    ) -> None:
        """`over` is called once, when nothing of it is under way any more; so many bytes are `announced`."""
        self.bytes_max = file_bytes_max + FORM_BYTES_MAX
        self.seconds_max = seconds_max
        self.fault: Response | None = None
        self.bytes = 0
        self.owner = owner
        self._announced = announced
        self.form = UploadedForm(boundary, folder / secrets.token_hex(16), file_bytes_max)
        self._threads = threads
        self._over: Callable[[Upload], None] | None = over
        self._piece = bytearray()
        self._pieces: deque[bytes] = deque()
        self._is_stopped = False  # the client is not read
        self._is_abandoned = False
        self._read_on: Callable[[], None] = lambda: None
        self._writing: asyncio.Task[None] | None = None

    @property
    def bytes_to_come(self) -> int:
        """What it will take on the disk, as far as is known: what was announced, or what came where that is more."""
        return max(self.bytes, self._announced)

    def begin(self, read_on: Callable[[], None]) -> None:
        """The body begins to come."""
        self._read_on = read_on

    def take(self, piece: bytes) -> bool:
        """The next piece of the body."""
        self.bytes += len(piece)
        self._piece += piece
        if len(self._piece) >= _PIECE_BYTES:
            self._write_soon()
        self._is_stopped = len(self._pieces) >= _PIECES_MAX
        return not self._is_stopped

    def abandon(self) -> None:
        """The body will not become whole."""
        self._is_abandoned = True
        self._pieces.clear()
        self._piece.clear()
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write())

    async def whole(self) -> None:
        """The body is whole: what is left of it is written. `fault` then says whether it became a file."""
        self._write_soon()
        while self._writing is not None and self.fault is None:
            await asyncio.shield(self._writing)
        if self.fault is None:
            await self._in_thread(self.form.finish)

    async def close(self, *, is_kept: bool) -> None:
        """It is over. Unless its content was kept, nothing is left of it."""
        over, self._over = self._over, None
        if over is None:
            return
        try:
            if not is_kept:
                await asyncio.get_running_loop().run_in_executor(self._threads, self.form.discard)
        finally:
            over(self)

    def _write_soon(self) -> None:
        if self._piece:
            self._pieces.append(bytes(self._piece))
            self._piece.clear()
        if self._writing is None and self._pieces:
            self._writing = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        while self._pieces and self.fault is None:
            piece = self._pieces.popleft()
            await self._in_thread(self.form.feed, piece)
            if self._is_stopped and (len(self._pieces) < _PIECES_MAX or self.fault is not None):
                self._is_stopped = False
                self._read_on()  # with a fault too: the next piece is then refused
        self._pieces.clear()  # of a form with a fault
        self._writing = None
        if self._is_abandoned:
            await self.close(is_kept=False)

    async def _in_thread(self, act: Callable[..., None], *values: object) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, act, *values)
        except ValueError as error:
            self.fault = error_response(400, str(error), Reason.MALFORMED, param="file")
        except OSError as error:
            self.fault = no_space(f"the file cannot be written: {error.strerror or error}")


def no_space(message: str) -> Response:
    """The refusal of what has no room on the disk."""
    return error_response(507, message, Reason.STORAGE_FULL)
