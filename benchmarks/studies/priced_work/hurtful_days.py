"""Days for an adversary to search among: a few groups of like requests, so that what is found can be told in words.

Laws: a day has 30 to 200 requests, none larger than the limits here; a neighbour of a day is such a day; all chance
comes from the generator that is given. What `simpler` gives may have fewer requests, but never more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from headway.simulator.trace import Trace

FEWEST, MOST = 30, 200
GROUPS_MOST = 10
PROMPT_MOST, OUTPUT_MOST = 32_768, 8_192  # tokens
LATEST_SECONDS = 20.0  # longer days are calm ones: so many requests are served in less
GAP_LEAST_SECONDS, GAP_MOST_SECONDS = 1e-3, 1.0


class Group(NamedTuple):
    """`size` like requests, the first at `at_seconds` and each `gap_seconds` after the one before."""

    size: int
    at_seconds: float
    gap_seconds: float
    prompt_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        every = f" every {self.gap_seconds:g} s" if self.size > 1 and self.gap_seconds else ""
        return f"{self.size}×({self.prompt_tokens:,}, {self.output_tokens:,}) at {self.at_seconds:g} s{every}"


HurtfulDay: TypeAlias = tuple[Group, ...]


def requests(day: HurtfulDay) -> int:
    """How many come in."""
    return sum(group.size for group in day)


def told(day: HurtfulDay) -> str:
    """Every group: how many × (prompt, output), from when on, how often."""
    return "; ".join(map(str, day))


def as_trace(day: HurtfulDay, times: int = 1) -> Trace:
    """The day as traffic; `times` over, the next beginning a second after the last arrival of the one before."""
    rows = [
        (group.at_seconds + number * group.gap_seconds, group.prompt_tokens, group.output_tokens)
        for group in day
        for number in range(group.size)
    ]
    rows.sort(key=lambda row: row[0])  # stable: of those that come at once the earlier group's go first
    at, prompts, outputs = (np.array(column) for column in zip(*rows, strict=True))
    length = float(at[-1]) + 1.0
    arrived = np.concatenate([at + length * turn for turn in range(times)])
    return Trace("hurtful", np.round(arrived, 6), np.tile(prompts, times), np.tile(outputs, times))


def draw(rng: np.random.Generator) -> HurtfulDay:
    """A random day: sizes about evenly over magnitudes, so that small and large ones meet."""
    return _settled([_draw_group(rng) for _ in range(int(rng.integers(2, GROUPS_MOST + 1)))])


def change(day: HurtfulDay, rng: np.random.Generator) -> HurtfulDay:
    """A neighbour: a group more, less, doubled, made anew or, mostly, with one number changed."""
    groups = list(day)
    place = int(rng.integers(len(groups)))
    kind = int(rng.integers(8))
    if kind == 0:
        groups.append(_draw_group(rng))
    elif kind == 1 and len(groups) > 1:
        del groups[place]
    elif kind == 2:
        groups.append(groups[place]._replace(at_seconds=groups[place].at_seconds + float(rng.exponential(5))))
    elif kind == 3:
        groups[place] = _draw_group(rng)
    else:
        groups[place] = _nudged(groups[place], rng)
    return _settled(groups)


def cross(one: HurtfulDay, other: HurtfulDay, rng: np.random.Generator) -> HurtfulDay:
    """Some groups of each."""
    pool = [*one, *other]
    count = int(rng.integers(1, min(GROUPS_MOST, len(pool)) + 1))
    return _settled([pool[int(place)] for place in rng.choice(len(pool), count, replace=False)])


def simpler(day: HurtfulDay) -> Iterator[HurtfulDay]:
    """Days that are easier to tell, those that leave out most first; the same day is never among them."""
    for place, group in enumerate(day):
        rest = day[:place] + day[place + 1 :]
        if rest:
            yield rest
        rounded = group._replace(
            at_seconds=_rounded(group.at_seconds),
            gap_seconds=_rounded(group.gap_seconds),
            prompt_tokens=int(_rounded(group.prompt_tokens)),
            output_tokens=int(_rounded(group.output_tokens)),
        )
        for other in (
            group._replace(size=group.size // 2),
            group._replace(size=group.size - max(1, group.size // 5)),
            group._replace(at_seconds=0.0),
            group._replace(gap_seconds=0.0),
            group._replace(output_tokens=1),
            rounded,
            group._replace(prompt_tokens=rounded.prompt_tokens),
            group._replace(output_tokens=rounded.output_tokens),
            group._replace(at_seconds=rounded.at_seconds),
            group._replace(gap_seconds=rounded.gap_seconds),
        ):
            if other.size and other != group:
                yield tuple(sorted((*rest, other), key=lambda one: one.at_seconds))


def _settled(groups: list[Group]) -> HurtfulDay:
    """The groups by time, cut to the limits of a day."""
    kept: list[Group] = []
    room = MOST
    for group in groups[:GROUPS_MOST]:
        if room:
            kept.append(group._replace(size=min(group.size, room)))
            room -= kept[-1].size
    short = FEWEST - (MOST - room)
    if short > 0:
        kept[0] = kept[0]._replace(size=kept[0].size + short)
    first = min(group.at_seconds for group in kept)
    moved = [group._replace(at_seconds=round(min(group.at_seconds - first, LATEST_SECONDS), 3)) for group in kept]
    return tuple(sorted(moved, key=lambda group: group.at_seconds))


def _draw_group(rng: np.random.Generator) -> Group:
    return Group(
        size=_magnitude(rng, 1, MOST),
        at_seconds=round(float(rng.uniform(0, LATEST_SECONDS)) * float(rng.integers(2)), 3),
        gap_seconds=_gap(math.exp(rng.uniform(math.log(GAP_LEAST_SECONDS), math.log(GAP_MOST_SECONDS)))),
        prompt_tokens=_magnitude(rng, 16, PROMPT_MOST),
        output_tokens=_magnitude(rng, 1, OUTPUT_MOST),
    )


def _nudged(group: Group, rng: np.random.Generator) -> Group:
    """One number changed, mostly by little and sometimes by several times itself."""
    factor = math.exp(rng.normal() * (0.2 if rng.random() < 0.6 else 1.0))
    step = 1 if factor > 1 else -1
    match int(rng.integers(5)):
        case 0:
            return group._replace(size=max(1, min(MOST, max(1, round(group.size * factor)) + step)))
        case 1:
            return group._replace(at_seconds=max(0.0, group.at_seconds + 5 * math.log(factor)))
        case 2:
            return group._replace(gap_seconds=_gap(group.gap_seconds * factor + step * GAP_LEAST_SECONDS))
        case 3:
            return group._replace(prompt_tokens=max(16, min(PROMPT_MOST, round(group.prompt_tokens * factor) + step)))
        case _:
            return group._replace(output_tokens=max(1, min(OUTPUT_MOST, round(group.output_tokens * factor) + step)))


def _gap(seconds: float) -> float:
    return round(min(max(seconds, 0.0), GAP_MOST_SECONDS), 3)


def _magnitude(rng: np.random.Generator, least: int, most: int) -> int:
    return int(math.exp(rng.uniform(math.log(least), math.log(most + 1))))


def _rounded(value: float) -> float:
    """To one significant digit; what lies within the limits stays there."""
    return float(f"{value:.1g}") if value else 0.0
