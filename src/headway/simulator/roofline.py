"""Step time of one replica from first principles: bytes over bandwidth, operations over peak, plus fixed costs.

Laws: whole picoseconds, the same on every machine; affine in the decodes' context for a fixed batch; a step without
chunks is a decode step exactly.

Per layer, on one of `tp` GPUs:

    products     matrix products over n tokens: weights read and operations done overlap, so a rounded maximum of both
    elementwise  norms, rotary embedding, activation: bytes of activations, plus a fixed cost
    attention    decodes read their KV: additive, a kernel of its own after the products; a chunk of c tokens after p
                 earlier ones costs 4 · heads · head_dim · c · (p + c/2) operations or one reading of its KV
    all-reduce   two of n · hidden · 2 bytes, by interpolation in a measured table

and per step the output embedding and the sampler over the requests that get a token, and a fixed cost. In a step that
has chunks, reading the decodes' KV is `mixed_factor` times slower (measured: see the profiles).

Why the integers agree everywhere: every coefficient is computed once, by a fixed sequence of +, -, ×, ÷ and square
roots, which IEEE 754 rounds in one way only (no `**` of floats, no logarithm, no sum over a set), then rounded to whole
picoseconds; everything after that is integer arithmetic. Costs per context token and per pair of tokens are kept in
2⁻²⁰ picoseconds and rounded down once per step: except the slope of a decode step, which is whole, so that k steps can
be summed in closed form.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import sqrt

from headway.simulator.hardware import Hardware, Precision
from headway.simulator.models import ModelShape
from headway.simulator.step_time import PS_PER_SECOND, Chunk

_PS_PER_US = 1_000_000
_SHIFT = 20  # fractional bits of the cost of one pair of tokens
_ACTIVATION_BYTES = 2  # BF16
_PRODUCTS_PER_LAYER = 4  # QKV, output, gate and up, down


class Roofline:
    """`StepTime` of one replica of `model` on `tp` GPUs of one kind.

    Args:
        hardware: the card.
        model: the model's shape.
        tp: tensor-parallel degree; the card must have an all-reduce table for it.
        precision: of the weights; KV cache, embeddings and attention stay BF16.
    """

    def __init__(self, hardware: Hardware, model: ModelShape, tp: int = 1, precision: Precision = "bf16") -> None:
        self._hardware = hardware
        self._model = model
        self._tp = tp
        self._gemm = hardware.gemm[precision]
        self._weight_bytes = 2 if precision == "bf16" else 1
        attention, layers = hardware.attention, model.layers
        heads = -(-model.heads // tp)
        read_seconds = model.kv_bytes_per_token(tp) / (
            attention.decode_bandwidth_efficiency * hardware.bandwidth_tb_s * 1e12
        )
        pair_seconds = (
            layers
            * 2
            * heads
            * model.head_dim
            / (attention.prefill_compute_efficiency * hardware.gemm["bf16"].peak_tflops * 1e12)
        )
        self._slope = max(1, round(read_seconds * PS_PER_SECOND))
        self._mixed_slope = max(1, round(read_seconds * attention.mixed_factor * PS_PER_SECOND))
        self._pair = round(pair_seconds * PS_PER_SECOND * (1 << _SHIFT))
        self._decode_call = round(layers * attention.decode_call_us * _PS_PER_US)
        self._decode_request = round(layers * attention.decode_request_us * _PS_PER_US)
        self._prefill_call = round(layers * attention.prefill_call_us * _PS_PER_US)
        self._by_tokens: dict[int, int] = {}
        self._by_sampled: dict[int, int] = {}
        self._by_decodes: dict[int, tuple[int, int]] = {}

    def decode_step(self, requests: int) -> tuple[int, int]:
        """See `StepTime.decode_step`."""
        found = self._by_decodes.get(requests)
        if found is None:
            fixed = self._tokens(requests) + self._sampled(requests)
            fixed += self._decode_call + requests * self._decode_request
            found = self._by_decodes[requests] = (fixed, self._slope)
        return found

    def mixed_step(self, decodes: int, context_tokens: int, chunks: Sequence[Chunk], sampled: int) -> int:
        """See `StepTime.mixed_step`."""
        tokens = decodes
        attention = 0
        for new, before in chunks:
            tokens += new
            pairs = (new * (before + before + new) * self._pair) >> _SHIFT
            read = (before + new) * self._slope
            attention += pairs if pairs > read else read
        if chunks:
            attention += self._prefill_call
            if decodes:
                attention += decodes * self._decode_request + context_tokens * self._mixed_slope
        else:
            attention += self._decode_call + decodes * self._decode_request + context_tokens * self._slope
        base = self._by_tokens.get(tokens)
        if base is None:
            base = self._tokens(tokens)
        head = self._by_sampled.get(sampled)
        if head is None:
            head = self._sampled(sampled)
        return base + head + attention

    def _tokens(self, tokens: int) -> int:
        """Picoseconds of everything that depends on the number of tokens alone; remembered."""
        found = self._by_tokens.get(tokens)
        if found is None:
            layer_us = self._products_us(tokens) + self._elementwise_us(tokens) + self._all_reduces_us(tokens)
            found = round((self._model.layers * layer_us + self._hardware.step_us) * _PS_PER_US)
            self._by_tokens[tokens] = found
        return found

    def _sampled(self, requests: int) -> int:
        """Picoseconds of output embedding and sampler; remembered."""
        found = self._by_sampled.get(requests)
        if found is None:
            found = 0
            if requests:
                gemm = self._hardware.gemm["bf16"]
                weights = self._model.embedding_parameters / self._tp
                read = 2 * weights / (gemm.weight_efficiency * self._hardware.bandwidth_tb_s * 1e6)
                work = 2 * weights * requests / (gemm.compute_efficiency * gemm.peak_tflops * 1e6)
                found = round((_rounded_maximum(read, work) + self._hardware.request_us * requests) * _PS_PER_US)
            self._by_sampled[requests] = found
        return found

    def _products_us(self, tokens: int) -> float:
        """Matrix products of one layer, µs."""
        model, gemm = self._model, self._gemm
        read_us = self._weight_bytes / self._tp / (gemm.weight_efficiency * self._hardware.bandwidth_tb_s * 1e6)
        work_us = 2 * tokens / self._tp / (gemm.compute_efficiency * gemm.peak_tflops * 1e6)
        calls = _PRODUCTS_PER_LAYER * gemm.call_us
        if model.experts is None:
            weights = model.layer_parameters
            return _rounded_maximum(weights * read_us, weights * work_us) + calls
        touched = _experts_touched(model.experts.count, model.experts.active, tokens)
        dense = _rounded_maximum(model.attention_parameters * read_us, model.attention_parameters * work_us)
        read = touched * model.mlp_parameters * read_us
        work = model.experts.active * model.mlp_parameters * work_us
        return dense + sqrt(read * read + work * work) + calls

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


def _rounded_maximum(a: float, b: float) -> float:
    """(a⁴ + b⁴)^¼: the maximum, 19 % more where both are equal, as kernels near the roofline's knee are."""
    a, b = a * a, b * b
    return sqrt(sqrt(a * a + b * b))


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
