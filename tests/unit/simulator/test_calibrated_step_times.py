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


def test_a_file_reads_like_its_description() -> None:
    written = Calibration("mine", '300 requests of "x"', "held out: ±1 %", "", LINEAR, RULES)
    assert calibration_text(written).splitlines() == [
        "# Step times of one engine, fitted by `headway calibrate`; `headway compare --calibration` reads it.",
        'name = "mine"',
        'source = "300 requests of \\"x\\""',
        'error = "held out: ±1 %"',
        "",
        "[linear]",
        "fixed_us = 5600.0",
        "token_us = 76.0",
        "context_token_us = 0.13",
        "request_us = 500.0",
        "pair_us = 0.13",
        "",
        "[engine]",
        "kv_blocks = 100",
        "block_tokens = 16",
        "max_model_tokens = 131072",
        "max_num_batched_tokens = 2048",
        "max_num_seqs = 64",
        "chunked_prefill = true",
        "long_prefill_token_threshold = 0",
        "long_prefill_token_threshold_adaptive = false",
        "reserve_full_prompt = true",
        "watermark = 0.0",
        "async_scheduling = true",
        "prefix_caching = true",
        "fused_share = 0.0",
        'resumed = "front"',
    ]


def test_the_error_before_comes_back(tmp_path: Path) -> None:
    fitted = ProfileUnderScalars("h100", "llama-3.1-70b", 4, "fp8", Scalars(1.04, 1.1, 0.9, 250.0))
    written = Calibration("mine", "x", "after", "before", fitted, RULES)
    file = tmp_path / "c.toml"
    file.write_text(calibration_text(written), encoding="utf-8")
    assert read_calibration(file) == written


def test_a_linear_calibration_describes_an_engine_of_its_own() -> None:
    told = calibrated_replica(Calibration("mine", "300 requests of x", "held out: +1 %", "", LINEAR, RULES)).describe()
    assert told["hardware"] == told["hardware_title"] == "mine"
    assert (told["model"], told["model_title"], told["model_source"]) == ("its own model", "", "")
    assert told["hardware_source"] == "calibrated to 300 requests of x"
    assert (told["step_time"], told["step_time_error"]) == ("linear", "held out: +1 %")


def test_a_calibrated_profile_keeps_its_card_and_model() -> None:
    scalars = Scalars(2.0, 1.0, 1.0, 100.0)
    fitted = ProfileUnderScalars("h100", "llama-3.1-70b", 8, "fp8", scalars)
    server = calibrated_replica(Calibration("mine", "300 requests of x", "held out: +1 %", "off by 9 %", fitted, RULES))
    profile = replica("h100", "llama-3.1-70b", tp=8, precision="fp8")
    told = server.describe()
    assert (told["hardware"], told["model"], told["tp"], told["precision"]) == ("h100", "llama-3.1-70b", 8, "fp8")
    assert told["hardware_source"] == f"{profile.hardware.source}; calibrated to 300 requests of x"
    assert (told["step_time"], told["step_time_error"]) == ("calibrated roofline", "held out: +1 %")
    fixed, slope = profile.step_time.decode_step(4)
    assert server.step_time.decode_step(4) == (2 * fixed + 100_000_000, 2 * slope)
    assert server.costs.decode_seconds_per_token > 1.9 * profile.costs.decode_seconds_per_token
    linear = calibrated_replica(Calibration("mine", "x", "e", "", LINEAR, RULES))
    assert linear.step_time is LINEAR
    # 64 decodes over 1,000 tokens: 5.6 ms, 76 + 500 µs each, 0.13 µs a token of context.
    assert linear.costs.decode_seconds_per_token == pytest.approx(5.6e-3 + 64 * (576e-6 + 1_000 * 0.13e-6))


def test_the_least_fixed_cost_is_a_picosecond(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    text = calibration_text(Calibration("mine", "s", "e", "", LINEAR, RULES))
    for fixed_us, ps in (("0.000001", 1), ("0.5", 500_000)):
        file.write_text(text.replace("fixed_us = 5600.0", f"fixed_us = {fixed_us}"), encoding="utf-8")
        found = read_calibration(file).step_times
        assert isinstance(found, LinearStepTime)
        assert found.fixed_ps == ps
    file.write_text(text.replace("fixed_us = 5600.0", "fixed_us = 0.0000001"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"linear\.fixed_us must be above 0"):
        read_calibration(file)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[linear]", "[scalars]\nhardware = 'h100'\n[linear]", "must have one of the tables"),
        ("pair_us", "pair_us = 1\npears_us", r"unknown key linear\.pears_us"),
        ('source = "s"', 'source = "s"\nsauce = "s"', "unknown key sauce"),
        ('source = "s"', 'source = ""', "source must be a text"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = calibration_text(Calibration("mine", "s", "e", "", LINEAR, RULES))
    assert old in text
    file = tmp_path / "c.toml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_calibration(file)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('precision = "bf16"', 'precision = "fp4"', "precision must be one of bf16, fp8, got 'fp4'"),
        ("tp = 1", "tp = 0", r"scalars\.tp must be a whole number"),
        ("tp = 1", "tp = 1\nttp = 1", r"unknown key scalars\.ttp"),
        ("kv_scale = 1.0", "kv_scale = 0.0", "kv_scale must be a factor"),
    ],
)
def test_what_is_wrong_with_scalars_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    fitted = ProfileUnderScalars("rtx-4090", "llama-3.1-8b", 1, "bf16", Scalars())
    text = calibration_text(Calibration("mine", "s", "e", "b", fitted, RULES))
    assert old in text
    file = tmp_path / "c.toml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_calibration(file)
