"""Found fields: where in a large body the fields stand that may be replaced, and by what.

They are looked for once, in steps, while the body is read; so nothing later takes a pass over it. What replaces them is
written when the request is sent (`relay/upstream_request.py`), between parts of the client's bytes, which are not
copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import msgspec

from headway.gateway.openai.form_fields import PARTS_MAX, FormPart, delimiter_of, form_parts, form_parts_in_steps
from headway.gateway.openai.request_body import LARGE_BYTES, judge_text, top_level
from headway.gateway.wire.messages import HttpRequest

HINT_FIELDS = ("priority", "vllm_xargs", "nvext")
"""Fields in which engines read what a key may not allow."""
_HINT_BYTES_MAX = 1 << 20
_TOO_LONG = f"the fields priority, vllm_xargs and nvext hold more than {_HINT_BYTES_MAX:,} bytes; send shorter ones"
_HINTS = frozenset(name.encode() for name in HINT_FIELDS)
_REPLACED = _HINTS | {b"model"}


Edits: TypeAlias = Mapping[int, tuple[int, bytes]]
"""Where a value begins -> where it ends, and what takes its place. Of two at one place the later counts."""


class FoundFields:
    """Those of one request.

    Attributes:
        json: all fields of a JSON object, as they stand in it; None where they were not looked for.
        form: the parts of a form that may be replaced; None likewise.
        changes: fields of a JSON object to set.
        edits: of any other body.
    """

    def __init__(self) -> None:
        self.json: Mapping[str, msgspec.Raw] | None = None
        self.form: Sequence[FormPart] | None = None
        self.changes: dict[str, object] = {}
        self.edits: dict[int, tuple[int, bytes]] = {}  # `Edits`

    def look(self, http: HttpRequest, may_change: Callable[[], bool]) -> Iterator[None]:
        """Look for them in a body that is no readable JSON object, in passes with a step between two.

        `may_change`: whether a form may have to be changed; else it is not looked through. Raises ValueError, one
        sentence, if what would have to be read of them is too long.
        """
        delimiter = delimiter_of(http.header(b"content-type") or b"")
        if delimiter is None:
            yield
            self.json = top_level(http.body)
            judge_text("model", self.json.get("model", b""))
            judge_hints(len(self.json.get(name, b"")) for name in HINT_FIELDS)
            yield
        elif may_change():
            form: list[FormPart] = []
            for part in form_parts_in_steps(http.body, delimiter, PARTS_MAX):
                if part is None:
                    yield
                elif part.names & _REPLACED:
                    form.append(part)
            judge_hints(part.end - part.start for part in form if part.names & _HINTS)
            self.form = form

    def written(self, content: bytes) -> list[bytes | memoryview]:
        """The body as it is sent, in parts; one that is no readable JSON object."""
        if self.changes:
            return written_again(self.json or {}, self.changes)
        return _edited(content, self.edits)


def form_parts_of(http: HttpRequest, delimiter: bytes) -> Iterable[FormPart]:
    """The parts of a form that may be replaced, and others."""
    found = found_fields(http)
    if found is None or found.form is None:  # not large; or a reload brought the reason to look when it was read
        return form_parts(http.body, delimiter, PARTS_MAX)
    return found.form


def replace_values(http: HttpRequest, edits: Edits) -> None:
    """Other values in a body that is no JSON; of a large one they are written when it is sent."""
    found = found_fields(http)
    if found is not None:
        found.edits |= edits
    elif edits:
        http.body = b"".join(_edited(http.body, edits))


def _edited(content: bytes, edits: Edits) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    at = 0
    for start, (end, value) in sorted(edits.items()):
        parts += [memoryview(content)[at:start], value]
        at = end
    return [*parts, memoryview(content)[at:]]


def found_fields(http: HttpRequest) -> FoundFields | None:
    """What was found of a large body; None of any other."""
    return http.fields if isinstance(http.fields, FoundFields) else None


def judge_hints(sizes: Iterable[int]) -> None:
    """Raise ValueError, one sentence, if the fields with hints are long: all of them are read at once."""
    if sum(sizes) > _HINT_BYTES_MAX:
        raise ValueError(_TOO_LONG)


def written_again(
    fields: Mapping[str, msgspec.Raw | object], changes: Mapping[str, object]
) -> list[bytes | memoryview]:
    """A JSON object with some fields set, as the parts that it is sent in. Long values come last, not copied."""
    every = {**fields, **changes}
    long = {name: value for name, value in every.items() if isinstance(value, msgspec.Raw) and len(value) > LARGE_BYTES}
    short = msgspec.json.encode({name: value for name, value in every.items() if name not in long})[1:-1]
    parts: list[bytes | memoryview] = [b"{" + short]
    for name, value in long.items():
        comma = b"," if short or len(parts) > 1 else b""
        parts += [comma + msgspec.json.encode(name) + b":", memoryview(value)]
    return [*parts, b"}"]
