"""Linear and scaled step times, term by term, with figures worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from headway.simulator.linear_lower_bounds import supporting_lines
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.step_time import Chunk, LinearStepTime, StepFloor

LINEAR = LinearStepTime(
    fixed_ps=1_000_000, ps_per_token=1_000, ps_per_context_token=10, ps_per_request=20_000, ps_per_pair=4
)


def at_least(
    floors: Sequence[StepFloor], decodes: int, context: int, chunks: Sequence[Chunk], sampled: int
) -> list[float]:
    """What each floor says of a step."""
    return [
        floor.fixed
        + (floor.sampled_fixed if sampled else 0.0)
        + floor.prompt_token * sum(new for new, _ in chunks)
        + floor.decode_token * decodes
        + floor.sample * sampled
        + floor.context * context
        + floor.chunk_context * sum(before for _, before in chunks)
        + floor.pair * sum(new * (2 * before + new) for new, before in chunks)
        for floor in floors
    ]


class TestLinear:
    def test_decodes(self) -> None:
        assert LINEAR.decode_step(3) == (1_000_000 + 3 * 21_000, 10)

    def test_any_step(self) -> None:
        took = LINEAR.mixed_step(3, 500, ((7, 100), (5, 0)), 4)
        # Pairs: 7 · (100 + 3.5) + 5 · 2.5 = 737.
        assert took == 1_000_000 + 15 * 1_000 + 600 * 10 + 4 * 20_000 + 737 * 4

    def test_half_a_pair_is_rounded_down(self) -> None:
        assert LinearStepTime(5, 0, 0, 0, 1).mixed_step(0, 0, ((3, 0),), 0) == 9  # 4.5 pairs

    def test_floors_are_reached_by_a_full_step_and_by_an_empty_one(self) -> None:
        floors = LINEAR.floors(20, 4)
        full, small = (8, 500, ((12, 100),), 9), (1, 10, (), 1)
        assert max(at_least(floors, *full)) == pytest.approx(LINEAR.mixed_step(*full), abs=1.5)
        assert max(at_least(floors, *small)) == pytest.approx(LINEAR.mixed_step(*small), abs=1.5)
        # The second floor spreads the fixed cost over 20 tokens.
        spread = min(floors, key=lambda floor: floor.fixed)
        assert spread.decode_token == spread.prompt_token == 1_000 + 50_000

    def test_without_pairs_nothing_is_rounded(self) -> None:
        plain = LinearStepTime(1_000, 10, 1)
        assert sorted(floor.fixed for floor in plain.floors(10, 2)) == [0, 1_000]
        assert sorted(floor.fixed for floor in LINEAR.floors(10, 2)) == [-1, 999_999]


class TestScaled:
    def test_every_scalar_has_its_place(self) -> None:
        time = ScaledStepTime(LINEAR, Scalars(step_scale=2.0, kv_scale=3.0, prompt_step_scale=1.5, step_us=0.5))
        fixed, slope = time.decode_step(3)
        assert (fixed, slope) == (2 * 1_063_000 + 500_000, 60)
        assert time.mixed_step(3, 100, (), 3) == fixed + 60 * 100
        # With chunks: 1.5 times as long again, the decodes' context dearer by its own factor.
        alone = 1_000_000 + 10 * 1_000 + 4 * 20_000 + 7 * (2 * 50 + 7) * 2 + 50 * 10
        assert time.mixed_step(3, 100, ((7, 50),), 4) == (alone + 3 * 1_000) * 3 + 500_000
        assert time.mixed_step(0, 0, (), 0) == 2 * 1_000_000 + 500_000

    def test_a_slope_is_never_rounded_away(self) -> None:
        assert ScaledStepTime(LinearStepTime(10, 0, 1), Scalars(kv_scale=0.1)).decode_step(1)[1] == 1
        assert ScaledStepTime(LINEAR, Scalars(kv_scale=0.26)).decode_step(1)[1] == 3  # 2.6

    @pytest.mark.parametrize("prompt_step_scale", [0.5, 1.5])
    def test_floors_are_close(self, prompt_step_scale: float) -> None:
        scalars = Scalars(step_scale=2.0, kv_scale=3.0, prompt_step_scale=prompt_step_scale, step_us=0.5)
        time = ScaledStepTime(LINEAR, scalars)
        floors = time.floors(20, 4)
        for step in ((8, 500, ((12, 100),), 9), (1, 10, (), 1), (0, 0, ((20, 100),), 1)):
            took, least = time.mixed_step(*step), max(at_least(floors, *step))
            # A floor has the smaller of the factors with and without prompts.
            assert took * 0.45 < least <= took
        small = (1, 10, (), 1)
        exact = time.mixed_step(*small) if prompt_step_scale > 1 else None
        if exact is not None:
            assert max(at_least(floors, *small)) == pytest.approx(exact, abs=10)

    @pytest.mark.parametrize("name", ["step_scale", "kv_scale", "prompt_step_scale"])
    def test_factors_have_bounds(self, name: str) -> None:
        for allowed in (0.01, 1.0, 100.0):
            assert getattr(Scalars(**{name: allowed}), name) == allowed
        for refused in (0.0099, 100.1, float("nan")):
            with pytest.raises(ValueError, match=f"^{name} must be a factor from 0.01 to 100, got {refused}$"):
                Scalars(**{name: refused})

    def test_the_hosts_part_of_a_step_has_bounds(self) -> None:
        assert Scalars(step_us=0.0).step_us == 0.0
        assert Scalars(step_us=1e7).step_us == 1e7
        for refused in (-0.1, 1.1e7):
            with pytest.raises(ValueError, match=r"^step_us must be from 0 to 10 million µs"):
                Scalars(step_us=refused)


class TestSupportingLines:
    def test_of_a_straight_line_are_its_slope_and_its_least(self) -> None:
        assert supporting_lines([5.0 + 2 * n for n in range(1, 9)]) == ((7.0, 0.0), (5.0, 2.0), (0.0, 21 / 8))

    def test_of_a_line_through_the_origin(self) -> None:
        assert supporting_lines([3.0 * n for n in range(1, 9)]) == ((3.0, 0.0), (0.0, 3.0))

    def test_of_one_value(self) -> None:
        assert supporting_lines([4.0]) == ((4.0, 0.0), (0.0, 4.0))

    def test_they_touch_a_bent_sequence_on_either_side_of_the_bend(self) -> None:
        values = [float(100 + max(n, 4 * n - 60)) for n in range(1, 65)]  # slope 1 up to 20, then 4
        lines = supporting_lines(values)
        assert (100.0, 1.0) in lines
        gaps = [min(value - (at + slope * n) for at, slope in lines) for n, value in enumerate(values, 1)]
        assert gaps[0] == gaps[19] == 0
        assert max(gaps) < 30

    def test_a_falling_sequence_is_bounded_by_its_least(self) -> None:
        assert supporting_lines([9.0, 8.0, 7.0, 6.0])[0] == (6.0, 0.0)
