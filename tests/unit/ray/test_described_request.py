"""What a router reads of a call: HTTP heads, OpenAI bodies, what an application says; and the settings of the queue."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from headway.ray.described_request import Description, describing, facts_of
from headway.ray.queue_settings import read_queue_settings


@dataclass
class Call:
    """Stands in for Ray's metadata of a call."""

    request_id: str = ""
    multiplexed_model_id: str = ""
    session_id: str = ""
    is_streaming: bool = False


@dataclass
class PydanticLike:
    messages: list[dict[str, str]]
    more: dict[str, Any] = field(default_factory=dict)

    def model_dump(self, *, mode: str, exclude_unset: bool) -> dict[str, Any]:
        assert (mode, exclude_unset) == ("json", True)
        return {"messages": self.messages, **self.more}


def test_of_http_the_head_alone_is_known() -> None:
    scope = {
        "path": "/v1/chat/completions",
        "headers": [
            (b"Content-Length", b"4000"),
            (b"x-session-id", b"s"),
            (b"cookie", b"secret"),
            (b"Authorization", b"k"),
        ],
    }
    facts = facts_of([SimpleNamespace(asgi_scope=scope)], {}, Call("r-1", is_streaming=True))
    assert (facts.path, facts.body_bytes, facts.prompt.bytes) == ("/v1/chat/completions", 4_000, 4_000)
    assert dict(facts.headers) == {b"x-session-id": b"s", b"authorization": b"k", b"x-request-id": b"r-1"}
    assert json.loads(facts.head) == {"stream": True}


@pytest.mark.parametrize("length", [b"", b"many", b"-5", b"9" * 40])
def test_a_length_that_makes_no_sense_counts_as_none(length: bytes) -> None:
    scope = {"path": "/any", "headers": [(b"content-length", length)]}
    facts = facts_of([SimpleNamespace(asgi_scope=scope)], {}, Call())
    assert (facts.path, facts.body_bytes) == ("/v1/completions", 0)


def test_a_body_is_read_and_its_prompt_is_left_behind() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "word " * 400}], "max_tokens": 7, "n": 2}
    for given in (body, PydanticLike(body["messages"], {"model": "m", "max_tokens": 7, "n": 2})):  # type: ignore[arg-type]
        facts = facts_of([given, SimpleNamespace(headers={"X-Session-Id": "s"})], {}, Call())
        assert facts.path == "/v1/chat/completions"
        assert json.loads(facts.head) == {"model": "m", "max_tokens": 7, "n": 2}
        assert 2_000 < facts.prompt.bytes < 2_100
        assert facts.prompt.hashes
        assert dict(facts.headers) == {b"x-session-id": b"s"}


def test_a_large_body_is_measured_and_its_head_stays_small() -> None:
    body = {"prompt": "x" * 1_000_000, "max_tokens": 9, "junk": "y" * 100_000, "model": "z" * 100_000}
    facts = facts_of([body], {"headers": {"x-api-key": "k", "x-session-id": "s" * 10_000}}, Call())
    assert facts.prompt.bytes > 1_000_000
    assert json.loads(facts.head) == {"max_tokens": 9}
    assert dict(facts.headers) == {b"x-api-key": b"k"}


def test_token_ids_are_counted() -> None:
    assert facts_of([{"prompt": [1, 2, 3, 4]}], {}, Call()).prompt.ids == 4


def test_what_is_no_api_call_has_its_size() -> None:
    facts = facts_of(["x" * 100, 5], {}, Call(session_id="s", multiplexed_model_id="lora"))
    assert (facts.prompt.bytes, facts.adapter, dict(facts.headers)) == (100, "lora", {b"x-session-id": b"s"})


def test_an_application_says_what_it_knows() -> None:
    told = Description(
        prompt_tokens=12,
        output_tokens=5,
        output_tokens_max=9,
        tenant="a",
        priority=-3,
        deadline_seconds=0.5,
        tpot_deadline_seconds=0.05,
        program="task",
        program_stage=2,
        program_deadline_seconds=60.0,
    )
    facts = facts_of([object()], {}, Call(), lambda args, kwargs: told)
    assert (facts.prompt.ids, facts.tenant, facts.is_trusted) == (12, "a", True)
    assert dict(facts.headers) == {
        b"x-headway-output-tokens": b"5",
        b"x-request-priority": b"-3",
        b"x-slo-ttft-ms": b"500.0",
        b"x-slo-tpot-ms": b"50.0",
        b"x-headway-program": b"task",
        b"x-headway-program-stage": b"2",
        b"x-headway-program-deadline-ms": b"60000.0",
    }
    assert json.loads(facts.head)["max_tokens"] == 9
    assert facts_of([{"prompt": "x"}], {}, Call(), lambda args, kwargs: None).path == "/v1/completions"


@pytest.mark.parametrize("path", ["", "nothing", "json:nothing", "no_such_module:f", "json:decoder", ".."])
def test_a_describing_function_that_is_none_is_named_in_one_sentence(path: str) -> None:
    with pytest.raises(ValueError, match=r"^describe: .*module:function$"):
        describing(path)
    assert describing("json:loads") is json.loads
    assert describing(None) is None


def test_a_function_itself_and_settings_of_another_type_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^describe must be text, module:function, as each proxy imports it; got <"):
        describing(json.loads)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^the settings must be a mapping or the path of a TOML file, got 3$"):
        read_queue_settings(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"listen": "127.0.0.1:1"}, "listen: it means nothing inside Ray Serve"),
        ({"polices": {}}, "unknown key 'polices': did you mean 'policies'"),
        ({"policies": {"ordering": "nothing"}}, "unknown ordering policy 'nothing'"),
        ({"ray": {"idle_seconds": 0}}, "ray.idle_seconds must be above 0"),
        ({"ray": {"answer_seconds": math.nan}}, "ray.answer_seconds must be above 0 and finite, got nan"),
        ({"ray": []}, r"ray must be a table, got \[\]"),
        ({"ray": None}, "ray must be a table, got None"),
        ({1: {}}, "the keys of the settings must be texts, got 1"),
        ({"ray": {"ide_seconds": 1}}, "unknown key ray.ide_seconds: did you mean 'idle_seconds'"),
        ({"queue": {"max_requests": "many"}}, "queue.max_requests"),
        ("/nowhere.toml", "/nowhere.toml: it cannot be read"),
    ],
)
def test_settings_that_make_no_sense_are_named_in_one_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + sentence.replace(".", r"\.")) as raised:
        read_queue_settings(given)
    assert "\n" not in str(raised.value)


def test_settings_come_from_a_mapping_or_a_file(tmp_path: Any) -> None:
    file = tmp_path / "queue.toml"
    file.write_text('[policies]\nordering = "fcfs"\n[ray]\nkv_tokens = 5\n')
    read = read_queue_settings(str(file))
    assert (read.gateway.policies.ordering, read.ray.kv_tokens) == ("fcfs", 5)
    assert read_queue_settings({"policies": {"ordering": "fcfs"}, "ray": {"kv_tokens": 5}}) == read
