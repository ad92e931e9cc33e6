"""What a linear minorant of the step time charges a request at least, whoever runs beside it; picoseconds.

A request is in the batch of a step for every chunk of its prompt and for every token it gets. Steps of others it only
sits through are charged by nobody here: that is what the bounds add, each in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headway.bounds.chains import Floats
from headway.bounds.resource_needs import Needs
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import StepFloor


def further_token(floor: StepFloor) -> float:
    """An output token after the first comes of a decode, or after a preemption of a chunk."""
    return min(floor.decode_token, floor.prompt_token)


def context(floor: StepFloor, rules: EngineRules) -> float:
    """A token of context that a decode reads; what a preempted request's chunk costs instead may be less.

    Without a prefix cache the chunk computes the whole context anew. With one it may be a single token after cached
    ones, which the chunk reads and pairs with, or any mixture of the two.
    """
    if not rules.prefix_caching:
        return min(floor.context, floor.prompt_token)
    return min(floor.context, floor.prompt_token, floor.chunk_context + 2 * floor.pair)


def chunks(needed: Needs, rules: EngineRules) -> Floats:
    """Steps that a request's own prompt takes at least, the one that gives the first token among them."""
    return np.asarray(np.ceil(needed.own_tokens / rules.max_num_batched_tokens))


def prompt_work(needed: Needs, floor: StepFloor) -> Floats:
    """Computing what nobody else can have computed of the prompt."""
    return floor.prompt_token * needed.own_tokens + floor.pair * needed.own_pairs


def shared_work(needed: Needs, floor: StepFloor) -> Floats:
    """Its share of computing prompts, where all who ask for a block account for it together (`bounds.needs`)."""
    return floor.prompt_token * needed.share_tokens + floor.pair * needed.share_pairs


def decode_work(needed: Needs, floor: StepFloor, rules: EngineRules) -> Floats:
    """The further tokens and the context that they read, and sampling every token."""
    further = further_token(floor) * (needed.outputs - 1) + context(floor, rules) * needed.contexts
    return np.asarray(further + floor.sample * needed.outputs)


def fixed_of_steps(needed: Needs, floor: StepFloor, rules: EngineRules) -> Floats:
    """The fixed costs of the steps whose batch it is in."""
    return floor.fixed * (chunks(needed, rules) + needed.outputs - 1) + floor.sampled_fixed * needed.outputs


def alone_to_first_token(needed: Needs, floors: Sequence[StepFloor], rules: EngineRules) -> Floats:
    """From arrival to the first token with nobody else there: the dearest minorant for the chunks, and for sampling."""
    computing = [floor.fixed * chunks(needed, rules) + prompt_work(needed, floor) for floor in floors]
    return np.asarray(np.maximum.reduce(computing) + max(floor.sampled_fixed + floor.sample for floor in floors))


def alone(needed: Needs, floors: Sequence[StepFloor], rules: EngineRules) -> Floats:
    """From arrival to the last token with nobody else there."""
    decoding = [
        (floor.fixed + floor.sampled_fixed + floor.sample + further_token(floor)) * (needed.outputs - 1)
        + context(floor, rules) * needed.contexts
        for floor in floors
    ]
    return np.asarray(alone_to_first_token(needed, floors, rules) + np.maximum.reduce(decoding))
