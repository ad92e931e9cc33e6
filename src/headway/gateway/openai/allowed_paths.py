"""Allowed paths: which parts of the API clients may use, by the first name of the path under `/v1` and the method.

Engines put their administration under `/v1` too (`/v1/load_lora_adapter`), so a name that is not listed is refused.
`forward` in the configuration adds names. A few paths that engines serve outside `/v1` are the same API.
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


OUTSIDE_V1: Mapping[str, str] = MappingProxyType(
    {
        "/classify": "classify",
        "/detokenize": "detokenize",
        "/pooling": "pooling",
        "/rerank": "rerank",
        "/score": "score",
        "/tokenize": "tokenize",
        "/v2/rerank": "rerank",
    }
)
"""Paths of vLLM and SGLang without `/v1` -> the name in `METHODS` whose rules they have."""


def is_of_the_api(path: str) -> bool:
    """Whether requests for a path go to replicas; all other paths are the gateway's own."""
    return path.startswith("/v1/") or path in OUTSIDE_V1


def name_in_api(path: str) -> str:
    """The name of a path of the API that its rules go by: the first after `/v1/`."""
    return OUTSIDE_V1.get(path) or path.split("/", 3)[2]


def why_not_allowed(path: str, method: bytes, more: Collection[str]) -> tuple[int, str, str] | None:
    """Why no replica may get a request of the API: status, message, and the methods that are allowed; else None.

    Args:
        path: of the request, one of the API, as it was sent.
        method: of the request.
        more: names that are allowed with any method, besides `METHODS`.
    """
    name = name_in_api(path)
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
