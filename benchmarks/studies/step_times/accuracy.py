"""How far the shipped latency model is from published measurements, by card, model and regime.

Run with HEADWAY_GROUNDTRUTH naming the folder that docs/results/step-time.md describes. Prints mean absolute percentage
error and bias; nothing is fitted here but what `--fit-step` says. Rows marked "fitted" were seen by the fit of the
profile's constants (benchmarks/studies/step_times/fit.py), the others were not.
"""

from __future__ import annotations

import csv
import gzip
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from headway.simulator.hardware import Hardware, Precision, hardware
from headway.simulator.models import Experts, ModelShape, model_shape
from headway.simulator.replica import replica
from headway.simulator.roofline import Roofline

PS_PER_US = 1e6
FITTED, HELD_OUT = "fitted", "held out"

LAYER_PROFILES = (  # folder, card, model, tp, whether the card's attention constants saw it
    ("RTX4090_Llama-3.1-8B_tp1", "rtx-4090", "llama-3.1-8b", 1, FITTED),
    ("RTXPRO6000_Llama-3.1-8B_tp1", "rtx-pro-6000", "llama-3.1-8b", 1, FITTED),
    ("RTXPRO6000_Llama-3.1-8B_tp2", "rtx-pro-6000", "llama-3.1-8b", 2, HELD_OUT),
    ("RTXPRO6000_Qwen3-32B_tp1", "rtx-pro-6000", "qwen3-32b", 1, HELD_OUT),
    ("RTXPRO6000_Qwen3-32B_tp2", "rtx-pro-6000", "qwen3-32b", 2, HELD_OUT),
)
VIDUR_SHAPES = {  # heads, KV heads, hidden, intermediate of the models in the table; none was fitted
    "meta-llama/Llama-2-7b-hf": (32, 32, 4096, 11008),
    "meta-llama/Llama-2-70b-hf": (64, 8, 8192, 28672),
    "meta-llama/Meta-Llama-3-8B": (32, 8, 4096, 14336),
    "meta-llama/Meta-Llama-3-70B": (64, 8, 8192, 28672),
    "codellama/CodeLlama-34b-Instruct-hf": (64, 8, 8192, 22016),
    "internlm/internlm-20b": (40, 40, 5120, 13824),
    "Qwen/Qwen-72B": (64, 64, 8192, 24576),
}
SERVED: dict[str, tuple[str, Precision]] = {
    "meta-llama/Llama-3.1-70B": ("llama-3.1-70b", "fp8"),
    "nvidia/Llama-3.1-8B-Instruct-FP8": ("llama-3.1-8b", "fp8"),
    "Qwen/Qwen3-32B": ("qwen3-32b", "bf16"),
}
SERVED_CARDS = {"h100_sxm": "h100", "h200_sxm": "h200"}


@dataclass(frozen=True)
class Accuracy:
    """One line of the table: errors are fractions."""

    data: str
    card: str
    model: str
    regime: str
    rows: int
    error: float
    bias: float
    seen: str


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a .csv.gz."""
    with gzip.open(path, "rt", newline="") as file:
        yield from csv.DictReader(file)


def summed(data: str, card: str, model: str, regime: str, seen: str, pairs: Iterable[tuple[float, float]]) -> Accuracy:
    """Errors over (predicted, measured)."""
    relative = [predicted / measured - 1 for predicted, measured in pairs]
    count = len(relative)
    mean_error = sum(abs(one) for one in relative) / count
    return Accuracy(data, card, model, regime, count, mean_error, sum(relative) / count, seen)


def kernels_only(card: Hardware) -> Hardware:
    """The card without the step's cost that kernels do not show."""
    return replace(card, step_us=0.0)


def layer_profiles(root: Path) -> Iterator[Accuracy]:
    """Whole steps composed from measured kernels of vLLM 0.19: decode, prompt and mixed."""
    for folder, card_name, model, tp, seen in LAYER_PROFILES:
        shape = model_shape(model)
        measured = _composed_steps(root / "layer_profiles" / folder, shape)
        # The profiles hold one GPU's shard and no communication: an all-reduce that costs nothing.
        card = kernels_only(hardware(card_name))
        free = dict.fromkeys(card.all_reduce, ((1.0, 2.0), (1e-9, 1e-9)))
        step_time = Roofline(replace(card, all_reduce=free), shape, tp)
        regimes: dict[str, list[tuple[float, float]]] = {"decode": [], "prompt": [], "mixed": []}
        for (chunk, before, decodes, context), us in measured:
            regime = "decode" if not chunk else "mixed" if decodes else "prompt"
            chunks = ((chunk, before),) if chunk else ()
            sampled = decodes + (1 if chunk else 0)
            ps = step_time.mixed_step(decodes, decodes * context, chunks, sampled)
            regimes[regime].append((ps / PS_PER_US, us))
        for regime, pairs in regimes.items():
            yield summed("layer profile", card_name, f"{model} tp{tp}", regime, seen, pairs)


