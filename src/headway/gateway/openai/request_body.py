"""What a request's body tells, and the few fields that are ever written into it; all else stays byte for byte."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

_PREFIX_BLOCK_BYTES = 1_024
_PREFIX_BLOCKS_MAX = 32


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool | None = None


class Body(msgspec.Struct):
    """The fields that are read; everything else is left alone, unread."""

    model: str = ""
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    priority: int | None = None
    stream_options: StreamOptions | None = None
    nvext: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")

    @property
    def prompt_bytes(self) -> bytes:
        """The prompt as it stands in the JSON."""
        return bytes(self.messages) or bytes(self.prompt) or bytes(self.input)

    @property
    def output_tokens_max(self) -> int | None:
        """The client's own bound on the output, if it is one."""
        bound = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return bound if bound is not None and bound >= 1 else None


_DECODER = msgspec.json.Decoder(Body, strict=False)  # as lenient as engines are: "100" and 100.0 are whole numbers
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANYTHING = msgspec.json.Decoder()
_FIRST_NAME = re.compile(rb'\s*\{\s*"')


def read_body(body: bytes) -> Body | None:
    """The fields of a JSON body; None if it is not a JSON object or a field we read has a wrong type."""
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def why_unreadable(body: bytes) -> str:
    """What is wrong with a body that `read_body` does not read: which field, and what it should be."""
    if not body:
        return "there is no body; send a JSON object"
    try:
        _DECODER.decode(body)
    except RecursionError:
        return "the body is nested too deeply"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"the body is not a JSON object that can be read: {error}"
    return "the body cannot be read"


def with_fields(body: bytes, changes: Mapping[str, object]) -> bytes:
    """The body with some top-level fields set; the others keep their bytes and their order."""
    if not any(_mentions(body, b'"%b"' % name.encode()) for name in changes):
        # None of the names is in it, not even in disguise: they are written behind the rest, which is not read again.
        whole = body.rstrip(b" \t\r\n")
        ours = msgspec.json.encode(changes)
        return whole[:-1] + (b"," if _FIRST_NAME.match(whole) else b"") + ours[1:]
    fields: dict[str, Any] = _FIELDS.decode(body)
    fields.update(changes)
    return msgspec.json.encode(fields)


def with_usage_asked(body: bytes) -> dict[str, object]:
    """The change to `with_fields` that asks for a stream's usage, other stream options kept."""
    given = _FIELDS.decode(body).get("stream_options") if _mentions(body, b'"stream_options"') else None
    options = _ANYTHING.decode(given) if given is not None else None
    return {"stream_options": {**(options if isinstance(options, dict) else {}), "include_usage": True}}


def _mentions(body: bytes, quoted_name: bytes) -> bool:
    """Whether a field of that name may be there; only \\u can write a letter of a name otherwise than it is."""
    return quoted_name in body or b"\\u" in body


def extra_arguments(body: bytes) -> dict[str, Any]:
    """`vllm_xargs`, {} if there is none or it is no object."""
    given = _FIELDS.decode(body).get("vllm_xargs") if _mentions(body, b'"vllm_xargs"') else None
    told = _ANYTHING.decode(given) if given is not None else None
    return told if isinstance(told, dict) else {}


def agent_tables(body: Body) -> tuple[dict[str, Any], dict[str, Any]]:
    """`agent_hints` and `agent_context` of `nvext` (Dynamo), each {} if there is none."""
    if not bytes(body.nvext):
        return {}, {}
    told = _ANYTHING.decode(body.nvext)
    tables = [told.get(name) if isinstance(told, dict) else None for name in ("agent_hints", "agent_context")]
    hints, context = (table if isinstance(table, dict) else {} for table in tables)
    return hints, context


def prefix_hashes(model: str, prompt: bytes) -> list[int]:
    """Hashes of ever longer prefixes of the prompt, a block of 1 KiB each, at most 32."""
    state = blake2b(model.encode(), digest_size=8)
    hashes = []
    for start in range(0, min(len(prompt) - _PREFIX_BLOCK_BYTES + 1, _PREFIX_BLOCKS_MAX * _PREFIX_BLOCK_BYTES), 1024):
        state.update(prompt[start : start + _PREFIX_BLOCK_BYTES])
        hashes.append(int.from_bytes(state.digest(), "big"))
    return hashes
