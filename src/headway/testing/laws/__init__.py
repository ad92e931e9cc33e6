"""Laws of each contract: property tests that any policy of that kind must pass.

A law is a function of a maker of fresh policies. It raises AssertionError. Each runs hypothesis inside, so a plain call
is a whole property test::

    for law in laws.RANKED:                   # laws.LANED for an ordering with lanes
        law(MyOrdering)                       # a class, or any function that makes a fresh instance

The tuples below are all the laws there are; walk them and nothing is forgotten.
"""

from __future__ import annotations

from headway.testing.laws.admission import (
    admission_repeats_itself,
    an_empty_batch_is_answered_with_0,
    hold_steps_never_overstates,
)
from headway.testing.laws.ordering import (
    choose_names_a_lane_that_waits,
    equals_keep_the_order_of_arrival,
    next_change_is_never_late,
    ranks_are_total,
    same_events_same_order,
    the_fast_queue_equals_the_naive_one,
)
from headway.testing.laws.prediction import estimates_are_distributions, predictions_repeat_themselves
from headway.testing.laws.preemption import the_victim_runs, victims_repeat_themselves
from headway.testing.laws.rescheduling import (
    a_fleet_of_one_never_moves,
    asking_moves_nothing,
    moves_are_possible,
    moves_come_to_rest,
)
from headway.testing.laws.routing import choosing_changes_nothing, the_choice_was_offered

RANKED = (
    ranks_are_total,
    the_fast_queue_equals_the_naive_one,
    same_events_same_order,
    equals_keep_the_order_of_arrival,
)
"""Laws of a `RankedOrdering`."""
LANED = (*RANKED, choose_names_a_lane_that_waits, next_change_is_never_late)
"""Laws of a `LanedOrdering`. The last two fail for an ordering without lanes."""
ADMISSION = (an_empty_batch_is_answered_with_0, hold_steps_never_overstates, admission_repeats_itself)
PREEMPTION = (the_victim_runs, victims_repeat_themselves)
PREDICTION = (estimates_are_distributions, predictions_repeat_themselves)
ROUTING = (the_choice_was_offered, choosing_changes_nothing)
RESCHEDULING = (moves_are_possible, a_fleet_of_one_never_moves, asking_moves_nothing, moves_come_to_rest)

__all__ = [
    "ADMISSION",
    "LANED",
    "PREDICTION",
    "PREEMPTION",
    "RANKED",
    "RESCHEDULING",
    "ROUTING",
    "a_fleet_of_one_never_moves",
    "admission_repeats_itself",
    "an_empty_batch_is_answered_with_0",
    "asking_moves_nothing",
    "choose_names_a_lane_that_waits",
    "choosing_changes_nothing",
    "equals_keep_the_order_of_arrival",
    "estimates_are_distributions",
    "hold_steps_never_overstates",
    "moves_are_possible",
    "moves_come_to_rest",
    "next_change_is_never_late",
    "predictions_repeat_themselves",
    "ranks_are_total",
    "same_events_same_order",
    "the_choice_was_offered",
    "the_fast_queue_equals_the_naive_one",
    "the_victim_runs",
    "victims_repeat_themselves",
]
