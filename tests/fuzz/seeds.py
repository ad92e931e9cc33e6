"""What fuzzing starts from: good and odd examples for each target, and the words that mutations put in."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any

from headway.gateway.epp.http2_frames import frame
from headway.gateway.settings import ReplicaSettings, Settings, TenantSettings
from tests.support.http2_client import HEADS

_POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"
_EVENT = b'data: {"id":"c","choices":[{"index":0,"text":"a","finish_reason":null}]}'
_COUNTS = b'{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}'
_USAGE = b'data: {"choices":[],"usage":' + _COUNTS + b"}"

_CLIENT = [
    _POST + b"content-length: 5\r\n\r\nhello",
    _POST + b"content-length: 2\r\n\r\n{}" + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 3,
    _POST + _CHUNKED + b"\r\n2\r\nab\r\n3;ext=1\r\ncde\r\n0\r\ntrailer: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n",
    _POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n{}",
    _POST + b"authorization: wrong\r\ncontent-length: 2\r\n\r\n{}",
    b"GET /v1/models HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n",
    b"\r\n\r\nOPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n",
    _POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    _POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    _POST + b"content-length: 99999999999999999999\r\n\r\n",
    _POST + b"a: " + b"x" * 3_000 + b"\r\n\r\n",
    _POST + b"a: b\r\n" * 40 + b"\r\n",
    _POST + _CHUNKED + b"\r\n0\r\n" + b"a: b\r\n" * 60,
]
_CALL, _CALL_3 = (
    frame(1, 4, stream, b"".join(b"\x00%c%b%c%b" % (len(name), name, len(value), value) for name, value in HEADS))
    for stream in (1, 3)
)
_MESSAGE, _END = frame(0, 0, 1, b"\0\0\0\0\x05hello"), frame(0, 1, 1)
_FRAMES = [
    _CALL + _MESSAGE + _END,
    _CALL + _CALL_3 + _MESSAGE + frame(0, 9, 1, b"\x02\0\0\0\0\0\0\0") + frame(3, 0, 3, bytes(4)),
    frame(1, 0x28, 1, b"\x01" + bytes(6)) + frame(9, 4, 1, b"\x82"),
    frame(4, 0, 0, b"\0\4\0\0\0\0") + _CALL + _MESSAGE + frame(8, 0, 1, b"\0\0\0\5") + _END,
    frame(6, 0, 0, b"12345678") * 3 + frame(7, 0, 0, bytes(8)) + frame(2, 0, 1, bytes(5)) + _CALL + _MESSAGE[:12],
    b"\x01\x04\x01\xf0\x00\x00\x01\xf7\x00\x01\x01\xf8\x01\x04\x03\xf0\x00\x00\x03\xf9\x00\x00\x03\xf6",
    b"\x01\x00\x01\xf1\x09\x04\x01\xf2\x04\x00\x00\xfe\x00\x00\x01\xf6\x04\x00\x00\xff\x01\x05\x01\xf5",
]
_REPLICA = [
    _OK + b"content-length: 2\r\n\r\n{}",
    _OK + _CHUNKED + b"\r\n2\r\n{}\r\n0\r\n\r\n",
    _OK + _CHUNKED + b"\r\n2;a=b\r\n{}\r\n0\r\ntrailer: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx",
    _OK + b"\r\ndata: until the end",
    _OK + b"connection: close\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + _OK + b"content-length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nxyz",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 X\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 000 X\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.0 200 OK\r\n\r\n{}",
    b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"HTTP/1.1 500 X\r\ncontent-length: 1000000000000000000000\r\n\r\n",
    b"HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 0\r\n\r\n",
]
_BODY: dict[str, Any] = {
    "model": "m",
    "prompt": "x",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
    "input": [[1, 2], [3]],
    "stream": True,
    "stream_options": {"include_usage": True, "x": 1},
    "n": 2,
    "priority": -3,
    "max_tokens": 5,
    "max_completion_tokens": 1e3,
    "vllm_xargs": {"a": 1},
    "nvext": {"agent_hints": {"osl": 3, "priority": 1}, "agent_context": {"session_id": "s"}},
}
_BODIES = [
    json.dumps(_BODY).encode(),
    *[json.dumps({"model": "m", name: value}).encode() for name, value in _BODY.items()],
    b'{"model":"m","prompt":[1,2,3],"max_tokens":"100"}',
    b'{"model":"m","model":"b","prompt":"\\ud800","\\u0070riority":1}',
    b'{"model":"m","prompt":"x","max_tokens":' + b"9" * 400 + b"}",
    b'{"model":"m","stream_options":{"a":"\xff"},"stream":true}',
    b" { } ",
    b"[" * 2_000,
    b"",
]
_STREAMS = [
    _EVENT + b"\n\n" + _USAGE + b"\n\ndata: [DONE]\n\n",
    _EVENT + b"\r\n\r\n" + _USAGE + b"\r\n\r\n",
    b": ping\n\nevent: x\n" + _EVENT + b"\n\n",
    b'data: {"choices" : [] ,\ndata: "usage" : {"prompt_tokens": 3.0, "completion_tokens": 2}}\n\n',
    b'data: {"choices":null,"usage":{"prompt_tokens":' + b"9" * 400 + b"}}\n\n",
    b'{"choices":[{"text":"a"}],"usage":{"prompt_tokens":-7,"completion_tokens":3}}',
    _USAGE,
    _EVENT * 2 + b"\n\n" + _EVENT.replace(b"null", b'"stop"') + b"\n\n" + _USAGE + b"\n\n",
    _EVENT + b'\n\ndata: {"error":{"message":"out of memory","code":500}}\n\ndata: [DONE]\n\n',
    b"data: \xff\xfe\n\ndata: " + b'{"usage":' * 50 + b"\n\n",
]
_FIGURES = [
    b'vllm:num_requests_waiting{model_name="m"} 3.0\nvllm:num_requests_running 2\nvllm:kv_cache_usage_perc 0.5 12\n'
    b'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1.0\nheadway_steps_total 3\n',
    b'sglang:num_queue_reqs{a="b\\"c"} 1e3\nsglang:token_usage NaN\nsglang:max_total_num_tokens 1e400\n',
    b'nv_trt_llm_request_metrics{request_type="waiting"} +Inf\ntrtllm_kv_cache_utilization -1\n',
    b'JSON {"named_metrics": {"num_requests_waiting": 3, "kv_cache_usage_perc": "0.5"}}',
    b"TEXT named_metrics.num_requests_waiting=1e999, named_metrics.kv_cache_usage_perc=0.1",
]


def _example(table: type, prefix: str) -> str:
    """A table with every key at its default, as far as TOML can say it."""
    own = [
        f"{one.name} = {json.dumps(one.default)}" for one in fields(table) if isinstance(one.default, str | int | float)
    ]
    return f"[{prefix}]\n" + "\n".join(own) + "\n" if prefix else "\n".join(own) + "\n"


_TABLES = {one.name: one.default_factory for one in fields(Settings) if is_dataclass(one.default_factory)}
_REPLICA_TABLE = '[[replica]]\nurl = "http://127.0.0.1:8001"\nname = "a"\nmax_requests = 4\npriority = "lower-first"\n'
_TENANT_TABLE = '[[tenant]]\nname = "a"\nkey_env = "HOME"\nmay = ["priority", "session"]\npriority_min = -2\n'
_FILES = [
    'listen = "127.0.0.1:0"\nadmin_listen = "[::1]:1"\nobjectives = {a = 1}\n' + _REPLICA_TABLE * 2 + _TENANT_TABLE,
    *[_example(table, name) for name, table in _TABLES.items() if isinstance(table, type)],
    '[policies]\nordering = "fair-share/smallest-volume-first"\noptions = {routing = {load_factor = 1.25}}\n'
    'routing = "prefix-affinity"\n',
    'tokenizers = {m = "/nowhere"}\nrecord = ""\n',
]

SEEDS: dict[str, list[bytes]] = {
    "client-bytes": _CLIENT,
    "replica-bytes": _REPLICA,
    "picker-bytes": _FRAMES,
    "request-body": _BODIES,
    "stream": _STREAMS,
    "replica-figures": _FIGURES,
    "configuration": [text.encode() for text in _FILES],
}

_KEYS = sorted({one.name for table in (Settings, ReplicaSettings, TenantSettings) for one in fields(table)})
WORDS: dict[str, list[bytes]] = {
    "client-bytes": [
        *(b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"content-length: ", b"transfer-encoding: chunked", b"HTTP/1.1", b"\0"),
        *(b"expect: 100-continue\r\n", b"upgrade: h2c\r\n", b"connection: upgrade\r\n", b"connection: close\r\n"),
        *(b"host: x\r\n", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.0\r\n", b"HEAD ", b"CONNECT ", b"ffffffffffffffff"),
    ],
    "replica-bytes": [
        *(
            b"\r\n",
            b"\r\n\r\n",
            b"0\r\n\r\n",
            b"content-length: ",
            b"transfer-encoding: chunked\r\n",
            b"HTTP/1.1 200 OK\r\n",
        ),
        *(
            b"HTTP/1.1 100 X\r\n\r\n",
            b"HTTP/1.0 ",
            b"connection: close\r\n",
            b"upgrade: x\r\n",
            b"ffffffffffffffff",
            b"\0",
        ),
    ],
    "picker-bytes": [
        *(_CALL, _CALL_3, _MESSAGE, _END, frame(6, 0, 0, bytes(8)), frame(3, 0, 1, bytes(4)), frame(8, 0, 0, bytes(4))),
        *(frame(4, 0, 0, b"\0\4\0\0\0\0"), frame(9, 4, 1, b""), b"\x01\x04\x01\xf0", b"\x00\x01\x01\xf6"),
        *(b"\x00\x00\x01\xf9", b"\x08\x00\x01\xfd", b"\x04\x00\x00\xfe", b"\x03\x00\x01\xfc", b"\x01\x05\x03\xf0"),
    ],
    "request-body": [
        *(b'"%b":' % name.encode() for name in _BODY),
        *(
            b"null",
            b"true",
            b"1e400",
            b"-1",
            b"NaN",
            b'"\\ud800"',
            b"\xff",
            b"\\u0070",
            b"[[",
            b"}]",
            b"9" * 30,
            b'"5"',
        ),
    ],
    "stream": [
        *(
            b"data: ",
            b"\n\n",
            b"\r\n\r\n",
            b"\r\r",
            b'"usage":',
            b'"usage" :',
            b'"choices":[]',
            b'"choices":null',
            b"[DONE]",
        ),
        *(
            b'"prompt_tokens":',
            b'"completion_tokens":',
            b"3.0",
            b"-1",
            b"9" * 30,
            b"\xff",
            b"event: x\n",
            b": \n",
            b"null",
        ),
    ],
    "replica-figures": [
        *(b"vllm:num_requests_waiting", b"vllm:cache_config_info", b"sglang:token_usage", b"trtllm_", b"nv_trt_llm_"),
        *(b"1e400", b"NaN", b"+Inf", b"-1", b'{a="', b'"} ', b"named_metrics.", b"JSON {", b"\n", b"9" * 30),
    ],
    "configuration": [
        *(name.encode() + b" = " for name in _KEYS),
        *(b"[[", b"]]", b"[", b"]\n", b'"', b"'''", b"= inf", b"nan", b"-1", b"1e400", b"true", b"{}", b"1979-05-27"),
        *(b"9" * 30, b"\\u0000", b"\xff", b"[policies]\n", b"[queue]\n", b"[wire]\n", b"[tuning]\n", b"[[replica]]\n"),
    ],
}
