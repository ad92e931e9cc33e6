"""The embedded engine's HTTP: the paths that generate, streamed at the modelled speed, and vLLM's metric names.

Its text states that no model ran. The output length is `vllm_xargs.headway_output_tokens` if given (a load generator
knows the length that the real model produced); else, with `ignore_eos`, the client's bound; else a length drawn from a
hash of the prompt, the same for the same prompt.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec

from headway.gateway.embedded.answer_shapes import SHAPES, AnswerTokens
from headway.gateway.embedded.live_engine import LiveEngine, prompt_blocks
from headway.gateway.openai.endpoints import CHAT, COMPLETIONS, Endpoint, endpoint_of
from headway.gateway.openai.error_responses import Reason, bad_request, error_response, not_found
from headway.gateway.openai.error_shapes import shaped
from headway.gateway.wire.client_connection import ClientConnection, PendingAnswer
from headway.gateway.wire.messages import Headers, HttpRequest, Response

SIMULATED_BY = "headway-simulated"
"""`owned_by` of the embedded engine's model: it shows that no model runs."""

_NOTICE = "This text comes from Headway's simulated engine: no model ran, only its timing is modelled."
WORDS = tuple(_NOTICE.split())
_PATHS = "/v1/chat/completions, /v1/completions, /v1/messages, /v1/responses and /v1/models"
_BYTES_PER_TOKEN = 4
_ID_MASK = (1 << 64) - 1
_TYPICAL_OUTPUT_TOKENS = 200


class _StreamOptions(msgspec.Struct):
    include_usage: Any = None


class _Arguments(msgspec.Struct):
    headway_output_tokens: Any = None


class _Body(msgspec.Struct):
    model: str = ""
    prompt: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    system: msgspec.Raw = msgspec.Raw(b"")
    instructions: msgspec.Raw = msgspec.Raw(b"")
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    ignore_eos: bool | None = None
    stream_options: _StreamOptions | None = None
    vllm_xargs: _Arguments | None = None


_DECODER = msgspec.json.Decoder(_Body, strict=False)
Prompt: TypeAlias = str | list[str | int | list[int]] | None
_PROMPT = msgspec.json.Decoder(Prompt)
_IDS = re.compile(rb"\s*\[\s*-?\d")
_JSON_BYTES_MAX = 6  # of one byte of text, written as \u0001


