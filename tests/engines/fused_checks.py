"""Checks of `headway.fusion` with torch, run by an interpreter that has it: `python fused_checks.py MODEL`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from headway.fusion.causal_model import CausalModel
from headway.fusion.distortion_curve import PromptKv
from headway.fusion.kv_blocks import as_floats, blocks_of_prompts
from headway.fusion.shared_prompts import PromptSizes

SIZES = PromptSizes(prompts=6, prompt_tokens=48, scored_tokens=5, block_tokens=8)


def main() -> None:
    model = CausalModel(sys.argv[1])
    drawn = np.random.default_rng(0)
    prompts = drawn.integers(3, 900, size=(SIZES.prompts, SIZES.own_tokens)).tolist()

    # KV put back as it was leaves the model as it was.
    measured = PromptKv(model, prompts, SIZES)
    with torch.no_grad():
        logits = model._model(torch.tensor(prompts)).logits[:, SIZES.prompt_tokens :].log_softmax(-1).numpy()
    np.testing.assert_allclose(measured._exact, logits, atol=2e-3)

    # In the first layer a key depends on its token and position alone: turned back, equal tokens have equal keys.
    ((keys, _),) = model.kv([[5, 6, 7, 8, 5, 6, 7, 8, 9]])
    back = model.rotary().turned(keys[0], -np.arange(9)[:, None])
    np.testing.assert_allclose(back[:4], back[4:8], atol=1e-3)
    assert np.abs(keys[0, :4] - keys[0, 4:8]).max() > 0.1

    # The same prompt twice is kept once, and the model says the same.
    point = PromptKv(model, prompts[:1] * 6, SIZES).point("joint-encoding", 0.999)
    assert abs(point.fused_share - 5 / 6) < 1e-6, point
    assert point.quality.kl < 1e-4, point
    assert point.quality.same_greedy == 1, point

    # Tensors convert; those of a type that numpy lacks say how.
    tensors = [torch.ones(2, 8, 1, 4), torch.zeros(2, 8, 1, 4)]
    assert blocks_of_prompts(tensors, tensors, 4).count == 4
    with_gradient = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    assert "tensor.detach().float().cpu()" in refusal(lambda: as_floats("keys", with_gradient))
    elsewhere = sys.argv[1] + "-not-there"
    assert "no Hugging Face checkpoint could be read there" in refusal(lambda: CausalModel(elsewhere))

    # A checkpoint that is broken, or lacks weights that would be drawn at random, is refused.
    with TemporaryDirectory() as folder:
        copy = shutil.copytree(sys.argv[1], Path(folder) / "copy")
        weights = load_file(copy / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        assert "lacks 1 of the model's weights (model.norm.weight)" in refusal(lambda: CausalModel(str(copy)))
        (copy / "model.safetensors").write_bytes(b"no weights")
        assert "no Hugging Face checkpoint could be read there" in refusal(lambda: CausalModel(str(copy)))
    print("all checks passed")


def refusal(wrong: Callable[[], object]) -> str:
    """The sentence with which something is refused."""
    try:
        wrong()
    except ValueError as error:
        return str(error)
    raise AssertionError("it was taken")


if __name__ == "__main__":
    main()
