"""The frontier: who is on it, where its points stand, and what a reader hears who cannot see it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from headway.bench.metrics.samples import Interval
from headway.bench.report.frontier_picture import PolicyPoint, frontier, frontier_figures
from headway.bench.report.html_report import report_html
from tests.support.handmade_days import demo_comparison

TIMES = st.floats(0.01, 1000.0)


def point(name: str, mean: float, p99: float, *, goodput: float = 0.9, is_complete: bool = True) -> PolicyPoint:
    return PolicyPoint(name, 0, mean, p99, 2 * p99, goodput, is_complete=is_complete)


def drawn(points: list[PolicyPoint], bound_seconds: float | None = None) -> ET.Element:
    return ET.fromstring(f"<div>{frontier_figures(points, bound_seconds)}</div>")


def dots(picture: ET.Element) -> dict[str, tuple[float, float, bool]]:
    """By name: where a point is drawn, and whether it is faint."""
    found = {}
    for group in picture.iter("g"):
        classes = str(group.get("class")).split()
        title = group.find("title")
        if "point" in classes and title is not None:
            dot = next(one for one in group.iter("circle") if one.get("class") == "dot")
            name = str(title.text).partition(". ")[2].partition(":")[0]
            found[name] = (float(str(dot.get("cx"))), float(str(dot.get("cy"))), "faint" in classes)
    return found


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=12))
def test_all_others_are_dominated_by_one_on_the_frontier(values: list[tuple[float, float]]) -> None:
    points = [point(str(number), *one) for number, one in enumerate(values)]
    kept = frontier(points)
    assert kept
    for one in points:
        as_good = [
            other
            for other in kept
            if other.mean_ttft_seconds <= one.mean_ttft_seconds and other.p99_ttft_seconds <= one.p99_ttft_seconds
        ]
        assert (one in kept) == all(
            (other.mean_ttft_seconds, other.p99_ttft_seconds) == (one.mean_ttft_seconds, one.p99_ttft_seconds)
            for other in as_good
        )
        assert as_good


def test_one_that_served_fewer_requests_is_not_on_it_and_dominates_none() -> None:
    picky, whole = point("picky", 1, 2, is_complete=False), point("whole", 3, 4)
    assert frontier([picky, whole]) == [whole]


def test_better_is_further_left_and_lower_and_the_dominated_are_faint() -> None:
    points = [point("short", 1, 40), point("even", 2, 20), point("bad", 3, 30), point("old", 4, 10)]
    first, _ = drawn(points).iter("svg")
    places = dots(first)
    assert [name for name, (_, _, is_faint) in places.items() if is_faint] == ["bad"]
    by_mean = sorted(places, key=lambda name: places[name][0])
    by_tail = sorted(places, key=lambda name: -places[name][1])
    assert by_mean == ["short", "even", "bad", "old"]
    assert by_tail == ["old", "even", "bad", "short"]


def test_error_bars_reach_as_far_as_their_intervals_and_stay_inside_the_frame() -> None:
    bars = {"mean_ttft_seconds": Interval(0.5, 2.0), "p99_ttft_seconds": Interval(20.0, 80.0)}
    first, second = drawn([point("short", 1, 40)._replace(bars=bars), point("old", 4, 10)]).iter("svg")
    (path,) = [one for group in first.iter("g") if "error-bar" in str(group.get("class")) for one in group]
    left, y, right, x, low, high = map(float, re.findall(r"[\d.]+", str(path.get("d"))))
    at_x, at_y, _ = dots(first)["short"]
    assert (x, y) == (at_x, at_y)
    assert 58 <= left < at_x < right <= 372 - 14
    assert 10 <= high < at_y < low <= 330 - 40
    assert not any("error-bar" in str(group.get("class")) for group in second.iter("g"))


def test_more_goodput_is_higher() -> None:
    points = [point("few", 1, 10, goodput=0.2), point("many", 2, 20, goodput=0.8)]
    _, second = drawn(points).iter("svg")
    places = dots(second)
    assert places["many"][1] < places["few"][1]
    assert not any(is_faint for _, _, is_faint in places.values())


def test_a_near_bound_is_a_wall_left_of_all_points_and_a_far_one_is_said() -> None:
    points = [point("short", 1, 40), point("old", 4, 10)]
    for bound, where in ((0.6, "lower bound 600 ms"), (0.01, "lower bound 10.0 ms, left of the axis")):
        first, _ = drawn(points, bound).iter("svg")
        wall = next(one for one in first.iter("rect") if one.get("class") == "wall")
        edge = float(str(wall.get("x"))) + float(str(wall.get("width")))
        assert all(edge < x for x, _, _ in dots(first).values())
        assert where in "".join(first.itertext())
        assert "No policy's mean is below" in str(first.get("aria-label"))


def test_the_table_says_who_dominates_whom() -> None:
    table = drawn([point("short", 1, 40), point("bad", 3, 50), point("old", 4, 10)]).find(".//table")
    assert table is not None
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")][1:]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("1", "short", "on the frontier"),
        ("2", "bad", "dominated by 1"),
        ("3", "old", "on the frontier"),
    ]


def test_numbers_of_the_frontier_are_all_there_and_cover_no_other_one() -> None:
    crowd = [point(str(number), 1 + number / 50, 20 - number / 50) for number in range(20)]
    first, _ = drawn(crowd).iter("svg")
    placed = [
        (float(str(text.get("x"))), float(str(text.get("y"))))
        for group in first.iter("g")
        if "point" in str(group.get("class"))
        for text in group.iter("text")
    ]
    assert len(placed) == len(crowd)
    assert len(set(placed)) == len(crowd)


def test_a_report_has_it_for_each_load_and_names_every_policy() -> None:
    text = report_html(demo_comparison(("fcfs", "random"), (0.5, 1.1)))
    assert len(re.findall(r"<h3>The frontier", text)) == 2
    assert text.count("The policies of the picture") == 2
