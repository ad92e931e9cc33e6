"""Every target holds on its seeds and on mutations of them, the same ones each time; `run.py` searches on."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.seeds import SEEDS, WORDS
from tests.fuzz.targets import TARGETS

MUTATIONS = 300


def mutated(name: str, draw: Random) -> bytes:
    """Two seeds spliced, some words put in, some bytes taken out."""
    first, second = draw.choice(SEEDS[name]), draw.choice(SEEDS[name])
    data = first[: draw.randint(0, len(first))] + second[draw.randint(0, len(second)) :]
    for _ in range(draw.randint(0, 3)):
        at, cut = draw.randint(0, len(data)), draw.choice([0, 0, 1, 5])
        data = data[:at] + draw.choice([*WORDS[name], draw.randbytes(2)]) + data[at + cut :]
    return data


def test_every_target_has_seeds_and_words() -> None:
    assert set(SEEDS) == set(WORDS) == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_hold(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_hold(name: str) -> None:
    draw = Random(name)
    for _ in range(MUTATIONS):
        TARGETS[name](mutated(name, draw))
