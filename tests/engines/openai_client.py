"""The `openai` client against a served model, run by an interpreter that has it: with hints, or as a storm that leaves.

python tests/engines/openai_client.py PORT hints|storm
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys

from openai import AsyncOpenAI


async def hints(client: AsyncOpenAI) -> dict[str, int]:
    """A dozen requests with every hint that there is, one of them nonsense; and n = 2, and a grammar."""

    async def ask(index: int) -> int:
        answer = await client.completions.create(
            model="tiny",
            prompt="in this text each word " * (index + 1),
            max_tokens=5,
            extra_body={
                "priority": -index,
                "ignore_eos": True,
                "vllm_xargs": {
                    "headway_expected_tokens": 5,
                    "headway_deadline_ms": 2_000,
                    "headway_tenant": f"tenant-{index % 3}",
                    "headway_session": "s1",
                    "headway_rank": "no number" if index == 0 else index,
                },
            },
        )
        return answer.usage.completion_tokens == 5 if answer.usage else False

    async def chat() -> int:
        answer = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "in this text"}], max_tokens=4, n=2
        )
        return len(answer.choices) == 2

    async def grammar() -> int:
        answer = await client.completions.create(
            model="tiny",
            prompt="yes or no:",
            max_tokens=3,
            extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
        )
        return answer.choices[0].text in ("yes", "no")

    done = await asyncio.gather(*[ask(index) for index in range(12)], chat(), grammar())
    return {"asked": len(done), "answers": sum(map(int, done))}


async def storm(client: AsyncOpenAI) -> dict[str, int]:
    """A hundred and twenty at once; a hundred leave, some before and some within their answers."""
    chance = random.Random(0)

    async def ask(tokens: int, leaves_after: float) -> str | None:
        stream = await client.completions.create(
            model="tiny", prompt="in this text each word has its turn", max_tokens=tokens, stream=True, temperature=0,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        text, pieces = "", 0
        async for piece in stream:
            pieces += 1
            if pieces > leaves_after:
                await stream.close()
                return None
            text += piece.choices[0].text if piece.choices else ""
            if piece.choices and piece.choices[0].finish_reason:
                return text
        return None

    async def leaving() -> str | None:
        try:
            return await asyncio.wait_for(ask(2_000, chance.choice([0, 1, 5])), chance.uniform(0.05, 2.0))
        except TimeoutError:
            return None

    alone = await ask(6, math.inf)
    staying = [ask(6, math.inf) for _ in range(20)]
    done = await asyncio.gather(*staying, *[leaving() for _ in range(100)])
    return {
        "stayed": len(staying),
        "answers": sum(text is not None for text in done[:20]),
        "as_alone": sum(text == alone for text in done[:20]),
        "left": done.count(None),
    }


async def main() -> None:
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="none", max_retries=0, timeout=300)
    print(json.dumps(await (hints if sys.argv[2] == "hints" else storm)(client)))


if __name__ == "__main__":
    asyncio.run(main())
