"""Fields of a form (multipart/form-data): which parts a body has, by name, and where their values stand.

Laws: the time is linear in the bytes looked at, whatever they hold, and they are looked at in passes of bounded size. A
part that some reader may take for a field of a name counts as that field: all names of all its `content-disposition`
lines do.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

_BOUNDARY = re.compile(rb'boundary=(?:"([^"]{1,200})"|([^;,\s"]{1,200}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^[ \t]*content-disposition[ \t]*:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(rb";[ \t]*name(\*?)[ \t]*=[ \t]*(?:\"([^\"\r\n]{0,128})|([^;\"\s]{0,128}))", re.IGNORECASE)


PARTS_MAX = 2_000
"""Of a form, that are looked at; engines behind Starlette take 1,000 files and 1,000 fields."""
HEAD_BYTES_MAX = 1 << 16
"""Of one part."""
_PASS_BYTES = 1 << 20


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
    """The first parts of a form that is not large, or of a piece of one; a part without an end is none."""
    parts = form_parts_in_steps(content, delimiter, most, len(content))
    return (part for part in parts if part is not None)


def form_parts_in_steps(
    content: bytes, delimiter: bytes, most: int, head_bytes_max: int = HEAD_BYTES_MAX
) -> Iterator[FormPart | None]:
    """The same, with None between two passes over at most a megabyte.

    Raises ValueError, one sentence, if the headers of one part are longer than `head_bytes_max`.
    """
    at = yield from _find(content, delimiter, 0)
    passed = at
    for _ in range(most):
        if at < 0:
            return
        at += len(delimiter)
        following = yield from _find(content, delimiter, at)
        if following < 0:
            return
        head_end = content.find(b"\r\n\r\n", at, min(following, at + head_bytes_max))
        if head_end >= 0:
            end = following - 2 if content.startswith(b"\r\n", following - 2) else following
            yield FormPart(_names_in(content[at : head_end + 2]), head_end + 4, max(end, head_end + 4))
        elif following - at > head_bytes_max:
            raise ValueError(f"a part of the form has headers of more than {head_bytes_max:,} bytes; send shorter ones")
        at = following
        if at - passed > _PASS_BYTES:
            passed = at
            yield None


def _find(content: bytes, wanted: bytes, at: int) -> Generator[None, None, int]:
    """Where `wanted` stands first, from `at` on; -1 if nowhere. A step between two passes."""
    while at < len(content):
        found = content.find(wanted, at, at + _PASS_BYTES + len(wanted) - 1)
        if found >= 0:
            return found
        at += _PASS_BYTES
        yield
    return -1


def _names_in(head: bytes) -> frozenset[bytes]:
    return frozenset(
        unquote_to_bytes((quoted or bare).rpartition(b"'")[2]) if is_coded else (quoted or bare).replace(b"\\", b"")
        for line in _DISPOSITION.findall(head)
        for is_coded, quoted, bare in _NAME.findall(line)
    )
