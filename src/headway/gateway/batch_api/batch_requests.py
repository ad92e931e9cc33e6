"""Requests to the Batch API: what a body, a form or a query asks for, checked. Each mistake is one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from headway.gateway.batch_api.input_lines import BATCH_ENDPOINTS

BODY_BYTES_MAX = 1 << 16
_WINDOW = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_WINDOW_SECONDS_MAX = 14 * 86_400
_EXPIRES_SECONDS_MIN, _EXPIRES_SECONDS_MAX = 3_600, 2_592_000
_PAIRS_MAX, _KEY_CHARACTERS_MAX, _VALUE_CHARACTERS_MAX = 16, 64, 512
_PARAMETERS_MAX = 20
_KNOWN = {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}


class RequestMistake(ValueError):
    """A mistake of a client; `param` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class WantedBatch(NamedTuple):
    """What a `POST /v1/batches` asks for. `metadata` is JSON, "" for none."""

    input_id: str
    endpoint: str
    window: str
    window_seconds: int
    metadata: str
    results_seconds: int | None


class WantedPage(NamedTuple):
    """Which part of a list is asked for."""

    after: str | None
    limit: int
    purpose: str | None = None
    newest_first: bool = True


def wanted_batch(body: bytes) -> WantedBatch:
    """What a body asks for. Raises RequestMistake."""
    if len(body) > BODY_BYTES_MAX:
        raise RequestMistake(f"the body is longer than {BODY_BYTES_MAX} bytes")
    try:
        fields: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise RequestMistake("the body must be a JSON object")
    unknown = sorted(fields.keys() - _KNOWN)
    if unknown:
        raise RequestMistake(
            f"unknown parameter {unknown[0][:40]!r}; there are {', '.join(sorted(_KNOWN))}", unknown[0]
        )
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(fields.get(name), str):
            raise RequestMistake(f"{name} must be a text", name)
    endpoint, window = fields["endpoint"], fields["completion_window"]
    if endpoint not in BATCH_ENDPOINTS:
        raise RequestMistake(f"endpoint must be one of {', '.join(BATCH_ENDPOINTS)}", "endpoint")
    return WantedBatch(
        fields["input_file_id"][:200],
        endpoint,
        window,
        _window_seconds(window),
        _metadata(fields.get("metadata")),
        _results_seconds(fields.get("output_expires_after")),
    )


def _window_seconds(window: str) -> int:
    match = _WINDOW.fullmatch(window)
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]] if match else 0
    if not 0 < seconds <= _WINDOW_SECONDS_MAX:
        raise RequestMistake(
            "completion_window must be a time like '24h', '90m' or '2d', at most 14d", "completion_window"
        )
    return seconds


def _metadata(given: object) -> str:
    if given is None:
        return ""
    if not isinstance(given, dict) or len(given) > _PAIRS_MAX:
        raise RequestMistake(f"metadata must be an object of at most {_PAIRS_MAX} pairs", "metadata")
    for key, value in given.items():
        is_text = isinstance(value, str) and len(value) <= _VALUE_CHARACTERS_MAX
        if not is_text or not 0 < len(key) <= _KEY_CHARACTERS_MAX:
            raise RequestMistake(
                f"metadata must have keys of up to {_KEY_CHARACTERS_MAX} characters and texts of up to "
                f"{_VALUE_CHARACTERS_MAX}",
                "metadata",
            )
    return json.dumps(given)


def _results_seconds(given: object) -> int | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise RequestMistake("output_expires_after must be an object", "output_expires_after")
    return _expires_seconds(given.get("anchor"), given.get("seconds"), "output_expires_after")


def _expires_seconds(anchor: object, seconds: object, param: str) -> int:
    is_whole = isinstance(seconds, int) and not isinstance(seconds, bool)
    if anchor != "created_at":
        raise RequestMistake(f"{param}.anchor must be 'created_at'", param)
    if not is_whole or not _EXPIRES_SECONDS_MIN <= int(str(seconds)) <= _EXPIRES_SECONDS_MAX:
        bounds = f"from {_EXPIRES_SECONDS_MIN:,} to {_EXPIRES_SECONDS_MAX:,}"
        raise RequestMistake(f"{param}.seconds must be a whole number {bounds}", param)
    return int(str(seconds))


def wanted_keeping(fields: Mapping[str, str]) -> int | None:
    """How many seconds an uploaded file is to be kept; None where its form does not say. Raises RequestMistake."""
    if fields.get("purpose") != "batch":
        raise RequestMistake("purpose must be 'batch': this gateway keeps files for batches only", "purpose")
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    whole = int(seconds) if seconds is not None and re.fullmatch("[0-9]{1,9}", seconds) else None
    return _expires_seconds(anchor, whole, "expires_after")


def wanted_page(target: bytes, default: int, most: int, *, of_files: bool) -> WantedPage:
    """Which page a request target asks for. Raises RequestMistake."""
    query = target.partition(b"?")[2].decode("latin-1")
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_PARAMETERS_MAX))
    except ValueError:
        raise RequestMistake(f"the query has more than {_PARAMETERS_MAX} parameters; leave some out") from None
    limit = given.get("limit", str(default))
    if not re.fullmatch("[0-9]{1,6}", limit) or not 1 <= int(limit) <= most:
        raise RequestMistake(f"limit must be a whole number from 1 to {most:,}", "limit")
    order = given.get("order", "desc")
    if of_files and order not in ("asc", "desc"):
        raise RequestMistake("order must be asc or desc", "order")
    purpose = given.get("purpose") if of_files else None
    return WantedPage(given.get("after") or None, int(limit), purpose, order == "desc" or not of_files)
