"""Clients that keep books: each request is marked, and of each answer is checked that it is its own and there once."""

from __future__ import annotations

from collections import Counter

from tests.support.gateway_setup import RawClient, Setup, completion, post
from tests.support.scripted_replica import TOKENS


class Books:
    """What became of every request, as its client saw it."""

    def __init__(self, setup: Setup, tokens: int = TOKENS) -> None:
        self.setup = setup
        self.tokens = tokens
        self.ended: Counter[str] = Counter()
        self.asked = 0

    async def ask(self, headers: str = "") -> str:
        """Send one and read it to its end; gives the ending: whole, broken, refused or failed, perhaps with why."""
        self.asked += 1
        mark = f"n{self.asked}"
        async with RawClient(self.setup.port) as client:
            await client.send(post(completion(prompt=mark), headers=headers))
            answer = await client.answer()
        if answer.status == 200:
            came = answer.texts.split()
            assert came == [f"{mark}.{number}" for number in range(len(came))], f"{mark} got {came}"
            whole = answer.body.endswith(b"data: [DONE]\n\n")
            assert whole == (len(came) == self.tokens)
            assert whole or b'"finish_reason": "error"' in answer.body
            ending = "whole" if whole else "broken"
        else:
            ending = f"{'refused' if answer.status in (429, 503) else 'failed'}: {answer.status} {answer.reason}"
        self.ended[ending] += 1
        return ending

    def count(self, kind: str) -> int:
        """Endings of this kind, whatever the reason."""
        return sum(number for ending, number in self.ended.items() if ending.startswith(kind))

    def agree(self) -> None:
        """Each request ended once, here as there; nobody computed one twice to its end."""
        counts, own = self.setup.dispatcher.counts, self.count
        assert sum(self.ended.values()) == self.asked == counts.arrived
        ended = {str(outcome): number for outcome, number in counts.ended.items() if number}
        seen = {"completed": own("whole"), "refused": own("refused"), "failed": own("broken") + own("failed")}
        assert ended == {outcome: number for outcome, number in seen.items() if number}
        sent = Counter(str(call.json()["prompt"]) for one in self.setup.replicas for call in one.calls)
        assert all(times <= 2 for times in sent.values())
        assert sum(times - 1 for times in sent.values()) <= counts.retried + counts.moved
