"""From what the user typed to lines of text: where a trace lies, how it is packed, what is wrong with it."""

from __future__ import annotations

import difflib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import zstandard

from headway.bench.user_mistake import UserMistake

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FOLDER_VARIABLE = "HEADWAY_TRACES"
SUFFIXES = ("", ".jsonl.gz", ".jsonl", ".jsonl.zst", ".csv", ".csv.gz", ".csv.zst")
LINE_BYTES_MAX = 1 << 26  # a longer line is no line of a trace; reading on would fill the memory

_BUFFER = 1 << 16
_BROKEN = (EOFError, OSError, zlib.error, zstandard.ZstdError)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def trace_folder() -> Path | None:
    """The user's folder of traces, from the environment variable HEADWAY_TRACES; None where it is not set."""
    named = os.environ.get(FOLDER_VARIABLE, "")
    return Path(named) if named else None


def trace_names() -> list[str]:
    """The names, without suffix, of the traces in the folder HEADWAY_TRACES."""
    folder = trace_folder()
    return [] if folder is None else sorted({bare_name(Path(name)) for name in _names_in(folder)})


def bare_name(path: Path) -> str:
    """What to call the trace of a file: its name without packing and format, `?` for bytes that are not UTF-8."""
    name = path.name.encode("utf-8", "replace").decode()
    for suffix in (".gz", ".zst", ".jsonl", ".json", ".ndjson", ".csv"):
        name = name.removesuffix(suffix)
    return name or path.name


def find_file(text: str, other_names: tuple[str, ...] = ()) -> Path:
    """The file meant by `text`: a path, or a name (with or without its suffix) in the folder HEADWAY_TRACES.

    Args:
        text: what the user typed.
        other_names: names that would have been understood before files are looked for; only for the suggestion.

    Raises:
        UserMistake: there is no such file, with the nearest name there is; or it is a folder.
    """
    if not text.strip():
        raise UserMistake("the name of the trace is empty; give a file, a name in HEADWAY_TRACES or a workload's name")
    if "\x00" in text:
        raise UserMistake("the name of the trace holds a NUL character; give the path of a file")
    typed = Path(text).expanduser()
    folder = trace_folder()
    candidates = [typed]
    if folder is not None and typed.name == text:
        candidates += [folder / (text + suffix) for suffix in SUFFIXES]
    for candidate in candidates:
        if _exists(candidate) and not candidate.is_dir():
            return candidate
    if _exists(typed):
        raise UserMistake(f"{text}: is a folder, not a trace; name one file in it{_nearest_in(typed)}")
    raise UserMistake(_missing(text, typed, folder, other_names))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system
        return False


def _nearest_in(folder: Path) -> str:
    names = _names_in(folder)
    return f", such as {folder / names[0]}" if names else ""


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_file() and (".jsonl" in entry.name or ".csv" in entry.name)
        )
    except OSError:
        return []


def _missing(text: str, typed: Path, folder: Path | None, other_names: tuple[str, ...]) -> str:
    nearby = {name: str(typed.parent / name) for name in _names_in(typed.parent)}
    if folder is not None:
        nearby |= {bare_name(Path(name)): bare_name(Path(name)) for name in _names_in(folder)}
    nearby |= {name: name for name in other_names}
    near = difflib.get_close_matches(typed.name, nearby, n=1, cutoff=0.5)
    hint = f"; did you mean {nearby[near[0]]}?" if near else ""
    where = "" if folder is not None else f" ({FOLDER_VARIABLE} is not set, so only paths and workloads are known)"
    return f"{text}: there is no such file, trace or workload{where}{hint or '; check the path'}"


class TraceFile:
    """An opened trace file, unpacked while it is read.

    Attributes:
        label: the file as sentences name it.
        sample: its first characters, for telling the format.
    """

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self.path = path
        self._stream = self._open()
        self.sample = self._look()

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

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
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
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
            raw = self.path.open("rb")
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

    def _look(self) -> str:
        """The first bytes as text, for telling the format; they are read again by `lines`."""
        try:
            sample = self._stream.peek(_BUFFER)[:_BUFFER]
        except _BROKEN:
            return ""  # whatever is wrong is told by lines(), with its line
        if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
            self._stream.close()
            raise UserMistake(f"{self.label}: is UTF-16 text; save the file as UTF-8")
        if any(byte < 9 for byte in sample):
            self._stream.close()
            raise UserMistake(
                f"{self.label}: is a binary file; a trace is JSON Lines or CSV, plain or packed as .gz or .zst"
            )
        return sample.decode("utf-8-sig", errors="replace")


class _Gzip(gzip.GzipFile):
    """Gzip that closes the file beneath it."""

    def __init__(self, beneath: BinaryIO) -> None:
        super().__init__(fileobj=beneath, mode="rb")
        self._beneath = beneath

    def close(self) -> None:
        super().close()
        self._beneath.close()


class _Zstd(io.RawIOBase):
    """Zstandard, any number of frames; unlike the library's own reader it notices a file cut short."""

    def __init__(self, beneath: BinaryIO) -> None:
        self._beneath = beneath
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        while not self._ready:
            packed = self._frame.unused_data if self._frame.eof else b""
            packed = packed or self._beneath.read(_BUFFER)
            if not packed:
                if self._frame.eof:
                    return 0
                raise EOFError
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(packed)
        taken = self._ready[: len(view)]
        view[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)

    def close(self) -> None:
        super().close()
        self._beneath.close()
