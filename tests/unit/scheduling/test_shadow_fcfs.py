"""Shadow FCFS by hand: what was spent ahead is owed, and what was spent too much is not saved up."""

from __future__ import annotations

from headway.scheduling.shadow_fcfs import ShadowAdmission, ShadowFcfs


def test_a_large_admission_pays_for_those_before_it_and_leaves_a_debt() -> None:
    shadow = ShadowFcfs(seats=False)
    shadow.arrived("x", 0.0, 10)
    shadow.arrived("w", 1.0, 20)
    assert shadow.admitted(20) == [ShadowAdmission("x", 0.0), ShadowAdmission("w", 1.0)]  # w went first; x waits live
    shadow.arrived("z", 2.0, 5)
    assert shadow.admitted(10) == []  # x: only now as much was spent as both need
    assert shadow.waiting() == [2.0]
    assert shadow.admitted(5) == [ShadowAdmission("z", 2.0)], "none waits live, so none waits under FCFS"


def test_while_some_wait_what_is_left_is_kept() -> None:
    shadow = ShadowFcfs(seats=False)
    for at, (name, tokens) in enumerate([("a", 4), ("b", 4), ("c", 1), ("d", 9)]):
        shadow.arrived(name, float(at), tokens)
    assert shadow.admitted(1) == [ShadowAdmission("a", 0.0)]  # c; three are owed
    assert shadow.admitted(9) == [ShadowAdmission("b", 1.0), ShadowAdmission("c", 2.0), ShadowAdmission("d", 3.0)]


def test_what_was_spent_beyond_all_that_waited_is_not_saved_up() -> None:
    shadow = ShadowFcfs(seats=False)
    shadow.arrived("x", 0.0, 1)
    shadow.arrived("y", 1.0, 1)
    assert [one.request_id for one in shadow.admitted(50)] == ["x", "y"]
    for number in range(3):
        shadow.arrived(number, 2.0, 5)
    assert [one.request_id for one in shadow.admitted(1)] == [0], "one token and not 49"


def test_no_tokens_count_as_one() -> None:
    shadow = ShadowFcfs(seats=False)
    for name in "abc":
        shadow.arrived(name, 0.0, 0)
    assert [one.request_id for one in shadow.admitted(0)] == ["a"]
    assert [one.request_id for one in shadow.admitted(0)] == ["b"]


def test_where_seats_count_each_admission_is_one() -> None:
    shadow = ShadowFcfs(seats=True)
    for at, name in enumerate("abcd"):
        shadow.arrived(name, float(at), 1)
    assert [one.request_id for one in shadow.admitted(100)] == ["a"]
    assert [one.request_id for one in shadow.left("d")] == []
    assert [one.request_id for one in shadow.admitted(1)] == ["b"]
    assert [one.request_id for one in shadow.admitted(1)] == ["c"]
