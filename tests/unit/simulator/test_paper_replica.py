"""A replica worked out on paper: what its files say, how much memory it has left, and every term of its step time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headway.domain.costs import ServiceCosts
from headway.simulator.hardware import Attention, Gemm, Hardware, Precision, hardware
from headway.simulator.models import Experts, ModelShape, model_shape
from headway.simulator.replica import replica, service_costs
from headway.simulator.roofline import Roofline
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import LinearStepTime
from tests.support.paper_replica import CARD, EXPERTS, MIXTURE, MODEL, written


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return written(tmp_path, CARD)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path, MODEL)


def roofline(
    folder: Path, *changes: tuple[str, str], model: str = MODEL, tp: int = 1, precision: Precision = "bf16"
) -> Roofline:
    """Of the paper card, with changes of its text."""
    text = CARD
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return Roofline(hardware(written(folder, text)), model_shape(written(folder, model)), tp, precision)


class TestFiles:
    def test_a_card_has_every_figure_of_its_file(self, card: Path) -> None:
        assert hardware(card) == Hardware(
            name="paper",
            title="Paper card",
            version=3,
            source="made up for tests",
            error="none",
            memory_gib=1.0,
            bandwidth_tb_s=1.0,
            max_num_batched_tokens=64,
            max_num_seqs=16,
            gemm={"bf16": Gemm(100, 0.5, 0.5, 3.0, 0.0), "fp8": Gemm(200, 0.25, 0.125, 4.0, 0.2)},
            experts=Gemm(100, 0.625, 0.4, 20.0, 1.0),
            attention=Attention(0.8, 13.0, 0.5, 0.2, 1.6, 11.0, 400, 50, 0.75),
            elementwise_efficiency=1.25,
            layer_us=5.0,
            step_us=7.0,
            request_us=0.3,
            all_reduce={2: ((1000, 2000, 3000), (1.0, 3.0, 9.0))},
        )

    def test_a_model_has_every_figure_of_its_file(self, model: Path, tmp_path: Path) -> None:
        dense = ModelShape(
            "paper-model", "Paper model", 2, "made up for tests, too", 2, 100, 4, 2, 10, 300, 1000, False, 2000
        )
        assert model_shape(model) == dense
        mixture = model_shape(written(tmp_path, MIXTURE))
        assert mixture.experts == Experts(8, 2, 50)
        assert mixture.intermediate == 0

    def test_without_all_reduce_a_card_works_alone(self, tmp_path: Path) -> None:
        alone = hardware(written(tmp_path, CARD[: CARD.index("[all_reduce")]))
        assert alone.gpu_counts == (1,)
        assert alone.all_reduce == {}

    def test_without_fp8_there_is_bf16_alone(self, tmp_path: Path) -> None:
        start, stop = CARD.index("[gemm.fp8]"), CARD.index("[experts]")
        assert set(hardware(written(tmp_path, CARD[:start] + CARD[stop:])).gemm) == {"bf16"}

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("compute_efficiency = 0.4", "compute_efficiency = 1.1", "experts.compute_efficiency must be"),
            ("knee = 1.0", "knee = 1.1", "experts.knee must be"),
            ("call_us = 20.0", "call_us = -1", "experts.call_us must be"),
            ("decode_bandwidth_efficiency = 0.8", "decode_bandwidth_efficiency = 1.1", "decode_bandwidth_efficiency"),
            ("prefill_compute_efficiency = 0.2", "prefill_compute_efficiency = 1.1", "prefill_compute_efficiency"),
            ("prefill_activation_efficiency = 1.6", "prefill_activation_efficiency = 8.1", "above 0 and at most 8"),
            ("elementwise_efficiency = 1.25", "elementwise_efficiency = 8.1", "step.elementwise_efficiency"),
            ("layer_us = 5.0", "layer_us = 5.0\nlayers_us = 5.0", "unknown key step.layers_us"),
            ("memory_gib = 1.0", "memory_gib = 1.0\nmemory_tib = 1", "unknown key memory_tib"),
            ("[gemm.fp8]", "[gemm.fp4]\n[gemm.fp8]", "unknown key gemm.fp4"),
            ("peak_tflops = 200", "peak_tflops = 200\npeak = 1", "unknown key gemm.fp8.peak"),
            ("us = [1.0, 3.0, 9.0]", "us = [1.0, 3.0, 9.0]\nms = 1", "unknown key all_reduce.2.ms"),
            ("[all_reduce.2]", "[all_reduce.1]", "all_reduce.1 must be a number of GPUs of at least 2"),
            ("[1000, 2000, 3000]\nus = [1.0, 3.0, 9.0]", "[1000]\nus = [1.0]", "at least two sizes"),
            ("[1000, 2000, 3000]", "[1000, 2000, 2000]", "all different"),
        ],
    )
    def test_a_fault_of_a_card_is_said(self, tmp_path: Path, old: str, new: str, said: str) -> None:
        assert CARD.count(old) == 1
        with pytest.raises(ValueError, match=re.escape(said)):
            hardware(written(tmp_path, CARD.replace(old, new)))

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (MIXTURE.replace("active = 2", "active = 9"), "experts.active (9) must not exceed experts.count (8)"),
            (MIXTURE + "share = 1\n", "unknown key experts.share"),
            (MODEL + "colour = 1\n", "unknown key colour"),
            (MODEL + EXPERTS, "unknown key intermediate"),
            (MODEL.replace("kv_heads = 2", "kv_heads = 3"), "kv_heads (3) must divide heads (4)"),
        ],
    )
    def test_a_fault_of_a_model_is_said(self, tmp_path: Path, text: str, said: str) -> None:
        with pytest.raises(ValueError, match=re.escape(said)):
            model_shape(written(tmp_path, text))

    def test_all_experts_may_be_active(self, tmp_path: Path) -> None:
        mixture = model_shape(written(tmp_path, MIXTURE.replace("active = 2", "active = 8")))
        assert mixture.experts == Experts(8, 8, 50)

    def test_a_file_may_be_named_by_a_text(self, card: Path) -> None:
        assert hardware(str(card)) == hardware(card)


class TestShapes:
    """100 wide; 4 query heads and 2 KV heads of 10; gate, up and down of 300."""

    def test_a_dense_model(self, model: Path) -> None:
        shape = model_shape(model)
        assert shape.attention_parameters == 100 * 10 * (4 + 2 + 2 + 4)  # Q, K, V, output
        assert shape.mlp_parameters == 90_000
        assert shape.layer_parameters == 102_000
        assert shape.embedding_parameters == 100_000
        assert shape.weight_bytes(2) == 2 * 102_000 * 2 + 2 * 200_000  # two layers, two embeddings
        assert shape.weight_bytes(1) == 2 * 102_000 + 2 * 200_000  # embeddings stay in BF16

    def test_tied_embeddings_are_one_matrix(self, tmp_path: Path) -> None:
        shape = model_shape(written(tmp_path, MODEL + "tied_embeddings = true\n"))
        assert shape.weight_bytes(2) == 2 * 102_000 * 2 + 2 * 100_000

    def test_a_mixture_of_experts(self, tmp_path: Path) -> None:
        shape = model_shape(written(tmp_path, MIXTURE))
        assert shape.mlp_parameters == 3 * 100 * 50
        assert shape.layer_parameters == 12_000 + 8 * 15_000 + 8 * 100  # and a row of the router for each expert

    def test_kv_heads_are_shared_out_and_then_copied(self, model: Path) -> None:
        shape = model_shape(model)
        one_head = 2 * 2 * 10 * 2  # layers, K and V, width, bytes
        assert [shape.kv_bytes_per_token(tp) for tp in (1, 2, 4)] == [2 * one_head, one_head, one_head]
        assert shape.kv_bytes_per_token(1, 1) == one_head


class TestMemory:
    """Of 1 GiB, 90 % is usable: 966,367,641 bytes."""

    STEP = 2 * 64 * (3 * 300 + 8 * 100) + 10 * 16 * 1_000 + (512 << 20)  # activations, logits, context

    def test_kv_has_what_weights_and_a_step_leave(self, card: Path, model: Path) -> None:
        left = 966_367_641 - 808_000 - self.STEP
        assert replica(card, model).rules.kv_blocks == left // 160 // 16

    def test_weights_and_activations_are_shared_by_gpus(self, card: Path, model: Path) -> None:
        step = 2 * 64 * (3 * 150 + 800) + 10 * 16 * 1_000 + (512 << 20)
        assert replica(card, model, tp=2).rules.kv_blocks == (966_367_641 - 404_000 - step) // 80 // 16

    def test_fp8_weights_leave_more(self, card: Path, model: Path) -> None:
        left = 966_367_641 - 604_000 - self.STEP
        assert replica(card, model, precision="fp8").rules.kv_blocks == left // 160 // 16

    def test_of_a_mixture_the_active_experts_have_activations(self, card: Path, tmp_path: Path) -> None:
        weights = 2 * (12_000 + 8 * 15_000 + 800) * 2 + 2 * 200_000
        step = 2 * 64 * (3 * 2 * 50 + 800) + 10 * 16 * 1_000 + (512 << 20)
        found = replica(card, written(tmp_path, MIXTURE), tp=1)
        assert found.rules.kv_blocks == (966_367_641 - weights - step) // 160 // 16

    def test_what_is_given_replaces_what_is_left(self, card: Path, model: Path) -> None:
        assert replica(card, model, kv_tokens=100).rules.kv_blocks == 6
        assert replica(card, model, kv_tokens=16).rules.kv_blocks == 1

    def test_by_default_weights_take_at_most_seven_tenths_of_a_gpu(self, tmp_path: Path, card: Path) -> None:
        # Per layer 204,000 bytes; 0.7 GiB is 751,619,276 bytes, 400,000 of them for embeddings: 3,682 layers.
        fits, larger = (written(tmp_path, MODEL.replace("layers = 2", f"layers = {n}")) for n in (3_682, 3_683))
        assert replica(card, fits, kv_tokens=100).tp == 1
        assert replica(card, larger, kv_tokens=100).tp == 2
        huge = written(tmp_path, MODEL.replace("layers = 2", "layers = 20000"))
        assert replica(card, huge, kv_tokens=100).tp == 2, "the most there is"

    def test_a_degree_that_does_not_divide_the_heads_is_no_default(self, tmp_path: Path, card: Path) -> None:
        odd = MODEL.replace("\nheads = 4", "\nheads = 3").replace("kv_heads = 2", "kv_heads = 1")
        huge = written(tmp_path, odd.replace("layers = 2", "layers = 20000"))
        assert replica(card, huge, kv_tokens=100).tp == 1
        with pytest.raises(ValueError, match="tp 2 must divide the 3 attention heads of paper-model"):
            replica(card, huge, kv_tokens=100, tp=2)

    def test_what_does_not_fit_names_every_fix_that_would(self, tmp_path: Path, card: Path) -> None:
        # 2,200 layers: 0.418 GiB of weights, and 0.4 GiB is left beside a step of 0.5 GiB.
        text = MODEL.replace("layers = 2", "layers = 2200")
        with pytest.raises(ValueError, match=re.escape("use tp 2 or precision fp8 or a card with more memory")) as told:
            replica(card, written(tmp_path, text), tp=1)
        assert "paper-model in bf16 does not fit on 1 × paper: weights take 0.4 GiB and a step 0.5 GiB" in str(
            told.value
        )
        assert "of the 0.9 GiB usable on each GPU" in str(told.value)
        twice, four_times = (written(tmp_path, text.replace("2200", layers)) for layers in ("4400", "8800"))
        with pytest.raises(ValueError, match=re.escape("; use precision fp8 or a card with more memory")):
            replica(card, twice, tp=2)
        with pytest.raises(ValueError, match=re.escape("; use tp 2 or a card with more memory")):
            replica(card, twice, tp=1, precision="fp8")
        for precision in ("bf16", "fp8"):
            with pytest.raises(ValueError, match=re.escape("; use a card with more memory")):
                replica(card, four_times, tp=2, precision=precision)  # type: ignore[arg-type]

    def test_one_block_is_enough(self, tmp_path: Path, card: Path, model: Path) -> None:
        # Blocks as large as all that is left, and one token larger.
        tokens = (966_367_641 - 808_000 - self.STEP) // 160
        limits = {"max_model_tokens": 10, "tp": 1}
        assert replica(card, model, block_tokens=tokens, **limits).rules.kv_blocks == 1  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="does not fit"):
            replica(card, model, block_tokens=tokens + 1, **limits)  # type: ignore[arg-type]


class TestStepTime:
    """In picoseconds. One layer's products read 204,000 bytes at 0.5 TB/s: 0.408 µs, or compute 204,000 a token at
    50 TFLOP/s: 0.00408 µs, and make 4 calls of 3 µs. Its other kernels move 3,640 bytes a token at 1.25 TB/s:
    0.002912 µs, and take 5 µs. There are two layers, and 7 µs for the step.

    The output embedding reads 200,000 bytes: 0.4 µs, or computes 0.004 µs a request; sampling takes 0.3 µs a request.
    """

    def test_decodes(self, tmp_path: Path) -> None:
        fixed, slope = roofline(tmp_path).decode_step(3)
        tokens = 2 * (408_000 + 12_000_000 + 3 * 2_912 + 5_000_000) + 7_000_000
        sampled = 400_000 + 3 * 300_000
        attention = 2 * 13_000_000 + 3 * 2 * 2 * 500_000  # two layers, three requests of two KV heads
        assert fixed == tokens + sampled + attention
        assert slope == 200  # two layers of 80 bytes at 0.8 TB/s

    def test_a_small_chunk_beside_decodes(self, tmp_path: Path) -> None:
        took = roofline(tmp_path).mixed_step(3, 1_000, ((50, 200), (10, 0)), 4)
        tokens = 2 * (408_000 + 12_000_000 + 63 * 2_912 + 5_000_000) + 7_000_000
        sampled = 400_000 + 4 * 300_000
        # The longest chain is 450 (twice its mean context) by the 100 rows that fill the card: 45,000, more than the
        # 50 · 450 + 10 · 10 there are; 8 ps each (4 · 4 heads · 10 · 2 layers over 2 · 20 TFLOP/s).
        chunks = 360_000 + 60 * 300  # 480 bytes of queries and outputs a token, two layers' at 1.6 TB/s
        decodes = 26_000_000 + 3 * 2 * 4 * 750_000 + 1_000 * 800  # tiles of 50 rows by 4 heads
        assert took == tokens + sampled + chunks + decodes

    def test_prompts_alone(self, tmp_path: Path) -> None:
        time = roofline(tmp_path)
        took = time.mixed_step(0, 0, ((400, 200), (600, 0)), 1)
        tokens = 2 * (4_080_000 + 12_000_000 + 1_000 * 2_912 + 5_000_000) + 7_000_000  # 1,000 tokens: computing counts
        pairs = 400 * 800 + 600 * 600
        assert took == tokens + 700_000 + pairs * 8 + 1_000 * 300 + 2 * 11_000_000
        assert took - time.mixed_step(0, 0, ((400, 200), (600, 0)), 0) == 700_000

    def test_a_chunk_reads_its_prefix_where_that_takes_longest(self, tmp_path: Path) -> None:
        time = roofline(tmp_path, ("parallel_rows = 400", "parallel_rows = 4"))
        first = 2 * (408_000 + 12_000_000 + 2_912 + 5_000_000) + 7_000_000 + 700_000 + 300 + 22_000_000
        assert time.mixed_step(0, 0, ((1, 10_000),), 1) == first + 10_001 * 200

    def test_a_chunk_never_makes_decodes_cheaper(self, tmp_path: Path) -> None:
        changes = (
            ("prefill_call_us = 11.0", "prefill_call_us = 17.0"),
            ("mixed_head_us = 0.75", "mixed_head_us = 0.1"),
        )
        time = roofline(tmp_path, *changes, ("mixed_rows = 50", "mixed_rows = 0"))
        difference = time.mixed_step(3, 1_000, ((50, 0),), 3) - time.mixed_step(0, 0, ((53, 0),), 3)
        one_chunk, another = 50 * 50 * 100 // 50, 53 * 53 * 100 // 53  # chains
        decodes = 3 * 2_000_000 + 1_000 * 200  # of a decode step, since a mixed one would take less
        assert difference == decodes + (one_chunk - another) * 8 - 3 * 300

    def test_the_knee_rounds_the_roof_off(self, tmp_path: Path) -> None:
        time = roofline(tmp_path, ("call_us = 3.0\nknee = 0.0", "call_us = 3.0\nknee = 0.2"))
        # At 50 tokens computing takes half as long as reading: a share of 0.2 of it fades to half.
        products = 408_000 + 204_000 * 2 // 10 // 2
        sampled = 400_000 + round(0.2 * 4_000 * 0.01) + 300_000
        base = 2 * (products + 12_000_000 + 50 * 2_912 + 5_000_000) + 7_000_000 + sampled
        assert time.mixed_step(0, 0, ((50, 0),), 1) == base + 5_000 * 8 + 50 * 300 + 22_000_000

    def test_fp8_changes_the_products_of_layers_alone(self, tmp_path: Path) -> None:
        time = roofline(tmp_path, ("call_us = 4.0\nknee = 0.2", "call_us = 4.0\nknee = 0"), precision="fp8")
        layer = 408_000 + 16_000_000 + 2_912 + 5_000_000  # half the bytes at half the rate, dearer calls
        assert time.decode_step(1) == (2 * layer + 7_000_000 + 700_000 + 26_000_000 + 2_000_000, 200)

    def test_two_gpus(self, tmp_path: Path) -> None:
        time = roofline(tmp_path, tp=2)
        fixed, slope = time.decode_step(7)
        # Half the weights; 800 bytes' worth of norms whole and the rest halved: 2 · 1,310 bytes a token.
        layer = 204_000 + 12_000_000 + 7 * 2_096 + 5_000_000
        all_reduces = 2 * 1_800_000  # 1,400 bytes: between 1 and 3 µs
        sampled = 200_000 + 7 * 300_000
        assert fixed == 2 * (layer + all_reduces) + 7_000_000 + sampled + 26_000_000 + 7 * 2 * 500_000
        assert slope == 100

    @pytest.mark.parametrize(("tokens", "us"), [(1, 1.0), (5, 1.0), (10, 3.0), (12, 5.4), (15, 9.0), (20, 15.0)])
    def test_messages_of_any_size(self, tmp_path: Path, tokens: int, us: float) -> None:
        """200 bytes a token: the first time below the table, straight lines inside and beyond it."""
        dear = roofline(tmp_path, tp=2)
        free = roofline(tmp_path, ("us = [1.0, 3.0, 9.0]", "us = [0.5, 0.5, 0.5]"), tp=2)
        difference = dear.decode_step(tokens)[0] - free.decode_step(tokens)[0]
        assert difference == pytest.approx(2 * 2 * (us - 0.5) * 1e6, abs=2)

    def test_more_gpus_than_kv_heads_keep_one_each(self, tmp_path: Path) -> None:
        four = CARD[CARD.index("[all_reduce.2]") :].replace("all_reduce.2", "all_reduce.4")
        shape = model_shape(written(tmp_path, MODEL))
        card = hardware(written(tmp_path, CARD + four))
        assert card.gpu_counts == (1, 2, 4)
        assert [Roofline(card, shape, tp).decode_step(1)[1] for tp in (1, 2, 4)] == [200, 100, 100]

    def test_a_mixture_reads_the_experts_that_its_tokens_visit(self, tmp_path: Path) -> None:
        time = roofline(
            tmp_path, ("[experts]\nweight_efficiency = 0.625", "[experts]\nweight_efficiency = 1.0"), model=MIXTURE
        )
        no_knee = roofline(
            tmp_path,
            ("[experts]\nweight_efficiency = 0.625", "[experts]\nweight_efficiency = 1.0"),
            ("call_us = 20.0\nknee = 1.0", "call_us = 20.0\nknee = 0"),
            model=MIXTURE,
        )

        def step(layer_ps: float, requests: int) -> float:
            sampled = 400_000 + requests * 300_000
            return 2 * layer_ps + 7_000_000 + sampled + 26_000_000 + requests * 2_000_000

        # Attention's 12,000 weights: 0.048 µs and two calls. An expert's 15,000 weights: 0.03 µs; one call. Inner
        # width 2 · 50: 800 + 420 values a token.
        for requests, touched in ((1, 2.0), (2, 3.5), (3, 4.625)):  # 8 · (1 - 0.75ⁿ)
            layer = 48_000 + 6_000_000 + touched * 30_000 + 20_000_000 + requests * 1_952 + 5_000_000
            assert no_knee.decode_step(requests)[0] == pytest.approx(step(layer, requests), abs=2)
        # Computing: 2 · 30,000 at 40 TFLOP/s, 1,500 ps; the knee adds what it has of the reading.
        assert time.decode_step(1)[0] - no_knee.decode_step(1)[0] == pytest.approx(2 * 1_500 * 1_500 / 60_000, abs=2)

    def test_a_mixture_in_fp8_keeps_its_share_of_the_peak(self, tmp_path: Path) -> None:
        knees = (("call_us = 20.0\nknee = 1.0", "call_us = 20.0\nknee = 0"), ("knee = 0.2", "knee = 0"))
        time = roofline(tmp_path, *knees, model=MIXTURE, precision="fp8")
        # 10,000 tokens compute: attention 2 · 12,000 at 25 TFLOP/s, experts 2 · 30,000 at 0.4 · 0.125 / 0.5 of 200.
        layer = 10_000 * (960 + 3_000 + 1_952) + 8_000_000 + 20_000_000 + 5_000_000
        took = time.mixed_step(0, 0, ((10_000, 0),), 0)
        assert took == 2 * layer + 7_000_000 + 10_000 * 10_000 * 8 + 10_000 * 300 + 22_000_000

    def test_floors_are_close_where_steps_are_full(self, tmp_path: Path) -> None:
        """A floor of nothing would hold, too."""
        time = roofline(tmp_path)
        floors = time.floors(64, 16)
        for decodes, new, before in ((1, 0, 0), (16, 0, 0), (0, 64, 0), (8, 56, 0), (0, 64, 10_000)):
            context = 1_000_000 * decodes
            chunks = ((new, before),) if new else ()
            sampled = decodes + bool(new)
            took = time.mixed_step(decodes, context, chunks, sampled)
            least = max(
                floor.fixed
                + floor.sampled_fixed
                + floor.prompt_token * new
                + floor.decode_token * decodes
                + floor.sample * sampled
                + floor.context * context
                + floor.chunk_context * before
                + floor.pair * new * (2 * before + new)
                for floor in floors
            )
            paid = took - (600 * context if chunks else 0)  # a floor has a decode step's slope
            assert 0.6 * paid < least <= took, (decodes, new, before)


class TestDescription:
    def test_every_fact(self, card: Path, model: Path) -> None:
        found = replica(card, model, kv_tokens=1_000, block_tokens=8, max_num_seqs=4, async_scheduling=False)
        assert found.describe() == {
            "hardware": "paper",
            "hardware_title": "Paper card",
            "model": "paper-model",
            "model_title": "Paper model",
            "tp": 1,
            "precision": "bf16",
            "kv_precision": "bf16",
            "kv_tokens": 1_000,
            "max_model_tokens": 1_001,
            "max_num_batched_tokens": 64,
            "max_num_seqs": 4,
            "async_scheduling": False,
            "prefix_caching": True,
            "step_time": "roofline",
            "hardware_profile_version": 3,
            "hardware_source": "made up for tests",
            "model_profile_version": 2,
            "model_source": "made up for tests, too",
            "step_time_error": "none",
        }
        assert found.rules == EngineRules(
            125, 8, max_model_tokens=2_000, max_num_batched_tokens=64, max_num_seqs=4, async_scheduling=False
        )

    def test_seats_never_exceed_a_given_budget(self, card: Path, model: Path) -> None:
        assert replica(card, model, max_num_batched_tokens=8).rules.max_num_seqs == 8
        assert replica(card, model, max_num_batched_tokens=800).rules.max_num_seqs == 16


def test_a_token_costs_its_share_of_a_full_step() -> None:
    time = LinearStepTime(fixed_ps=10**9, ps_per_token=10**6, ps_per_context_token=1_000, ps_per_request=10**7)
    rules = EngineRules(100, max_num_batched_tokens=1_000, max_num_seqs=100)
    # 1,000 tokens of a prompt: 1 + 1 + 0.01 ms. 64 decodes over 1,000 tokens each: 1 + 64 · 0.011 + 0.064 ms.
    assert service_costs(time, rules) == ServiceCosts(pytest.approx(2.01e-6), pytest.approx(1.768e-3))
    few = EngineRules(100, max_num_batched_tokens=1_000, max_num_seqs=10)
    assert service_costs(time, few).decode_seconds_per_token == pytest.approx(1e-3 + 10 * 1.1e-5 + 1e-5)