def _composed_steps(folder: Path, shape: ModelShape) -> Iterator[tuple[tuple[int, int, int, int], float]]:
    once, sampled = ("embedding", "final_layernorm"), ("lm_head", "sampler")
    tables: dict[str, dict[int, float]] = {}
    for row in rows_of(folder / "dense.csv.gz"):
        tables.setdefault(row["layer"], {})[int(row["tokens"])] = float(row["time_us"])
    for row in rows_of(folder / "per_sequence.csv.gz"):
        tables.setdefault(row["layer"], {})[int(row["sequences"])] = float(row["time_us"])
    at = {layer: _between(table) for layer, table in tables.items()}
    largest = max(tables["qkv_proj"])
    layers = [(at[layer], 2 if layer == "layernorm" else 1) for layer in at if layer not in once + sampled]
    for row in rows_of(folder / "attention.csv.gz"):
        chunk, before, decodes, context = (
            int(float(row[key])) for key in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
        )
        tokens, requests = chunk + decodes, decodes + (1 if chunk else 0)
        if tokens > largest or (decodes and context > 4096) or before > 16384:
            continue  # beyond what was measured, or decodes far beyond the card's memory
        layer = sum(count * time(tokens) for time, count in layers) + float(row["time_us"])
        us = shape.layers * layer + sum(at[one](tokens) for one in once) + sum(at[one](requests) for one in sampled)
        yield (chunk, before, decodes, context), us


def _between(table: dict[int, float]) -> Callable[[int], float]:
    """Linear interpolation in a measured table."""
    keys = sorted(table)

    def at(key: int) -> float:
        if key in table:
            return table[key]
        low, high = max(one for one in keys if one < key), min(one for one in keys if one > key)
        return table[low] + (table[high] - table[low]) * (key - low) / (high - low)

    return at


def matrix_products(root: Path) -> Iterator[Accuracy]:
    """The four products of a layer on models and cards that no fit saw (Vidur's profiles), every tp."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    step_times: dict[tuple[str, str, int], Roofline] = {}
    for row in rows_of(root / "vidur" / "mlp_ops.csv.gz"):
        columns = [row[f"{op}_ms"] for op in ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")]
        if row["model"] not in VIDUR_SHAPES or not all(columns) or "nan" in columns:
            continue
        key = (row["gpu"], row["model"], int(row["tp"]))
        if key not in step_times:
            step_times[key] = _products_alone(*key)
        us = sum(float(one) for one in columns) * 1e3
        predicted = step_times[key].mixed_step(int(row["num_tokens"]), 0, (), 0) / PS_PER_US
        found.setdefault(key[:2], []).append((predicted, us))
    for (card, model), pairs in sorted(found.items()):
        yield summed("products (Vidur)", card, model.split("/")[1], "1-4,096 tokens", HELD_OUT, pairs)


def _products_alone(card_name: str, model: str, tp: int) -> Roofline:
    """One layer's products and nothing else."""
    heads, kv_heads, hidden, intermediate = VIDUR_SHAPES[model]
    shape = ModelShape(model, model, 1, "", 1, hidden, heads, kv_heads, 128, intermediate, 1, False, 4096)
    return Roofline(_bare(hardware(card_name), tp), shape, tp)


def _bare(card: Hardware, tp: int) -> Hardware:
    attention = replace(card.attention, decode_call_us=0.0, decode_request_us=0.0)
    free = {tp: ((1.0, 2.0), (1e-9, 1e-9))}
    return replace(
        card,
        attention=attention,
        step_us=0.0,
        layer_us=0.0,
        request_us=0.0,
        elementwise_efficiency=1e9,
        all_reduce=free,
    )


def expert_layers(root: Path) -> Iterator[Accuracy]:
    """Mixture-of-experts layers in BF16 under the mildest skew of routing that was measured on all cards."""
    for folder, card_name in (("a100_sxm", "a100"), ("h100_sxm", "h100"), ("h200_sxm", "h200")):
        found: dict[str, list[tuple[float, float]]] = {}
        card = _bare(hardware(card_name), 1)
        bare = replace(card, gemm={"bf16": replace(card.gemm["bf16"], call_us=0.0)})
        for row in rows_of(root / "aiconfigurator" / folder / "moe.csv.gz"):
            alone = row["moe_tp_size"] == row["moe_ep_size"] == "1" and row.get("moe_dtype", "bfloat16") == "bfloat16"
            if not alone or row["distribution"] != "power_law_1.01":
                continue
            experts = Experts(int(row["num_experts"]), int(row["topk"]), int(row["inter_size"]))
            shape = ModelShape("", "", 1, "", 1, int(row["hidden_size"]), 1, 1, 1, 0, 1, False, 4096, experts)
            predicted = Roofline(bare, shape).mixed_step(int(row["num_tokens"]), 0, (), 0) / PS_PER_US
            name = f"{experts.count} experts, {experts.active} active"
            found.setdefault(name, []).append((predicted, float(row["latency_ms"]) * 1e3))
        for name, pairs in sorted(found.items()):
            seen = FITTED if name in {"128 experts, 8 active", "8 experts, 2 active"} else HELD_OUT
            yield summed("experts (AIConfigurator)", card_name, name, "one layer", seen, pairs)


