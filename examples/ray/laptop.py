"""A Ray Serve application on a laptop, without a model: short prompts overtake long ones, over HTTP.

    pip install '.[ray]' httpx
    python examples/ray/laptop.py

A replica takes one request at a time, for as many milliseconds as its prompt has words. Three may wait. It must print:

    warm-up: 200
    late: 429, retry after 2 s: the queue is full: its limit is 3 requests (`queue.max_requests`)
    first: 200
    short: 200
    long: 200
    longer: 200

The seconds may differ.
"""

import asyncio
import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import httpx
import ray
from ray import serve
from starlette.requests import Request

from headway.ray.deployment_options import queued

SETTINGS = {"policies": {"ordering": "shortest-prompt-first"}, "queue": {"max_requests": 3}}


@serve.deployment(max_ongoing_requests=1, ray_actor_options={"num_cpus": 0}, **queued(SETTINGS))
class Model:
    """Stands in for a model."""

    async def __call__(self, request: Request) -> dict[str, object]:
        """Take a millisecond for each word."""
        body = await request.json()
        words = len(body["prompt"].split())
        await asyncio.sleep(words / 1_000)
        return {"name": body["name"], "words": words}


async def main() -> None:
    """Send five requests after the first: one runs, three wait and one is refused."""
    async with httpx.AsyncClient(base_url="http://127.0.0.1:8123", timeout=60) as client:

        async def ask(name: str, words: int) -> None:
            answer = await client.post("/", json={"name": name, "prompt": "word " * words})
            again = answer.headers.get("retry-after")
            print(f"{name}: {answer.status_code}" + (f", retry after {again} s: {answer.text}" if again else ""))

        await ask("warm-up", 1)
        sent = []
        for name, words in (("first", 4_000), ("long", 900), ("longer", 950), ("short", 10), ("late", 10)):
            sent.append(asyncio.create_task(ask(name, words)))
            await asyncio.sleep(0.05)
        await asyncio.gather(*sent)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": 8123})
    serve.run(Model.bind(), route_prefix="/")
    try:
        asyncio.run(main())
    finally:
        serve.shutdown()
        ray.shutdown()
