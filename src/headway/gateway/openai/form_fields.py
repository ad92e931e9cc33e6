"""Fields of a form (multipart/form-data): which parts a body has, by name, and where their values stand.

Laws: the time is linear in the bytes looked at, whatever they hold. A part that some reader may take for a field of a
name counts as that field: all names of all its `content-disposition` lines do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

_BOUNDARY = re.compile(rb'boundary=(?:"([^"]{1,200})"|([^;,\s"]{1,200}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^[ \t]*content-disposition[ \t]*:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(rb";[ \t]*name(\*?)[ \t]*=[ \t]*(?:\"([^\"\r\n]{0,128})|([^;\"\s]{0,128}))", re.IGNORECASE)


class FormPart(NamedTuple):
    """One part: its names, and its value from `start` to `end`."""

    names: frozenset[bytes]
    start: int
    end: int


def delimiter_of(content_type: bytes) -> bytes | None:
    """What parts the fields of a form of this `content-type`; None where it is no form."""
    if content_type.partition(b";")[0].strip().lower() != b"multipart/form-data":
        return None
    boundary = _BOUNDARY.search(content_type)
    return None if boundary is None else b"--" + (boundary[1] or boundary[2])


def form_parts(content: bytes, delimiter: bytes, most: int) -> Iterator[FormPart]:
    """The first parts; one without an end is none."""
    at = content.find(delimiter)
    for _ in range(most):
        if at < 0:
            return
        at += len(delimiter)
        following = content.find(delimiter, at)
        head_end = content.find(b"\r\n\r\n", at, len(content) if following < 0 else following)
        if head_end >= 0 and following >= 0:
            end = following - 2 if content.startswith(b"\r\n", following - 2) else following
            yield FormPart(_names_in(content[at : head_end + 2]), head_end + 4, max(end, head_end + 4))
        at = following


def _names_in(head: bytes) -> frozenset[bytes]:
    return frozenset(
        unquote_to_bytes((quoted or bare).rpartition(b"'")[2]) if is_coded else (quoted or bare).replace(b"\\", b"")
        for line in _DISPOSITION.findall(head)
        for is_coded, quoted, bare in _NAME.findall(line)
    )
