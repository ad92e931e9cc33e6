"""What is written to Envoy is what protobuf writes of the same message, byte for byte or in meaning."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

pytest.importorskip("hpack", reason="the extra `epp` is not installed")
from google.protobuf.struct_pb2 import Struct

from headway.gateway.epp import ext_proc_messages as pb
from headway.gateway.epp import picker_messages as messages
from headway.gateway.openai.error_responses import Reason, error_response
from headway.gateway.relay.picked_request import PickedRequest
from headway.gateway.wire.messages import Response

NAMES = some.binary(min_size=1, max_size=200)
HEADERS = some.lists(some.tuples(NAMES, some.binary(max_size=300)), max_size=4)


def options(headers: list[tuple[bytes, bytes]]) -> list[Any]:
    return [
        pb.HeaderValueOption(
            header=pb.HeaderValue(key=name.decode("latin-1"), raw_value=value),
            append_action=pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        for name, value in headers
    ]


def streamed(body: bytes, *, ends: bool) -> Any:
    part = pb.StreamedBodyResponse(body=body, end_of_stream=ends)
    return pb.BodyResponse(response=pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=part)))


@given(
    some.lists(some.sampled_from(["10.0.0.1:8000", "[::1]:80"]), min_size=1, max_size=20), HEADERS, some.lists(NAMES)
)
def test_a_destination(endpoints: list[str], headers: list[tuple[bytes, bytes]], removed: list[bytes]) -> None:
    named = (b"x-gateway-destination-endpoint", ",".join(endpoints).encode())
    mutation = pb.HeaderMutation(
        set_headers=options([named, *headers]), remove_headers=[name.decode("latin-1") for name in removed]
    )
    metadata = Struct()
    metadata.get_or_create_struct("envoy.lb")[named[0].decode()] = ",".join(endpoints)
    common = pb.CommonResponse(clear_route_cache=True, header_mutation=mutation)
    wanted = pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=common), dynamic_metadata=metadata)
    written = messages.destination(endpoints, PickedRequest(headers, removed, []))
    assert written == wanted.SerializeToString(deterministic=True)


@given(some.lists(some.binary(max_size=400), max_size=3), some.booleans())
def test_parts_of_a_body(body: list[bytes], ends: bool) -> None:
    written = list(messages.body_parts([part for part in body if part], ends=ends))
    wanted = [part for part in body if part] or [b""]
    assert written == [
        pb.ProcessingResponse(request_body=streamed(part, ends=ends and number == len(wanted))).SerializeToString()
        for number, part in enumerate(wanted, 1)
    ]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 61_999, 62_000, 62_001, 200_000])
def test_a_long_body_is_cut_below_the_bound_of_envoy(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    parts = [pb.ProcessingResponse.FromString(one) for one in messages.body_parts([memoryview(body)], ends=True)]
    told = [part.request_body.response.body_mutation.streamed_response for part in parts]
    assert b"".join(one.body for one in told) == body
    assert [one.end_of_stream for one in told] == [False] * (len(told) - 1) + [True]
    assert max(len(one.body) for one in told) <= 62_000


@given(some.binary(max_size=20_000), some.booleans())
def test_a_part_of_an_answer(body: bytes, ends: bool) -> None:
    wanted = pb.ProcessingResponse(response_body=streamed(body, ends=ends))
    assert messages.answer_part(body, ends=ends) == wanted.SerializeToString()


@given(HEADERS)
def test_headers_of_an_answer(headers: list[tuple[bytes, bytes]]) -> None:
    common = pb.CommonResponse(header_mutation=pb.HeaderMutation(set_headers=options(headers)))
    wanted = pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=common))
    assert messages.answer_with(headers) == wanted.SerializeToString()


@pytest.mark.parametrize("is_headless", [False, True])
@pytest.mark.parametrize(
    "response",
    [
        error_response(429, "queue full; " * 30, Reason.QUEUE_FULL, retry_seconds=2.5),
        Response(200, b"", b"text/plain"),
        Response(204, b"x" * 40_000, headers=((b"a", b""),)),
    ],
)
def test_an_answer_of_our_own(response: Response, is_headless: bool) -> None:
    written = pb.ProcessingResponse.FromString(messages.instead(response, ((b"b", b"c"),), is_headless=is_headless))
    told = written.immediate_response
    assert told.status.code == response.status
    assert told.body == (b"" if is_headless else response.body)
    headers = [(b"content-type", response.content_type), *response.headers, (b"b", b"c")]
    assert list(told.headers.set_headers) == options(headers)
    assert told.details.startswith("headway_")


def test_trailers() -> None:
    wanted = [
        pb.ProcessingResponse(request_trailers=pb.TrailersResponse()),
        pb.ProcessingResponse(response_trailers=pb.TrailersResponse()),
    ]
    written = [messages.REQUEST_TRAILERS, messages.ANSWER_TRAILERS]
    assert written == [one.SerializeToString() for one in wanted]
