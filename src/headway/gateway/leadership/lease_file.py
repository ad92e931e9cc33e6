"""A lease in a file, for gateways of one machine, or of machines with a file system whose locks work over all of them.

Law: the record is replaced only while the file is locked (flock), and only if it is still the one that was read.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from headway.gateway.leadership.lease import LeaseFault, SeenLease

_BYTES_MAX = 4_096


class FileLeaseStore:
    """The record as JSON. A record that cannot be read is somebody's, whose time passes as any other's."""

    def __init__(self, path: str, seconds: float) -> None:
        """`seconds` stand for the time of a record that cannot be read."""
        self._path = Path(path)
        self._seconds = seconds

    async def read(self) -> SeenLease:
        """The record. Raises LeaseFault."""
        return self._seen(await asyncio.to_thread(self._content))

    async def write(self, holder: str, seconds: float, version: str) -> bool:
        """Replace the record of this version; False if it has changed, or another writes. Raises LeaseFault."""
        return await asyncio.to_thread(self._replace, holder, seconds, version)

    async def close(self) -> None:
        """Nothing is held open."""

    def _content(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                return file.read(_BYTES_MAX)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise self._fault(error) from None

    def _replace(self, holder: str, seconds: float, version: str) -> bool:
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
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
            return SeenLease(holder, seconds, f"{_renewals(content)} {holder}")
        except (ValueError, TypeError, KeyError):
            return SeenLease("unreadable", self._seconds, f"unreadable {content.hex()}")

    def _fault(self, error: OSError) -> LeaseFault:
        return LeaseFault(f"lease.file {str(self._path)!r}: {error.strerror or error}")


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
    except (ValueError, TypeError, KeyError):
        return 0
