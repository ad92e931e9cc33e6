"""Opens a trace file: unpacks it while it is read, and reports what is wrong with it as text."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import zstandard

from headway.bench.user_mistake import UserMistake

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LINE_BYTES_MAX = 1 << 26  # a longer line is no line of a trace; reading on would fill the memory

_BUFFER = 1 << 16
_PACKED_BYTES = 256  # unpacked at once: a block of 4 bytes may be 128 KiB of text (RFC 8878), so at most 8 MiB
_BROKEN = (EOFError, OSError, zlib.error, zstandard.ZstdError)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class TraceFile:
    """An opened trace file, unpacked while it is read.

    Attributes:
        label: the file as sentences name it.
        path: where it is.
        start: its first bytes, unpacked, to recognise its format by; empty where the packing is broken.
    """

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self.path = path
        self._stream = self._open()
        self.start = self._peek()

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    @property
    def sample(self) -> str:
        """The first bytes as text.

        Raises:
            UserMistake: the file is not UTF-8 text.
        """
        if self.start.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserMistake(f"{self.label}: is UTF-16 text; save the file as UTF-8")
        if any(byte < 9 for byte in self.start):
            raise UserMistake(
                f"{self.label}: is a binary file; a trace is JSON Lines, CSV or Parquet, plain or packed as .gz or .zst"
            )
        return self.start.decode("utf-8-sig", errors="replace")

    def lines(self) -> Iterator[tuple[int, str]]:
        """Each line with its end, and its number from 1.

        Raises:
            UserMistake: the packing is broken or cut short, a line is not UTF-8 or far too long.
        """
        number = 0
        try:
            for raw in iter(lambda: self._stream.readline(LINE_BYTES_MAX), b""):
                number += 1
                if len(raw) == LINE_BYTES_MAX:
                    raise UserMistake(
                        f"{self.label}: line {number} is longer than {LINE_BYTES_MAX >> 20} MiB; write a request a line"
                    )
                # A byte order mark stands at the start, and again where two files were put together.
                yield number, raw.removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError as fault:
            raise UserMistake(
                f"{self.label}: line {number} is not UTF-8 text (byte {fault.start + 1} of the line); "
                "save the file as UTF-8"
            ) from None
        except EOFError:
            raise UserMistake(
                f"{self.label}: the compressed file ends in the middle, after line {number}; copy or download it again"
            ) from None
        except _BROKEN as fault:
            raise UserMistake(
                f"{self.label}: cannot be read after line {number} ({fault}); copy or download it again"
            ) from None

    def _open(self) -> io.BufferedReader:
        try:
            raw: io.BufferedReader = io.BufferedReader(self.path.open("rb", buffering=0), _BUFFER)
        except OSError as fault:
            raise UserMistake(f"{self.label}: cannot be opened ({fault.strerror}); check path and rights") from None
        start = raw.peek(4)[:4]
        if not start:
            raw.close()
            raise UserMistake(f"{self.label}: is an empty file; a trace needs at least one request")
        if start.startswith(_GZIP):
            return io.BufferedReader(_Gzip(raw), _BUFFER)
        if start.startswith(_ZSTD):
            return io.BufferedReader(_Zstd(raw), _BUFFER)
        return raw

    def _peek(self) -> bytes:
        try:
            return self._stream.peek(_BUFFER)[:_BUFFER]
        except _BROKEN:
            return b""  # lines() reports what is wrong, with its line


class _Gzip(gzip.GzipFile):
    """Gzip that closes the file beneath it."""

    def __init__(self, beneath: BinaryIO) -> None:
        super().__init__(fileobj=beneath, mode="rb")
        self._beneath = beneath

    def close(self) -> None:
        super().close()
        self._beneath.close()


class _Zstd(io.RawIOBase):
    """Zstandard with any number of frames. Unlike the library's own reader, it notices a file cut short."""

    def __init__(self, beneath: BinaryIO) -> None:
        self._beneath = beneath
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        while not self._ready:
            if self._frame.eof:
                self._packed = self._frame.unused_data + self._packed
            self._packed = self._packed or self._beneath.read(_BUFFER)
            if not self._packed:
                if self._frame.eof:
                    return 0
                raise EOFError
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(self._packed[:_PACKED_BYTES]))
            self._packed = self._packed[_PACKED_BYTES:]
        taken = self._ready[: len(view)]
        view[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)

    def close(self) -> None:
        super().close()
        self._beneath.close()
