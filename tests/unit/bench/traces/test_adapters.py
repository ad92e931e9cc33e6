"""Adapters of traces: drawn by Zipf's law, read by name, and never sharing prefix blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headway.bench.traces.adapters import with_adapters
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import head, merge
from headway.bench.user_mistake import UserMistake
from headway.simulator.trace import Trace


def trace(requests: int = 4_000, **columns: object) -> Trace:
    ones = np.ones(requests, dtype=np.int64)
    return Trace("t", np.arange(requests, dtype=float), ones * 1_024, ones, **columns)  # type: ignore[arg-type]


def test_they_are_drawn_by_zipf_s_law_and_alike_for_the_first_requests() -> None:
    drawn = with_adapters(trace(40_000), 4, seed=7)
    assert drawn.adapter is not None
    shares = np.bincount(drawn.adapter) / 40_000
    assert shares == pytest.approx([12 / 25, 6 / 25, 4 / 25, 3 / 25], abs=0.01)
    assert drawn.adapters == ("adapter-0", "adapter-1", "adapter-2", "adapter-3")
    fewer = with_adapters(trace(100), 4, seed=7).adapter
    assert fewer is not None
    assert fewer.tolist() == drawn.adapter[:100].tolist()
    other = with_adapters(trace(100), 4, seed=8).adapter
    assert other is not None
    assert other.tolist() != fewer.tolist()


def test_a_session_has_one_adapter() -> None:
    session = np.where(np.arange(4_000) % 5, np.arange(4_000) % 37, -1)
    drawn = with_adapters(trace(session=session), 1_000, seed=1)
    assert drawn.adapter is not None
    for number in range(37):
        assert len(set(drawn.adapter[session == number].tolist())) == 1
    assert len(set(drawn.adapter[session < 0].tolist())) > 37, "requests without a session have each their own"


def test_prompts_of_different_adapters_share_no_blocks() -> None:
    same = trace(6, prefix_ids=[[1, 2]] * 6)
    drawn = replace(same, adapter=np.array([0, 0, 1, 1, -1, -1]), adapters=("a", "b"))
    whole = with_adapters(same, 3, seed=0)
    assert whole.prefix_ids is not None
    assert whole.adapter is not None
    for one in range(6):
        for other in range(6):
            alike = whole.adapter[one] == whole.adapter[other]
            assert (list(whole.prefix_ids[one]) == list(whole.prefix_ids[other])) == alike
    assert len({tuple(ids) for ids in merge([drawn, drawn]).prefix_ids or ()}) == 2, "merged traces share none either"


def test_a_file_names_them(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    line = '{"timestamp":%d,"input_length":1024,"output_length":5,"hash_ids":[7,8]%s}\n'
    rest = [',"adapter":"sql"', ',"adapter":"chat"', "", ',"adapter":""', ',"adapter":"sql"']
    file.write_text("".join(line % row for row in enumerate(rest)))
    read = load_trace(str(file)).trace
    assert read.adapter is not None
    assert read.adapter.tolist() == [0, 1, -1, -1, 0]
    assert read.adapters == ("sql", "chat")
    assert read.prefix_ids is not None
    kept = [tuple(ids) for ids in read.prefix_ids]
    assert kept[0] == kept[4]
    assert kept[2] == kept[3]
    assert len({*kept}) == 3
    assert head(read, 1).adapters == ("sql",)
    both = merge([head(read, 1), read])
    assert both.adapters == ("sql", "chat"), "an equal name is the same adapter"
    with pytest.raises(UserMistake, match="t: it names its adapters itself; leave --adapters out"):
        with_adapters(read, 3, 0)


@pytest.mark.parametrize("count", [0, -1, 10_001])
def test_a_wrong_number_is_refused(count: int) -> None:
    with pytest.raises(UserMistake, match=f"--adapters: {count} is not a number of adapters from 1 to 10,000"):
        with_adapters(trace(3), count, 0)
