"""The fleet study: cells are kept and not simulated twice, and its tables say what the cells hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.studies.fleet import retold, tables
from benchmarks.studies.fleet.cells import EQUAL, Cell, Setting
from headway.bench.user_mistake import UserMistake

TRACE = "chat"


def written(folder: Path, rows: list[dict[str, object]]) -> Setting:
    """A setting whose cells were measured so."""
    facts = {"trace": TRACE, "fleet": EQUAL, "asked_requests": 50, "requests": 50, "copies": 1, "saturation": 4.0}
    whole = {"hit_share": 0.25, "imbalance": 1.5, "queue": "replicas", "ordering": "fcfs", "signal_seconds": 0.0}
    whole |= {"ttft_p99": 4.0, "e2e_mean": 10.0}
    content = facts | {"rows": [whole | row for row in rows]}
    (folder / f"{TRACE}, {EQUAL}.json").write_text(json.dumps(content), encoding="utf-8")
    return Setting(folder, TRACE, requests=50)


def test_a_cell_is_simulated_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(0.9, "replicas", "round-robin")
    setting = Setting(tmp_path, TRACE, requests=40)
    assert setting.row(cell) is None
    setting.measure([cell])
    kept = Setting(tmp_path, TRACE, requests=40)
    monkeypatch.setattr("benchmarks.studies.fleet.cells.simulate_routing", None)
    kept.measure([cell])
    row = kept.row(cell)
    assert row == setting.row(cell)
    assert row is not None
    assert row["completed"] == 40
    assert sum(row["requests_of"]) == 40
    assert len(row["requests_of"]) == 8
    assert kept.row(Cell(0.9, "gateway", "round-robin")) is None


def test_another_number_of_requests_needs_another_folder(tmp_path: Path) -> None:
    written(tmp_path, [])
    with pytest.raises(UserMistake, match="name another folder"):
        Setting(tmp_path, TRACE, requests=60)


def test_a_routing_is_ranked_by_its_distance_to_the_best_of_each_cell(tmp_path: Path) -> None:
    seconds = {("least-work", 0.7): 1.0, ("least-work", 0.9): 8.0, ("lmetric", 0.7): 2.0, ("lmetric", 0.9): 4.0}
    setting = written(
        tmp_path, [{"routing": name, "load": load, "ttft_mean": value} for (name, load), value in seconds.items()]
    )
    cells = [Cell(load, "replicas", name) for name, load in seconds]
    assert tables.behind([setting], cells, "ttft_mean") == {"least-work": [1.0, 2.0], "lmetric": [2.0, 1.0]}
    root = f"{math.sqrt(2):.2f} (2.00)"
    assert [line.split(" | ")[1] for line in tables.ranking([setting], cells).splitlines()[2:4]] == [root, root]
    assert tables.ranking([setting], cells).endswith("\n\nOver 2 cells.")
    shown = tables.load_tables([setting], cells)
    assert "| least-work | 1.00, 4.00; 25 %; 1.50 | 8.00, 4.00; 25 %; 1.50 |" in shown


def test_a_cell_that_one_routing_lacks_ranks_none(tmp_path: Path) -> None:
    setting = written(tmp_path, [{"routing": "least-work", "load": 0.7, "ttft_mean": 1.0}])
    cells = [Cell(0.7, "replicas", name) for name in ("least-work", "lmetric")]
    assert tables.behind([setting], cells, "ttft_mean") == {"least-work": [], "lmetric": []}


def test_capacity_is_the_last_load_in_time(tmp_path: Path) -> None:
    loads = retold.CAPACITY_LOADS
    rows = [
        {"routing": "lmetric", "load": load, "ttft_mean": 1.0, "ttft_within": {"5": 1.0 if load <= 0.95 else 0.89}}
        for load in loads
    ]
    assert retold.capacity(written(tmp_path, rows), "lmetric") == 0.95
    rows = [row | {"ttft_within": {"5": 0.5}} for row in rows]
    assert retold.capacity(written(tmp_path, rows), "lmetric") is None
