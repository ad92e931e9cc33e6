"""The pictures of docs/concepts.md, and the figures in its text, are what the simulator says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.concept_pictures import admission_picture, admission_runs, bound_picture, load_picture

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.slow
def test_the_pictures_are_drawn_from_the_simulation() -> None:
    assert (DOCS / "load.svg").read_text(encoding="utf-8") == load_picture() + "\n"
    assert (DOCS / "lower-bound.svg").read_text(encoding="utf-8") == bound_picture() + "\n"
    assert (DOCS / "admission.svg").read_text(encoding="utf-8") == admission_picture() + "\n"


def test_the_text_has_the_figures() -> None:
    text = " ".join((DOCS / "concepts.md").read_text(encoding="utf-8").split())
    greedy, overflow, reserve = (run.metrics for run in admission_runs())
    assert f"preempted {greedy.preemptions} times, which computes {greedy.recomputed_tokens:,} tokens again" in text
    assert f"{overflow.preemptions} preemptions and {overflow.recomputed_tokens:,} tokens" in text
    assert reserve.preemptions == 0
