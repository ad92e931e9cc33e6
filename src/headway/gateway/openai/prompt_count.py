"""Prompt tokens of a request: counted where possible, else estimated from bytes.

Laws: token ids are counted as they are. Text is counted by the model's tokenizer where one is configured: at once if it
is short, else in a thread, for which its request waits a bounded time. All else is estimated by the calibrated ratio.
A chat template is not in the tokenizer: what it adds to a message is learned from the usage that replicas return.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import msgspec

from headway.gateway.openai.prompt_blocks import CacheShape, CacheShapeOf, with_ids, with_tokens
from headway.gateway.openai.prompt_media import NO_MEDIA, Media, media_in_steps, media_of
from headway.gateway.openai.prompt_prefixes import prefix_hashes, prefix_hashes_in_steps
from headway.gateway.openai.request_body import Body, prompts_in, slices
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.token_blocks import PromptPrefixes

WAIT_SECONDS = 0.05
_AT_ONCE_BYTES = 2_048
_TEXTS_MAX = 4_096  # messages, parts of them or prompts; a prompt of more is estimated
_COUNTED_BYTES_MAX = 4 << 20  # of a prompt; longer ones are estimated
_COPIED_BYTES = 1 << 20  # at a step
_TEXT_BYTES_MAX = 1 << 19  # of those without media: what takes a tokenizer longer than `WAIT_SECONDS` is not waited for
_IDS = re.compile(rb"\[[\s\[]*\d")
_TEMPLATE_TOKENS = 5.0  # a message, before anything is learned
_TEMPLATE_TOKENS_MAX = 64.0
_LEARNING = 0.05
log = logging.getLogger("headway.gateway")


class _Holder(msgspec.Struct, gc=False):
    """A chat message, a part of it or a call of a tool; all else in it is skipped, and becomes no object."""

    content: msgspec.Raw = msgspec.Raw(b"")
    text: msgspec.Raw = msgspec.Raw(b"")
    thinking: msgspec.Raw = msgspec.Raw(b"")
    tool_calls: msgspec.Raw = msgspec.Raw(b"")
    function: msgspec.Raw = msgspec.Raw(b"")
    arguments: msgspec.Raw = msgspec.Raw(b"")
    output: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")


_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_HOLDER = msgspec.json.Decoder(_Holder)
_TEXT = msgspec.json.Decoder(str)
_TEXT_FIELDS = tuple(name for name in _Holder.__struct_fields__ if name != "input")
_DEPTH_MAX = 5  # message, content, part, content of a tool's result, part of that


class Tokens(Protocol):
    """The tokens of a text."""

    @property
    def ids(self) -> list[int]:
        """Of each of them."""

    def __len__(self) -> int: ...


class Tokenizer(Protocol):
    """A tokenizer of the package `tokenizers`, as far as it is used."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Tokens:
        """The tokens of a text."""


class Counted(NamedTuple):
    """Tokens of a prompt's text or ids, and its number of chat messages; the template adds to each of them."""

    tokens: int
    messages: int


class PromptFacts(NamedTuple):
    """What is read of a prompt when it arrives. After that its bytes are needed only to be sent on.

    Attributes:
        bytes: of the prompt as it stands in the JSON.
        ids: token ids that it is; 0 where it is something else.
        prompts: how many prompts it is.
        media: what of it is no text.
        hashes: of ever longer parts of it (`prompt_prefixes.py`), for routing.
    """

    bytes: int = 0
    ids: int = 0
    prompts: int = 1
    media: Media = NO_MEDIA
    hashes: Sequence[int] = ()


NO_PROMPT = PromptFacts()


