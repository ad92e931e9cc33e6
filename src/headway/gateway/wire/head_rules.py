"""Which request heads are refused: the ambiguous, the oversized, and what is no HTTP/1.1.

llhttp has refused most of what is ambiguous already; these rules refuse the rest.
"""

from __future__ import annotations

from headway.gateway.openai.error_responses import Reason, error_response
from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.messages import HttpRequest, Response


def judge_head(request: HttpRequest, version: str, limits: WireLimits) -> Response | None:
    """What is wrong with a head, as the answer to it; None if nothing is. `version` is "1.1", as it was parsed."""
    names = [name for name, _ in request.headers]
    if version not in ("1.0", "1.1"):
        return malformed(505, f"HTTP/{version} is not spoken here; use HTTP/1.1")
    if len(names) > limits.headers:
        return malformed(431, f"there are more than {limits.headers} headers")
    if sum([len(name) + len(value) + 4 for name, value in request.headers]) + len(request.target) > limits.head_bytes:
        return malformed(431, f"the headers are longer than {limits.head_bytes} bytes")
    encodings = []
    if b"transfer-encoding" in names:
        encodings = [value for name, value in request.headers if name == b"transfer-encoding"]
    if encodings and (version == "1.0" or encodings[0].lower() != b"chunked" or len(encodings) > 1):
        return malformed(400, "transfer-encoding may only be chunked, once, and in HTTP/1.1")
    if names.count(b"content-length") + len(encodings) > 1:
        return malformed(400, "the length of the body is given twice")
    hosts = names.count(b"host")
    if hosts != 1 and (version == "1.1" or hosts > 1):
        return malformed(400, "there must be one host header")
    length = request.header(b"content-length")
    if length is not None and int(length) > limits.body_bytes:
        return malformed(413, f"the body is longer than {limits.body_bytes} bytes")
    if request.method == b"CONNECT" or not request.target.startswith(b"/"):
        return malformed(400, "the request target must be a path")
    return None


def malformed(status: int, message: str) -> Response:
    """The answer to a request that cannot be understood."""
    return error_response(status, message, Reason.MALFORMED)
