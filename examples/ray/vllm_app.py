"""A Ray Serve application that serves vLLM: an ingress reads the OpenAI body, and the queue stands before the engines.

    pip install '.[ray]' vllm
    MODEL=/path/or/name serve run examples.ray.vllm_app:app

    curl -s localhost:8000/v1/completions -d '{"model": "m", "prompt": "Once upon", "max_tokens": 8}'

Each replica is one engine. It takes `max_ongoing_requests` at once; what is beyond waits in the queue, where its order
is ours. The ingress may have as many replicas, and Ray as many proxies, as they need: the queue is one.
"""

import json
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from headway.ray.deployment_options import queued

SETTINGS = {"policies": {"ordering": "highest-response-ratio"}, "queue": {"max_requests": 1_000}}


@serve.deployment(
    num_replicas=int(os.environ.get("REPLICAS", "1")),
    max_ongoing_requests=int(os.environ.get("SEATS", "64")),
    ray_actor_options={"num_cpus": 1, "num_gpus": float(os.environ.get("GPUS", "0"))},
    **queued(SETTINGS),
)
class Engine:
    """One vLLM engine."""

    def __init__(self, model: str) -> None:
        from vllm import AsyncEngineArgs, AsyncLLMEngine  # noqa: PLC0415 - only replicas need it

        more = json.loads(os.environ.get("ENGINE_ARGUMENTS", "{}"))
        self._engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=model, **more))

    async def complete(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> AsyncIterator[str]:
        """The text as it comes. Headers are for the queue, which reads hints and keys of them."""
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

        wanted = SamplingParams(
            max_tokens=body.get("max_tokens", 16),
            temperature=body.get("temperature", 1.0),
            output_kind=RequestOutputKind.DELTA,
        )
        async for output in self._engine.generate(body["prompt"], wanted, str(uuid.uuid4())):
            yield output.outputs[0].text


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Completions:
    """The ingress: OpenAI's completions, whole and as a stream."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine.options(stream=True)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        body = await request.json()
        parts = self._engine.complete.remote(body, headers=dict(request.headers))
        if body.get("stream"):
            first = await anext(aiter(parts))  # a refusal is raised here, before the answer has begun
            return StreamingResponse(self._events(first, parts), media_type="text/event-stream")
        text = "".join([part async for part in parts])
        return JSONResponse({"object": "text_completion", "choices": [{"index": 0, "text": text}]})

    async def _events(self, first: str, parts: Any) -> AsyncIterator[str]:
        yield f"data: {json.dumps({'choices': [{'index': 0, 'text': first}]})}\n\n"
        async for part in parts:
            yield f"data: {json.dumps({'choices': [{'index': 0, 'text': part}]})}\n\n"
        yield "data: [DONE]\n\n"


app = Completions.bind(Engine.bind(os.environ.get("MODEL", "facebook/opt-125m")))