class EngineRoutes:
    """The embedded engine's address: models, health, metrics, and the endpoints that generate."""

    def bad_request(self, status: int, message: str, headers: Headers) -> Response:
        """The response to a request that is not valid HTTP or too large."""
        return bad_request(status, message)

    def __init__(self, engine: LiveEngine, model: str) -> None:
        self._engine = engine
        self._model = model

    def refuse_head(self, request: HttpRequest) -> Response | None:
        """No request is refused by its head."""
        return None

    def shaped(self, response: Response, path: str) -> Response:
        """An error in the shape of the API that the path belongs to."""
        return shaped(response, path)

    def takes_body(self, request: HttpRequest) -> bool:
        """Every body is read."""
        return True

    def refused(self, response: Response, address: str) -> None:
        """Not counted."""

    def answer(self, request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        """Answer at once, or token by token for a generation."""
        path = request.path
        if path == "/v1/models":
            entry = {"id": self._model, "object": "model", "created": 0, "owned_by": SIMULATED_BY}
            client.respond(_json(200, {"object": "list", "data": [entry]}))
        elif path == "/health":
            client.respond(Response(200, b""))
        elif path == "/metrics":
            client.respond(Response(200, self._metrics(), b"text/plain; version=0.0.4"))
        elif (endpoint := endpoint_of(path)) in SHAPES and request.method == b"POST":
            return self._generate(request, client, endpoint)
        else:
            client.respond(not_found(f"the simulated engine answers {_PATHS} only, not {path}"))
        return None

    def _metrics(self) -> bytes:
        engine = self._engine
        blocks = f'block_size="{engine.block_tokens}",num_gpu_blocks="{engine.kv_blocks}"'
        return (
            f"vllm:num_requests_running {engine.running}\n"
            f"vllm:num_requests_waiting {engine.waiting}\n"
            f"vllm:kv_cache_usage_perc {engine.kv_share:.6f}\n"
            f"vllm:cache_config_info{{{blocks}}} 1\n"
        ).encode()

    def _generate(self, request: HttpRequest, client: ClientConnection, endpoint: Endpoint) -> PendingAnswer | None:
        try:
            body = _DECODER.decode(request.body)
            reason = self._engine.why_never(_prompt_tokens_min(body.prompt), 1)  # before so much is read
            if reason is not None:
                return self._refuse(client, reason)
            prompt = _PROMPT.decode(body.prompt) if endpoint is COMPLETIONS and body.prompt else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._refuse(client, f"the body is not valid JSON for this endpoint: {error}")
        content, prompt_tokens, token_bytes = _content(body, prompt, endpoint)
        bounds = (getattr(body, name) for name in endpoint.output_bound_fields)
        bound: int | None = next((one for one in bounds if one is not None), None)
        if prompt_tokens < 1 or (bound is not None and bound < 1):
            return self._refuse(
                client, f"the prompt must not be empty and {endpoint.output_bound_fields[-1]} must be at least 1"
            )
        if (body.n or 1) > 1 or _is_batch(prompt):
            return self._refuse(
                client, "the simulated engine answers one prompt, once: send a single prompt and leave n at 1"
            )
        output_tokens = _output_tokens(body, prompt, bound)
        reason = self._engine.why_never(prompt_tokens, output_tokens)
        if reason is not None:
            return self._refuse(client, reason)
        blocks = prompt_blocks(content, token_bytes * self._engine.block_tokens) if self._engine.shares_prefixes else ()
        return _EngineAnswer(self._engine, client, body, endpoint, prompt_tokens, output_tokens, bound, blocks)

    @staticmethod
    def _refuse(client: ClientConnection, message: str) -> None:
        client.respond(error_response(400, message, Reason.MALFORMED))


class _EngineAnswer:
    """One generation, written to its client token by token."""

    def __init__(
        self,
        engine: LiveEngine,
        client: ClientConnection,
        body: _Body,
        endpoint: Endpoint,
        prompt_tokens: int,
        output_tokens: int,
        bound: int | None,
        blocks: Sequence[int],
    ) -> None:
        self._engine = engine
        self._client = client
        self._is_stream = bool(body.stream)
        self._shows_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._tokens = AnswerTokens(prompt_tokens, 0, output_tokens, bound is not None and output_tokens >= bound)
        self._produced = 0
        self._number = engine.submit(prompt_tokens, output_tokens, bound, self._token, blocks)
        self._shape = SHAPES[endpoint](self._number, body.model)

    def _token(self, is_last: bool) -> None:
        self._produced += 1
        is_first = self._produced == 1
        if is_first:
            self._tokens = self._tokens._replace(cached=self._engine.cached_tokens(self._number))
        if not self._is_stream:
            if is_last:
                self._client.respond(_json(200, self._shape.answer(_words(self._produced).rstrip(), self._tokens)))
            return
        shape = self._shape
        if is_first:
            self._client.start(200, [(b"content-type", b"text/event-stream; charset=utf-8")], None)
        begin = shape.begin(self._tokens) if is_first else b""
        tokens = self._tokens if is_last else None
        self._client.write(begin + shape.text(_word(self._produced - 1), is_first=is_first, tokens=tokens))
        if is_last:
            self._client.write(shape.end(partial(_words, self._produced), self._tokens, shows_usage=self._shows_usage))
            self._client.finish()

    def client_left(self) -> None:
        """The client left: the engine drops the request at once."""
        self._engine.abort(self._number)

    def client_full(self) -> None:
        """The client reads too slowly: the engine computes on and unread output waits in memory, as in vLLM."""

    def client_ready(self) -> None:
        """The client reads again: nothing was held back."""


def _word(number: int) -> str:
    return WORDS[number % len(WORDS)] + " "


def _words(number: int) -> str:
    return "".join(map(_word, range(number)))


def _json(status: int, content: dict[str, object]) -> Response:
    return Response(status, json.dumps(content).encode())


def _is_batch(prompt: object) -> bool:
    """Whether there are several prompts; a list of token ids is one."""
    return isinstance(prompt, list) and len(prompt) > 1 and not all(isinstance(part, int) for part in prompt)


def _prompt_tokens_min(prompt: msgspec.Raw) -> int:
    """Tokens that a prompt has at least, by the size of its JSON."""
    content = memoryview(prompt)
    if _IDS.match(content):
        return bytes(content).count(b",") + 1
    return content.nbytes // (_JSON_BYTES_MAX * _BYTES_PER_TOKEN)


def _content(body: _Body, prompt: Prompt, endpoint: Endpoint) -> tuple[bytes, int, int]:
    """(content, prompt tokens, bytes of content per token): ids are counted, text has four bytes a token."""
    if isinstance(prompt, list):
        tokens = [token & _ID_MASK for token in prompt if isinstance(token, int)]
        if tokens and len(tokens) == len(prompt):
            ids = array("Q", tokens)
            return ids.tobytes(), len(tokens), ids.itemsize
    if endpoint is not COMPLETIONS:
        heads = () if endpoint is CHAT else endpoint.prompt_head_fields
        parts = (getattr(body, name, b"") for name in (*heads, *endpoint.prompt_fields))
        content = b"".join(map(bytes, parts))
    else:
        text = "".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt or "")
        content = text.encode()
    return content, math.ceil(len(content) / _BYTES_PER_TOKEN), _BYTES_PER_TOKEN


def _output_tokens(body: _Body, prompt: Prompt, bound: int | None) -> int:
    known = None if body.vllm_xargs is None else body.vllm_xargs.headway_output_tokens
    if isinstance(known, int) and known >= 1:
        return known if bound is None else min(known, bound)
    if bound is not None and body.ignore_eos:
        return bound
    digest = blake2b(bytes(body.messages) + bytes(body.input) + repr(prompt).encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / 2.0**64
    drawn = max(1, min(4_000, round(-_TYPICAL_OUTPUT_TOKENS * math.log(uniform))))
    return drawn if bound is None else min(drawn, bound)
