"""A card and models whose step times can be worked out on paper: every figure is round, and none is there twice."""

from __future__ import annotations

from pathlib import Path

CARD = """
name = "paper"
title = "Paper card"
version = 3
source = "made up for tests"
error = "none"
memory_gib = 1.0
bandwidth_tb_s = 1.0
max_num_batched_tokens = 64
max_num_seqs = 16

[gemm.bf16]
peak_tflops = 100
weight_efficiency = 0.5
compute_efficiency = 0.5
call_us = 3.0
knee = 0.0

[gemm.fp8]
peak_tflops = 200
weight_efficiency = 0.25
compute_efficiency = 0.125
call_us = 4.0
knee = 0.2

[experts]
weight_efficiency = 0.625
compute_efficiency = 0.4
call_us = 20.0
knee = 1.0

[attention]
decode_bandwidth_efficiency = 0.8
decode_call_us = 13.0
decode_request_us = 0.5
prefill_compute_efficiency = 0.2
prefill_activation_efficiency = 1.6
prefill_call_us = 11.0
parallel_rows = 400
mixed_rows = 50
mixed_head_us = 0.75

[step]
elementwise_efficiency = 1.25
layer_us = 5.0
step_us = 7.0
request_us = 0.3

[all_reduce.2]
message_bytes = [1000, 2000, 3000]
us = [1.0, 3.0, 9.0]
"""
MODEL = """
name = "paper-model"
title = "Paper model"
version = 2
source = "made up for tests, too"
layers = 2
hidden = 100
heads = 4
kv_heads = 2
head_dim = 10
intermediate = 300
vocab = 1000
max_model_tokens = 2000
"""
EXPERTS = """
[experts]
count = 8
active = 2
intermediate = 50
"""
MIXTURE = MODEL.replace("intermediate = 300\n", "") + EXPERTS


def written(folder: Path, text: str) -> Path:
    """A file of this text."""
    path = folder / f"profile-{len(list(folder.iterdir()))}.toml"
    path.write_text(text, encoding="utf-8")
    return path
