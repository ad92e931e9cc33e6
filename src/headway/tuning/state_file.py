"""State file: what policies learned, on disk. Written whole or not at all; a broken one keeps no process from starting.

A file at that path that is no state file, named by mistake, is kept as NAME.before, and no older file is lost by that.
A link stays and its target is replaced. A device, such as /dev/null, is written to and keeps nothing.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from headway.config.atomic_file import is_special, replaced, target_of
from headway.policies.contracts import Stateful

FORMAT, VERSION = "headway-state", 1
_BEGINS = f'{{"format": "{FORMAT}"'.encode()
_DEPTH = 7  # the file, what was learned, queues, a queue, its predictor, that one's state, kinds


@dataclass(frozen=True, slots=True)
class Tried:
    """One trial: values, reward, 99th percentile of TTFT; fenced where that was clearly worse than usual."""

    values: Mapping[str, float]
    reward: float
    ttft_p99_seconds: float
    fenced: bool


@dataclass(frozen=True, slots=True)
class SavedState:
    """State that survives a restart.

    Attributes:
        policy: name of the ordering it belongs to.
        learned: what the policy's `state()` gave: lanes, cost fit, window.
        trials: what the tuner has tried, each with its reward.
        problem: what was tuned, in words that say whether trials still count.
    """

    policy: str
    learned: Mapping[str, Any]
    trials: list[Tried] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a file could not be used; a sentence for the operator."""

    reason: str


def write_state(path: Path, state: SavedState) -> None:
    """Write it to `path`, whole or not at all; only its owner may read it.

    Raises:
        OSError: the folder is missing, full or may not be written to.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "policy": state.policy,
        "problem": state.problem,
        "learned": state.learned,
        "trials": [
            {"values": dict(t.values), "reward": t.reward, "ttft_p99_seconds": t.ttft_p99_seconds, "fenced": t.fenced}
            for t in state.trials
        ],
    }
    text = "".join(_pieces(content, _DEPTH))
    if is_special(path):
        path.write_text(text + "\n", encoding="utf-8")
        return
    target = target_of(path)
    with replaced(target) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
        if not _is_ours(target):
            target.replace(_free_name(target))


def read_state(path: Path, policy: str) -> SavedState | Unreadable | None:
    """The state of one policy; None where there is no file, and a reason where there is one that cannot be used."""
    if is_special(path):
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        return _unreadable(path, f"it cannot be read ({error})")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return _unreadable(path, "it is not a state file of Headway")
    if content.get("version") != VERSION:
        return _unreadable(path, f"it has version {content.get('version')!r}, and this Headway reads {VERSION}")
    if content.get("policy") != policy:
        return _unreadable(path, f"it belongs to the policy {content.get('policy')!r}, not to {policy!r}")
    try:
        trials = [
            Tried(
                {str(name): float(value) for name, value in trial["values"].items()},
                float(trial["reward"]),
                float(trial["ttft_p99_seconds"]),
                bool(trial["fenced"]),
            )
            for trial in content["trials"]
        ]
        if not all(map(math.isfinite, [n for t in trials for n in (*t.values.values(), t.reward, t.ttft_p99_seconds)])):
            raise ValueError("a number of a trial is not finite")
        learned = dict(content["learned"])
        problem = str(content["problem"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return _unreadable(path, f"a part is missing or of another kind ({error!r})")
    return SavedState(policy, learned, trials, problem)


def try_to_write(path: Path, state: SavedState) -> str | None:
    """`write_state`; where that fails, why, as a sentence for the log of a process that goes on serving."""
    try:
        write_state(path, state)
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"{path}: what was learned cannot be written: {reason}"
    return None


def restore(policy: object, name: str, state: object) -> str | None:
    """Hand a fresh policy what it had learned. Where it refuses, why: it is then still fresh."""
    if not isinstance(policy, Stateful):
        return f"{name} learns nothing that could be taken back"
    if not isinstance(state, Mapping):
        return f"what {name} had learned is no table"
    try:
        policy.restore(state)
    except ValueError as error:
        return str(error)
    except Exception as error:  # of an outside package's policy: it must not keep a server from starting
        return f"{name} cannot take back what it had learned ({error!r})"
    return None


def _pieces(value: object, depth: int) -> Iterator[str]:
    """The JSON text of a value, down to a depth in pieces: a server writes in a thread, and `json` holds all others."""
    if depth and isinstance(value, Mapping):
        mark = "{"
        for name, inner in value.items():
            yield f"{mark}{json.dumps(str(name))}: "
            yield from _pieces(inner, depth - 1)
            mark = ", "
        yield "}" if value else "{}"
    elif depth and isinstance(value, list | tuple):
        mark = "["
        for inner in value:
            yield mark
            yield from _pieces(inner, depth - 1)
            mark = ", "
        yield "]" if value else "[]"
    else:
        yield json.dumps(value, allow_nan=False)


def _is_ours(path: Path) -> bool:
    """Whether a file may be written over: one of ours, or nothing at all."""
    try:
        with path.open("rb") as file:
            return file.read(len(_BEGINS)) in (_BEGINS, b"")
    except FileNotFoundError:
        return True


def _free_name(path: Path) -> Path:
    """NAME.before; where that is taken NAME.before-2, and so on."""
    names = (f"{path.name}.before{f'-{number}' if number > 1 else ''}" for number in count(1))
    return next(other for other in map(path.with_name, names) if not os.path.lexists(other))


def _unreadable(path: Path, why: str) -> Unreadable:
    return Unreadable(f"{path}: {why}; starting afresh")