@dataclass(frozen=True)
class Served:
    """One closed-loop run of a real server."""

    card: str
    model: str
    precision: Precision
    tp: int
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    tpot_seconds: float


def served_runs(root: Path) -> list[Served]:
    """Runs on known models that fit the KV memory; gpt-oss-120b (FP4, sliding windows) is not modelled."""
    found = []
    for row in rows_of(root / "steady_state" / "vllm_hopper.csv.gz"):
        if row["model"] not in SERVED or row["pp"] not in {"", "1"}:
            continue
        model, precision = SERVED[row["model"]]
        precision = "fp8" if row["precision"] == "fp8" else precision
        prompt, output, concurrency, tp = (
            int(float(row[key])) for key in ("prompt_tokens", "output_tokens", "concurrency", "tp")
        )
        card = SERVED_CARDS[row["gpu"]]
        rules = replica(card, model, tp=tp, precision=precision).rules
        if concurrency * (prompt + output) > rules.kv_blocks * rules.block_tokens:
            continue  # requests wait for memory: a matter of the queue, not of the step
        run = Served(card, model, precision, tp, prompt, output, concurrency, float(row["tpot_ms"]) / 1e3)
        found.append(run)
    return found


def predicted_tpot_seconds(run: Served, step_us: float | None = None) -> float:
    """TPOT of a closed loop whose prompts come one at a time, spread evenly over the decode steps.

    A request decodes for `output` steps at a mean context of prompt + output / 2, and sees the prompts of the
    `concurrency - 1` others computed beside it, each in one step of the default budget or several.
    """
    whole = replica(run.card, run.model, tp=run.tp, precision=run.precision)
    card = whole.hardware if step_us is None else replace(whole.hardware, step_us=step_us)
    step_time = Roofline(card, whole.model, run.tp, whole.precision)
    others = run.concurrency - 1
    context = run.prompt_tokens + run.output_tokens // 2
    fixed, slope = step_time.decode_step(run.concurrency)
    decode = fixed + slope * run.concurrency * context
    extra, before = 0, 0
    while before < run.prompt_tokens and others:
        new = min(run.prompt_tokens - before, whole.rules.max_num_batched_tokens - others)
        last = before + new == run.prompt_tokens
        extra += step_time.mixed_step(others, others * context, ((new, before),), others + last) - decode
        before += new
    return (decode + others * extra / run.output_tokens) / 1e12


def served_tpot(root: Path) -> Iterator[Accuracy]:
    """TPOT of whole servers; Llama-3.1-70B set the cost of a step, the other models are held out."""
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for run in served_runs(root):
        regime = "TPOT, ≤ 16 concurrent" if run.concurrency <= 16 else "TPOT, > 16 concurrent"
        key = (run.card, f"{run.model} {run.precision}", regime)
        found.setdefault(key, []).append((predicted_tpot_seconds(run), run.tpot_seconds))
    for (card, model, regime), pairs in sorted(found.items()):
        seen = FITTED if model.startswith("llama-3.1-70b") else HELD_OUT
        yield summed("servers (AIConfigurator)", card, model, regime, seen, pairs)


def fit_step(root: Path) -> Iterator[tuple[str, float, float]]:
    """The one scalar of a card that servers set: (card, µs a step, error) on Llama-3.1-70B."""
    runs = [run for run in served_runs(root) if run.model == "llama-3.1-70b"]
    for card in ("h100", "h200"):
        mine = [run for run in runs if run.card == card]

        def loss(step_us: float, mine: list[Served] = mine) -> float:
            return sum(abs(predicted_tpot_seconds(run, step_us) / run.tpot_seconds - 1) for run in mine) / len(mine)

        best = min(range(0, 5001, 100), key=loss)
        yield card, best, loss(best)


def accuracy(root: Path) -> list[Accuracy]:
    """All of it."""
    return [*layer_profiles(root), *matrix_products(root), *expert_layers(root), *served_tpot(root)]


def main(arguments: list[str]) -> int:
    folder = os.environ.get("HEADWAY_GROUNDTRUTH")
    if not folder:
        print("set HEADWAY_GROUNDTRUTH to the folder of published measurements", file=sys.stderr)
        return 2
    if arguments == ["--fit-step"]:
        for card, step_us, error in fit_step(Path(folder)):
            print(f"{card}: step_us = {step_us}, error {error:.1%}")
        return 0
    print("| data | card | model | regime | rows | error | bias | constants |")
    print("|---|---|---|---|---:|---:|---:|---|")
    for one in accuracy(Path(folder)):
        print(
            f"| {one.data} | {one.card} | {one.model} | {one.regime} | {one.rows:,} | {one.error:.1%} "
            f"| {one.bias:+.1%} | {one.seen} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
