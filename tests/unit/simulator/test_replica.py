"""Replicas: vLLM's defaults on each card, memory, and one sentence for each mistake."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from headway.simulator.hardware import hardware, hardware_names
from headway.simulator.models import model_names, model_shape
from headway.simulator.replica import replica
from headway.simulator.rules import EngineRules

PROFILES = Path(__file__).parents[3] / "src" / "headway" / "simulator" / "profiles"


PAIRS = [(card, model) for card in hardware_names() for model in model_names()]
DO_NOT_FIT = [("rtx-4090", model) for model in model_names() if model != "llama-3.1-8b"]
"""24 GiB hold a model of 8 billion parameters; this card runs alone (no tp), all others run up to 8 together."""


@pytest.mark.parametrize(("card", "model"), DO_NOT_FIT)
def test_a_model_that_does_not_fit_says_why_not(card: str, model: str) -> None:
    with pytest.raises(ValueError, match=r"does not fit on 1 × .* GiB usable on each GPU; use .*$"):
        replica(card, model)


@pytest.mark.parametrize(("card", "model"), [pair for pair in PAIRS if pair not in DO_NOT_FIT])
def test_every_other_pair_runs(card: str, model: str) -> None:
    found = replica(card, model)
    fixed, slope = found.step_time.decode_step(1)
    assert 1e8 < fixed < 1e12
    assert slope > 0
    assert found.rules.kv_blocks > 0
    assert 0 < found.costs.prefill_seconds_per_token < found.costs.decode_seconds_per_token < 1
    description = found.describe()
    assert description["hardware"] == card
    assert description["kv_tokens"] == found.rules.kv_blocks * 16
    assert description["step_time_error"] == found.hardware.error


@pytest.mark.parametrize("name", hardware_names())
def test_every_card_says_where_its_numbers_come_from(name: str) -> None:
    card = hardware(name)
    assert card.name == name
    assert len(card.source) > 20
    assert card.error
    for line in (PROFILES / "hardware" / f"{name}.toml").read_text().splitlines():
        measured = "=" in line and not line.startswith(("name", "title", "version", "source", "error", "message", "us"))
        if measured and "[experts]" not in line:
            key = line.split("=")[0].strip()
            assert "#" in line or key in {"weight_efficiency", "compute_efficiency", "call_us", "knee"}, line


@pytest.mark.parametrize("name", model_names())
def test_every_model_is_called_by_its_file(name: str) -> None:
    assert model_shape(name).name == name


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("llama-3.1-8b", 8.03),
        ("llama-3.1-70b", 70.6),
        ("llama-2-13b", 13.0),
        ("qwen3-32b", 32.8),
        ("qwen3-30b-a3b", 30.5),
        ("mixtral-8x7b", 46.7),
    ],
)
def test_shapes_have_the_published_number_of_weights(model: str, billions: float) -> None:
    assert model_shape(model).weight_bytes(2) / 2e9 == pytest.approx(billions, rel=0.005)


def test_defaults_are_those_of_vllm() -> None:
    for card, budget, seats in (
        ("h100", 8_192, 1_024),
        ("h200", 8_192, 1_024),
        ("a100", 2_048, 256),
        ("l4", 2_048, 256),
    ):
        rules = replica(card).rules
        assert (rules.max_num_batched_tokens, rules.max_num_seqs) == (budget, seats)


def test_memory_left_is_close_to_what_a_real_engine_reported() -> None:
    # vLLM 0.19 on an RTX 4090 with Llama-3.1-8B, budget 2,048: 2,588 blocks.
    assert replica("rtx-4090", "llama-3.1-8b").rules.kv_blocks == pytest.approx(2_588, rel=0.02)
    assert 400_000 < replica("h100", "llama-3.1-8b").rules.kv_blocks * 16 < 480_000


def test_large_models_take_several_gpus_by_default() -> None:
    assert replica("h100", "llama-3.1-8b").tp == 1
    assert replica("h100", "llama-3.1-70b").tp == 4
    assert replica("a100", "llama-3.1-70b").tp == 4
    assert replica("h200", "llama-3.1-70b").tp == 2
    assert replica("h100", "llama-3.1-70b", precision="fp8").tp == 2


def test_what_is_given_is_taken() -> None:
    found = replica("a100", kv_tokens=1_000, max_num_seqs=8, max_num_batched_tokens=512, async_scheduling=False)
    assert found.rules.kv_blocks == 62
    assert found.rules.max_num_seqs == 8
    assert found.rules.max_num_batched_tokens == 512
    assert not found.rules.async_scheduling
    assert replica(max_num_batched_tokens=512).rules.max_num_seqs == 512
    limits = {"watermark": 0.1, "long_prefill_token_threshold": 64, "long_prefill_token_threshold_adaptive": True}
    rules = replica(kv_tokens=1_000, block_tokens=64, **limits).rules  # type: ignore[arg-type]
    assert (rules.kv_blocks, rules.block_tokens) == (15, 64)
    assert {name: getattr(rules, name) for name in limits} == limits


def test_kv_in_fp8_takes_half_the_memory_and_half_the_reading() -> None:
    plain, fp8 = replica("h100", tp=2), replica("h100", tp=2, kv_precision="fp8")
    assert fp8.rules.kv_blocks == pytest.approx(2 * plain.rules.kv_blocks, abs=1)
    (fixed, slope), (fp8_fixed, fp8_slope) = (server.step_time.decode_step(8) for server in (plain, fp8))
    assert fp8_fixed == fixed, "the weights' products and the rest stay"
    assert fp8_slope == pytest.approx(slope / 2, abs=1)
    assert fp8.step_time.mixed_step(0, 0, ((8_000, 0),), 1) == plain.step_time.mixed_step(0, 0, ((8_000, 0),), 1), (
        "a long chunk is bound by computing, in BF16"
    )
    assert fp8.describe()["step_time_error"].endswith("; FP8 KV not measured")
    assert plain.describe()["step_time_error"] == plain.hardware.error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"hardware": "h10"}, "unknown hardware 'h10': did you mean 'h100'?"),
        ({"model": "llama-3-8b"}, "unknown model 'llama-3-8b': did you mean 'llama-3.1-8b'?"),
        ({"hardware": "zzz"}, "choose from a100, h100"),
        ({"hardware": "absent.toml"}, "hardware file absent.toml: it cannot be read: No such file"),
        ({"model": "llama-3.1-70b", "tp": 1}, "weights take 131.4 GiB"),
        ({"model": "llama-3.1-70b", "tp": 1}, "use tp 2 or 4 or 8 or a card with more memory"),
        ({"hardware": "l4", "model": "llama-2-13b", "tp": 1}, "use tp 2 or 4 or 8 or precision fp8 or a card"),
        ({"tp": 3}, "tp 3 is not known for h100: use one of 1, 2, 4, 8"),
        ({"hardware": "rtx-4090", "tp": 2}, "tp 2 is not known for rtx-4090: use one of 1"),
        ({"hardware": "a100", "precision": "fp8"}, "a100 has no fp8 figures: use precision bf16"),
        ({"precision": "int4"}, "precision must be one of bf16, fp8, got 'int4'"),
        ({"kv_tokens": 5}, "kv_tokens must be at least one block of 16, got 5"),
        ({"kv_precision": "fp4"}, "kv_precision must be one of bf16, fp8, got 'fp4'"),
        ({"kv_tokens": 40, "block_tokens": 64}, "kv_tokens must be at least one block of 64, got 40"),
        ({"block_tokens": 0}, "block_tokens must be at least 1, got 0"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens must be at least 1"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        replica(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def changed(tmp_path: Path, kind: str, name: str, old: str, new: str) -> Path:
    text = (PROFILES / kind / f"{name}.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    return path


def test_own_files_are_taken(tmp_path: Path) -> None:
    card = changed(tmp_path, "hardware", "h100", "bandwidth_tb_s = 3.35", "bandwidth_tb_s = 6.7")
    assert replica(card).step_time.decode_step(1)[1] == pytest.approx(replica().step_time.decode_step(1)[1] / 2)
    model = changed(tmp_path, "models", "llama-3.1-8b", "layers = 32", "layers = 16")
    assert replica(model=str(model)).model.layers == 16


@pytest.mark.parametrize(
    ("kind", "old", "new", "sentence"),
    [
        ("hardware", "memory_gib = 79.2", "", "memory_gib is missing"),
        ("hardware", "memory_gib = 79.2", "memory_gib = -1", "memory_gib must be a number above 0, got -1"),
        ("hardware", "memory_gib = 79.2", "memory_gib = inf", "memory_gib must be a number above 0, got inf"),
        ("hardware", "memory_gib = 79.2", "memory_gib = '80'", "memory_gib must be a number above 0, got '80'"),
        ("hardware", "memory_gib = 79.2", "memory_gb = 79.2", "memory_gib is missing"),
        (
            "hardware",
            "mixed_rows",
            "mixed_rowz = 1\nmixed_rows",
            "unknown key attention.mixed_rowz: did you mean 'mixed_rows'?",
        ),
        ("hardware", "weight_efficiency = 0.893", "weight_efficiency = 1.2", "gemm.bf16.weight_efficiency must be"),
        ("hardware", "[attention]", "[attentoin]", "attention is missing: add a table [attention]"),
        ("hardware", "us = [", "us = [9, 8, ", "all_reduce.2.us must not fall"),
        ("hardware", "message_bytes = [", "message_bytes = [1, ", "as many numbers as message_bytes"),
        ("hardware", "[all_reduce.2]", "[all_reduce.two]", "all_reduce.two must be a number of GPUs of at least 2"),
        ("hardware", "[step]", "[step", "is not valid TOML"),
        ("models", "layers = 32", "layers = 0", "layers must be a whole number of at least 1, got 0"),
        ("models", "layers = 32", "layers = 32.5", "layers must be a whole number of at least 1, got 32.5"),
        ("models", "kv_heads = 8", "kv_heads = 7", "kv_heads (7) must divide heads (32)"),
        ("models", "tied_embeddings = false", "tied_embeddings = 0", "tied_embeddings must be true or false, got 0"),
        ("models", "source = ", "sauce = ", "source is missing"),
        (
            "models",
            "vocab = 128256",
            "vocab = 128256\n[experts]\ncount = 2\nactive = 3\nintermediate = 1",
            "experts.active (3)",
        ),
    ],
)
def test_a_fault_in_an_own_file_is_one_sentence(tmp_path: Path, kind: str, old: str, new: str, sentence: str) -> None:
    path = changed(tmp_path, kind, "h100" if kind == "hardware" else "llama-3.1-8b", old, new)
    with pytest.raises(ValueError, match=r"mine\.toml") as caught:
        replica(**{"hardware" if kind == "hardware" else "model": path})  # type: ignore[arg-type]
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_page_on_parity_names_the_default_of_every_rule() -> None:
    page = (Path(__file__).parents[3] / "docs" / "parity.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| (\w+).* \| .* \|$", page, flags=re.MULTILINE))
    rules = replica("h100", "llama-3.1-8b").rules
    given_by_memory_and_model = {"kv_blocks", "max_model_tokens"}
    names = [field.name for field in fields(EngineRules) if field.name not in given_by_memory_and_model]
    said = {True: "on", False: "off"}
    defaults = {name: getattr(rules, name) for name in names}
    assert told == {
        name: said[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in defaults.items()
    }
