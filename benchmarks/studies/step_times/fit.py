"""Fit the constants of the hardware profiles to published kernel measurements; print them with held-out errors.

Run with HEADWAY_GROUNDTRUTH naming the folder that docs/results/step-time.md describes. Each fit minimises the mean
absolute percentage error over every second value of one coordinate; the error printed is over the values left out.
"""

from __future__ import annotations

import csv
import gzip
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headway.simulator.hardware import Hardware, hardware
from headway.simulator.models import ModelShape, model_shape

Column = npt.NDArray[np.float64]
Rows = npt.NDArray[np.bool_]

# Folder of AIConfigurator's kernels, by the card whose profile they make.
KERNELS = {
    "a100": "a100_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
# Layer profiles (LLMServingSim) of the cards that have them; the first one is fitted, the others are held out.
LAYERS = {
    "rtx-4090": ("RTX4090", [("Llama-3.1-8B", "llama-3.1-8b", 1)]),
    "rtx-pro-6000": (
        "RTXPRO6000",
        [
            ("Llama-3.1-8B", "llama-3.1-8b", 1),
            ("Llama-3.1-8B", "llama-3.1-8b", 2),
            ("Qwen3-32B", "qwen3-32b", 1),
            ("Qwen3-32B", "qwen3-32b", 2),
            ("Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b", 1),
        ],
    ),
}


def columns(path: Path, *names: str, where: tuple[str, str] | None = None) -> list[Column]:
    """The named columns of a .csv.gz, rows restricted to `where` (column, value)."""
    with gzip.open(path, "rt", newline="") as file:
        rows = [row for row in csv.DictReader(file) if where is None or row[where[0]] == where[1]]
    return [np.array([float(row[name]) for row in rows]) for name in names]


def error(predicted: Column, measured: Column) -> float:
    """Mean absolute percentage error, as a fraction."""
    return float(np.mean(np.abs(predicted / measured - 1)))


def minimise(loss: Callable[[Column], float], start: Sequence[float], rounds: int = 900) -> Column:
    """Nelder-Mead over the logarithms of positive parameters."""
    points = [np.log(np.array(start, dtype=float))]
    points += [points[0] + 0.3 * row for row in np.eye(len(start))]
    values = [loss(np.exp(point)) for point in points]
    for _ in range(rounds):
        order = np.argsort(values)
        points, values = [points[i] for i in order], [values[i] for i in order]
        centre = np.mean(points[:-1], axis=0)
        step = centre - points[-1]
        tried = centre + step
        value = loss(np.exp(tried))
        if value < values[0]:
            further = centre + 2 * step
            further_value = loss(np.exp(further))
            points[-1], values[-1] = (further, further_value) if further_value < value else (tried, value)
        elif value < values[-2]:
            points[-1], values[-1] = tried, value
        else:
            inner = centre - 0.5 * step
            inner_value = loss(np.exp(inner))
            if inner_value < values[-1]:
                points[-1], values[-1] = inner, inner_value
            else:
                points = [points[0]] + [(points[0] + point) / 2 for point in points[1:]]
                values = [values[0]] + [loss(np.exp(point)) for point in points[1:]]
    return np.asarray(np.exp(points[int(np.argmin(values))]))


def every_second(values: Column) -> Rows:
    """Rows whose value is every second one of the grid: those are fitted."""
    return np.isin(values, np.unique(values)[::2])


def above_one(*shares: float) -> float:
    """A penalty that keeps efficiencies below one."""
    return 10 * sum(max(0.0, share - 1) for share in shares)


def report(what: str, names: str, found: Column, fitted: float | None, held_out: float, rows: int) -> None:
    """One line a fit."""
    values = " ".join(f"{name}={value:.3g}" for name, value in zip(names.split(), found, strict=True))
    own = "other model" if fitted is None else f"fitted {fitted:.1%}"
    print(f"{what:34s} {values}  | {own}, held out {held_out:.1%}, {rows} rows held out")


def fit_products(root: Path, card: Hardware, folder: str, precision: str) -> None:
    """Matrix products: max + knee · min² / max of reading and computing, plus a call."""
    if precision not in card.gemm:
        return
    dtype, width = ("bfloat16", 2) if precision == "bf16" else ("fp8", 1)
    m, n, k, ms = columns(
        root / "aiconfigurator" / folder / "gemm.csv.gz", "m", "n", "k", "latency_ms", where=("gemm_dtype", dtype)
    )
    llm = (n >= 1024) & (k >= 1024) & (n * k >= 4e6) & (n <= 65536)  # shapes of weights, not of small heads
    m, n, k, us = m[llm], n[llm], k[llm], ms[llm] * 1e3
    peak = card.gemm[precision].peak_tflops

    def predict(x: Column) -> Column:
        read = width * n * k / (x[0] * card.bandwidth_tb_s * 1e6)
        work = 2 * m * n * k / (x[1] * peak * 1e6)
        most, least = np.maximum(read, work), np.minimum(read, work)
        return np.asarray(most + x[3] * least * least / most + x[2])

    half = every_second(m)
    found = minimise(lambda x: error(predict(x)[half], us[half]) + above_one(x[0], x[1], x[3]), [0.8, 0.7, 4, 0.3])
    guess = predict(found)
    names = "weight_efficiency compute_efficiency call_us knee"
    report(
        f"{card.name} {precision} products",
        names,
        found,
        error(guess[half], us[half]),
        error(guess[~half], us[~half]),
        int((~half).sum()),
    )


def fit_experts(root: Path, card: Hardware, folder: str) -> None:
    """All experts' products of a layer in BF16, routing by a mild power law; two mixtures fit, the rest held out."""
    names = ["num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"]
    path = root / "aiconfigurator" / folder / "moe.csv.gz"
    if not path.exists():
        return
    with gzip.open(path, "rt", newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row.get("moe_dtype", "bfloat16") == "bfloat16"
            and row["distribution"] == "power_law_1.01"
            and row["moe_tp_size"] == row["moe_ep_size"] == "1"
        ]
    tokens, hidden, inner, active, count, _, _ = (np.array([float(row[name]) for row in rows]) for name in names)
    us = np.array([float(row["latency_ms"]) for row in rows]) * 1e3
    weights = 3 * hidden * inner
    touched = count * (1 - (1 - active / count) ** tokens)

    def predict(x: Column) -> Column:
        read = 2 * touched * weights / (x[0] * card.bandwidth_tb_s * 1e6)
        work = 2 * tokens * active * weights / (x[1] * card.gemm["bf16"].peak_tflops * 1e6)
        most, least = np.maximum(read, work), np.minimum(read, work)
        return np.asarray(most + x[3] * least * least / most + x[2])

    usual = ((count == 128) & (active == 8)) | ((count == 8) & (active == 2))
    found = minimise(lambda x: error(predict(x)[usual], us[usual]) + above_one(x[0], x[1], x[3]), [0.8, 0.6, 20, 0.3])
    guess = predict(found)
    report(
        f"{card.name} experts",
        "weight_efficiency compute_efficiency call_us knee",
        found,
        error(guess[usual], us[usual]),
        error(guess[~usual], us[~usual]),
        int((~usual).sum()),
    )


def fit_decode_attention(root: Path, card: Hardware, folder: str) -> None:
    """Decode attention: KV bytes over bandwidth, a call, and a cost per request and KV head; fitted on 32/8 heads."""
    heads, kv, batch, step, ms = columns(
        root / "aiconfigurator" / folder / "attention_decode.csv.gz",
        *("num_heads", "num_key_value_heads", "batch_size", "step", "latency_ms"),
        where=("kv_cache_dtype", "bfloat16"),
    )
    us = ms * 1e3
    usual = (heads >= 8) & (kv >= 1)

    def predict(x: Column) -> Column:
        read = batch * (step + 1) * kv * 512 / (x[0] * card.bandwidth_tb_s * 1e6)
        return np.asarray(read + x[1] + x[2] * batch * kv)

    half = (heads == 32) & (kv == 8)
    found = minimise(lambda x: error(predict(x)[half], us[half]) + above_one(x[0]), [0.85, 12, 0.02])
    rest = usual & ~half
    guess = predict(found)
    report(
        f"{card.name} decode attention",
        "efficiency call_us request_us",
        found,
        error(guess[half], us[half]),
        error(guess[rest], us[rest]),
        int(rest.sum()),
    )


def fit_prompt_attention(root: Path, card: Hardware, folder: str) -> None:
    """Prompt attention of whole prompts: the larger of all work and the longest chain, activations, a call."""
    heads, kv, batch, prompt, ms = columns(
        root / "aiconfigurator" / folder / "attention_prefill.csv.gz",
        *("num_heads", "num_key_value_heads", "batch_size", "isl", "latency_ms"),
        where=("kv_cache_dtype", "bfloat16"),
    )
    us = ms * 1e3
    peak = card.gemm["bf16"].peak_tflops

    def predict(x: Column) -> Column:
        rows = np.maximum(batch * prompt * heads, x[3])
        work = 2 * 128 * rows * prompt / (x[0] * peak * 1e6)
        activations = batch * prompt * (2 * heads + 2 * kv) * 256 / (x[2] * card.bandwidth_tb_s * 1e6)
        return np.asarray(work + activations + x[1])

    usual = (heads >= 8) & (prompt >= 16)
    half = (heads == 32) & (kv == 8) & (prompt >= 16)
    found = minimise(lambda x: error(predict(x)[half], us[half]) + above_one(x[0]), [0.6, 12, 0.4, 5000])
    rest = usual & ~half
    guess = predict(found)
    names = "efficiency call_us activation_efficiency parallel_rows"
    report(
        f"{card.name} prompt attention",
        names,
        found,
        error(guess[half], us[half]),
        error(guess[rest], us[rest]),
        int(rest.sum()),
    )


def fit_layers(root: Path, card: Hardware) -> None:
    """Attention with cached prefixes and mixed steps, on the first profile of the card; the others are held out."""
    folder, profiles = LAYERS[card.name]
    constants: dict[str, Column] = {}
    for published, name, tp in profiles:
        data = columns(
            root / "layer_profiles" / f"{folder}_{published}_tp{tp}" / "attention.csv.gz",
            *("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"),
        )
        _fit_one_layer(card, model_shape(name), tp, data, constants)


def fit_layer_products(root: Path, card: Hardware) -> None:
    """Matrix products and elementwise kernels of whole layers; for cards without a table of products."""
    folder, profiles = LAYERS[card.name]
    published, name, tp = profiles[0]
    shape = model_shape(name)
    path = root / "layer_profiles" / f"{folder}_{published}_tp{tp}" / "dense.csv.gz"
    inner, heads = shape.intermediate, (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    weights = {
        "qkv_proj": shape.hidden * heads,
        "o_proj": shape.hidden * shape.heads * shape.head_dim,
        "gate_up_proj": 2 * shape.hidden * inner,
        "down_proj": shape.hidden * inner,
    }
    tables = [columns(path, "tokens", "time_us", where=("layer", layer)) for layer in weights]
    tokens, us = np.concatenate([one[0] for one in tables]), np.concatenate([one[1] for one in tables])
    size = np.concatenate([np.full(len(one[0]), each) for one, each in zip(tables, weights.values(), strict=True)])

    def predict(x: Column) -> Column:
        read = 2 * size / (x[0] * card.bandwidth_tb_s * 1e6)
        work = 2 * size * tokens / (x[1] * card.gemm["bf16"].peak_tflops * 1e6)
        most, least = np.maximum(read, work), np.minimum(read, work)
        return np.asarray(most + x[3] * least * least / most + x[2])

    half = every_second(tokens)
    found = minimise(lambda x: error(predict(x)[half], us[half]) + above_one(x[0], x[1], x[3]), [0.9, 0.8, 2, 0.3])
    guess = predict(found)
    names = "weight_efficiency compute_efficiency call_us knee"
    report(
        f"{card.name} {name} products",
        names,
        found,
        error(guess[half], us[half]),
        error(guess[~half], us[~half]),
        int((~half).sum()),
    )


def _fit_one_layer(
    card: Hardware, shape: ModelShape, tp: int, data: list[Column], constants: dict[str, Column]
) -> None:
    chunk, before, decodes, context, us = data
    heads, kv = shape.heads / tp, max(1.0, shape.kv_heads / tp)
    bandwidth, peak = card.bandwidth_tb_s * 1e6, card.gemm["bf16"].peak_tflops * 1e6
    label = f"{card.name} {shape.name} tp{tp}"

    def decode(x: Column) -> Column:
        return np.asarray(decodes * context * kv * 512 / (x[0] * bandwidth) + x[1] + x[2] * decodes * kv)

    def prompt(x: Column) -> Column:
        rows = np.maximum(chunk * heads, x[3])
        work = 4 * 128 * rows * (before + chunk / 2) / (x[0] * peak)
        return np.asarray(work + chunk * (2 * heads + 2 * kv) * 256 / (x[2] * bandwidth) + x[1])

    def mixed(x: Column) -> Column:
        read = kv * 512 / (constants["decode"][0] * bandwidth)
        tile = 4 * heads * 128 * x[0] / (constants["prompt"][0] * peak)
        each = decodes * context * max(read, tile) + decodes * heads * x[1]
        return np.asarray(prompt(constants["prompt"]) + each)

    fits: list[tuple[str, Callable[[Column], Column], str, Rows, Column, list[float]]] = [
        ("decode", decode, "efficiency call_us request_us", (chunk == 0) & (decodes > 0), context, [0.9, 12, 0.02]),
        (
            "prompt",
            prompt,
            "efficiency call_us activation_efficiency parallel_rows",
            (chunk > 0) & (decodes == 0),
            chunk,
            [0.6, 9, 0.7, 8000],
        ),
        ("mixed", mixed, "mixed_rows mixed_head_us", (chunk > 0) & (decodes > 0), context, [60, 0.03]),
    ]
    for what, predict, names, rows, grid, start in fits:
        half = rows & every_second(grid)
        if what not in constants:

            def loss(x: Column, predict: Callable[[Column], Column] = predict, half: Rows = half) -> float:
                return error(predict(x)[half], us[half])

            limited = (lambda x, loss=loss: loss(x) + above_one(x[0])) if what != "mixed" else loss
            constants[what] = minimise(limited, start, 400)
            rest = rows & ~half
        else:
            rest = rows  # constants of another model: all of it is held out
        guess = predict(constants[what])
        report(
            f"{label} {what}",
            names,
            constants[what],
            error(guess[half], us[half]) if rest is not rows else None,
            error(guess[rest], us[rest]),
            int(rest.sum()),
        )


def main() -> int:
    folder = os.environ.get("HEADWAY_GROUNDTRUTH")
    if not folder:
        print("set HEADWAY_GROUNDTRUTH to the folder of published measurements", file=sys.stderr)
        return 2
    root = Path(folder)
    for name, kernels in KERNELS.items():
        card = hardware(name)
        fit_products(root, card, kernels, "bf16")
        fit_products(root, card, kernels, "fp8")
        fit_experts(root, card, kernels)
        fit_decode_attention(root, card, kernels)
        fit_prompt_attention(root, card, kernels)
    for name in LAYERS:
        fit_layers(root, hardware(name))
        fit_layer_products(root, hardware(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