class PromptCount:
    """Counts prompts; `ratio` estimates those that cannot be counted."""

    def __init__(
        self,
        files: Mapping[str, str],
        ratio: TokenRatio,
        media_tokens: int = 1_000,
        cache_shape: CacheShapeOf = lambda model: CacheShape(),
    ) -> None:
        """Load each model's tokenizer.json; `media_tokens` is the setting of that name.

        Raises ValueError, one sentence, if one cannot be loaded.
        """
        self._ratio = ratio
        self._media_tokens = media_tokens
        self._tokenizers = {model: _load(model, Path(file)) for model, file in files.items()}
        self._cache_shape = cache_shape
        self._miscounted: set[str] = set()  # models whose tokenizer counted the latest text otherwise than its replica
        self._template: dict[str, float] = {}  # model -> tokens its chat template adds to a message
        self._threads = ThreadPoolExecutor(1, "headway-tokenizer") if files else None

    def read(self, body: Body) -> PromptFacts:
        """Read a prompt, whose body is not large (`large_body.py`)."""
        prompt = body.prompt_bytes
        if not prompt:
            return NO_PROMPT
        head = body.prompt_head_bytes
        size, prompts = len(head) + len(prompt), prompts_in(prompt, body.endpoint)
        hashes: Sequence[int] = prefix_hashes(_cache_name(body), head + prompt if head else prompt)
        shape = self._shape(body, prompts)
        if shape.block_sizes:
            hashes = PromptPrefixes(hashes)
        if _IDS.match(prompt):
            if isinstance(hashes, PromptPrefixes):
                for _ in with_ids(hashes, body, prompt, shape):
                    pass
            return PromptFacts(size, prompt.count(b",") + 1, prompts, NO_MEDIA, hashes)
        return PromptFacts(size, 0, prompts, media_of(prompt, body.model, self._media_tokens), hashes)

    def read_in_steps(self, body: Body) -> Iterator[PromptFacts]:
        """The same for a large body: one pass over the prompt between two facts, of which the last are whole."""
        view, heads = body.prompt_view, body.prompt_head_views
        if not view:
            return
        facts = PromptFacts(len(view) + sum(map(len, heads)))
        prompt = yield from _copied(view, facts=facts)
        whole = (yield from _copied(*heads, view, facts=facts)) if any(heads) else prompt
        for hashes in prefix_hashes_in_steps(_cache_name(body), whole):
            facts = facts._replace(hashes=hashes)
            yield facts
        prompts = prompts_in(prompt, body.endpoint)
        shape = self._shape(body, prompts)
        if shape.block_sizes:
            facts = facts._replace(hashes=PromptPrefixes(facts.hashes))
        if _IDS.match(prompt):
            facts = facts._replace(ids=prompt.count(b",") + 1)
            if isinstance(facts.hashes, PromptPrefixes):
                for _ in with_ids(facts.hashes, body, prompt, shape):
                    yield facts
        for media in media_in_steps(prompt, body.model, self._media_tokens) if not facts.ids else ():
            facts = facts._replace(media=media)
            yield facts
        yield facts._replace(prompts=prompts)

    def _shape(self, body: Body, prompts: int) -> CacheShape:
        """How its one prompt is cut into blocks; no sizes where its tokens are not known."""
        return self._cache_shape(body.model) if body.endpoint.takes_prompts and prompts == 1 else CacheShape()

    def at_once(self, body: Body | None, prompt: PromptFacts, body_bytes: int) -> tuple[int, Counted | None]:
        """Prompt tokens without waiting, and what was counted; None where they are an estimate."""
        if body is None:
            return min(self._media_tokens, self._ratio.tokens("", body_bytes)), None  # a form: its file is no text
        counted: Counted | None = None
        if prompt.ids:
            counted = Counted(prompt.ids, 0)
        elif body.model in self._tokenizers and prompt.bytes <= _AT_ONCE_BYTES:
            counted = self._count(body, prompt)
        if counted is None:
            text_bytes = (prompt.bytes or body_bytes) - prompt.media.bytes
            return self._ratio.tokens(body.model, text_bytes) + prompt.media.tokens, None
        return self.total(body.model, counted), counted

    def takes_long(self, body: Body | None, prompt: PromptFacts, counted: Counted | None) -> bool:
        """Whether a tokenizer exists for a prompt that was not counted at once."""
        is_open = counted is None and body is not None and body.model in self._tokenizers
        text_bytes = prompt.bytes - prompt.media.bytes
        return is_open and 0 < prompt.bytes <= _COUNTED_BYTES_MAX and text_bytes <= _TEXT_BYTES_MAX

    def later(self, body: Body, prompt: PromptFacts, then: Callable[[Counted | None], None]) -> None:
        """Count in a thread; `then` gets the result in the event loop, or None after `WAIT_SECONDS`."""
        assert self._threads is not None, "only asked where there is a tokenizer"
        loop = asyncio.get_running_loop()
        counting = loop.run_in_executor(self._threads, self._count, body, prompt)
        late = loop.call_later(WAIT_SECONDS, counting.cancel)

        def end(done: asyncio.Future[Counted | None]) -> None:
            late.cancel()
            failed = None if done.cancelled() else done.exception()
            if failed is not None:
                log.error("tokenizers.%s: counting a prompt failed, its tokens are estimated: %s", body.model, failed)
            then(None if done.cancelled() or failed is not None else done.result())

        counting.add_done_callback(end)

    def _count(self, body: Body, prompt: PromptFacts) -> Counted | None:
        """Count, and note the keys of its blocks where they are wanted and the tokenizer is right."""
        with_keys = isinstance(prompt.hashes, PromptPrefixes) and body.model not in self._miscounted
        ids: list[int] | None = [] if with_keys else None
        counted = _count(self._tokenizers[body.model], body, prompt.media, ids)
        if ids and isinstance(prompt.hashes, PromptPrefixes):
            with_tokens(prompt.hashes, body, ids, self._cache_shape(body.model))
        return counted

    def total(self, model: str, counted: Counted) -> int:
        """Prompt tokens, the chat template's included."""
        added = counted.messages * self._template.get(model, _TEMPLATE_TOKENS)
        return max(1, counted.tokens + round(added))

    def learn(self, model: str, prompt: PromptFacts, counted: Counted | None, prompt_tokens: int) -> None:
        """Calibrate the ratio, or what the template adds, by the tokens that a replica counted of a prompt of text."""
        if prompt.media != NO_MEDIA:
            return
        if counted is None:
            self._ratio.learn(model, prompt.bytes, prompt_tokens)
        elif not counted.messages:
            if prompt_tokens and not prompt.ids:
                (self._miscounted.discard if counted.tokens == prompt_tokens else self._miscounted.add)(model)
        else:
            added = min(_TEMPLATE_TOKENS_MAX, max(0.0, (prompt_tokens - counted.tokens) / counted.messages))
            known = self._template.get(model)
            self._template[model] = added if known is None else known + _LEARNING * (added - known)

    def close(self) -> None:
        """Stop counting."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _copied(*views: memoryview, facts: PromptFacts) -> Generator[PromptFacts, None, bytes]:
    """Copy much in steps: new memory takes the system longer than the copy itself."""
    copy = BytesIO()
    for view in views:
        for piece in slices(view, _COPIED_BYTES):
            copy.write(piece)
            yield facts
    return copy.getvalue()  # which is not copied again


def _load(model: str, file: Path) -> Tokenizer:
    try:
        import tokenizers  # noqa: PLC0415 - an extra
    except ImportError:
        raise ValueError("tokenizers: needs the package tokenizers: pip install 'headway[tokenizer]'") from None
    if not file.is_file():
        raise ValueError(f"tokenizers.{model}: the file {str(file)!r} does not exist; name the model's tokenizer.json")
    try:
        loaded = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain Exception
        raise ValueError(f"tokenizers.{model}: {file} is not a valid tokenizer.json: {error}") from None
    loaded.no_truncation()
    loaded.no_padding()
    return cast(Tokenizer, loaded)


def _cache_name(body: Body) -> str:
    """What keeps equal prompts apart in a cache: the model, and the salt."""
    return f"{body.model}\0{body.cache_salt}" if body.salt_bytes else body.model


def _count(tokenizer: Tokenizer, body: Body, media: Media, ids: list[int] | None = None) -> Counted | None:
    """Tokens of the prompt; None if it holds no text, or too many. `ids` gets those of a prompt that is one text.

    A call to msgspec lets nothing else run, in whatever thread. So none makes an object of a value that is not needed.
    """
    try:
        prompt, endpoint = body.prompt_bytes, body.endpoint
        is_list = prompt.startswith(b"[")
        items = _LIST.decode(prompt) if is_list else [msgspec.Raw(prompt)]
        if len(items) > _TEXTS_MAX:
            return None
        is_chat = endpoint.is_generation and not endpoint.takes_prompts
        if is_chat or (is_list and any(_begins(item, b"{") for item in items)):
            written = [text for item in items for text in _texts(item)]
            for name in endpoint.prompt_head_fields:
                written += _head_texts(getattr(body, name))
            if len(written) > _TEXTS_MAX or not (written or is_list):
                return None
            tokens = sum(len(tokenizer.encode(_text(text), add_special_tokens=False)) for text in written)
            return Counted(tokens + media.tokens, len(items))
        texts = [_TEXT.decode(item) for item in items if _begins(item, b'"')]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return None  # the replica answers with what is wrong with it
    encoded = [tokenizer.encode(text) for text in texts]
    if ids is not None and len(encoded) == len(items) == 1:
        ids += encoded[0].ids
    return Counted(sum(map(len, encoded)), 0) if texts else None


def _texts(value: msgspec.Raw, depth: int = _DEPTH_MAX) -> list[msgspec.Raw]:
    """The texts of a chat message, as they stand in it: its content and its calls of tools, or the parts of them."""
    if _begins(value, b'"'):
        return [value]
    if not depth:
        return []
    if _begins(value, b"["):
        return [text for part in _LIST.decode(value)[: _TEXTS_MAX + 1] for text in _texts(part, depth - 1)]
    if not _begins(value, b"{"):
        return []
    holder = _HOLDER.decode(value)
    inner = [getattr(holder, name) for name in _TEXT_FIELDS]
    arguments = [holder.input] if holder.input else []  # of a tool: an object, which the template writes as JSON
    return [text for one in inner if one for text in _texts(one, depth - 1)] + arguments


def _head_texts(head: msgspec.Raw) -> list[msgspec.Raw]:
    """The texts of what stands before the messages: of tools, all that is written of each."""
    if not _begins(head, b"["):
        return [head] if _begins(head, b'"') else []
    return [text for item in _LIST.decode(head)[: _TEXTS_MAX + 1] for text in _texts(item) or [item]]


def _text(value: msgspec.Raw) -> str:
    return _TEXT.decode(value) if _begins(value, b'"') else bytes(value).decode()


def _begins(value: msgspec.Raw, mark: bytes) -> bool:
    return bytes(memoryview(value)[:1]) == mark
