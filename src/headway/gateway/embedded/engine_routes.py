"""The embedded engine's HTTP: OpenAI completions and chat, streamed at the modelled speed, and vLLM's metric names.

Its text states that no model ran. The output length is `vllm_xargs.headway_output_tokens` if given (a load generator
knows the length that the real model produced); else, with `ignore_eos`, the client's bound; else a length drawn from a
hash of the prompt, the same for the same prompt.
"""

from __future__ import annotations

import json
import math
import re
import time
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec

from headway.gateway.embedded.live_engine import LiveEngine, prompt_blocks
from headway.gateway.openai.endpoints import CHAT, COMPLETIONS, endpoint_of
from headway.gateway.openai.error_responses import Reason, bad_request, error_response
from headway.gateway.wire.client_connection import ClientConnection, PendingAnswer
from headway.gateway.wire.messages import Headers, HttpRequest, Response

SIMULATED_BY = "headway-simulated"
"""`owned_by` of the embedded engine's model: it shows that no model runs."""

_NOTICE = "This text comes from Headway's simulated engine: no model ran, only its timing is modelled."
WORDS = tuple(_NOTICE.split())
_PATHS = "/v1/chat/completions, /v1/completions and /v1/models"
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
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
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
    """The embedded engine's address: models, health, metrics, and the two generation endpoints."""

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
        """The response itself."""
        return response

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
        elif (endpoint := endpoint_of(path)) in (CHAT, COMPLETIONS) and request.method == b"POST":
            return self._generate(request, client, is_chat=endpoint is CHAT)
        else:
            client.respond(
                error_response(404, f"the simulated engine answers {_PATHS} only, not {path}", Reason.MALFORMED)
            )
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

    def _generate(self, request: HttpRequest, client: ClientConnection, *, is_chat: bool) -> PendingAnswer | None:
        try:
            body = _DECODER.decode(request.body)
            reason = self._engine.why_never(_prompt_tokens_min(body.prompt), 1)  # before so much is read
            if reason is not None:
                return self._refuse(client, reason)
            prompt: Prompt = None if is_chat or not body.prompt else _PROMPT.decode(body.prompt)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._refuse(client, f"the body is not valid JSON for this endpoint: {error}")
        content, prompt_tokens, token_bytes = _content(body, prompt, is_chat)
        bound = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        if prompt_tokens < 1 or (bound is not None and bound < 1):
            return self._refuse(client, "the prompt must not be empty and max_tokens must be at least 1")
        if (body.n or 1) > 1 or _is_batch(prompt):
            return self._refuse(
                client, "the simulated engine answers one prompt, once: send a single prompt and leave n at 1"
            )
        output_tokens = _output_tokens(body, prompt, bound)
        reason = self._engine.why_never(prompt_tokens, output_tokens)
        if reason is not None:
            return self._refuse(client, reason)
        blocks = prompt_blocks(content, token_bytes * self._engine.block_tokens) if self._engine.shares_prefixes else ()
        return _EngineAnswer(self._engine, client, body, is_chat, prompt_tokens, output_tokens, bound, blocks)

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
        is_chat: bool,
        prompt_tokens: int,
        output_tokens: int,
        bound: int | None,
        blocks: Sequence[int],
    ) -> None:
        self._engine = engine
        self._client = client
        self._is_chat = is_chat
        self._is_stream = bool(body.stream)
        self._shows_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._lengths = (prompt_tokens, output_tokens)
        self._finish = "length" if bound is not None and output_tokens >= bound else "stop"
        self._produced = 0
        self._cached_tokens = 0
        self._number = engine.submit(prompt_tokens, output_tokens, bound, self._token, blocks)
        kind = "chat.completion" if is_chat else "text_completion"
        self._head: dict[str, object] = {
            "id": f"sim-{self._number}",
            "object": kind + (".chunk" if is_chat and self._is_stream else ""),
            "created": int(time.time()),
            "model": body.model,
        }

    def _token(self, is_last: bool) -> None:
        self._produced += 1
        if self._produced == 1:
            self._cached_tokens = self._engine.cached_tokens(self._number)
        if not self._is_stream:
            if is_last:
                text = " ".join(_word(number).strip() for number in range(self._produced))
                choice = self._choice(text, self._finish, whole=True)
                self._client.respond(_json(200, {**self._head, "choices": [choice], "usage": self._usage()}))
            return
        if self._produced == 1:
            self._client.start(200, [(b"content-type", b"text/event-stream; charset=utf-8")], None)
        text = _word(self._produced - 1)
        self._event({"choices": [self._choice(text, self._finish if is_last else None, whole=False)]})
        if is_last:
            if self._shows_usage:
                self._event({"choices": [], "usage": self._usage()})
            self._client.write(b"data: [DONE]\n\n")
            self._client.finish()

    def _usage(self) -> dict[str, object]:
        prompt_tokens, output_tokens = self._lengths
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
        }

    def _choice(self, text: str, finish: str | None, *, whole: bool) -> dict[str, object]:
        if not self._is_chat:
            content: dict[str, object] = {"text": text}
        elif whole:
            content = {"message": {"role": "assistant", "content": text}}
        else:
            content = {"delta": {"content": text} | ({"role": "assistant"} if self._produced == 1 else {})}
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish}

    def _event(self, fields: dict[str, object]) -> None:
        self._client.write(b"data: %b\n\n" % msgspec.json.encode({**self._head, **fields}))

    def client_left(self) -> None:
        """The client left: the engine drops the request at once."""
        self._engine.abort(self._number)

    def client_full(self) -> None:
        """The client reads too slowly: the engine computes on and unread output waits in memory, as in vLLM."""

    def client_ready(self) -> None:
        """The client reads again: nothing was held back."""


def _word(number: int) -> str:
    return WORDS[number % len(WORDS)] + " "


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


def _content(body: _Body, prompt: Prompt, is_chat: bool) -> tuple[bytes, int, int]:
    """(content, prompt tokens, bytes of content per token): ids are counted, text has four bytes a token."""
    if isinstance(prompt, list):
        tokens = [token & _ID_MASK for token in prompt if isinstance(token, int)]
        if tokens and len(tokens) == len(prompt):
            ids = array("Q", tokens)
            return ids.tobytes(), len(tokens), ids.itemsize
    if is_chat:
        content = bytes(body.messages)
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
    digest = blake2b(bytes(body.messages) + repr(prompt).encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / 2.0**64
    drawn = max(1, min(4_000, round(-_TYPICAL_OUTPUT_TOKENS * math.log(uniform))))
    return drawn if bound is None else min(drawn, bound)
