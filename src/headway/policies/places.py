"""Places where policies decide: the simulator, the gateway and the vLLM plug-in, and what each gives to a policy.

A policy names what it needs (`Need` in `contracts`), a place what it gives. From both follows where a policy works, in
`docs/policies/places.md` (written by `pages`) and in the checks of a configuration. Nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from headway.policies.catalog import Kind, canonical, find
from headway.policies.contracts import Need, needs


class DecisionPlace(StrEnum):
    """Where policies decide."""

    SIMULATOR = "simulator"
    GATEWAY = "gateway"
    PLUGIN = "vLLM plug-in"


class Grade(StrEnum):
    """How well a place gives something."""

    EXACT = "exact"
    ESTIMATED = "estimated"
    MISSING = "missing"


class Provision(NamedTuple):
    """What a place gives of one need.

    Attributes:
        grade: how well.
        how: where it comes from; of what is missing, why.
        fix: of what is missing, what to do instead.
    """

    grade: Grade
    how: str
    fix: str = ""


def _exact(how: str) -> Provision:
    return Provision(Grade.EXACT, how)


def _estimated(how: str) -> Provision:
    return Provision(Grade.ESTIMATED, how)


GIVEN: Mapping[DecisionPlace, Mapping[Need, Provision]] = {
    DecisionPlace.SIMULATOR: {
        Need.STEPS: _exact("the engine's own steps"),
        Need.MEMORY: _exact("the KV blocks of its replica"),
        Need.MEMORY_IN_USE: _exact("the blocks free now, shared ones counted once"),
        Need.PREEMPTIONS: _exact("each one, with its request"),
        Need.BEHIND_HEAD: _exact("asked for in every step in which the head does not fit"),
        Need.CACHED_TOKENS: _exact("looked up at arrival, and again each second of the head"),
        Need.SHARED_PREFIXES: _exact(
            "the block ids of the trace (`hash_ids`), whose blocks may be longer than those of the KV memory; none "
            "of a trace without them"
        ),
        Need.VICTIMS: _exact("asked each time a block is lacking"),
        Need.REPLICAS: _exact("asked for each dispatch in a fleet (`--replicas`, `--fleet`)"),
        Need.MOVES_OF_WAITING: _exact("asked every period in a fleet (`--rescheduling`)"),
        Need.MOVES_OF_RUNNING: _exact("asked every period in a fleet; KV memory is copied in stages, at a stated rate"),
        Need.TRUE_LENGTHS: _exact("from the trace, for predictors named `oracle` alone"),
    },
    DecisionPlace.GATEWAY: {
        Need.STEPS: _estimated(
            "counted by the tokens of a stream as they pass, and where no request streams by the engine's counter at "
            "each scrape. Steps that bring no token are not seen, and after a refusal the policy is asked again at "
            "about the step it named"
        ),
        Need.MEMORY: _exact("from the engine's metrics, or `kv_tokens` of the replica"),
        Need.MEMORY_IN_USE: _estimated(
            "prompts and tokens of the requests that this gateway sent; blocks shared through a prefix cache are "
            "counted for each sharer"
        ),
        Need.PREEMPTIONS: _estimated(
            "the engine's counter at each scrape; it names no request, so the mean of those running stands in"
        ),
        Need.BEHIND_HEAD: _exact("asked for when the head fits no replica; bounded, and a turn of its queue as any"),
        Need.CACHED_TOKENS: _estimated(
            "from the session's previous turn; 0 without a session; asked again each second of the head. Of each "
            "replica, for routing: the longest prefix that its own answers confirmed. With `kv_events` both are what "
            "its engine publishes, exact of prompts whose token ids are known"
        ),
        Need.SHARED_PREFIXES: _estimated(
            "hashes of a prompt's bytes: what two prompts share is known to a KiB, above 8 KiB to an eighth; none of a "
            "prompt below a KiB"
        ),
        Need.VICTIMS: Provision(
            Grade.MISSING,
            "a gateway never takes a running request back from a replica",
            "leave it out, and choose victims in the engine",
        ),
        Need.REPLICAS: _exact("asked for each dispatch"),
        Need.MOVES_OF_WAITING: _estimated(
            "an engine tells at each scrape how many requests wait there, not which: the last of those sent before are "
            "taken to be the ones, as under first come, first served; of an engine with another order nothing is moved"
        ),
        Need.MOVES_OF_RUNNING: Provision(
            Grade.MISSING, "no engine hands a running request to another", "use take-back, or stay"
        ),
        Need.TRUE_LENGTHS: Provision(Grade.MISSING, "no length is known before it happened", "use running-mean"),
    },
    DecisionPlace.PLUGIN: {
        Need.STEPS: _exact("vLLM's own steps"),
        Need.MEMORY: _exact("vLLM's KV blocks"),
        Need.MEMORY_IN_USE: _exact("vLLM's free blocks"),
        Need.PREEMPTIONS: _exact("each one, with its request"),
        Need.BEHIND_HEAD: _exact(
            "one that fits is shown before a head that does not; refused at start for models with several kinds of KV "
            "blocks"
        ),
        Need.CACHED_TOKENS: _estimated(
            "looked up at arrival, and again each second of the head. What lies beyond 8,192 blocks of a prompt counts "
            "as not cached, and so does, until it is the head, a prompt that comes when its step has looked up for 2 ms"
        ),
        Need.SHARED_PREFIXES: _exact("vLLM's hashes of KV blocks; none where its prefix cache is off"),
        Need.VICTIMS: _estimated(
            "named before a step in which blocks may be lacking, and put last in vLLM's list, from which it preempts"
        ),
        Need.REPLICAS: Provision(Grade.MISSING, "it schedules one engine", "choose routing in the gateway"),
        Need.MOVES_OF_WAITING: Provision(
            Grade.MISSING, "it schedules one engine", "choose rescheduling in the gateway"
        ),
        Need.MOVES_OF_RUNNING: Provision(
            Grade.MISSING, "it schedules one engine", "choose rescheduling in the gateway"
        ),
        Need.TRUE_LENGTHS: Provision(Grade.MISSING, "no length is known before it happened", "use running-mean"),
    },
}
"""What each place gives. The same policy code decides in all three; what it is given differs."""

DIFFERENCES: Mapping[str, str] = {
    "sent at once": (
        "a request that finds room is sent as it arrives, so the order chooses among those that wait by then. "
        "An engine chooses at the end of a step among all that came in it"
    ),
    "one end at a time": (
        "the ends of one step are heard one after another, and after each the next request is chosen. An engine "
        "chooses when it has heard them all"
    ),
    "taken in at arrival": (
        "a request enters its queue as it arrives, with what its policies have learned by then. An engine takes it in "
        "at the end of the step that runs, after the ends of that step"
    ),
    "preempted inside": (
        "a request that its engine preempts waits in the engine, in front of all that the gateway holds back. No "
        "policy here sees it wait"
    ),
    "room for outputs": (
        "under an admission policy that does not weigh memory, room is kept for half of the output that is expected, "
        "since a running request cannot be taken back. An engine admits where the prompt fits, and preempts"
    ),
    "other lots": (
        "a policy that decides by chance draws by the request's id, which is another in each place. The law is the "
        "same, the draw is not"
    ),
    "blocks taken ahead": (
        "whether a prompt fits follows from the tokens that came. An engine that schedules ahead has taken blocks for "
        "those on their way"
    ),
    "shared blocks": (
        "blocks that requests share through a prefix cache are counted for each sharer, so a prompt may seem not to "
        "fit where an engine finds room"
    ),
}
"""Why the gateway may decide otherwise than an engine although all that a policy needs is given: name → reason."""


def needs_of(kind: Kind, name: str) -> frozenset[Need]:
    """What a policy needs, those inside it included ("fair-share/priced-work").

    Raises:
        ValueError: there is no such policy.
    """
    return frozenset().union(*(needs(find(kind, part)) for part in canonical(kind, name).split("/")))


def grade(kind: Kind, name: str, place: DecisionPlace) -> Grade:
    """How well a policy works at a place: as well as what it needs is given there."""
    grades = {GIVEN[place][need].grade for need in needs_of(kind, name)}
    return next((grade for grade in (Grade.MISSING, Grade.ESTIMATED) if grade in grades), Grade.EXACT)


def check_place(kind: Kind, name: str, place: DecisionPlace, field: str) -> None:
    """Refuse a policy that lacks something at a place.

    Raises:
        ValueError: one sentence that names the field, what is missing and the fix.
    """
    for need in sorted(needs_of(kind, name)):
        given = GIVEN[place][need]
        if given.grade is Grade.MISSING:
            raise ValueError(f"{field}: {name} needs {need}, but {given.how}: {given.fix}")
