"""A lease in a file, for gateways of one machine, or of machines with a file system whose locks work over all of them.

Law: the record is replaced only while the file is locked (flock), and only if it is still the one that was read.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from headway.gateway.leadership.lease import LeaseFault, SeenLease

_BYTES_MAX = 4_096
_UNREADABLE = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
T = TypeVar("T")


class FileLeaseStore:
    """The record as JSON. A record that cannot be read is somebody's, whose time passes as any other's."""

    def __init__(self, path: str, seconds: float) -> None:
        """`seconds` stand for the time of a record that cannot be read."""
        self._path = Path(path)
        self._seconds = seconds
        self._touching: asyncio.Future[Any] | None = None  # the file, in a thread

    async def read(self) -> SeenLease:
        """The record. Raises LeaseFault."""
        return self._seen(await self._in_thread(self._content))

    async def write(self, holder: str, seconds: float, version: str) -> bool:
        """Replace the record of this version; False if it has changed, or another writes. Raises LeaseFault."""
        return await self._in_thread(lambda: self._replace(holder, seconds, version))

    async def close(self) -> None:
        """Nothing is held open."""

    async def _in_thread(self, act: Callable[[], T]) -> T:
        """One at a time: a file system that hangs takes one thread, and not all that this process has."""
        if self._touching is not None:
            await asyncio.wait({self._touching})
        touching = self._touching = asyncio.ensure_future(asyncio.to_thread(act))
        touching.add_done_callback(_retrieve)
        return await asyncio.shield(touching)

    def _content(self) -> bytes:
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)  # else a named pipe waits for a writer
            try:
                return os.read(handle, _BYTES_MAX)
            finally:
                os.close(handle)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise self._fault(error) from None

    def _replace(self, holder: str, seconds: float, version: str) -> bool:
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # closing it unlocks
                before = os.pread(handle, _BYTES_MAX, 0)
                if self._seen(before).version != version:
                    return False
                record = {"renewals": _renewals(before) + 1, "holder": holder, "seconds": seconds}
                line = json.dumps(record).encode() + b"\n"
                os.pwrite(handle, line, 0)  # at once: a process that dies leaves the old record or the new one
                os.ftruncate(handle, len(line))
                return True
            finally:
                os.close(handle)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._fault(error) from None

    def _seen(self, content: bytes) -> SeenLease:
        if not content:
            return SeenLease("", self._seconds, "")
        try:
            record = _record(content)
            holder, seconds = str(record["holder"]), float(record["seconds"])
            if not 0 < seconds < math.inf:
                raise ValueError("that is no time")
            return SeenLease(holder, seconds, f"{_renewals(content)} {holder}")
        except _UNREADABLE:
            return SeenLease("unreadable", self._seconds, f"unreadable {content.hex()}")

    def _fault(self, error: OSError) -> LeaseFault:
        return LeaseFault(f"lease.file {str(self._path)!r}: {error.strerror or error}")


def _retrieve(touching: asyncio.Future[Any]) -> None:
    """Take note of its error, which none may be waiting for any more."""
    if not touching.cancelled():
        touching.exception()


def _record(content: bytes) -> dict[str, Any]:
    """Its first line; behind it there may be the rest of a longer one."""
    record = json.loads(content.partition(b"\n")[0])
    if not isinstance(record, dict):
        raise ValueError("it is no object")
    return record


def _renewals(content: bytes) -> int:
    """How often it was written; 0 where that cannot be read."""
    try:
        return int(_record(content)["renewals"])
    except _UNREADABLE:
        return 0
