"""The laws of each contract. A law is a function of a maker of fresh policies; it raises AssertionError.

Each runs hypothesis inside, so a plain call is a whole property test::

    for law in laws.ORDERING:
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
    next_change_is_never_late,
    ranks_are_total,
    same_events_same_order,
    the_fast_queue_equals_the_naive_one,
)
from headway.testing.laws.prediction import estimates_are_distributions, predictions_repeat_themselves
from headway.testing.laws.preemption import the_victim_runs, victims_repeat_themselves
from headway.testing.laws.routing import choosing_changes_nothing, the_choice_was_offered

ORDERING = (
    ranks_are_total,
    choose_names_a_lane_that_waits,
    next_change_is_never_late,
    the_fast_queue_equals_the_naive_one,
    same_events_same_order,
)
ADMISSION = (an_empty_batch_is_answered_with_0, hold_steps_never_overstates, admission_repeats_itself)
PREEMPTION = (the_victim_runs, victims_repeat_themselves)
PREDICTION = (estimates_are_distributions, predictions_repeat_themselves)
ROUTING = (the_choice_was_offered, choosing_changes_nothing)

__all__ = [
    "ADMISSION",
    "ORDERING",
    "PREDICTION",
    "PREEMPTION",
    "ROUTING",
    "admission_repeats_itself",
    "an_empty_batch_is_answered_with_0",
    "choose_names_a_lane_that_waits",
    "choosing_changes_nothing",
    "estimates_are_distributions",
    "hold_steps_never_overstates",
    "next_change_is_never_late",
    "predictions_repeat_themselves",
    "ranks_are_total",
    "same_events_same_order",
    "the_choice_was_offered",
    "the_fast_queue_equals_the_naive_one",
    "the_victim_runs",
    "victims_repeat_themselves",
]
