"""Allowed paths: which parts of the API under `/v1` clients may use, by the first name of the path and the method.

Engines put their administration under `/v1` too (`/v1/load_lora_adapter`), so a name that is not listed is refused.
`forward` in the configuration adds names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

_POST = frozenset([b"POST"])
_STORED = frozenset([b"GET", b"POST", b"DELETE"])
_EVERYWHERE = frozenset([b"OPTIONS", b"HEAD"])  # a preflight; HEAD is answered here

METHODS: Mapping[str, frozenset[bytes]] = MappingProxyType(
    {
        "audio": frozenset([b"GET", b"POST"]),
        "batches": _STORED,
        "chat": _STORED,
        "classify": _POST,
        "completions": _POST,
        "conversations": _STORED,
        "detokenize": _POST,
        "embeddings": _POST,
        "files": _STORED,
        "images": frozenset([b"GET", b"POST"]),
        "messages": _STORED,
        "models": frozenset([b"GET"]),
        "moderations": _POST,
        "pooling": _POST,
        "rerank": _POST,
        "reranking": _POST,
        "responses": _STORED,
        "score": _POST,
        "tokenize": _POST,
        "uploads": _STORED,
        "vector_stores": _STORED,
        "videos": _STORED,
    }
)
"""First name after `/v1/` -> methods: the OpenAI and Anthropic APIs, and what vLLM, SGLang and others add to infer."""


def why_not_allowed(path: str, method: bytes, more: Collection[str]) -> tuple[int, str, str] | None:
    """Why no replica may get a request under `/v1`: status, message, and the methods that are allowed; else None.

    Args:
        path: of the request, beginning with `/v1/`, as it was sent.
        method: of the request.
        more: names that are allowed with any method, besides `METHODS`.
    """
    name = path.split("/", 3)[2]
    if name in more:
        return None
    methods = METHODS.get(name)
    if methods is None:
        shown = f"/v1/{name[:100]}"
        return 404, f"{shown} is not forwarded by this gateway; its operator can add {name[:100]!r} to `forward`", ""
    if method not in methods and method not in _EVERYWHERE:
        allowed = ", ".join(sorted(one.decode() for one in methods))
        return 405, f"{method.decode('latin-1')} is not forwarded to /v1/{name}; use {allowed}", allowed
    return None
