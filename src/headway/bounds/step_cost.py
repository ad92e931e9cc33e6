"""Least costs of a request under one floor of the step time, whatever runs beside it; picoseconds.

A request is in the batch of a step for every chunk of its prompt and for every token it gets. Steps of other requests
that it only sits through are not charged here: each bound adds them in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headway.bounds.chains import Floats
from headway.bounds.resource_needs import Needs
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import StepFloor


def further_token(floor: StepFloor) -> float:
    """Least cost of an output token after the first: it comes of a decode, or after a preemption of a chunk."""
    return min(floor.decode_token, floor.prompt_token)


def context(floor: StepFloor, rules: EngineRules) -> float:
    """Least cost of a token of context that a decode reads; a preempted request's chunk may cost less instead.

    Without a prefix cache the chunk recomputes the whole context. With one it may be a single token after cached
    ones, which the chunk reads and pairs with, or any mixture of the two.
    """
    if not rules.prefix_caching:
        return min(floor.context, floor.prompt_token)
    return min(floor.context, floor.prompt_token, floor.chunk_context + 2 * floor.pair)


def chunks(needed: Needs, rules: EngineRules) -> Floats:
    """Least steps of a request's own prompt, the one that gives the first token among them."""
    return np.asarray(np.ceil(needed.own_tokens / rules.max_num_batched_tokens))


def prompt_work(needed: Needs, floor: StepFloor) -> Floats:
    """Cost of computing the part of the prompt that no other request can have computed."""
    return floor.prompt_token * needed.own_tokens + floor.pair * needed.own_pairs


def shared_work(needed: Needs, floor: StepFloor) -> Floats:
    """Its share of computing prompts, where all requests that ask for a block pay for it together."""
    return floor.prompt_token * needed.share_tokens + floor.pair * needed.share_pairs


def decode_work(needed: Needs, floor: StepFloor, rules: EngineRules) -> Floats:
    """Cost of the further tokens, of the context that they read, and of sampling every token."""
    further = further_token(floor) * (needed.outputs - 1) + context(floor, rules) * needed.contexts
    return np.asarray(further + floor.sample * needed.outputs)


def fixed_of_steps(needed: Needs, floor: StepFloor, rules: EngineRules) -> Floats:
    """Fixed costs of the steps whose batch it is in."""
    return floor.fixed * (chunks(needed, rules) + needed.outputs - 1) + floor.sampled_fixed * needed.outputs


def alone_to_first_token(needed: Needs, floors: Sequence[StepFloor], rules: EngineRules) -> Floats:
    """Least time from arrival to the first token on an idle replica: the dearest floor for chunks, and for sampling."""
    computing = [floor.fixed * chunks(needed, rules) + prompt_work(needed, floor) for floor in floors]
    return np.asarray(np.maximum.reduce(computing) + max(floor.sampled_fixed + floor.sample for floor in floors))


def alone(needed: Needs, floors: Sequence[StepFloor], rules: EngineRules) -> Floats:
    """Least time from arrival to the last token on an idle replica."""
    decoding = [
        (floor.fixed + floor.sampled_fixed + floor.sample + further_token(floor)) * (needed.outputs - 1)
        + context(floor, rules) * needed.contexts
        for floor in floors
    ]
    return np.asarray(alone_to_first_token(needed, floors, rules) + np.maximum.reduce(decoding))
