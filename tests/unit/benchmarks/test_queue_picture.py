"""The picture of the README shows what the simulator says."""

from __future__ import annotations

from pathlib import Path

from benchmarks.queue_picture import DOCUMENTS, picture, waits

ROOT = Path(__file__).parents[3]


def test_the_picture_is_drawn_from_the_simulation() -> None:
    assert (ROOT / "docs" / "queue.svg").read_text(encoding="utf-8") == picture()


def test_chats_gain_and_documents_hardly_lose() -> None:
    (arrived, first), (_, faster) = waits("fcfs"), waits("highest-response-ratio")
    before, after = first - arrived, faster - arrived
    assert after[DOCUMENTS:].mean() < before[DOCUMENTS:].mean() / 5
    assert after[:DOCUMENTS].mean() < 1.02 * before[:DOCUMENTS].mean()
