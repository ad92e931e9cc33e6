"""Laws of the roofline: whole, affine, monotone, consistent; and a few figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.simulator.hardware import Precision, hardware, hardware_names
from headway.simulator.models import model_names, model_shape
from headway.simulator.roofline import Roofline
from headway.testing.examples import examples

MODELS = {name: model_shape(name) for name in model_names()}
CARDS = {name: hardware(name) for name in hardware_names()}

cards, models = st.sampled_from(sorted(CARDS)), st.sampled_from(sorted(MODELS))
decodes = st.integers(1, 1_024)
contexts = st.integers(0, 2_000_000)
chunk_lists = st.lists(st.tuples(st.integers(1, 8_192), st.integers(0, 100_000)), min_size=1, max_size=4)


def step_time(card: str = "h100", model: str = "llama-3.1-8b", tp: int = 1, precision: Precision = "bf16") -> Roofline:
    return Roofline(CARDS[card], MODELS[model], tp, precision)


@given(cards, models, decodes, contexts)
def test_a_step_without_chunks_is_a_decode_step(card: str, model: str, requests: int, context: int) -> None:
    time = step_time(card, model)
    fixed, slope = time.decode_step(requests)
    assert isinstance(fixed, int)
    assert isinstance(slope, int)
    assert fixed > 0
    assert slope > 0
    assert time.mixed_step(requests, context, (), requests) == fixed + slope * context


@given(cards, models, st.integers(0, 512), contexts, chunk_lists, st.integers(0, 512))
def test_answers_depend_on_the_arguments_only(
    card: str, model: str, requests: int, context: int, chunks: list[tuple[int, int]], sampled: int
) -> None:
    warm = step_time(card, model)
    warm.decode_step(7)
    first = warm.mixed_step(requests, context, chunks, sampled)
    assert isinstance(first, int)
    assert first == warm.mixed_step(requests, context, tuple(chunks), sampled)
    assert first == step_time(card, model).mixed_step(requests, context, chunks, sampled)
    assert first == step_time(card, model).mixed_step(requests, context, list(reversed(chunks)), sampled)


@given(cards, models, st.integers(0, 512), contexts, chunk_lists, st.integers(0, 512))
@settings(max_examples=examples(200))
def test_more_work_never_takes_less_time(
    card: str, model: str, requests: int, context: int, chunks: list[tuple[int, int]], sampled: int
) -> None:
    time = step_time(card, model)
    base = time.mixed_step(requests, context, chunks, sampled)
    (new, before), *others = chunks
    assert time.mixed_step(requests + 1, context, chunks, sampled) >= base
    assert time.mixed_step(requests, context + 1, chunks, sampled) >= base
    assert time.mixed_step(requests, context, chunks, sampled + 1) >= base
    assert time.mixed_step(requests, context, [(new + 1, before), *others], sampled) >= base
    assert time.mixed_step(requests, context, [(new, before + 1), *others], sampled) >= base
    assert time.mixed_step(requests, context, [*chunks, (1, 0)], sampled) >= base
    if requests:
        assert base >= time.mixed_step(requests, context, (), sampled)


@given(cards, models, decodes)
def test_a_larger_batch_never_decodes_faster(card: str, model: str, requests: int) -> None:
    time = step_time(card, model)
    assert time.decode_step(requests + 1)[0] >= time.decode_step(requests)[0]


@pytest.mark.parametrize("model", sorted(MODELS))
@given(tokens=st.integers(1, 8_192))
@settings(max_examples=examples(30))
def test_more_gpus_never_slow_down_what_is_computed(model: str, tokens: int) -> None:
    free = dict.fromkeys((2, 4, 8), ((1.0, 2.0), (1e-9, 1e-9)))
    card = replace(CARDS["h100"], all_reduce=free)
    times = [Roofline(card, MODELS[model], tp).mixed_step(0, 0, ((tokens, 0),), 1) for tp in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)


@given(st.integers(1, 512))
def test_a_mixture_of_experts_is_cheaper_than_a_dense_model_of_the_same_size(tokens: int) -> None:
    mixture = MODELS["qwen3-30b-a3b"]
    assert mixture.experts is not None
    inner = mixture.experts.count * mixture.experts.intermediate
    dense = replace(mixture, experts=None, intermediate=inner)
    # Same kernels for both, so that only bytes and operations differ; the router's weights are the mixture's alone.
    card = CARDS["rtx-pro-6000"]
    same = replace(card, experts=replace(card.gemm["bf16"], call_us=0.0))
    sparse_ps = Roofline(same, mixture).mixed_step(tokens, 0, (), tokens)
    assert sparse_ps < Roofline(same, dense).mixed_step(tokens, 0, (), tokens)


def test_one_token_touches_its_own_experts_only() -> None:
    time = step_time("h100", "mixtral-8x7b", 2)
    assert time.decode_step(1)[0] < 0.4 * time.decode_step(64)[0]


def test_weights_bound_a_small_batch() -> None:
    # Llama-3.1-8B: 6.98e9 weights in layers and 0.525e9 in the output embedding, 2 bytes each, at 0.893 × 3.35 TB/s:
    # 5.02 ms. Fixed: 32 layers × (4 × 3.93 + 9.0 + 11.3) µs and 200 µs a step: 1.35 ms.
    fixed, slope = step_time().decode_step(1)
    assert fixed == pytest.approx((5.02 + 1.35) * 1e9, rel=0.01)
    # 131,072 bytes of KV a token at 0.955 × 3.35 TB/s.
    assert slope == pytest.approx(131_072 / (0.955 * 3.35), rel=1e-4)


def test_the_published_step_of_a_70b_model_on_two_gpus() -> None:
    # Measured TPOT of Llama-3.1-70B FP8 on two H100, four concurrent requests of 1,024 + 1,024 tokens: 17.4 ms.
    fixed, slope = step_time("h100", "llama-3.1-70b", 2, "fp8").decode_step(4)
    assert (fixed + slope * 4 * 1_536) / 1e9 == pytest.approx(17.4, rel=0.1)


def test_prompt_attention_grows_with_the_square() -> None:
    time = step_time()
    short, long = (time.mixed_step(0, 0, ((8_192, before),), 1) for before in (0, 65_536))
    # 4 · 32 heads · 128 · 8,192 tokens · 65,536 more context, 32 layers, at 0.702 × 989 TFLOP/s.
    assert long - short == pytest.approx(4 * 32 * 128 * 8_192 * 65_536 * 32 / (0.702 * 989), rel=1e-3)


def test_decodes_beside_a_prompt_cost_more_where_the_kernel_pads_them() -> None:
    def per_context_token(card: str, model: str) -> tuple[int, int]:
        time = step_time(card, model)
        mixed = [time.mixed_step(32, context, ((512, 0),), 33) for context in (0, 100_000)]
        return (mixed[1] - mixed[0]) // 100_000, time.decode_step(32)[1]

    mixed, alone = per_context_token("rtx-pro-6000", "llama-3.1-8b")
    assert 1.5 < mixed / alone < 2.1  # fitted as one coefficient: 1.6 to 1.74
    grouped, grouped_alone = per_context_token("rtx-pro-6000", "qwen3-32b")
    assert grouped / grouped_alone == pytest.approx(2 * mixed / alone, rel=1e-3)  # twice the query heads per KV head
    packed, packed_alone = per_context_token("h100", "llama-3.1-8b")
    assert packed == packed_alone


def test_a_short_chunk_after_a_long_prefix_cannot_fill_the_card() -> None:
    time = step_time("rtx-4090")
    one, many = (time.mixed_step(0, 0, ((new, 16_384),), 1) for new in (16, 128))
    alone_one, alone_many = (time.mixed_step(0, 0, ((new, 0),), 1) for new in (16, 128))
    assert one - alone_one == pytest.approx(many - alone_many, rel=0.02)


def test_all_reduce_is_paid_twice_a_layer() -> None:
    card = CARDS["h100"]
    dear = replace(card, all_reduce={2: ((1.0, 2.0), (100.0, 100.0))})
    free = replace(card, all_reduce={2: ((1.0, 2.0), (0.0, 0.0))})
    shape = MODELS["llama-3.1-8b"]
    difference = Roofline(dear, shape, 2).decode_step(1)[0] - Roofline(free, shape, 2).decode_step(1)[0]
    assert difference == 2 * 32 * 100_000_000
