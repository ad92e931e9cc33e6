"""The list of models that a replica gives: one odd entry takes no other away."""

from __future__ import annotations

import json

import msgspec
import pytest

from headway.gateway.replicas.probing import _adapters, _models

ODD: list[object] = [{}, {"id": 5}, {"id": None}, {"id": ""}, {"id": "x" * 513}, "m", 5, None, ["m"]]


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_entry_is_left_out_and_the_others_stay(odd: object) -> None:
    models = _models(json.dumps({"data": [{"id": "a"}, odd, {"id": "b" * 512}]}).encode())
    assert list(models or {}) == ["a", "b" * 512]


def test_entries_are_passed_on_as_they_stand_in_the_list() -> None:
    body = b'{"object":"list","data":[{"id":"a","x":1.50e1,"y":[]}, {"id" : "a", "x":2}]}'
    assert msgspec.json.encode(_models(body)) == b'{"a":{"id" : "a", "x":2}}'


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b"[]", b'{"data":5}', b'{"data":null}', b"[" * 100_000, b"\xff", b"5"),
        b'{"data":[{"id":"a","x":"\xff"}]}',
        b'{"data":[' + b'{"id":"a"},' * 10_000 + b'{"id":"b"}]}',  # more than can be read at one turn
        b'{"data":[' + b"[]," * 400_000 + b'{"id":"b"}]}',
    ],
    ids=range(11),
)
def test_what_is_no_list_says_nothing_of_models(body: bytes) -> None:
    assert _models(body) is None


def test_an_adapter_is_an_entry_with_a_parent() -> None:
    """As vLLM 0.32 lists them: the base model's `parent` is null."""
    entries = [
        {"id": "base", "parent": None},
        {"id": "sql", "parent": "base"},
        {"id": "bare"},
        {"id": "odd", "parent": 7},
    ]
    models = _models(json.dumps({"data": entries}).encode())
    assert models is not None
    assert _adapters(models) == {"sql": "base"}
