"""Policies that work for a while and then do one thing wrong; importing this adds nothing, `register` does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from headway.domain.request import Request
from headway.policies import catalog

WORKS_FOR = 40  # answers before the fault


class _Counts:
    works_for = WORKS_FOR

    def __init__(self) -> None:
        self.left = self.works_for

    def broken(self) -> bool:
        self.left -= 1
        return self.left < 0


class RaisesInRank(_Counts):
    def rank(self, request: Any) -> float:
        if self.broken():
            raise ZeroDivisionError("a policy's slip")
        return float(request.prompt_tokens)


class RanksNan(_Counts):
    def rank(self, request: Any) -> float:
        return float("nan") if self.broken() else float(request.prompt_tokens)


class RanksCannotBeCompared(_Counts):
    def rank(self, request: Any) -> Any:
        return (1.0, 2.0) if self.broken() else float(request.prompt_tokens)


class Stalls(_Counts):
    def rank(self, request: Any) -> float:
        if self.broken():
            time.sleep(0.6)
        return float(request.prompt_tokens)


class _Laned(_Counts):
    def lane(self, request: Any) -> Any:
        return request.prompt_tokens // 100

    def rank(self, request: Any) -> float:
        return 0.0

    def next_change(self, heads: Mapping[Any, Any], now: float) -> float:
        return now

    def choose(self, heads: Mapping[Any, Any], now: float) -> Any:
        return min(heads)


class ChoosesNobodysLane(_Laned):
    def choose(self, heads: Mapping[Any, Any], now: float) -> Any:
        return -5 if self.broken() else min(heads)


class RaisesInChoose(_Laned):
    def choose(self, heads: Mapping[Any, Any], now: float) -> Any:
        return min(heads) if not self.broken() else heads[None]


class RaisesInObserve(_Laned):
    def observe(self, event: Any) -> None:
        if self.broken():
            raise RuntimeError("deaf")


class HoldsForMinusOne(_Counts):
    def hold_steps(self, request: Any, batch: Any, memory: Any, now: float) -> int:
        return -1 if self.broken() else 0


class HoldsForEver:
    """Not a fault: a waiting request is admitted as soon as none runs."""

    def hold_steps(self, request: Any, batch: Any, memory: Any, now: float) -> int:
        return 1_000_000


class NamesAStranger(_Counts):
    works_for = 3  # victims are seldom asked for

    def victim(self, running: Sequence[Any], now: float) -> Any:
        return Request("stranger", 0.0, 1) if self.broken() else running[-1]


class ExpectsNan(_Counts):
    def predict(self, request: Any) -> Any:
        return self

    made_by = "expects-nan"
    works_for = 5  # requests whose clients say what they expect are not asked about

    def remaining_mean(self, produced_tokens: int) -> float:
        return float("nan") if self.broken() else 10.0

    def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
        return 10


FAULTS: dict[str, tuple[dict[str, str], str]] = {
    "raises-in-rank": ({"ordering": "raises-in-rank"}, "raised"),
    "ranks-nan": ({"ordering": "ranks-nan"}, "nonsense"),
    "ranks-cannot-be-compared": ({"ordering": "ranks-cannot-be-compared"}, "nonsense"),
    "stalls": ({"ordering": "stalls"}, "stalled"),
    "chooses-nobodys-lane": ({"ordering": "chooses-nobodys-lane"}, "nonsense"),
    "raises-in-choose": ({"ordering": "raises-in-choose"}, "raised"),
    "raises-in-observe": ({"ordering": "raises-in-observe"}, "raised"),
    "holds-for-minus-one": ({"admission": "holds-for-minus-one"}, "nonsense"),
    "names-a-stranger": ({"preemption": "names-a-stranger"}, "nonsense"),
    "expects-nan": ({"prediction": "expects-nan"}, "nonsense"),
}
"""fault → (configuration, the reason that the metric names)"""


def register() -> None:
    """Put them into this process's catalogue."""
    catalog.ORDERING.update(
        {
            "raises-in-rank": RaisesInRank,
            "ranks-nan": RanksNan,
            "ranks-cannot-be-compared": RanksCannotBeCompared,
            "stalls": Stalls,
            "chooses-nobodys-lane": ChoosesNobodysLane,
            "raises-in-choose": RaisesInChoose,
            "raises-in-observe": RaisesInObserve,
        }
    )
    catalog.ADMISSION.update({"holds-for-minus-one": HoldsForMinusOne, "holds-for-ever": HoldsForEver})
    catalog.PREEMPTION.update({"names-a-stranger": NamesAStranger})
    catalog.PREDICTION.update({"expects-nan": ExpectsNan})


def Scheduler(*args: Any, **kwargs: Any) -> Any:  # noqa: N802 - it stands where vLLM expects a class
    """Our scheduler in a process whose catalogue has the faulty policies.

    The option: `--scheduler-cls tests.engines.faulty_policies.Scheduler`.
    """
    from headway.vllm_plugin import Scheduler as Ours

    register()
    return Ours(*args, **kwargs)
