"""Hardware profiles: what a GPU can do by its data sheet, and how much of it an LLM engine's kernels reach.

Every profile is a TOML file with the source of its numbers; `hardware` reads one by name or path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from headway.config.table_reader import TableReader
from headway.simulator.profile_file import profile_names, read_profile

Precision: TypeAlias = Literal["bf16", "fp8"]

BYTES: Mapping[Precision, int] = {"bf16": 2, "fp8": 1}
"""Bytes of one number."""


@dataclass(frozen=True, slots=True)
class Gemm:
    """Matrix products in one precision of the weights (and, for FP8, of the activations).

    Attributes:
        peak_tflops: dense peak of the data sheet, 10¹² operations a second.
        weight_efficiency: share of the memory bandwidth at which weights are read.
        compute_efficiency: share of `peak_tflops` reached by large products.
        call_us: fixed cost of one product, µs.
        knee: how much longer than the longer of reading and computing a product takes where both are equal, as a
            share of it (0 is the ideal roofline).
    """

    peak_tflops: float
    weight_efficiency: float
    compute_efficiency: float
    call_us: float
    knee: float


@dataclass(frozen=True, slots=True)
class Attention:
    """The two attention kernels.

    A step that computes prompts runs one kernel for prompts and decodes together. FlashAttention-2 gives every decode a
    whole tile of rows in it for each query head, so that decodes become bound by computing instead of reading: that is
    why mixed steps cost more, and why the factor grows with the number of query heads per KV head.

    Attributes:
        decode_bandwidth_efficiency: share of the memory bandwidth at which a decode step reads the KV cache.
        decode_call_us: fixed cost of decode attention in one layer, µs.
        decode_request_us: cost of each decoding request and KV head in one layer, µs.
        prefill_compute_efficiency: share of the BF16 peak reached by prompt attention.
        prefill_activation_efficiency: share of the bandwidth at which it reads queries and writes outputs; above 1
            where they stay in the L2 cache.
        prefill_call_us: fixed cost of prompt attention in one layer, µs.
        parallel_rows: query rows × heads that fill the card; a short chunk after a long cached prefix costs as if it
            had so many.
        mixed_rows: rows that a decode takes in the prompt kernel for each query head; 0 where heads of a group are
            packed into one tile (FlashAttention-3), so that reading stays the bound.
        mixed_head_us: further cost of each decoding request and query head in a mixed step, one layer, µs.
    """

    decode_bandwidth_efficiency: float
    decode_call_us: float
    decode_request_us: float
    prefill_compute_efficiency: float
    prefill_activation_efficiency: float
    prefill_call_us: float
    parallel_rows: float
    mixed_rows: float
    mixed_head_us: float


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of GPU.

    Attributes:
        name: what users type.
        title: what it is called.
        version: counts changes of the profile's numbers.
        source: where the numbers come from.
        error: measured error of the step times, as stated in reports.
        memory_gib: memory a program sees, GiB.
        bandwidth_tb_s: memory bandwidth of the data sheet, TB/s.
        max_num_batched_tokens: vLLM's default token budget of a step on this card.
        max_num_seqs: vLLM's default bound on running requests on this card.
        gemm: matrix products by precision; a precision that is absent cannot be run.
        experts: the products of all experts of a mixture in one call, BF16.
        attention: attention kernels.
        elementwise_efficiency: share of the bandwidth reached by norms, rotary embedding and activation; above 1 where
            what one kernel writes is still in the L2 cache when the next one reads it.
        layer_us: fixed cost of those kernels in one layer, µs.
        step_us: cost of a step that no kernel shows (launch, input preparation, scheduling), µs.
        request_us: cost of sampling one token of one request, µs.
        all_reduce: for each number of GPUs, message sizes in bytes (rising) and times in µs.
    """

    name: str
    title: str
    version: int
    source: str
    error: str
    memory_gib: float
    bandwidth_tb_s: float
    max_num_batched_tokens: int
    max_num_seqs: int
    gemm: Mapping[str, Gemm]
    experts: Gemm
    attention: Attention
    elementwise_efficiency: float
    layer_us: float
    step_us: float
    request_us: float
    all_reduce: Mapping[int, tuple[tuple[float, ...], tuple[float, ...]]]

    @property
    def gpu_counts(self) -> tuple[int, ...]:
        """Tensor-parallel degrees with a measured all-reduce, and 1."""
        return (1, *sorted(self.all_reduce))


