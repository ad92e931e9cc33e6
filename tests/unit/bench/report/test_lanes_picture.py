"""The picture of learned lanes: as wide as it says, every lane on it, nothing overlapping."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.bench.report.lanes_picture import HEIGHT, WIDTH, cost_line, lanes_picture
from headway.policies.lanes.cost_fit import PowerLaw
from headway.policies.lanes.partition import Span, refine_and_prune


def test_two_groups_are_two_hills_and_two_lanes() -> None:
    sizes = [100] * 40 + [9_000] * 20
    lines = lanes_picture(sizes, refine_and_prune(sizes, requests_min=1), "prompt tokens")
    assert lines[0] == "60 requests by prompt tokens, log scale"
    bars = lines[1 : HEIGHT + 1]
    assert bars[0].strip() == "█"  # the peak alone reaches the top
    assert bars[0][0] == "█"
    assert bars[-1][-1] == "█"
    assert len(bars[-1]) == WIDTH
    assert "2 lanes; the window holds 60 requests" in lines[-1]
    assert [line.split()[1:3] for line in lines[-3:-1]] == [["100", "100"], ["9,000", "9,000"]]


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=200), st.integers(1, 40))
def test_whatever_was_learned_can_be_drawn(sizes: list[int], lanes_max: int) -> None:
    lanes = refine_and_prune(sizes, lanes_max=lanes_max, requests_min=1, spread_max=1.5)
    lines = lanes_picture(sizes, lanes, "uncached tokens")
    assert all(len(line) <= max(WIDTH, 80) for line in lines)
    text = "\n".join(lines)
    ends = text.count("├")
    assert ends == text.count("┤")
    drawn = lines[HEIGHT + 1 : next(i for i, line in enumerate(lines) if set(line) <= set("─┬") and len(line) == WIDTH)]
    assert ends + sum(line.count("│") for line in drawn) == len(lanes)


def test_before_anything_was_learned_it_says_so() -> None:
    assert lanes_picture([], [], "prompt tokens") == ["nothing has been learned yet: no request has arrived"]
    assert "no lanes yet" in lanes_picture([5, 7], [], "prompt tokens")[-1]
    assert lanes_picture([5, 7], [Span(5, 9, 6.0, 2)], "prompt tokens")[-1].startswith(
        "1 lane; the window holds 2 requests"
    )


def test_the_cost_is_told_at_three_sizes() -> None:
    assert cost_line(PowerLaw(1e-4, 1.0)) == (
        "prefill cost: exponent 1.00; 100 tokens 10 ms, 1,000 tokens 100 ms, 10,000 tokens 1e+03 ms"
    )
