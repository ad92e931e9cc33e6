"""Roofline model of a replica's step time: bytes over bandwidth, operations over peak, plus fixed costs.

Laws: whole picoseconds, the same on every machine; affine in the decodes' context for a fixed batch; a step without
chunks is a decode step exactly.

Per layer, on one of `tp` GPUs:

    products     matrix products over n tokens: the longer of reading weights and computing, a little more near the knee
    elementwise  norms, rotary embedding, activation: bytes of activations, plus a fixed cost
    attention    a decode step reads its KV: additive, a kernel of its own after the products. A chunk of c tokens after
                 p earlier ones costs 4 · heads · head_dim · c · (p + c/2) operations, no less than the one chain of
                 tiles that runs along the longest prefix, no less than reading its KV; plus queries and outputs.
                 Decodes beside chunks run in the prompt kernel: see `hardware.Attention`
    all-reduce   two of n · hidden · 2 bytes, by interpolation in a measured table

and per step the output embedding and the sampler over the requests that get a token, and a fixed cost.

Why the integers agree everywhere: every coefficient is computed once, by a fixed sequence of +, -, × and ÷, which
IEEE 754 rounds in one way only (no `**` or logarithm, no sum over a set), then rounded to whole picoseconds; everything
after that is integer arithmetic. The cost of a pair of tokens is kept in 2⁻²⁰ picoseconds and rounded down once a step;
the slopes are whole picoseconds, so that k steps can be summed in closed form.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from headway.simulator.hardware import BYTES, Gemm, Hardware, Precision
from headway.simulator.linear_lower_bounds import supporting_lines
from headway.simulator.models import ModelShape
from headway.simulator.step_time import PS_PER_SECOND, Chunk, StepFloor

_PS_PER_US = 1_000_000
_SHIFT = 20  # fractional bits of the cost of one pair of tokens
_ACTIVATION_BYTES = 2  # BF16


class Roofline:
    """`StepTime` of one replica of `model` on `tp` GPUs of one kind.

    Args:
        hardware: the card.
        model: the model's shape.
        tp: tensor-parallel degree; the card must have an all-reduce table for it.
        precision: of the weights; embeddings and attention stay BF16.
        kv_precision: of the KV cache, which changes the bytes that attention reads and nothing else. FP8 is not
            measured: the share of the bandwidth is that of BF16, and queries are not computed any faster.
    """

    def __init__(
        self,
        hardware: Hardware,
        model: ModelShape,
        tp: int = 1,
        precision: Precision = "bf16",
        kv_precision: Precision = "bf16",
    ) -> None:
        self._hardware = hardware
        self._model = model
        self._tp = tp
        self._gemm = hardware.gemm[precision]
        self._weight_bytes = BYTES[precision]
        self._attention_costs(-(-model.heads // tp), max(1, model.kv_heads // tp), BYTES[kv_precision])
        self._by_tokens: dict[int, int] = {}
        self._by_sampled: dict[int, int] = {}
        self._by_decodes: dict[int, tuple[int, int]] = {}

    def decode_step(self, requests: int) -> tuple[int, int]:
        """Fixed part, and slope per token of context, of a step of decodes only; remembered."""
        step = self._by_decodes.get(requests)
        if step is None:
            fixed = self._tokens(requests) + self._sampled(requests)
            fixed += self._decode_call + requests * self._decode_request
            step = self._by_decodes[requests] = (fixed, self._slope)
        return step

    def mixed_step(self, decodes: int, context_tokens: int, chunks: Sequence[Chunk], sampled: int) -> int:
        """Duration of any step, as the module's text composes it."""
        if chunks:
            new_tokens = pairs = longest = read = 0
            for new, before in chunks:
                twice = before + before + new  # twice the mean context of the chunk's tokens
                new_tokens += new
                pairs += new * twice
                read += before + new
                if twice > longest:  # noqa: PLR1730 - max() would cost a call in the hot path
                    longest = twice
            chain = longest * self._parallel_tokens
            work = ((pairs if pairs > chain else chain) * self._pair) >> _SHIFT
            read *= self._slope
            attention = (work if work > read else read) + new_tokens * self._chunk_token
            attention += self._mixed_call if decodes else self._prefill_call
            attention += decodes * self._mixed_request + context_tokens * self._mixed_slope
            tokens = decodes + new_tokens
        else:
            attention = self._decode_call + decodes * self._decode_request + context_tokens * self._slope
            tokens = decodes
        base = self._by_tokens.get(tokens)
        if base is None:
            base = self._tokens(tokens)
        head = self._by_sampled.get(sampled)
        if head is None:
            head = self._sampled(sampled)
        return base + head + attention

    def floors(self, tokens_max: int, requests_max: int) -> tuple[StepFloor, ...]:
        """Floors of the roofline.

        Tokens and samples enter by supporting lines of what they cost; a chunk's attention is the longer of reading
        and computing, so either of the two is a floor. One picosecond of `fixed` pays for rounding down.
        """
        call = min(self._decode_call, self._prefill_call) - 1
        tokens = supporting_lines([self._tokens(n) for n in range(1, tokens_max + 1)])
        sampled = supporting_lines([self._sampled(n) for n in range(1, requests_max + 1)])
        attention = ((float(self._slope), 0.0), (0.0, self._pair / (1 << _SHIFT)))
        return tuple(
            StepFloor(
                fixed=call + base,
                sampled_fixed=head,
                prompt_token=token + self._chunk_token,
                decode_token=token + self._decode_request,
                sample=sample,
                context=self._slope,
                chunk_context=chunk_context,
                pair=pair,
            )
            for base, token in tokens
            for head, sample in (sampled[0], sampled[-1])
            for chunk_context, pair in attention
        )

    def _attention_costs(self, heads: int, kv_heads: int, kv_bytes: int) -> None:
        """Whole-picosecond costs of all layers' attention, from the heads on one GPU."""
        attention, model = self._hardware.attention, self._model
        ps = model.layers * PS_PER_SECOND
        bandwidth = self._hardware.bandwidth_tb_s * 1e12
        computing = attention.prefill_compute_efficiency * self._hardware.gemm["bf16"].peak_tflops * 1e12
        head = 4 * model.head_dim  # operations on one query row and one context token; bytes of K and V, or Q and O
        read = ps * kv_heads * (2 * model.head_dim * kv_bytes) / (attention.decode_bandwidth_efficiency * bandwidth)
        tile = ps * heads * head * attention.mixed_rows / computing
        rows = ps * (heads + kv_heads) * head / (attention.prefill_activation_efficiency * bandwidth)
        layers_ps = model.layers * _PS_PER_US
        self._slope = max(1, round(read))
        self._mixed_slope = max(1, round(read), round(tile))
        self._pair = round(ps * heads * head / 2 / computing * (1 << _SHIFT))
        self._parallel_tokens = round(attention.parallel_rows / heads)
        self._chunk_token = round(rows)
        self._prefill_call = round(layers_ps * attention.prefill_call_us)
        self._decode_call = round(layers_ps * attention.decode_call_us)
        self._decode_request = round(layers_ps * kv_heads * attention.decode_request_us)
        # A chunk beside decodes never makes the step shorter, whatever two separate fits say.
        self._mixed_call = max(self._prefill_call, self._decode_call)
        self._mixed_request = max(round(layers_ps * heads * attention.mixed_head_us), self._decode_request)

    def _tokens(self, tokens: int) -> int:
        """Picoseconds of everything that depends on the number of tokens alone; remembered."""
        duration = self._by_tokens.get(tokens)
        if duration is None:
            layer_us = self._products_us(tokens) + self._elementwise_us(tokens) + self._all_reduces_us(tokens)
            duration = round((self._model.layers * layer_us + self._hardware.step_us) * _PS_PER_US)
            self._by_tokens[tokens] = duration
        return duration

    def _sampled(self, requests: int) -> int:
        """Picoseconds of output embedding and sampler; remembered."""
        duration = self._by_sampled.get(requests)
        if duration is None:
            duration = 0
            if requests:
                gemm = self._hardware.gemm["bf16"]
                weights = self._model.embedding_parameters / self._tp
                read = 2 * weights / (gemm.weight_efficiency * self._hardware.bandwidth_tb_s * 1e6)
                work = 2 * weights * requests / (gemm.compute_efficiency * gemm.peak_tflops * 1e6)
                duration = round((_roof(read, work, gemm.knee) + self._hardware.request_us * requests) * _PS_PER_US)
            self._by_sampled[requests] = duration
        return duration

    def _products_us(self, tokens: int) -> float:
        """Matrix products of one layer, µs."""
        model, gemm = self._model, self._gemm
        if model.experts is None:
            return self._product_us(gemm, model.layer_parameters, model.layer_parameters * tokens, calls=4)
        dense = self._product_us(gemm, model.attention_parameters, model.attention_parameters * tokens, calls=2)
        # Experts were measured in BF16: another precision changes their rate as it changes that of dense products.
        grouped, bf16 = self._hardware.experts, self._hardware.gemm["bf16"]
        grouped = replace(
            grouped,
            peak_tflops=gemm.peak_tflops,
            compute_efficiency=grouped.compute_efficiency * (gemm.compute_efficiency / bf16.compute_efficiency),
        )
        touched = _experts_touched(model.experts.count, model.experts.active, tokens)
        visited = model.mlp_parameters * model.experts.active * tokens
        return dense + self._product_us(grouped, touched * model.mlp_parameters, visited, calls=1)

    def _product_us(self, gemm: Gemm, weights: float, multiplications: float, *, calls: int) -> float:
        """Reading `weights` of the model once and doing `multiplications` with them, both shared by `tp` GPUs, µs."""
        read = weights * self._weight_bytes / self._tp / (gemm.weight_efficiency * self._hardware.bandwidth_tb_s * 1e6)
        work = 2 * multiplications / self._tp / (gemm.compute_efficiency * gemm.peak_tflops * 1e6)
        return _roof(read, work, gemm.knee) + calls * gemm.call_us

    def _elementwise_us(self, tokens: int) -> float:
        """Norms, rotary embedding and activation of one layer, µs: each reads and writes what the next one needs."""
        model = self._model
        inner = model.mlp_parameters // (3 * model.hidden) * (model.experts.active if model.experts else 1)
        norms = 2 * 4 * model.hidden  # two, each reads and writes the residual and its own output
        sharded = 2 * (model.heads + model.kv_heads) * model.head_dim + 3 * inner
        width = norms + sharded / self._tp
        rate = self._hardware.elementwise_efficiency * self._hardware.bandwidth_tb_s * 1e6
        return tokens * width * _ACTIVATION_BYTES / rate + self._hardware.layer_us

    def _all_reduces_us(self, tokens: int) -> float:
        """Two all-reduces of one layer, µs."""
        if self._tp == 1:
            return 0.0
        sizes, times = self._hardware.all_reduce[self._tp]
        return 2 * _interpolated(sizes, times, float(tokens * self._model.hidden * _ACTIVATION_BYTES))


def _roof(read: float, work: float, knee: float) -> float:
    """The longer of both and a share `knee` of the shorter, fading with their ratio: kernels round the roofline off."""
    most, least = (read, work) if read > work else (work, read)
    return most + knee * least * (least / most)


def _experts_touched(count: int, active: int, tokens: int) -> float:
    """Experts that at least one of `tokens` visits, routing being uniform: E·(1 - (1 - k/E)ⁿ)."""
    missed, factor, left = 1.0, 1 - active / count, tokens
    while left:  # by squaring: `**` of floats may differ between C libraries
        if left & 1:
            missed *= factor
        factor *= factor
        left >>= 1
    return count * (1 - missed)


def _interpolated(sizes: Sequence[float], times: Sequence[float], size: float) -> float:
    """Time at `size`: linear between the table's points, constant below the first, along the last line beyond."""
    if size <= sizes[0]:
        return times[0]
    above = min(bisect_right(sizes, size), len(sizes) - 1)
    x0, x1, y0, y1 = sizes[above - 1], sizes[above], times[above - 1], times[above]
    return y0 + (y1 - y0) * (size - x0) / (x1 - x0)
