"""Calibrated step times keep the contract of step times, and their file comes back as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.simulator.calibration import (
    Calibration,
    ProfileUnderScalars,
    calibrated_replica,
    calibration_text,
    read_calibration,
)
from headway.simulator.replica import replica
from headway.simulator.rules import EngineRules
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.step_time import FlooredStepTime, LinearStepTime

PROFILE = replica("rtx-4090", "llama-3.1-8b").step_time
RULES = EngineRules(kv_blocks=100, max_num_batched_tokens=2_048, max_num_seqs=64, prefix_caching=True)
LINEAR = LinearStepTime(5_600_000_000, 76_000_000, 130_000, 500_000_000, 130_000)
factors = st.floats(0.3, 3.0)
scalars = st.builds(Scalars, factors, factors, factors, st.floats(0, 5_000))
chunk = st.tuples(st.integers(1, 1_000), st.integers(0, 3_000))


def base() -> FlooredStepTime:
    assert isinstance(PROFILE, FlooredStepTime)
    return PROFILE


@given(scalars, st.integers(1, 60), st.integers(0, 100_000))
def test_without_chunks_a_mixed_step_is_a_decode_step(found: Scalars, requests: int, context: int) -> None:
    step_time = ScaledStepTime(base(), found)
    fixed, slope = step_time.decode_step(requests)
    assert step_time.mixed_step(requests, context, (), requests) == fixed + slope * context


@given(st.integers(0, 60), st.integers(0, 100_000), st.lists(chunk, min_size=1, max_size=3))
def test_neutral_scalars_change_nothing(decodes: int, per_decode: int, chunks: list[tuple[int, int]]) -> None:
    step_time, context = ScaledStepTime(base(), Scalars()), per_decode * (decodes > 0)
    assert step_time.mixed_step(decodes, context, chunks, decodes) == base().mixed_step(
        decodes, context, chunks, decodes
    )
    assert step_time.decode_step(decodes + 1) == base().decode_step(decodes + 1)


@given(scalars, st.integers(0, 50), st.integers(0, 50_000), st.lists(chunk, max_size=2), st.booleans())
def test_no_step_is_below_its_floors(
    found: Scalars, decodes: int, context: int, chunks: list[tuple[int, int]], samples: bool
) -> None:
    if not decodes and not chunks:
        return
    check_floors(ScaledStepTime(base(), found), decodes, context * (decodes > 0), chunks, samples)
    check_floors(ScaledStepTime(LINEAR, found), decodes, context * (decodes > 0), chunks, samples)


@given(st.integers(0, 50), st.integers(0, 50_000), st.lists(chunk, min_size=1, max_size=2), st.booleans())
def test_no_linear_step_is_below_its_floors(
    decodes: int, context: int, chunks: list[tuple[int, int]], samples: bool
) -> None:
    check_floors(LINEAR, decodes, context * (decodes > 0), chunks, samples)


def check_floors(
    step_time: FlooredStepTime, decodes: int, context: int, chunks: list[tuple[int, int]], samples: bool
) -> None:
    sampled = decodes + (len(chunks) if samples else 0)
    took = step_time.mixed_step(decodes, context, chunks, sampled)
    for floor in step_time.floors(2_100, 64):
        least = floor.fixed + floor.prompt_token * sum(new for new, _ in chunks) + floor.decode_token * decodes
        least += floor.sample * sampled + floor.sampled_fixed * bool(sampled) + floor.context * context
        least += floor.chunk_context * sum(before for _, before in chunks)
        least += floor.pair * sum(new * (2 * before + new) for new, before in chunks)
        assert least <= took * (1 + 1e-9) + 1


def test_prompt_attention_costs_by_pairs() -> None:
    assert LINEAR.mixed_step(0, 0, [(10, 100)], 0) - LINEAR.mixed_step(0, 0, [(10, 0)], 0) == 100 * 130_000 * 11


@pytest.mark.parametrize(
    "step_times", [LINEAR, ProfileUnderScalars("rtx-4090", "llama-3.1-8b", 1, "bf16", Scalars(1.04, 1.1, 0.9, 250.0))]
)
def test_a_calibration_comes_back(tmp_path: Path, step_times: LinearStepTime | ProfileUnderScalars) -> None:
    written = Calibration("mine", "300 requests of x", "held out: +1 %", "", step_times, RULES)
    file = tmp_path / "c.toml"
    file.write_text(calibration_text(written), encoding="utf-8")
    assert read_calibration(file) == written
    server = calibrated_replica(written)
    assert server.rules == RULES
    told = server.describe()
    assert told["step_time_error"] == "held out: +1 %"
    assert "300 requests of x" in told["hardware_source"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[linear]", "[linearr]", "one of the tables"),
        ("fixed_us = 5600.0", "fixed_us = -1", "fixed_us"),
        ("kv_blocks = 100", "kv_blocks = 0", "kv_blocks"),
        ("token_us", "toke_us", "token_us is missing"),
        ("max_num_seqs", "max_num_seq", "unknown key max_num_seq: did you mean 'max_num_seqs'"),
        ('name = "mine"', "", "name is missing"),
        ("[engine]", "[engine", "not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = calibration_text(Calibration("mine", "s", "e", "", LINEAR, RULES))
    assert old in text
    file = tmp_path / "c.toml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=said) as caught:
        read_calibration(file)
    assert str(file) in str(caught.value)


def test_scalars_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="kv_scale"):
        Scalars(kv_scale=0.0)
    with pytest.raises(ValueError, match="step_us"):
        Scalars(step_us=-1.0)
