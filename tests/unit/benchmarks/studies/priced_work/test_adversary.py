"""The search for days that hurt priced-work stays within its days, and its witness tells when the bound is broken."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.studies.priced_work import adversary
from benchmarks.studies.priced_work import bound_witness as witness
from benchmarks.studies.priced_work import hurtful_days as days
from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Arrived
from headway.domain.request import Request, RequestView
from headway.policies.contracts import LaneId
from headway.policies.ordering.priced_work import PricedWork
from headway.scheduling.queue import WaitingQueue

ROOT = Path(__file__).parents[5]
PAGE = ROOT / "docs" / "results" / "priced-work-measured.md"


class NeverOverdue(PricedWork):
    """Least work first and nothing else: what the bound forbids."""

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        return min(heads)  # type: ignore[type-var]


def judged(order: PricedWork) -> Any:
    """The first to come has the most work; its turn by arrival is at 1 s, and it is let in last, at 50 s."""
    noting = witness.Witness(order)
    queue = WaitingQueue(noting)
    for number in range(50):
        request = Request(number, 0.0 if number == 0 else 0.01 * number, 300 if number == 0 else 200)
        request.estimate = PointEstimate(1, "test")
        queue.add(request)
        noting.observe(Arrived(request, request.arrived_at))
    for second in range(50):
        queue.reconsider()
        noting.observe(Admitted(queue.pop(float(second)), float(second)))
    return noting.verdict()


def test_the_witness_sees_the_bound_kept_and_broken() -> None:
    kept, broken = judged(PricedWork()), judged(NeverOverdue())
    assert kept.violations == ()
    assert kept.overdue > 0
    assert broken.violations
    assert re.fullmatch(r"request \d+ was admitted at .* before 0, which came earlier, due at .*", broken.violations[0])


@given(st.integers(0, 2**32))
def test_a_neighbour_of_a_day_is_a_day(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = days.draw(rng), days.draw(rng)
    for day in (one, other, days.cross(one, other, rng), days.change(one, rng), days.change(other, rng)):
        trace = days.as_trace(day)
        assert days.FEWEST <= days.requests(day) == len(trace) <= days.MOST
        assert (np.diff(trace.arrived_seconds) >= 0).all()
        assert trace.arrived_seconds[0] == 0
        assert 16 <= trace.prompt_tokens.min() <= trace.prompt_tokens.max() <= days.PROMPT_MOST
        assert 1 <= trace.output_tokens.min() <= trace.output_tokens.max() <= days.OUTPUT_MOST
    for small in days.simpler(one):
        assert small != one
        assert 1 <= days.requests(small) <= days.requests(one)


@pytest.mark.slow
def test_the_search_repeats_and_finds_worse_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversary, "DRAWS", 8)
    court, against = court_of(), ("mean TTFT", "shortest-uncached-prefill-first")
    worst = adversary.hunt(court, *against, 1, 40, lambda: None)
    assert worst == adversary.hunt(court_of(), *against, 1, 40, lambda: None)
    rng = np.random.default_rng(1)
    assert worst.value > max(court.ratio(days.draw(rng), *against) for _ in range(8))
    small = adversary.shrunk(court, *against, worst)
    assert small.value >= 1 + adversary.KEPT_SHARE * (worst.value - 1)
    assert days.requests(small.instance) <= days.requests(worst.instance)


def court_of(kv_tokens: int | None = None) -> Any:
    return adversary.Court(adversary.replica("h100", "llama-3.1-8b", kv_tokens=kv_tokens), "oracle", {}, [])


TABLES = {"hurtful": None, "hurtful-squeezed": 49_152}


def shown(name: str) -> list[tuple[str, str, str, Any]]:
    """The rows of one of the page's tables: metric, opponent, ratio, day."""
    text = PAGE.read_text(encoding="utf-8").split(f"<!-- table {name} -->\n")[1].split("<!-- end -->")[0]
    rows = []
    for metric, opponent, ratio, groups in re.findall(
        r"^\| (\w+ TTFT) against ([\w-]+) \| .* \| ([\d.]+) \(.*\) \| .* \| (.*) \|$", text, re.MULTILINE
    ):
        parts = re.findall(r"(\d+)×\(([\d,]+), ([\d,]+)\) at ([\d.]+) s(?: every ([\d.]+) s)?", groups)
        day = tuple(
            days.Group(int(size), float(at), float(gap or 0), *(int(one.replace(",", "")) for one in lengths))
            for size, *lengths, at, gap in parts
        )
        assert days.told(day) == groups
        rows.append((metric, opponent, ratio, day))
    return rows


@pytest.mark.parametrize("name", TABLES)
def test_the_bound_holds_on_every_day_of_the_page_and_each_is_as_bad_as_it_says(name: str) -> None:
    court = court_of(TABLES[name])
    rows = shown(name)
    assert [(metric, opponent) for metric, opponent, _, _ in rows] == list(adversary.OBJECTIVES)
    for metric, opponent, ratio, day in rows:
        assert f"{court.ratio(day, metric, opponent):.3g}" == ratio  # and raises BoundBrokenError
    assert len(court.verdicts) == len(rows)
    assert sum(verdict.overdue for verdict in court.verdicts) > 0
