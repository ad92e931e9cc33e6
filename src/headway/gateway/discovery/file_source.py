"""Replicas named in a file that is watched, in the form of Prometheus' `file_sd`.

The file is read again whenever its time or its size changes, or another takes its place, as a mounted ConfigMap is
replaced. One with a mistake changes nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from headway.gateway.discovery.replica_source import Findings, FoundReplica, SourceFault
from headway.gateway.settings_file import YAML_ENDINGS

_BYTES_MAX = 4 << 20
_ENTRIES_MAX = 10_000  # targets and labels of all groups; far above what a source may find
_YAML_FAULTS = (IndexError, KeyError, TypeError, AttributeError)  # PyYAML's own, of tags like !!int without a number
_SCHEME = "__scheme__"


class _Group(msgspec.Struct):
    targets: list[str]
    labels: dict[str, str] = {}


_GROUPS = msgspec.json.Decoder(list[_Group])


class FileSource:
    """Looks at one file. `accept` raises ValueError, one sentence, for a replica that cannot be one."""

    def __init__(self, path: str, scheme: str, accept: Callable[[FoundReplica], None]) -> None:
        self._path = Path(path)
        self._scheme = scheme
        self._accept = accept
        self._read: tuple[int, ...] = ()  # what the file looked like when it was read last

    async def look(self) -> Findings | None:
        """See `Look`."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> Findings | None:
        try:
            with open(self._path, "rb", opener=_opened) as file:
                now = os.fstat(file.fileno())
                marks = (now.st_mtime_ns, now.st_size, now.st_ino, now.st_dev)
                if marks == self._read:
                    return None
                content = file.read(_BYTES_MAX + 1)
        except OSError as error:
            self._read = ()
            raise SourceFault(f"{self._path}: {error.strerror or error}") from None
        self._read = ()  # one with a mistake is read again at each look: it may be half written
        if len(content) > _BYTES_MAX:
            raise SourceFault(f"{self._path} is longer than {_BYTES_MAX >> 20} MiB; name fewer targets")
        try:
            found = self._replicas(_groups(content, is_yaml=self._path.name.endswith(YAML_ENDINGS)))
        except ValueError as error:
            raise SourceFault(f"{self._path}: {error}") from None
        self._read = marks
        return Findings(frozenset(found))

    def _replicas(self, groups: list[_Group]) -> list[FoundReplica]:
        found = []
        for group in groups:
            scheme = group.labels.get(_SCHEME, self._scheme)
            if scheme not in ("http", "https"):
                raise ValueError(f"the label {_SCHEME} must be http or https, got {scheme!r}")
            for target in group.targets:
                host, _, port = target.rpartition(":")
                if not host or not port.isdecimal():
                    raise ValueError(f"a target must be HOST:PORT, for example 10.0.0.5:8000, got {target[:200]!r}")
                replica = FoundReplica(host.strip("[]"), int(port), scheme=scheme)
                self._accept(replica)
                found.append(replica)
        return found


def _opened(path: str, flags: int) -> int:
    """Without waiting: a named pipe would wait for a writer, in a thread that nothing ends."""
    return os.open(path, flags | os.O_NONBLOCK)


def _groups(content: bytes, *, is_yaml: bool) -> list[_Group]:
    """The groups of targets in a file. Raises ValueError, one sentence."""
    form = 'it must hold groups like [{"targets": ["10.0.0.5:8000"], "labels": {}}]'
    try:
        if is_yaml:
            return msgspec.convert(_from_yaml(content), list[_Group])
        groups = _GROUPS.decode(content)
        _check_entries(sum(len(group.targets) for group in groups))
        return groups
    except msgspec.ValidationError as error:
        raise ValueError(f"{form}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}; {form}") from None


def _from_yaml(content: bytes) -> Any:
    import yaml  # noqa: PLC0415 - of an extra

    try:
        groups = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())}") from None
    except _YAML_FAULTS as error:
        raise ValueError(f"it is no YAML: a value does not fit its tag ({error}); quote it as a text") from None
    if isinstance(groups, list):  # before they are copied: aliases can make gigabytes of a short file
        parts = [group.get(key) for group in groups if isinstance(group, dict) for key in ("targets", "labels")]
        _check_entries(sum(len(part) for part in parts if isinstance(part, list | dict)))
    return groups


def _check_entries(number: int) -> None:
    if number > _ENTRIES_MAX:
        raise ValueError(f"it has {number} targets and labels, above {_ENTRIES_MAX}; name fewer")
