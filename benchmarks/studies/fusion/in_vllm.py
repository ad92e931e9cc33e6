"""What fusion inside vLLM frees, and what it does to throughput and answers, on a real engine on the CPU.

    python -m benchmarks.studies.fusion.in_vllm MODEL TEXT… --share template --blocks 60 > study.jsonl

Run by an interpreter that has vLLM, with VLLM_ENABLE_V1_MULTIPROCESSING=0. Prompts are those of `headway fusion
measure` and all come at once. KV blocks are few, so that memory limits how many run. One line of JSON for each way and
round:

- `no-cache`: no request reads the prefix cache; what all others are compared with.
- `two-at-once`: the same with two seats: how much answers depend on who else is in the batch, without fusion.
- `prefix-cache`: vLLM's own.
- `fusion-BOUND`: Headway's plug-in with fusion, beside the prefix cache.

`first-shared` puts the shared template before the prompt's own beginning, as a prefix cache wants it.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from vllm.config import KVTransferConfig

from headway.fusion.shared_prompts import PROMPT_SETS, PromptSizes, prompt_set
from tests.engines.feature_engine import Day, FeatureEngine, Rows

CONNECTOR = KVTransferConfig(
    kv_connector="FusionConnector",
    kv_connector_module_path="headway.vllm_plugin.fusion_connector",
    kv_role="kv_both",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--share", choices=[*PROMPT_SETS, "first-shared"], default="template")
    parser.add_argument("--bounds", type=float, nargs="*", default=[0.95, 0.9, 0.8])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=384)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--block-tokens", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=60, help="KV blocks of the engine")
    parser.add_argument("--seats", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    engine = FeatureEngine(
        asked.model,
        block_size=asked.block_tokens,
        num_gpu_blocks_override=asked.blocks,
        max_num_seqs=asked.seats,
        max_num_batched_tokens=512,
        max_model_len=(asked.blocks - 1) * asked.block_tokens,
        kv_transfer_config=CONNECTOR,
    )
    sizes = PromptSizes(asked.prompts, asked.prompt_tokens, 2, asked.block_tokens)
    tokens = []
    for path in asked.texts:
        with open(path, encoding="utf-8", errors="replace") as text:
            tokens.append(engine.llm.get_tokenizer()(text.read(), add_special_tokens=False)["input_ids"])
    prompts = prompt_set("template" if asked.share == "first-shared" else asked.share, tokens, sizes, seed=asked.seed)
    prompts = [prompt[: asked.prompt_tokens] for prompt in prompts]
    if asked.share == "first-shared":
        beginning = max(asked.prompt_tokens // asked.block_tokens // 6, 1) * asked.block_tokens
        template = asked.prompt_tokens // asked.block_tokens * 7 // 12 * asked.block_tokens
        prompts = [p[beginning : beginning + template] + p[:beginning] + p[beginning + template :] for p in prompts]
    exact: Day | None = None
    for number in range(asked.rounds):
        for way in ("no-cache", "two-at-once", "prefix-cache", *(f"fusion-{bound:g}" for bound in asked.bounds)):
            day, found = served(engine, way, prompts, asked.output_tokens)
            exact = day if exact is None else exact
            line = {"share": asked.share, "way": way, "round": number, **found, **agreement(exact, day)}
            print(json.dumps(line), flush=True)


def served(engine: FeatureEngine, way: str, prompts: list[list[int]], output_tokens: int) -> tuple[Day, dict[str, Any]]:
    """One day, and what was seen of it."""
    fusion: dict[str, Any] = {"fusion": {"bound": float(way.partition("-")[2])}} if way.startswith("fusion") else {}
    scheduler = engine.rule(ordering="fcfs", **fusion)
    scheduler.reset_prefix_cache()
    if way == "two-at-once":
        scheduler.max_num_active_reqs = 2
    sampling = {"skip_reading_prefix_cache": True} if way in ("no-cache", "two-at-once") else {}
    rows: Rows = [
        {"id": f"r{index}", "tokens": prompt, "output": output_tokens, "sampling": sampling}
        for index, prompt in enumerate(prompts)
    ]
    pool = scheduler.kv_cache_manager.block_pool
    seen: list[tuple[int, int, int]] = []
    sharing = scheduler.headway.sharing

    def look(step: int) -> None:
        shared = 0 if sharing is None else sharing.shared_entries
        seen.append((len(scheduler.running), pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(), shared))

    began, cpu_began = time.perf_counter(), time.process_time()
    day = engine.serve(rows, look)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    steps = [one for one in seen if one[0]]
    entries = sum(used + shared for _, used, shared in steps)
    found = {
        "steps": len(steps),
        "mean_running": round(sum(running for running, _, _ in steps) / len(steps), 2),
        "most_running": max(running for running, _, _ in steps),
        "preemptions": sum(
            value for (name, _), value in scheduler.headway.metrics.counters.items() if name == "preemptions"
        ),
        "mean_shared_entries": round(sum(shared for _, _, shared in steps) / len(steps), 2),
        "saved_share": round(sum(shared for _, _, shared in steps) / entries, 4) if entries else 0.0,
        "compared_blocks": 0 if sharing is None else sharing.compared_blocks,
        "fused_blocks": 0 if sharing is None else sharing.fused_blocks,
        "freed_blocks": 0 if sharing is None else sharing.freed_blocks,
        "prompt_blocks": sum(len(prompt) for prompt in prompts) // engine.scheduler.block_size,
        "fusion_on": None if sharing is None else sharing.on,
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "tokens_per_second": round(len(prompts) * output_tokens / wall, 2),
        "leftovers": engine.leftovers(),
    }
    return day, found


def agreement(exact: Day, day: Day) -> dict[str, float]:
    """Answers beside the exact ones: whole answers that are the same, and tokens before the first that is not."""
    same, before, tokens = 0, 0, 0
    for id_, answers in exact.tokens.items():
        ours, theirs = day.tokens[id_][0], answers[0]
        until = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(theirs))
        same += until == len(theirs)
        before += until
        tokens += len(theirs)
    return {"same_answers": round(same / len(exact.tokens), 4), "tokens_before_difference": round(before / tokens, 4)}


if __name__ == "__main__":
    main()