def hardware_names() -> tuple[str, ...]:
    """Names of the packaged cards."""
    return profile_names("hardware")


def hardware(name: str | Path) -> Hardware:
    """The card called `name`, or the one described by the TOML file `name`.

    Raises:
        ValueError: one sentence that names the file, the key and the fix.
    """
    table = read_profile("hardware", name)
    gemm, step = _gemm(table.table("gemm")), table.table("step")
    card = Hardware(
        name=table.text("name"),
        title=table.text("title"),
        version=table.whole("version"),
        source=table.text("source"),
        error=table.text("error"),
        memory_gib=table.positive("memory_gib"),
        bandwidth_tb_s=table.positive("bandwidth_tb_s"),
        max_num_batched_tokens=table.whole("max_num_batched_tokens"),
        max_num_seqs=table.whole("max_num_seqs"),
        gemm=gemm,
        experts=_products(table.table("experts"), peak_tflops=gemm["bf16"].peak_tflops),
        attention=_attention(table.table("attention")),
        elementwise_efficiency=step.positive("elementwise_efficiency", most=8),
        layer_us=step.number("layer_us"),
        step_us=step.number("step_us"),
        request_us=step.number("request_us"),
        all_reduce=_all_reduce(table.optional_table("all_reduce")),
    )
    step.close()
    table.close()
    return card


def _gemm(table: TableReader) -> Mapping[str, Gemm]:
    products = {}
    for precision in ("bf16", "fp8"):
        entry = table.table(precision) if precision == "bf16" else table.optional_table(precision)
        if entry is not None:
            products[precision] = _products(entry, peak_tflops=entry.positive("peak_tflops"))
    table.close()
    return products


def _products(table: TableReader, peak_tflops: float) -> Gemm:
    gemm = Gemm(
        peak_tflops=peak_tflops,
        weight_efficiency=table.positive("weight_efficiency", most=1),
        compute_efficiency=table.positive("compute_efficiency", most=1),
        call_us=table.number("call_us"),
        knee=table.number("knee", most=1),
    )
    table.close()
    return gemm


def _attention(table: TableReader) -> Attention:
    attention = Attention(
        decode_bandwidth_efficiency=table.positive("decode_bandwidth_efficiency", most=1),
        decode_call_us=table.number("decode_call_us"),
        decode_request_us=table.number("decode_request_us"),
        prefill_compute_efficiency=table.positive("prefill_compute_efficiency", most=1),
        prefill_activation_efficiency=table.positive("prefill_activation_efficiency", most=8),
        prefill_call_us=table.number("prefill_call_us"),
        parallel_rows=table.number("parallel_rows"),
        mixed_rows=table.number("mixed_rows"),
        mixed_head_us=table.number("mixed_head_us"),
    )
    table.close()
    return attention


def _all_reduce(table: TableReader | None) -> Mapping[int, tuple[tuple[float, ...], tuple[float, ...]]]:
    if table is None:
        return {}
    by_gpus = {}
    for key in table.keys():  # noqa: SIM118 - a method, not a mapping
        if not key.isdecimal() or int(key) < 2:
            raise table.fault(key, "must be a number of GPUs of at least 2")
        entry = table.table(key)
        sizes, times = entry.numbers("message_bytes"), entry.numbers("us")
        if len(sizes) != len(times) or len(sizes) < 2 or len(set(sizes)) != len(sizes):
            raise entry.fault("us", "must have as many numbers as message_bytes: at least two sizes, all different")
        entry.close()
        by_gpus[int(key)] = (sizes, times)
    return by_gpus
