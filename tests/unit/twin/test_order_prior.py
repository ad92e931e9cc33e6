"""What a twin begins with: the order expected best by the objective, bounded where a tail counts, or the default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headway.config.wanted_objective import MEASURES, NAMED
from headway.policies.catalog import names
from headway.twin.auto_settings import AutoSettings
from headway.twin.auto_steering import AutoSteering
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import EngineFacts, TwinLook
from headway.twin.look_process import LookProcess
from headway.twin.order_prior import KNOWN, MEASURED, UNBOUNDED, expected_distance, first_bundle
from headway.twin.traffic_window import TrafficWindow

USUAL = ChosenBundle("highest-response-ratio", "peak-check", options={"admission": {"reserve": 0.1}})


def test_the_table_knows_every_measure_and_names_orders_of_the_catalogue() -> None:
    assert tuple(MEASURES) == MEASURED
    assert {one.ordering for one in KNOWN} <= set(names("ordering"))
    assert all(len(one.logarithms) == len(MEASURED) for one in KNOWN)


def test_an_order_that_is_not_known_is_expected_to_do_as_the_default() -> None:
    assert expected_distance(ChosenBundle("fair-share"), {"mean-ttft": 1.0}) == 0.0
    assert expected_distance(ChosenBundle("boost"), {"mean-ttft": 1.0}) == 0.0, "without a dial it is another one"


@pytest.mark.parametrize("objective", NAMED)
def test_it_begins_with_a_bounded_order_where_a_tail_counts_and_keeps_the_rest(objective: str) -> None:
    first = first_bundle(NAMED[objective], USUAL)
    assert (first.admission, first.options["admission"]) == ("peak-check", {"reserve": 0.1})
    if "p99-ttft" in NAMED[objective]:
        assert first.ordering not in UNBOUNDED
    weights = {"mean-ttft": 1e308, "e2e": 1e308}  # of any size
    assert expected_distance(first_bundle(weights, USUAL), weights) <= 0


def test_an_order_that_is_hardly_better_is_no_start() -> None:
    assert first_bundle(NAMED["mean-ttft"], USUAL).ordering == "gittins"
    assert first_bundle(NAMED["e2e"], USUAL) == USUAL
    assert first_bundle(NAMED["mean-ttft"], first_bundle(NAMED["mean-ttft"], USUAL)).ordering == "gittins"


def steering(**given: object) -> AutoSteering:
    settings = AutoSettings(on=True, objective="mean-ttft", **given)  # type: ignore[arg-type]
    return AutoSteering(settings, USUAL, LookProcess(300, 10.0), TrafficWindow(200), EngineFacts)


def test_the_first_order_is_a_switch_that_the_default_can_follow() -> None:
    one = steering()
    first = one.poll(5.0)
    assert first is not None
    assert first.ordering == "gittins"
    assert one.rules.current == USUAL, "until the shell has switched"
    one.switched(5.0)
    assert (one.rules.current, one.rules.default, one.poll(6.0)) == (first, USUAL, None)
    assert one.sentences == ["begins with gittins + peak-check: on other traffic it did best by mean-ttft"]
    assert steering(begin="configured").poll(5.0) is None


def test_what_was_chosen_before_a_restart_goes_before_it() -> None:
    one = steering()
    one.restore(steering().state())
    assert one.poll(5.0) is None


def test_what_another_objective_chose_is_left() -> None:
    """Among it may be an order without a bound on waits, which a tail's would never take."""
    before = steering()
    assert before.poll(5.0) is not None
    before.switched(5.0)
    settings = AutoSettings(on=True, objective="p99-ttft", begin="configured")
    after = AutoSteering(settings, USUAL, LookProcess(300, 10.0), TrafficWindow(200), EngineFacts)
    after.restore(json.loads(json.dumps(before.state())))
    assert after.rules.current == USUAL
    same = steering(begin="configured")
    same.restore(json.loads(json.dumps(before.state())))
    assert same.rules.current.ordering == "gittins"


def test_an_objective_is_read_as_recommend_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('weights = {"mean-ttft" = 2, e2e = 1}\nat_most = {"p99-ttft" = {times_fcfs = 1.2}}\n')
    wanted = AutoSettings(objective=str(file)).wanted()
    again = TwinLook.from_line(TwinLook(EngineFacts(), 0.0, USUAL, USUAL, objective=wanted).to_line())
    assert again.objective == wanted
    assert AutoSettings(objective="goodput(ttft=2s,e2e=1s)").wanted().slo == {"ttft": 2.0, "e2e": 1.0}
    for wrong in ("fast", "goodput(ttft=2)", str(tmp_path / "none.toml")):
        with pytest.raises(ValueError, match=r"^auto\.objective "):
            AutoSettings(objective=wrong)
