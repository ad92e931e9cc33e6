"""What the endpoint picker tells Envoy, as messages of external processing.

Sources: Gateway API Inference Extension, proposal 004 (endpoint picker protocol, v1); Envoy's
`external_processor.proto`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from google.protobuf.struct_pb2 import Struct

from headway.gateway.epp import ext_proc_messages as pb
from headway.gateway.openai.error_responses import reason_of
from headway.gateway.relay.picked_request import PickedRequest
from headway.gateway.wire.messages import Headers, Response

ENDPOINT_HEADER = "x-gateway-destination-endpoint"
_METADATA = "envoy.lb"
_PART_BYTES = 62_000  # of a body in one message; Envoy's bound is 64 KB
_OVERWRITE = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


def destination(endpoints: Sequence[str], picked: PickedRequest) -> pb.ProcessingResponse:
    """The request's headers, with the endpoints that Envoy is to send it to: the first that it can reach."""
    endpoint = ",".join(endpoints)
    mutation = _changed([(ENDPOINT_HEADER.encode(), endpoint.encode()), *picked.headers])
    mutation.remove_headers.extend(name.decode("latin-1") for name in picked.removed)
    common = pb.CommonResponse(clear_route_cache=True, header_mutation=mutation)
    metadata = Struct()
    metadata.get_or_create_struct(_METADATA)[ENDPOINT_HEADER] = endpoint
    return pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=common), dynamic_metadata=metadata)


def body_parts(body: Sequence[bytes | memoryview], *, ends: bool) -> Iterator[pb.ProcessingResponse]:
    """The request's body; `ends`: no trailers follow it."""
    pieces = [memoryview(part)[at : at + _PART_BYTES] for part in body for at in range(0, len(part), _PART_BYTES)]
    for number, piece in enumerate(pieces or [memoryview(b"")], 1):
        streamed = pb.StreamedBodyResponse(body=bytes(piece), end_of_stream=ends and number >= len(pieces))
        mutation = pb.BodyMutation(streamed_response=streamed)
        yield pb.ProcessingResponse(request_body=pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation)))


def answer_part(body: bytes, *, ends: bool) -> pb.ProcessingResponse:
    """A part of an answer that Envoy has shown, as its client is to get it."""
    streamed = pb.StreamedBodyResponse(body=body, end_of_stream=ends)
    common = pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=streamed))
    return pb.ProcessingResponse(response_body=pb.BodyResponse(response=common))


def answer_with(headers: Headers) -> pb.ProcessingResponse:
    """The headers of an answer, with these besides."""
    common = pb.CommonResponse(header_mutation=_changed(headers))
    return pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=common))


def instead(response: Response, more: Iterable[tuple[bytes, bytes]], *, is_headless: bool) -> pb.ProcessingResponse:
    """An answer of our own; `more` are headers, and an answer to a HEAD request has no body."""
    headers = _changed([(b"content-type", response.content_type), *response.headers, *more])
    immediate = pb.ImmediateResponse(
        status=pb.HttpStatus(code=response.status),
        headers=headers,
        body=b"" if is_headless else response.body,
        details=f"headway_{reason_of(response) or 'answer'}",
    )
    return pb.ProcessingResponse(immediate_response=immediate)


REQUEST_TRAILERS = pb.ProcessingResponse(request_trailers=pb.TrailersResponse())
ANSWER_TRAILERS = pb.ProcessingResponse(response_trailers=pb.TrailersResponse())


def _changed(headers: Headers) -> pb.HeaderMutation:
    options = [
        pb.HeaderValueOption(
            header=pb.HeaderValue(key=name.decode("latin-1"), raw_value=value), append_action=_OVERWRITE
        )
        for name, value in headers
    ]
    return pb.HeaderMutation(set_headers=options)
