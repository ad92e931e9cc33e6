"""Asks a running server why a request waited: a gateway of `headway serve`, or vLLM with the plug-in."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from typing import Any

from headway.bench.load_test.addresses import http_address
from headway.bench.user_mistake import UserMistake

_SECONDS = 10.0


def live_lines(url: str, request_id: str) -> list[str]:
    """The explanation of one request's wait, for printing.

    Raises:
        UserMistake: nothing answers there, the server has no such endpoint, or it does not know the request.
    """
    base = url if "://" in url else f"http://{url}"
    if http_address(base) is None:
        raise UserMistake(f"--live {url}: it must be an address such as http://127.0.0.1:8000")
    address = f"{base.rstrip('/')}/headway/why?id={urllib.parse.quote(request_id, safe='')}"
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
            explanation = json.load(answer)
    except urllib.error.HTTPError as refusal:
        raise UserMistake(_refused(url, request_id, refusal)) from None
    except (ValueError, HTTPException):
        raise UserMistake(f"--live {url}: its answer is not JSON; is this a Headway server?") from None
    except OSError as error:
        why = getattr(error, "reason", error)
        raise UserMistake(f"--live {url}: nothing answers there ({why}); check the address") from None
    if not isinstance(explanation, dict) or not isinstance(explanation.get("why"), str):
        raise UserMistake(f"--live {url}: its answer does not explain a request; is this a Headway server?")
    return _lines(explanation)


def _refused(url: str, request_id: str, refusal: urllib.error.HTTPError) -> str:
    try:
        message = str(json.load(refusal)["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        message = ""
    if refusal.code == 404 and message.startswith("no such request"):
        return (
            f"{url} does not know {request_id!r}: it keeps the requests inside and the latest that left; check the id"
        )
    if refusal.code == 404:
        return (
            f"--live {url}: that server has no /headway/why; name a gateway of `headway serve` (with tenants its "
            "admin_listen), or the address in why_listen of a vLLM with the plug-in"
        )
    return f"--live {url}: it answered {refusal.code} {message or refusal.reason}".rstrip()


def _lines(explanation: dict[str, Any]) -> list[str]:
    request = explanation.get("request", explanation.get("id"))
    shown = {
        key: value for key, value in explanation.items() if key not in ("request", "id", "why") and value is not None
    }
    width = max((len(key) for key in shown), default=0) + 2
    return [f"{request}: {explanation['why']}", "", *(f"{key:<{width}}{_plain(value)}" for key, value in shown.items())]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items()) or "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
