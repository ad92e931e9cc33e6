"""Explain endpoint: `/headway/why?id=…` on an address of its own, in the engine's process: lengths and times, no text.

vLLM's HTTP server lives in another process and takes routes from plug-ins only where the operator names all of them.
The answer has the shape of the gateway's, so `headway explain --live` asks both alike.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

Explain: TypeAlias = Callable[[str], dict[str, object] | None]
"""Request id → why it waits or waited, None if it is unknown. Called by the endpoint's threads."""

ANSWERED_AT_ONCE = 16
NOT_AMONG_THE_LATEST = "no such request among the latest"


class WhyEndpoint:
    """A server in threads of its own. Raises ValueError, one sentence, where it cannot listen on the address."""

    def __init__(self, host: str, port: int, explain: Explain) -> None:
        try:
            self._server = _Server(host, port)
        except (OSError, OverflowError, UnicodeError) as error:  # a port past 65,535, a name that is none
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"headway: why_listen: cannot listen on {host}:{port}: {reason}; name another address"
            ) from error
        self._server.explain = explain
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="headway-why", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2.0)


class _Server(ThreadingHTTPServer):
    """Answers a few connections at once and closes those beyond: their threads share the engine's interpreter."""

    daemon_threads = True
    explain: Explain

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.Semaphore(ANSWERED_AT_ONCE)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread, if one is free."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer it, and free the thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is nothing to log."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10  # seconds for a client to send its request

    def do_GET(self) -> None:
        """Answer `/headway/why?id=…`; any other path is 404."""
        try:
            url = urlsplit(self.path)
        except ValueError:
            self._answer(400, _error("the address cannot be parsed: ask /headway/why?id=REQUEST_ID"))
            return
        if url.path != "/headway/why":
            self._answer(404, _error(f"unknown path {url.path}: ask /headway/why?id=REQUEST_ID"))
            return
        explanation = self.server.explain(parse_qs(url.query).get("id", [""])[0])
        if explanation is None:
            self._answer(404, _error(NOT_AMONG_THE_LATEST))
        else:
            self._answer(200, explanation)

    def log_message(self, format: str, *args: object) -> None:
        """Log no requests."""

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _error(message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
